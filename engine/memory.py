"""What a training takes of a GPU's memory, worked out before it starts; and what to do where that is too much."""

import contextlib
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import losses
from engine import distributed
from util import InputError, reason

GB = 1e9
# Estimates, by what is usual: CUDA's context, its libraries' workspaces, and what the allocator keeps in pieces.
CONTEXT, WORKSPACES, PIECES = 0.5e9, 0.5e9, 1.05


@dataclass(frozen=True)
class Bank:
    """Keys and their dimensions."""

    keys: int
    dim: int


@dataclass(frozen=True)
class Needs:
    """Bytes of a training in one process: `fixed`, and for each image of its part of the batch by what they are for;
    loss: bytes an image that the loss takes, and how many it takes at most.
    """

    fixed: float
    per_image: dict[str, float]
    batch_size: int  # of all processes
    loss: tuple[float, float] = (0.0, math.inf)

    def total(self, images: int) -> float:
        """Bytes with so many images in this process."""
        parts = self.fixed + images * sum(self.per_image.values()) + self._of_loss(images)
        return PIECES * parts + CONTEXT + WORKSPACES

    def _of_loss(self, images: int) -> float:
        return min(images * self.loss[0], self.loss[1])

    def fits(self, memory: float) -> int:
        """Images that so many bytes hold, a multiple of 8, of 64 where it is more than 128; 0: not even 8."""
        free, each = (memory - CONTEXT - WORKSPACES) / PIECES - self.fixed, sum(self.per_image.values())
        # the loss takes its share of each image, or its most, whichever leaves room for more
        most = int(max(free / (each + self.loss[0]), (free - self.loss[1]) / each))
        step = 64 if most > 128 else 8
        return max(0, most // step * step)

    def way_out(self, memory: float) -> str:
        """What to do on GPUs of so many bytes each that do not hold the batch."""
        fits = self.fits(memory)
        if not fits:
            return "give a smaller --size or --model: these GPUs hold not even 8 images"
        if fits >= max(distributed.shares(self.batch_size)):
            return "by the estimate it would fit: another program on the GPU? else give a smaller --batch_size"
        gpus = math.ceil(self.batch_size / fits)
        return f"about --batch_size {fits * distributed.world_size()} would fit, or {gpus} GPUs hold {self.batch_size}"

    def line(self, memory: float) -> str:
        """For the start of a run on GPUs that have so many bytes for it."""
        images = max(distributed.shares(self.batch_size))
        parts = {name: images * x for name, x in self.per_image.items()} | {"loss": self._of_loss(images)}
        parts = {name: x for name, x in parts.items() if x} | {"weights": self.fixed}
        total = self.total(images)
        parts["CUDA's own"] = total - sum(parts.values())
        text = (
            f"memory: about {total / GB:.1f} GB of the {memory / GB:.1f} GB that each GPU has for this run, for "
            f"{images} images ({', '.join(f'{name} {x / GB:.1f}' for name, x in parts.items())})"
        )
        return text if total <= memory else f"warning: {text}; {self.way_out(memory)}"

    def lack(self, error: torch.OutOfMemoryError, memory: float) -> InputError:
        """What a GPU of so many bytes says when it has run out of them."""
        return InputError(f"--batch_size {self.batch_size}: {reason(error)}; {self.way_out(memory)}")


@contextlib.contextmanager
def within(device: torch.device, needs: Callable[[], Needs]):
    """A training in the block, on a CUDA device: what it takes is said before, and lack of memory is an InputError that
    says what would fit. Elsewhere nothing is worked out.
    """
    if device.type != "cuda":
        yield
        return
    needs, (free, whole) = needs(), torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device) + CONTEXT  # by this process already, and counted in what it needs
    distributed.say(needs.line(min(free + held, whole)))
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise needs.lack(error, whole) from None


def of_training(
    encoder: nn.Module,
    size: int,
    precision: torch.dtype,
    batch_size: int,
    bank: Bank | None = None,
    momenta: int = 1,
) -> Needs:
    """What a training takes of the memory of each process.

    encoder: on the meta device; size: of images [3, size, size]; precision: of its activations; batch_size: images of
    all processes; bank: with which two views are contrasted; None: a classifier; momenta: numbers that the optimiser
    keeps of each weight. The head after the encoder is small
    beside it, as are several processes' exchanged keys.
    """
    kept, largest = activations(encoder, size, precision)
    passing = 2 * largest  # in the backward pass: the gradients of a layer's output and of its input
    if bank:  # or, while all that the query's pass kept is there, the key encoder's pass
        passing = max(passing, passing_through(encoder, size, precision))
    weights = sum(x.numel() for x in encoder.parameters())
    pixels = (2 if bank else 1) * 3 * size**2
    per_image = {
        "activations": kept,
        "passing": passing,
        "images": 5 * pixels,  # finished, in float32, and as they came
    }
    copies = {
        "weights, gradients, momenta": (2 + momenta) * 4,
        "key encoder": 4 if bank else 0,
        "of autocast": precision.itemsize if precision != torch.float32 else 0,
        "gradients as they are sent": 4 if distributed.world_size() > 1 else 0,  # DistributedDataParallel's buckets
    }
    fixed = weights * sum(copies.values())
    if not bank:
        return Needs(fixed, per_image, batch_size)
    fixed += 2 * 4 * bank.keys * bank.dim  # and its copy for backward
    matrices = 5 * 4  # bytes an entry of [images, keys]: the similarities, and what is made of them at one time
    most = matrices * losses.BLOCK["cuda"]
    return Needs(fixed, per_image, batch_size, (matrices * bank.keys, most))


def activations(encoder: nn.Module, size: int, precision: torch.dtype) -> tuple[float, float]:
    """Bytes an image that autograd keeps of a forward pass in training, and those of the largest tensor among them.

    encoder: on the meta device, where nothing is computed; in `precision` as a whole, since autocast runs convolutions
    and products in it, and all between them follows. What does not grow with the batch is left out.
    """
    encoder = encoder.to(precision).train()
    totals, largest = [], 0
    for images in (2, 4):
        found = {}
        weights = {x.untyped_storage()._cdata for x in encoder.state_dict().values()}

        def keep(x, found=found, weights=weights):
            if x.untyped_storage()._cdata not in weights:
                found[x.untyped_storage()._cdata] = x  # held, so that no other takes its number
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            out = encoder(torch.empty(images, 3, size, size, dtype=precision, device="meta"))
        sizes = [x.untyped_storage().nbytes() for x in found.values()]
        totals.append(sum(sizes))
        largest = max(sizes) / images
        del out
    return (totals[1] - totals[0]) / 2, largest


def passing_through(encoder: nn.Module, size: int, precision: torch.dtype) -> float:
    """Bytes an image that are alive at one time, at most, in a forward pass in training that keeps nothing.

    encoder: on the meta device, as for `activations`; the images count too.
    """
    encoder, peaks = encoder.to(precision).train(), []
    for images in (2, 4):
        with torch.no_grad(), _Alive() as alive:
            encoder(torch.empty(images, 3, size, size, dtype=precision, device="meta"))
        peaks.append(alive.peak)
    return (peaks[1] - peaks[0]) / 2


class _Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, while something holds them."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        out = operation(*given, **(named or {}))
        views = {x.untyped_storage()._cdata for x in tree_leaves((given, named)) if isinstance(x, torch.Tensor)}
        for x in out if isinstance(out, tuple | list) else [out]:
            storage = x.untyped_storage()
            if storage._cdata not in views | self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(x, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, storage: int, size: int) -> None:
        self.known.discard(storage)
        self.now -= size

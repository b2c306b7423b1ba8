"""The batches of an epoch: their order, loader processes that never hang, and their way to the device.

A training's loader is, from the inside out: `EpochBatches`, which images; `Loader`, those images; `Prefetcher`, batches
on the device, ready for a step.
"""

import sys
import time

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, get_worker_info

from datasets import color_on_device
from datasets.augmentation import finish
from datasets.views import keyed_generator
from engine.processes import distributed, signals
from util import InputError

LOOK = 5.0  # seconds between two looks at a loader that brings nothing
TELL = 60.0  # seconds after which that is told of


class EpochBatches(Sampler):
    """The batches of an epoch, this process's part of each: indices, in an order made of (seed, epoch) alone.

    A batch is the same set of images whatever the number of processes, which share it in rank order. Items are
    (epoch, index) where `keyed`: what is drawn for an image depends on these and on the seed (datasets.ImageData).
    Whole batches only: BatchNorm and the bank want them.
    """

    def __init__(self, count: int, batch_size: int, seed: int, keyed: bool = True):
        self.count, self.batch_size, self.seed, self.keyed = count, batch_size, seed, keyed
        self.set_epoch(1)

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Begin the epoch that comes next, from its step `done` on."""
        self.epoch, self.done = epoch, done

    def __len__(self) -> int:
        """Return the number of steps of a whole epoch."""
        return self.count // self.batch_size

    @property
    def identity(self) -> list[int]:
        """What the order depends on, beside the epoch."""
        return [self.count, self.batch_size, self.seed]

    def order(self) -> np.ndarray:
        """Return the indices of the epoch's images, one batch after another."""
        return keyed_generator(self.seed, self.epoch, "order").permutation(self.count)

    def __iter__(self):
        order, processes, process = self.order(), distributed.world_size(), distributed.rank()
        for step in range(self.done, len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            part = np.array_split(batch, processes)[process].tolist()
            yield [(self.epoch, i) for i in part] if self.keyed else part


class BalancedBatches(EpochBatches):
    """As EpochBatches, but every batch has `per_class` images of each of batch_size / per_class classes.

    Classes come in turn, in an order drawn anew for each round, of which what does not fill a batch is left out;
    likewise the images of a class. So all classes are equally frequent, whatever their sizes: an epoch, as many batches
    as without, repeats images of small classes and leaves out some of large ones. labels: [n] the class of each image.
    """

    def __init__(self, labels: torch.Tensor, batch_size: int, seed: int, per_class: int):
        counts = labels.unique(return_counts=True)[1].tolist()
        self.members = [images.numpy() for images in labels.argsort(stable=True).split(counts)]
        self.per_class = per_class
        super().__init__(len(labels), batch_size, seed)

    @property
    def identity(self) -> list[int]:
        return [*super().identity, self.per_class]

    def order(self) -> np.ndarray:
        generator = keyed_generator(self.seed, self.epoch, "order")
        classes = _in_turn(np.arange(len(self.members)), self.batch_size // self.per_class, generator)
        images = [_in_turn(of_class, self.per_class, generator) for of_class in self.members]
        batches = [np.concatenate([next(images[c]) for c in next(classes)]) for _ in range(len(self))]
        return np.concatenate([generator.permutation(batch) for batch in batches])


def _in_turn(things: np.ndarray, n: int, generator):
    """n of the things at a time, all of them in turn, in an order that is drawn anew for each round."""
    while True:
        order = generator.permutation(things)
        yield from (order[i : i + n] for i in range(0, len(order) - n + 1, n))


class Loader(DataLoader):
    """A DataLoader that does not wait for ever, and leaves it to `factory.loading` to say that there are more loader
    processes than cores.

    patience: seconds for which a batch is waited for. ends_early: of a training, which saves what it has: its batches
    end at a stop that comes while one is waited for, and where patience ends, which StopSignals then know of. Elsewhere
    that is an InputError, and a stop ends the process, once it has waited for long.
    """

    def __init__(self, *args, patience: float = 1800.0, num_workers: int = 0, ends_early: bool = False, **how):
        super().__init__(*args, num_workers=num_workers, timeout=LOOK if num_workers else 0, **how)
        self.collate_fn, self.patience, self.ends_early = Collated(self.collate_fn), patience, ends_early

    def check_worker_number_rationality(self) -> None:
        """torch's own warning, at every start of an epoch's loader."""

    def __iter__(self):
        batches = self._started()
        since, self.told = time.monotonic(), False
        while True:
            try:
                batch = next(batches)  # after a time-out, it waits for the same batch
            except StopIteration:
                return
            except RuntimeError as error:
                if not _timed_out(error):
                    raise
                if self._ends(time.monotonic() - since):
                    return
            else:
                yield batch
                since, self.told = time.monotonic(), False

    def _started(self):
        with signals.held():
            try:
                return super().__iter__()
            except RuntimeError as error:  # of processes that are kept: they do not answer
                if not _timed_out(error):
                    raise
                self._iterator = None  # ends them; others take their place
                return super().__iter__()

    def _ends(self, waited: float) -> bool:
        """Whether the batches end, since the next one has not come for so many seconds; tells once of a long wait."""
        asked = signals.asked()
        if self.ends_early and asked:
            return True
        who = f"process {distributed.rank()}: " if distributed.world_size() > 1 else ""
        line = (
            f"{who}no images for {waited:.0f} s; does their storage answer? else give more --num_workers, "
            "or pack them: python -m datasets.prepare pack"
        )
        if waited >= self.patience:
            fault = f"--timeout_minutes: {line}"
            if self.ends_early and signals.give_up(fault):
                return True
            raise InputError(fault)
        if waited >= TELL and not self.told:
            print(line, file=sys.stderr, flush=True)
            self.told = True
        if asked and self.told:
            print(f"{asked}: stopped while waiting for images; resume with --resume auto", flush=True)
            if distributed.world_size() > 1:
                distributed.end_at_once(distributed.EXIT_STOPPED)
            raise SystemExit(distributed.EXIT_STOPPED)
        return False


def _timed_out(error: RuntimeError) -> bool:
    return str(error).startswith("DataLoader timed out")


class Collated:
    """For a DataLoader: batches as `collate` makes them, in a loader process already in shared memory.

    A lack of it is then an error that arrives. Left to the thread that hands batches over, torch's default, it is
    printed there, and the batch never comes.
    """

    def __init__(self, collate):
        self.collate = collate

    def __call__(self, samples):
        batch = self.collate(samples)
        if get_worker_info() is not None:
            for x in _tensors(batch):
                x.share_memory_()
        return batch


def _tensors(batch) -> list[torch.Tensor]:
    """Return the tensors of a batch, however nested in tuples and lists."""
    if isinstance(batch, (tuple, list)):
        return [x for part in batch for x in _tensors(part)]
    return [batch] if isinstance(batch, torch.Tensor) else []


def choose_colors(device):
    """Return what flips, colors and normalizes views on a device: as `augmentation.finish`."""
    return color_on_device.Finish(distributed.say) if device.type == "cuda" else finish


class Prefetcher:
    """A loader's batches on the device and finished: (images, labels).

    On CUDA, where the host runs ahead, a batch is copied on a stream of its own while the device works on the step
    before; the device waits for the copy, the host does not. Nothing here keeps a batch once it is given away.

    colors: as `augmentation.finish`, of several loaders in turn, which so compile it once; None: its own.
    """

    def __init__(self, loader, device, memory_format, colors=None):
        self.loader, self.dataset, self.device, self.memory_format = loader, loader.dataset, device, memory_format
        self.marks = []  # of an epoch: when a batch was asked for, when it came, and so on
        # one for all epochs: CUDA's allocator keeps the blocks of each stream apart
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.colors = colors or choose_colors(device)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        self.begin, self.marks = time.perf_counter(), []
        self._mark()
        for batch in self.loader:
            # no name holds what is given away: it would live on while the next one is made
            yield self._ready(batch)
            self._mark()

    def scalars(self) -> dict[str, float]:
        """Of the epoch that has just ended: its seconds, and the share of them in which the device had nothing to do
        but wait for data; without CUDA, in which this process waited for it.
        """
        pairs = list(zip(self.marks[::2], self.marks[1::2], strict=False))  # after the last batch, one was asked for
        if self.copies is None:
            waited = sum(came - asked for asked, came in pairs)
        elif pairs:
            pairs[-1][1].synchronize()  # with the last step's batch
            waited = sum(asked.elapsed_time(came) for asked, came in pairs) / 1000
        else:
            waited = 0.0
        seconds = max(time.perf_counter() - self.begin, 1e-9)
        return {"seconds": seconds, "waiting_for_data": waited / seconds}

    def _mark(self) -> None:
        """Note the time; of a device, of which the host runs ahead, when its own queue comes so far."""
        if self.copies is None:
            self.marks.append(time.perf_counter())
        else:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()

    def _ready(self, batch):
        if self.copies is None:
            batch = self._finished(*batch)
            self._mark()
            return batch
        with torch.cuda.stream(self.copies):
            moved = self._moved(*batch)
            copied = self.copies.record_event()
        torch.cuda.current_stream().wait_event(copied)
        self._mark()
        images, labels = moved
        for x in (images if isinstance(images, torch.Tensor) else images[0], labels):
            x.record_stream(torch.cuda.current_stream())  # its memory may not be used again before
        return self._finished(*moved)

    def _moved(self, images, labels):
        if isinstance(images, torch.Tensor):
            images = images.to(self.device, non_blocking=True)
        else:  # the parameters stay on the CPU, where what is to be done is read from them
            images = images[0].to(self.device, non_blocking=True), images[1]
        return images, labels.to(self.device, non_blocking=True)

    def _finished(self, images, labels):
        if not isinstance(images, torch.Tensor):
            return self.dataset.finish(*images, self.memory_format, self.colors), labels
        if images.ndim >= 4 and self.memory_format == torch.channels_last:
            flat = images.flatten(0, -4).contiguous(memory_format=self.memory_format)
            images = flat.unflatten(0, images.shape[:-3])
        return images, labels

"""A training: its model on a device, steps with their learning rate and guard, an epoch of them, validation."""

import inspect
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from engine.batches import loading
from engine.processes import distributed
from util import InputError


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of progress: finished epochs, with a fraction inside an epoch.

    Constant through an epoch, whose number counts from 1: cosine from `base` to base * decay_rate^3 at the last epoch,
    or base * decay_rate^(number of decay_epochs passed). Through the first `warm_epochs` it rises linearly, step by
    step, from `warm_from`, or from the share `warm_share` of `base`, to the value that the schedule has at their end.
    Source: design of the published training (Khosla et al. 2020, RINCE).
    """

    base: float
    epochs: int
    cosine: bool
    decay_rate: float = 0.1
    decay_epochs: tuple[int, ...] = ()
    warm_epochs: int = 0
    warm_from: float = 0.01
    warm_share: float | None = None

    def rate(self, progress: float) -> float:
        """Return the learning rate at `progress`."""
        if progress < self.warm_epochs:
            end = self._scheduled(self.warm_epochs)
            begin = self.warm_from if self.warm_share is None else self.warm_share * self.base
            return begin + progress / self.warm_epochs * (end - begin)
        return self._scheduled(math.floor(progress) + 1)

    def _scheduled(self, epoch: float) -> float:
        if not self.cosine:
            return self.base * self.decay_rate ** sum(epoch > e for e in self.decay_epochs)
        floor = self.base * self.decay_rate**3
        return floor + (self.base - floor) * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))


def warm_up_epochs(warm: bool, batch_size: int, epochs: int, length: int = 10) -> int:
    """Length of the warm-up: 10 epochs with --warm or above batch size 256, at most half of a short run; else 0."""
    return min(length, epochs // 2) if warm or batch_size > 256 else 0


class Stepper:
    """What makes a step of a loss: an optimizer, the schedule of its rate, and the precision of the forward pass.

    scaler: for float16, whose small gradients would vanish; otherwise it does nothing.
    """

    def __init__(self, optimizer, schedule: Schedule, precision: torch.dtype, device, detect_anomaly: bool = False):
        self.optimizer, self.schedule, self.precision, self.device = optimizer, schedule, precision, device
        self.detect_anomaly = detect_anomaly
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)

    def set_rate(self, progress: float) -> float:
        """Give the optimizer the schedule's learning rate at `progress` epochs, and return it."""
        rate = self.schedule.rate(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def autocast(self):
        """Return the context of a forward pass; the loss itself is always computed in float32."""
        return torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision != torch.float32)

    def backward(self, step, images, labels: Tensor) -> tuple[Tensor, Tensor]:
        """step(images, labels) -> loss, parts: computes them, and the gradients of the loss; returns both."""
        with torch.autograd.set_detect_anomaly(self.detect_anomaly):
            with self.autocast():
                loss, parts = step(images, labels)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
        return loss, parts


class FiniteGuard:
    """Lets an optimizer step only while loss and gradients are finite, and remembers the step where that ended.

    Nothing waits for the device: torch's fused optimizers look themselves at `found_inf`, a number on the device, and
    leave weights and momenta as they are where it is 1 (made for loss scaling). From the first bad step on, all are
    skipped, until the run looks at `first_bad` (-1: none) and stops. Gradients are looked at once they are averaged,
    so that all processes see the same.

    With a scaler (float16), steps whose gradients overflow are skipped by it, which is no fault; a loss that is no
    number is, as is a scale that has shrunk to nothing (`collapsed`), but steps go on until the run looks and stops.
    """

    def __init__(self, optimizer, device):
        if not all(group["fused"] for group in optimizer.param_groups):
            raise ValueError("FiniteGuard needs a fused optimizer: others do not look at found_inf")
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            for p in group["params"] if group.get("momentum") else ():
                # torch would make it of unset memory in the first step, and that step may be skipped
                if optimizer.state[p].get("momentum_buffer") is None:
                    optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        self.first_bad = torch.full((), -1, dtype=torch.long, device=device)

    def step(self, loss: torch.Tensor, number: int, scaler=None) -> None:
        """Take the optimizer's step `number`, after backward; by way of a torch.amp.GradScaler, if one scales."""
        scales = scaler is not None and scaler.is_enabled()
        bad = ~loss.detach().isfinite()
        if not scales:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            bad |= ~torch.nn.utils.clip_grad_norm_(parameters, math.inf).isfinite()  # changes no finite gradient
        self.first_bad = torch.where(bad & (self.first_bad < 0), number, self.first_bad)
        if scales:
            scaler.step(self.optimizer)
            scaler.update()
        else:
            self.optimizer.found_inf = (self.first_bad >= 0).float()
            self.optimizer.step()

    @staticmethod
    def collapsed(scaler) -> bool:
        """Whether a scaler has met nothing but overflows: 30 in a row from its first scale. Waits for the device."""
        return scaler.is_enabled() and scaler.get_scale() < 1e-4


class Mean:
    """Running mean of tensors that stay on their device: nothing waits for the device until `value`."""

    def __init__(self) -> None:
        self.total: Any = 0.0  # a tensor from the first update on
        self.count = 0

    def state(self) -> list:
        """[total, count] on the CPU: for a checkpoint."""
        return [self.total.cpu() if self.count else 0.0, self.count]

    def set_state(self, state: list, device: torch.device | str) -> None:
        """Go on from `state`."""
        total, self.count = state
        self.total = total.to(device) if self.count else 0.0

    def update(self, value: torch.Tensor) -> None:
        self.total = self.total + value.detach().double()
        self.count += 1

    def value(self) -> Any:
        """Return the mean as a float, or a list of floats for a vector."""
        return (self.total / max(1, self.count)).tolist() if self.count else 0.0


def place_model(model, device: torch.device, memory_format: torch.memory_format, compiled: bool):
    """Place the model on the device, in its layout; where `compiled`, its encoders are compiled when they first run."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes never change
    model = model.to(device, memory_format=memory_format)
    if compiled:
        for name, module in model.named_children():
            if name in ("encoder", "key_encoder"):
                module.compile()
    return model


def compute_share(labels: Tensor, batch_size: int) -> float:
    """Return this process's share of a batch, times the processes: a mean over its images, so weighed, becomes in the
    mean over processes that of all images, whether or not the batch divides.
    """
    return len(labels) * distributed.world_size() / batch_size


def sync_batchnorm(encoder, name: str, device: torch.device):
    """--syncBN: the encoder of this name with BatchNorm whose statistics are those of all processes."""
    from networks import encoders

    if distributed.world_size() == 1:
        return encoder
    if device.type != "cuda":
        raise InputError("--syncBN: torch has it on CUDA only; leave it out here")
    if encoders.is_timm(name):  # its layers join BatchNorm and activation
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(encoder)
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(encoder)


def wrap_parallel(model):
    """Wrap the model in DistributedDataParallel, where there are several processes.

    Buffers are not sent every step: the bank is equal anyway, and BatchNorm's running means stay per process.
    """
    if distributed.world_size() == 1:
        return model
    known = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # torch's new name
    return DistributedDataParallel(model, **{option: False})


# of a classifier: the name in a log -> in a result; the third where it has a second layer, of superclasses
ACCURACIES = {"top1": "top-1", "top5": "top-5", "coarse_top1": "coarse top-1"}


@torch.no_grad()
def compute_accuracy(logits, labels, superclass: Tensor | None = None):
    """[2] share of the images whose label is the first, and is among the first five, of logits [N, C].

    superclass: [C] the number of each class's, whose logits follow those of classes: then [3], the share of the images
    whose superclass is the first of these besides.
    """
    return _hits(logits, labels, superclass) / len(labels)


def _hits(logits, labels, superclass):
    coarse = []
    if superclass is not None:
        logits, of_superclasses = logits.tensor_split([len(superclass)], dim=1)
        coarse.append((of_superclasses.argmax(1) == superclass[labels]).double().sum())
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([best[:, 0].double().sum(), best.any(1).double().sum(), *coarse])


@torch.no_grad()
def validate(model, loader, stepper: Stepper, superclass: Tensor | None = None) -> tuple[float, ...]:
    """Return the accuracies of `compute_accuracy` in percent over the shares of all processes; the model's mode is put
    back.

    In the training's precision, and in its layout, which convolutions take from their weights.
    """
    was_training, device = model.training, stepper.device
    model.eval()
    distributed.broadcast_buffers(model)  # every process judges the model that is saved
    right = torch.zeros(3 if superclass is None else 4, dtype=torch.float64, device=device)
    for images, labels in loader:
        with stepper.autocast():
            logits = model(images.to(device, non_blocking=True))
        labels = labels.to(device, non_blocking=True)
        right[:-1] += _hits(logits, labels, superclass)
        right[-1] += len(labels)
    model.train(was_training)
    *right, images = distributed.all_reduce(right, "sum").tolist()
    return tuple(100 * hits / images for hits in right)


def describe_peak_memory(device: torch.device) -> str:
    """Return what a first step has taken of a GPU's memory; "" on a CPU."""
    if device.type != "cuda":
        return ""
    peak, whole = torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]
    return f"memory: the first step took {peak / 1e9:.1f} GB of this GPU's {whole / 1e9:.1f} GB"


def train_epoch(run, loader, step: Callable, stepper: Stepper, epoch: int):
    """One epoch, or what is left of it: step(images, labels) -> loss, parts [R]. Returns their means over steps and
    processes, and images a second (None where no step was left).

    No process begins a step before all have their batches: where the loader of one ends early, at a stop or since no
    images come, all can still save and stop. The device is waited for at progress lines and before a checkpoint only;
    there the run stops if loss or gradients have turned NaN or infinite. Torch itself waits besides: with several
    processes, DistributedDataParallel for the times that it takes of steps 1 to 10 and of every 100th, at the begin of
    the step after each; --syncBN in every BatchNorm layer.
    """
    begin = time.perf_counter()
    loss_mean, parts_mean, guard = Mean(), Mean(), FiniteGuard(stepper.optimizer, stepper.device)
    done = i = run.enter(epoch, [loss_mean, parts_mean], stepper.device)
    steps = len(loader)
    progress = run.progress(epoch, steps)

    def check_finite():
        first_bad = int(distributed.all_reduce(guard.first_bad, "max"))
        if first_bad < 0 and guard.collapsed(stepper.scaler):
            first_bad = i
        if first_bad >= 0:
            progress.close()
            run.stop_on_nan(epoch, first_bad, stepper.optimizer.param_groups[0]["lr"])

    def save_where_due():
        stop, save = run.ask_wishes()
        if stop or (save and i > done):
            check_finite()
            run.save_step(epoch, i, stop, [loss_mean, parts_mean])  # with `stop`, it ends the run

    for batch in loader:
        save_where_due()
        i += 1
        rate = stepper.set_rate(epoch - 1 + (i - 1) / steps)
        loss, parts = stepper.backward(step, *batch)
        del batch  # or it would be there while the next one is made
        guard.step(loss, i, stepper.scaler)
        loss_mean.update(loss)
        parts_mean.update(parts)
        if i == done + 1 and epoch == run.resumed_from + 1:
            distributed.say(describe_peak_memory(stepper.device))
        if i % progress.every == 0 or i == steps:
            check_finite()
            progress.tick(i, f"loss {loss_mean.value():.4f}  lr {rate:.4g}")
    save_where_due()
    progress.close()
    for mean in (loss_mean, parts_mean):
        mean.total = distributed.all_reduce(mean.total)
    images = (steps - done) * run.sampler.batch_size
    return loss_mean.value(), parts_mean.value(), images / (time.perf_counter() - begin) if images else None


def classification_epoch(run, loader, step: Callable, validation: Callable, stepper: Stepper, epoch: int) -> None:
    """One epoch of a classifier with step(images, labels) -> loss, accuracies; validated, logged, saved.

    validation() -> the same accuracies, those of ACCURACIES, in percent.
    """
    loss, shares, images_per_second = train_epoch(run, loader, step, stepper, epoch)
    scalars = {"loss": loss, "learning_rate": stepper.optimizer.param_groups[0]["lr"], **loader.scalars()}
    if not isinstance(loader.dataset, TensorDataset):
        scalars |= loading.report_damage(run, loader.dataset.data, stepper.device)
    scalars |= {f"train_{name}": 100 * x for name, x in zip(ACCURACIES, shares, strict=False)}
    found = validation()
    run.latest = {**dict(zip(ACCURACIES.values(), found, strict=False)), "epoch": epoch}
    if run.latest["top-1"] > run.best.get("top-1", -1):
        run.best = run.latest
    scalars |= {f"val_{name}": x for name, x in zip(ACCURACIES, found, strict=False)}
    run.log(epoch, scalars, images_per_second)
    run.save(epoch)

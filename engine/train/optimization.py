"""From a loss to a step: learning rate, precision, optimiser, and the guard against numbers that are none."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


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
        """The learning rate at `progress`."""
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


def precision(choice: str, device: torch.device) -> torch.dtype:
    """The type that --precision means; auto: on CUDA bfloat16, or float16 where a GPU lacks that; else float32.

    tf32 is float32 too: see `allow_tf32`.
    """
    if choice != "auto":
        return torch.float32 if choice == "tf32" else getattr(torch, choice)
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def cpu_capabilities() -> dict:
    """Which instructions this CPU has, by torch's names; {} where torch does not say."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


def precision_advice(choice: str, device: torch.device) -> str:
    """What to say of a --precision on this CPU, whose default is float32 everywhere, so that figures do not depend on
    the machine: that bfloat16 or float16 is slower here, or that bfloat16 would be faster; else "".
    """
    if device.type == "cuda":
        return ""
    known = cpu_capabilities()
    wanted = {"bfloat16": ("avx512_bf16", "amx_bf16", "bf16"), "float16": ("avx512_fp16", "amx_fp16", "fp16")}
    if choice == "auto" and known.get("amx_bf16"):
        return "--precision auto is float32 on a CPU; this one has AMX, with which bfloat16 is up to twice as fast"
    names = [name for name in wanted.get(choice, ()) if name in known]
    if not names or any(known[name] for name in names):
        return ""
    return f"--precision {choice}: this CPU has no instructions for it; float32, the default, is several times as fast"


def allow_tf32(allowed: bool) -> None:
    """Whether CUDA may round the factors of float32 products to ten bits: torch's default for convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def in_force(precision: torch.dtype) -> dict:
    """What a record says of its numbers: the encoders' precision, and whether float32 was TF32."""
    return {"precision": str(precision).removeprefix("torch."), "tf32": torch.backends.cudnn.allow_tf32}


# what a run keeps of each optimiser's state, of every parameter
MOMENTA = {torch.optim.SGD: ("momentum_buffer",), torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq")}


def adamw(model: torch.nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the model's trained parameters; no decay of biases, norms, and what an encoder names itself, as timm's
    do with their embeddings (`no_weight_decay`).
    """
    named = {
        f"{place}.{name}".removeprefix(".")
        for place, module in model.named_modules()
        for name in getattr(module, "no_weight_decay", set)()
    }
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = {name for name, p in trained if p.ndim < 2 or name in named}
    groups = [
        {"params": [p for name, p in trained if name not in plain], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if name in plain], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], learning_rate, fused=True)


def sgd(model: torch.nn.Module, learning_rate: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD over the model's trained parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, learning_rate, momentum, weight_decay=weight_decay, fused=True)  # see FiniteGuard


class Stepper:
    """What makes a step of a loss: an optimiser, the schedule of its rate, and the precision of the forward pass.

    scaler: for float16, whose small gradients would vanish; otherwise it does nothing.
    """

    def __init__(self, optimizer, schedule: Schedule, precision: torch.dtype, device, detect_anomaly: bool = False):
        self.optimizer, self.schedule, self.precision, self.device = optimizer, schedule, precision, device
        self.detect_anomaly = detect_anomaly
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)

    def set_rate(self, progress: float) -> float:
        """Give the optimiser the schedule's learning rate at `progress` epochs, and return it."""
        rate = self.schedule.rate(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def autocast(self):
        """The context of a forward pass; the loss itself is always computed in float32."""
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
    """Lets an optimiser step only while loss and gradients are finite, and remembers the step where that ended.

    Nothing waits for the device: torch's fused optimisers look themselves at `found_inf`, a number on the device, and
    leave weights and momenta as they are where it is 1 (made for loss scaling). From the first bad step on, all are
    skipped, until the run looks at `first_bad` (-1: none) and stops. Gradients are looked at once they are averaged,
    so that all processes see the same.

    With a scaler (float16), steps whose gradients overflow are skipped by it, which is no fault; a loss that is no
    number is, as is a scale that has shrunk to nothing (`collapsed`), but steps go on until the run looks and stops.
    """

    def __init__(self, optimizer, device):
        if not all(group["fused"] for group in optimizer.param_groups):
            raise ValueError("FiniteGuard needs a fused optimiser: others do not look at found_inf")
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            for p in group["params"] if group.get("momentum") else ():
                # torch would make it of unset memory in the first step, and that step may be skipped
                if optimizer.state[p].get("momentum_buffer") is None:
                    optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        self.first_bad = torch.full((), -1, dtype=torch.long, device=device)

    def step(self, loss: torch.Tensor, number: int, scaler=None) -> None:
        """The optimiser's step `number`, after backward; by way of a torch.amp.GradScaler, if one scales."""
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

"""What benchmarks.gpu measures: the card's own rates, a training step part by part."""

import contextlib
import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from unittest import mock

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import datasets
import util
from datasets import fused
from datasets.augmentation import Augmentation, finish
from datasets.views import Views
from engine import distributed, memory, optimisation, training
from losses import RINCELoss
from networks import resnet
from networks.contrastive import ContrastiveModel, projection_head
from networks.memory_bank import MemoryBank

CLASSES = 100
GROUP = torch.arange(CLASSES) // 5
TABLE = torch.eye(CLASSES).maximum(0.75 * (GROUP[:, None] == GROUP))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PARTS = ("data", "finish", "encoders", "loss", "optimiser")
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaMemcpy", "cudaMemset")  # what CUDA calls the host's orders
PRODUCTS = 20  # matrix products between two readings of the clock
# DistributedDataParallel times its first ten steps, and waits for these times at the begin of the step after each
WARM, WARM_OF_SEVERAL = 3, 11


@dataclass(frozen=True)
class Case:
    """A step that is measured, under the names that benchmarks.train_step reads. batch_size: over all processes."""

    model: str
    size: int
    batch_size: int
    bank: int
    steps: int = 10

    @property
    def title(self) -> str:
        return f"{self.model}, batch {self.batch_size} of {self.size} x {self.size}, bank {self.bank}"


def wait(device) -> None:
    """Until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def free(device) -> None:
    """Give back what no name holds any more of a GPU, so that other processes, and what comes next, have it."""
    if device.type == "cuda":
        gc.collect()
        with contextlib.suppress(RuntimeError):  # after a fault of the device itself, this fails as all else does
            torch.cuda.empty_cache()


def seconds_of(run: Callable[[], object], device, repeats: int = 5) -> float:
    """The median of some repeats, after two that do not count."""
    times = []
    for _ in range(repeats + 2):
        wait(device)
        begin = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


# ---- the card --------------------------------------------------------------------------------------------------------


def product_seconds(side: int, dtype: torch.dtype, device) -> float:
    """Of one product of matrices [side, side]: the mean of many in a row, after two, by the device's own clock."""
    a, b, out = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(3))
    a.uniform_(-1, 1)
    b.uniform_(-1, 1)
    for _ in range(2):
        torch.mm(a, b, out=out)
    parts = timed(device)
    wait(device)
    with parts.part("products"):
        for _ in range(PRODUCTS):
            torch.mm(a, b, out=out)
    wait(device)
    return parts.totals()["products"] / 1000 / PRODUCTS


def side_of(dtype: torch.dtype, device, small: bool) -> int:
    """Of the matrices that show what a device can: products of 16 bits fill a data-centre GPU at 8,192 alone."""
    if small:
        return 256
    return 8192 if device.type == "cuda" and dtype.itemsize == 2 else 4096


def rates(device, small: bool) -> dict[str, float]:
    """What the device does of itself: TFLOP/s of matrix products, GB/s of copies (each byte read and written counts),
    GB/s from pinned memory of the host, microseconds of a launch.
    """
    floats, found = 2**22 if small else 2**28, {}
    for name, dtype, tf32 in (
        ("float32", torch.float32, False), ("tf32", torch.float32, True),
        ("float16", torch.float16, False), ("bfloat16", torch.bfloat16, False),
    ):  # fmt: skip
        optimisation.allow_tf32(tf32)
        side = side_of(dtype, device, small)
        found[f"{name} TFLOP/s"] = 2 * side**3 / product_seconds(side, dtype, device) / 1e12
    optimisation.allow_tf32(False)
    source, target = (torch.zeros(floats, device=device) for _ in range(2))
    found["copy GB/s"] = 8 * floats / seconds_of(partial(target.copy_, source), device) / 1e9
    host = torch.zeros(floats // 4, pin_memory=device.type == "cuda")
    to_device = seconds_of(lambda: target[: floats // 4].copy_(host, non_blocking=True), device)
    found["from the host GB/s"] = floats / to_device / 1e9
    one = torch.zeros(1, device=device)
    found["launch us"] = seconds_of(lambda: [one.add_(1) for _ in range(1000)], device) * 1e3
    return found


# ---- a step ----------------------------------------------------------------------------------------------------------


class Parts:
    """Meters the parts of a step, each without those inside it.

    now() -> a reading; between(begin, end) -> the amount that lies between two.
    """

    def __init__(self, now: Callable, between: Callable):
        self.now, self.between, self.open, self.readings = now, between, [], []

    @contextlib.contextmanager
    def part(self, name: str):
        begin, around = self.now(), self.open[-1] if self.open else None
        self.open.append(name)
        yield
        self.open.pop()
        self.readings.append((name, around, begin, self.now()))

    def totals(self) -> dict:
        """name -> amount; once the device has come so far."""
        spent = defaultdict(int)
        for name, around, begin, end in self.readings:
            amount = self.between(begin, end)
            spent[name] += amount
            if around:
                spent[around] -= amount
        return spent


def timed(device) -> Parts:
    """Meters milliseconds: of the device, by events in its stream; of a CPU by the clock."""
    if device.type != "cuda":
        return Parts(time.perf_counter, lambda begin, end: 1000 * (end - begin))

    def now():
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    return Parts(now, lambda begin, end: begin.elapsed_time(end))


class Traffic(TorchDispatchMode):
    """Counts operations that are no views, and the bytes that they read and write, as if no cache held any."""

    operations, bytes = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.__name__:
            self.operations += 1
            for x in tree_leaves((args, kwargs, out)):
                if isinstance(x, torch.Tensor):
                    self.bytes += min(x.numel() * x.element_size(), x.untyped_storage().nbytes())
        return out


class Setting:
    """All that makes the steps of a case, as main_supcon.py has it on a device: RINCE out-in over made-up images."""

    def __init__(self, case: Case, device, precision: torch.dtype):
        util.seed_everything(0)
        self.case, self.device = case, device
        encoder = resnet.encoder(case.model, small_images=case.size <= 64)
        gather = partial(distributed.gather, total=case.batch_size)
        head, bank = projection_head(encoder.dim), MemoryBank(case.bank, 128)
        model = ContrastiveModel(encoder, head, bank, RINCELoss(TABLE), gather=gather)
        self.model = training.prepared(model, device, torch.channels_last, compiled=False)
        self.wrapped = training.parallel(self.model)
        optimizer = optimisation.sgd(self.model, 0.05, 0.9, 1e-4)
        schedule = optimisation.Schedule(0.05, 1, cosine=False)
        self.stepper = optimisation.Stepper(optimizer, schedule, precision, device)
        self.guard, self.number = optimisation.FiniteGuard(optimizer, device), 0
        rng, side = np.random.default_rng(0), case.size if case.size <= 64 else case.size * 256 // 224
        count = distributed.shares(case.batch_size)[distributed.rank()]
        pixels = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        data = datasets.ImageData(pixels, torch.arange(count) % CLASSES, [str(c) for c in range(CLASSES)])
        self.views = Views(data, Augmentation(case.size, MEAN, STD), 0, finished=False)
        self.colours = fused.Finish(print) if device.type == "cuda" else finish

    def batch(self):
        """What a loader process brings of this process's share: crops and parameters, labels; pinned for CUDA."""
        count = distributed.shares(self.case.batch_size)[distributed.rank()]
        (crops, look), labels = self.views.__getitems__([(1, i) for i in range(count)])
        if self.device.type == "cuda":
            crops, labels = crops.pin_memory(), labels.pin_memory()
        return (crops, look), labels

    def step(self, batch, parts: Parts) -> None:
        """One step, its parts metered: encoders are forward and backward, with what backward the loss has left; the
        optimiser has the key encoder's move too.
        """
        (crops, look), labels = batch
        with parts.part("data"):
            crops, labels = (x.to(self.device, non_blocking=True) for x in (crops, labels))
        with parts.part("finish"):
            views = self.views.finish(crops, look, torch.channels_last, self.colours)
        self.take(views, labels, parts)

    def take(self, views, labels, parts: Parts) -> None:
        """A step of finished views."""

        def inside(name, function):
            def metered(*args):
                with parts.part(name):
                    return function(*args)

            return metered

        def forward(views, labels):
            own = self.wrapped(*views, labels)
            terms = own.over_processes(distributed.all_reduce, distributed.world_size())
            return terms.loss(), terms.per_rank()

        model = self.model
        with (
            mock.patch.object(model.criterion, "terms", inside("loss", model.criterion.terms)),
            mock.patch.object(model, "update_key_encoder", inside("optimiser", model.update_key_encoder)),
            parts.part("encoders"),
        ):
            loss, _ = self.stepper.backward(forward, views, labels)
        self.number += 1
        with parts.part("optimiser"):
            self.guard.step(loss, self.number, self.stepper.scaler)


def steps_timed(case: Case, device, step: Callable[[Parts], None]) -> tuple[dict[str, float], float, float]:
    """Of step(parts), the mean over a case's: milliseconds of each part, of the whole, of the host until it has given
    its orders.
    """
    for _ in range(WARM if distributed.world_size() == 1 else WARM_OF_SEVERAL):
        step(timed(device))
    parts, whole = timed(device), timed(device)
    wait(device)
    begin = time.perf_counter()
    with whole.part("step"):
        for _ in range(case.steps):
            step(parts)
    ordered = time.perf_counter() - begin
    wait(device)
    spent, count = parts.totals(), case.steps
    return {p: spent[p] / count for p in PARTS}, whole.totals()["step"] / count, 1000 * ordered / count


def work_of(setting: Setting, batch) -> dict[str, np.ndarray]:
    """Of one step, part by part: floating-point operations of products and convolutions, bytes, operations.

    Of the augmentation, which is compiled on CUDA, what it has to move at least: crops are read twice, views written.
    """
    with mock.patch.object(setting, "colours", finish), FlopCounterMode(display=False) as flops, Traffic() as traffic:
        readings = lambda: np.array([flops.get_total_flops(), traffic.bytes, traffic.operations])  # noqa: E731
        parts = Parts(readings, lambda begin, end: end - begin)
        setting.step(batch, parts)
    crops = batch[0][0]
    return parts.totals() | {"finish": np.array([0, 2 * crops.nbytes + 4 * crops.numel(), 1])}


def launches_of(setting: Setting, batch) -> tuple[int | None, float | None]:
    """Of one step on CUDA: launches and copies that the host orders, milliseconds in which the device works at them;
    None where the profiler recorded none.
    """
    if setting.device.type != "cuda":
        return None, None
    for _ in range(2):  # what the profiler's own start costs or leaves out is in the first, which does not count
        wait(setting.device)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
            setting.step(batch, timed(setting.device))
            wait(setting.device)
    orders = sum(e.count for e in trace.key_averages() if e.key.startswith(LAUNCHES))
    kernels = [e for e in trace.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(e.time_range.elapsed_us() for e in kernels if not getattr(e, "is_user_annotation", False))
    return orders or None, busy / 1000 or None


def peak_of(setting: Setting, batch) -> float | None:
    """GB that two steps hold at most, model, bank and batch included; None on a CPU, where torch keeps no count."""
    if setting.device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        setting.step(batch, timed(setting.device))
    return torch.cuda.max_memory_allocated() / 1e9


def computed_peak(case: Case, precision: torch.dtype) -> float:
    """GB that `engine.memory` says a step holds, CUDA's own and the allocator's left out."""
    with torch.device("meta"):
        encoder = resnet.encoder(case.model, small_images=case.size <= 64)
    needs = memory.of_training(encoder, case.size, precision, case.batch_size, memory.Bank(case.bank, 128))
    return (needs.fixed + max(distributed.shares(case.batch_size)) * sum(needs.per_image.values())) / 1e9


def allowed_ms(work: dict[str, np.ndarray], rates: dict, precision: torch.dtype) -> tuple[float, float]:
    """Milliseconds that the card's own rates allow parts of a step: for their products, and for their bytes.

    work: as of `work_of`, of these parts. The loss is float32 whatever the precision.
    """
    names = {part: "float32" if part == "loss" else str(precision).removeprefix("torch.") for part in work}
    products = sum(amount[0] / (rates[f"{names[part]} TFLOP/s"] * 1e12) for part, amount in work.items())
    return 1e3 * products, 1e3 * sum(amount[1] for amount in work.values()) / (rates["copy GB/s"] * 1e9)

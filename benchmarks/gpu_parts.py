"""What benchmarks.gpu measures: the card's own rates, a training step part by part, the loss in three forms."""

import contextlib
import math
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import datasets
import losses
import util
from datasets import fused
from datasets.augmentation import Augmentation, finish
from datasets.views import Views
from engine import distributed, loading, memory, optimisation, training
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


def rates(device, small: bool) -> dict[str, float]:
    """What the device does of itself: TFLOP/s of matrix products, GB/s of copies (each byte read and written counts),
    GB/s from pinned memory of the host, microseconds of a launch.
    """
    side, floats = (512, 2**22) if small else (4096, 2**28)
    found = {}
    for name, dtype, tf32 in (
        ("float32", torch.float32, False), ("tf32", torch.float32, True),
        ("float16", torch.float16, False), ("bfloat16", torch.bfloat16, False),
    ):  # fmt: skip
        optimisation.allow_tf32(tf32)
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        found[f"{name} TFLOP/s"] = 2 * side**3 / seconds_of(partial(torch.mm, a, b), device) / 1e12
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

    def __init__(self, case: Case, device, precision: torch.dtype, images: int | None = None):
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
        count = images or distributed.shares(case.batch_size)[distributed.rank()]
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


def steps_timed(setting: Setting, batch) -> tuple[dict[str, float], float, float]:
    """Of one step, the mean over a case's: milliseconds of each part, of the whole, of the host until it has given its
    orders.
    """
    device, count = setting.device, setting.case.steps
    for _ in range(3):
        setting.step(batch, timed(device))
    parts, whole = timed(device), timed(device)
    wait(device)
    begin = time.perf_counter()
    with whole.part("step"):
        for _ in range(count):
            setting.step(batch, parts)
    ordered = time.perf_counter() - begin
    wait(device)
    spent = parts.totals()
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


def launches_of(setting: Setting, batch) -> tuple[int, float] | None:
    """Of one step on CUDA: launches and copies that the host orders, milliseconds in which the device works at them."""
    if setting.device.type != "cuda":
        return None
    wait(setting.device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        setting.step(batch, timed(setting.device))
        wait(setting.device)
    orders = sum(e.count for e in trace.key_averages() if e.key.startswith(LAUNCHES))
    kernels = [e for e in trace.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(e.time_range.elapsed_us() for e in kernels if not getattr(e, "is_user_annotation", False))
    return orders, busy / 1000


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
    needs = memory.of_training(encoder, case.size, precision, case.batch_size, memory.Bank(case.bank, 128, True))
    return (needs.fixed + max(distributed.shares(case.batch_size)) * sum(needs.per_image.values())) / 1e9


def fed(case: Case, device, precision: torch.dtype) -> dict[str, float]:
    """The same steps, fed by loader processes from images in memory, as from a raw pack.

    images/s; the share of the time that the host waits for a batch; loader processes; images/s that one core makes.
    """
    workers = min(16, os.cpu_count() or 1)
    setting = Setting(case, device, precision, images=case.batch_size * (case.steps + 2))
    begin = time.perf_counter()
    setting.views.__getitems__([(1, i) for i in range(case.batch_size)])
    one_core = case.batch_size / (time.perf_counter() - begin)
    how = loading.Loading(case.batch_size, workers, device, channels_last=True)
    loader, sampler = loading.training_loader(setting.views, how, seed=0)
    sampler.set_epoch(1)
    parts, waited, asked, steps = timed(device), 0.0, 0.0, 0
    for batch in loader:
        if batch is None:  # it has not come yet
            continue
        if steps == 2:  # loader processes and the first steps have begun
            wait(device)
            begin, waited = time.perf_counter(), 0.0
        elif steps:
            waited += time.perf_counter() - asked
        setting.take(*batch, parts)
        steps, asked = steps + 1, time.perf_counter()
    wait(device)
    spent = time.perf_counter() - begin
    made = case.batch_size * (steps - 2)
    return {"images/s": made / spent, "waiting": waited / spent, "workers": workers, "images/s a core": one_core}


def allowed_ms(work: np.ndarray, rates: dict, precision: torch.dtype) -> tuple[float, float]:
    """Milliseconds that the card's own rates allow a part: for its products, and for its bytes."""
    flops, moved, _ = work
    name = str(precision).removeprefix("torch.")
    return 1e3 * flops / (rates[f"{name} TFLOP/s"] * 1e12), 1e3 * moved / (rates["copy GB/s"] * 1e9)


# ---- the loss --------------------------------------------------------------------------------------------------------


def published_loss(query, key, labels, bank, bank_labels, criterion: RINCELoss):
    """RINCE out-in in the published form: probabilities from exponentials, over masked [N, 1 + K] matrices.

    query, key: [N, D]; labels: [N]; bank: [K, D]; bank_labels: [K]; criterion: whose ranks, temperatures and filter.
    """
    cosine = torch.cat([(query * key).sum(1, keepdim=True), query @ bank.T], 1)
    rank = F.pad(criterion.ranks(labels, bank_labels), (1, 0))  # the own key's is 0
    terms = []
    for r, tau in enumerate(criterion.taus):
        e = torch.exp(cosine / tau)
        positive, s_negative = rank == r, (e * (rank > r)).sum(1, keepdim=True)
        if r == 0:  # out: one term a pair
            probability, kept = e / (e + s_negative), positive
        else:  # in: one term an anchor
            s_positive = (e * positive).sum(1, keepdim=True)
            probability, kept = s_positive / (s_positive + s_negative), positive.any(1, keepdim=True)
        kept = kept & (probability > criterion.min_probability)
        # the inner choice keeps the logarithm of what is left out from turning the gradient into NaN
        nll = torch.where(kept, -torch.log(torch.where(kept, probability, 1.0)), 0)
        terms.append(nll.sum() / kept.sum().clamp(min=1))
    return torch.stack(terms).mean()


def loss_forms(case: Case, device) -> list[dict]:
    """Milliseconds and extra MB of the loss, forward and backward, in three forms, and how far they lie apart."""
    g, n, k = torch.Generator().manual_seed(0), case.batch_size, case.bank
    query, key, bank = (F.normalize(torch.randn(m, 128, generator=g), dim=1).to(device) for m in (n, n, k))
    labels, known = (torch.randint(CLASSES, (m,), generator=g).to(device) for m in (n, k))
    criterion, found = RINCELoss(TABLE).to(device), {}
    query.requires_grad_()

    def ours():
        return criterion.terms(query, key, labels, bank, known).loss()

    def in_log_space():
        with mock.patch.object(losses, "FAST_MIN_TAU", math.inf):
            return ours()

    def published():
        return published_loss(query, key, labels, bank, known, criterion)

    rows = []
    for name, form in (("ours", ours), ("plain, in log space", in_log_space), ("published form", published)):

        def run(name=name, form=form):
            query.grad = None
            found[name] = form()
            found[name].backward()

        row = {"loss": name, "ms": 1000 * seconds_of(run, device)}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            row["extra MB"] = (torch.cuda.max_memory_allocated() - before) / 1e6
        rows.append(row | {"differs by": abs(float(found[name].detach()) - float(found["ours"].detach()))})
    for row in rows:
        row["times as slow"] = row["ms"] / rows[0]["ms"]
    return rows

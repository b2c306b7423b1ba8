"""Measure a machine with a GPU: times of a training, next to the limits of the card.

python -m benchmarks.gpu --out gpu.json
python -m benchmarks.gpu --device cpu       # tries this code in small; nothing about a GPU is measured

`make gpu` accepts or refuses the machine by the tests marked gpu and by this. What fails is said on the page, next to
what was measured before, and the exit code is 1.
"""

import contextlib
import datetime
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import in_turn, loss, table
from benchmarks.train_step import Case, Training, compare
from engine.cli import config
from engine.cli.parsing import Parser
from engine.train import optimization
from util import InputError

CASES = {
    "cuda": (Case("resnet18", 32, 512, 8192), Case("resnet18", 224, 256, 8192)),
    "cpu": (Case("resnet8", 32, 16, 256), Case("resnet8", 80, 4, 256)),
}
STEPS = {"cuda": 20, "cpu": 2}  # of a measurement
PRODUCTS = 20  # matrix products between two readings of the clock


def check(gpus: int) -> None:
    """InputError where the machine lacks the GPUs."""
    if not torch.cuda.is_available():
        raise InputError(
            "--device cuda: this machine has no CUDA device; --device cpu (make gpu DEVICE=cpu) tries the code"
        )
    if gpus > torch.cuda.device_count():
        raise InputError(f"--check {gpus}: this machine has {torch.cuda.device_count()} GPUs")


def asked(what: str) -> list[str]:
    """Return what nvidia-smi says of each GPU, such as "driver_version" or "compute_mode"; [] where it says nothing."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []
    return [line.strip() for line in lines]


def machine(device: torch.device) -> dict:
    """Card, memory, driver, versions, date."""
    about = {
        "torch": str(torch.__version__), "python": platform.python_version(), "cores": os.cpu_count(),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }  # fmt: skip
    if device.type != "cuda":
        return {"card": "none: a CPU", **about}
    card, driver = torch.cuda.get_device_properties(device), next(iter(asked("driver_version")), "unknown")
    of_card = {"card": card.name, "memory GB": card.total_memory / 1e9, "capability": f"{card.major}.{card.minor}"}
    return {**of_card, **about, "driver": driver, "cuda": torch.version.cuda, "GPUs": torch.cuda.device_count()}


# ---- what is measured ------------------------------------------------------------------------------------------------


def seconds_of(run: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Return the median of some repeats, after two that do not count."""

    def finish():
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return statistics.median(in_turn({"it": finish}, repeats, warm=2)["it"])


def measure_card(device: torch.device) -> dict:
    """TFLOP/s of matrix products, and GB/s of copies, of which each byte read and written counts."""
    side, floats, found = (8192, 2**28, {}) if device.type == "cuda" else (256, 2**22, {})
    for name in ("float32", "tf32", "float16", "bfloat16"):
        optimization.allow_tf32(name == "tf32")
        a = torch.ones(side, side, device=device, dtype=getattr(torch, name, torch.float32)).uniform_(-1, 1)
        out = torch.empty_like(a)
        spent = seconds_of(lambda a=a, out=out: [torch.mm(a, a, out=out) for _ in range(PRODUCTS)], device)
        found[f"{name} TFLOP/s"] = PRODUCTS * 2 * side**3 / spent / 1e12
    optimization.allow_tf32(False)
    source, target = (torch.zeros(floats, device=device) for _ in range(2))
    found["copy GB/s"] = 8 * floats / seconds_of(partial(target.copy_, source), device) / 1e9
    return {"rates": found}


def attempt(record: dict, name: str, section: Callable[[], dict]) -> None:
    """Add what a section finds to a record, or to its "errors" what ended it. The device's memory is free again then:
    outside the handler, whose error holds on to all that its functions held.
    """
    try:
        record.update(section())
    except Exception as error:
        record.setdefault("errors", {})[name] = util.reason(error)
    gc.collect()
    with contextlib.suppress(RuntimeError):  # after a fault of the device itself, this fails as all else does
        torch.cuda.empty_cache()


def measure_step(begin: Callable[[str], Training], steps: int) -> dict:
    """Of a step of finished views: images/s, TFLOP/s, and on CUDA peak GB and the share in which the device works."""
    begun = begin("")
    device = begun.stepper.device
    with FlopCounterMode(display=False) as counter:
        begun.take_steps()
    seconds = seconds_of(partial(begun.take_steps, steps), device) / steps
    found = {"images/s": begun.run.sampler.batch_size / seconds}
    found["TFLOP/s"] = counter.get_total_flops() / seconds / 1e12
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        begun.take_steps(2)
        found["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
            begun.take_steps(steps)
        kernels = [e for e in trace.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(e.time_range.elapsed_us() for e in kernels if not getattr(e, "is_user_annotation", False))
        found["busy"] = min(1.0, busy / 1e6 / steps / seconds)  # 0: the profiler recorded no work
    return found


def measure_feeding(begin: Callable[[str], Training]) -> dict:
    """Measure the steps of an epoch fed from JPEGs by DataLoader workers, once these are warm."""
    workers = min(16, os.cpu_count() or 1)
    begun = begin(f"--augment_on device --num_workers {workers}")
    begun.take_epoch()
    images, waiting = begun.take_epoch()
    return {"fed": {"workers": workers, "images/s": images, "waiting": waiting}}


def measure_case(case: Case, device: torch.device) -> dict:
    """All that is measured of a case."""
    kind = optimization.precision("auto" if device.type == "cuda" else "bfloat16", device)
    half, steps = str(kind).removeprefix("torch."), STEPS[device.type]
    forms = {
        "plain: float32, contiguous, eager": None,
        "ours, float32": "--precision float32",
        f"ours, {half}": f"--precision {half}",
    }
    found = {"title": case.title, "precision": half}
    with tempfile.TemporaryDirectory() as scratch:
        case.make_images(Path(scratch), batches=2 * steps)

        def begin(options: str) -> Training:
            return Training(case, Path(scratch), device, f"--precision {half} {options}")

        attempt(found, "a step", lambda: measure_step(begin, steps))
        attempt(found, "feeding", lambda: measure_feeding(begin))
    attempt(found, "forms", lambda: {"forms": compare(case, device, forms, 3, steps)})
    return found


def measure(device: torch.device) -> dict:
    """Return the record: machine, card, each case, the loss; under "errors", what could not be measured."""
    record = {"machine": machine(device), "cases": []}
    attempt(record, "the card by itself", lambda: measure_card(device))
    record["cases"] += [measure_case(case, device) for case in CASES[device.type]]
    attempt(record, "the loss", lambda: {"loss": loss.measure(8192, device.type, STEPS[device.type])})
    return record


# ---- the page --------------------------------------------------------------------------------------------------------


def errors_of(found: dict) -> list[str]:
    """Return what could not be measured, and why."""
    return [f"not measured: {name}: {reason}" for name, reason in found.get("errors", {}).items()]


def describe_case(case: dict) -> list[str]:
    """Describe a case in words, as far as it was measured, and what to set."""
    lines = ["", f"{case['title']}, {case['precision']}"]
    if "images/s" in case:
        lines[-1] += f": {case['images/s']:,.0f} images/s, {case['TFLOP/s']:.3g} TFLOP/s"
    if "peak GB" in case:
        lines.append(f"at most {case['peak GB']:.2f} GB of the device's memory are held")
    if case.get("busy"):
        idle = "" if case["busy"] > 0.8 else ": set --compile, or more images per GPU"
        lines.append(f"the device works {100 * case['busy']:.0f} % of a step{idle}")
    if "fed" in case:
        fed = case["fed"]
        lines.append(f"fed by {fed['workers']} DataLoader workers from JPEGs: {fed['images/s']:,.0f} images/s, "
                     f"{100 * fed['waiting']:.0f} % of the time spent waiting for data")  # fmt: skip
        if fed["waiting"] > 0.1 and "images/s" in case:
            lines[-1] += f"; what would feed it: python -m benchmarks.data --takes {case['images/s']:.0f}"
    if "forms" in case:
        faster = case["forms"][1]["ms"] / case["forms"][2]["ms"]
        lines += [*table(case["forms"]), f"{case['precision']} is {faster:.2f} times as fast as float32"]
        lines[-1] += "" if faster > 1 else ": set --precision float32"
    return lines + errors_of(case)


def page(record: dict) -> str:
    """Return the record in words."""
    about = record["machine"]
    lines = [", ".join(f"{name} {x:.1f}" if isinstance(x, float) else f"{name} {x}" for name, x in about.items())]
    if about["card"].startswith("none"):
        lines.insert(0, "This ran on a CPU to try the code: nothing about a GPU was measured.")
    if "rates" in record:
        lines += ["", "The card by itself: " + ", ".join(f"{name} {x:.4g}" for name, x in record["rates"].items())]
    lines += [line for case in record["cases"] for line in describe_case(case)]
    lines += ["", "The loss:", *table(record["loss"])] if "loss" in record else []
    return "\n".join([*lines, *errors_of(record)])


def get_parser():
    p = Parser(description=__doc__)
    p.add_argument(
        "--device", default="cuda", choices=["cuda", "cpu"], help="device to measure; cpu only tries the code"
    )
    p.add_argument("--check", type=int, metavar="N", help="only check that the machine has N GPUs")
    p.add_argument("--out", type=Path, metavar="FILE", help="JSON file of all results to write")
    return p


def main():
    args = get_parser().parse_args()
    if args.device == "cuda":
        check(args.check or 1)
    if args.check:
        return
    config.one_compiler()
    record = measure(torch.device(args.device))
    try:
        print(page(record))
    finally:
        if args.out:
            util.write_file(args.out, json.dumps(record, indent=1).encode())
            print(f"all results: {args.out}")
    if any("errors" in found for found in (record, *record["cases"])):
        sys.exit(1)


if __name__ == "__main__":
    util.run_command(main)

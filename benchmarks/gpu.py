"""Accepts or refuses a machine with a GPU: what a training takes on it, beside what the card allows; a page in words.

python -m benchmarks.gpu --out gpu.json [--tests FILE] [--gpus N]
python -m benchmarks.gpu --device cpu --small       # tries this code; nothing about a GPU is measured

`make gpu` runs it behind the tests marked gpu, whose results FILE holds (pytest's --junit-xml). Eight minutes are to
hold both: about 4 of tests and 2 of figures on an H100, 5 and 3 on a consumer card, where compiling and float32 take
longest (estimates: none has been tried).
"""

import argparse
import datetime
import json
import math
import os
import platform
import re
import subprocess
import sys
import xml.etree.ElementTree
from dataclasses import replace
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
import torch

from benchmarks import gpu_parts, gpu_several, table, train_step
from benchmarks.gpu_parts import PARTS, Case
from engine import optimisation
from util import InputError

LARGE = Case("resnet18", 32, 512, 8192), Case("resnet18", 224, 256, 8192)
SMALL = Case("resnet8", 32, 16, 256, steps=2), Case("resnet8", 80, 4, 256, steps=2)


def get_parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    p.add_argument("--small", action="store_true", help="small networks and batches: tries the code in a minute")
    p.add_argument("--gpus", type=int, default=1, metavar="N", help="with several: how they scale")
    p.add_argument("--tests", type=Path, metavar="FILE", help="results of the tests, for the page; 1 if one failed")
    p.add_argument("--check", action="store_true", help="only look whether the GPUs are there")
    p.add_argument("--out", type=Path, metavar="FILE", help="JSON file of all figures")
    return p


def check(device: str, gpus: int) -> None:
    """InputError where there are not so many GPUs."""
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise InputError(
            "no CUDA device: there is nothing to measure; DEVICE=cpu, or --device cpu, tries the code alone"
        )
    if gpus > torch.cuda.device_count():
        raise InputError(f"--gpus {gpus} is more than the {torch.cuda.device_count()} GPUs of this machine")


# ---- what is known of the machine and of the tests -------------------------------------------------------------------


def driver() -> str:
    """The version of the GPU's driver, as nvidia-smi has it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def machine(device) -> dict:
    """Card, memory, driver, versions, date."""
    about = {
        "torch": str(torch.__version__), "python": platform.python_version(), "cores": os.cpu_count(),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }  # fmt: skip
    if device.type != "cuda":
        return {"card": "none: a CPU", **about}
    card = torch.cuda.get_device_properties(device)
    about |= {"driver": driver(), "cuda": torch.version.cuda, "GPUs": torch.cuda.device_count()}
    return {
        "card": card.name,
        "memory GB": card.total_memory / 1e9,
        "capability": f"{card.major}.{card.minor}",
        **about,
    }


def results(path: Path) -> dict[str, list[str]]:
    """What the tests claim, as sentences: those that hold, that do not, that were left out, with the reason."""
    try:
        cases = list(xml.etree.ElementTree.parse(path).iter("testcase"))
    except (OSError, xml.etree.ElementTree.ParseError) as error:
        raise InputError(f"--tests {path}: cannot be read ({util.reason(error)}); did pytest run?") from None
    found = {"hold": [], "do not hold": [], "left out": []}
    for case in cases:
        sentence = re.sub(r"^test_", "", case.get("name", "")).replace("_", " ")
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            found["do not hold"].append(sentence)
        elif skipped is not None:
            found["left out"].append(f"{sentence}: {skipped.get('message')}")
        else:
            found["hold"].append(sentence)
    return found


# ---- figures ---------------------------------------------------------------------------------------------------------


def parts_of(setting, batch, rates: dict, precision) -> list[dict]:
    """Rows of the parts of a step: its milliseconds, beside what the card allows for products and for bytes."""
    spent, whole, host = gpu_parts.steps_timed(setting, batch)
    work = gpu_parts.work_of(setting, batch)
    rows = []
    for part in (*PARTS, "whole step"):
        of_part = sum(work.values()) if part == "whole step" else work[part]
        products, moved = gpu_parts.allowed_ms(of_part, rates, precision)
        if part == "data":  # from the host
            moved *= rates["copy GB/s"] / rates["from the host GB/s"] / 2
        row = {"part": part, "ms": whole if part == "whole step" else spent[part], "products allow": products}
        rows.append(row | {"bytes allow": moved, "GB": float(of_part[1]) / 1e9, "operations": int(of_part[2])})
    rows.append(dict.fromkeys(rows[0], "") | {"part": "the host's orders", "ms": host})
    return rows


def half(device) -> torch.dtype:
    """What --precision auto is on CUDA; on a CPU bfloat16, so that the same code is tried."""
    return optimisation.precision("auto" if device.type == "cuda" else "bfloat16", device)


def figures(case: Case, device, rates: dict) -> dict:
    """All that is measured of a case."""
    precision = half(device)
    setting = gpu_parts.Setting(case, device, precision)
    batch = setting.batch()
    rows = parts_of(setting, batch, rates, precision)
    whole = next(row["ms"] for row in rows if row["part"] == "whole step")
    found = {"title": case.title, "precision": str(precision).removeprefix("torch."), "parts": rows}
    found |= {"images/s": 1000 * case.batch_size / whole, "peak GB": gpu_parts.peak_of(setting, batch)}
    found["computed peak GB"] = gpu_parts.computed_peak(case, precision)
    launched = gpu_parts.launches_of(setting, batch)
    found |= {"launches": launched and launched[0], "busy": launched and min(1.0, launched[1] / whole)}
    del setting
    found["fed"] = gpu_parts.fed(case, device, precision)
    forms = {
        "plain: float32, contiguous, eager": dict(plain=True),
        "ours, float32": dict(plain=False, channels_last=True),
        f"ours, {found['precision']}": dict(plain=False, channels_last=True, precision=found["precision"]),
    }
    found["forms"] = train_step.compared(replace(case, steps=3), device, forms)
    found["losses"] = gpu_parts.loss_forms(case, device)
    return found


def measured(args, device) -> dict:
    """The record: card, its rates, each case, several GPUs. What does not fit into the card's memory says so."""
    record = {"machine": machine(device), "rates": gpu_parts.rates(device, args.small), "cases": []}
    optimisation.allow_tf32(False)
    for case in SMALL if args.small else LARGE:
        try:
            record["cases"].append(figures(case, device, record["rates"]))
        except torch.OutOfMemoryError:
            record["cases"].append({"title": case.title, "error": "out of memory"})
            torch.cuda.empty_cache()
    if args.gpus > 1:
        case = (SMALL if args.small else LARGE)[0]
        record["several"] = gpu_several.scaled(case, device, half(device), args.gpus)
    return record


# ---- the page --------------------------------------------------------------------------------------------------------


def of_tests(found: dict[str, list[str]]) -> list[str]:
    """What holds, and what does not."""
    count = {name: len(sentences) for name, sentences in found.items()}
    lines = [f"Of {sum(count.values())} checks {count['hold']} hold, {count['do not hold']} do not, "
             f"{count['left out']} were left out."]  # fmt: skip
    lines += [f"  does not hold: {sentence}" for sentence in found["do not hold"]]
    return lines + [f"  left out: {sentence}" for sentence in found["left out"]]


def of_case(case: dict) -> list[str]:
    """A case in words and tables."""
    if "error" in case:
        return ["", f"{case['title']}: {case['error']}; a smaller --batch_size, or more GPUs"]
    fed, form = case["fed"], case["forms"][-1]
    lines = ["", f"{case['title']}, {case['precision']}: {case['images/s']:,.0f} images/s, {form['times as fast']:.2f} "
             "times the plain form (its views come finished)", *table(case["parts"])]  # fmt: skip
    if case["launches"]:
        lines.append(
            f"{case['launches']} launches and copies a step; the device works {100 * case['busy']:.0f} % of it"
        )
    if case["peak GB"]:
        lines.append(f"at most {case['peak GB']:.2f} GB are held; computed: {case['computed peak GB']:.2f}")
    lines.append(f"fed by {fed['workers']} loader processes from images in memory: {fed['images/s']:,.0f} images/s, "
                 f"{100 * fed['waiting']:.0f} % of the host's time spent waiting for a batch")  # fmt: skip
    return [*lines, *table(case["forms"]), *table(case["losses"])]


def to_set(record: dict) -> list[str]:
    """What to set on this machine, from what was measured."""
    lines, cores = ["", "To set on this machine:"], record["machine"]["cores"] or 1
    for case in record["cases"]:
        if "error" in case:
            continue
        fed, plain, ours = case["fed"], case["forms"][1], case["forms"][2]
        want = math.ceil(1.2 * case["images/s"] / fed["images/s a core"])
        loaders = f"--num_workers {want} from raw packs"
        if want > cores:
            loaders = f"{want} loader processes would feed it, and there are {cores} cores: --num_workers {cores}"
        faster = plain["ms"] / ours["ms"]
        precision = f"--precision auto is {case['precision']}, {faster:.2f} times as fast as float32"
        if faster < 1:
            precision = f"--precision float32, since {case['precision']} is slower here"
        lines.append(f"  {case['title']}: {loaders}; {precision}")
        if case["busy"] is not None and case["busy"] < 0.8:
            share = 100 * (1 - case["busy"])
            lines.append(f"    the device idles {share:.0f} % of a step: --compile, or more images a GPU")
    return lines


def page(record: dict) -> str:
    """The record in words."""
    about = record["machine"]
    lines = [", ".join(f"{name} {value:.1f}" if isinstance(value, float) else f"{name} {value}"
                       for name, value in about.items())]  # fmt: skip
    if about["card"].startswith("none"):
        lines.insert(0, "This ran on a CPU to try the code: nothing about a GPU was measured.")
    lines += of_tests(record["tests"]) if "tests" in record else []
    lines += ["", "The card by itself: " + ", ".join(f"{name} {x:.4g}" for name, x in record["rates"].items())]
    for case in record["cases"]:
        lines += of_case(case)
    if "several" in record:
        lines += ["", "Several GPUs, beside what benchmarks.scaling computes:", *table(record["several"])]
    return "\n".join([*lines, *to_set(record)])


def main():
    args = get_parser().parse_args()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before CUDA is looked at, so that processes have none either
    check(args.device, args.gpus)
    if args.check:
        return
    tests = results(args.tests) if args.tests else None
    record = measured(args, torch.device(args.device))
    if tests is not None:
        record["tests"] = tests
    print(page(record))
    if args.out:
        util.write_file(args.out, json.dumps(record, indent=1).encode())
        print(f"all figures: {args.out}")
    if tests is not None and (tests["do not hold"] or not tests["hold"]):
        sys.exit(1)


if __name__ == "__main__":
    util.run_command(main)

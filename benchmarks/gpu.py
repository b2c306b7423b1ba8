"""Accepts or refuses a machine with a GPU: what a training takes on it, beside what the card allows; a page in words.

python -m benchmarks.gpu --out gpu.json [--tests FILE] [--gpus N]
python -m benchmarks.gpu --device cpu --small       # tries this code; nothing about a GPU is measured

`make gpu` runs it behind the tests marked gpu, whose results FILE holds (pytest's --junit-xml). With one GPU, eight
minutes are to hold both: about 4 of tests and 2 of figures on an H100, 5 and 3 on a consumer card, where compiling and
float32 take longest (estimates: none has been tried). What fails is said on the page, beside what was measured before.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
import torch

from benchmarks import gpu_data, gpu_losses, gpu_page, gpu_parts, gpu_several, train_step
from benchmarks.gpu_parts import PARTS, Case
from engine import config, optimisation
from util import InputError

LARGE = Case("resnet18", 32, 512, 8192), Case("resnet18", 224, 256, 8192)
SMALL = Case("resnet8", 32, 16, 256, steps=2), Case("resnet8", 80, 4, 256, steps=2)


def get_parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    p.add_argument("--small", action="store_true", help="small networks and batches: tries the code in a minute")
    p.add_argument("--gpus", type=int, default=1, metavar="N", help="with several: how they scale")
    p.add_argument(
        "--tests",
        type=Path,
        metavar="FILE",
        help="results of the tests, for the page; 1 if one failed or all are missing",
    )
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


def asked(what: str) -> list[str]:
    """What nvidia-smi says of each GPU, such as "driver_version" or "compute_mode"; [] where it says nothing."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []
    return [line.strip() for line in lines]


def machine(device) -> dict:
    """Card, memory, driver, versions, date."""
    about = {
        "torch": str(torch.__version__), "python": platform.python_version(), "cores": os.cpu_count(),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }  # fmt: skip
    if device.type != "cuda":
        return {"card": "none: a CPU", **about}
    card = torch.cuda.get_device_properties(device)
    about |= {
        "driver": next(iter(asked("driver_version")), "unknown"),
        "cuda": torch.version.cuda,
        "GPUs": torch.cuda.device_count(),
    }
    return {
        "card": card.name,
        "memory GB": card.total_memory / 1e9,
        "capability": f"{card.major}.{card.minor}",
        **about,
    }


def results(path: Path) -> dict[str, list[str]] | None:
    """What the tests claim, as sentences: those that hold, that do not, that were left out, with the reason. None where
    they ended without results: pytest writes the file at its end.
    """
    try:
        cases = list(xml.etree.ElementTree.parse(path).iter("testcase"))
    except (OSError, xml.etree.ElementTree.ParseError):
        return None
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


def attempt(record: dict, name: str, section: Callable[[], dict | None], device) -> None:
    """Add what a section finds to a record, or to its "errors" what ended it. The device's memory is free again then:
    outside the handler, whose error holds on to all that its functions held.
    """
    try:
        record.update(section() or {})
    except Exception as error:
        record.setdefault("errors", {})[name] = util.reason(error)
    gpu_parts.free(device)


def parts_of(setting, batch, rates: dict | None, precision) -> list[dict]:
    """Rows of the parts of a step: its milliseconds, beside what the card, if its rates are known, allows for products
    and for bytes.
    """
    spent, whole, host = gpu_parts.steps_timed(setting.case, setting.device, lambda parts: setting.step(batch, parts))
    work, rows = gpu_parts.work_of(setting, batch), []
    for part in (*PARTS, "whole step"):
        of_part = work if part == "whole step" else {part: work[part]}
        row = {"part": part, "ms": whole if part == "whole step" else spent[part]}
        if rates:
            products, moved = gpu_parts.allowed_ms(of_part, rates, precision)
            if part == "data":  # from the host
                moved *= rates["copy GB/s"] / rates["from the host GB/s"] / 2
            row |= {"products allow": products, "bytes allow, no cache": moved}
        _, moved, operations = sum(of_part.values())
        rows.append(row | {"GB": float(moved) / 1e9, "operations": int(operations)})
    rows.append(dict.fromkeys(rows[0], "") | {"part": "the host's orders", "ms": host})
    return rows


def half(device) -> torch.dtype:
    """What --precision auto is on CUDA; on a CPU bfloat16, so that the same code is tried."""
    return optimisation.precision("auto" if device.type == "cuda" else "bfloat16", device)


def of_step(found: dict, case: Case, device, rates: dict | None) -> None:
    """Add to what is found of a case what one and the same setting shows: parts, memory, launches."""
    precision = half(device)
    setting = gpu_parts.Setting(case, device, precision)
    batch = setting.batch()

    def parts():
        rows = parts_of(setting, batch, rates, precision)
        whole = next(row["ms"] for row in rows if row["part"] == "whole step")
        return {"parts": rows, "ms": whole, "images/s": 1000 * case.batch_size / whole}

    def peak():
        computed = gpu_parts.computed_peak(case, precision)
        return {"computed peak GB": computed, "peak GB": gpu_parts.peak_of(setting, batch)}

    def launches():
        orders, busy = gpu_parts.launches_of(setting, batch)
        share = min(1.0, busy / found["ms"]) if busy and "ms" in found else None
        return {"launches": orders, "busy": share}

    for name, section in (("parts of a step", parts), ("memory", peak), ("launches", launches)):
        attempt(found, name, section, device)


def figures(case: Case, device, rates: dict | None) -> dict:
    """All that is measured of a case."""
    precision = half(device)
    found = {"title": case.title, "precision": str(precision).removeprefix("torch.")}
    forms = {
        "plain: float32, contiguous, eager": dict(plain=True),
        "ours, float32": dict(plain=False, channels_last=True),
        f"ours, {found['precision']}": dict(plain=False, channels_last=True, precision=found["precision"]),
    }
    attempt(found, "a step", lambda: of_step(found, case, device, rates), device)
    attempt(found, "feeding", lambda: {"fed": gpu_data.fed(case, device, precision)}, device)
    few = replace(case, steps=3)
    attempt(found, "forms of a step", lambda: {"forms": train_step.compared(few, device, forms)}, device)
    attempt(found, "forms of the loss", lambda: {"losses": gpu_losses.loss_forms(case, device)}, device)
    return found


def measured(args, device) -> dict:
    """The record: machine, the card's rates, each case, several GPUs; under "errors", what could not be measured."""
    record = {"machine": machine(device), "cases": []}
    attempt(record, "the card by itself", lambda: {"rates": gpu_parts.rates(device, args.small)}, device)
    optimisation.allow_tf32(False)
    cases = SMALL if args.small else LARGE
    for case in cases:
        record["cases"].append(figures(case, device, record.get("rates")))
    if args.gpus > 1:
        rows = record["several"] = []

        def several():
            for row in gpu_several.scaled(cases[0], device, half(device), args.gpus):
                rows.append(row)

        attempt(record, "several GPUs", several, device)
    return record


def refused(record: dict) -> bool:
    """Whether a test does not hold, there are none, or something could not be measured."""
    if any("errors" in found for found in (record, *record["cases"])):
        return True
    tests = record.get("tests", {"hold": ["none was asked for"], "do not hold": []})
    return tests is None or not tests["hold"] or bool(tests["do not hold"])


def main():
    args = get_parser().parse_args()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before CUDA is looked at, so that processes have none either
    check(args.device, args.gpus)
    if args.check:
        return
    config.one_compiler()
    record = measured(args, torch.device(args.device))
    if args.tests:
        record["tests"] = results(args.tests)
    try:
        print(gpu_page.page(record))
    finally:
        if args.out:
            util.write_file(args.out, json.dumps(record, indent=1).encode())
            print(f"all figures: {args.out}")
    if refused(record):
        sys.exit(1)


if __name__ == "__main__":
    util.run_command(main)

"""How several GPUs of one node scale: measured, beside what benchmarks.scaling computes from one of them.

Of steps whose views lie finished on the device, as benchmarks.scaling has them: the augmentation would be compiled anew
in each process.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks import scaling
from benchmarks.gpu_losses import loss_forms
from benchmarks.gpu_parts import Case, Setting, free, steps_timed
from datasets import augmentation
from engine import distributed
from engine.launch import Processes, launch


def step_ms(case: Case, device, precision: torch.dtype) -> tuple[float, int]:
    """Milliseconds of a step of this process's share of a case, on the slowest process; the number of parameters."""
    setting = Setting(case, device, precision)
    (crops, look), labels = setting.batch()
    views = setting.views.finish(crops.to(device), look, torch.channels_last, augmentation.finish)
    labels = labels.to(device)
    spent = steps_timed(case, device, lambda parts: setting.take(views, labels, parts))[1]
    slowest = float(distributed.all_reduce(torch.tensor(spent, device=device), "max"))
    return slowest, sum(p.numel() for p in setting.model.parameters() if p.requires_grad)


def measure(cases: list[Case], precision: torch.dtype, path: Path, device) -> None:
    """In each process: the steps of some cases, shared out; the main one writes what it found."""
    found = []
    for case in cases:
        ms, parameters = step_ms(case, device, precision)
        found.append({"ms": ms, "parameters": parameters})
        free(device)
    if distributed.is_main():
        path.write_text(json.dumps(found))


def on(world: int, cases: list[Case], precision: torch.dtype) -> list[dict]:
    """Cases on so many processes, each with a GPU (or, without CUDA, over gloo): ms, and the number of parameters.

    Raises RuntimeError with the last line of what ended a process.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "found.json")
        try:
            launch(partial(measure, cases, precision, path), Processes(per_node=world, timeout_minutes=3))
        except SystemExit as stop:
            if not isinstance(stop.code, str):
                raise
            raise RuntimeError(f"{world} processes: {stop.code.strip().splitlines()[-1]}") from None
        return json.loads(path.read_text())


def costs(cases: list[Case], step_ms: list[float], loss_ms: list[float]) -> dict[str, float]:
    """What benchmarks.scaling computes from, on one GPU: seconds a step whatever its size, an image, a similarity.

    cases: two, of different batches; the line through them.
    """
    (few, many), loss = (case.batch_size for case in cases), [ms / 1e3 for ms in loss_ms]
    step = [ms / 1e3 - of_loss for ms, of_loss in zip(step_ms, loss, strict=True)]
    image = (step[1] - step[0]) / (many - few)
    entry = (loss[1] - loss[0]) / ((many - few) * cases[0].bank)
    return {"step": max(0.0, step[0] - image * few), "image": image, "entry": max(0.0, entry)}


def scaled(case: Case, device, precision: torch.dtype, gpus: int) -> Iterator[dict]:
    """Rows of 1, 2, 4, ... `gpus` GPUs: the case's batch shared out (strong), and that batch on each (weak)."""
    small = replace(case, batch_size=max(2, case.batch_size // 8))
    loss = [loss_forms(c, device)[0]["ms"] for c in (small, case)]
    free(device)
    of_one = on(1, [small, case], precision)
    free(device)  # one process is this one; those to come have its device
    found = costs([small, case], [row["ms"] for row in of_one], loss)
    for world in sorted({1, gpus} | {2**i for i in range(1, gpus.bit_length()) if 2**i <= gpus}):
        weak = replace(case, batch_size=case.batch_size * world)
        measured = [of_one[1]] * 2 if world == 1 else on(world, [case, weak], precision)
        for kind, of, row in zip(("strong", "weak"), (case, weak), measured, strict=True):
            words = ["--model", of.model, "--size", str(of.size), "--batch_size", str(of.batch_size)]
            args = scaling.get_parser().parse_args(words)
            computed = 1e3 * scaling.compute(args, world, of.bank, found, row["parameters"])["step"]
            yield {
                "scaling": kind, "GPUs": world, "batch": of.batch_size, "ms": row["ms"], "computed ms": computed,
                "images/s": 1e3 * of.batch_size / row["ms"],
            }  # fmt: skip

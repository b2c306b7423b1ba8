"""How several GPUs of one node scale: measured, beside what benchmarks.scaling computes from one of them."""

import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks import scaling
from benchmarks.gpu_parts import Case, Setting, loss_forms, steps_timed
from engine import distributed
from engine.launch import Processes, launch


def measure(case: Case, precision: torch.dtype, path: Path, device) -> None:
    """In each process: the steps of a case, shared out; the main one writes the slowest process's milliseconds."""
    setting = Setting(case, device, precision)
    spent = torch.tensor(steps_timed(setting, setting.batch())[1], device=device)
    slowest = float(distributed.all_reduce(spent, "max"))
    if distributed.is_main():
        trained = sum(p.numel() for p in setting.model.parameters() if p.requires_grad)
        path.write_text(json.dumps({"ms": slowest, "parameters": trained}))


def on(world: int, case: Case, precision: torch.dtype) -> dict:
    """A case on so many processes, each with a GPU (or, without CUDA, over gloo): ms, and the number of parameters."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "found.json")
        launch(partial(measure, case, precision, path), Processes(per_node=world, timeout_minutes=3))
        return json.loads(path.read_text())


def costs(case: Case, device, precision: torch.dtype) -> dict[str, float]:
    """What benchmarks.scaling computes from, on one GPU: seconds a step whatever its size, an image, a similarity. The
    first two are the line through two batches.
    """
    small = replace(case, batch_size=max(2, case.batch_size // 8))
    loss = [loss_forms(c, device)[0]["ms"] / 1e3 for c in (small, case)]
    step = [on(1, c, precision)["ms"] / 1e3 - of_loss for c, of_loss in zip((small, case), loss, strict=True)]
    more = case.batch_size - small.batch_size
    image = (step[1] - step[0]) / more
    fixed, entry = max(0.0, step[0] - image * small.batch_size), (loss[1] - loss[0]) / (more * case.bank)
    return {"step": fixed, "image": image, "entry": max(0.0, entry)}


def scaled(case: Case, device, precision: torch.dtype, gpus: int) -> list[dict]:
    """Rows of 1, 2, 4, ... `gpus` GPUs: the case's batch shared out (strong), and that batch on each (weak)."""
    found, rows = costs(case, device, precision), []
    worlds = sorted({1, gpus} | {2**i for i in range(1, gpus.bit_length()) if 2**i <= gpus})
    for kind in ("strong", "weak"):
        for world in worlds:
            total = case.batch_size * (world if kind == "weak" else 1)
            measured = on(world, replace(case, batch_size=total), precision)
            words = ["--model", case.model, "--size", str(case.size), "--batch_size", str(total)]
            args = scaling.get_parser().parse_args(words)
            computed = 1e3 * scaling.compute(args, world, case.bank, found, measured["parameters"])["step"]
            rows.append(
                {"scaling": kind, "GPUs": world, "batch": total, "ms": measured["ms"], "computed ms": computed,
                 "images/s": 1e3 * total / measured["ms"]}
            )  # fmt: skip
    return rows

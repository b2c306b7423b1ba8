"""A whole training step on a CPU, views included, against the published way: PIL views one by one, plain loss, eager.

python -m benchmarks.whole_step [--model resnet8] [--batch_size 256] [--bank 4096] [--threads 1] [--compile]
    [--json FILE]

Images of 32 x 32 in memory, two views of each, made in the same process as the step, as without loader processes. The
published way's step is benchmarks.train_step's plain form: contiguous, the loss masked and in log space, parameter by
parameter.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

import datasets
from benchmarks import report
from benchmarks.data_pipeline import by_batch, one_by_one
from benchmarks.train_step import steps
from engine import config


def measured(forms: dict, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """By form, (views, step) -> seconds of both, the forms in turn, so that a drift of the machine meets all."""
    found = {name: [] for name in forms}
    for epoch in range(rounds + 2):  # two for warming up
        for name, (views, run) in forms.items():
            start = time.perf_counter()
            views(epoch)
            made = time.perf_counter()
            next(run)  # random views, not timed: those made above have no labels
            begin = time.perf_counter()
            float(next(run))
            found[name].append((made - start, time.perf_counter() - begin))
    return {name: seconds[2:] for name, seconds in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--bank", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="add a row with compiled encoders")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    args.size = 32
    torch.set_num_threads(args.threads)
    config.huge_pages()
    small = np.random.default_rng(0).integers(0, 256, (args.batch_size, 32, 32, 3), dtype=np.uint8)
    data = datasets.ImageData(small, torch.zeros(len(small), dtype=torch.long), ["0"])
    cpu, ours = torch.device("cpu"), by_batch(data, 32, args.batch_size, finished=True)
    forms = {
        "published": (one_by_one(data, 32, args.batch_size), steps(args, cpu, plain=True)),
        "ours": (ours, steps(args, cpu, plain=False, channels_last=True)),
    }
    if args.compile:
        forms["ours, compiled"] = (ours, steps(args, cpu, plain=False, channels_last=True, compiled=True))
    found, rows = measured(forms, args.rounds), []
    for name, seconds in found.items():
        both = zip(found["published"], seconds, strict=True)
        views, step = (statistics.median(of) for of in zip(*seconds, strict=True))
        row = {"form": name, "ms of views": 1000 * views, "ms of the step": 1000 * step}
        row["images/s"] = args.batch_size / statistics.median(map(sum, seconds))
        rows.append(row | {"times as fast": statistics.median(sum(a) / sum(b) for a, b in both)})
    report(f"{args.model}, batch {args.batch_size} of 32 x 32, bank {args.bank}", rows, args.json)


if __name__ == "__main__":
    main()

"""Augmentation on the device (flip, colour, normalisation of a whole batch): launches, memory traffic, time.

python -m benchmarks.finish [--views 512] [--size 64] [--device cpu] [--json FILE]

Operation by operation, as a CPU does it in small blocks, here in one block as a GPU would have to; and as one compiled
pass, which is what runs on CUDA. Launches and traffic of the first are those of torch's operations, of the second those
of the kernels that the compiler made for this device; traffic counts each tensor read and each written, over the bytes
of the output.
"""

import argparse
import logging
import statistics
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from benchmarks import report
from benchmarks.gpu_parts import MEAN, STD, Traffic
from datasets import augmentation, fused
from datasets.augmentation import DRAWS, Augmentation


def batch(count: int, size: int, device) -> tuple:
    """Views as loaders give them, and their parameters."""
    views = torch.randint(256, (count, size, size, 3), dtype=torch.uint8).to(device).permute(0, 3, 1, 2)
    return views, Augmentation(size, MEAN, STD).look(np.random.default_rng(0).random((count, DRAWS)))


def seconds(run, device, rounds: int = 5) -> float:
    """The median of some rounds, the first left out."""
    spent = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - begin)
    return statistics.median(spent[1:])


def one_by_one(views, look, device) -> dict:
    """Launches, traffic and time of `augmentation.finish` on a block of all views, and its time in blocks for a CPU."""
    with mock.patch.object(augmentation, "BLOCK", views.numel()):
        with Traffic() as counted:
            out = augmentation.finish(views, look, MEAN, STD)
        ms = 1000 * seconds(lambda: augmentation.finish(views, look, MEAN, STD), device)
    return {
        "form": "one by one, in one block",
        "launches": counted.operations,
        "traffic": counted.bytes / out.nbytes,
        "ms": ms,
    }


def compiled(views, look, device) -> dict:
    """Launches and traffic as the compiler counts them, and the time."""
    from torch._inductor import metrics
    from torch._inductor.utils import fresh_cache

    finish = fused.Finish(print)
    log = logging.getLogger("torch._inductor.compile_fx.__inductor_metrics")
    log.setLevel(logging.INFO)  # bytes are counted only where they would be logged
    log.propagate = False
    metrics.reset()
    with fresh_cache():
        out = finish(views, look, MEAN, STD)
        ms = 1000 * seconds(lambda: finish(views, look, MEAN, STD), device)
    if not finish.ran:
        raise SystemExit(2)
    traffic = metrics.num_bytes_accessed / out.nbytes
    return {"form": "compiled", "launches": metrics.generated_kernel_count, "traffic": traffic, "ms": ms}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=512)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    device = torch.device(args.device)
    views, look = batch(args.views, args.size, device)
    rows = [form(views, look, device) for form in (one_by_one, compiled)]
    blocks = 1000 * seconds(lambda: augmentation.finish(views, look, MEAN, STD), device)
    rows.append({"form": "one by one, in blocks for a CPU's caches", "ms": blocks})
    title = f"{args.views} views of {args.size} x {args.size}"
    report(title, rows, args.json, args.device)


if __name__ == "__main__":
    main()

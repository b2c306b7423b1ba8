"""What feeds what: images a second that N cores make beside those that the device takes, and what to set.

python -m benchmarks.end_to_end [--device cuda] [--model resnet18] [--batch_size 256] [--takes IMAGES_PER_SECOND]
    [--images DIR] [--json FILE]

Measures every path of the images on one core, and a training step on the device (or takes --takes, as measured on your
GPU by benchmarks.train_step), then says how many loader processes each path wants. It assumes that N cores make N times
what one makes, which shared memory bandwidth bends from about eight cores on.
"""

import argparse
import math
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

import datasets
from benchmarks import data_pipeline, report, train_step

PATHS = {  # name: (pack's format, finished by the worker, what to set)
    "JPEG folder, colour in the worker": (None, True, "--augment_on worker"),
    "JPEG folder, colour on the device": (None, False, "--augment_on device"),
    "packed JPEG 256, colour on the device": ("jpeg", False, "--data_folder PACKS --augment_on device"),
    "packed raw 256, colour on the device": ("raw", False, "--data_folder PACKS --augment_on device"),
}


def rates(images: Path | None, rounds: int = 3) -> dict[str, float]:
    """Images/s that one core makes, by path, the published one first."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = images or Path(scratch, "photographs")
        if not images:
            data_pipeline.photographs(root)
        data = datasets.build("path", root)
        packs = {f: data_pipeline.pack(data, Path(scratch), f, root) for f in ("jpeg", "raw")} | {None: data}
        paths = {"published": data_pipeline.one_by_one(data, 224, 64)}
        for name, (form, finished, _) in PATHS.items():
            paths[name] = data_pipeline.by_batch(packs[form], 224, 64, finished)
        return {row["path"]: row["images/s"] for row in data_pipeline.measure(paths, len(data), rounds)}


def takes(args) -> float:
    """Images/s that a training step on the device takes, data aside."""
    device = torch.device(args.device)
    how = dict(channels_last=True, precision="bfloat16") if args.device == "cuda" else {}
    run, seconds = train_step.steps(args, device, plain=False, **how), []
    for _ in range(args.steps + 2):
        next(run)
        start = time.perf_counter()
        float(next(run))  # waits for the device
        seconds.append(time.perf_counter() - start)
    return args.batch_size / statistics.median(seconds[2:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--bank", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--takes", type=float, help="images/s of one GPU, instead of measuring this machine's device")
    parser.add_argument("--images", type=Path, help="folder of class folders")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    wanted = args.takes or takes(args)
    made, rows = rates(args.images), []
    for name, rate in made.items():
        row = {"path": name, "1 core": rate} | {f"{n} cores": n * rate for n in (4, 8, 16, 32)}
        setting = PATHS[name][2] if name in PATHS else ""
        rows.append(row | {"cores wanted": math.ceil(wanted / rate), "set": setting})
    source = "as given" if args.takes else f"{args.model} at {args.size}, batch {args.batch_size}, {args.device}"
    report(f"one device takes {wanted:,.0f} images/s ({source}); images/s that are made", rows, args.json, args.device)
    cores = os.cpu_count() or 1
    fits = [name for name in PATHS if made[name] * cores >= wanted]
    if fits:
        workers = min(cores, math.ceil(1.2 * wanted / made[fits[0]]))
        print(
            f"for one device on this machine's {cores} cores: {PATHS[fits[0]][2]} --num_workers {workers} ({fits[0]})"
        )
    else:
        best = max(PATHS, key=made.get)
        print(f"this machine's {cores} cores do not feed one device by any path; the best is {best}: {PATHS[best][2]}")


if __name__ == "__main__":
    main()

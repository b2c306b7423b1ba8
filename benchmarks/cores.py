"""Trainings that share the cores: threads that sleep while they wait, that spin, and one thread each.

python -m benchmarks.cores [--seconds 8] [--json FILE]

One training alone, and two side by side, of a ResNet-8 at 32 pixels, batch 128, without data; images/s together.
"""

import argparse
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks import report
from benchmarks.peers_steps import ours

WAYS = {
    "threads that wait sleep (default)": {"OMP_WAIT_POLICY": "passive"},
    "threads that wait spin (OpenMP's default)": {},
    "one thread each": {"OMP_NUM_THREADS": "1"},
}


def train(seconds: float) -> float:
    """Images a second of one training."""
    args = argparse.Namespace(model="resnet8", size=32, batch_size=128, bank=4096)
    step = partial(next, ours(args, plain=False, channels_last=True))
    step()
    begin, steps = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        step()
        steps += 1
    return steps * args.batch_size / (time.perf_counter() - begin)


def side_by_side(count: int, way: dict[str, str], seconds: float) -> float:
    """Images a second of so many trainings together, each a process of its own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")} | way
    # torch first, which reads OMP_WAIT_POLICY, before util sets it
    code = f"import torch; from benchmarks import cores; print(cores.train({seconds}))"
    words, root = [sys.executable, "-c", code], Path(__file__).parent.parent
    runs = [subprocess.Popen(words, env=env, cwd=root, text=True, stdout=subprocess.PIPE) for _ in range(count)]
    return sum(float(run.communicate()[0]) for run in runs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--json", type=Path, help="file to add the figures to")
    args = parser.parse_args()
    rows = [
        {"threads": name} | {f"{n} at a time": side_by_side(n, way, args.seconds) for n in (1, 2)}
        for name, way in WAYS.items()
    ]
    report("ResNet-8 at 32 pixels, batch 128, images/s", rows, args.json)


if __name__ == "__main__":
    main()

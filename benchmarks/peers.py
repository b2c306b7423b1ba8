"""Ours beside the packages of the field and beside plain forms, on equal inputs, in one run.

python -m benchmarks.peers [--only NAME ...] [--rounds 5] [--threads N] [--json FILE]

Peers: pytorch-metric-learning, lightly, faiss, kornia, albumentations (which is cv2), scikit-learn, torchvision:
`pip install ".[bench]"`; and DALI, where it is installed: `pip install ".[dali]"`, a gigabyte. SupContrast
and the published code are no packages: their plain forms are written from the papers. Results are compared before
anything is timed, and an unequal one ends the run. The forms of a table run in turn; `times ours` is the median, over
the rounds, of a form's time over that of ours in the same round.
"""

import argparse
import importlib.util
import statistics
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
import torch

from benchmarks import Work, in_turn, peers_dali, peers_images, peers_losses, peers_scores, peers_steps, ratio, report
from engine import config

WORKS = {
    "bank": peers_losses.over_a_bank,
    "cold": peers_losses.at_low_temperature,
    "batch": peers_losses.in_the_batch,
    "curve": peers_scores.retrieval,
    "knn": peers_scores.nearest,
    "gaussian": peers_scores.gaussian,
    "photographs": peers_images.photographs,
    "small_images": peers_images.small,
    "decoders": peers_images.decoders,
    "step_resnet8": peers_steps.resnet8,
    "step_resnet18": peers_steps.resnet18,
    "bfloat16": peers_steps.bfloat16,
}
# module -> the package that pip knows
PACKAGES = {
    "pytorch_metric_learning": "pytorch-metric-learning", "lightly": "lightly", "faiss": "faiss-cpu",
    "kornia": "kornia", "albumentations": "albumentations",
}  # fmt: skip


def measured(work: Work, rounds: int) -> list[dict]:
    """A row for each form of the work, ours first."""
    times = in_turn(work.forms, work.rounds or rounds)
    ours = next(iter(times.values()))
    rows = []
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        row = {"form": name, "ms": 1000 * middle, "times ours": ratio(seconds, ours)}
        rows.append(row | ({"images/s": work.images / middle} if work.images else {}))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS), metavar="NAME", help=", ".join(WORKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch (None: one a core)")
    parser.add_argument("--json", type=Path, help="file to add the figures to")
    args = parser.parse_args()
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise util.InputError(f'missing: {", ".join(missing)}; install them with: pip install ".[bench]"')
    packages = [*PACKAGES.values(), *[peers_dali.PACKAGE] * peers_dali.installed()]
    config.huge_pages()  # as every script of ours does; the peers have them, too
    threads = args.threads or torch.get_num_threads()
    for name in args.only:
        torch.set_num_threads(threads)
        work = WORKS[name]()
        torch.set_num_threads(work.threads or threads)
        report(work.title, measured(work, args.rounds), args.json, name=name, libraries=packages)
        print()


if __name__ == "__main__":
    util.run_command(main)

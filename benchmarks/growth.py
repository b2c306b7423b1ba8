"""How time and memory grow: the loss over the size of the bank, retrieval over that of the gallery.

python -m benchmarks.growth [--largest_bank 1048576] [--largest_gallery 1000000] [--json FILE]

128 anchors, D 128, forward and backward, beside plain InfoNCE; 64 queries of 128 dimensions, whole curve, beside the
bare product and sort. Memory is the largest sum of live tensors above the inputs. `per entry` is time over anchors (or
queries) and entries: where a curve is straight, it stays. Drawn by `python -m figures.growth`.
"""

import argparse
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import in_turn, report
from benchmarks.loss_head import inputs, peak_bytes, plain_infonce, table
from benchmarks.retrieval import bare, made
from engine import config
from evaluation import Curve, look_up
from losses import RINCELoss

ANCHORS, QUERIES, DIM = 128, 64, 128


def row(size: int, forms: dict, per: int, rounds: int) -> dict:
    """Time and memory of each form, and ours per similarity. forms: ours first."""
    found = {"size": size}
    for name, seconds in in_turn(forms, rounds).items():
        found[f"{name}, ms"] = 1000 * statistics.median(seconds)
        found[f"{name}, MB"] = peak_bytes(forms[name], "cpu") / 1e6
    ours = next(iter(forms))
    return found | {"ns per similarity": 1e6 * found[f"{ours}, ms"] / (per * size)}


def of_bank(size: int) -> dict:
    """The loss over a bank of so many keys."""
    q, *given = inputs(size)
    q, given = q.detach()[:ANCHORS].requires_grad_(), [x[:ANCHORS] for x in given[:2]] + given[2:]
    ranked = RINCELoss(table())

    def step(loss):
        q.grad = None
        loss(q, *given).backward()

    forms = {"RINCE": lambda: step(lambda *x: ranked.terms(*x).loss()), "plain InfoNCE": lambda: step(plain_infonce)}
    return row(size, forms, ANCHORS, rounds=3 if size <= 2**16 else 1)


def of_gallery(size: int) -> dict:
    """Retrieval in a gallery of so many images."""
    (features, labels), (gallery, gallery_labels) = made((QUERIES, size), DIM, classes=100)
    unit = F.normalize(gallery, dim=1)
    forms = {
        "whole curve": lambda: look_up(features, unit, [Curve(labels, gallery_labels)]),
        "product and sort": lambda: bare(features, unit),
    }
    return row(size, forms, QUERIES, rounds=3 if size <= 10**5 else 1)


def powers(first: int, last: int, factor: int) -> list[int]:
    """first, first * factor, ... up to the last."""
    found = [first]
    while found[-1] * factor <= last:
        found.append(found[-1] * factor)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest_bank", type=int, default=2**20)
    parser.add_argument("--largest_gallery", type=int, default=10**6)
    parser.add_argument("--json", type=Path, help="file to add the figures to")
    args = parser.parse_args()
    config.huge_pages()
    torch.manual_seed(0)
    bank = [of_bank(size) for size in powers(2**10, args.largest_bank, 4)]
    report(f"the loss over a bank, {ANCHORS} anchors, D {DIM}", bank, args.json, name="growth_bank")
    gallery = [of_gallery(size) for size in powers(1000, args.largest_gallery, 10)]
    report(f"retrieval, {QUERIES} queries of {DIM} dimensions", gallery, args.json, name="growth_gallery")


if __name__ == "__main__":
    main()

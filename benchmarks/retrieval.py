"""Retrieval with its whole precision-recall curve, and the order of the ranks, beside the bare similarity product and
sort, in the same run, at ImageNet-100's size.

python -m benchmarks.retrieval [--queries 5000 --gallery 126000 --dim 512] [--json FILE]
"""

import argparse
import resource
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import report
from evaluation import Curve, Levels, Order, distinct, look_up
from evaluation.retrieval import Ranked


def bare(features, gallery, chunk=64):
    """Similarity and sort alone, in the same chunks: the least that a full ranking needs."""
    for part in F.normalize(features, dim=1).split(chunk):
        Ranked(part @ gallery.T)


def made(sizes: tuple[int, ...], dim: int, classes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Features [n, dim] around the means of classes, and labels [n], of each size."""
    g = torch.Generator().manual_seed(0)
    means, found = torch.randn(classes, dim, generator=g), []
    for n in sizes:
        labels = torch.arange(n) % classes
        found.append((torch.randn(n, dim, generator=g).mul_(2).add_(means[labels]), labels))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--gallery", type=int, default=126_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--json", type=Path, help="file to add the figures to")
    args = parser.parse_args()
    (features, labels), (gallery, gallery_labels) = made((args.queries, args.gallery), args.dim, args.classes)
    gallery = F.normalize(gallery, dim=1)
    group = torch.arange(args.classes) // 5  # superclasses of five: three ranks
    ranks = Levels.of_table(torch.where(group[:, None] == group, 0.75, 0.0).double().fill_diagonal_(1))

    def classes():
        return Curve(labels, gallery_labels)

    def order():
        return Order(labels, gallery_labels, ranks)

    forms = {
        "classes, whole curve": lambda: [classes()],
        "the order of the ranks": lambda: [order()],
        "classes, superclasses and the order, in one pass": lambda: [
            classes(), Curve(group[labels], group[gallery_labels]), order()
        ],
    }  # fmt: skip
    bare(features[:640], gallery)
    start = time.perf_counter()
    bare(features, gallery)
    plain = time.perf_counter() - start
    rows = [{"form": "product and sort", "seconds": plain, "times product and sort": 1.0}]
    start = time.perf_counter()
    distinct(features), distinct(gallery)
    spent = time.perf_counter() - start
    rows.append(
        {
            "form": "finding equal rows, of each of the following",
            "seconds": spent,
            "times product and sort": spent / plain,
        }
    )
    for name, made_of in forms.items():
        start, scorers = time.perf_counter(), made_of()
        look_up(features, gallery, scorers)
        spent = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows.append({"form": name, "seconds": spent, "times product and sort": spent / plain, "peak so far, GiB": peak})
    title = f"{args.queries:,} queries in a gallery of {args.gallery:,}, {args.dim} dimensions, three ranks"
    report(title, rows, args.json)


if __name__ == "__main__":
    main()

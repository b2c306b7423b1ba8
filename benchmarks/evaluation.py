"""Measure retrieval and Gaussian OOD scores at the size of ImageNet-100: seconds and peak memory.

python -m benchmarks.evaluation [--queries 5000 --gallery 126000 --test 42000 --dim 512] [--growth] [--json FILE]

Retrieval has its whole precision-recall curve, and the order of the ranks; OOD scores are of --test images, by classes
of the gallery's size. --growth measures galleries of 1,000 images up to a million instead, or to --gallery, with 64
queries of 128 dimensions. Against other packages: benchmarks.peers.
"""

import resource
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.mixture import GaussianMixture
from torch import Tensor

from benchmarks import growth_row, must_equal, parser, report
from evaluation import Curve, Levels, Order, distinct, gaussian_scores, look_up
from evaluation.retrieval import Ranked


def rank_alone(features: Tensor, gallery: Tensor, chunk: int = 64) -> None:
    """Similarity and sort alone, in the same chunks: the least that a full ranking needs."""
    for part in features.split(chunk):
        Ranked(part @ gallery.T)


def make_features(sizes: tuple[int, ...], dim: int, classes: int = 100) -> list[tuple[Tensor, Tensor]]:
    """L2-normalized features [n, dim] around the means of classes, and labels [n], of each size."""
    g = torch.Generator().manual_seed(0)
    means, found = torch.randn(classes, dim, generator=g), []
    for n in sizes:
        labels = torch.arange(n) % classes
        features = torch.randn(n, dim, generator=g).mul_(2).add_(means[labels])
        found.append((F.normalize(features, dim=1), labels))
    return found


def score_by_scikit_learn(train: Tensor, labels: Tensor, features: Tensor, dtype=np.float64) -> Tensor:
    """[M] the loop over classes that the published protocol amounts to. dtype: since 1.9 scikit-learn keeps float32."""
    train, x = train.numpy().astype(dtype), features.numpy().astype(dtype)
    scores = [GaussianMixture(1).fit(train[labels == c]).score_samples(x) for c in labels.unique()]
    return torch.from_numpy(np.max(scores, axis=0))


def seconds_of(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def measure_retrieval(args) -> list[dict]:
    """Rows of curve and order of the ranks, whose classes lie in superclasses of five: three ranks."""
    (features, labels), (gallery, known) = make_features((args.queries, args.gallery), args.dim, args.classes)
    group = torch.arange(args.classes) // 5
    ranks = Levels.of_table(torch.where(group[:, None] == group, 0.75, 0.0).double().fill_diagonal_(1))
    forms = {
        "classes, whole curve": lambda: [Curve(labels, known)],
        "the order of the ranks": lambda: [Order(labels, known, ranks)],
        "classes, superclasses and the order, in one pass": lambda: [
            Curve(labels, known), Curve(group[labels], group[known]), Order(labels, known, ranks)
        ],
    }  # fmt: skip
    rank_alone(features[:640], gallery)
    plain = seconds_of(lambda: rank_alone(features, gallery))
    rows = [{"form": "product and sort", "seconds": plain, "times product and sort": 1.0}]
    spent = seconds_of(lambda: (distinct(features), distinct(gallery)))
    rows += [{"form": "of each below: finding equal rows", "seconds": spent, "times product and sort": spent / plain}]
    for name, make_scorers in forms.items():
        spent = seconds_of(lambda make=make_scorers: look_up(features, gallery, make()))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows.append({"form": name, "seconds": spent, "times product and sort": spent / plain, "peak so far, GiB": peak})
    return rows


def measure_ood(args) -> list[dict]:
    """Rows of the Gaussian scores and of their products; the scores equal scikit-learn's on some images."""
    (train, labels), (features, _) = make_features((args.gallery, args.test), args.dim, args.classes)
    few = features[: args.test // 100]
    must_equal("scikit-learn", score_by_scikit_learn(train, labels, few), gaussian_scores(train, labels, few), 1e-6)
    square, whole = torch.randn(args.dim, args.dim, dtype=torch.float64), features.double()
    product = seconds_of(lambda: [whole @ square for _ in range(5)]) / 5
    seconds = {
        "Gaussian scores, float64": seconds_of(lambda: gaussian_scores(train, labels, features)),
        "their full products alone, estimated from five": product * (args.classes + args.gallery / args.test),
    }
    return [{"form": name, "seconds": spent} for name, spent in seconds.items()]


def measure_growth(size: int, queries: int = 64, dim: int = 128) -> dict:
    """Measure the row of a gallery of this size."""
    (features, labels), (gallery, known) = make_features((queries, size), dim)
    forms = {
        "whole curve": lambda: look_up(features, gallery, [Curve(labels, known)]),
        "product and sort": lambda: rank_alone(features, gallery),
    }
    return growth_row(size, forms, queries, rounds=3 if size <= 10**5 else 1)


def get_parser():
    p = parser(__doc__)
    p.add_argument("--queries", type=int, default=5000, help="number of queries")
    p.add_argument("--gallery", type=int, help="number of training images (default: 126000, or 1000000 with --growth)")
    p.add_argument("--test", type=int, default=42_000, help="number of images that get an OOD score")
    p.add_argument("--dim", type=int, default=512, help="dimensions of a feature")
    p.add_argument("--classes", type=int, default=100, help="number of classes")
    p.add_argument("--growth", action="store_true", help="measure how time and memory grow with the gallery")
    return p


def main():
    args = get_parser().parse_args()
    if args.growth:
        rows = [measure_growth(10**n) for n in range(3, 10) if 10**n <= (args.gallery or 10**6)]
        report("retrieval, 64 queries of 128 dimensions", rows, args.json, name="growth_gallery")
        return
    args.gallery = args.gallery or 126_000
    title = f"{args.queries:,} queries in a gallery of {args.gallery:,}, {args.dim} dimensions, three ranks"
    report(title, measure_retrieval(args), args.json, name="retrieval")
    title = f"{args.classes} classes of {args.gallery // args.classes:,} x {args.dim}, {args.test:,} test images"
    report(title, measure_ood(args), args.json, name="ood")


if __name__ == "__main__":
    main()

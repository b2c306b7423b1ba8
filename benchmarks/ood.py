"""The Gaussian OOD scores at ImageNet-100's size: seconds, beside their matrix products alone, and peak memory.

python -m benchmarks.ood [--json FILE]

Against scikit-learn, at a size that it does in seconds: benchmarks.peers.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.mixture import GaussianMixture

from benchmarks import must_equal, report
from evaluation import gaussian_scores


def made(classes: int, each: int, dim: int, inliers: int, outliers: int):
    """Normalised features: classes around their own means with variances over four decades; outliers lie elsewhere."""
    g = torch.Generator().manual_seed(0)
    means, scale = torch.randn(classes, dim, generator=g), torch.logspace(0, -2, dim)

    def around(centres):
        return F.normalize(torch.randn(len(centres), dim, generator=g).mul_(scale).add_(centres), dim=1)

    labels = torch.arange(classes).repeat_interleave(each)
    train = torch.cat([around(means[part]) for part in labels.split(10_000)])
    strange = means[torch.randint(classes, (outliers,), generator=g)]
    strange += 0.5 * torch.randn(outliers, dim, generator=g) * scale
    return train, labels, around(means[torch.randint(classes, (inliers,), generator=g)]), around(strange)


def by_scikit_learn(train, labels, features, dtype=np.float64):
    """[M] the loop over classes that the published protocol amounts to. dtype: since 1.9 scikit-learn keeps float32."""
    train, x = train.numpy().astype(dtype), features.numpy().astype(dtype)
    scores = [GaussianMixture(1).fit(train[labels == c]).score_samples(x) for c in labels.unique()]
    return torch.from_numpy(np.max(scores, axis=0))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--images", type=int, default=126_000, help="of training, in equal classes")
    parser.add_argument("--test", type=int, default=42_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--json", type=Path, help="file to add the figures to")
    args = parser.parse_args()
    each, half = args.images // args.classes, args.test // 2
    train, labels, inlier, outlier = made(args.classes, each, args.dim, half, half)
    features, few = torch.cat([inlier, outlier]), slice(0, args.test // 100)
    must_equal("scikit-learn", by_scikit_learn(train, labels, features[few]),
               gaussian_scores(train, labels, features[few]), 1e-6)  # fmt: skip
    square, whole = torch.randn(args.dim, args.dim, dtype=torch.float64), features.double()
    begin = time.perf_counter()
    for _ in range(5):
        _ = whole @ square
    product = (time.perf_counter() - begin) / 5
    before, begin = peak_gib(), time.perf_counter()
    gaussian_scores(train, labels, features)
    spent = time.perf_counter() - begin
    rows = [
        {"form": "Gaussian scores, float64", "seconds": spent, "GiB": peak_gib(), "GiB before": before},
        {
            "form": "their full products alone, estimated from five",
            "seconds": product * args.classes * (1 + each / args.test),
        },
    ]
    report(f"{args.classes} classes of {each:,} x {args.dim}, {args.test:,} test images", rows, args.json)


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()

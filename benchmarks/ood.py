"""The Gaussian OOD scores against scikit-learn's GaussianMixture(1) fitted per class, in the same run.

python -m benchmarks.ood                      10 classes x 1,260 x 512, 8,000 test images: times and differences
python -m benchmarks.ood --imagenet100        ours alone at ImageNet-100's size: seconds and peak memory
"""

import argparse
import resource
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.mixture import GaussianMixture

from evaluation import gaussian_scores, ood_metrics


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


def by_scikit_learn(train, labels, features):
    """[M] the loop over classes that the published protocol amounts to."""
    x = features.double().numpy()
    scores = [GaussianMixture(1).fit(train[labels == c].double().numpy()).score_samples(x) for c in labels.unique()]
    return torch.from_numpy(np.max(scores, axis=0))


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imagenet100", action="store_true", help="126,000 train, 5,000 + 37,000 test")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    size = (100, 1260, args.dim, 5000, 37_000) if args.imagenet100 else (10, 1260, args.dim, 4000, 4000)
    train, labels, inlier, outlier = made(*size)
    features = torch.cat([inlier, outlier])
    print(
        f"{size[0]} classes x {size[1]:,} x {size[2]}, {len(features):,} test images, float64 scores, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    if args.imagenet100:
        before, start = peak_gib(), time.perf_counter()
        gaussian_scores(train, labels, features)
        print(
            f"{time.perf_counter() - start:.1f} s, peak {peak_gib():.2f} GiB, of which {before:.2f} before the scores"
        )
        return
    ways = {"GaussianMixture(1) per class": by_scikit_learn, "gaussian_scores": gaussian_scores}
    times, scores = {name: [] for name in ways}, {}
    for repeat in range(args.repeats + 1):  # in turn, so that a drift of the machine meets both; the first warms up
        for name, way in ways.items():
            start = time.perf_counter()
            scores[name] = way(train, labels, features)
            if repeat:
                times[name].append(time.perf_counter() - start)
    reference, ours = times.values()
    aurocs = [ood_metrics(s[: len(inlier)], s[len(inlier) :])["AUROC"] for s in scores.values()]
    want, got = scores.values()
    for name, seconds in times.items():
        print(f"{name:<30}{statistics.median(seconds):>8.3f} s")
    ratio = statistics.median(a / b for a, b in zip(reference, ours, strict=True))
    print(f"{ratio:.1f} times as fast; largest difference of a score {float((want - got).abs().max()):.1e}, ", end="")
    print(f"of the AUROC {abs(aurocs[0] - aurocs[1]):.1e} (AUROC {aurocs[1]:.4f})")


if __name__ == "__main__":
    main()

"""Retrieval with its whole precision-recall curve, and the order of the ranks, against the bare similarity product and
sort, in the same run.

python -m benchmarks.retrieval [--queries 10000 --gallery 50000 --dim 512]
python -m benchmarks.retrieval --queries 5000 --gallery 126000     # ImageNet-100's sizes
"""

import argparse
import resource
import time

import torch
import torch.nn.functional as F

from evaluation import Curve, Levels, Order, look_up
from evaluation.retrieval import Ranked


def bare(features, gallery, chunk=64):
    """Similarity and sort alone, in the same chunks: the least that a full ranking needs."""
    for part in F.normalize(features, dim=1).split(chunk):
        Ranked(part @ gallery.T)  # sorts; on the CPU several times as fast as torch.sort


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--gallery", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100)
    args = parser.parse_args()
    g = torch.Generator().manual_seed(0)
    means = torch.randn(args.classes, args.dim, generator=g)

    def made(n):
        labels = torch.arange(n) % args.classes
        return torch.randn(n, args.dim, generator=g).mul_(2).add_(means[labels]), labels

    (features, labels), (gallery, gallery_labels) = made(args.queries), made(args.gallery)
    gallery = F.normalize(gallery, dim=1)
    print(
        f"{args.queries:,} queries x {args.gallery:,} gallery x {args.dim}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    bare(features[:640], gallery)
    start = time.perf_counter()
    bare(features, gallery)
    plain = time.perf_counter() - start
    print(f"{'product and sort':<30}{plain:>7.1f} s", flush=True)
    group = torch.arange(args.classes) // 5  # superclasses of five: three ranks
    table = torch.where(group[:, None] == group, 0.75, 0.0).double().fill_diagonal_(1)

    def fine():
        return Curve(labels, gallery_labels)

    def order():
        return Order(labels, gallery_labels, Levels.of_table(table))

    forms = {
        "classes": lambda: [fine()],
        "order of the ranks": lambda: [order()],
        "classes, superclasses, order": lambda: [fine(), Curve(group[labels], group[gallery_labels]), order()],
    }
    for name, made_of in forms.items():
        start, scorers = time.perf_counter(), made_of()
        look_up(features, gallery, scorers)
        whole = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name:<30}{whole:>7.1f} s, {whole / plain:.2f} times; peak memory so far {peak:.2f} GiB", flush=True)
    scores = scorers[0].result()[0], scorers[2].result()
    print(f"mAP {scores[0]['mAP']:.4f}, R@1 {scores[0]['R@1']:.4f}, AUROC of the ranks {scores[1]['AUROC']:.4f}")


if __name__ == "__main__":
    main()

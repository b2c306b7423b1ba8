"""Retrieval with its whole precision-recall curve against the bare similarity product and sort, in the same run.

python -m benchmarks.retrieval [--queries 10000 --gallery 50000 --dim 512]
"""

import argparse
import resource
import time

import torch
import torch.nn.functional as F

from evaluation import retrieval_curve


def bare(features, gallery, chunk=64):
    """Similarity and sort alone, in the same chunks: the least that a full ranking needs."""
    for part in F.normalize(features, dim=1).split(chunk):
        (part @ gallery.T).sort(dim=1, descending=True)


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
    print(f"product and sort   {plain:>7.1f} s")
    start = time.perf_counter()
    metrics, precision, _ = retrieval_curve(features, labels, gallery, gallery_labels)
    whole = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"retrieval          {whole:>7.1f} s, with the curve at {len(precision):,} cut-offs; {whole / plain:.2f} times"
    )
    print(f"peak memory {peak:.2f} GiB; mAP {metrics['mAP']:.4f}, R@1 {metrics['R@1']:.4f}")


if __name__ == "__main__":
    main()

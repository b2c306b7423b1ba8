"""Retrieval and OOD scores beside faiss, scikit-learn, pytorch-metric-learning and bare products: of peers."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import Work, must_equal, ood
from benchmarks.retrieval import bare, made
from evaluation import Curve, gaussian_scores, knn_scores, look_up, retrieval_metrics

QUERIES, GALLERY, DIM = 1000, 50_000, 512


def retrieval() -> Work:
    """The whole precision-recall curve."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    (features, labels), (gallery, gallery_labels) = made((QUERIES, GALLERY), DIM, classes=100)
    q, g = (F.normalize(x, dim=1).numpy() for x in (features, gallery))
    of_package = AccuracyCalculator(include=("mean_average_precision_at_r",), k="max_bin_count")
    few = slice(0, 100)
    found = of_package.get_accuracy(q[few], labels[few].numpy(), g, gallery_labels.numpy())
    ours = retrieval_metrics(features[few], labels[few], gallery, gallery_labels)
    must_equal("MAP@R of pytorch-metric-learning", found["mean_average_precision_at_r"], ours["MAP@R"], 1e-5)

    def curve():
        look_up(features, gallery, [Curve(labels, gallery_labels)])

    unit = F.normalize(gallery, dim=1)
    forms = {
        "whole curve, all metrics": curve,
        "product and the same sort alone": lambda: bare(features, unit),
        "product and torch's stable sort alone": lambda: torch_sorts(features, unit),
        "pytorch-metric-learning: MAP@R alone": lambda: of_package.get_accuracy(
            q, labels.numpy(), g, gallery_labels.numpy()
        ),
    }
    return Work(f"retrieval, {QUERIES:,} queries in {GALLERY:,} x {DIM}", forms, rounds=3)


def torch_sorts(features: Tensor, gallery: Tensor, chunk: int = 64) -> None:
    """Similarity, and its order by torch's stable sort."""
    for part in F.normalize(features, dim=1).split(chunk):
        (part @ gallery.T).sort(dim=1, descending=True, stable=True)


def nearest() -> Work:
    """The distance to the 50th nearest training feature."""
    import faiss
    from sklearn.neighbors import NearestNeighbors

    train, _, inlier, outlier = ood.made(10, 1260, DIM, 4000, 4000)
    test, k = torch.cat([inlier, outlier]), 50
    faiss.omp_set_num_threads(torch.get_num_threads())

    def by_faiss():
        index = faiss.IndexFlatL2(DIM)
        index.add(train.numpy())
        squares, _ = index.search(test.numpy(), k)
        return -torch.from_numpy(squares[:, -1]).clamp(min=0).sqrt()

    def by_scikit_learn():
        search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(train.numpy())
        return -torch.from_numpy(search.kneighbors(test.numpy())[0][:, -1])

    ours = knn_scores(train, test, k)
    must_equal("faiss", by_faiss(), ours, 1e-4)
    must_equal("scikit-learn", by_scikit_learn(), ours, 1e-4)
    forms = {
        "kNN scores": lambda: knn_scores(train, test, k),
        "faiss-cpu: IndexFlatL2": by_faiss,
        "scikit-learn: NearestNeighbors, brute": by_scikit_learn,
        "the product alone": lambda: [part @ train.T for part in test.split(512)],
    }
    return Work(f"kNN, {len(test):,} images, {len(train):,} x {DIM} training features, k {k}", forms)


def gaussian() -> Work:
    """A full-covariance Gaussian a class."""
    train, labels, inlier, outlier = ood.made(10, 1260, DIM, 4000, 4000)
    test = torch.cat([inlier, outlier])
    of_package = ood.by_scikit_learn(train, labels, test)
    must_equal("scikit-learn's GaussianMixture", of_package, gaussian_scores(train, labels, test), 1e-6)
    parts, doubles = [train[labels == c].double() for c in range(10)], test.double()
    square = torch.randn(DIM, DIM, dtype=torch.float64)

    def products():
        for part in parts:
            _ = part.T @ part
            _ = doubles @ square

    forms = {
        "Gaussian scores, float64": lambda: gaussian_scores(train, labels, test),
        "scikit-learn: GaussianMixture(1) a class, float64": lambda: ood.by_scikit_learn(train, labels, test),
        "scikit-learn: the same in float32": lambda: ood.by_scikit_learn(train, labels, test, np.float32),
        "the full products alone, float64": products,
    }
    return Work(f"Gaussian scores, {len(test):,} images, 10 classes of 1,260 x {DIM}", forms)

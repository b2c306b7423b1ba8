"""How well features tell a real value, such as an age, a pose or a dose: by neighbors, by a ridge probe, by order.

Shapes: Q queries, G gallery entries, d dimensions.
"""

import torch
from torch import Tensor

from .retrieval import _similarities, nearest, unit

NEIGHBORS = 10
PENALTIES = tuple(10.0**x for x in range(-2, 7))  # of the ridge probe, chosen by leaving one out


def regression_metrics(
    features: Tensor, values: Tensor, gallery: Tensor, gallery_values: Tensor, k: int = NEIGHBORS
) -> dict[str, float]:
    """Mean absolute error and R2 of the kNN regression and of a ridge probe, and Spearman's rho by distance of values.

    features: (Q, d), values: (Q,), gallery: (G, d), gallery_values: (G,). The functions below say what each is.
    """
    by_neighbors = regression_scores(knn_regression(features, gallery, gallery_values, k), values)
    by_probe = regression_scores(ridge_regression(features, gallery, gallery_values), values)
    scores = {
        f"{name} {metric}": x for name, of in (("kNN", by_neighbors), ("ridge", by_probe)) for metric, x in of.items()
    }
    return scores | {"Spearman": value_consistency(features, values, gallery, gallery_values)}


def regression_scores(predicted: Tensor, values: Tensor) -> dict[str, float]:
    """MAE, in units of the values, and R2, at most 1 and 0 of their mean, of predictions [Q] of values [Q].

    Raises ValueError where the values are all equal, of which R2 is not defined.
    """
    predicted, values = predicted.detach().double(), values.detach().to(predicted.device).double()
    error, spread = predicted - values, values - values.mean()
    if not spread.any():
        raise ValueError("the values are all equal: R2 is not defined")
    r2 = 1 - error.square().sum() / spread.square().sum()
    return {"MAE": float(error.abs().mean()), "R2": float(r2)}


def knn_regression(features: Tensor, gallery: Tensor, gallery_values: Tensor, k: int = NEIGHBORS) -> Tensor:
    """[Q, d], [G, d], [G] -> [Q] float64: mean value of the k nearest of the gallery by cosine; of all, if fewer."""
    indices = nearest(features, gallery, min(k, len(gallery)))[1]
    return gallery_values.to(indices.device).double()[indices].mean(1)


def ridge_regression(features: Tensor, gallery: Tensor, gallery_values: Tensor) -> Tensor:
    """[Q, d], [G, d], [G] -> [Q] float64, on the CPU: what a ridge regression says that is fitted to the gallery.

    Each dimension is scaled to mean 0 and standard deviation 1 in the gallery; of PENALTIES that counts which has the
    least squared error of gallery entries left out one at a time.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, g, values = (t.detach().cpu().double().numpy() for t in (features, gallery, gallery_values))
    return torch.from_numpy(make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(g, values).predict(x))


@torch.no_grad()
def value_consistency(
    features: Tensor, values: Tensor, gallery: Tensor, gallery_values: Tensor, chunk: int = 64
) -> float:
    """Mean over the queries of Spearman's rho, over the gallery, of the cosine and minus the distance of the values.

    features: [Q, d], values: [Q], gallery: [G, d], gallery_values: [G]. Ties share their ranks. A query is 0 where its
    cosines, or its distances, are all equal. Raises ValueError for features that are no numbers.
    """
    from scipy.stats import rankdata

    values, gallery_values, total = values.cpu().double(), gallery_values.cpu().double(), 0.0
    for rows, cosines in _similarities(features, gallery, chunk, unit):
        distances = (values[rows.cpu(), None] - gallery_values).abs()
        a, b = (torch.from_numpy(rankdata(x.cpu().numpy(), axis=1)) for x in (cosines, -distances))
        a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
        norm = a.norm(dim=1) * b.norm(dim=1)
        total += float(torch.where(norm > 0, (a * b).sum(1) / norm.clamp(min=1), 0).sum())
    return total / len(features)

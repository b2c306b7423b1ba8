"""Regression of a real value from features: by neighbors, by a ridge probe, by order.

Such a value is an age, a pose or a dose. Shapes: Q queries, G gallery entries, d dimensions.
"""

import torch
from torch import Tensor

from .retrieval import _similarities, nearest, unit

NEIGHBORS = 10
PENALTIES = tuple(10.0**x for x in range(-2, 7))  # of the ridge probe, chosen by leaving one out


def regression_metrics(
    features: Tensor, values: Tensor, gallery: Tensor, gallery_values: Tensor, k: int = NEIGHBORS
) -> dict[str, float]:
    """Measure how well features tell a real value: kNN regression, ridge probe, order.

    ``kNN MAE``, ``kNN R2``, ``ridge MAE`` and ``ridge R2`` are the scores of ``knn_regression`` and
    ``ridge_regression`` by ``regression_scores``. ``Spearman`` is ``value_consistency``.

    Args:
        features: Features of the queries, (Q, d).
        values: Values of the queries, (Q,).
        gallery: Features of the gallery, (G, d).
        gallery_values: Values of the gallery, (G,).
        k: Number of neighbors.

    Returns:
        The metrics by name.

    Raises:
        ValueError: If the values are all equal, or a feature is not finite.

    Examples:
        >>> angle = torch.linspace(0, 1.5, 16)
        >>> features = torch.stack([angle.cos(), angle.sin()], dim=1)
        >>> metrics = regression_metrics(features[::2], angle[::2], features[1::2], angle[1::2], k=2)
        >>> print(f"{metrics['kNN MAE']:.3f} {metrics['ridge R2']:.3f} {metrics['Spearman']:.3f}")
        0.025 0.999 0.989
    """
    by_neighbors = regression_scores(knn_regression(features, gallery, gallery_values, k), values)
    by_probe = regression_scores(ridge_regression(features, gallery, gallery_values), values)
    scores = {
        f"{name} {metric}": x for name, of in (("kNN", by_neighbors), ("ridge", by_probe)) for metric, x in of.items()
    }
    return scores | {"Spearman": value_consistency(features, values, gallery, gallery_values)}


def regression_scores(predicted: Tensor, values: Tensor) -> dict[str, float]:
    """Compute mean absolute error and R2 of predictions.

    Args:
        predicted: Predictions, (Q,).
        values: True values, (Q,).

    Returns:
        ``MAE``, in units of the values, and ``R2``, at most 1, and 0 if the mean is predicted.

    Raises:
        ValueError: If the values are all equal: R2 is not defined.

    Examples:
        >>> regression_scores(torch.tensor([1.0, 2.0, 4.0, 4.0]), torch.tensor([0.0, 2.0, 4.0, 6.0]))
        {'MAE': 0.75, 'R2': 0.75}
    """
    predicted, values = predicted.detach().double(), values.detach().to(predicted.device).double()
    error, spread = predicted - values, values - values.mean()
    if not spread.any():
        raise ValueError("the values are all equal: R2 is not defined")
    r2 = 1 - error.square().sum() / spread.square().sum()
    return {"MAE": float(error.abs().mean()), "R2": float(r2)}


def knn_regression(features: Tensor, gallery: Tensor, gallery_values: Tensor, k: int = NEIGHBORS) -> Tensor:
    """Predict a value by the mean of the nearest entries of the gallery by cosine.

    Args:
        features: Features of the queries, (Q, d).
        gallery: Features of the gallery, (G, d).
        gallery_values: Values of the gallery, (G,).
        k: Number of neighbors; all, if the gallery has fewer.

    Returns:
        Predictions, (Q,), float64.

    Examples:
        >>> gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> knn_regression(torch.tensor([[1.0, 0.0]]), gallery, torch.tensor([20.0, 30.0, 70.0]), k=2)
        tensor([25.], dtype=torch.float64)
    """
    indices = nearest(features, gallery, min(k, len(gallery)))[1]
    return gallery_values.to(indices.device).double()[indices].mean(1)


def ridge_regression(features: Tensor, gallery: Tensor, gallery_values: Tensor) -> Tensor:
    """Predict a value by a ridge regression that is fitted to the gallery.

    Each dimension is scaled to mean 0 and standard deviation 1 in the gallery. The penalty is that of ``PENALTIES``
    with the least squared error of gallery entries, each left out once.

    Args:
        features: Features of the queries, (Q, d).
        gallery: Features of the gallery, (G, d).
        gallery_values: Values of the gallery, (G,).

    Returns:
        Predictions, (Q,), float64, on the CPU.

    Examples:
        >>> gallery = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> prediction = ridge_regression(torch.tensor([[4.0]]), gallery, torch.tensor([10.0, 20.0, 30.0, 40.0]))
        >>> print(f"{prediction.item():.1f}")
        49.9
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
    """Compute the mean of Spearman's rho between cosines and minus the distances of values.

    The rho of a query is over the gallery. Ties share their ranks. It is 0 where cosines, or distances, are all equal.

    Args:
        features: Features of the queries, (Q, d).
        values: Values of the queries, (Q,).
        gallery: Features of the gallery, (G, d).
        gallery_values: Values of the gallery, (G,).
        chunk: Queries at a time.

    Returns:
        The mean, in [-1, 1].

    Raises:
        ValueError: If a feature is not finite.

    Examples:
        >>> gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> value = value_consistency(gallery[:1], torch.tensor([20.0]), gallery, torch.tensor([20.0, 30.0, 70.0]))
        >>> print(f"{value:.3f}")
        1.000
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

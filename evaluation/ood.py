"""Out-of-distribution detection: a score per image, larger = more like the training data.

Equal features have equal scores within one call, however a product's kernel rounds: scores are of distinct rows.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .retrieval import distinct, unit


def ood_metrics(inlier_scores: Tensor | Sequence[float], outlier_scores: Tensor | Sequence[float]) -> dict[str, float]:
    """Measure how well scores tell in-distribution images from outliers.

    The in-distribution images are the positive class. Ties count as in scikit-learn. All values are in [0, 1].

    * ``AUROC``: area under the ROC curve.
    * ``FPR95``: share of outliers that pass the first threshold which keeps at least 95 % of the in-distribution
      images.
    * ``FPR95-out``: the same with outliers as the positive class, as OpenOOD and pytorch-ood count today: share of
      in-distribution images that are flagged where at least 95 % of the outliers are found.
    * ``AUPR-in``, also named ``AUPR``, and ``AUPR-out``: average precision with in-distribution images, or with
      outliers, as the positive class.

    Args:
        inlier_scores: Scores of in-distribution images, (n,), larger = more like the training data.
        outlier_scores: Scores of outliers, (m,).

    Returns:
        The metrics by name.

    Raises:
        ValueError: If there are no scores of either kind, or one is not finite.

    Examples:
        >>> metrics = ood_metrics(inlier_scores=[0.9, 0.8, 0.4], outlier_scores=[0.1, 0.5])
        >>> print(f"{metrics['AUROC']:.3f}")
        0.833
    """
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    inlier, outlier = (torch.as_tensor(s).detach().cpu().double() for s in (inlier_scores, outlier_scores))
    if len(inlier) == 0 or len(outlier) == 0:
        raise ValueError(f"AUROC needs ID and OOD scores; there are {len(inlier)} and {len(outlier)}")
    scores = torch.cat([inlier, outlier])
    if not scores.isfinite().all():
        raise ValueError(f"{int((~scores.isfinite()).sum())} of {len(scores)} scores are NaN or infinite")
    score, truth = scores.numpy(), torch.cat([torch.ones(len(inlier)), torch.zeros(len(outlier))]).numpy()
    fpr, tpr, _ = roc_curve(truth, score, drop_intermediate=False)
    flagged, found, _ = roc_curve(1 - truth, -score, drop_intermediate=False)
    aupr_in = float(average_precision_score(truth, score))
    return {
        "AUROC": float(roc_auc_score(truth, score)),
        "FPR95": float(fpr[(tpr >= 0.95).argmax()]),
        "FPR95-out": float(flagged[(found >= 0.95).argmax()]),
        "AUPR": aupr_in,
        "AUPR-in": aupr_in,
        "AUPR-out": float(average_precision_score(1 - truth, -score)),
    }


def auroc_by_class(inlier_scores: Tensor, outlier_scores: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Compute the AUROC of all in-distribution images against the outliers of each class.

    Args:
        inlier_scores: Scores of in-distribution images, (n,).
        outlier_scores: Scores of outliers, (m,).
        labels: Class of each outlier, (m,).
        classes: Number of classes C of outliers.

    Returns:
        AUROC of each class, (C,), in [0, 1], ties as a half; NaN for a class without outliers.

    Raises:
        ValueError: If there are no in-distribution images, or a score is not finite.

    Examples:
        >>> auroc_by_class(torch.tensor([0.9, 0.4]), torch.tensor([0.1, 0.5]), labels=torch.tensor([0, 1]), classes=2)
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    inlier, outlier = inlier_scores.double().sort().values, outlier_scores.double().contiguous()
    if len(inlier) == 0 or not inlier.isfinite().all() or not outlier.isfinite().all():
        raise ValueError("AUROC needs ID scores, and finite scores")
    below, upto = (torch.searchsorted(inlier, outlier, right=right) for right in (False, True))
    beaten = 1 - (below + upto).double() / (2 * len(inlier))  # the share of the inliers above each outlier
    labels = labels.long()
    total = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, beaten)
    return total / torch.bincount(labels, minlength=classes)


@torch.no_grad()
def gaussian_scores(
    train_features: Tensor, train_labels: Tensor, features: Tensor, ridge: float = 1e-6, chunk: int = 1024
) -> Tensor:
    """Score images by the largest log-density of the Gaussians of the classes.

    Each class has one Gaussian: maximum-likelihood mean and full covariance, with ``ridge`` added to its diagonal, as
    of scikit-learn's GaussianMixture(1). Features are not normalized here; the protocol L2-normalizes them first
    (Winkens et al. 2020; Hoffmann et al. 2022, sec. 4.3). All is float64, since the ridge makes condition numbers of
    1e6 usual. Memory: d^2 + 2 * chunk * d numbers on top of the input.

    Args:
        train_features: Features of the training images, (n, d).
        train_labels: Labels of the training images, (n,).
        features: Features of the images to score, (M, d).
        ridge: Variance added in each direction.
        chunk: Images at a time.

    Returns:
        Largest log-density of each image, (M,), natural logarithm, float64.

    Raises:
        ValueError: If there are no training features, widths differ, or a covariance is not positive definite.

    Examples:
        >>> train = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> gaussian_scores(train, torch.zeros(4), torch.tensor([[0.5, 0.5], [3.0, 3.0]]))
        tensor([ -0.4516, -25.4515], dtype=torch.float64)
    """
    _check_widths(train_features, features)
    features, which = distinct(features)
    best = features.new_full((len(features),), -math.inf, dtype=torch.float64)
    for c in train_labels.unique():
        log_density = _gaussian(train_features[train_labels == c].double(), ridge)
        for part, into in zip(features.split(chunk), best.split(chunk), strict=True):
            torch.maximum(into, log_density(part.double()), out=into)
    return best[which]


def _gaussian(x: Tensor, ridge: float) -> Callable[[Tensor], Tensor]:
    """Return the log-density of the Gaussian of x (n, d): a function from (m, d) to (m,)."""
    n, d = x.shape
    mean = x.mean(0)
    a = (x - mean) / math.sqrt(n)  # covariance = a^T a + ridge
    if n >= d:
        whiten, log_det = _inverse_factor(a.T @ a, ridge)
        center = whiten @ mean

        def squared_distance(y: Tensor) -> Tensor:
            return torch.addmm(center, y, whiten.T, beta=-1).square_().sum(1)
    else:
        # fewer images than dimensions: all but n directions have variance `ridge` (Woodbury's identity)
        factor, log_det = _inverse_factor(a @ a.T, ridge)
        log_det += (d - n) * math.log(ridge)
        inside = factor @ a

        def squared_distance(y: Tensor) -> Tensor:
            y = y - mean
            return (y.square().sum(1) - (y @ inside.T).square_().sum(1)) / ridge

    return lambda y: -0.5 * (squared_distance(y) + d * math.log(2 * math.pi) + log_det)


def _inverse_factor(gram: Tensor, ridge: float) -> tuple[Tensor, float]:
    """Return L^-1 with L L^T = gram + ridge, and the logarithm of its determinant."""
    gram.diagonal().add_(ridge)
    try:
        factor = torch.linalg.cholesky(gram)
    except torch.linalg.LinAlgError:
        message = "a covariance is not positive definite: features must be finite, of about unit length"
        raise ValueError(message) from None
    one = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve_triangular(factor, one, upper=False), 2 * float(factor.diagonal().log().sum())


@torch.no_grad()
def mahalanobis_scores(
    train_features: Tensor, train_labels: Tensor, features: Tensor, ridge: float = 1e-6, chunk: int = 1024
) -> Tensor:
    """Score images by minus the smallest squared Mahalanobis distance to a class mean.

    The classes share one covariance, that of the training features around their class means, with ``ridge`` added to
    its diagonal (Lee et al. 2018, sec. 2.1). It is computed in float64.

    Args:
        train_features: Features of the training images, (n, d).
        train_labels: Labels of the training images, (n,).
        features: Features of the images to score, (M, d).
        ridge: Variance added in each direction.
        chunk: Images at a time.

    Returns:
        Score of each image, (M,), float64.

    Raises:
        ValueError: If there are no training features, widths differ, or the covariance is not positive definite.

    Examples:
        >>> train, labels = torch.tensor([[-1.0], [1.0], [9.0], [11.0]]), torch.tensor([0, 0, 1, 1])
        >>> mahalanobis_scores(train, labels, torch.tensor([[0.5], [4.5]]), ridge=0.0)
        tensor([ -0.2500, -20.2500], dtype=torch.float64)
    """
    _check_widths(train_features, features)
    features, which = distinct(features)
    _, label = train_labels.unique(return_inverse=True)
    count, d = torch.bincount(label).double()[:, None], features.shape[1]
    means, gram = (features.new_zeros(rows, d, dtype=torch.float64) for rows in (len(count), d))
    for x, y in zip(train_features.split(chunk), label.split(chunk), strict=True):
        means.index_add_(0, y, x.double())
    means /= count
    for x, y in zip(train_features.split(chunk), label.split(chunk), strict=True):
        apart = x.double() - means[y]
        gram += apart.T @ apart / len(train_features)
    whiten, _ = _inverse_factor(gram, ridge)
    origin = means.mean(0)
    centers = (means - origin) @ whiten.T
    whitened = ((x.double() - origin) @ whiten.T for x in features.split(chunk))
    return torch.cat([-torch.cdist(x, centers).amin(1).square() for x in whitened])[which]


@torch.no_grad()
def relative_mahalanobis_scores(
    train_features: Tensor, train_labels: Tensor, features: Tensor, ridge: float = 1e-6, chunk: int = 1024
) -> Tensor:
    """Score images by the Mahalanobis distance to a class relative to that to all data.

    To the score of ``mahalanobis_scores`` is added the squared Mahalanobis distance to the mean of all training
    features, under the covariance around it. So what is far from everything alike counts less (Ren et al. 2021,
    "rmds").

    Args:
        train_features: Features of the training images, (n, d).
        train_labels: Labels of the training images, (n,).
        features: Features of the images to score, (M, d).
        ridge: Variance added in each direction.
        chunk: Images at a time.

    Returns:
        Score of each image, (M,), float64.

    Raises:
        ValueError: If there are no training features, widths differ, or a covariance is not positive definite.

    Examples:
        >>> train, labels = torch.tensor([[-1.0], [1.0], [9.0], [11.0]]), torch.tensor([0, 0, 1, 1])
        >>> relative_mahalanobis_scores(train, labels, torch.tensor([[0.5], [4.5]]), ridge=0.0)
        tensor([  0.5288, -20.2404], dtype=torch.float64)
    """
    one = torch.zeros_like(train_labels)
    background = mahalanobis_scores(train_features, one, features, ridge, chunk)
    return mahalanobis_scores(train_features, train_labels, features, ridge, chunk) - background


@torch.no_grad()
def knn_scores(train_features: Tensor, features: Tensor, k: int = 50, chunk: int = 512) -> Tensor:
    """Score images by minus the distance to the k-th nearest training image (Sun et al. 2022).

    The distance is Euclidean, of L2-normalized features. Sun et al. take k from 50 to 1000 by the size of the data set.
    Neighbors are found from products in float32, and in float64 for images nearer than ``NEAR``, so that members of a
    tight cluster are told apart. Memory: 8 * chunk * n bytes, or twice that plus 8 n d bytes if some images are so
    near.

    Args:
        train_features: Features of the training images, (n, d).
        features: Features of the images to score, (M, d).
        k: Which neighbor, from 1 to n.
        chunk: Images at a time.

    Returns:
        Score of each image, (M,), float32.

    Raises:
        ValueError: If there are fewer than k training features, widths differ, or a feature is not finite.

    Examples:
        >>> knn_scores(torch.eye(2), torch.tensor([[0.6, 0.8], [-1.0, 0.0]]), k=1)
        tensor([-0.6325, -1.4142])
    """
    _check_widths(train_features, features)
    if not 1 <= k <= len(train_features):
        raise ValueError(f"k = {k} does not lie between 1 and the {len(train_features)} training images")
    features, which = distinct(features)
    distance = _kth_distance(unit(train_features), unit(features), k, chunk)
    near = distance < NEAR
    if near.any():
        train, test = (F.normalize(x.double(), dim=1) for x in (train_features, features[near]))
        distance[near] = _kth_distance(train, test, k, chunk).float()
    return -distance[which]


NEAR = 0.1  # the square of a distance from products is right to about 5e-7 in float32: here to a part in 20,000


def _kth_distance(train: Tensor, test: Tensor, k: int, chunk: int) -> Tensor:
    """Compute the distance (M,) of each of test (M, d) to its k-th nearest of train (n, d)."""
    center = train.mean(0, dtype=torch.float64).to(train.dtype)  # a narrow cone keeps its digits; distances stay
    train, test = train - center, test - center
    squares = train.square().sum(1)
    distances = (torch.addmm(squares, x, train.T, alpha=-2) for x in test.split(chunk))
    places = [part.topk(k, dim=1, largest=False).indices[:, -1] for part in distances]
    # from the difference itself: from the products, an image that is in the training set would not be at distance 0
    parts = zip(test.split(chunk), places, strict=True)
    return torch.cat([(x - train[place]).norm(dim=1) for x, place in parts])


def msp_scores(logits: Tensor) -> Tensor:
    """Score images by the log of the largest softmax probability (Hendrycks and Gimpel 2017).

    It is computed from the sum over the other classes, so that probabilities near 1 keep their order.

    Args:
        logits: Logits, (M, C).

    Returns:
        Score of each image, (M,), float64.

    Examples:
        >>> msp_scores(torch.zeros(1, 4)).exp()
        tensor([0.2500], dtype=torch.float64)
    """
    logits, which = distinct(logits.double())
    top, index = logits.max(1, keepdim=True)
    return -(logits - top).exp().scatter(1, index, 0).sum(1).log1p()[which]


def energy_scores(logits: Tensor) -> Tensor:
    """Score images by minus the energy, at temperature 1 (Liu et al. 2020).

    Minus the energy is the log of the sum of exponentials of the logits.

    Args:
        logits: Logits, (M, C).

    Returns:
        Score of each image, (M,), float64.

    Examples:
        >>> print(f"{energy_scores(torch.tensor([[1.0, 2.0, 3.0]])).item():.3f}")
        3.408
    """
    logits, which = distinct(logits.double())
    return logits.logsumexp(1)[which]


def _check_widths(train_features: Tensor, features: Tensor) -> None:
    if len(train_features) == 0:
        raise ValueError("there are no training features")
    if train_features.shape[1] != features.shape[1]:
        raise ValueError(f"training features have width {train_features.shape[1]}, the others {features.shape[1]}")

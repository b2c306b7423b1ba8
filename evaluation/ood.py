"""Out-of-distribution detection: a score an image, larger = more like the training data.

Equal features have equal scores within one call, however a product's kernel rounds: scores are of distinct rows.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .retrieval import distinct, unit


def ood_metrics(inlier_scores: Tensor | Sequence[float], outlier_scores: Tensor | Sequence[float]) -> dict[str, float]:
    """How well scores ([n] and [m], larger = more inlier-like) tell inliers from outliers; inliers are positive.

    AUROC; FPR95: share of outliers that pass the first threshold which keeps at least 95 % of the inliers; FPR95-out:
    with outliers as the positive class, share of inliers that are flagged where at least 95 % of the outliers are
    found (as today's OpenOOD and pytorch-ood count);
    AUPR-in (also under the name AUPR) and AUPR-out: average precision with inliers, or with outliers, as the positive
    class. All in [0, 1], ties counted as in scikit-learn. Raises ValueError without inliers, without outliers, or for
    scores that are not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    inlier, outlier = (torch.as_tensor(s).detach().cpu().double() for s in (inlier_scores, outlier_scores))
    if len(inlier) == 0 or len(outlier) == 0:
        raise ValueError(f"AUROC needs inliers and outliers; there are {len(inlier)} and {len(outlier)}")
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
    """[classes] AUROC in [0, 1] of all inliers [n] against the outliers [m] of one class at a time, ties as a half.

    labels: [m] of the outliers; NaN of a class that has none. Raises ValueError without inliers, or for scores that are
    not finite.
    """
    inlier, outlier = inlier_scores.double().sort().values, outlier_scores.double().contiguous()
    if len(inlier) == 0 or not inlier.isfinite().all() or not outlier.isfinite().all():
        raise ValueError("AUROC needs inliers, and scores that are finite")
    below, upto = (torch.searchsorted(inlier, outlier, right=right) for right in (False, True))
    beaten = 1 - (below + upto).double() / (2 * len(inlier))  # the share of the inliers above each outlier
    labels = labels.long()
    total = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, beaten)
    return total / torch.bincount(labels, minlength=classes)


@torch.no_grad()
def gaussian_scores(
    train_features: Tensor, train_labels: Tensor, features: Tensor, ridge: float = 1e-6, chunk: int = 1024
) -> Tensor:
    """[M] largest class log-density of `features` [M, d], natural logarithm, float64.

    One full-covariance Gaussian per class of train_features [n, d], train_labels [n]: maximum-likelihood mean and
    covariance, `ridge` added to its diagonal (as scikit-learn's GaussianMixture(1) per class). Features are taken as
    given; the protocol normalises them first (Winkens et al. 2020; RINCE, sec. 4.3). Float64 throughout: the ridge
    makes conditions of 1e6 usual. Memory: d^2 and 2 * chunk * d numbers beside the input.
    Raises ValueError for no training features or other widths.
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
    """The log-density of the Gaussian of x [n, d]: a function [m, d] -> [m]."""
    n, d = x.shape
    mean = x.mean(0)
    a = (x - mean) / math.sqrt(n)  # covariance = a^T a + ridge
    if n >= d:
        whiten, log_det = _inverse_factor(a.T @ a, ridge)
        centre = whiten @ mean

        def squared_distance(y: Tensor) -> Tensor:
            return torch.addmm(centre, y, whiten.T, beta=-1).square_().sum(1)
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
    """L^-1 with L L^T = gram + ridge, and the logarithm of its determinant."""
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
    """[M] minus the smallest squared Mahalanobis distance to a class mean, one covariance shared by the classes.

    The covariance is that of the training features around their class means, `ridge` added to its diagonal, float64
    (Lee et al. 2018, sec. 2.1). Shapes and errors as gaussian_scores.
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
    centres = (means - origin) @ whiten.T
    whitened = ((x.double() - origin) @ whiten.T for x in features.split(chunk))
    return torch.cat([-torch.cdist(x, centres).amin(1).square() for x in whitened])[which]


@torch.no_grad()
def relative_mahalanobis_scores(
    train_features: Tensor, train_labels: Tensor, features: Tensor, ridge: float = 1e-6, chunk: int = 1024
) -> Tensor:
    """[M] as mahalanobis_scores, plus the squared Mahalanobis distance to the mean of all training features under the
    covariance around it: what is far from everything alike counts less (Ren et al. 2021, "rmds").
    """
    one = torch.zeros_like(train_labels)
    background = mahalanobis_scores(train_features, one, features, ridge, chunk)
    return mahalanobis_scores(train_features, train_labels, features, ridge, chunk) - background


@torch.no_grad()
def knn_scores(train_features: Tensor, features: Tensor, k: int = 50, chunk: int = 512) -> Tensor:
    """[M] minus the Euclidean distance of the L2-normalised features to their k-th nearest training feature, float32.

    Sun et al. (2022), who take k from 50 to 1000 by the size of the data set. Neighbours are found from products in
    float32; images nearer than NEAR, in float64, which tells a tight cluster's members apart. In chunks: 8 * chunk * n
    bytes, twice that and 8 n d bytes where some are so near. Raises ValueError if there are fewer than k training
    features, or for features that are no numbers.
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
    """[M] distance of each of test [M, d] to its k-th nearest of train [n, d], unit vectors."""
    centre = train.mean(0, dtype=torch.float64).to(train.dtype)  # a narrow cone keeps its digits; distances stay
    train, test = train - centre, test - centre
    squares = train.square().sum(1)
    distances = (torch.addmm(squares, x, train.T, alpha=-2) for x in test.split(chunk))
    places = [part.topk(k, dim=1, largest=False).indices[:, -1] for part in distances]
    # from the difference itself: from the products, an image that is in the training set would not be at distance 0
    parts = zip(test.split(chunk), places, strict=True)
    return torch.cat([(x - train[place]).norm(dim=1) for x, place in parts])


def msp_scores(logits: Tensor) -> Tensor:
    """[M] largest softmax probability of logits [M, C], as its logarithm (Hendrycks and Gimpel 2017).

    From the sum over the other classes, so that probabilities near 1 keep their order.
    """
    logits, which = distinct(logits.double())
    top, index = logits.max(1, keepdim=True)
    return -(logits - top).exp().scatter(1, index, 0).sum(1).log1p()[which]


def energy_scores(logits: Tensor) -> Tensor:
    """[M] minus the energy, log sum exp of logits [M, C] at temperature 1 (Liu et al. 2020)."""
    logits, which = distinct(logits.double())
    return logits.logsumexp(1)[which]


def _check_widths(train_features: Tensor, features: Tensor) -> None:
    if len(train_features) == 0:
        raise ValueError("there are no training features")
    if train_features.shape[1] != features.shape[1]:
        raise ValueError(f"training features have width {train_features.shape[1]}, the others {features.shape[1]}")

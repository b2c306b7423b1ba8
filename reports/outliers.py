"""Detection of outliers under each encoder: scores, threshold, and the outliers that pass for known classes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import evaluation
from engine.encoder import detectors, trained_encoder
from engine.encoder.trained_encoder import FrozenEncoder

HARDEST = 12  # outliers that are shown


@dataclass(frozen=True)
class Detector:
    """How outliers are detected: what --detector and --knn_k say."""

    name: str
    k: int


@dataclass(frozen=True)
class Features:
    """Features of training, test and outlier items, and the labels of the first."""

    train: Tensor
    labels: Tensor
    test: Tensor
    outliers: Tensor


@dataclass(frozen=True)
class Detection:
    """Scores [n] of test items and [m] of outliers, larger = more like the training data; the measures of
    `evaluation.ood_metrics` in percent; the threshold that 95 % of the test items pass; the outliers taken most for
    known ones, the class of the training item nearest to each, and the cosine.
    """

    inlier: np.ndarray
    outlier: np.ndarray
    metrics: dict[str, float]
    threshold: float
    hardest: list[int]
    taken_for: list[int]
    cosines: list[float]


def detect(net: FrozenEncoder, found: Features, detector: Detector, outputs: int = 0) -> Detection:
    """Detect the outliers among test items and outliers. outputs: of the classifier, for detectors on logits."""
    parts = [found.test, found.outliers]
    if detector.name in detectors.ON_LOGITS:
        parts, _ = trained_encoder.compute_logits(net, outputs, parts)
    device = torch.device("cpu")
    scores = detectors.compute_scores(detector.name, detector.k, device, parts, found.train, found.labels)
    metrics = detectors.compute_metrics(scores, "--dataset_outliers")
    inlier, outlier = (part.double().numpy() for part in scores)
    hardest = np.argsort(-outlier, kind="stable")[:HARDEST]
    cosines, nearest = evaluation.nearest(found.outliers[torch.from_numpy(hardest)], found.train, 1)
    return Detection(
        inlier,
        outlier,
        metrics,
        float(np.quantile(inlier, 0.05, method="lower")),
        hardest.tolist(),
        found.labels[nearest[:, 0]].tolist(),
        cosines[:, 0].tolist(),
    )

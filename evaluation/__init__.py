"""Scores of a frozen encoder: pure functions of features and labels.

Shapes: Q queries, G gallery entries, n images, d dimensions, C classes, L levels, R ranks.
"""

from .features import alignment, extract, knn_accuracy, neighbor_accuracy, uniformity
from .ood import (
    auroc_by_class,
    energy_scores,
    gaussian_scores,
    knn_scores,
    mahalanobis_scores,
    msp_scores,
    ood_metrics,
    relative_mahalanobis_scores,
)
from .ranks import Levels, Order, class_correlation, rank_metrics
from .regression import (
    NEIGHBORS,
    knn_regression,
    regression_metrics,
    regression_scores,
    ridge_regression,
    value_consistency,
)
from .retrieval import (
    Curve,
    distinct,
    look_up,
    nearest,
    not_alone,
    other_class_map,
    retrieval_curve,
    retrieval_metrics,
)

__all__ = [
    "NEIGHBORS",
    "Curve",
    "Levels",
    "Order",
    "alignment",
    "auroc_by_class",
    "class_correlation",
    "distinct",
    "energy_scores",
    "extract",
    "gaussian_scores",
    "knn_accuracy",
    "knn_regression",
    "knn_scores",
    "look_up",
    "mahalanobis_scores",
    "msp_scores",
    "nearest",
    "neighbor_accuracy",
    "not_alone",
    "ood_metrics",
    "other_class_map",
    "rank_metrics",
    "regression_metrics",
    "regression_scores",
    "relative_mahalanobis_scores",
    "retrieval_curve",
    "retrieval_metrics",
    "ridge_regression",
    "uniformity",
    "value_consistency",
]

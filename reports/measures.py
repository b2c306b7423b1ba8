"""What is measured of the test items under each encoder: neighbors, average precision, disagreement."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import evaluation
from evaluation.retrieval import Ranked


@dataclass(frozen=True)
class Measured:
    """Of n test items that look for one another, under one encoder: nearest [n, k] and their cosines; ap [n] and
    first [n] in percent, average precision and whether the nearest is of the own class, NaN of an item that is alone
    with its class.
    """

    nearest: np.ndarray
    cosines: np.ndarray
    ap: np.ndarray
    first: np.ndarray


class Nearest:
    """The nearest k of each query, for `evaluation.look_up`: a sort serves this and the average precision."""

    def __init__(self, labels: Tensor, k: int):
        self.labels = self.gallery_labels = labels
        self.indices = torch.empty(len(labels), k, dtype=torch.long)
        self.cosines = torch.empty(len(labels), k)

    def add(self, rows: Tensor, ranked: Ranked) -> None:
        """Add the chunk of these rows [n], as it is ranked."""
        first = ranked.order[:, : self.indices.shape[1]]
        self.indices[rows], self.cosines[rows] = first, ranked.similarity.gather(1, first)


def measure(features: Tensor, labels: Tensor, k: int) -> Measured:
    """Let test items [n, d] with labels [n] look for one another; k: neighbors to keep, at most n - 1."""
    found, scorers = Nearest(labels, min(k, len(labels) - 1)), []
    if evaluation.not_alone(labels).any():
        scorers.append(evaluation.Curve(labels, None, topk=(1,)))
    evaluation.look_up(features, None, [found, *scorers])
    ap = first = np.full(len(labels), np.nan)
    for curve in scorers:
        ap, first = (
            torch.where(curve.uses, 100 * of.double(), torch.nan).numpy() for of in (curve.ap, curve.hits_at[0])
        )
    return Measured(found.indices.numpy(), found.cosines.numpy(), ap, first)


def compare_neighbors(nearest: list[np.ndarray]) -> np.ndarray:
    """Return [n] how far encoders disagree on each item's neighbors [n, k]: 100 minus the mean percentage of common
    ones (Jaccard) over all pairs of encoders.
    """
    shares = []
    for one, other in itertools.combinations(nearest, 2):
        common = (one[:, :, None] == other[:, None]).sum((1, 2))
        shares.append(common / (2 * one.shape[1] - common))
    return 100 * (1 - np.mean(shares, axis=0))


def average_by_class(values: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return [C] the mean of values [n] over each class's items that have one; NaN of a class without."""
    there = ~np.isnan(values)
    total = np.bincount(labels[there], values[there], minlength=classes)
    with np.errstate(invalid="ignore"):
        return total / np.bincount(labels[there], minlength=classes)


def list_needed(shown: np.ndarray, nearest: list[np.ndarray]) -> list[int]:
    """List the items that a page shows: those on the maps, then their neighbors, the most frequent first."""
    found, counts = np.unique(np.concatenate([of[shown].ravel() for of in nearest]), return_counts=True)
    others = found[np.argsort(-counts, kind="stable")]
    return [*shown.tolist(), *others[~np.isin(others, shown)].tolist()]

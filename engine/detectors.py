"""The detectors of out-of-distribution images by name, over features or a classifier's outputs."""

import torch
import torch.nn.functional as F
from torch import Tensor

import evaluation
from util import InputError

DETECTORS = {
    "gaussian": "largest class log-density",
    "knn": "minus the distance to the k-th neighbour",
    "mahalanobis": "minus the squared Mahalanobis distance",
    "rmds": "minus the relative Mahalanobis distance",
    "msp": "log of the largest softmax probability",
    "energy": "minus the energy",
}
ON_LOGITS = ("msp", "energy")


def scores(detector: str, k: int, device, train: tuple | None, parts: list[Tensor]) -> list[Tensor]:
    """Scores of each part, a list of features [m, d] or logits [m, C]; larger = more like the training data.

    k: neighbour of "knn"; train: features [n, d] and labels [n], which those on logits do without. Raises InputError
    where they do not suffice.
    """
    if detector in ON_LOGITS:
        score = evaluation.msp_scores if detector == "msp" else evaluation.energy_scores
        return [score(x) for x in parts]
    gallery, labels = F.normalize(train[0], dim=1).to(device), train[1].to(device)
    joined = torch.cat(parts).to(device)  # so that the training set is looked at, or Gaussians are fitted, once
    try:
        if detector == "knn":
            found = evaluation.knn_scores(gallery, joined, k)
        elif detector == "gaussian":
            found = evaluation.gaussian_scores(gallery, labels, F.normalize(joined, dim=1))
        else:
            score = evaluation.relative_mahalanobis_scores if detector == "rmds" else evaluation.mahalanobis_scores
            found = score(gallery, labels, F.normalize(joined, dim=1))
        return list(found.cpu().split([len(x) for x in parts]))
    except ValueError as error:
        raise InputError(f"--detector {detector}: {error}") from None

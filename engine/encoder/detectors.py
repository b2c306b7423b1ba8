"""The detectors of out-of-distribution images by name, over features or a classifier's outputs."""

import torch
import torch.nn.functional as F
from torch import Tensor

import evaluation
from engine.processes import distributed
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
BY_CLASS = {
    "gaussian": evaluation.gaussian_scores,
    "mahalanobis": evaluation.mahalanobis_scores,
    "rmds": evaluation.relative_mahalanobis_scores,
}


def too_far(k: int, labels: Tensor) -> str:
    """A line where the k-th neighbor in a training set with labels [n] cannot be of an image's own class; else ""."""
    least, half = int(labels.unique(return_counts=True)[1].min()), len(labels) // 2
    if k <= min(least, half):
        return ""
    more = f"half of the {len(labels)} training images" if k > half else f"the {least} images of the smallest class"
    return f"--knn_k {k}: more than {more}: the k-th neighbor is then outside an image's own class; give a smaller k"


def scores(detector: str, k: int, device, train: tuple | None, parts: list[Tensor]) -> list[Tensor]:
    """Scores of each part, a list of features [m, d] or logits [m, C]; larger = more like the training data.

    k: neighbour of "knn"; train: features [n, d] and labels [n], which those on logits do without. Raises InputError
    where they do not suffice.
    """
    joined = torch.cat(parts)  # equal features of two parts have equal scores, and Gaussians are fitted once
    try:
        if detector == "msp":
            found = evaluation.msp_scores(joined)
        elif detector == "energy":
            found = evaluation.energy_scores(joined)
        else:
            gallery, labels, joined = F.normalize(train[0], dim=1).to(device), train[1].to(device), joined.to(device)
            if detector == "knn":
                distributed.say(too_far(k, labels))
                found = evaluation.knn_scores(gallery, joined, k)
            else:
                found = BY_CLASS[detector](gallery, labels, F.normalize(joined, dim=1))
        return list(found.cpu().split([len(x) for x in parts]))
    except ValueError as error:
        raise InputError(f"--detector {detector}: {error}") from None

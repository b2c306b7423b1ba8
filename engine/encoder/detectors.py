"""The detectors of out-of-distribution images by name, and how their results go with a ranking of the classes."""

import torch
import torch.nn.functional as F
from torch import Tensor

import evaluation
import util
from datasets import rankings
from engine.processes import distributed
from util import InputError

DETECTORS = {
    "gaussian": "largest class log-density",
    "knn": "minus the distance to the k-th neighbor",
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


def _check_neighbors(k: int, labels: Tensor) -> str:
    """Return a line where the k-th of training neighbors with labels [n] cannot be of an image's own class; else ""."""
    least, half = int(labels.unique(return_counts=True)[1].min()), len(labels) // 2
    if k <= min(least, half):
        return ""
    more = f"half of the {len(labels)} training images" if k > half else f"the {least} images of the smallest class"
    return f"--knn_k {k}: more than {more}: the k-th neighbor is then outside an image's own class; give a smaller k"


def compute_scores(
    detector: str, k: int, device, parts: list[Tensor], train: Tensor | None, labels: Tensor
) -> list[Tensor]:
    """Scores of each part, a list of features [m, d] or logits [m, C]; larger = more like the training data.

    k: neighbor of "knn"; train, labels: features [n, d], which those on logits do without, and
    labels [n] of the training set. Raises InputError where they do not suffice.
    """
    joined = torch.cat(parts)  # equal features of two parts have equal scores, and Gaussians are fitted once
    try:
        if detector == "msp":
            found = evaluation.msp_scores(joined)
        elif detector == "energy":
            found = evaluation.energy_scores(joined)
        else:
            gallery, labels, joined = F.normalize(train, dim=1).to(device), labels.to(device), joined.to(device)
            if detector == "knn":
                distributed.say(_check_neighbors(k, labels))
                found = evaluation.knn_scores(gallery, joined, k)
            else:
                found = BY_CLASS[detector](gallery, labels, F.normalize(joined, dim=1))
        return list(found.cpu().split([len(x) for x in parts]))
    except ValueError as error:
        raise InputError(f"--detector {detector}: {error}") from None


def compute_metrics(scores: list[Tensor], flag: str) -> dict[str, float]:
    """Return `evaluation.ood_metrics` of the scores of inliers and of outliers, in percent. Raises InputError, with
    `flag`, where they cannot be compared.
    """
    try:
        return {name: 100 * value for name, value in evaluation.ood_metrics(*scores).items()}
    except ValueError as error:
        raise InputError(f"{flag}: {error}") from None


# ---- nearness of outlier classes -------------------------------------------------------------------------------------


def compute_nearness(ranking: str, superclasses, classes: list[str], outliers: list[str]) -> Tensor:
    """[O] the largest similarity of each outlier class to a training class, on the ranking's own scale.

    ranking: what --ranking is in training, of both kinds of classes; superclasses: the data set's own. Raises
    InputError where it lacks one.
    """
    if ranking == "checkpoint":
        raise InputError("--ranking checkpoint: knows the classes that were trained on alone; give a ranking of both")
    both = list(dict.fromkeys([*classes, *util.match_spelling(outliers, classes)]))
    table = torch.as_tensor(rankings.find_similarities(ranking, both, superclasses))
    rows, columns = (rankings.find_rows(both, names, f"--ranking {ranking}") for names in (outliers, classes))
    return table[rows][:, columns].amax(1)


def correlate_nearness(near: Tensor, auroc: Tensor, classes: list[str]) -> dict:
    """Return what a record says of outlier classes by nearness: Spearman's rho over the classes with images, with its
    p-value (both None below three of them, or where all are equally near), and each class's own figures.

    near, auroc: [O] similarity, and AUROC in percent, NaN of a class without images.
    """
    from scipy.stats import spearmanr

    there = ~auroc.isnan()
    x, y = near[there].numpy(), auroc[there].numpy()
    known = len(x) > 2 and len(set(x)) > 1 and len(set(y)) > 1
    rho, p = map(float, spearmanr(x, y)) if known else (None, None)
    rows = zip(classes, near.tolist(), auroc.tolist(), strict=True)
    of = {name: {"similarity": s, "AUROC": a} for name, s, a in rows if a == a}
    return {"Spearman": rho, "p": p, "classes": of}

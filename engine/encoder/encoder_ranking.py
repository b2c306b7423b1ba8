"""Rankings that a trained network gives: what its features find similar, or its classifier takes for one another."""

import numpy as np
import torch

from datasets import ImageData
from datasets.rankings import make
from engine.batches.loading import Loading
from engine.encoder import trained_encoder
from engine.encoder.trained_encoder import FrozenEncoder
from util import InputError


def compare_means(net: FrozenEncoder, data: ImageData, loading: Loading, cache, center: bool) -> tuple[np.ndarray, str]:
    """Cosines [C, C] of the class means of unit features, by `center` about their mean; and what they are, in words."""
    _check_images(data)
    x = trained_encoder.extract_features(net, data, "ranking", loading, cache)
    means = make.average_features(x, data.labels, len(data.classes), center)
    about = f"class means of features; {_checkpoint(net)}" + (", about their mean" if center else "")
    return make.compute_cosines(means), about


def compare_errors(
    net: FrozenEncoder, data: ImageData, loading: Loading, cache, dataset: str
) -> tuple[np.ndarray, str]:
    """How often a classifier takes the classes [C, C] of these images for one another; and what that is, in words.

    Of each image, the probability of every class counts: single errors of few images would say little. Raises
    InputError for a contrastive model, or where the images' classes are not those it was trained on.
    """
    flag = f"--ckpt {net.record['path']}"
    if net.record["classes"] and net.record["classes"] != data.classes:
        raise InputError(f"{flag}: was trained on other classes than these images have; see --exclude_classes")
    _check_images(data)
    outputs = trained_encoder.count_outputs(net, dataset, data.classes)
    x, y = trained_encoder.extract_features(net, data, "queries", loading, cache), data.labels
    ((logits,), _) = trained_encoder.compute_logits(net, outputs, [x])
    probability = logits[:, : len(data.classes)].softmax(1)
    sums = torch.zeros(len(data.classes), len(data.classes), dtype=torch.float64).index_add_(0, y, probability)
    try:
        table = make.compute_confusions(sums.numpy())
    except ValueError as error:
        raise InputError(f"{flag}: {error}") from None
    right = 100 * float((logits.argmax(1) == y).double().mean())
    return table, f"confusions of a classifier on {len(y)} images, {right:.1f} % of them correct; {_checkpoint(net)}"


def _check_images(data: ImageData) -> None:
    """Raise InputError, naming it, where a class has no image: its similarity would be no number."""
    counts = torch.bincount(data.labels, minlength=len(data.classes))
    if not counts.all():
        name = data.classes[int(counts.argmin())]
        raise InputError(f"--data_folder: the class {name} has no image; leave it out with --exclude_classes")


def _checkpoint(net: FrozenEncoder) -> str:
    if net.record["model"] is None:
        return f"rows of {net.record['path']}"
    return f"checkpoint {net.record['path']}, sha256 {net.record['sha256'][:16]}"

"""Features of an encoder, and how they lie on the sphere."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .retrieval import nearest, not_alone

HELD = 2**24  # numbers of features that wait on the device to be copied at once: 64 MB


@torch.no_grad()
def extract(
    encoder: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Features [n, d] (float32, before the head, not normalised) and labels [n] of batches, on the CPU.

    The host waits for the device once in many batches, when HELD numbers lie there.
    """
    encoder.eval()
    features, labels, held = [], [], []
    for images, y in batches:
        held.append(encoder(images.to(device, non_blocking=True)).float())
        labels.append(y)
        if sum(x.numel() for x in held) >= HELD:
            features.append(torch.cat(held).cpu())
            held.clear()
    if held:
        features.append(torch.cat(held).cpu())
    return torch.cat(features), torch.cat(labels)


def alignment(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance of unit vectors x, y [N, D], two views of an image a row (Wang and Isola 2020, alpha 2)."""
    return (x - y).square().sum(1).mean()


def uniformity(x: Tensor) -> Tensor:
    """Log of the mean Gaussian potential exp(-2 d^2) over the pairs of unit vectors [N, D], N > 1 (t = 2)."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.pdist(x).square().mul(-2).exp().mean().log()


def knn_accuracy(
    features: Tensor,
    labels: Tensor,
    gallery: Tensor | None,
    gallery_labels: Tensor | None,
    k: int = 200,
    tau: float = 0.07,
) -> float:
    """Share of the queries [Q, d] whose class wins the vote of their k nearest of the gallery [G, d] by cosine.

    A vote weighs exp(cosine / tau) (Wu et al. 2018, sec. 3.4). k is at most G. Labels count from 0. gallery and its
    labels None: the queries look for one another, and none finds itself; those alone with their label are none.
    """
    labels, own = labels.long(), gallery is None or gallery_labels is None
    gallery_labels = labels if own or gallery_labels is None else gallery_labels.long()
    if not len(features) or len(gallery_labels) <= own:
        raise ValueError("kNN accuracy needs queries and a gallery")
    asks = not_alone(labels) if own else torch.ones_like(labels, dtype=torch.bool)
    if not asks.any():
        raise ValueError("every query is alone with its label: there is nothing to find")
    cosines, indices = nearest(features, None if own else gallery, min(k, len(gallery_labels) - own))
    classes, right = int(gallery_labels.max()) + 1, 0
    for cosine, index, y, ask in zip(*(x.split(256) for x in (cosines, indices, labels, asks)), strict=True):
        votes = torch.zeros(len(y), classes, dtype=torch.float64, device=y.device)
        votes.scatter_add_(1, gallery_labels[index], ((cosine.double() - 1) / tau).exp())
        right += int(((votes.argmax(1) == y) & ask).sum())
    return right / int(asks.sum())


def neighbour_accuracy(features: Tensor, groups: Tensor) -> list[float | None]:
    """At each level of groups [n, L], numbered from 0: the share of the images whose nearest other one, by cosine of
    features [n, d], is of their group; of those that are not alone in it, None where all are.
    """
    groups = groups.long()
    hit = groups[nearest(features, None, 1)[1][:, 0]] == groups
    parts = [right[not_alone(group)] for group, right in zip(groups.T, hit.T, strict=True)]
    return [float(part.double().mean()) if len(part) else None for part in parts]

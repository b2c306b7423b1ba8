"""Features of an encoder, and how they are distributed on the sphere."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .retrieval import nearest, not_alone

HELD = 2**24  # numbers of features that wait on the device to be copied at once: 64 MB


@torch.no_grad()
def extract(
    encoder: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Extract the features of batches, before the head and not normalized.

    The host waits for the device once in many batches, when ``HELD`` numbers are on it.

    Args:
        encoder: Encoder, (N, 3, H, W) to (N, d), which is set to evaluation mode.
        batches: Images, (N, 3, H, W), and labels, (N,), of each batch.
        device: Device of the encoder.

    Returns:
        Features, (n, d), float32, and labels, (n,), on the CPU.

    Examples:
        >>> batches = [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])), (torch.ones(1, 3, 8, 8), torch.tensor([2]))]
        >>> features, labels = extract(nn.Flatten(), batches, "cpu")
        >>> features.shape, labels
        (torch.Size([3, 192]), tensor([0, 1, 2]))
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
    """Compute the mean squared distance of two views (Wang and Isola 2020, alpha 2).

    Args:
        x: L2-normalized embeddings, (N, D).
        y: Those of another view of each image, (N, D).

    Returns:
        The mean, a scalar.

    Examples:
        >>> alignment(torch.eye(2), -torch.eye(2))
        tensor(4.)
    """
    return (x - y).square().sum(1).mean()


def uniformity(x: Tensor) -> Tensor:
    """Compute the log of the mean Gaussian potential of all pairs (Wang and Isola 2020, t 2).

    The potential of a pair is exp(-2 d^2), d its distance.

    Args:
        x: L2-normalized embeddings, (N, D), N > 1.

    Returns:
        The logarithm, a scalar.

    Examples:
        >>> print(f"{uniformity(torch.eye(3)):.3f}")
        -4.000
    """
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
    """Compute the share of queries whose class wins the vote of their nearest neighbors.

    Neighbors are nearest by cosine. A vote weighs exp(cosine / tau) (Wu et al. 2018, sec. 3.4).

    Args:
        features: Features of the queries, (Q, d).
        labels: Labels of the queries, (Q,), from 0.
        gallery: Features of the gallery, (G, d). None lets the queries search one another; none finds itself, and a
            query that is alone with its label does not count.
        gallery_labels: Labels of the gallery, (G,), from 0; None with ``gallery``.
        k: Number of neighbors; all, if the gallery has fewer.
        tau: Temperature of the votes.

    Returns:
        The accuracy, in [0, 1].

    Raises:
        ValueError: If there is no query or no gallery, or each query is alone with its label.

    Examples:
        >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> knn_accuracy(features, torch.tensor([0, 0, 1, 1]), None, None, k=1)
        1.0
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


def neighbor_accuracy(features: Tensor, groups: Tensor) -> list[float | None]:
    """Compute at each level the share of images whose nearest other one is of their group.

    Args:
        features: Features, (n, d).
        groups: Group of each image at each level, (n, L), from 0.

    Returns:
        The share at each level, L of them, of the images that are not alone in their group; None where all are.

    Examples:
        >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> neighbor_accuracy(features, groups=torch.tensor([[0, 0], [1, 0], [2, 1], [3, 1]]))
        [None, 1.0]
    """
    groups = groups.long()
    hit = groups[nearest(features, None, 1)[1][:, 0]] == groups
    parts = [right[not_alone(group)] for group, right in zip(groups.T, hit.T, strict=True)]
    return [float(part.double().mean()) if len(part) else None for part in parts]

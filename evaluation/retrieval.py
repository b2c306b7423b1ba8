"""Retrieval by cosine: does a query find its class first?"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def retrieval_metrics(
    features: Tensor,
    labels: Tensor,
    gallery: Tensor | None,
    gallery_labels: Tensor | None,
    topk: tuple[int, ...] = (1, 5, 10, 20),
    chunk: int = 64,
) -> dict[str, float]:
    """Retrieval by cosine: for each query [Q, d] the gallery [G, d] in falling order of similarity.

    R@k: share of queries with a hit among the first k. mAP: mean over the queries of the average precision, entries
    of equal similarity counted as one step, as in scikit-learn. AP: area under the mean precision-recall curve over
    all cut-offs 1 to G (trapezoids; it starts at recall 0 with the first precision). AP-published: the same area as the
    published code has it, by right-hand rectangles from the second cut-off on. All in [0, 1]; exact, in chunks of
    queries: about 60 * chunk * G bytes. Similarities are float32; equal ones stand in the order of the gallery.
    gallery and gallery_labels None: the queries look for one another, none finds itself, and those that are alone with
    their label are no queries.
    Raises ValueError for empty input, for features that are no numbers, or where a query's label is not in the gallery.
    """
    return retrieval_curve(features, labels, gallery, gallery_labels, topk, chunk)[0]


@torch.no_grad()
def retrieval_curve(
    features: Tensor,
    labels: Tensor,
    gallery: Tensor | None,
    gallery_labels: Tensor | None,
    topk: tuple[int, ...] = (1, 5, 10, 20),
    chunk: int = 64,
) -> tuple[dict[str, float], Tensor, Tensor]:
    """As retrieval_metrics, with the curve: metrics, and the queries' mean precision [G] and recall [G] a cut-off, of
    which there is one less without a gallery.
    """
    own = None
    if gallery is None:
        gallery, gallery_labels = features, labels
        own = (torch.bincount(labels)[labels] > 1).nonzero()[:, 0]
        features, labels = features[own], labels[own]
    absent = labels[~torch.isin(labels, gallery_labels)]
    if len(absent):
        raise ValueError(f"label {int(absent[0])} of a query is not in the gallery: it has nothing to find")
    size = len(gallery) - (own is not None)
    place = torch.arange(1, size + 1, device=gallery.device, dtype=torch.float32)
    hits_at = torch.zeros(len(topk), device=gallery.device)
    precision_sum = torch.zeros(size, dtype=torch.float64, device=gallery.device)
    recall_sum = torch.zeros_like(precision_sum)
    ap_sum = torch.zeros((), dtype=torch.float64, device=gallery.device)
    for rows, similarity, order in by_similarity(features, gallery, chunk, own):
        hit = gallery_labels[order] == labels[rows, None]  # [chunk, G]
        found = hit.cumsum(1, dtype=torch.int32)
        relevant = found[:, -1:]
        for i, k in enumerate(topk):
            hits_at[i] += (found[:, min(k, size) - 1] > 0).sum()
        precision_sum += (found / place).sum(0)
        recall_sum += (found / relevant).sum(0)
        ap_sum += (precision_at_hits(hit, found, ends_of_ties(similarity)) / relevant[:, 0]).double().sum()
    n = len(features)
    precision, recall = precision_sum / n, recall_sum / n
    first = torch.zeros(1, dtype=recall.dtype, device=recall.device)
    published = ((recall[1:] - recall[:-1]) * precision[1:]).sum()
    area = torch.trapezoid(torch.cat([precision[:1], precision]), torch.cat([first, recall]))
    scores = {f"R@{k}": float(h) / n for k, h in zip(topk, hits_at, strict=True)}
    return {**scores, "AP": float(area), "AP-published": float(published), "mAP": float(ap_sum / n)}, precision, recall


def by_similarity(
    features: Tensor, gallery: Tensor, chunk: int, own: Tensor | None = None
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """For `chunk` queries [Q, d] at a time: their rows, and of the gallery [G, d] the cosines [chunk, G], falling, and
    the order [chunk, G]; without the query itself, so of G - 1, where `own` [Q] says its place in the gallery.

    Raises ValueError for empty input, or features that are no numbers.
    """
    if len(features) == 0 or len(gallery) - (own is not None) < 1:
        raise ValueError("retrieval needs at least one query and one gallery image")
    if not features.isfinite().all() or not gallery.isfinite().all():
        raise ValueError("some features are NaN or infinite")
    q, g = F.normalize(features.float(), dim=1), F.normalize(gallery.float(), dim=1)
    for begin in range(0, len(q), chunk):
        rows = slice(begin, begin + chunk)
        similarity = q[rows] @ g.T
        if own is not None:
            similarity.scatter_(1, own[rows, None], -torch.inf)
        similarity, order = similarity.sort(dim=1, descending=True, stable=True)
        if own is not None:
            similarity, order = similarity[:, :-1], order[:, :-1]
        yield rows, similarity, order


def ends_of_ties(similarity: Tensor) -> Tensor:
    """[Q, G] of falling similarities: the place, from 0, at which the group of equal ones around each entry ends."""
    ends, size = torch.ones_like(similarity, dtype=torch.bool), similarity.shape[1]
    ends[:, :-1] = similarity[:, 1:] != similarity[:, :-1]
    last = torch.where(ends, torch.arange(size, device=similarity.device, dtype=torch.int32), size)
    return last.flip(1).cummin(1).values.flip(1).long()


def precision_at_hits(hit: Tensor, found: Tensor, ends: Tensor) -> Tensor:
    """[Q] the sum over the hits [Q, G] of the precision at the end of their group of equal similarity.

    found: [Q, G] hits so far; ends: as `ends_of_ties` has them.
    """
    place = torch.arange(1, hit.shape[1] + 1, device=hit.device, dtype=torch.float32)
    return ((found / place).gather(1, ends) * hit).sum(1)

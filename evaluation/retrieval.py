"""Retrieval by cosine: does a query find its class first?"""

import torch
import torch.nn.functional as F
from torch import Tensor


def retrieval_metrics(
    features: Tensor,
    labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    topk: tuple[int, ...] = (1, 5, 10, 20),
    chunk: int = 64,
) -> dict[str, float]:
    """Retrieval by cosine: for each query [Q, d] the gallery [G, d] in falling order of similarity.

    R@k: share of queries with a hit among the first k. mAP: mean over the queries of the average precision, entries
    of equal similarity counted as one step, as in scikit-learn. AP: area under the mean precision-recall curve over
    all cut-offs 1 to G (trapezoids; it starts at recall 0 with the first precision). AP-published: the same area as the
    published code has it, by right-hand rectangles from the second cut-off on. All in [0, 1]; exact, in chunks of
    queries: about 60 * chunk * G bytes. Similarities are float32; equal ones stand in the order of the gallery.
    Raises ValueError for empty input, for features that are no numbers, or where a query's label is not in the gallery.
    """
    return retrieval_curve(features, labels, gallery, gallery_labels, topk, chunk)[0]


@torch.no_grad()
def retrieval_curve(
    features: Tensor,
    labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    topk: tuple[int, ...] = (1, 5, 10, 20),
    chunk: int = 64,
) -> tuple[dict[str, float], Tensor, Tensor]:
    """As retrieval_metrics, with the curve: metrics, and the queries' mean precision [G] and recall [G] a cut-off."""
    if len(features) == 0 or len(gallery) == 0:
        raise ValueError("retrieval needs at least one query and one gallery image")
    absent = labels[~torch.isin(labels, gallery_labels)]
    if len(absent):
        raise ValueError(f"label {int(absent[0])} of a query is not in the gallery: it has nothing to find")
    if not features.isfinite().all() or not gallery.isfinite().all():
        raise ValueError("some features are NaN or infinite")
    q, g = F.normalize(features.float(), dim=1), F.normalize(gallery.float(), dim=1)
    size = len(g)
    place = torch.arange(1, size + 1, device=g.device, dtype=torch.float32)
    hits_at = torch.zeros(len(topk), device=g.device)
    precision_sum = torch.zeros(size, dtype=torch.float64, device=g.device)
    recall_sum = torch.zeros_like(precision_sum)
    ap_sum = torch.zeros((), dtype=torch.float64, device=g.device)
    for q_part, y in zip(q.split(chunk), labels.split(chunk), strict=True):
        similarity, order = (q_part @ g.T).sort(dim=1, descending=True, stable=True)
        hit = gallery_labels[order] == y[:, None]  # [chunk, G]
        found = hit.cumsum(1, dtype=torch.int32)
        relevant = found[:, -1:]
        for i, k in enumerate(topk):
            hits_at[i] += (found[:, min(k, size) - 1] > 0).sum()
        precision_sum += (found / place).sum(0)
        recall_sum += (found / relevant).sum(0)
        ap_sum += _average_precision(similarity, hit, found, place).double().sum()
    n = len(q)
    precision, recall = precision_sum / n, recall_sum / n
    first = torch.zeros(1, dtype=recall.dtype, device=recall.device)
    published = ((recall[1:] - recall[:-1]) * precision[1:]).sum()
    area = torch.trapezoid(torch.cat([precision[:1], precision]), torch.cat([first, recall]))
    scores = {f"R@{k}": float(h) / n for k, h in zip(topk, hits_at, strict=True)}
    return {**scores, "AP": float(area), "AP-published": float(published), "mAP": float(ap_sum / n)}, precision, recall


def _average_precision(similarity: Tensor, hit: Tensor, found: Tensor, place: Tensor) -> Tensor:
    """[Q] mean over the hits of the precision at the end of their group of equal similarity."""
    ends = torch.ones_like(hit)
    ends[:, :-1] = similarity[:, 1:] != similarity[:, :-1]
    precision = found / place
    # a hit inside a tied group counts with the precision at its end: the next end to the right
    last = torch.where(ends, torch.arange(hit.shape[1], device=hit.device, dtype=torch.int32), hit.shape[1])
    group_end = last.flip(1).cummin(1).values.flip(1)
    return (precision.gather(1, group_end.long()) * hit).sum(1) / found[:, -1]

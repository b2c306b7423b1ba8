"""Retrieval by cosine: does a query find its class first?"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def retrieval_metrics(
    features: Tensor,
    labels: Tensor,
    gallery: Tensor | None,
    gallery_labels: Tensor | None,
    topk: tuple[int, ...] = (1, 5, 10, 20),
    chunk: int | None = None,
) -> dict[str, float]:
    """Retrieval by cosine: for each query [Q, d] the gallery [G, d] in falling order of similarity.

    R@k: share of queries with a hit among the first k. mAP: mean over the queries of the average precision, entries
    of equal similarity counted as one step, as in scikit-learn. AP: area under the mean precision-recall curve over
    all cut-offs 1 to G (trapezoids; it starts at recall 0 with the first precision). AP-published: the same area as the
    published code has it, by right-hand rectangles from the second cut-off on. R-precision: share of hits among a
    query's first R, the number of its entries in the gallery; MAP@R: the sum over the hits among these of the precision
    at each, divided by R (Musgrave et al. 2020). All in [0, 1]; exact, in chunks of queries: about 60 * chunk * G
    bytes. Similarities are float32; equal ones stand in the order of the gallery.
    gallery and gallery_labels None: the queries look for one another, none finds itself, and those that are alone with
    their label are no queries.
    Raises ValueError for empty input, for features that are no numbers, or where a query's label is not in the gallery.
    """
    return retrieval_curve(features, labels, gallery, gallery_labels, topk, chunk)[0]


def retrieval_curve(
    features: Tensor,
    labels: Tensor,
    gallery: Tensor | None,
    gallery_labels: Tensor | None,
    topk: tuple[int, ...] = (1, 5, 10, 20),
    chunk: int | None = None,
) -> tuple[dict[str, float], Tensor, Tensor]:
    """As retrieval_metrics, with the curve: metrics, and the queries' mean precision [G] and recall [G] a cut-off, of
    which there is one less without a gallery.
    """
    curve = Curve(labels, gallery_labels, topk)
    look_up(features, gallery, [curve], chunk)
    return curve.result()


class Curve:
    """What retrieval_curve sums over chunks of queries, for `look_up`.

    labels [Q], gallery_labels [G] and topk as there. Raises ValueError where a query's label is not in the gallery.
    """

    def __init__(self, labels: Tensor, gallery_labels: Tensor | None, topk: tuple[int, ...] = (1, 5, 10, 20)):
        self.labels, self.topk, self.uses = labels, topk, torch.ones_like(labels, dtype=torch.bool)
        self.gallery_labels = labels if gallery_labels is None else gallery_labels
        if gallery_labels is None:
            self.uses = not_alone(labels)
        if len(labels) and not self.uses.any():
            raise ValueError("every query is alone with its label: there is nothing to find")
        absent = labels[~torch.isin(labels, self.gallery_labels)]
        if len(absent):
            raise ValueError(f"label {int(absent[0])} of a query is not in the gallery: it has nothing to find")
        size, device = len(self.gallery_labels) - (gallery_labels is None), labels.device
        self.most = int(self.gallery_labels.unique(return_counts=True)[1].max()) if len(self.gallery_labels) else 0
        self.place = torch.arange(1, size + 1, device=device, dtype=torch.float32)
        # of each query: whether it has a hit among the first k, its average precision, R-precision and MAP@R
        self.hits_at = torch.zeros(len(topk), len(labels), dtype=torch.bool, device=device)
        self.ap, self.r_precision, self.map_at_r = torch.zeros(3, len(labels), dtype=torch.float64, device=device)
        self.precision = torch.zeros(size, dtype=torch.float64, device=device)
        self.recall = torch.zeros_like(self.precision)

    def add(self, rows: slice, order: Tensor, ends: Tensor) -> None:
        """The chunk of these rows: the gallery's order [chunk, G] and, as `ends_of_ties` has them, its ties."""
        uses = self.uses[rows]
        asked = torch.arange(len(self.labels), device=uses.device)[rows]
        if not uses.all():
            order, ends, asked = order[uses], ends[uses], asked[uses]
        hit = self.gallery_labels[order] == self.labels[asked, None]  # [chunk, G]
        found = hit.cumsum(1, dtype=torch.int32)
        relevant = found[:, -1:]
        for i, k in enumerate(self.topk):
            self.hits_at[i, asked] = found[:, min(k, found.shape[1]) - 1] > 0
        precision = found / self.place
        self.precision += precision.sum(0)
        self.recall += (found / relevant).sum(0)
        # a hit among equal similarities counts with the precision at their end
        self.ap[asked] = ((precision.gather(1, ends) * hit).sum(1) / relevant[:, 0]).double()
        # beyond the largest R nothing is asked
        hit, precision, place = hit[:, : self.most], precision[:, : self.most], self.place[: self.most]
        self.r_precision[asked] = precision.gather(1, relevant.long() - 1)[:, 0].double()
        self.map_at_r[asked] = ((precision * (hit & (place <= relevant))).sum(1) / relevant[:, 0]).double()

    def result(self) -> tuple[dict[str, float], Tensor, Tensor]:
        """As retrieval_curve."""
        n = int(self.uses.sum())
        precision, recall = self.precision / n, self.recall / n
        first = torch.zeros(1, dtype=recall.dtype, device=recall.device)
        published = ((recall[1:] - recall[:-1]) * precision[1:]).sum()
        area = torch.trapezoid(torch.cat([precision[:1], precision]), torch.cat([first, recall]))
        hits = self.hits_at[:, self.uses].double().mean(1).tolist()
        scores = {f"R@{k}": h for k, h in zip(self.topk, hits, strict=True)}
        scores |= {"AP": float(area), "AP-published": float(published), "mAP": float(self.ap.sum() / n)}
        scores |= {"R-precision": float(self.r_precision.sum() / n), "MAP@R": float(self.map_at_r.sum() / n)}
        return scores, precision, recall

    def by_class(self, classes: Tensor, count: int) -> dict[str, Tensor]:
        """R@k for each k, and mAP, of the queries of one class at a time: [count], NaN of a class without queries.

        classes: [Q] the class of each query, which may be finer than its label.
        """
        of = classes[self.uses]
        number = torch.bincount(of, minlength=count)
        figures = {f"R@{k}": hits for k, hits in zip(self.topk, self.hits_at, strict=True)} | {"mAP": self.ap}
        none = torch.zeros(count, dtype=torch.float64, device=of.device)
        return {name: none.index_add(0, of, x[self.uses].double()) / number for name, x in figures.items()}


@torch.no_grad()
def look_up(features: Tensor, gallery: Tensor | None, scorers: Sequence, chunk: int | None = None) -> None:
    """Let queries [Q, d] look in a gallery [G, d], or, where it is None, for one another: each of the scorers, such as
    Curve and Order, gets every chunk of them, so that several sort the gallery once. chunk None: 64, fewer where the
    gallery has more than 131,072 entries, so that it takes a GB or so.

    Raises ValueError for empty input, or features that are no numbers.
    """
    own, gallery = gallery is None, features if gallery is None else gallery
    if len(features) == 0 or len(gallery) - own < 1:
        raise ValueError("retrieval needs at least one query and one gallery image")
    if not features.isfinite().all() or not gallery.isfinite().all():
        raise ValueError("some features are NaN or infinite")
    q, g = F.normalize(features.float(), dim=1), F.normalize(gallery.float(), dim=1)
    chunk = chunk or max(1, min(64, 2**23 // len(g)))
    for begin in range(0, len(q), chunk):
        rows = slice(begin, begin + chunk)
        similarity = q[rows] @ g.T
        if own:
            similarity.diagonal(begin).fill_(-torch.inf)  # the queries themselves, which come last and go
        similarity, order = similarity.sort(dim=1, descending=True, stable=True)
        if own:
            similarity, order = similarity[:, :-1], order[:, :-1]
        ends = ends_of_ties(similarity)
        for scorer in scorers:
            scorer.add(rows, order, ends)


def not_alone(labels: Tensor) -> Tensor:
    """[n] whether another of these labels, which count from 0, is the same."""
    return torch.bincount(labels)[labels] > 1


def ends_of_ties(similarity: Tensor) -> Tensor:
    """[Q, G] of falling similarities: the place, from 0, at which the group of equal ones around each entry ends."""
    ends, size = torch.ones_like(similarity, dtype=torch.bool), similarity.shape[1]
    ends[:, :-1] = similarity[:, 1:] != similarity[:, :-1]
    last = torch.where(ends, torch.arange(size, device=similarity.device, dtype=torch.int32), size)
    return last.flip(1).cummin(1).values.flip(1).long()

"""Retrieval by cosine: does a query find its class first?"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

LOW = 2**32 - 1  # of a key, the bits of the index
BEYOND = 2**63 - 1  # the key of no entry
OTHER_CLASSES = "mAP-other-classes"


def retrieval_metrics(
    features: Tensor,
    labels: Tensor,
    gallery: Tensor | None,
    gallery_labels: Tensor | None,
    topk: Sequence[int] = (1, 5, 10, 20),
    chunk: int | None = None,
) -> dict[str, float]:
    """Retrieval by cosine: for each query [Q, d] the gallery [G, d] in falling order of similarity.

    R@k: share of queries with a hit among the first k. mAP: mean over the queries of the average precision, entries
    of equal similarity counted as one step, as in scikit-learn. AP: area under the mean precision-recall curve over
    all cut-offs 1 to G (trapezoids; it starts at recall 0 with the first precision). AP-published: the same area as the
    published code has it, by right-hand rectangles from the second cut-off on. R-precision: share of hits among a
    query's first R, the number of its entries in the gallery; MAP@R: the sum over the hits among these of the precision
    at each, divided by R (Musgrave et al. 2020). All in [0, 1]; exact, in chunks of queries: about (30 G + 100 R) *
    chunk bytes. Similarities are float32; equal ones stand in the order of the gallery.
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
    topk: Sequence[int] = (1, 5, 10, 20),
    chunk: int | None = None,
) -> tuple[dict[str, float], Tensor, Tensor]:
    """As retrieval_metrics, with the curve: metrics, and the queries' mean precision [G] and recall [G] a cut-off, of
    which there is one less without a gallery.
    """
    curve = Curve(labels, gallery_labels, topk)
    look_up(features, gallery, [curve], chunk)
    return curve.result()


def other_class_map(
    features: Tensor,
    labels: Tensor,
    gallery: Tensor | None,
    gallery_labels: Tensor | None,
    groups: Tensor,
    chunk: int | None = None,
) -> float:
    """mAP in [0, 1] of the search for other classes of the query's group, with its own class left out of the gallery.

    So a gain at the own class, which mAP over groups has too, does not count again. groups: [C] the group, a superclass
    say, of each class; the others, ties too, as in retrieval_metrics. A query whose group has no other class in the
    gallery is no query. By chance it is about the share of these entries among those of all other classes.
    Raises ValueError as retrieval_metrics does, and where there is no query.
    """
    labels, groups = labels.long(), groups.to(labels.device)
    known = labels if gallery_labels is None else gallery_labels.long()
    within = None if gallery_labels is None else groups[known]
    curve = Curve(groups[labels], within, classes=labels, gallery_classes=known)
    look_up(features, gallery, [curve], chunk)
    if OTHER_CLASSES not in (scores := curve.result()[0]):
        raise ValueError("no query has another class of its group in the gallery")
    return scores[OTHER_CLASSES]


class Curve:
    """What retrieval_curve sums over chunks of queries, for `look_up`.

    labels [Q], gallery_labels [G] and topk as there; classes [Q], gallery_classes [G]: finer labels, with which the
    result also has other_class_map, where a query has another class to find. Raises ValueError where a query's label is
    not in the gallery.
    """

    def __init__(
        self,
        labels: Tensor,
        gallery_labels: Tensor | None,
        topk: Sequence[int] = (1, 5, 10, 20),
        classes: Tensor | None = None,
        gallery_classes: Tensor | None = None,
    ):
        labels = labels.long().contiguous()  # searchsorted warns of other strides
        own, device = gallery_labels is None, labels.device
        self.labels, self.topk = labels, topk
        self.gallery_labels = labels if gallery_labels is None else gallery_labels.long()
        self.uses = not_alone(labels) if own else torch.ones_like(labels, dtype=torch.bool)
        if len(labels) and not self.uses.any():
            raise ValueError("every query is alone with its label: there is nothing to find")
        absent = labels[~torch.isin(labels, self.gallery_labels)]
        if len(absent):
            raise ValueError(f"label {int(absent[0])} of a query is not in the gallery: it has nothing to find")
        self.size = len(self.gallery_labels) - own
        # the gallery by label, of which each query is to find a stretch
        rising, self.by_label = self.gallery_labels.sort(stable=True)
        self.first, self.last = (torch.searchsorted(rising, labels, right=right) for right in (False, True))
        self.relevant = self.last - self.first - int(own)
        self.most_relevant = int((self.last - self.first).max()) if len(labels) else 0
        # of each query: whether it has a hit among the first k, its average precision, R-precision and MAP@R
        self.hits_at = torch.zeros(len(topk), len(labels), dtype=torch.bool, device=device)
        self.ap, self.r_precision, self.map_at_r = torch.zeros(3, len(labels), dtype=torch.float64, device=device)
        self.classes, self.gallery_classes = classes, classes if gallery_classes is None else gallery_classes
        # of each query: the number of entries of other classes, and its average precision among these
        self.others, self.ap_others = torch.zeros_like(labels), torch.zeros_like(self.ap)
        # of each place: hits there, and the shares of their queries' hits; what is none counts beyond the last place
        self.hits = torch.zeros(self.size + 1, dtype=torch.long, device=device)
        self.shares = torch.zeros(self.size + 1, dtype=torch.float64, device=device)

    def add(self, rows: Tensor, ranked: "Ranked") -> None:
        """The chunk of these rows [n], as it is ranked."""
        nth = torch.arange(self.most_relevant, device=self.first.device)
        there = self.first[rows, None] + nth
        real, relevant = there < self.last[rows, None], self.relevant[rows, None].clamp_min(1)
        entry, place, upto, hits = ranked.places(self.by_label[there.clamp_max(len(self.by_label) - 1)], real)
        real = place < self.size
        for i, k in enumerate(self.topk):
            self.hits_at[i, rows] = place[:, 0] < k
        into = place.clamp_max(self.size).flatten()
        self.hits.index_add_(0, into, torch.ones_like(into))
        self.shares.index_add_(0, into, (1 / relevant.double()).expand_as(place).flatten())
        # a hit among equal similarities counts with the precision at their end
        self.ap[rows] = (hits / upto.double() * real).sum(1) / relevant[:, 0]
        first = place < relevant
        self.r_precision[rows] = first.sum(1) / relevant[:, 0].double()
        self.map_at_r[rows] = ((nth + 1) / (place + 1).double() * first).sum(1) / relevant[:, 0]
        if self.classes is not None and self.gallery_classes is not None:
            own = real & (self.gallery_classes[entry] == self.classes[rows, None])
            without = own.cumsum(1).gather(1, hits.clamp_min(1) - 1)  # own ones up to the end of the ties
            precision = (hits - without) / (upto - without).clamp_min(1).double()
            self.others[rows] = (real & ~own).sum(1)
            self.ap_others[rows] = (precision * (real & ~own)).sum(1) / self.others[rows].clamp_min(1)

    def result(self) -> tuple[dict[str, float], Tensor, Tensor]:
        """As retrieval_curve."""
        n = int(self.uses.sum())
        place = torch.arange(1, self.size + 1, device=self.hits.device, dtype=torch.float64)
        precision, recall = self.hits[:-1].cumsum(0) / place / n, self.shares[:-1].cumsum(0) / n
        published = (recall.diff() * precision[1:]).sum()
        area = torch.trapezoid(torch.cat([precision[:1], precision]), F.pad(recall, (1, 0)))
        hits = self.hits_at[:, self.uses].double().mean(1).tolist()
        scores = {f"R@{k}": h for k, h in zip(self.topk, hits, strict=True)}
        scores |= {"AP": float(area), "AP-published": float(published), "mAP": float(self.ap.sum() / n)}
        scores |= {"R-precision": float(self.r_precision.sum() / n), "MAP@R": float(self.map_at_r.sum() / n)}
        if (asks := self.others > 0).any():
            scores[OTHER_CLASSES] = float(self.ap_others[asks].mean())
        return scores, precision, recall

    def by_class(self, classes: Tensor, count: int) -> dict[str, Tensor]:
        """R@k for each k, and mAP, of the queries of one class at a time: [count], NaN of a class without queries.

        classes: [Q] the class of each query, which may be finer than its label.
        """
        classes = classes[self.uses].long()
        number, none = torch.bincount(classes, minlength=count), self.ap.new_zeros(count)
        scores = {f"R@{k}": hits for k, hits in zip(self.topk, self.hits_at, strict=True)} | {"mAP": self.ap}
        return {name: none.index_add(0, classes, x[self.uses].double()) / number for name, x in scores.items()}


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
    for scorer in scorers:
        if (len(scorer.labels), len(scorer.gallery_labels)) != (len(features), len(gallery)):
            raise ValueError(
                f"there are {len(scorer.labels)} and {len(scorer.gallery_labels)} labels for {len(features)} queries "
                f"in a gallery of {len(gallery)}"
            )
    chunk = chunk or max(1, min(64, 2**23 // len(gallery)))
    for rows, similarity in _similarities(features, None if own else gallery, chunk, unit):
        ranked = Ranked(similarity, own)
        for scorer in scorers:
            scorer.add(rows, ranked)


@torch.no_grad()
def nearest(features: Tensor, gallery: Tensor | None, k: int, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Of each query [Q, d] the k nearest of the gallery [G, d] by cosine, k at most G: cosines and indices [Q, k].

    The nearest comes first; equal ones stand in the order of the gallery. gallery None: the queries look for one
    another, and none finds itself. Features that are no numbers are no error here: their cosines are 0.
    """
    cosines = torch.empty(len(features), k, device=features.device)
    indices = torch.empty(len(features), k, dtype=torch.long, device=features.device)
    for rows, similarity in _similarities(features, gallery, chunk, lambda x: F.normalize(x).nan_to_num(0)):
        keys = _keys(similarity, torch.arange(similarity.shape[1], device=similarity.device))
        indices[rows] = keys.topk(k, dim=1, largest=False).values & LOW
        cosines[rows] = similarity.gather(1, indices[rows])
    return cosines, indices


def _similarities(
    features: Tensor, gallery: Tensor | None, chunk: int, normalize: Callable[[Tensor], Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """In chunks, rows [n] of the queries [Q, d], and their cosines [n, G] with the gallery [G, d].

    gallery None: with one another, and -inf with themselves. Equal queries, and equal entries of the gallery, have
    equal cosines, although a kernel may round the edge of a product differently: the product is of distinct rows.
    """
    q, query = distinct(features.float())
    g, entry = (q, query) if gallery is None else distinct(gallery.float())
    queries_repeat, entries_repeat = len(q) < len(query), len(g) < len(entry)
    q, g = normalize(q), normalize(g)
    by_query = query.argsort(stable=True)
    ends = F.pad(torch.bincount(query, minlength=len(q)).cumsum(0), (1, 0)).tolist()
    for begin in range(0, len(q), chunk):
        products = q[begin : begin + chunk] @ g.T
        for rows in by_query[ends[begin] : ends[min(begin + chunk, len(q))]].split(chunk):
            similarity = products[query[rows] - begin] if queries_repeat else products
            similarity = similarity.index_select(1, entry) if entries_repeat else similarity
            if gallery is None:
                similarity[torch.arange(len(rows), device=rows.device), rows] = -torch.inf  # comes last, and goes
            yield rows, similarity


class Ranked:
    """The gallery in falling similarity [Q, G] with each of a chunk of queries; the last entry, if it is the query
    itself (own), is none.

    One integer an entry holds its similarity and, below it, its index: then no two are equal, equal similarities stand
    in the order of the gallery, and a sort that moves nothing else, or need not be stable, will do.
    """

    def __init__(self, similarity: Tensor, own: bool = False):
        self.similarity, self.own = similarity, own
        self.keys = _sorted_keys(similarity)

    @cached_property
    def order(self) -> Tensor:
        """[Q, G] the indices of the gallery in falling similarity."""
        order = self.keys & LOW
        return order[:, :-1] if self.own else order

    def ties(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Of the entries at some places [Q, n]: how many lie before the group of equal similarities around each, and up
        to its end. Of a place beyond the last, that place.
        """
        size = self.order.shape[1]
        keys = self.keys.gather(1, place.clamp_max(size - 1))
        before = torch.searchsorted(self.keys, keys & ~LOW)
        upto = torch.searchsorted(self.keys, keys | LOW, right=True)
        real = place < size
        return torch.where(real, before, place), torch.where(real, upto, place)

    def places(self, entries: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where some entries [Q, n] stand, the nearest first; those that are not real [Q, n] come last, beyond the end.

        Of each its index, 0 of one that is not real, the place, from 0, the number of entries up to the end of its
        ties, and how many of these are given.
        """
        keys = _keys(self.similarity.gather(1, entries), entries)
        keys = _sort(torch.where(real, keys, BEYOND))
        end = keys | LOW
        return (
            torch.where(keys < BEYOND, keys & LOW, 0),
            torch.searchsorted(self.keys, keys),
            torch.searchsorted(self.keys, end, right=True),
            torch.searchsorted(keys, end, right=True),
        )


def _keys(similarity: Tensor, index: Tensor) -> Tensor:
    """[Q, n] int64 that rise as similarities fall, and, where these are equal, with the index."""
    bits = (-similarity).add_(0.0).view(torch.int32)  # + 0: -0 is 0
    high = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the numbers
    return torch.stack([index.int().expand_as(high), high], dim=-1).view(torch.int64)[..., 0]


def _sorted_keys(similarity: Tensor) -> Tensor:
    if similarity.device.type == "cpu":
        return _sort(_keys(similarity, torch.arange(similarity.shape[1])))
    return _keys(*similarity.sort(dim=1, descending=True, stable=True))  # half as wide as the keys


def _sort(keys: Tensor) -> Tensor:
    """Each row, in place where it can: on the CPU NumPy's sort of integers is several times as fast as torch's."""
    if keys.device.type != "cpu":
        return keys.sort(dim=1).values
    try:
        parts = [part.numpy() for part in keys.chunk(torch.get_num_threads())]
    except RuntimeError:  # torch without NumPy
        return keys.sort(dim=1).values
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(lambda part: part.sort(axis=1), parts))
    return keys


def unit(features: Tensor) -> Tensor:
    """[n, d] -> L2-normalised, float32. Raises ValueError for what is no number, or too large for float32's squares."""
    x = features.float()
    norm = x.norm(dim=1, keepdim=True)
    if not norm.isfinite().all():
        raise ValueError("some features are NaN, infinite, or too large")
    return x / norm.clamp_min(1e-12)  # as F.normalize


def distinct(x: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows of x [n, d], and of each row which of them it is [n]; x as it is where no two are equal, or a
    gradient goes to each.
    """
    as_it_is = x, torch.arange(len(x), device=x.device)
    if x.requires_grad and torch.is_grad_enabled():
        return as_it_is
    if len(torch.cat([_sums(part) for part in x.split(4096)]).unique()) == len(x):
        return as_it_is
    rows, which = _bits(x).unique(dim=0, return_inverse=True)
    return as_it_is if len(rows) == len(x) else (rows.view(x.dtype), which)


def _bits(x: Tensor) -> Tensor:
    return (x + 0).view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])  # + 0: -0 is 0


def _sums(x: Tensor) -> Tensor:
    """[n] a number of each row of x [n, d]: of equal rows the same, of others hardly ever."""
    bits = _bits(x.contiguous())
    return (bits.view(torch.int64) if bits.shape[1] * bits.element_size() % 8 == 0 else bits).sum(1)


def not_alone(labels: Tensor) -> Tensor:
    """[n] whether another of these labels, which count from 0, is the same."""
    labels = labels.long()
    return torch.bincount(labels)[labels] > 1

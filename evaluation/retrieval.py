"""Retrieval by cosine: whether a query finds its class first."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Protocol

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
    """Measure retrieval by cosine: Recall@k, mean average precision and others.

    For each query the gallery is in falling order of similarity. All values are exact, in [0, 1]:

    * ``R@k``: share of queries with a relevant entry among the first k.
    * ``mAP``: mean over the queries of the average precision; entries of equal similarity count as one step, as in
      scikit-learn.
    * ``AP``: area under the mean precision-recall curve over all cut-offs 1 to G, by trapezoids; it starts at recall 0
      with the first precision. ``AP-published``: the same area as the official implementation has it, by right-hand
      rectangles from the second cut-off on.
    * ``R-precision``: share of relevant entries among a query's first R, the number of its relevant entries in the
      gallery.
    * ``MAP@R``: sum over the relevant entries among these of the precision at each, divided by R (Musgrave et al.
      2020).

    Similarities are float32; equal ones stand in the order of the gallery. Memory: about (30 G + 100 R) * chunk bytes.

    Args:
        features: Features of the queries, (Q, d).
        labels: Labels of the queries, (Q,).
        gallery: Features of the gallery, (G, d). None lets the queries search one another; none finds itself, and those
            that are alone with their label do not count.
        gallery_labels: Labels of the gallery, (G,); None with ``gallery``.
        topk: Cut-offs k of ``R@k``.
        chunk: Queries at a time, as in ``look_up``.

    Returns:
        The metrics by name.

    Raises:
        ValueError: If the input is empty, a feature is not finite, or a query's label is not in the gallery.

    Examples:
        >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.7, 0.6]])
        >>> metrics = retrieval_metrics(features, torch.tensor([0, 0, 1, 1]), None, None, topk=(1,))
        >>> print(f"R@1 {metrics['R@1']:.3f}, mAP {metrics['mAP']:.3f}")
        R@1 0.750, mAP 0.833
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
    """Measure retrieval as ``retrieval_metrics``, and give the mean precision-recall curve.

    Args:
        features: Features of the queries, (Q, d).
        labels: Labels of the queries, (Q,).
        gallery: Features of the gallery, (G, d); None as in ``retrieval_metrics``.
        gallery_labels: Labels of the gallery, (G,); None with ``gallery``.
        topk: Cut-offs k of ``R@k``.
        chunk: Queries at a time, as in ``look_up``.

    Returns:
        Metrics by name, and mean precision and recall of the queries at each cut-off, (G,) each, or (G - 1,) without a
        gallery.

    Raises:
        ValueError: As ``retrieval_metrics``.

    Examples:
        >>> features, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
        >>> metrics, precision, recall = retrieval_curve(features, labels, features, labels)
        >>> precision, recall
        (tensor([1.0000, 0.5000], dtype=torch.float64), tensor([1., 1.], dtype=torch.float64))
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
    """Compute the mAP of the search for other classes of a query's group.

    The query's own class is left out of the gallery. So better retrieval of that class, which mAP over groups
    rewards too, does not count again. At chance level it is about the share of related entries among those of all
    other classes.

    Args:
        features: Features of the queries, (Q, d).
        labels: Classes of the queries, (Q,).
        gallery: Features of the gallery, (G, d); None as in ``retrieval_metrics``.
        gallery_labels: Classes of the gallery, (G,); None with ``gallery``.
        groups: Group of each class, such as its superclass, (C,).
        chunk: Queries at a time, as in ``look_up``.

    Returns:
        The mAP, in [0, 1], over the queries whose group has another class in the gallery. Ties count as in
        ``retrieval_metrics``.

    Raises:
        ValueError: As ``retrieval_metrics``, and if there is no such query.

    Examples:
        >>> features, labels = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), torch.tensor([0, 1, 2])
        >>> other_class_map(features, labels, features, labels, groups=torch.tensor([0, 0, 1]))
        1.0
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
    """Sum up what ``retrieval_curve`` measures over chunks of queries, for ``look_up``.

    Args:
        labels: Labels of the queries, (Q,).
        gallery_labels: Labels of the gallery, (G,); None if the queries search one another.
        topk: Cut-offs k of ``R@k``.
        classes: Finer labels of the queries, (Q,), with which the result also has the value of ``other_class_map``,
            where a query has another class to find.
        gallery_classes: Finer labels of the gallery, (G,).

    Raises:
        ValueError: If a query's label is not in the gallery, or each query is alone with its label.

    Examples:
        >>> curve = Curve(torch.tensor([0, 0, 1, 1]), None, topk=(1,))
        >>> look_up(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]), None, [curve])
        >>> curve.result()[0]["R@1"]
        1.0
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
        """Add a chunk of queries.

        Args:
            rows: Indices of the queries, (n,).
            ranked: The gallery as these rank it.
        """
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
        """Return metrics, mean precision and recall, as ``retrieval_curve``."""
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
        """Compute ``R@k`` for each k, and ``mAP``, of the queries of each class.

        Args:
            classes: Class of each query, (Q,), which may be finer than its label.
            count: Number of classes C.

        Returns:
            The values by name, (C,) each; NaN for a class without queries.
        """
        classes = classes[self.uses].long()
        number, none = torch.bincount(classes, minlength=count), self.ap.new_zeros(count)
        scores = {f"R@{k}": hits for k, hits in zip(self.topk, self.hits_at, strict=True)} | {"mAP": self.ap}
        return {name: none.index_add(0, classes, x[self.uses].double()) / number for name, x in scores.items()}


class Scorer(Protocol):
    """What ``look_up`` asks of ``Curve``, ``Order`` and others."""

    labels: Tensor
    gallery_labels: Tensor

    def add(self, rows: Tensor, ranked: "Ranked") -> None:
        """Add a chunk of queries, by their indices (n,), and the gallery as these rank it."""


@torch.no_grad()
def look_up(features: Tensor, gallery: Tensor | None, scorers: Sequence[Scorer], chunk: int | None = None) -> None:
    """Rank a gallery for each query, and give every scorer each chunk of queries.

    So several scorers sort the gallery once.

    Args:
        features: Features of the queries, (Q, d).
        gallery: Features of the gallery, (G, d). None lets the queries search one another; none finds itself.
        scorers: What sums up, such as ``Curve`` and ``Order``.
        chunk: Queries at a time. None takes 64, or fewer where the gallery has more than 131,072 entries, so that
            memory stays at about a GB.

    Raises:
        ValueError: If the input is empty, a feature is not finite, or a scorer has another number of labels.

    Examples:
        >>> curve = Curve(torch.tensor([0]), torch.tensor([1, 0]), topk=(1, 2))
        >>> look_up(torch.tensor([[1.0, 0.0]]), torch.eye(2), [curve])
        >>> curve.result()[0]["R@1"], curve.result()[0]["R@2"]
        (0.0, 1.0)
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
    """Find the k nearest entries of the gallery by cosine.

    The nearest comes first. Equal ones stand in the order of the gallery. Features that are not finite are not an error
    here: their cosines are 0.

    Args:
        features: Features of the queries, (Q, d).
        gallery: Features of the gallery, (G, d). None lets the queries search one another; none finds itself.
        k: Number of neighbors, at most G.
        chunk: Queries at a time.

    Returns:
        Cosines, (Q, k), and indices, (Q, k).

    Examples:
        >>> cosines, indices = nearest(torch.tensor([[1.0, 0.0]]), torch.eye(2), k=2)
        >>> cosines, indices
        (tensor([[1., 0.]]), tensor([[0, 1]]))
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
    """Yield in chunks the rows (n,) of the queries (Q, d), and their cosines (n, G).

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
    """Rank the gallery by falling similarity for a chunk of queries.

    One integer per entry holds its similarity and, below it, its index. Then no two are equal, and equal similarities
    stand in the order of the gallery. So a sort will do that moves nothing else and need not be stable.

    Args:
        similarity: Similarities of queries and gallery, (Q, G).
        own: Whether the last entry is the query itself, which is left out.
    """

    def __init__(self, similarity: Tensor, own: bool = False):
        self.similarity, self.own = similarity, own
        self.keys = _sorted_keys(similarity)

    @cached_property
    def order(self) -> Tensor:
        """Indices of the gallery in falling similarity, (Q, G)."""
        order = self.keys & LOW
        return order[:, :-1] if self.own else order

    def ties(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Count the entries before and up to the end of the group of equal ones around places.

        Args:
            place: Places, (Q, n), from 0.

        Returns:
            How many entries are before the group, (Q, n), and up to its end, (Q, n). For a place beyond the last: that
            place.
        """
        size = self.order.shape[1]
        keys = self.keys.gather(1, place.clamp_max(size - 1))
        before = torch.searchsorted(self.keys, keys & ~LOW)
        upto = torch.searchsorted(self.keys, keys | LOW, right=True)
        real = place < size
        return torch.where(real, before, place), torch.where(real, upto, place)

    def places(self, entries: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Find where some entries stand, the nearest first.

        Args:
            entries: Indices of entries, (Q, n).
            real: Whether each counts, (Q, n), bool; others come last, beyond the end.

        Returns:
            Of each, (Q, n): its index, 0 if it does not count; its place, from 0; the number of entries up to the end
            of its ties; and how many of these are given.
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
    """Make int64 (Q, n) that rise as similarities fall and, for equal ones, with the index."""
    bits = (-similarity).add_(0.0).view(torch.int32)  # + 0: -0 is 0
    high = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the numbers
    return torch.stack([index.int().expand_as(high), high], dim=-1).view(torch.int64)[..., 0]


def _sorted_keys(similarity: Tensor) -> Tensor:
    if similarity.device.type == "cpu":
        return _sort(_keys(similarity, torch.arange(similarity.shape[1])))
    return _keys(*similarity.sort(dim=1, descending=True, stable=True))  # half as wide as the keys


def _sort(keys: Tensor) -> Tensor:
    """Sort each row, in place where it can: NumPy's sort is several times as fast as torch's."""
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
    """L2-normalize features (n, d) in float32; raise ValueError if a norm is not finite."""
    x = features.float()
    norm = x.norm(dim=1, keepdim=True)
    if not norm.isfinite().all():
        raise ValueError("some features are NaN, infinite, or too large")
    return x / norm.clamp_min(1e-12)  # as F.normalize


def distinct(x: Tensor) -> tuple[Tensor, Tensor]:
    """Find the distinct rows of a matrix.

    Args:
        x: Rows, (n, d).

    Returns:
        The distinct rows, (m, d), and which of them each row is, (n,). Or ``x`` itself if no two rows are equal, or a
        gradient flows to each.

    Examples:
        >>> rows, which = distinct(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
        >>> rows[which]
        tensor([[1., 0.],
                [0., 1.],
                [1., 0.]])
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
    """Compute a number of each row of x (n, d): equal rows have the same, others hardly ever."""
    bits = _bits(x.contiguous())
    return (bits.view(torch.int64) if bits.shape[1] * bits.element_size() % 8 == 0 else bits).sum(1)


def not_alone(labels: Tensor) -> Tensor:
    """Return of each label whether another one is the same.

    Args:
        labels: Labels, (n,), from 0.

    Returns:
        Whether another label is the same, (n,), bool.

    Examples:
        >>> not_alone(torch.tensor([0, 1, 0]))
        tensor([ True, False,  True])
    """
    labels = labels.long()
    return torch.bincount(labels)[labels] > 1

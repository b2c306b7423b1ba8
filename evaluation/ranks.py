"""Rank consistency: measures of a whole ranking, from same class to unrelated, by cosine."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .retrieval import Ranked, look_up

OTHERS = ("NDCG", "H-AP", "ASI", "nearest other")  # beside the AUROC of each rank


@dataclass(frozen=True)
class Levels:
    """Hold which rank one label has for another.

    Attributes:
        values: Similarities of the ranks, (R,), falling from 1; the last one is 0 where some labels are unrelated.
        of: Rank of each pair of classes, (C, C); or, if ``nested``, the groups of each label, (C, L), finest first.
            Rank r is then the first level that two labels share.
        nested: Whether ``of`` holds groups.

    Examples:
        >>> levels = Levels.of_table(torch.tensor([[1.0, 0.75, 0.0], [0.75, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        >>> levels.between(torch.tensor([0]), torch.arange(3))
        tensor([[0, 1, 2]], dtype=torch.uint8)
    """

    values: Tensor
    of: Tensor
    nested: bool = False

    @classmethod
    def of_table(cls, similarity: Tensor) -> "Levels":
        """Rank classes by the distinct values of a table of similarities.

        Args:
            similarity: Similarities of the classes, (C, C), in [0, 1], 1 on the diagonal.

        Returns:
            The levels.

        Raises:
            ValueError: If the table is not square, leaves [0, 1], is not 1 on the diagonal, or has more than 255
                values.
        """
        s = torch.as_tensor(similarity).double()
        if s.ndim != 2 or s.shape[0] != s.shape[1] or not ((s >= 0) & (s <= 1)).all() or not (s.diagonal() == 1).all():
            raise ValueError(f"similarity {tuple(s.shape)} must be [C, C] in [0, 1], and 1 on the diagonal")
        values, rank = s.unique(return_inverse=True)
        if len(values) > 255:
            raise ValueError(f"similarity has {len(values)} distinct values; at most 255 ranks are possible")
        return cls(values.flip(0), (len(values) - 1 - rank).to(torch.uint8))

    @classmethod
    def of_groups(cls, groups: Tensor) -> "Levels":
        """Rank labels by nested groups; rank r has similarity 1 - r min(0.25, 1 / L).

        The similarities are those of ``losses.NestedRINCELoss``.

        Args:
            groups: Group of each label at each level, (C, L), finest first.

        Returns:
            The levels.

        Raises:
            ValueError: If there is no level, or more than 126.
        """
        levels = groups.shape[1]
        if not 1 <= levels <= 126:
            raise ValueError(f"groups have {levels} levels; 1 to 126 are possible")
        values = 1 - torch.arange(levels + 1, dtype=torch.float64) * min(0.25, 1 / levels)
        values[-1] = 0  # unrelated
        return cls(values, groups, nested=True)

    def between(self, labels: Tensor, others: Tensor) -> Tensor:
        """Rank each pair of labels.

        Args:
            labels: Labels, (Q,).
            others: Other labels, (G,).

        Returns:
            Rank that each of the others has for each label, (Q, G), uint8.
        """
        of, labels, others = self.of.to(labels.device), labels.long(), others.long()
        if not self.nested:
            return of[labels][:, others]
        rank = torch.zeros(len(labels), len(others), dtype=torch.uint8, device=labels.device)
        for group in of.T:
            rank += group[labels][:, None] != group[others]
        return rank


def rank_metrics(
    features: Tensor,
    labels: Tensor,
    gallery: Tensor | None,
    gallery_labels: Tensor | None,
    levels: Levels,
    chunk: int | None = None,
) -> dict[str, float]:
    """Measure how far the gallery, in falling cosine, is in the order of the ranks.

    All values are means over the queries that they are defined for, in [0, 1] except for the last:

    * ``AUROC r>s``, s = r + 1: probability that an entry of rank r is nearer than one of the next rank of which the
      query has any; 0.5 at chance level. ``AUROC``: the mean of these over the ranks.
    * ``NDCG``: the similarity of the entries as gain, discounted by log2(1 + place), over the whole gallery; 1 if all
      are in order, above 0 at chance level.
    * ``H-AP``: hierarchical average precision (Ramzi et al. 2022), with the similarity as relevance.
    * ``ASI``: average set intersection (Sun et al. 2021): the share of the first k that the first k in perfect order
      also hold, rank by rank, averaged over k up to the number of related entries.
    * ``nearest other``: mean rank of the nearest entry that is not of rank 0, the query's class; lower is better.

    Cosines are in float32. Entries of equal cosine are one step: for AUROC and NDCG in random order, for H-AP at its
    end, as scikit-learn has it for AP, for ASI with each rank growing in proportion. The values are exact. Memory:
    about 40 * chunk * G bytes.

    Args:
        features: Features of the queries, (Q, d).
        labels: Labels of the queries, (Q,).
        gallery: Features of the gallery, (G, d). None lets the queries search one another; none finds itself.
        gallery_labels: Labels of the gallery, (G,); None with ``gallery``.
        levels: Which rank one label has for another.
        chunk: Queries at a time, as in ``look_up``.

    Returns:
        The metrics by name.

    Raises:
        ValueError: If the input is empty, a feature is not finite, or no query has entries of two ranks.

    Examples:
        >>> levels = Levels.of_table(torch.tensor([[1.0, 0.75, 0.0], [0.75, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        >>> features, labels = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), torch.arange(3)
        >>> rank_metrics(features, labels, features, labels, levels)["AUROC"]
        1.0
    """
    order = Order(labels, gallery_labels, levels)
    look_up(features, gallery, [order], chunk)
    return order.result()


class Order:
    """Sum up what ``rank_metrics`` measures over chunks of queries, for ``look_up``.

    Args:
        labels: Labels of the queries, (Q,).
        gallery_labels: Labels of the gallery, (G,); None if the queries search one another.
        levels: Which rank one label has for another.

    Raises:
        ValueError: If a label is negative.

    Examples:
        >>> order = Order(torch.tensor([0, 1, 2]), None, Levels.of_groups(torch.tensor([[0, 0], [1, 0], [2, 1]])))
        >>> look_up(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), None, [order])
        >>> order.result()["AUROC"]
        1.0
    """

    def __init__(self, labels: Tensor, gallery_labels: Tensor | None, levels: Levels):
        if len(labels) and int(labels.min()) < 0:
            raise ValueError(f"label {int(labels.min())} is invalid: labels count from 0")
        self.labels, self.levels, self.means = labels.long(), levels, _Means()
        self.gallery_labels = self.labels if gallery_labels is None else gallery_labels.long()

    def add(self, rows: Tensor, ranked: Ranked) -> None:
        """Add a chunk of queries.

        Only related entries, a small part of the gallery, are counted one by one. Unrelated ones are what is left.

        Args:
            rows: Indices of the queries, (n,).
            ranked: The gallery as these rank it.
        """
        values = self.levels.values.to(ranked.order.device)
        rank = self.levels.between(self.labels[rows], self.gallery_labels).gather(1, ranked.order)
        related = _Entries.of_ranks(rank, int((values > 0).sum()), ranked)
        totals = torch.stack([(related.rank == r).sum(1) for r in range(len(values))])  # [R, n] entries of each rank
        if values[-1] == 0:
            totals[-1] = rank.shape[1] - totals.sum(0)
        _auroc(related, totals, values, self.means)
        _hierarchical_ap(related, totals, values, self.means)
        _ndcg(related, totals, values, self.means)
        # as many places as there are related entries, and the first of another rank than 0
        first = _Entries.first(rank, int(torch.maximum(totals[values > 0].sum(0), totals[0] + 1).max()), ranked)
        _set_intersection(first, totals[values > 0], self.means)
        _nearest_other(first, self.means)

    def result(self) -> dict[str, float]:
        """Return the metrics by name, as ``rank_metrics``.

        Raises:
            ValueError: If no query has entries of two ranks.
        """
        scores = self.means.result()
        steps = [f"AUROC {r}>{r + 1}" for r in range(len(self.levels.values))]
        scores = {name: scores[name] for name in (*steps, *OTHERS) if name in scores}
        pairs = [score for name, score in scores.items() if name.startswith("AUROC ")]
        if not pairs:
            raise ValueError("no query has gallery entries of two ranks, so rank consistency is not defined")
        return {"AUROC": sum(pairs) / len(pairs), **scores}


class _Means:
    """Average values by name over the queries for which they are defined."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # total and number

    def add(self, name: str, values: Tensor, defined: Tensor) -> None:
        """Add values (Q,), of which those count where ``defined`` (Q,) is true."""
        sums = torch.stack([torch.where(defined, values.double(), 0.0).sum(), defined.sum()])
        self.sums[name] = self.sums[name] + sums if name in self.sums else sums

    def result(self) -> dict[str, float]:
        return {name: float(total / number) for name, (total, number) in self.sums.items() if number}


NONE = 255  # the rank of no entry, where a query has fewer than others


class _Entries:
    """Hold some entries of a chunk's rankings, (n, m), in falling cosine.

    Each has a rank, uint8, and a place from 0; the place of no entry is the size. Each also has how many of all entries
    are before the group of equal cosines around it, and up to its end.
    """

    def __init__(self, rank: Tensor, place: Tensor, ranked: Ranked):
        self.rank, self.place = rank, place
        self.before, self.upto = ranked.ties(place)
        # the same, counting these entries alone
        self.own_before, self.own_upto = (torch.searchsorted(place, x) for x in (self.before, self.upto))

    @classmethod
    def of_ranks(cls, rank: Tensor, below: int, ranked: Ranked) -> "_Entries":
        """Choose all entries of the ranks (n, G) below a number."""
        chosen = rank < below
        query, place = chosen.nonzero(as_tuple=True)
        count = chosen.sum(1)
        column = torch.arange(len(place), device=rank.device) - (count.cumsum(0) - count)[query]
        places = torch.full((len(rank), int(count.max())), rank.shape[1], device=rank.device)
        ranks = torch.full_like(places, NONE, dtype=torch.uint8)
        places[query, column], ranks[query, column] = place, rank[query, place]
        return cls(ranks, places, ranked)

    @classmethod
    def first(cls, rank: Tensor, most: int, ranked: Ranked) -> "_Entries":
        """Choose the first entries of the ranks (n, G), ``most`` and those that tie with the last."""
        last = torch.full((len(rank), 1), min(most, rank.shape[1]) - 1, device=rank.device)
        place = torch.arange(int(ranked.ties(last)[1].max()), device=rank.device)
        return cls(rank[:, : len(place)], place.expand(len(rank), -1).contiguous(), ranked)

    def so_far(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Count chosen entries (n, m) up to the end of each entry's ties, and before them: (n, m)."""
        count = F.pad(chosen.cumsum(1, dtype=torch.int32), (1, 0))
        return count.gather(1, self.own_upto), count.gather(1, self.own_before)


def _auroc(entries: _Entries, totals: Tensor, values: Tensor, means: _Means) -> None:
    """Add the AUROC of each rank against the next that a query has."""
    for s in range(1, len(values)):
        until, before = entries.so_far(entries.rank == s if values[s] > 0 else entries.rank < s)
        if values[s] == 0:  # unrelated entries are those that are left
            until, before = entries.upto - until, entries.before - before
        for r in range(s):
            pairs = totals[r] * totals[s] * (totals[r + 1 : s].sum(0) == 0)
            if pairs.any():
                wrong = ((until + before) * (entries.rank == r)).sum(1, dtype=torch.float64) / 2
                means.add(f"AUROC {r}>{r + 1}", 1 - wrong / pairs.clamp_min(1), pairs > 0)


def _hierarchical_ap(entries: _Entries, totals: Tensor, values: Tensor, means: _Means) -> None:
    """Add H-AP: with min(a, b) as a sum of steps of similarity, APs of all ranks up to each."""
    gained = torch.zeros(len(entries.rank), dtype=torch.float64, device=values.device)
    relevance = torch.zeros_like(gained)
    for r, step in enumerate((values - F.pad(values[1:], (0, 1))).tolist()):
        if step > 0:
            hit = entries.rank <= r
            gained += step * (entries.so_far(hit)[0] / entries.upto * hit).sum(1, dtype=torch.float64)
            relevance += step * totals[: r + 1].sum(0)
    means.add("H-AP", gained / relevance, relevance > 0)


def _ndcg(entries: _Entries, totals: Tensor, values: Tensor, means: _Means) -> None:
    place = torch.arange(1, int(totals.sum(0)[0]) + 1, device=values.device, dtype=torch.float64)
    discount = F.pad((1 / torch.log2(1 + place)).cumsum(0), (1, 0))  # of the first k together
    of_ties = (discount[entries.upto] - discount[entries.before]) / (entries.upto - entries.before).clamp_min(1)
    gain = F.pad(values, (0, NONE + 1 - len(values)))
    gained = (gain[entries.rank.long()] * of_ties).sum(1)
    upto = F.pad(totals.cumsum(0), (0, 0, 1, 0))
    best = (values[:, None] * (discount[upto[1:]] - discount[upto[:-1]])).sum(0)
    means.add("NDCG", gained / best, best > 0)


def _set_intersection(entries: _Entries, totals: Tensor, means: _Means) -> None:
    """Add ASI over the first entries; totals (ranks, n) of the related ones."""
    k, closer = entries.place + 1, torch.zeros_like(totals[0])
    share = (k - entries.before) / (entries.upto - entries.before)  # of the ties that lie up to a place
    shared = torch.zeros_like(share)
    for r, total in enumerate(totals):  # what the first k hold of the rank, and what they would in perfect order
        until, before = entries.so_far(entries.rank == r)
        ideal = (k - closer[:, None]).clamp_min(0).minimum(total[:, None])
        shared += torch.minimum(before + share * (until - before), ideal)
        closer = closer + total
    upto = k <= closer[:, None]
    means.add("ASI", (shared / k * upto).sum(1, dtype=torch.float64) / closer.clamp_min(1), closer > 0)


def _nearest_other(entries: _Entries, means: _Means) -> None:
    other = entries.rank > 0
    nearest = other.to(torch.uint8).argmax(1, keepdim=True)  # the first one; its ties share the place
    tied = other & (entries.upto == entries.upto.gather(1, nearest))
    mean = (entries.rank * tied).sum(1, dtype=torch.float64) / tied.sum(1).clamp_min(1)
    means.add("nearest other", mean, other.any(1))


@torch.no_grad()
def class_correlation(features: Tensor, labels: Tensor, similarity: Tensor) -> dict[str, float]:
    """Correlate the cosines of class means, over the pairs of classes, with their similarity.

    Cosines are rounded to six places. The similarity of a pair is the mean of both directions.

    Args:
        features: Features, (n, d); the means are of L2-normalized ones.
        labels: Labels, (n,).
        similarity: Similarities of the classes, (C, C). Classes without an image are left out.

    Returns:
        ``Spearman``: Spearman's rho, and ``Kendall``: Kendall's tau-b, in [-1, 1]. Empty if fewer than three classes
        have images, or all pairs are equally similar or have equal cosines.

    Examples:
        >>> features, labels = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), torch.arange(3)
        >>> similarity = torch.tensor([[1.0, 0.75, 0.0], [0.75, 1.0, 0.25], [0.0, 0.25, 1.0]])
        >>> print(f"{class_correlation(features, labels, similarity)['Kendall']:.3f}")
        1.000
    """
    from scipy.stats import kendalltau, spearmanr

    z, labels = F.normalize(features.double(), dim=1), labels.long()
    means = torch.zeros(len(similarity), z.shape[1], dtype=z.dtype).index_add_(0, labels, z)
    there = torch.bincount(labels, minlength=len(similarity)) > 0
    # multiples of 2^-26: their products are summed without rounding, so that equal cosines tie on every processor
    means = (F.normalize(means[there], dim=1) * 2**26).round() / 2**26
    pairs = torch.triu_indices(len(means), len(means), 1)
    cosines = (means @ means.T).round(decimals=6)[pairs[0], pairs[1]].numpy()
    both = torch.as_tensor(similarity).double()[there][:, there]
    similar = ((both + both.T) / 2)[pairs[0], pairs[1]].numpy()
    if len(means) < 3 or (similar == similar[0]).all() or (cosines == cosines[0]).all():
        return {}
    return {
        "Spearman": float(spearmanr(cosines, similar).statistic),
        "Kendall": float(kendalltau(cosines, similar).statistic),
    }

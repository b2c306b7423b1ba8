"""Was the order of the ranks learnt? Measures of a whole ranking, from own class to unrelated, by cosine."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .retrieval import Ranked, look_up

OTHERS = ("NDCG", "H-AP", "ASI", "nearest other")  # beside the AUROC of each rank


@dataclass(frozen=True)
class Levels:
    """Which rank one label has for another.

    values: [R] similarities of the ranks, falling from 1; the last one is 0 where some labels are unrelated. Ranks
    come from `of`: [C, C] the rank of each pair of classes, or, if it is nested, [C, L] the groups that each label lies
    in, finest first: then rank r is the first level that two labels share.
    """

    values: Tensor
    of: Tensor
    nested: bool = False

    @classmethod
    def of_table(cls, similarity: Tensor) -> "Levels":
        """Ranks are the distinct values of a table [C, C] in [0, 1], 1 on the diagonal.

        Raises ValueError for another table, or one with more than 255 values.
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
        """Nested groups [C, L]: rank r has similarity 1 - r min(0.25, 1 / L), as in training (NestedRINCELoss).

        Raises ValueError for no level, or more than 126.
        """
        levels = groups.shape[1]
        if not 1 <= levels <= 126:
            raise ValueError(f"groups have {levels} levels; 1 to 126 are possible")
        values = 1 - torch.arange(levels + 1, dtype=torch.float64) * min(0.25, 1 / levels)
        values[-1] = 0  # unrelated
        return cls(values, groups, nested=True)

    def between(self, labels: Tensor, others: Tensor) -> Tensor:
        """[Q, G] the rank that each of others [Q, G] has for labels [Q]."""
        of, labels, others = self.of.to(labels.device), labels.long(), others.long()
        if not self.nested:
            return of[labels].gather(1, others)
        rank = torch.zeros(others.shape, dtype=torch.uint8, device=labels.device)
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
    """How far the gallery [G, d], in falling cosine with each query [Q, d], is in the order of the ranks.

    All are means over the queries that they are defined for, in [0, 1] but for the last, by cosines in float32; exact,
    in chunks of queries: about 100 * chunk * G bytes. Entries of equal cosine are one step: of AUROC and NDCG in random
    order, of H-AP at its end, as scikit-learn has it for AP, of ASI with each rank growing in proportion.
    AUROC r>s, s = r + 1: probability that an entry of rank r is nearer than one of the next rank of which the query has
        any; a half by chance. AUROC: the mean of these over the ranks.
    NDCG: the entries' similarity as gain, discounted by log2(1 + place), over the whole gallery; 1 if all are in order,
        and by chance not 0.
    H-AP: hierarchical average precision (Ramzi et al. 2022) with the similarity as relevance.
    ASI: average set intersection (Sun et al. 2021): the share of the first k that the first k in perfect order also
        hold, rank by rank, averaged over k up to the number of related entries.
    nearest other: mean rank of the nearest entry that is not of rank 0, the own class; the lower the better.
    gallery and gallery_labels None: the queries look for one another, and none finds itself.
    Raises ValueError for empty input, for features that are no numbers, and where no query has entries of two ranks.
    """
    order = Order(labels, gallery_labels, levels)
    look_up(features, gallery, [order], chunk)
    return order.result()


class Order:
    """What rank_metrics sums over chunks of queries, for `look_up`; labels [Q], gallery_labels [G], levels as there."""

    def __init__(self, labels: Tensor, gallery_labels: Tensor | None, levels: Levels):
        if len(labels) and int(labels.min()) < 0:
            raise ValueError(f"label {int(labels.min())} is none: labels count from 0")
        self.labels, self.levels, self.means = labels.long(), levels, _Means()
        self.gallery_labels = self.labels if gallery_labels is None else gallery_labels.long()

    def add(self, rows: slice, ranked: Ranked) -> None:
        """The chunk of these rows, as it is ranked."""
        rank = self.levels.between(self.labels[rows], self.gallery_labels[ranked.order])
        found = _Found(rank, ranked.ends, self.levels.values.to(rank.device))
        for metric in (_rank_by_rank, _ndcg, _nearest_other):
            metric(found, self.means)

    def result(self) -> dict[str, float]:
        """As rank_metrics."""
        scores = self.means.result()
        steps = [f"AUROC {r}>{r + 1}" for r in range(len(self.levels.values))]
        scores = {name: scores[name] for name in (*steps, *OTHERS) if name in scores}
        pairs = [score for name, score in scores.items() if name.startswith("AUROC ")]
        if not pairs:
            raise ValueError("no query has entries of two ranks: there is no order to measure")
        return {"AUROC": sum(pairs) / len(pairs), **scores}


class _Means:
    """Means by name over the queries for which something is defined."""

    def __init__(self) -> None:
        self.total: dict[str, Tensor] = {}
        self.count: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, defined: Tensor) -> None:
        """values [Q], of which those count where `defined` [Q] is true."""
        values = torch.where(defined, values.double(), 0.0)
        self.total[name] = self.total.get(name, torch.zeros_like(values[0])) + values.sum()
        self.count[name] = self.count.get(name, torch.zeros_like(defined.sum())) + defined.sum()

    def result(self) -> dict[str, float]:
        return {name: float(self.total[name] / n) for name, n in self.count.items() if n}


class _Found:
    """What the measures share of one chunk: rank [Q, G] uint8 in falling cosine, ends [Q, G] of the ties, values [R].

    totals: [R, Q] entries of each rank; before: [Q, G] how many entries lie before the group of ties.
    """

    def __init__(self, rank: Tensor, ends: Tensor, values: Tensor):
        self.rank, self.ends, self.values = rank, ends, values
        self.totals = torch.stack([(rank == r).sum(1) for r in range(len(values))])
        self.size = rank.shape[1]
        place = torch.arange(self.size, device=rank.device)
        first = torch.ones_like(rank, dtype=torch.bool)
        first[:, 1:] = ends[:, 1:] != ends[:, :-1]
        self.before = torch.where(first, place, 0).cummax(1).values

    def so_far(self, rank: int) -> tuple[Tensor, Tensor]:
        """Of the entries of a rank, how many there are up to the end of each entry's ties, and before these: [Q, G]."""
        count = (self.rank == rank).cumsum(1, dtype=torch.int32)
        return count.gather(1, self.ends), F.pad(count, (1, 0)).gather(1, self.before)


def _ndcg(found: _Found, means: _Means) -> None:
    place = torch.arange(1, found.size + 1, device=found.rank.device, dtype=torch.float64)
    discount = F.pad((1 / torch.log2(1 + place)).cumsum(0), (1, 0))  # of the first k together
    of_ties = (discount[found.ends + 1] - discount[found.before]) / (found.ends + 1 - found.before)
    gained = (found.values[found.rank.long()] * of_ties).sum(1)
    upto = F.pad(found.totals.cumsum(0), (0, 0, 1, 0))
    best = (found.values[:, None] * (discount[upto[1:]] - discount[upto[:-1]])).sum(0)
    means.add("NDCG", gained / best, best > 0)


def _rank_by_rank(found: _Found, means: _Means) -> None:
    """AUROC, H-AP and ASI, which all count the entries of each rank before a place."""
    place = torch.arange(1, found.size + 1, device=found.rank.device)
    share = (place - found.before) / (found.ends + 1 - found.before)  # of the ties that lie up to a place
    steps = found.values - F.pad(found.values[1:], (0, 1))  # from each value to the next
    related = found.totals[found.values > 0].sum(0)  # [Q]
    closer, until_closer = torch.zeros_like(related), torch.zeros_like(found.rank, dtype=torch.int32)
    shared = torch.zeros_like(share)
    gained = torch.zeros(len(found.rank), dtype=torch.float64, device=found.rank.device)
    relevance = torch.zeros_like(gained)
    for r, (value, step) in enumerate(zip(found.values.tolist(), steps.tolist(), strict=True)):
        until, before = found.so_far(r)
        _auroc(found, means, r, until + before)
        until_closer += until
        if step > 0:  # H-AP: with min(a, b) as a sum of steps, the sum of the APs of all ranks so far as one class
            hit = found.rank <= r
            gained += step * (until_closer / (found.ends + 1) * hit).sum(1, dtype=torch.float64)
            relevance += step * (closer + found.totals[r])
        if value > 0:  # ASI: what the first entries hold of the rank, and what they would in perfect order
            ideal = (place - closer[:, None]).clamp_min(0).minimum(found.totals[r][:, None])
            shared += torch.minimum(before + share * (until - before), ideal)
        closer = closer + found.totals[r]
    means.add("H-AP", gained / relevance, relevance > 0)
    upto = place <= related[:, None]
    means.add("ASI", (shared / place * upto).sum(1, dtype=torch.float64) / related.clamp_min(1), related > 0)


def _auroc(found: _Found, means: _Means, rank: int, beaten: Tensor) -> None:
    """Of the entries of each closer rank, where a query has none between: the share of the pairs with one of `rank`.

    beaten: [Q, G] how many entries of `rank` lie up to the end of an entry's ties, and before these, added.
    """
    for r in range(rank):
        pairs = found.totals[r] * found.totals[rank] * (found.totals[r + 1 : rank].sum(0) == 0)
        if pairs.any():
            wrong = (beaten * (found.rank == r)).sum(1, dtype=torch.float64) / 2
            means.add(f"AUROC {r}>{r + 1}", 1 - wrong / pairs.clamp_min(1), pairs > 0)


def _nearest_other(found: _Found, means: _Means) -> None:
    other = found.rank > 0
    nearest = other.to(torch.uint8).argmax(1, keepdim=True)  # the first one; its ties share the place
    tied = other & (found.ends == found.ends.gather(1, nearest))
    mean = (found.rank * tied).sum(1, dtype=torch.float64) / tied.sum(1).clamp_min(1)
    means.add("nearest other", mean, other.any(1))


@torch.no_grad()
def class_correlation(features: Tensor, labels: Tensor, similarity: Tensor) -> dict[str, float]:
    """Spearman's rho and Kendall's tau-b, in [-1, 1], over the pairs of classes, between the cosine of their means,
    rounded to six places, and their similarity.

    features: [n, d], whose unit vectors the means are of; labels: [n]; similarity: [C, C], of which the mean of both
    ways counts; classes without an image are left out. Nothing, where fewer than three classes have images, or all
    pairs are equally similar or have equal cosines.
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

"""Which rank a candidate has for an anchor: by a table of classes, by nested groups, or by distance of real values.

Shapes: N anchors, K candidates, C classes, R ranks, L levels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_RANKS = 126  # ranks are int8


def as_integers(labels: Tensor, name: str) -> Tensor:
    """Labels of any integer type as the one that indexes."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name} are of type {labels.dtype}; integers are needed")
    return labels.long()


class PairSources(NamedTuple):
    """What a number for each pair, such as its rank, is made from, a block of anchors at a time.

    By a table: anchors [N, 1 + C] the number of every class for each anchor, the first column being the empty entry;
    entries [K] its column for each candidate. By nested groups: the group at each level, anchors [N, L] and entries
    [K, L], below 0 for an empty entry; the number is the rank.
    place: [N] of the key among the entries, which is then none for its anchor; None: it is not in there.
    of_key: the number of the key; -1: it is none.
    """

    anchors: Tensor
    entries: Tensor
    place: Tensor | None = None
    of_key: int = 0

    def of_block(self, block: slice = slice(None)) -> Tensor:
        """[1 + K, n] the number of every candidate for a block of anchors; -1: it is none.

        The first row is the key. An entry's row is contiguous: to copy rows is ten times as fast as to gather columns.
        """
        anchors, nested = self.anchors[block], self.entries.ndim == 2
        dtype = torch.int8 if nested else anchors.dtype
        numbers = torch.full((1 + len(self.entries), len(anchors)), self.of_key, dtype=dtype, device=anchors.device)
        if nested:
            numbers[1:] = 0
            for anchor_group, entry_group in zip(anchors.T, self.entries.T, strict=True):
                numbers[1:] += entry_group[:, None] != anchor_group
        else:
            torch.index_select(anchors.T.contiguous(), 0, self.entries, out=numbers[1:])
        return _leave_out(numbers, self.place, block)


class ValueSources(NamedTuple):
    """As PairSources, from real values: anchors [N] and entries [K], NaN for an empty entry.

    The number is the distance of the values, or, with thresholds [R], rising, how many of these are below it: the rank.
    """

    anchors: Tensor
    entries: Tensor
    thresholds: Tensor | None = None
    place: Tensor | None = None
    of_key: int = 0

    @classmethod
    def of_labels(cls, values: Tensor, labels: Tensor, entry_labels: Tensor) -> "ValueSources":
        """values: [V] of the labels; [N], [K] -> the values of anchors and entries."""
        return cls(values[labels], values[entry_labels.clamp(min=0)].masked_fill_(entry_labels < 0, torch.nan))

    def there(self, block: slice) -> Tensor:
        """[1 + K, n] bool, what is a candidate for a block of anchors, the key first."""
        shape = 1 + len(self.entries), len(self.anchors[block])
        numbers = torch.zeros(shape, dtype=torch.int8, device=self.entries.device)
        numbers[0] = self.of_key
        return _leave_out(numbers, self.place, block) >= 0

    def of_block(self, block: slice = slice(None)) -> Tensor:
        """[1 + K, n] of every candidate for a block of anchors, the key first; -1: it is none."""
        numbers = (F.pad(self.entries, (1, 0))[:, None] - self.anchors[block]).abs_()
        if self.thresholds is not None:
            numbers = torch.bucketize(numbers, self.thresholds, out_int32=True).to(torch.int8)  # NaN: beyond the last
        numbers[0] = self.of_key
        return _leave_out(numbers, self.place, block)


def _leave_out(numbers: Tensor, place: Tensor | None, block: slice) -> Tensor:
    return numbers if place is None else numbers.scatter_(0, place[None, block] + 1, -1)


class Ranks(nn.Module):
    """What the losses ask of ranks. A subclass registers has_rank [labels, R] bool: which ranks a label has.

    similarities: of the ranks, falling from 1; they give the temperatures.
    """

    has_rank: Tensor

    def __init__(self, similarities: Sequence[float]):
        super().__init__()
        if len(similarities) > MOST_RANKS:
            raise ValueError(f"there are {len(similarities)} ranks; at most {MOST_RANKS} are possible")
        self.similarities = tuple(similarities)

    def sources(self, labels: Tensor, entry_labels: Tensor) -> PairSources | ValueSources:
        """[N], [K] -> what the ranks of a block of anchors are made from."""
        raise NotImplementedError

    def entries_per_rank(self, labels: Tensor, entry_labels: Tensor) -> Tensor:
        """[N], [K] -> [N, R] float64: how many entries each rank of a label has."""
        raise NotImplementedError

    def between(self, labels: Tensor, entry_labels: Tensor) -> Tensor:
        """[N], [K] -> [N, K] int8 rank of each pair of labels; R, as of a negative, for an empty entry."""
        return self.sources(labels, entry_labels).of_block()[1:].T


class ClassRanks(Ranks):
    """Ranks from a class-similarity table [C, C] in [0, 1], 1 on the diagonal, 0 = unrelated: its distinct positive
    values, falling. Raises ValueError on a table that is no such table.
    """

    rank: Tensor

    def __init__(self, class_similarity: Tensor):
        s = as_square(class_similarity)
        if not (bool(((s >= 0) & (s <= 1)).all()) and bool((s.diagonal() == 1).all())):
            raise ValueError("class_similarity must lie in [0, 1] and be 1 on the diagonal")
        values = sorted(s[s > 0].unique().tolist(), reverse=True)
        if len(values) > MOST_RANKS:
            raise ValueError(f"class_similarity has {len(values)} distinct values; at most 126 ranks are possible")
        super().__init__(values)
        rank = torch.full_like(s, len(values), dtype=torch.int8)
        for r, value in enumerate(values):
            rank[s == value] = r
        empty_entry = torch.full_like(rank[:, :1], len(values))
        # [C, 1 + C]: the first column is the empty entry of the bank, label -1, always a negative
        self.register_buffer("rank", torch.cat([empty_entry, rank], 1), persistent=False)
        has_rank = torch.stack([(rank == r).any(1) for r in range(len(values))], 1)
        self.register_buffer("has_rank", has_rank, persistent=False)  # [C, R]

    def sources(self, labels: Tensor, entry_labels: Tensor) -> PairSources:
        """[N], [K] -> the table's rows and columns."""
        return PairSources(self.rank[labels], entry_labels + 1)

    def entries_per_rank(self, labels: Tensor, entry_labels: Tensor) -> Tensor:
        """[N], [K] -> [N, R] float64: entries of each rank."""
        entries = torch.bincount(entry_labels + 1, minlength=self.rank.shape[1]).float()  # the empty ones go first
        # sums, not a product of matrices, which TF32 would round
        per_class = [torch.where(self.rank == r, entries, 0).sum(1) for r in range(len(self.similarities))]
        return torch.stack(per_class, 1)[labels].double()


class NestedRanks(Ranks):
    """Ranks from nested groups, such as photograph, place and city, or frame, shot and video.

    groups: [G, L] integers; row g: the group that label g belongs to at each of L levels, the finest (level 0, a
        label's own) to the coarsest. Labels that share a group share all coarser ones. The rank of two labels is the
        finest level at which they share a group; negatives share none. G may be millions: no table of pairs is made.
    Rank i has similarity 1 - i min(0.25, 1 / L). Raises ValueError where groups are not nested, or level 0 is not a
    label's own.
    """

    levels: Tensor

    def __init__(self, groups: Tensor):
        groups = torch.as_tensor(groups)
        if groups.ndim != 2 or groups.numel() == 0 or groups.shape[1] > MOST_RANKS:
            raise ValueError(f"groups have shape {tuple(groups.shape)}; [G, L] with at most 126 levels is needed")
        step = min(0.25, 1 / groups.shape[1])
        super().__init__([1 - i * step for i in range(groups.shape[1])])
        levels = torch.stack([g.unique(return_inverse=True)[1] for g in groups.T], 1)  # [G, L] numbered from 0
        if int(levels[:, 0].max()) + 1 < len(levels):
            raise ValueError("groups at level 0 must be a label's own")
        has_rank = torch.ones(levels.shape, dtype=torch.bool)
        for i in range(1, levels.shape[1]):
            pairs = levels[:, i - 1 : i + 1].unique(dim=0)  # a finer group and the coarser one that it lies in
            if len(pairs) > int(levels[:, i - 1].max()) + 1:
                raise ValueError(f"groups are not nested: some group of level {i - 1} lies in two of level {i}")
            has_rank[:, i] = torch.bincount(pairs[:, 1])[levels[:, i]] > 1
        self.register_buffer("levels", levels, persistent=False)  # [G, L]
        self.register_buffer("has_rank", has_rank, persistent=False)  # [G, R], R = L

    def sources(self, labels: Tensor, entry_labels: Tensor) -> PairSources:
        """[N], [K] -> the groups at each level, -1 for an empty entry."""
        entries = self.levels[entry_labels.clamp(min=0)].masked_fill_((entry_labels < 0)[:, None], -1)
        return PairSources(self.levels[labels], entries)

    def entries_per_rank(self, labels: Tensor, entry_labels: Tensor) -> Tensor:
        """[N], [K] -> [N, R] float64: entries of each rank."""
        filled = self.levels[entry_labels.clamp(min=0)]  # [K, L]
        weight = (entry_labels >= 0).double()
        shared = [weight.new_zeros(len(labels))]  # entries that share the level's group, those of closer ranks too
        for entry_group, label_group in zip(filled.T, self.levels.T, strict=True):
            per_group = torch.bincount(entry_group, weight, int(label_group.max()) + 1)
            shared.append(per_group[label_group[labels]])
        return torch.stack(shared, 1).diff()


class ValueRanks(Ranks):
    """Ranks from a real value of each label, such as an age, a pose or a dose.

    values: [V] of label 0, 1, ...; thresholds: [R], rising, at least 0: a pair whose values differ by at most
        thresholds[0] has rank 0, by at most the next rank 1, and so on; by more than the last it is a negative. What
        decimals lose in floating point counts as no difference.
    Rank i has similarity 1 - i min(0.25, 1 / R). Raises ValueError for values that are no finite numbers, or
    thresholds that do not rise.
    """

    values: Tensor
    thresholds: Tensor

    def __init__(self, values: Tensor, thresholds: Sequence[float]):
        given, limits = torch.as_tensor(values), torch.as_tensor(thresholds, dtype=torch.float64)
        values = as_values(given)
        if limits.ndim != 1 or not len(limits) or not (limits[0] >= 0 and (limits.diff() > 0).all()):
            raise ValueError(f"thresholds are {limits.tolist()}; they must rise from 0 or more")
        super().__init__([1 - i * min(0.25, 1 / len(limits)) for i in range(len(limits))])
        self.register_buffer("values", values, persistent=False)
        self.register_buffer("thresholds", limits + rounding_of(given), persistent=False)
        everyone = torch.arange(len(values))
        self.register_buffer("has_rank", self.entries_per_rank(everyone, everyone) > 0, persistent=False)

    def sources(self, labels: Tensor, entry_labels: Tensor) -> ValueSources:
        """[N], [K] -> the values, NaN for an empty entry."""
        return ValueSources.of_labels(self.values, labels, entry_labels)._replace(thresholds=self.thresholds)

    def entries_per_rank(self, labels: Tensor, entry_labels: Tensor) -> Tensor:
        """[N], [K] -> [N, R] float64: entries of each rank, by one sort."""
        rising, value = self.values[entry_labels[entry_labels >= 0]].sort().values, self.values[labels, None]
        upto = torch.searchsorted(rising, value + self.thresholds, right=True)
        within = (upto - torch.searchsorted(rising, value - self.thresholds)).double()
        return torch.cat([within[:, :1], within.diff(dim=1)], 1)


def as_ranks(ranks: Tensor | Ranks) -> Ranks:
    """Ranks as they are, or of a class-similarity table."""
    return ranks if isinstance(ranks, Ranks) else ClassRanks(ranks)


def as_square(class_similarity: Tensor) -> Tensor:
    """[C, C] as it is. Raises ValueError where it has another shape."""
    s = torch.as_tensor(class_similarity)
    if s.ndim != 2 or len(s) == 0 or s.shape[0] != s.shape[1]:
        raise ValueError(f"class_similarity has shape {tuple(s.shape)}; [C, C] is needed")
    return s


def as_values(values: Tensor) -> Tensor:
    """[V] float64. Raises ValueError where they are no finite numbers."""
    values = torch.as_tensor(values).double()
    if values.ndim != 1 or not len(values) or not values.isfinite().all():
        raise ValueError(f"values {tuple(values.shape)} must be finite numbers [V]")
    return values


def rounding_of(values: Tensor) -> float:
    """How far a difference of these values may be off: decimals such as 0.9 and 0.2 are not, to the bit, 0.7 apart."""
    dtype = values.dtype if values.is_floating_point() else torch.float64
    return 4 * torch.finfo(dtype).eps * float(values.double().abs().max())

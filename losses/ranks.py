"""Ranks of candidates: by a table of classes, by nested groups, or by distances of values.

Shapes: N anchors, K candidates, C classes, R ranks, L levels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_RANKS = 126  # ranks are int8


def as_integers(labels: Tensor, name: str) -> Tensor:
    """Return labels of any integer type as int64; raise ValueError for other types."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name} are of type {labels.dtype}; integers are needed")
    return labels.long()


class PairSources(NamedTuple):
    """Make a number for each pair, such as its rank, a block of anchors at a time.

    By a table, ``anchors`` has the number of every class for each anchor, and ``entries`` the column of each candidate.
    By nested groups, both have the group at each level, and the number is the rank.

    Attributes:
        anchors: Numbers, (N, 1 + C), the first column being the empty entry; or groups, (N, L).
        entries: Columns, (K,); or groups, (K, L), below 0 for an empty entry.
        place: Index of the anchor's key among the entries, (N,), where it is no candidate; None if it is not there.
        of_key: Number of the key; -1 if it is no candidate.
    """

    anchors: Tensor
    entries: Tensor
    place: Tensor | None = None
    of_key: int = 0

    def of_block(self, block: slice = slice(None)) -> Tensor:
        """Give every candidate its number for a block of anchors.

        An entry's row is contiguous: to copy rows is ten times as fast as to gather columns.

        Args:
            block: The anchors, n of them.

        Returns:
            Numbers, (1 + K, n), the key first; -1 for no candidate.
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
    """Make a number for each pair from real values, a block of anchors at a time.

    The number is the distance of the values, or, with thresholds, how many of these are below it: the rank.

    Attributes:
        anchors: Values, (N,).
        entries: Values, (K,), NaN for an empty entry.
        thresholds: Rising distances, (R,).
        place: Index of the anchor's key among the entries, (N,), where it is no candidate; None if it is not there.
        of_key: Number of the key; -1 if it is no candidate.
    """

    anchors: Tensor
    entries: Tensor
    thresholds: Tensor | None = None
    place: Tensor | None = None
    of_key: int = 0

    @classmethod
    def of_labels(cls, values: Tensor, labels: Tensor, entry_labels: Tensor) -> "ValueSources":
        """Look up the values of anchors and entries.

        Args:
            values: Value of each label, (V,).
            labels: Labels of the anchors, (N,).
            entry_labels: Labels of the entries, (K,); -1 for an empty entry.

        Returns:
            The sources.
        """
        return cls(values[labels], values[entry_labels.clamp(min=0)].masked_fill_(entry_labels < 0, torch.nan))

    def there(self, block: slice) -> Tensor:
        """Return what is a candidate for a block of n anchors, (1 + K, n), bool, the key first."""
        shape = 1 + len(self.entries), len(self.anchors[block])
        numbers = torch.zeros(shape, dtype=torch.int8, device=self.entries.device)
        numbers[0] = self.of_key
        return _leave_out(numbers, self.place, block) >= 0

    def of_block(self, block: slice = slice(None)) -> Tensor:
        """Give every candidate its number for a block of anchors.

        Args:
            block: The anchors, n of them.

        Returns:
            Numbers, (1 + K, n), the key first; -1 for no candidate.
        """
        numbers = (F.pad(self.entries, (1, 0))[:, None] - self.anchors[block]).abs_()
        if self.thresholds is not None:
            numbers = torch.bucketize(numbers, self.thresholds, out_int32=True).to(torch.int8)  # NaN: beyond the last
        numbers[0] = self.of_key
        return _leave_out(numbers, self.place, block)


def _leave_out(numbers: Tensor, place: Tensor | None, block: slice) -> Tensor:
    return numbers if place is None else numbers.scatter_(0, place[None, block] + 1, -1)


class Ranks(nn.Module):
    """Answer what losses ask of ranks: the base of ``ClassRanks`` and others.

    A subclass defines ``sources`` and ``entries_per_rank``, and registers ``has_rank``: which ranks a label has,
    (labels, R), bool.

    Args:
        similarities: Similarities of the R ranks, falling from 1, which give the temperatures.

    Raises:
        ValueError: If there are more than 126 ranks.

    Examples:
        >>> ranks = ClassRanks(torch.tensor([[1.0, 0.75], [0.75, 1.0]]))
        >>> isinstance(ranks, Ranks), ranks.similarities
        (True, (1.0, 0.75))
    """

    has_rank: Tensor

    def __init__(self, similarities: Sequence[float]):
        super().__init__()
        if len(similarities) > MOST_RANKS:
            raise ValueError(f"there are {len(similarities)} ranks; at most {MOST_RANKS} are possible")
        self.similarities = tuple(similarities)

    def sources(self, labels: Tensor, entry_labels: Tensor) -> PairSources | ValueSources:
        """Return what the ranks of a block of anchors are made from.

        Args:
            labels: Labels of the anchors, (N,).
            entry_labels: Labels of the entries, (K,); -1 for an empty entry.

        Returns:
            The sources.
        """
        raise NotImplementedError

    def entries_per_rank(self, labels: Tensor, entry_labels: Tensor) -> Tensor:
        """Count the entries that each rank of a label has.

        Args:
            labels: Labels of the anchors, (N,).
            entry_labels: Labels of the entries, (K,); -1 for an empty entry.

        Returns:
            Numbers, (N, R), float64.
        """
        raise NotImplementedError

    def between(self, labels: Tensor, entry_labels: Tensor) -> Tensor:
        """Rank each pair of labels.

        Args:
            labels: Labels of the anchors, (N,).
            entry_labels: Labels of the entries, (K,); -1 for an empty entry.

        Returns:
            Ranks, (N, K), int8; R for a negative and for an empty entry.
        """
        return self.sources(labels, entry_labels).of_block()[1:].T


class ClassRanks(Ranks):
    """Rank classes by a table of similarities: its distinct positive values, falling.

    Args:
        class_similarity: Similarities of the classes, (C, C), in [0, 1], 1 on the diagonal; 0 means unrelated.

    Raises:
        ValueError: If the table is not square, leaves [0, 1], is not 1 on the diagonal, or has more than 126 distinct
            positive values.

    Examples:
        >>> ranks = ClassRanks(torch.tensor([[1.0, 0.75, 0.0], [0.75, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        >>> ranks.between(torch.tensor([0]), torch.arange(3))
        tensor([[0, 1, 2]], dtype=torch.int8)
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
        """Return rows and columns of the table, as ``Ranks``."""
        return PairSources(self.rank[labels], entry_labels + 1)

    def entries_per_rank(self, labels: Tensor, entry_labels: Tensor) -> Tensor:
        """Count the entries that each rank of a label has, as ``Ranks``."""
        entries = torch.bincount(entry_labels + 1, minlength=self.rank.shape[1]).float()  # the empty ones go first
        # sums, not a product of matrices, which TF32 would round
        per_class = [torch.where(self.rank == r, entries, 0).sum(1) for r in range(len(self.similarities))]
        return torch.stack(per_class, 1)[labels].double()


class NestedRanks(Ranks):
    """Rank labels by nested groups, such as frame, shot and video.

    The rank of two labels is the finest level at which they share a group; negatives share none. Rank ``i`` has
    similarity ``1 - i * min(0.25, 1 / L)``. There may be millions of labels: no table of pairs is made.

    Args:
        groups: Group of each label at each of L levels, (G, L), integers: from the finest, a label's own, to the
            coarsest. Labels that share a group share all coarser ones.

    Raises:
        ValueError: If groups are not nested, level 0 is not a label's own, or there are more than 126 levels.

    Examples:
        >>> ranks = NestedRanks(torch.tensor([[0, 0], [1, 0], [2, 1]]))
        >>> ranks.between(torch.tensor([0]), torch.arange(3))
        tensor([[0, 1, 2]], dtype=torch.int8)
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
                raise ValueError(f"groups are not nested: some group of level {i - 1} is in two groups of level {i}")
            has_rank[:, i] = torch.bincount(pairs[:, 1])[levels[:, i]] > 1
        self.register_buffer("levels", levels, persistent=False)  # [G, L]
        self.register_buffer("has_rank", has_rank, persistent=False)  # [G, R], R = L

    def sources(self, labels: Tensor, entry_labels: Tensor) -> PairSources:
        """Return the groups at each level, as ``Ranks``; -1 for an empty entry."""
        entries = self.levels[entry_labels.clamp(min=0)].masked_fill_((entry_labels < 0)[:, None], -1)
        return PairSources(self.levels[labels], entries)

    def entries_per_rank(self, labels: Tensor, entry_labels: Tensor) -> Tensor:
        """Count the entries that each rank of a label has, as ``Ranks``."""
        filled = self.levels[entry_labels.clamp(min=0)]  # [K, L]
        weight = (entry_labels >= 0).double()
        shared = [weight.new_zeros(len(labels))]  # entries that share the level's group, those of closer ranks too
        for entry_group, label_group in zip(filled.T, self.levels.T, strict=True):
            per_group = torch.bincount(entry_group, weight, int(label_group.max()) + 1)
            shared.append(per_group[label_group[labels]])
        return torch.stack(shared, 1).diff()


class ValueRanks(Ranks):
    """Rank labels by the distance of real values, such as an age, a pose or a dose.

    A pair whose values differ by at most ``thresholds[0]`` has rank 0, by at most the next one rank 1, and so on. A
    pair that differs by more than the last is a negative. What decimals lose in floating point counts as no difference.
    Rank ``i`` has similarity ``1 - i * min(0.25, 1 / R)``.

    Args:
        values: Value of each label, (V,).
        thresholds: Rising distances, R of them, at least 0.

    Raises:
        ValueError: If a value is not finite, or thresholds do not rise from 0 or more.

    Examples:
        >>> ranks = ValueRanks(torch.tensor([61.0, 64.0, 80.0]), thresholds=(1.0, 5.0))
        >>> ranks.between(torch.tensor([0]), torch.arange(3))
        tensor([[0, 1, 2]], dtype=torch.int8)
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
        """Return the values, as ``Ranks``; NaN for an empty entry."""
        return ValueSources.of_labels(self.values, labels, entry_labels)._replace(thresholds=self.thresholds)

    def entries_per_rank(self, labels: Tensor, entry_labels: Tensor) -> Tensor:
        """Count the entries that each rank of a label has, as ``Ranks``, by one sort."""
        rising, value = self.values[entry_labels[entry_labels >= 0]].sort().values, self.values[labels, None]
        upto = torch.searchsorted(rising, value + self.thresholds, right=True)
        within = (upto - torch.searchsorted(rising, value - self.thresholds)).double()
        return torch.cat([within[:, :1], within.diff(dim=1)], 1)


def as_ranks(ranks: Tensor | Ranks) -> Ranks:
    """Return ranks unchanged, and those of a class-similarity table (C, C)."""
    return ranks if isinstance(ranks, Ranks) else ClassRanks(ranks)


def as_square(class_similarity: Tensor) -> Tensor:
    """Return the table (C, C); raise ValueError if it is not square."""
    s = torch.as_tensor(class_similarity)
    if s.ndim != 2 or len(s) == 0 or s.shape[0] != s.shape[1]:
        raise ValueError(f"class_similarity has shape {tuple(s.shape)}; [C, C] is needed")
    return s


def as_values(values: Tensor) -> Tensor:
    """Return the values (V,) in float64; raise ValueError if one is not finite."""
    values = torch.as_tensor(values).double()
    if values.ndim != 1 or not len(values) or not values.isfinite().all():
        raise ValueError(f"values {tuple(values.shape)} must be finite numbers [V]")
    return values


def rounding_of(values: Tensor) -> float:
    """Return how far a difference of these values may be off.

    The decimals 0.9 and 0.2 are not exactly 0.7 apart.
    """
    dtype = values.dtype if values.is_floating_point() else torch.float64
    return 4 * torch.finfo(dtype).eps * float(values.double().abs().max())

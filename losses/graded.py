"""Losses over similarities as numbers: X-CLR, y-aware, rank-n-contrast, and triplets.

Shapes: N anchors, n of a block, K entries, C classes, V labels with a value. An equation takes cosines (1 + K, n) of a
block, the key first, and a number for each pair, -1 where there is no candidate. It gives the sum of the losses of the
anchors, and how many have one. Empty entries of the bank count in denominators alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .bank_loss import BankLoss, Candidates
from .equations import RankTerms
from .ranks import PairSources, Ranks, ValueSources, as_ranks, as_square, as_values, rounding_of

LEAST_DISTANCE = 1e-3  # of unit vectors, in _rank_n_contrast: a root of zero has no gradient
DOUBLE_MAX_TAU = 0.04  # below it exponentials of distances leave float32's range
LEAST_TAU = 0.004  # and below this float64's


def _cross_entropy_of_weights(cosines: Tensor, weights: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy between weights and the softmax of cosines.

    Of an anchor: lse over a of s_a / tau - (1 / tau) sum of w_a s_a. The weights (1 + K, n) are at least 0, and are
    scaled to the sum 1.
    """
    there = weights >= 0
    weights = weights.clamp(min=0)
    norm = weights.sum(0)
    near = (weights * cosines).sum(0) / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    low = torch.finfo(cosines.dtype).min
    nll = (cosines / tau).masked_fill(~there, low).logsumexp(0) - near / tau
    kept = norm > 0
    return torch.where(kept, nll, 0).sum().to(cosines.dtype), kept.sum()


def _hardest_triplet(cosines: Tensor, distance: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Compute [largest over the others of (s_a + margin d_a) - smallest s of its class]_+.

    The distance d (1 + K, n) is 0 for the anchor's class. The margin of a class grows with it, as in Ge (2018), whose
    margins come from a tree.
    """
    own, limit = distance == 0, torch.finfo(cosines.dtype).max
    other = distance > 0
    nearest_other = (cosines + margin * distance).masked_fill(~other, -limit).amax(0)
    farthest_own = cosines.masked_fill(~own, limit).amin(0)
    kept = own.any(0) & other.any(0)
    return torch.where(kept, nearest_other - farthest_own, 0).relu().sum().to(cosines.dtype), kept.sum()


def _logits_of_distance(cosines: Tensor, tau: float) -> Tensor:
    """Compute -|q - k| / tau of L2-normalized embeddings, in float64 if exponentials need it."""
    if tau < DOUBLE_MAX_TAU:
        cosines = cosines.double()
    return -(2 - 2 * cosines).clamp(min=LEAST_DISTANCE**2).sqrt() / tau


def _rank_n_contrast(cosines: Tensor, rank: Tensor, filled: Tensor, tau: float, ranks: int) -> tuple[Tensor, Tensor]:
    """Compute the mean over a of -log(exp(f_a) / sum over all at least as far of exp(f)).

    Here f = -|q - k| / tau. rank: (1 + K, n), from 0 to ``ranks``, the farthest. filled: (1 + K, 1), bool, a candidate
    and no empty entry.
    """
    f = _logits_of_distance(cosines, tau)
    e, real = f.exp(), (rank >= 0) & filled
    sums = torch.stack([e.masked_fill(rank != r, 0).sum(0) for r in range(ranks + 1)])
    counts = torch.stack([(real & (rank == r)).sum(0) for r in range(ranks + 1)])
    at_least_as_far = sums.flip(0).cumsum(0).flip(0)
    logs = torch.where(counts > 0, at_least_as_far, 1).log()
    n = counts.sum(0)
    nll = ((counts * logs).sum(0) - f.masked_fill(~real, 0).sum(0)) / n.clamp(min=1)
    return nll.sum().to(cosines.dtype), (n > 0).sum()


class _ValuesOfBlock(NamedTuple):
    """Hold the values (n,) of anchors, and whether there is a candidate, (1 + K, n), bool."""

    values: Tensor
    there: Tensor


class _SortedValues(NamedTuple):
    """Hold the rising values (K,), infinite for empty entries, and the order of entries (K,)."""

    values: Tensor
    order: Tensor


def _rank_n_contrast_of_values(
    cosines: Tensor, anchors: _ValuesOfBlock, entries: _SortedValues, tau: float, rounding: float
) -> tuple[Tensor, Tensor]:
    """Compute ``_rank_n_contrast`` by the distance of real values, each a rank of its own.

    The entries are sorted once. So those at least as far as one on either side of an anchor are a beginning and an end
    of them. Distances on the two sides that differ by at most ``rounding`` are equal.
    """
    (value, there), (u, order) = anchors, entries
    f = _logits_of_distance(cosines, tau)
    e = f.exp().masked_fill(~there, 0)
    key, e = e[0], e[1:][order]
    below = F.pad(e.cumsum(0), (0, 0, 1, 0))  # [1 + K, n] sum of the first so many
    above = F.pad(e.flip(0).cumsum(0).flip(0), (0, 0, 0, 1))  # of those from here on
    first, last = torch.searchsorted(u, u)[:, None], torch.searchsorted(u, u, right=True)[:, None]
    mirrored = 2 * value - u[:, None]  # as far on the other side
    after = u[:, None] >= value
    start = torch.where(after, first, torch.searchsorted(u, mirrored - rounding))
    end = torch.where(after, torch.searchsorted(u, mirrored + rounding, right=True), last).minimum(start)
    near_key = torch.where(u[:, None] == value, key, 0)
    at_least_as_far = below.gather(0, end) + above.gather(0, start) + near_key
    real = there[1:][order] & u[:, None].isfinite()
    own = there[0]
    logs = torch.where(real, at_least_as_far, 1).log().sum(0) + torch.where(own, key + e.sum(0), 1).log()
    n = real.sum(0) + own
    nll = (logs - f[1:][order].masked_fill(~real, 0).sum(0) - f[0].masked_fill(~own, 0)) / n.clamp(min=1)
    return nll.sum().to(cosines.dtype), (n > 0).sum()


class _EquationTerm(NamedTuple):
    """Differentiate an equation block by block: a ``Term``."""

    equation: Callable[[Tensor, Any], tuple[Tensor, Tensor]]

    def matrices(self) -> int:
        """Return how many matrices (1 + K, n) of workspace the term needs."""
        return 0

    def compute(self, cosines: Tensor, _: Any, grades: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the term for a block, as ``Term``."""
        grads, (total, count) = torch.func.grad_and_value(self.equation, has_aux=True)(cosines, grades)
        return total, count, grads


class _KernelWeights(NamedTuple):
    """Weigh candidates by exp(-d^2 / (2 sigma^2)) of the distance of values; empty ones by 0."""

    distances: ValueSources
    sigma: float
    dtype: torch.dtype

    def of_block(self, block: slice) -> Tensor:
        """Compute the weights, (1 + K, n); -1 for no candidate."""
        d = self.distances.of_block(block).to(self.dtype)
        return (d.square() / (-2 * self.sigma**2)).exp().nan_to_num_(0).masked_fill_(d < 0, -1)


class _PlacedValues(NamedTuple):
    """Grade by the values of the anchors themselves."""

    values: ValueSources

    def of_block(self, block: slice) -> _ValuesOfBlock:
        """Return what ``_rank_n_contrast_of_values`` takes for a block."""
        return _ValuesOfBlock(self.values.anchors[block], self.values.there(block))


class GradedLoss(BankLoss):
    """Compute a loss of one term by similarities as numbers: the base of X-CLR and others.

    A subclass defines ``equation_of``.

    Args:
        own: Group of each label, (labels,), integers. Labels of one group count as positives in logs.
        tau: Temperature.

    Raises:
        ValueError: If the temperature is not above 0.
    """

    own: Tensor

    def __init__(self, own: Tensor, tau: float):
        if not tau > 0:
            raise ValueError(f"temperature is {tau:g}; it must be above 0")
        super().__init__(len(own), (tau,))
        self.register_buffer("own", own, persistent=False)

    def equation_of(self, candidates: Candidates) -> tuple[Any, Callable]:
        """Return what grades the pairs of a block, and the equation that takes it."""
        raise NotImplementedError

    def compare(self, candidates: Candidates) -> RankTerms:
        """Compute the term of anchors among candidates, which are in float32 or better."""
        grades, equation = self.equation_of(candidates)
        total, count = candidates.compute(grades, (_EquationTerm(equation),))
        return RankTerms(total, count, torch.ones_like(count, dtype=torch.bool))

    def positives_per_anchor(self, labels: Tensor, bank_labels: Tensor) -> Tensor:
        """Count the candidates of an anchor's class or value, the key included, for logs.

        Args:
            labels: Labels of the anchors, (N,).
            bank_labels: Labels of the bank, (K,); -1 for an empty entry.

        Returns:
            Mean number, (1,).
        """
        bank = self.own[bank_labels[bank_labels >= 0].long()]
        return torch.bincount(bank, minlength=int(self.own.max()) + 1)[self.own[labels.long()]].float().mean()[None] + 1


def _pairs(table: Tensor, c: Candidates, of_key: int) -> PairSources:
    """Look pairs up in a table (C, 1 + C), the first column of which is the empty entry."""
    return c.place_key(PairSources(table[c.labels].to(_type_of_weights(c)), c.entry_labels + 1), of_key)


def _type_of_weights(c: Candidates) -> torch.dtype:
    """Return float64 without the key, whose weight is 1: float32 may lose all others."""
    return c.query.dtype if c.has_key else torch.float64


def _distances(values: Tensor, c: Candidates) -> ValueSources:
    return c.place_key(ValueSources.of_labels(values, c.labels, c.entry_labels))


def _as_table(class_similarity: Tensor) -> Tensor:
    """Return the table (C, C) in float64; raise ValueError if it holds no similarities."""
    s = as_square(class_similarity).double()
    if not (bool((s.abs() <= 1).all()) and bool((s.diagonal() == 1).all())):
        raise ValueError("class_similarity must lie in [-1, 1] and be 1 on the diagonal")
    return s


class XCLRLoss(GradedLoss):
    """Compute X-CLR (Sobal et al. 2024): cross-entropy to a softmax of class similarities.

    The target of a candidate is the softmax over all candidates of ``class_similarity / target_temperature``. An empty
    entry of the bank has target 0.

    Args:
        class_similarity: Similarities of the classes, (C, C), in [-1, 1], 1 on the diagonal.
        temperature: Temperature of the cosines.
        target_temperature: Temperature of the similarities.

    Raises:
        ValueError: If the table is not square, leaves [-1, 1] or is not 1 on the diagonal; if a temperature is not
            above 0.

    Shape:
        - query, key: (N, D), L2-normalized; labels: (N,); bank: (K, D); bank_labels: (K,), -1 for an empty entry.
        - output: scalar.

    Examples:
        >>> criterion = XCLRLoss(torch.tensor([[1.0, 0.6], [0.6, 1.0]]))
        >>> x, labels = torch.eye(2), torch.arange(2)
        >>> print(f"{criterion(x, x, labels, x, labels):.3f}")
        0.784
    """

    weights: Tensor

    def __init__(self, class_similarity: Tensor, temperature: float = 0.1, target_temperature: float = 0.1):
        s = _as_table(class_similarity)
        super().__init__(torch.arange(len(s)), temperature)
        if not target_temperature > 0:
            raise ValueError(f"target_temperature is {target_temperature:g}; it must be above 0")
        weights = ((s - 1) / target_temperature).exp()  # of the own class 1
        self.register_buffer("weights", F.pad(weights, (1, 0)), persistent=False)

    def equation_of(self, candidates: Candidates) -> tuple[Any, Callable]:
        """Return the weights of pairs, and the equation that takes them."""
        return _pairs(self.weights, candidates, 1), partial(_cross_entropy_of_weights, tau=self.taus[0])


class YAwareLoss(GradedLoss):
    """Compute y-aware InfoNCE (Dufumier et al. 2021): cross-entropy to a kernel of distances.

    Args:
        graded_by: Similarities of the classes, (C, C), in [-1, 1], 1 on the diagonal, whose distance is 1 - similarity;
            or a real value of each label, (V,).
        temperature: Temperature of the cosines.
        sigma: Width of the Gaussian kernel exp(-d^2 / (2 sigma^2)), in the units of the distance. None takes the
            similarity itself, 0 where it is negative, which needs a table.

    Raises:
        ValueError: If the table is not square, leaves [-1, 1] or is not 1 on the diagonal; if values are not finite, or
            come without ``sigma``; if the temperature or ``sigma`` is not above 0.

    Shape:
        - query, key: (N, D), L2-normalized; labels: (N,); bank: (K, D); bank_labels: (K,), -1 for an empty entry.
        - output: scalar.

    Examples:
        >>> criterion = YAwareLoss(torch.tensor([61.0, 64.0, 80.0]), sigma=5.0)  # ages of three subjects
        >>> x, labels = torch.eye(3), torch.arange(3)
        >>> print(f"{criterion(x, x, labels, x, labels):.3f}")
        2.674
    """

    graded_by: Tensor

    def __init__(self, graded_by: Tensor, temperature: float = 0.1, sigma: float | None = None):
        given = torch.as_tensor(graded_by)
        if sigma is not None and not sigma > 0:
            raise ValueError(f"sigma is {sigma:g}; it must be above 0")
        if given.ndim == 1:
            if sigma is None:
                raise ValueError("values need a sigma, the width of the kernel in their units")
            values = as_values(given)
            super().__init__(values.unique(return_inverse=True)[1], temperature)
            self.register_buffer("graded_by", values, persistent=False)
        else:
            s = _as_table(given)
            super().__init__(torch.arange(len(s)), temperature)
            weights = s.clamp(min=0) if sigma is None else ((1 - s).square() / (-2 * sigma**2)).exp()
            self.register_buffer("graded_by", F.pad(weights, (1, 0)), persistent=False)
        self.sigma = sigma

    def equation_of(self, candidates: Candidates) -> tuple[Any, Callable]:
        """Return the weights of pairs, and the equation that takes them."""
        equation = partial(_cross_entropy_of_weights, tau=self.taus[0])
        if self.graded_by.ndim == 2:
            return _pairs(self.graded_by, candidates, 1), equation
        distances = _distances(self.graded_by, candidates)
        return _KernelWeights(distances, self.sigma or 1, _type_of_weights(candidates)), equation


class RankNContrastLoss(GradedLoss):
    """Compute rank-n-contrast (Zha et al. 2023): each candidate against all at least as far.

    Args:
        graded_by: Ranks, as a table (C, C) as in ``RINCELoss`` or as ``Ranks``, whose negatives are the farthest; or a
            real value of each label, (V,), whose distances rank.
        temperature: Temperature of minus the distance of L2-normalized embeddings. The published 2 is for embeddings
            that are not normalized.

    Raises:
        ValueError: If there is one rank only, which orders nothing, the temperature is below 0.004, or values are not
            finite.

    Shape:
        - query, key: (N, D), L2-normalized; labels: (N,); bank: (K, D); bank_labels: (K,), -1 for an empty entry.
        - output: scalar.

    Examples:
        >>> criterion = RankNContrastLoss(torch.tensor([61.0, 64.0, 80.0]))  # ages of three subjects
        >>> x, labels = torch.eye(3), torch.arange(3)
        >>> print(f"{criterion(x, x, labels, x, labels):.3f}")
        0.520
    """

    values: Tensor

    def __init__(self, graded_by: Tensor | Ranks, temperature: float = 0.1):
        if temperature < LEAST_TAU:
            raise ValueError(f"temperature is {temperature:g}; {LEAST_TAU} is the least that numbers allow")
        if not isinstance(graded_by, Ranks) and torch.as_tensor(graded_by).ndim == 1:
            values = as_values(graded_by)
            super().__init__(values.unique(return_inverse=True)[1], temperature)
            self.register_buffer("values", values, persistent=False)
            self.ranks, self.rounding = None, rounding_of(torch.as_tensor(graded_by))
        else:
            ranks = as_ranks(graded_by)
            if len(ranks.similarities) < 2:
                raise ValueError("no class has a related class, and this loss needs an order of classes, not one rank")
            super().__init__(torch.arange(len(ranks.has_rank)), temperature)
            self.ranks = ranks

    def equation_of(self, candidates: Candidates) -> tuple[Any, Callable]:
        """Return the ranks or values of pairs, and the equation that takes them."""
        c = candidates
        if self.ranks is None:
            distances = _distances(self.values, c)
            entries = _SortedValues(*distances.entries.nan_to_num(torch.inf).sort())
            equation = partial(_rank_n_contrast_of_values, entries=entries, tau=self.taus[0], rounding=self.rounding)
            return _PlacedValues(distances), equation
        filled = F.pad(c.entry_labels >= 0, (1, 0), value=True)[:, None]
        sources = c.place_key(self.ranks.sources(c.labels, c.entry_labels))
        count = len(self.ranks.similarities)
        return sources, partial(_rank_n_contrast, filled=filled, tau=self.taus[0], ranks=count)


class TripletLoss(GradedLoss):
    """Compute the loss of the hardest triplet, with a margin by class similarity.

    After Ge (2018). The margin of a class is ``margin * (1 - similarity)``. The identity as the table gives the
    batch-hard triplet loss of Hermans et al. (2017) on cosines. Classes of similarity 1 count as the anchor's class.
    Empty entries are left out.

    Args:
        class_similarity: Similarities of the classes, (C, C), in [-1, 1], 1 on the diagonal.
        margin: Margin of classes of similarity 0.

    Raises:
        ValueError: If the table is not square, leaves [-1, 1] or is not 1 on the diagonal; if the margin is negative.

    Shape:
        - query, key: (N, D), L2-normalized; labels: (N,); bank: (K, D); bank_labels: (K,), -1 for an empty entry.
        - output: scalar.

    Examples:
        >>> criterion = TripletLoss(torch.tensor([[1.0, 0.75], [0.75, 1.0]]))
        >>> query, labels = torch.eye(2)[:1], torch.tensor([0])
        >>> bank, bank_labels = torch.tensor([[0.6, 0.8], [0.8, 0.6]]), torch.tensor([0, 1])
        >>> print(f"{criterion(query, query, labels, bank, bank_labels):.3f}")
        0.250
    """

    distance: Tensor

    def __init__(self, class_similarity: Tensor, margin: float = 0.2):
        s = _as_table(class_similarity)
        super().__init__(torch.arange(len(s)), 1.0)
        if not margin >= 0:
            raise ValueError(f"margin is {margin:g}; it must be at least 0")
        self.register_buffer("distance", F.pad(1 - s, (1, 0), value=-1), persistent=False)
        self.margin = margin

    def equation_of(self, candidates: Candidates) -> tuple[Any, Callable]:
        """Return the distances of pairs, and the equation that takes them."""
        return _pairs(self.distance, candidates, 0), partial(_hardest_triplet, margin=self.margin)

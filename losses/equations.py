"""The equations: InfoNCE terms of one rank, and RINCE on any rank matrix, by autograd.

Shapes: N anchors, K candidates, R ranks. All in log space.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

VARIANTS = {  # form of rank 0, of farther ranks
    "in": ("in", "in"),
    "out": ("out", "out"),
    "out_in": ("out", "in"),
    "all": ("all", "all"),
    "all_in": ("all", "in"),
}
REDUCTIONS = ("pairs", "anchors")  # of the out form's terms: a mean over all pairs, or within each anchor first


class RankTerms(NamedTuple):
    """Hold an objective before its mean: one entry per rank, or per term of another objective.

    Attributes:
        total: Sum of the terms of each rank, (R,).
        count: Number of the terms, (R,). Where pairs are averaged within anchors first, an anchor's mean is one term.
        occurs: Whether the rank counts in the mean, (R,), bool.
        weights: Weights of a sum of the ranks' means, (R,). None means the mean over the ranks that occur.
        stand_in: Rank whose mean replaces that of each rank, (R,). None means that each rank has its own.

    Examples:
        >>> terms = RankTerms(torch.tensor([6.0, 4.0]), torch.tensor([3, 1]), torch.tensor([True, True]))
        >>> terms.per_rank(), terms.loss()
        (tensor([2., 4.]), tensor(3.))
    """

    total: Tensor
    count: Tensor  # type: ignore[assignment]  # in the place of tuple.count
    occurs: Tensor
    weights: Tensor | None = None
    stand_in: Tensor | None = None

    def per_rank(self) -> Tensor:
        """Return the mean term of each rank, (R,); 0 with a graph for a rank without a term."""
        return self.total / self.count.clamp(min=1)

    def loss(self) -> Tensor:
        """Return the loss, a scalar: the mean over the ranks that occur, or the weighted sum."""
        if self.weights is None:
            return torch.where(self.occurs, self.per_rank(), 0).sum() / self.occurs.sum().clamp(min=1)
        per_rank = self.per_rank() if self.stand_in is None else self.per_rank()[self.stand_in]
        return (self.weights * per_rank).sum()

    def rising(self) -> "RankTerms":
        """Return terms in which the mean of a rank is at least the largest of closer ranks."""
        return self._replace(stand_in=self.per_rank().detach().cummax(0).indices)

    def over_processes(self, all_reduce: Callable[[Tensor, str], Tensor], processes: int) -> "RankTerms":
        """Return the terms of this process's anchors among those of all processes.

        Count and ``occurs`` become global, and the total is multiplied by ``processes``. So the mean over the processes
        of ``loss`` and of its gradient, which DistributedDataParallel takes, is that of one process with all anchors.
        The mean of the processes' own means would give more weight to the terms of a process that has few of them.

        Args:
            all_reduce: ``all_reduce(x, "sum")`` adds up over processes; it gets nothing with a gradient.
            processes: Number of processes; each may have any number of anchors.

        Returns:
            The terms.
        """
        if processes == 1:
            return self
        both = all_reduce(torch.stack([self.count, self.occurs.to(self.count.dtype)]), "sum")
        terms = self._replace(total=self.total * processes, count=both[0], occurs=both[1] > 0)
        if self.stand_in is None:
            return terms
        everyone = terms._replace(total=all_reduce(self.total.detach().clone(), "sum")).rising()
        return terms._replace(stand_in=everyone.stand_in)


def masked_logsumexp(logits: Tensor, mask: Tensor) -> Tensor:
    """Compute the log of the sum of exponentials over the masked entries of each row.

    Args:
        logits: Real numbers, (N, K).
        mask: Whether an entry counts, (N, K), bool.

    Returns:
        The logarithm per row, (N,). A row without entries gives the lowest finite number, since an infinity would turn
        into NaN in the gradient.
    """
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min).logsumexp(1)


def infonce(
    logits: Tensor, positive: Tensor, negative: Tensor, form: str, min_probability: float, reduction: str = "pairs"
) -> tuple[Tensor, Tensor]:
    """Compute the InfoNCE term of one rank (eq. 4 to 6).

    * ``in``: one term per anchor, -log(S(P) / (S(P) + S(N))); the sum over positives is inside the logarithm.
    * ``out``: one term per pair, -log(e_j / (e_j + S(N))) for j in P; the sum is outside.
    * ``all``: one term per anchor, the mean over j in P of -log(e_j / (S(P) + S(N))). This is L_out of Khosla et al.
      (2020, eq. 2): the other positives are in the denominator, pairs are averaged within each anchor, and none is left
      out.

    Args:
        logits: Similarities divided by the temperature, (N, K).
        positive: Whether a candidate is a positive, (N, K), bool.
        negative: Whether a candidate is a negative, (N, K), bool.
        form: ``in``, ``out`` or ``all``.
        min_probability: Terms of at most this probability are left out; 0 keeps all.
        reduction: With ``anchors``, the term of an anchor in the *out* form is the mean over its pairs that are kept.

    Returns:
        Sum of the terms, a scalar, and their number, a scalar.
    """
    if form == "all":
        log_all, pairs = masked_logsumexp(logits, positive | negative), positive.sum(1)
        nll = log_all - torch.where(positive, logits, 0).sum(1) / pairs.clamp(min=1)
        return torch.where(pairs > 0, nll, 0).sum(), (pairs > 0).sum()
    log_n = masked_logsumexp(logits, negative)
    # softplus(x) = log(1 + exp(x)); its default switch to x at 20 would cost float64 its last digits
    if form == "in":
        nll = F.softplus(log_n - masked_logsumexp(logits, positive), threshold=40)
        kept = positive.any(1)
    else:
        nll = F.softplus(log_n[:, None] - logits, threshold=40)
        kept = positive
    if min_probability > 0:
        kept = kept & ~(nll >= -math.log(min_probability))  # so written, NaN is kept and shows
    if form == "out" and reduction == "anchors":
        pairs = kept.sum(1)
        return (torch.where(kept, nll, 0).sum(1) / pairs.clamp(min=1)).sum(), (pairs > 0).sum()
    return torch.where(kept, nll, 0).sum(), kept.sum()


def check_form(variant: str, min_probability: float, reduction: str) -> None:
    """Raise ValueError if the variant, threshold or reduction is invalid."""
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; choose one of {', '.join(VARIANTS)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; choose one of {', '.join(REDUCTIONS)}")
    if not 0 <= min_probability < 1:
        raise ValueError(f"min_probability is {min_probability}; it must lie in [0, 1)")


def widen(vectors: Sequence[Tensor]) -> list[Tensor]:
    """Return all in the widest of their types, float32 at least."""
    widest = functools.reduce(torch.promote_types, [x.dtype for x in vectors], torch.float32)
    return [x.to(widest) for x in vectors]


def rince_terms(
    similarity: Tensor,
    rank: Tensor,
    taus: Sequence[float],
    variant: str = "out_in",
    min_probability: float = 1e-7,
    reduction: str = "pairs",
) -> RankTerms:
    """Compute the terms of ``rince``, rank by rank, for logs.

    Args:
        similarity: Cosine similarities of anchors and candidates, (N, K).
        rank: Rank of each candidate, (N, K), as in ``rince``.
        taus: Temperature of each rank, R of them.
        variant: Form of the terms, as in ``rince``.
        min_probability: Probability threshold, as in ``RINCELoss``.
        reduction: ``pairs`` or ``anchors``, as in ``RINCELoss``.

    Returns:
        The terms, R of them.

    Raises:
        ValueError: If shapes differ, a temperature is not above 0, or another argument is invalid.

    Examples:
        >>> similarity, rank = torch.tensor([[0.9, 0.6, 0.1]]), torch.tensor([[0, 1, 2]])
        >>> rince_terms(similarity, rank, taus=(0.1, 0.225)).count
        tensor([1, 1])
    """
    check_form(variant, min_probability, reduction)
    if similarity.ndim != 2 or similarity.shape != rank.shape:
        raise ValueError(f"similarity {tuple(similarity.shape)} and rank {tuple(rank.shape)} must be the same [N, K]")
    if len(taus) == 0 or min(taus) <= 0:
        raise ValueError(f"taus are {tuple(taus)}; one temperature above 0 per rank is needed")
    (similarity,) = widen([similarity])
    positives = [rank == r for r in range(len(taus))]
    terms = [
        infonce(similarity / tau, positives[r], rank > r, VARIANTS[variant][min(r, 1)], min_probability, reduction)
        for r, tau in enumerate(taus)
    ]
    total, count = (torch.stack(column) for column in zip(*terms, strict=True))
    return RankTerms(total, count, torch.stack([p.any() for p in positives]))


def rince(
    similarity: Tensor,
    rank: Tensor,
    taus: Sequence[float],
    variant: str = "out_in",
    min_probability: float = 1e-7,
    reduction: str = "pairs",
) -> Tensor:
    """Compute RINCE on any rank matrix (eq. 4 to 6): frames of a video, nodes, classes.

    The term of rank ``i`` has the candidates of rank ``i`` as positives and all farther ones as negatives. Closer ones
    are in neither numerator nor denominator.

    Args:
        similarity: Cosine similarities of N anchors and K candidates, (N, K), of any float type.
        rank: Rank of each candidate, (N, K): 0 for the closest positives, then 1, and so on; ``len(taus)`` or more for
            a negative; below 0 for no candidate.
        taus: Temperature of each rank.
        variant: ``in``, ``out``, ``out_in`` (rank 0 *out*, farther ranks *in*), ``all`` (each rank in the form of L_out
            of Khosla et al. 2020) or ``all_in``.
        min_probability: Probability threshold, as in ``RINCELoss``.
        reduction: ``pairs`` or ``anchors``, as in ``RINCELoss``.

    Returns:
        The mean over the ranks that occur in the matrix, a scalar; 0 with a graph if none occurs.

    Raises:
        ValueError: If shapes differ, a temperature is not above 0, or another argument is invalid.

    Examples:
        >>> similarity, rank = torch.tensor([[0.9, 0.6, 0.1]]), torch.tensor([[0, 1, 2]])
        >>> print(f"{rince(similarity, rank, taus=(0.1, 0.225)):.3f}")
        0.076
    """
    return rince_terms(similarity, rank, taus, variant, min_probability, reduction).loss()

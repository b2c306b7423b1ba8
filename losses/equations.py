"""The equations: InfoNCE terms of one rank, and RINCE on any rank matrix, by plain autograd.

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
    """The objective before its mean: one entry per rank, or per term of another objective.

    total: [R] sum of the terms of a rank; count: [R] how many terms; occurs: [R] bool, the rank counts in the mean.
    Where pairs are averaged within anchors first, an anchor's mean is one term.
    weights: [R] of a weighted sum of the ranks' means; None: the mean over the ranks that occur.
    stand_in: [R] the rank whose mean is taken in the place of each; None: each its own.
    """

    total: Tensor
    count: Tensor  # type: ignore[assignment]  # in the place of tuple.count
    occurs: Tensor
    weights: Tensor | None = None
    stand_in: Tensor | None = None

    def per_rank(self) -> Tensor:
        """[R] mean term of each rank; 0, with a graph, where a rank has no term."""
        return self.total / self.count.clamp(min=1)

    def loss(self) -> Tensor:
        """Scalar: mean over the ranks that occur, or the weighted sum."""
        if self.weights is None:
            return torch.where(self.occurs, self.per_rank(), 0).sum() / self.occurs.sum().clamp(min=1)
        per_rank = self.per_rank() if self.stand_in is None else self.per_rank()[self.stand_in]
        return (self.weights * per_rank).sum()

    def rising(self) -> "RankTerms":
        """The terms in which a rank's mean is at least the largest of closer ranks, which otherwise stands in."""
        return self._replace(stand_in=self.per_rank().detach().cummax(0).indices)

    def over_processes(self, all_reduce: Callable[[Tensor, str], Tensor], processes: int) -> "RankTerms":
        """The terms of this process's anchors among those of all processes, in no particular number on each.

        all_reduce(x, "sum") adds up over processes; nothing with a gradient goes through it. Count and occurs become
        global, and the total is taken `processes` times, so that the mean over processes of `loss` and of its gradient,
        which DistributedDataParallel takes, is that of one process with all anchors. The mean of each process's own
        means would give a positive more weight where there are few.
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
    """log of the sum of exp over the entries of a row where the mask holds: [N, K], [N, K] bool -> [N].

    A row without entries gives the lowest finite number: infinities would turn into NaN in the gradient.
    """
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min).logsumexp(1)


def infonce(
    logits: Tensor, positive: Tensor, negative: Tensor, form: str, min_probability: float, reduction: str = "pairs"
) -> tuple[Tensor, Tensor]:
    """The InfoNCE term of one rank: [N, K] logits, [N, K] bool masks -> sum of the terms, number of terms.

    "in":  one term an anchor, -log(S(P) / (S(P) + S(N)))           (the sum over positives inside the logarithm)
    "out": one term a pair,    -log(e_j / (e_j + S(N))) for j in P  (the sum outside)
    "all": one term an anchor, the mean over j in P of -log(e_j / (S(P) + S(N)))  (outside; other positives below)
    Terms of probability <= min_probability are left out, as published; 0 keeps all. With reduction "anchors" the term
    of an anchor in the out form is the mean over its pairs that are left in. The form "all" is L_out of Khosla et al.
    (2020, eq. 2), in which an anchor's pairs are always averaged, and none is left out.
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
    """Raise ValueError where one of these is none."""
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; choose one of {', '.join(VARIANTS)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; choose one of {', '.join(REDUCTIONS)}")
    if not 0 <= min_probability < 1:
        raise ValueError(f"min_probability is {min_probability}; it must lie in [0, 1)")


def widen(vectors: Sequence[Tensor]) -> list[Tensor]:
    """All in the widest of their types, float32 at least."""
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
    """The terms of `rince`, rank by rank: for logging."""
    check_form(variant, min_probability, reduction)
    if similarity.ndim != 2 or similarity.shape != rank.shape:
        raise ValueError(f"similarity {tuple(similarity.shape)} and rank {tuple(rank.shape)} must be the same [N, K]")
    if len(taus) == 0 or min(taus) <= 0:
        raise ValueError(f"taus are {tuple(taus)}; one temperature above 0 a rank is needed")
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
    """RINCE on any rank matrix: classes, frames of a video, nodes of a graph (paper, eq. 4 to 6).

    similarity: [N, K] cosine similarities of N anchors and K candidates, any float type.
    rank: [N, K] integers: 0 = closest positives, 1 = next, ...; len(taus) or more = negative; below 0 = unused.
    taus: one temperature a rank.
    variant: "in", "out", "out_in" (rank 0 out, farther ranks in), "all" (each rank in the form of Khosla et al.'s
        L_out) or "all_in".
    reduction: of the out form's terms, as in RINCELoss.
    Returns the mean over the ranks that have an entry in the matrix; 0 with a graph where none has.
    For rank i, closer ranks are in neither the numerator nor the denominator.
    Raises ValueError on shapes that differ, a temperature <= 0, or an unknown variant or reduction.
    """
    return rince_terms(similarity, rank, taus, variant, min_probability, reduction).loss()

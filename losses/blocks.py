"""Terms of anchors among many candidates, a block of anchors at a time.

No (N, K) matrix is kept. Shapes: N anchors, n of a block, K candidates, D dimensions, G terms.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .equations import infonce

# The fast form. Exponentials of cosines over tau lie between exp(-1 / tau) and exp(1 / tau). From this temperature on,
# with exp(25) = 7e10, they, their sums and the ratios of these stay far inside float32's range as they are, and no
# logarithm is needed but one a term. Below it, each block goes through `infonce` itself.
FAST_MIN_TAU = 0.04

# Entries of [K, anchors] that are worked on at a time. On a CPU they fit the cache, which a whole [K, N] does not; on a
# GPU, where starting an operation costs more, they are as many as bounded memory allows: a million keys do not grow it.
BLOCK = {"cpu": 2**20, "cuda": 2**26}

# And anchors at least: each block reads the whole bank, which of a million keys is far more than its own numbers.
LEAST_ROWS = 16


class Grades(Protocol):
    """What a term needs to know of the candidates, apart from their cosines."""

    def of_block(self, block: slice) -> Any:
        """Grade the candidates of a block of anchors, (1 + K, n), the key first: by ranks, say."""


class Term(Protocol):
    """One term of an objective."""

    def matrices(self) -> int:
        """Return how many matrices (1 + K, n) of workspace the term needs."""

    def compute(self, cosines: Tensor, workspace: Sequence[Tensor], grades: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the term and its gradient for a block of anchors.

        Args:
            cosines: Cosines of anchors and candidates, (1 + K, n), the key first.
            workspace: Matrices (1 + K, n) to overwrite; the first may be that of the cosines.
            grades: What ``Grades.of_block`` gives for the block.

        Returns:
            The sum of the block's terms, their number, and the gradient of the sum by the cosines, (1 + K, n).
        """


class BlockTerms(torch.autograd.Function):
    """Compute the terms of anchors, and their gradients in the same pass.

    Shape:
        - query: (N, D), L2-normalized; key_cosine: (N,), of query and key; entries: (K, D), L2-normalized.
        - output: total and count, (G,) each.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key_cosine: Tensor, entries: Tensor, grades: Grades, terms: tuple[Term, ...]
    ) -> tuple[Tensor, Tensor]:
        """Compute total and count of each term, and keep the gradients."""
        n, k = len(query), len(entries)
        pairs = BLOCK.get(query.device.type, BLOCK["cuda"])
        if query.device.type != "cpu" and not terms[0].matrices():  # autograd's own numbers, four times as many
            pairs //= 4
        rows = max(LEAST_ROWS, pairs // max(k, 1))
        rows -= rows % 32 if rows > 32 else 0  # odd lengths of rows are slow
        # matrices that all blocks work in: to be given new memory takes a CPU longer than to fill it
        wanted = [terms[0].matrices() - 1, *(t.matrices() for t in terms[1:]), 0]  # the first may take the cosines'
        workspace = query.new_empty(1 + max(wanted), (1 + k) * min(rows, n))
        query_grads, cosine_grads = query.new_empty(len(terms), *query.shape), query.new_empty(n, len(terms))
        entry_grads = query.new_zeros(len(terms), *entries.shape) if ctx.needs_input_grad[2] else None
        totals, counts = [], []  # of each term in each block
        for start in range(0, max(n, 1), rows):
            block = slice(start, start + rows)
            of_block, size = grades.of_block(block), len(query[block])
            # [1 + K, n] each; the key first
            cosines, *others = workspace[:, : (1 + k) * size].unflatten(1, (1 + k, size)).unbind()
            cosines[0] = key_cosine[block]
            torch.mm(entries, query[block].T, out=cosines[1:])
            for g, term in reversed([*enumerate(terms)]):
                total, count, grads = term.compute(cosines, others if g else (cosines, *others), of_block)
                totals.append(total)
                counts.append(count)
                cosine_grads[block, g] = grads[0]
                torch.mm(grads[1:].T, entries, out=query_grads[g, block])
                if entry_grads is not None:
                    entry_grads[g].addmm_(grads[1:], query[block])
        ctx.save_for_backward(query_grads, cosine_grads, entry_grads)
        total, count = (torch.stack(x[::-1]).unflatten(0, (-1, len(terms))).sum(0) for x in (totals, counts))
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # once_differentiable would let a second derivative through, silently wrong, where grad_total is a constant
        """Scale the gradients.

        Raises:
            RuntimeError: If the loss is differentiated twice.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("losses: this loss cannot be differentiated twice; losses.rince can")
        query_grads, cosine_grads, entry_grads = ctx.saved_tensors
        with torch.autocast(grad_total.device.type, enabled=False):
            to_entries = None if entry_grads is None else torch.tensordot(grad_total, entry_grads, 1)
            to_query = (query_grads * grad_total[:, None, None]).sum(0)
            return to_query, cosine_grads @ grad_total, to_entries, None, None


class Group(NamedTuple):
    """Form a term over ranks, which equals ``infonce`` on the same sets.

    Value and gradient come from one pass: with p the probability of a term, d(-log p) moves 1 - p from positives to
    negatives, on each side in proportion to the exponentials. The odds of a term are S(N) / S(P), those of a pair S(N)
    / e; p = 1 / (1 + odds).

    Attributes:
        tau: Temperature.
        form: ``in``, ``out`` or ``all``.
        positive: Ranks of the positives; farther ranks are negatives, closer ones are left out.
        key_is_positive: Whether the anchor's key is a positive.
        min_probability: Terms of at most this probability are left out.
        reduction: How the terms of the *out* form are averaged.
    """

    tau: float
    form: str  # "in", "out" or "all"
    positive: range  # ranks; all farther ones are negatives, closer ones are left out
    key_is_positive: bool
    min_probability: float
    reduction: str  # of the out form's terms

    def matrices(self) -> int:
        """Return how many matrices (1 + K, n) of workspace the term needs."""
        return 0 if self.tau < FAST_MIN_TAU else 3 if self.form == "in" else 4

    def compute(self, cosines: Tensor, workspace: Sequence[Tensor], grades: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the term for a block; grades: int8 ranks, (1 + K, n), -1 for no candidate."""
        if self.tau < FAST_MIN_TAU:
            return _by_equation(cosines, grades, self)
        return _by_exponentials(cosines, workspace, grades, self)


def _by_equation(cosines: Tensor, rank: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate ``infonce``: right at any temperature, but half as fast."""
    positive = (rank >= group.positive.start) & (rank < group.positive.stop)
    positive[0] &= group.key_is_positive
    negative = rank >= group.positive.stop

    def term(x: Tensor) -> tuple[Tensor, Tensor]:
        return infonce(x / group.tau, positive.T, negative.T, group.form, group.min_probability, group.reduction)

    grads, (total, count) = torch.func.grad_and_value(term, has_aux=True)(cosines.T)
    return total, count, grads.T


def _by_exponentials(
    cosines: Tensor, workspace: Sequence[Tensor], rank: Tensor, group: Group
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what ``_by_equation`` does in place, in three or four matrices (1 + K, n).

    The forms "out" and "all" need the fourth matrix. e holds the exponentials, and may take the place of the cosines.
    positive holds 1 for each positive, then the probability that it loses. negative holds the exponentials of the
    negatives, and at the end the gradient. Masks are numbers, 1 or 0: on a CPU, arithmetic with truth values is slow.
    """
    least = group.min_probability
    largest_odds = (1 - least) / least if least > 0 else math.inf  # of a term that counts
    negative = torch.ge(rank, group.positive.stop, out=workspace[1])
    if len(group.positive) == 1:
        positive = torch.eq(rank, group.positive.start, out=workspace[2])
    else:  # cumulative: from rank 0; what is no entry, -1, is 255 without a sign
        positive = torch.lt(rank.view(torch.uint8), group.positive.stop, out=workspace[2])
    if group.positive.start == 0 and not group.key_is_positive:
        positive[0] = 0
    if group.form == "all":  # e may take the place of the cosines
        near = torch.mul(positive, cosines, out=workspace[3]).sum(0)
    e = torch.mul(cosines, math.log2(math.e) / group.tau, out=workspace[0]).exp2_()  # on a CPU, exp takes longer
    tiny = torch.finfo(e.dtype).tiny
    if group.form == "all":
        pairs, s_all = positive.sum(0), negative.add_(positive).mul_(e).sum(0).clamp_(min=tiny)
        count, each = pairs > 0, pairs.clamp(min=1).reciprocal_()
        nll = (s_all.log() - near * each / group.tau).masked_fill(~count, 0)
        moved = count / s_all  # to all, positives too, as a factor of their exponentials
        positive.mul_(each)
    elif group.form == "out":
        s_negative = negative.mul_(e).sum(0)
        if largest_odds < math.inf:
            positive.mul_(torch.gt(e, s_negative / largest_odds, out=workspace[3]))
        count, lost = positive.sum(0), torch.add(e, s_negative, out=workspace[3])
        # log1p of the odds would keep more digits of a loss near 0, and take ten times as long on some CPUs
        # NaN shows, though it is left out
        nll = -e.div_(lost).log_().mul_(positive).sum(0)
        torch.div(s_negative, lost, out=lost)  # 1 - p; that difference would have no digit where odds are small
        moved = positive.mul_(lost).sum(0) / s_negative.clamp_(min=tiny)
        if group.reduction == "anchors":  # those that are left in share a weight of 1: one term an anchor
            each = count.clamp(min=1).reciprocal_()
            positive.mul_(each)
            nll, count, moved = nll * each, count.clamp(max=1), moved * each
    else:
        s_negative = negative.mul_(e).sum(0)
        s_positive = positive.mul_(e).sum(0)
        at_least = s_positive.clamp(min=tiny)
        odds = s_negative / at_least
        dropped = (s_positive <= 0) | (odds >= largest_odds)  # so written, NaN is kept and shows
        odds = odds.masked_fill(dropped, 0)
        nll, count, moved = odds.log1p(), ~dropped, odds / (1 + odds)
        positive.mul_(moved / at_least)
        moved /= s_negative.clamp_(min=tiny)
    grads = negative.mul_(moved / group.tau).sub_(positive, alpha=1 / group.tau)
    return nll.sum(), count.sum(dtype=torch.float64).long(), grads

"""The RINCE and SupCon objectives (Hoffmann et al., "Ranking Info Noise Contrastive Estimation", AAAI 2022).

Shapes: N anchors, K bank entries, D dimensions, C classes, R ranks.
Pure tensor functions first, the small modules that hold a class-similarity table after them. All is computed in log
space and in float32 or better, whatever autocast says; nothing depends on the data's values for its shape, and nothing
waits for the device.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VARIANTS = ("in", "out", "out_in")


class RankTerms(NamedTuple):
    """The objective before its mean: one entry a rank.

    total: [R] sum of the terms of a rank; count: [R] how many terms; occurs: [R] bool, the rank counts in the mean.
    """

    total: Tensor
    count: Tensor
    occurs: Tensor

    def per_rank(self) -> Tensor:
        """[R] mean term of each rank; 0, with a graph, where a rank has no term."""
        return self.total / self.count.clamp(min=1)

    def loss(self) -> Tensor:
        """Scalar: mean over the ranks that occur."""
        return torch.where(self.occurs, self.per_rank(), 0).sum() / self.occurs.sum().clamp(min=1)

    def over_processes(self, all_reduce, processes: int) -> "RankTerms":
        """The terms of this process's anchors among those of all processes, in no particular number on each.

        all_reduce(x, "sum") adds up over processes; only counts go through it. Count and occurs become global, and the
        total is taken `processes` times, so that the mean over processes of `loss` and of its gradient, which
        DistributedDataParallel takes, is that of one process with all anchors. The mean of each process's own means
        would give a positive more weight where there are few.
        """
        if processes == 1:
            return self
        both = all_reduce(torch.stack([self.count, self.occurs.to(self.count.dtype)]), "sum")
        return RankTerms(self.total * processes, both[0], both[1] > 0)


def masked_logsumexp(logits: Tensor, mask: Tensor) -> Tensor:
    """log of the sum of exp over the entries of a row where the mask holds: [N, K], [N, K] bool -> [N].

    A row without entries gives the lowest finite number: infinities would turn into NaN in the gradient.
    """
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min).logsumexp(1)


def infonce(logits: Tensor, positive: Tensor, negative: Tensor, variant: str, min_probability: float):
    """The InfoNCE term of one rank: [N, K] logits, [N, K] bool masks -> sum of the terms, number of terms.

    "in":  one term an anchor, -log(S(P) / (S(P) + S(N)))           (the sum over positives inside the logarithm)
    "out": one term a pair,    -log(e_j / (e_j + S(N))) for j in P  (the sum outside)
    Terms of probability <= min_probability are left out, as published; 0 keeps all.
    """
    log_n = masked_logsumexp(logits, negative)
    # softplus(x) = log(1 + exp(x)); its default switch to x at 20 would cost float64 its last digits
    if variant == "in":
        nll = F.softplus(log_n - masked_logsumexp(logits, positive), threshold=40)
        kept = positive.any(1)
    else:
        nll = F.softplus(log_n[:, None] - logits, threshold=40)
        kept = positive
    if min_probability > 0:
        kept = kept & ~(nll >= -math.log(min_probability))  # so written, NaN is kept and shows
    return torch.where(kept, nll, 0).sum(), kept.sum()


def _variant_of(rank: int, variant: str) -> str:
    if variant == "out_in":
        return "out" if rank == 0 else "in"
    return variant


def _check(variant: str, min_probability: float) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; choose one of {', '.join(VARIANTS)}")
    if not 0 <= min_probability < 1:
        raise ValueError(f"min_probability is {min_probability}; it must lie in [0, 1)")


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rince_terms(
    similarity: Tensor, rank: Tensor, taus, variant: str = "out_in", min_probability: float = 1e-7
) -> RankTerms:
    """The terms of `rince`, rank by rank: for logging."""
    _check(variant, min_probability)
    if similarity.ndim != 2 or similarity.shape != rank.shape:
        raise ValueError(f"similarity {tuple(similarity.shape)} and rank {tuple(rank.shape)} must be the same [N, K]")
    if len(taus) == 0 or min(taus) <= 0:
        raise ValueError(f"taus are {tuple(taus)}; one temperature above 0 a rank is needed")
    similarity = _at_least_float32(similarity)
    positives = [rank == r for r in range(len(taus))]
    terms = [
        infonce(similarity / tau, positives[r], rank > r, _variant_of(r, variant), min_probability)
        for r, tau in enumerate(taus)
    ]
    total, count = (torch.stack(column) for column in zip(*terms, strict=True))
    return RankTerms(total, count, torch.stack([p.any() for p in positives]))


def rince(similarity: Tensor, rank: Tensor, taus, variant: str = "out_in", min_probability: float = 1e-7) -> Tensor:
    """RINCE on any rank matrix: classes, frames of a video, nodes of a graph (paper, eq. 4 to 6).

    similarity: [N, K] cosine similarities of N anchors and K candidates, any float type.
    rank: [N, K] integers: 0 = closest positives, 1 = next, ...; len(taus) or more = negative; below 0 = unused.
    taus: one temperature a rank.
    variant: "in", "out" or "out_in" (rank 0 out, farther ranks in).
    Returns the mean over the ranks that have an entry in the matrix; 0 with a graph where none has.
    For rank i, closer ranks are in neither the numerator nor the denominator.
    Raises ValueError on shapes that differ, a temperature <= 0 or an unknown variant.
    """
    return rince_terms(similarity, rank, taus, variant, min_probability).loss()


class Group(NamedTuple):
    """One term of the objective over a class table: its temperature, form, and which ranks are in which set."""

    tau: float
    out: bool  # "out" form, else "in"
    positive: range  # ranks
    first_negative: int  # this rank and all farther ones
    own_key: bool  # the own key is a positive


def _groups(taus, variant: str, cumulative: bool) -> tuple[Group, ...]:
    n = len(taus)
    if cumulative:
        positive, negative = [range(1), range(n)], [1, n]
    else:
        positive, negative = [range(r, r + 1) for r in range(n)], list(range(1, n + 1))
    return tuple(
        Group(taus[r], _variant_of(r, variant) == "out", positive[r], negative[r], r == 0) for r in range(len(positive))
    )


def masked_terms(similarity, own, rank, column, groups, min_probability):
    """The terms over a class table in log space, right at any temperature; the arguments of `class_sum_terms`."""
    return entry_terms(similarity, own, rank.gather(1, column.expand(len(rank), -1)), groups, min_probability)


def entry_terms(similarity, own, rank, groups, min_probability):
    """The terms in log space: similarity [N, K] with the bank, own [N] with the own key, rank [N, K] of the entries."""
    similarity = torch.cat([own[:, None], similarity], 1)
    rank_with_own = F.pad(rank, (1, 0), value=0)
    rank_without = F.pad(rank, (1, 0), value=-1)
    terms = []
    for group in groups:
        r = rank_with_own if group.own_key else rank_without
        positive = (r >= group.positive.start) & (r < group.positive.stop)
        variant = "out" if group.out else "in"
        terms.append(infonce(similarity / group.tau, positive, r >= group.first_negative, variant, min_probability))
    total, count = zip(*terms, strict=True)
    return torch.stack(total), torch.stack(count)


# Cosines span 2 / tau in the exponent. From here on every sum of exp stays inside float32's range (exp(-50) = 2e-22)
# with the row's largest logit as offset, so that sums by class may be taken before the logarithm.
CLASS_SUM_MIN_TAU = 0.04


def class_sum_terms(similarity, own, rank, column, groups, min_probability):
    """The terms over a class table, from one sum of exponentials a temperature and bank class.

    similarity: [N, K] cosines with the bank; own: [N] with the own key; rank: [N, C + 1] of every class for each
    anchor, the last column being the empty slot; column: [K] class of the bank entries, C = empty -> total, count [G].
    """
    return _ClassSums.apply(similarity, own, rank, column, groups, min_probability)


class _ClassSums(torch.autograd.Function):
    """Value and gradient in one pass: with p a term's probability, d(-log p) moves 1 - p from positives to negatives,
    each side in proportion to its exponentials. The plain form that it must equal is `masked_terms`.
    """

    @staticmethod
    def forward(ctx, similarity, own, rank, column, groups, min_probability):
        onehot = F.one_hot(column, rank.shape[1]).to(similarity.dtype)  # [K, C + 1]
        column = column.expand(len(rank), -1)  # [N, K], no copy
        top = torch.maximum(similarity.amax(1), own) if similarity.shape[1] else own
        total, count, grads, own_grads = [], [], [], []
        for group in groups:
            e = similarity.sub(top[:, None]).div_(group.tau).exp_()  # [N, K], turned into the gradient in place
            own_e = ((own - top) / group.tau).exp() * group.own_key
            positive = (rank >= group.positive.start) & (rank < group.positive.stop)
            negative = rank >= group.first_negative
            sums = e @ onehot  # [N, C + 1]
            s_negative = (sums * negative).sum(1)
            if group.out:
                terms = _pairs(e, own_e, positive.gather(1, column), s_negative, min_probability, group.own_key)
            else:
                terms = _anchors(own_e, (sums * positive).sum(1) + own_e, s_negative, min_probability)
            value, n, moved, own_moved, from_pairs, from_positive = terms
            push = (moved / torch.where(s_negative > 0, s_negative, 1))[:, None] * negative
            if from_positive is not None:
                push = push - from_positive[:, None] * positive
            e.mul_(push.gather(1, column))
            if from_pairs is not None:
                e.sub_(from_pairs)
            total.append(value)
            count.append(n)
            grads.append(e.div_(group.tau))
            own_grads.append(own_moved / -group.tau)
        ctx.save_for_backward(*grads, *own_grads)
        total, count = torch.stack(total), torch.stack(count)
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    def backward(ctx, grad_total, _):
        # once_differentiable would let a second derivative through, silently wrong, where grad_total is a constant
        if torch.is_grad_enabled():
            raise RuntimeError("losses: the class-sum loss cannot be differentiated twice; masked_terms can")
        saved, n = ctx.saved_tensors, len(grad_total)
        similarity_grad, own_grad = saved[0] * grad_total[0], saved[n] * grad_total[0]
        for g in range(1, n):
            similarity_grad.addcmul_(saved[g], grad_total[g])
            own_grad.addcmul_(saved[n + g], grad_total[g])
        return similarity_grad, own_grad, None, None, None, None


def _anchors(own_e, s_positive, s_negative, min_probability):
    """The "in" form from two sums [N]: value, count, probability moved, the own key's share, and each positive's."""
    has = ~(s_positive <= 0)  # here and below: so written, NaN is kept and shows
    s_positive = torch.where(has, s_positive, 1)
    kept = has & ~(s_positive <= min_probability * (s_positive + s_negative))
    nll = torch.where(kept, torch.log1p(s_negative / s_positive), 0)
    moved = torch.where(kept, s_negative / (s_positive + s_negative), 0)
    per_positive = moved / s_positive
    return nll.sum(), kept.sum(), moved, per_positive * own_e, None, per_positive


def _pairs(e, own_e, positive, s_negative, min_probability, own_key):
    """The "out" form from exponentials [N, K]: as `_anchors`, and the probability moved from each pair [N, K]."""
    own_p = own_e / (own_e + s_negative)
    own_kept = ~(own_p <= min_probability) & own_key
    own_p = torch.where(own_kept, own_p, 1)
    p = e + s_negative[:, None]
    torch.div(e, p, out=p)
    positive.logical_and_((p <= min_probability).logical_not_())
    p.masked_fill_(~positive, 1)
    value = -(p.log().sum() + own_p.log().sum())
    p.neg_().add_(1)
    return value, positive.sum() + own_kept.sum(), p.sum(1) + (1 - own_p), 1 - own_p, p, None


class _RankedLoss(nn.Module):
    """What the losses over a bank share. A subclass registers has_rank [labels, R] bool: which ranks a label has, and
    gives `bank_terms` and `positives_per_anchor`.
    """

    def __init__(self, similarities, min_tau, max_tau, variant, cumulative_positives, min_probability):
        """similarities: of the ranks, falling."""
        super().__init__()
        _check(variant, min_probability)
        if not 0 < min_tau <= max_tau:
            raise ValueError(f"temperatures need 0 < min_tau <= max_tau, not {min_tau} and {max_tau}")
        self.taus = tuple(min_tau + (1 - s) * (max_tau - min_tau) for s in similarities)
        self.min_probability = min_probability
        self.cumulative = cumulative_positives and len(self.taus) > 1
        self.groups = _groups(self.taus, variant, self.cumulative)

    def bank_terms(self, similarity: Tensor, own: Tensor, labels: Tensor, bank_labels: Tensor):
        """[N, K] similarity with the bank, [N] with the own key, labels [N], [K] -> total, count of each group."""
        raise NotImplementedError

    def terms(self, query: Tensor, key: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor) -> RankTerms:
        """The terms of each rank; the arguments of `forward`."""
        with torch.autocast(query.device.type, enabled=False):
            q, k, m = (_at_least_float32(x) for x in (query, key, bank))
            total, count = self.bank_terms(q @ m.T, (q * k).sum(1), labels, bank_labels)
        has = self.has_rank[labels].any(0)
        occurs = torch.stack([has[0], has[1:].any()]) if self.cumulative else has
        return RankTerms(total, count, occurs)

    def forward(self, query: Tensor, key: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor) -> Tensor:
        """query, key: [N, D] unit vectors; labels: [N]; bank: [K, D]; bank_labels: [K], -1 = empty -> scalar."""
        return self.terms(query, key, labels, bank, bank_labels).loss()


class RINCELoss(_RankedLoss):
    """RINCE with ranks from a class-similarity table and temperatures that grow with distance (paper, sec. 3).

    class_similarity: [C, C] in [0, 1], 1 on the diagonal, 0 = unrelated; its distinct positive values, falling, are
        the ranks, and tau_i = min_tau + (1 - s_i) (max_tau - min_tau).
    cumulative_positives: two terms only; the second takes every related class, the own one too, as positive (but not
        the own key), and all others as negative, with tau_1.
    min_probability: terms of a smaller or equal probability are left out of the mean, as in the published code; those
        hardest terms get no gradient. 0 gives the paper's equation.
    Raises ValueError on a table that is no such table, or temperatures that are no temperatures.
    """

    def __init__(
        self,
        class_similarity: Tensor,
        min_tau: float = 0.1,
        max_tau: float = 0.6,
        variant: str = "out_in",
        cumulative_positives: bool = False,
        min_probability: float = 1e-7,
    ):
        s = torch.as_tensor(class_similarity)
        if s.ndim != 2 or len(s) == 0 or s.shape[0] != s.shape[1]:
            raise ValueError(f"class_similarity has shape {tuple(s.shape)}; [C, C] is needed")
        if not (bool(((s >= 0) & (s <= 1)).all()) and bool((s.diagonal() == 1).all())):
            raise ValueError("class_similarity must lie in [0, 1] and be 1 on the diagonal")
        values = sorted(s[s > 0].unique().tolist(), reverse=True)
        if len(values) > 126:
            raise ValueError(f"class_similarity has {len(values)} distinct values; at most 126 ranks are possible")
        super().__init__(values, min_tau, max_tau, variant, cumulative_positives, min_probability)

        rank = torch.full_like(s, len(values), dtype=torch.int8)
        for r, value in enumerate(values):
            rank[s == value] = r
        empty_slot = torch.full_like(rank[:, :1], len(values))
        # [C, C + 1]: the last column is the empty slot of the bank, always a negative
        self.register_buffer("rank", torch.cat([rank, empty_slot], 1), persistent=False)
        has_rank = torch.stack([(rank == r).any(1) for r in range(len(values))], 1)
        self.register_buffer("has_rank", has_rank, persistent=False)  # [C, R]

    def bank_terms(self, similarity, own, labels, bank_labels):
        """From one sum of exponentials per bank class, at temperatures where that is safe."""
        column = torch.where(bank_labels < 0, self.rank.shape[1] - 1, bank_labels)
        head = class_sum_terms if min(self.taus) >= CLASS_SUM_MIN_TAU else masked_terms
        return head(similarity, own, self.rank[labels], column, self.groups, self.min_probability)

    def positives_per_anchor(self, labels: Tensor, bank_labels: Tensor) -> Tensor:
        """[R] mean number of positives an anchor has at each rank, the own key counted; for logs."""
        per_class = F.one_hot(bank_labels + 1, self.rank.shape[1]).sum(0)[1:].float()  # the empty slots go first
        rows = self.rank[labels, :-1]
        positives = [((rows == r).float() @ per_class).mean() + (r == 0) for r in range(len(self.taus))]
        return torch.stack(positives)


class SupConLoss(RINCELoss):
    """Supervised contrastive loss over a bank (SCL in, SCL out; Khosla et al. 2020): RINCE with one rank."""

    def __init__(self, num_classes: int, temperature: float = 0.1, variant: str = "out", min_probability: float = 1e-7):
        super().__init__(torch.eye(num_classes), temperature, temperature, variant, min_probability=min_probability)


class NestedRINCELoss(_RankedLoss):
    """RINCE without classes: ranks from nested groups, such as photograph, place and city, or frame, shot and video.

    groups: [G, L] integers; row g: the group that label g belongs to at each of L levels, the finest (level 0, a
        label's own) to the coarsest. Labels that share a group share all coarser ones. The rank of two labels is the
        finest level at which they share a group; negatives share none. G may be millions: no table of pairs is made.
        Rank i has similarity 1 - i min(0.25, 1 / L), which gives its temperature as in RINCELoss.
    The other arguments are RINCELoss's. Raises ValueError where groups are not nested, or level 0 is not a label's own.
    """

    def __init__(
        self,
        groups: Tensor,
        min_tau: float = 0.1,
        max_tau: float = 0.6,
        variant: str = "out_in",
        cumulative_positives: bool = False,
        min_probability: float = 1e-7,
    ):
        groups = torch.as_tensor(groups)
        if groups.ndim != 2 or groups.numel() == 0 or groups.shape[1] > 126:
            raise ValueError(f"groups have shape {tuple(groups.shape)}; [G, L] with at most 126 levels is needed")
        step = min(0.25, 1 / groups.shape[1])
        similarities = [1 - i * step for i in range(groups.shape[1])]
        super().__init__(similarities, min_tau, max_tau, variant, cumulative_positives, min_probability)
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

    def ranks(self, labels: Tensor, bank_labels: Tensor) -> Tensor:
        """[N], [K] -> [N, K] int8: number of levels, from the finest, at which two labels share no group."""
        rank = torch.zeros(len(labels), len(bank_labels), dtype=torch.int8, device=labels.device)
        anchors, entries = self.levels[labels], self.levels[bank_labels.clamp(min=0)]
        for level in range(self.levels.shape[1]):
            rank += anchors[:, level, None] != entries[:, level]
        return rank.masked_fill_(bank_labels < 0, self.levels.shape[1])

    def bank_terms(self, similarity, own, labels, bank_labels):
        """In log space, entry by entry."""
        return entry_terms(similarity, own, self.ranks(labels, bank_labels), self.groups, self.min_probability)

    def positives_per_anchor(self, labels: Tensor, bank_labels: Tensor) -> Tensor:
        """[R] mean number of positives an anchor has at each rank, the own key counted; for logs."""
        filled = self.levels[bank_labels.clamp(min=0)]  # [K, L]
        weight = (bank_labels >= 0).double()
        shared = []  # entries that share the level's group, those of closer ranks among them
        for of_entry, of_label in zip(filled.T, self.levels.T, strict=True):
            per_group = torch.bincount(of_entry, weight, int(of_label.max()) + 1)
            shared.append(per_group[of_label[labels]].mean())
        shared = torch.stack(shared)
        shared[1:] = shared.diff()
        shared[0] += 1
        return shared.float()

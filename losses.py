"""The RINCE and SupCon objectives (Hoffmann et al., "Ranking Info Noise Contrastive Estimation", AAAI 2022).

Shapes: N anchors, K bank entries, D dimensions, C classes, R ranks.
Pure tensor functions first, the small modules that hold a class-similarity table after them. All is computed in
float32 or better, whatever autocast says, and in log space where exponentials would not do. Nothing depends on the
data's values for its shape, and nothing waits for the device, but the first `forward` of a loss, which checks what it
is given; training calls `terms`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

VARIANTS = {"in": ("in", "in"), "out": ("out", "out"), "out_in": ("out", "in")}  # form of rank 0, of farther ranks
REDUCTIONS = ("pairs", "anchors")  # of the out form's terms: a mean over all pairs, or within each anchor first


class RankTerms(NamedTuple):
    """The objective before its mean: one entry a rank.

    total: [R] sum of the terms of a rank; count: [R] how many terms; occurs: [R] bool, the rank counts in the mean.
    Where pairs are averaged within anchors first, an anchor's mean is one term.
    """

    total: Tensor
    count: Tensor  # type: ignore[assignment]  # in the place of tuple.count
    occurs: Tensor

    def per_rank(self) -> Tensor:
        """[R] mean term of each rank; 0, with a graph, where a rank has no term."""
        return self.total / self.count.clamp(min=1)

    def loss(self) -> Tensor:
        """Scalar: mean over the ranks that occur."""
        return torch.where(self.occurs, self.per_rank(), 0).sum() / self.occurs.sum().clamp(min=1)

    def over_processes(self, all_reduce: Callable[[Tensor, str], Tensor], processes: int) -> "RankTerms":
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


def infonce(
    logits: Tensor, positive: Tensor, negative: Tensor, variant: str, min_probability: float, reduction: str = "pairs"
) -> tuple[Tensor, Tensor]:
    """The InfoNCE term of one rank: [N, K] logits, [N, K] bool masks -> sum of the terms, number of terms.

    "in":  one term an anchor, -log(S(P) / (S(P) + S(N)))           (the sum over positives inside the logarithm)
    "out": one term a pair,    -log(e_j / (e_j + S(N))) for j in P  (the sum outside)
    Terms of probability <= min_probability are left out, as published; 0 keeps all.
    With reduction "anchors" the term of an anchor in the out form is the mean over its pairs that are left in.
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
    if variant == "out" and reduction == "anchors":
        pairs = kept.sum(1)
        return (torch.where(kept, nll, 0).sum(1) / pairs.clamp(min=1)).sum(), (pairs > 0).sum()
    return torch.where(kept, nll, 0).sum(), kept.sum()


def _check(variant: str, min_probability: float, reduction: str) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; choose one of {', '.join(VARIANTS)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; choose one of {', '.join(REDUCTIONS)}")
    if not 0 <= min_probability < 1:
        raise ValueError(f"min_probability is {min_probability}; it must lie in [0, 1)")


def _integers(labels: Tensor, name: str) -> Tensor:
    """Labels of any integer type as the one that indexes."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name} are of type {labels.dtype}; integers are needed")
    return labels.long()


def _at_least_float32(vectors: Sequence[Tensor]) -> list[Tensor]:
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
    _check(variant, min_probability, reduction)
    if similarity.ndim != 2 or similarity.shape != rank.shape:
        raise ValueError(f"similarity {tuple(similarity.shape)} and rank {tuple(rank.shape)} must be the same [N, K]")
    if len(taus) == 0 or min(taus) <= 0:
        raise ValueError(f"taus are {tuple(taus)}; one temperature above 0 a rank is needed")
    (similarity,) = _at_least_float32([similarity])
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
    variant: "in", "out" or "out_in" (rank 0 out, farther ranks in).
    reduction: of the out form's terms, as in RINCELoss.
    Returns the mean over the ranks that have an entry in the matrix; 0 with a graph where none has.
    For rank i, closer ranks are in neither the numerator nor the denominator.
    Raises ValueError on shapes that differ, a temperature <= 0, or an unknown variant or reduction.
    """
    return rince_terms(similarity, rank, taus, variant, min_probability, reduction).loss()


class Group(NamedTuple):
    """One term of the objective over a class table: its temperature, form, and which ranks are in which set."""

    tau: float
    out: bool  # "out" form, else "in"
    positive: range  # ranks; all farther ones are negatives
    key_is_positive: bool
    reduction: str  # of the out form's terms


def _groups(taus: Sequence[float], variant: str, cumulative: bool, reduction: str) -> tuple[Group, ...]:
    n, forms = len(taus), VARIANTS[variant]
    positives = [range(1), range(n)] if cumulative else [range(r, r + 1) for r in range(n)]
    return tuple(
        Group(taus[r], forms[min(r, 1)] == "out", ranks, r == 0, reduction) for r, ranks in enumerate(positives)
    )


# The fast form. Exponentials of cosines over tau lie between exp(-1 / tau) and exp(1 / tau). From this temperature on,
# with exp(25) = 7e10, they, their sums and the ratios of these stay far inside float32's range as they are, and no
# logarithm is needed but one a term. Below it, each block goes through `infonce` itself.
FAST_MIN_TAU = 0.04

# Entries of [K, anchors] that are worked on at a time. On a CPU they fit the cache, which a whole [K, N] does not; on a
# GPU, where starting an operation costs more, they are as many as bounded memory allows: a million keys do not grow it.
BLOCK = {"cpu": 2**20, "cuda": 2**26}

# And anchors at least: each block reads the whole bank, which of a million keys is far more than its own numbers.
LEAST_ROWS = 16


class RankSources(NamedTuple):
    """What the ranks of bank entries for anchors are made from, a block of anchors at a time.

    By a table: anchors [N, 1 + C] int8 of every class for each anchor, the first column being the empty entry; entries
    [K] its column for each bank entry. Or by nested groups: the group at each level, anchors [N, L] and entries [K, L],
    below 0 for an empty entry.
    key_index: [N] of the key in the bank, which is then no entry for its anchor; None: it is not in there.
    """

    anchors: Tensor
    entries: Tensor
    key_index: Tensor | None = None

    def ranks(self, block: slice = slice(None)) -> Tensor:
        """[1 + K, n] int8 rank of every entry for a block of anchors; -1: no entry.

        The first row is the key. An entry's row is contiguous: to copy rows is ten times as fast as to gather columns.
        """
        anchors = self.anchors[block]
        rank = torch.zeros(1 + len(self.entries), len(anchors), dtype=torch.int8, device=anchors.device)
        if self.entries.ndim == 1:
            torch.index_select(anchors.T.contiguous(), 0, self.entries, out=rank[1:])
        else:
            for anchor_group, entry_group in zip(anchors.T, self.entries.T, strict=True):
                rank[1:] += entry_group[:, None] != anchor_group
        return rank if self.key_index is None else rank.scatter_(0, self.key_index[None, block] + 1, -1)


class FastTerms(torch.autograd.Function):
    """The terms over a bank, a block of anchors at a time, without any [N, K] kept: `apply` -> total, count [G].

    query: [N, D] unit vectors; positive_cosine: [N] of query and key; bank: [K, D] unit vectors.
    The plain form that it must equal is `rince_terms`, on the ranks of all entries.

    Value and gradient in one pass: with p a term's probability, d(-log p) moves 1 - p from positives to negatives,
    each side in proportion to its exponentials. A term's odds are S(N) / S(P), of a pair S(N) / e: p = 1 / (1 + odds).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        positive_cosine: Tensor,
        bank: Tensor,
        sources: RankSources,
        groups: tuple[Group, ...],
        min_probability: float,
    ) -> tuple[Tensor, Tensor]:
        n, k = len(query), len(bank)
        rows = max(LEAST_ROWS, BLOCK.get(query.device.type, BLOCK["cuda"]) // (k + 1))
        rows -= rows % 32 if rows > 32 else 0  # odd lengths of rows are slow
        # matrices that all blocks work in: to be given new memory takes a CPU longer than to fill it
        matrices = 4 + any(g.out for g in groups[1:])
        workspace = query.new_empty(matrices, (1 + k) * min(rows, n))
        query_grads, cosine_grads = query.new_empty(len(groups), *query.shape), query.new_empty(n, len(groups))
        bank_grads = query.new_zeros(len(groups), *bank.shape) if ctx.needs_input_grad[2] else None
        totals, counts = [], []  # of each group in each block
        for start in range(0, max(n, 1), rows):
            block = slice(start, start + rows)
            rank = sources.ranks(block)
            # [1 + K, rows] each; the key first
            similarity, free, *others = workspace[:, : rank.numel()].unflatten(1, rank.shape).unbind()
            similarity[0] = positive_cosine[block]
            torch.mm(bank, query[block].T, out=similarity[1:])
            for g, group in reversed([*enumerate(groups)]):
                term = _by_equation if group.tau < FAST_MIN_TAU else _by_exponentials
                # the last one, rank 0, may use up the similarities
                used = (free, *others) if g else (similarity, *others[:2], free)
                total, count, grads = term(similarity, used, rank, group, min_probability)
                totals.append(total)
                counts.append(count)
                cosine_grads[block, g] = grads[0]
                torch.mm(grads[1:].T, bank, out=query_grads[g, block])
                if bank_grads is not None:
                    bank_grads[g].addmm_(grads[1:], query[block])
        ctx.save_for_backward(query_grads, cosine_grads, bank_grads)
        total, count = (torch.stack(x[::-1]).unflatten(0, (-1, len(groups))).sum(0) for x in (totals, counts))
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # once_differentiable would let a second derivative through, silently wrong, where grad_total is a constant
        if torch.is_grad_enabled():
            raise RuntimeError("losses: this loss cannot be differentiated twice; losses.rince can")
        query_grads, cosine_grads, bank_grads = ctx.saved_tensors
        with torch.autocast(grad_total.device.type, enabled=False):
            to_bank = None if bank_grads is None else torch.tensordot(grad_total, bank_grads, 1)
            return (
                (query_grads * grad_total[:, None, None]).sum(0),
                cosine_grads @ grad_total,
                to_bank,
                None,
                None,
                None,
            )


def _by_equation(
    similarity: Tensor, _: Sequence[Tensor], rank: Tensor, group: Group, min_probability: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of a block's terms, their number, and the gradient in the cosines [1 + K, n]: `infonce`, differentiated.

    Right at any temperature, and about half as fast as `_by_exponentials`.
    """
    positive = (rank >= group.positive.start) & (rank < group.positive.stop)
    positive[0] &= group.key_is_positive
    negative, form = rank >= group.positive.stop, "out" if group.out else "in"

    def term(cosines: Tensor) -> tuple[Tensor, Tensor]:
        return infonce(cosines / group.tau, positive.T, negative.T, form, min_probability, group.reduction)

    grads, (total, count) = torch.func.grad_and_value(term, has_aux=True)(similarity.T)
    return total, count, grads.T


def _by_exponentials(
    similarity: Tensor, workspace: Sequence[Tensor], rank: Tensor, group: Group, min_probability: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_by_equation`, in place, in three matrices [1 + K, n] and for the out form one more.

    e holds the exponentials, and may take the place of the cosines; positive 1 for each positive, then the probability
    that it loses; negative the exponentials of the negatives, and last the gradient. Masks are numbers, 1 or 0: on a
    CPU, arithmetic with truth values is slow.
    """
    largest_odds = (1 - min_probability) / min_probability if min_probability > 0 else math.inf  # of a term that counts
    negative = torch.ge(rank, group.positive.stop, out=workspace[1])
    if len(group.positive) == 1:
        positive = torch.eq(rank, group.positive.start, out=workspace[2])
    else:  # cumulative: from rank 0; what is no entry, -1, is 255 without a sign
        positive = torch.lt(rank.view(torch.uint8), group.positive.stop, out=workspace[2])
    if group.positive.start == 0 and not group.key_is_positive:
        positive[0] = 0
    e = torch.mul(similarity, math.log2(math.e) / group.tau, out=workspace[0]).exp2_()  # on a CPU, exp takes longer
    s_negative, tiny = negative.mul_(e).sum(0), torch.finfo(e.dtype).tiny
    if group.out:
        if largest_odds < math.inf:
            positive.mul_(torch.gt(e, s_negative / largest_odds, out=workspace[3]))
        count, lost = positive.sum(0), torch.add(e, s_negative, out=workspace[3])
        # log1p of the odds would keep more digits of a loss near 0, and take ten times as long on some CPUs
        # NaN shows, though it is left out
        nll = -e.div_(lost).log_().mul_(positive).sum(0)
        torch.div(s_negative, lost, out=lost)  # 1 - p; that difference would have no digit where odds are small
        moved = positive.mul_(lost).sum(0)
    else:
        s_positive = positive.mul_(e).sum(0)
        at_least = s_positive.clamp(min=tiny)
        odds = s_negative / at_least
        dropped = (s_positive <= 0) | (odds >= largest_odds)  # so written, NaN is kept and shows
        odds = odds.masked_fill(dropped, 0)
        nll, count, moved = odds.log1p(), ~dropped, odds / (1 + odds)
        positive.mul_(moved / at_least)
    moved /= s_negative.clamp_(min=tiny)  # to the negatives, as a factor of their exponentials
    if group.out and group.reduction == "anchors":  # those that are left in share a weight of 1: one term an anchor
        each = count.clamp(min=1).reciprocal_()
        positive.mul_(each)
        nll, count, moved = nll * each, count.clamp(max=1), moved * each
    grads = negative.mul_(moved / group.tau).sub_(positive, alpha=1 / group.tau)
    return nll.sum(), count.sum(dtype=torch.float64).long(), grads


class _RankedLoss(nn.Module):
    """What the losses over a bank share. A subclass registers has_rank [labels, R] bool: which ranks a label has, and
    gives `rank_sources` and `entries_per_rank`.
    """

    has_rank: Tensor

    def __init__(
        self,
        similarities: Sequence[float],
        min_tau: float,
        max_tau: float,
        variant: str,
        cumulative_positives: bool,
        min_probability: float,
        reduction: str,
    ):
        """similarities: of the ranks, falling."""
        super().__init__()
        _check(variant, min_probability, reduction)
        if not 0 < min_tau <= max_tau:
            raise ValueError(f"temperatures need 0 < min_tau <= max_tau, not {min_tau} and {max_tau}")
        self.taus = tuple(min_tau + (1 - s) * (max_tau - min_tau) for s in similarities)
        self.min_probability = min_probability
        self.cumulative = cumulative_positives and len(self.taus) > 1
        self.groups = _groups(self.taus, variant, self.cumulative, reduction)
        self.checked = False  # whether `check` has looked at values on a device

    def check(self, labels: dict[str, Tensor], vectors: dict[str, Tensor]) -> None:
        """Raise ValueError where labels are none of the table, or vectors none of unit length; names are the
        arguments'. On a CPU at each call; elsewhere at the first one, since to look at values waits for the device;
        never where there are none to look at: while it is compiled or traced.
        """
        query = vectors["query"]
        traced = torch.compiler.is_compiling() or type(query) not in (Tensor, nn.Parameter)
        if traced or (self.checked and query.device.type != "cpu"):
            return
        for name, x in labels.items():
            least, most = -1 if name == "bank_labels" else 0, len(self.has_rank) - 1
            wrong = _integers(x, name)
            wrong = wrong[(wrong < least) | (wrong > most)]
            if len(wrong):
                raise ValueError(f"{name} hold {int(wrong[0])}; they must lie from {least} to {most}")
        for name, x in vectors.items():
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                norm = _at_least_float32([x.detach()])[0].norm(dim=-1)
            # rounding to bfloat16 passes, and so do zeros, which are not to be normalised, and NaN, which shows
            wrong = norm[((norm - 1).abs() > 0.02) & (norm > 1e-3)]
            if len(wrong):
                length = f"{float(wrong[0]):.4g}"
                raise ValueError(f"{name} holds a vector of length {length}; normalise: F.normalize({name}, dim=1)")
        self.checked = True

    def ranks(self, labels: Tensor, bank_labels: Tensor) -> Tensor:
        """[N], [K] -> [N, K] int8 rank of each pair of labels; R, as of a negative, for an empty entry."""
        return self.rank_sources(labels, bank_labels).ranks()[1:].T

    def rank_sources(self, labels: Tensor, bank_labels: Tensor) -> RankSources:
        """[N], [K] -> what the ranks of a block of anchors are made from."""
        raise NotImplementedError

    def entries_per_rank(self, labels: Tensor, bank_labels: Tensor) -> Tensor:
        """[N], [K] -> [N, R] float64: how many bank entries each rank of a label has."""
        raise NotImplementedError

    def occurring(self, labels: Tensor) -> Tensor:
        """[N] -> [G] bool: the terms that count in the mean, since some anchor's label has their rank."""
        has = self.has_rank[labels].any(0)
        return torch.stack([has[0], has[1:].any()]) if self.cumulative else has

    def positives_per_anchor(self, labels: Tensor, bank_labels: Tensor) -> Tensor:
        """[R] mean number of positives an anchor has at each rank, the key counted; for logs."""
        mean = self.entries_per_rank(labels.long(), bank_labels.long()).mean(0)
        mean[0] += 1
        return mean.float()

    @torch.no_grad()
    def chance(self, labels: Tensor, bank_labels: Tensor, dim: int) -> Tensor:
        """The loss of random embeddings: the mean term of each of `groups`, which a loss that learns falls below.

        labels: [N] of the anchors; bank_labels: [K]; dim: D -> [G] float64 on the CPU. Queries, keys and banks are
        drawn, uniform on the sphere, by a generator of their own, for 256 anchors whose labels are spread as `labels`;
        of a small bank several. About 1 % off the expected value, a few percent at temperatures below 0.05.
        """
        generator = torch.Generator().manual_seed(0)

        def drawn(n: int) -> Tensor:
            return F.normalize(torch.randn(n, dim, generator=generator), dim=1).to(bank_labels.device)

        anchors = labels.sort().values[torch.arange(256 if len(labels) else 0) * len(labels) // 256]
        sizes, banks = (len(anchors), len(anchors), len(bank_labels)), 1 + 2**12 // (len(bank_labels) + 1)
        drawings = [self.terms(q, k, anchors, m, bank_labels) for q, k, m in (map(drawn, sizes) for _ in range(banks))]
        total, count, occurs = (torch.stack(part) for part in zip(*drawings, strict=True))
        return RankTerms(total.sum(0), count.sum(0), occurs[0]).per_rank().double().cpu()

    def terms(self, query: Tensor, key: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor) -> RankTerms:
        """The terms of each rank; the arguments of `forward`, whose values it does not check."""
        labels, bank_labels = _integers(labels, "labels"), _integers(bank_labels, "bank_labels")
        with torch.autocast(query.device.type, enabled=False):
            q, k, m = _at_least_float32([query, key, bank])
            sources = self.rank_sources(labels, bank_labels)
            total, count = FastTerms.apply(q, (q * k).sum(1), m, sources, self.groups, self.min_probability)
        return RankTerms(total, count, self.occurring(labels))

    def forward(self, query: Tensor, key: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor) -> Tensor:
        """query, key: [N, D] unit vectors; labels: [N] from 0; bank: [K, D]; bank_labels: [K], -1 = empty -> scalar.

        Labels are of any integer type. The bank may be overwritten between this and backward. Raises ValueError for
        labels that the table has not, and for vectors of another length, whose sums of exponentials would leave
        float32's range; on CUDA the values are looked at once.
        """
        self.check({"labels": labels, "bank_labels": bank_labels}, {"query": query, "key": key, "bank": bank})
        return self.terms(query, key, labels, bank, bank_labels).loss()


class RINCELoss(_RankedLoss):
    """RINCE with ranks from a class-similarity table and temperatures that grow with distance (paper, sec. 3).

    class_similarity: [C, C] in [0, 1], 1 on the diagonal, 0 = unrelated; its distinct positive values, falling, are
        the ranks, and tau_i = min_tau + (1 - s_i) (max_tau - min_tau).
    cumulative_positives: two terms only; the second takes every related class, the own one too, as positive (but not
        the key), and all others as negative, with tau_1; it counts where some anchor has a similar class.
    min_probability: terms of a smaller or equal probability are left out of the mean, as in the published code; those
        hardest terms get no gradient. 0 gives the paper's equation.
    reduction: of the out form's terms. "pairs": their mean over all pairs of the batch, as published: a class with ten
        times the images, in batch and bank alike, weighs a hundred times. "anchors": first over the pairs of an anchor,
        then over the anchors that have one, so that it weighs ten times. Pairs that min_probability leaves out count in
        neither mean. The in form has one term an anchor, and is the same in both.
    Raises ValueError on a table that is no such table, or temperatures that are no temperatures.
    """

    rank: Tensor

    def __init__(
        self,
        class_similarity: Tensor,
        min_tau: float = 0.1,
        max_tau: float = 0.6,
        variant: str = "out_in",
        cumulative_positives: bool = False,
        min_probability: float = 1e-7,
        reduction: str = "pairs",
    ):
        s = torch.as_tensor(class_similarity)
        if s.ndim != 2 or len(s) == 0 or s.shape[0] != s.shape[1]:
            raise ValueError(f"class_similarity has shape {tuple(s.shape)}; [C, C] is needed")
        if not (bool(((s >= 0) & (s <= 1)).all()) and bool((s.diagonal() == 1).all())):
            raise ValueError("class_similarity must lie in [0, 1] and be 1 on the diagonal")
        values = sorted(s[s > 0].unique().tolist(), reverse=True)
        if len(values) > 126:
            raise ValueError(f"class_similarity has {len(values)} distinct values; at most 126 ranks are possible")
        super().__init__(values, min_tau, max_tau, variant, cumulative_positives, min_probability, reduction)

        rank = torch.full_like(s, len(values), dtype=torch.int8)
        for r, value in enumerate(values):
            rank[s == value] = r
        empty_entry = torch.full_like(rank[:, :1], len(values))
        # [C, 1 + C]: the first column is the empty entry of the bank, label -1, always a negative
        self.register_buffer("rank", torch.cat([empty_entry, rank], 1), persistent=False)
        has_rank = torch.stack([(rank == r).any(1) for r in range(len(values))], 1)
        self.register_buffer("has_rank", has_rank, persistent=False)  # [C, R]

    def rank_sources(self, labels: Tensor, bank_labels: Tensor) -> RankSources:
        """[N], [K] -> the table's rows and columns."""
        return RankSources(self.rank[labels], bank_labels + 1)

    def entries_per_rank(self, labels: Tensor, bank_labels: Tensor) -> Tensor:
        """[N], [K] -> [N, R] float64: bank entries of each rank."""
        in_bank = torch.bincount(bank_labels + 1, minlength=self.rank.shape[1]).float()  # the empty entries go first
        # sums, not a product of matrices, which TF32 would round
        per_class = [torch.where(self.rank == r, in_bank, 0).sum(1) for r in range(len(self.taus))]
        return torch.stack(per_class, 1)[labels].double()


class SupConLoss(RINCELoss):
    """Supervised contrastive loss over a bank (SCL in, SCL out): RINCE with one rank.

    "in" has the gradients of Khosla et al.'s (2020) L_in where min_probability leaves nothing out, and is smaller by
    the mean of log |P|. "out" is not their L_out: a pair's denominator holds that positive and the negatives, not the
    other positives, and the mean is over all pairs, not within anchors first (Hoffmann et al. 2022, sec. 3); with
    reduction "anchors" the mean is as theirs, the denominator is not. Where an anchor has one positive, all are equal.
    """

    def __init__(
        self,
        num_classes: int,
        temperature: float = 0.1,
        variant: str = "out",
        min_probability: float = 1e-7,
        reduction: str = "pairs",
    ):
        super().__init__(torch.eye(num_classes), temperature, temperature, variant, False, min_probability, reduction)


class NestedRINCELoss(_RankedLoss):
    """RINCE without classes: ranks from nested groups, such as photograph, place and city, or frame, shot and video.

    groups: [G, L] integers; row g: the group that label g belongs to at each of L levels, the finest (level 0, a
        label's own) to the coarsest. Labels that share a group share all coarser ones. The rank of two labels is the
        finest level at which they share a group; negatives share none. G may be millions: no table of pairs is made.
        Rank i has similarity 1 - i min(0.25, 1 / L), which gives its temperature as in RINCELoss.
    The other arguments are RINCELoss's. Raises ValueError where groups are not nested, or level 0 is not a label's own.
    """

    levels: Tensor

    def __init__(
        self,
        groups: Tensor,
        min_tau: float = 0.1,
        max_tau: float = 0.6,
        variant: str = "out_in",
        cumulative_positives: bool = False,
        min_probability: float = 1e-7,
        reduction: str = "pairs",
    ):
        groups = torch.as_tensor(groups)
        if groups.ndim != 2 or groups.numel() == 0 or groups.shape[1] > 126:
            raise ValueError(f"groups have shape {tuple(groups.shape)}; [G, L] with at most 126 levels is needed")
        step = min(0.25, 1 / groups.shape[1])
        similarities = [1 - i * step for i in range(groups.shape[1])]
        super().__init__(similarities, min_tau, max_tau, variant, cumulative_positives, min_probability, reduction)
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

    def rank_sources(self, labels: Tensor, bank_labels: Tensor) -> RankSources:
        """[N], [K] -> the groups at each level, -1 for an empty entry."""
        entries = self.levels[bank_labels.clamp(min=0)].masked_fill_((bank_labels < 0)[:, None], -1)
        return RankSources(self.levels[labels], entries)

    def entries_per_rank(self, labels: Tensor, bank_labels: Tensor) -> Tensor:
        """[N], [K] -> [N, R] float64: bank entries of each rank."""
        filled = self.levels[bank_labels.clamp(min=0)]  # [K, L]
        weight = (bank_labels >= 0).double()
        shared = [weight.new_zeros(len(labels))]  # entries that share the level's group, those of closer ranks too
        for entry_group, label_group in zip(filled.T, self.levels.T, strict=True):
            per_group = torch.bincount(entry_group, weight, int(label_group.max()) + 1)
            shared.append(per_group[label_group[labels]])
        return torch.stack(shared, 1).diff()


# ---- without a bank: the batch's own keys ----------------------------------------------------------------------------


class _GatherKeys(torch.autograd.Function):
    """[N, D] of every process -> [world N, D] in rank order; the gradient of a key is the sum over all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def _all_reduce(x: Tensor, op: str) -> Tensor:
    dist.all_reduce(x, {"sum": dist.ReduceOp.SUM}[op])
    return x


class InBatchLoss(nn.Module):
    """A loss over ranks whose candidates are the batch's own keys, of all processes, instead of a bank.

    criterion: RINCELoss, SupConLoss or NestedRINCELoss; its temperatures, ranks, form, filter, reduction hold. An
        anchor's key is a positive of rank 0, as with a bank. Without keys, the queries are the candidates of one
        another, and an anchor is none of its own: one that is alone in its class then has no positive and adds nothing,
        and a batch without any positive has loss 0, with a graph. Two views of each image as anchors and candidates
        alike, as in SimCLR and SupCon, are `forward(torch.cat([x, y]), None, labels.repeat(2))`. The mean is over the
        ranks that the anchors have in the criterion's table, whether or not the batch holds a positive of them.

    Processes: where torch.distributed is initialised, keys and labels of all are gathered; every process must bring
    equally many. Terms are summed over processes before they are divided by their number, so that the mean over the
    processes of what `forward` returns is the loss of the whole batch, and DistributedDataParallel, which averages
    gradients, gives the gradient that one process has on the whole batch. Keys get gradients, from all processes;
    detach them where a momentum encoder makes them.
    """

    def __init__(self, criterion: _RankedLoss):
        super().__init__()
        self.criterion = criterion

    def terms(self, query: Tensor, key: Tensor | None, labels: Tensor) -> RankTerms:
        """The terms of each rank; the arguments of `forward`, whose values it does not check."""
        labels = _integers(labels, "labels")
        c, several = self.criterion, dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        groups = c.groups if key is not None else tuple(g._replace(key_is_positive=False) for g in c.groups)
        with torch.autocast(query.device.type, enabled=False):
            q, k = _at_least_float32([query, query if key is None else key])
            first = dist.get_rank() * len(q) if several else 0
            keys = _GatherKeys.apply(k) if several else k
            with torch.no_grad():
                key_labels = _GatherKeys.apply(labels) if several else labels
                place = first + torch.arange(len(q), device=q.device)  # of the key among the keys
                sources = c.rank_sources(labels, key_labels)._replace(key_index=place)
            total, count = FastTerms.apply(q, (q * k).sum(1), keys, sources, groups, c.min_probability)
        terms = RankTerms(total, count, c.occurring(labels))
        return terms.over_processes(_all_reduce, dist.get_world_size()) if several else terms

    def forward(self, query: Tensor, key: Tensor | None, labels: Tensor) -> Tensor:
        """query, key: [N, D] unit vectors, key None = the queries themselves; labels: [N] from 0 -> scalar.

        Raises ValueError as the criterion's forward does.
        """
        vectors = {"query": query} if key is None else {"query": query, "key": key}
        self.criterion.check({"labels": labels}, vectors)
        return self.terms(query, key, labels).loss()

"""Losses over ranks: RINCE, its one-rank case, its baselines over groups of classes, and HiMulCon.

Each takes its ranks from a class-similarity table [C, C], or from any `Ranks`: nested groups, distances of values.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .bank_loss import BankLoss, Candidates
from .blocks import Group
from .equations import VARIANTS, RankTerms, check_form
from .ranks import NestedRanks, Ranks, as_ranks

POSITIVES = ("separate", "cumulative", "nested")  # of RINCE's terms


class RankedLoss(BankLoss):
    """A loss whose terms part the ranks into positives, negatives and what is left out.

    ranks: a table as in RINCELoss, or Ranks. groups: the terms; uses: of each, the ranks of which some must occur so
    that it counts. weights: of a weighted sum of the terms' means; None: their mean.
    """

    has_term: Tensor
    weights: Tensor | None

    def __init__(
        self,
        ranks: Ranks,
        groups: Sequence[Group],
        uses: Sequence[range],
        weights: Sequence[float] | None = None,
    ):
        if min(group.tau for group in groups) <= 0:
            raise ValueError(f"temperatures are {', '.join(f'{g.tau:g}' for g in groups)}; they must be above 0")
        super().__init__(len(ranks.has_rank), tuple(group.tau for group in groups))
        self.ranks, self.groups = ranks, tuple(groups)
        has_term = torch.stack([ranks.has_rank[:, used.start : used.stop].any(1) for used in uses], 1)
        self.register_buffer("has_term", has_term, persistent=False)  # [labels, G]
        given = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        self.register_buffer("weights", given, persistent=False)

    def compare(self, candidates: Candidates) -> RankTerms:
        """The terms of anchors among candidates, float32 or better."""
        sources = candidates.place_key(self.ranks.sources(candidates.labels, candidates.entry_labels))
        total, count = candidates.compute(sources, self.groups)
        weights = None if self.weights is None else self.weights.to(total)
        return RankTerms(total, count, self.occurring(candidates.labels), weights)

    def occurring(self, labels: Tensor) -> Tensor:
        """[N] -> [G] bool: the terms that count in the mean, since some anchor's label has their rank."""
        return self.has_term[labels].any(0)

    def positives_per_anchor(self, labels: Tensor, bank_labels: Tensor) -> Tensor:
        """[N], [K] -> [G] mean number of positives an anchor has in each term; for logs."""
        of_rank = self.ranks.entries_per_rank(labels.long(), bank_labels.long()).mean(0)
        sums = [of_rank[g.positive.start : g.positive.stop].sum() + g.key_is_positive for g in self.groups]
        return torch.stack(sums).float()


class RINCELoss(RankedLoss):
    """RINCE with ranks from a class-similarity table and temperatures that grow with distance (paper, sec. 3).

    class_similarity: [C, C] in [0, 1], 1 on the diagonal, 0 = unrelated; its distinct positive values, falling, are
        the ranks, and tau_i = min_tau + (1 - s_i) (max_tau - min_tau). Or any Ranks.
    variant: the form of the terms, "in", "out", "out_in" (rank 0 out, farther ranks in), "all" (as L_out of Khosla et
        al. 2020: an anchor's positives, averaged, stay in one another's denominator) or "all_in".
    positives: "separate": a term per rank, in which closer ranks are left out (paper, eq. 4 to 6). "cumulative": two
        terms only, as the official CIFAR-100 flags train; the second takes every related class, the own one too, as
        positive (but not the key), and all others as negative, with tau_1; it counts where some anchor has a similar
        class. "nested": a term per rank, with all ranks up to it as positives, the key in every one.
    cumulative_positives: True is positives="cumulative".
    min_probability: terms of a smaller or equal probability are left out of the mean, as in the published code; those
        hardest terms get no gradient. 0 gives the paper's equation. The form "all" leaves none out.
    reduction: of the out form's terms. "pairs": their mean over all pairs of the batch, as published: a class with ten
        times the images, in batch and bank alike, weighs a hundred times. "anchors": first over the pairs of an anchor,
        then over the anchors that have one, so that it weighs ten times. Pairs that min_probability leaves out count in
        neither mean. The other forms have one term an anchor, and are the same in both.
    Raises ValueError on a table that is no such table, or temperatures that are no temperatures.
    """

    def __init__(
        self,
        class_similarity: Tensor | Ranks,
        min_tau: float = 0.1,
        max_tau: float = 0.6,
        variant: str = "out_in",
        cumulative_positives: bool = False,
        min_probability: float = 1e-7,
        reduction: str = "pairs",
        positives: str = "separate",
    ):
        check_form(variant, min_probability, reduction)
        if positives not in POSITIVES:
            raise ValueError(f"positives are {positives!r}; choose one of {', '.join(POSITIVES)}")
        if not 0 < min_tau <= max_tau:
            raise ValueError(f"temperatures need 0 < min_tau <= max_tau, not {min_tau} and {max_tau}")
        ranks, forms = as_ranks(class_similarity), VARIANTS[variant]
        taus = tuple(min_tau + (1 - s) * (max_tau - min_tau) for s in ranks.similarities)
        n = len(taus)
        uses = [range(r, r + 1) for r in range(n)]
        sets = uses
        if cumulative_positives or positives == "cumulative":
            sets, uses = [range(1), range(n)][:n], [range(1), range(1, n)][:n]
        elif positives == "nested":
            sets = [range(r + 1) for r in range(n)]
        groups = [
            Group(taus[i], forms[min(i, 1)], of, i == 0 or positives == "nested", min_probability, reduction)
            for i, of in enumerate(sets)
        ]
        super().__init__(ranks, groups, uses)


class SupConLoss(RINCELoss):
    """Supervised contrastive loss over a bank: RINCE with one rank (SCL in, SCL out), or SupCon.

    variant "all" is L_out of Khosla et al. (2020, eq. 2), which the field calls SupCon. "in" has the gradients of their
    L_in where min_probability leaves nothing out, and is smaller by the mean of log |P|. "out" is not their L_out: a
    pair's denominator holds that positive and the negatives, not the other positives, and the mean is over all pairs,
    not within anchors first (Hoffmann et al. 2022, sec. 3); with reduction "anchors" the mean is as theirs, and with
    min_probability 0 it is SINCERE (Feeney and Hughes 2023). Where an anchor has one positive, all are equal.
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


class NestedRINCELoss(RINCELoss):
    """RINCE without classes: ranks from nested groups, such as photograph, place and city, or frame, shot and video.

    groups: [G, L] integers, as in NestedRanks. The other arguments are RINCELoss's.
    Raises ValueError where groups are not nested, or level 0 is not a label's own.
    """

    def __init__(self, groups: Tensor, *args: Any, **kwargs: Any):
        super().__init__(NestedRanks(groups), *args, **kwargs)


class CoarseSupConLoss(RankedLoss):
    """SupConLoss on the coarsest groups: every related class, and the key, is a positive (a baseline of the paper).

    ranks: a table as in RINCELoss, or Ranks. With fine=True the sum of this and of SupConLoss on the classes: two
    losses, over one head. The other arguments are SupConLoss's. Raises ValueError where there is one rank only.
    """

    def __init__(
        self,
        ranks: Tensor | Ranks,
        temperature: float = 0.1,
        variant: str = "out",
        min_probability: float = 1e-7,
        reduction: str = "pairs",
        fine: bool = False,
    ):
        check_form(variant, min_probability, reduction)
        ranks, form = as_ranks(ranks), VARIANTS[variant][0]
        n = _several(ranks)
        sets = [range(1), range(n)] if fine else [range(n)]
        groups = [Group(temperature, form, of, True, min_probability, reduction) for of in sets]
        super().__init__(ranks, groups, sets, (1.0,) * len(sets))


class HiMulConLoss(RankedLoss):
    """HiMulCon, the hierarchical multi-label contrastive loss (Zhang et al. 2022): (1 / L) sum over l of w_l L_l.

    ranks: a table as in RINCELoss, or Ranks; L ranks are the levels, l = 1 the finest. L_l is SupCon (form "all") with
    the ranks up to level l as positives, w_l = 2^(1 / l).
    enforce: HiMulConE; a level's term is at least the largest of finer levels, taken of the means over the batch as
        the public code does (the paper's is per pair).
    Raises ValueError where there is one rank only, which is SupCon.
    """

    def __init__(self, ranks: Tensor | Ranks, temperature: float = 0.1, enforce: bool = False):
        ranks = as_ranks(ranks)
        n = _several(ranks)
        sets = [range(r + 1) for r in range(n)]
        groups = [Group(temperature, "all", of, True, 0.0, "anchors") for of in sets]
        super().__init__(ranks, groups, sets, [2 ** (1 / level) / n for level in range(1, n + 1)])
        self.enforce = enforce

    def compare(self, candidates: Candidates) -> RankTerms:
        """The terms of anchors among candidates, float32 or better."""
        terms = super().compare(candidates)
        return terms.rising() if self.enforce else terms


def _several(ranks: Ranks) -> int:
    if len(ranks.similarities) < 2:
        raise ValueError(
            "there is one rank, and this loss needs groups of classes, or several distances; one rank alone is SupCon"
        )
    return len(ranks.similarities)


class TwoHeadLoss(BankLoss):
    """The sum of two losses, of which each has one half of the vectors: a head each (a baseline of the paper).

    fine, coarse: losses of one term. Queries, keys and entries are [n, 2 D]; their halves are normalized here.
    """

    def __init__(self, fine: BankLoss, coarse: BankLoss):
        super().__init__(fine.num_labels, fine.taus + coarse.taus)
        self.fine, self.coarse = fine, coarse

    def compare(self, candidates: Candidates) -> RankTerms:
        """The terms of anchors among candidates, float32 or better."""
        halves = [x.chunk(2, dim=1) for x in (candidates.query, candidates.key, candidates.entries)]
        found = []
        for half, loss in enumerate((self.fine, self.coarse)):
            q, k, m = (F.normalize(x[half], dim=1) for x in halves)
            found.append(loss.compare(candidates._replace(query=q, key=k, entries=m)))
        total, count, occurs = (torch.cat([getattr(t, n) for t in found]) for n in ("total", "count", "occurs"))
        return RankTerms(total, count, occurs, torch.ones_like(total))

    def positives_per_anchor(self, labels: Tensor, bank_labels: Tensor) -> Tensor:
        """[N], [K] -> [G] mean number of positives an anchor has in each term; for logs."""
        return torch.cat([loss.positives_per_anchor(labels, bank_labels) for loss in (self.fine, self.coarse)])

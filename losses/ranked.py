"""Losses over ranks: RINCE, its one-rank case, its baselines over groups, and HiMulCon.

Each takes its ranks from a class-similarity table (C, C), or from any ``Ranks``: nested groups, distances of values.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .bank_loss import BankLoss, Candidates
from .blocks import Group
from .equations import VARIANTS, RankTerms, check_form
from .ranks import NestedRanks, Ranks, as_ranks

POSITIVES = ("separate", "cumulative", "nested")  # of RINCE's terms


class RankedLoss(BankLoss):
    """Compute a loss whose terms divide the ranks into positives, negatives and the rest.

    Args:
        ranks: Ranks of the labels, R of them.
        groups: The terms, G of them.
        uses: Ranks of each term, some of which must occur so that the term counts.
        weights: Weights of a sum of the terms' means, G of them. None means the mean of those that count.

    Raises:
        ValueError: If a temperature is not above 0.
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
        """Compute the terms of anchors among candidates, which are in float32 or better."""
        sources = candidates.place_key(self.ranks.sources(candidates.labels, candidates.entry_labels))
        total, count = candidates.compute(sources, self.groups)
        weights = None if self.weights is None else self.weights.to(total)
        return RankTerms(total, count, self.occurring(candidates.labels), weights)

    def occurring(self, labels: Tensor) -> Tensor:
        """Return which terms count in the mean, (G,), bool: some label (N,) has their rank."""
        return self.has_term[labels].any(0)

    def positives_per_anchor(self, labels: Tensor, bank_labels: Tensor) -> Tensor:
        """Count the positives that an anchor has in each term, for logs.

        Args:
            labels: Labels of the anchors, (N,).
            bank_labels: Labels of the bank, (K,); -1 for an empty entry.

        Returns:
            Mean number of positives, (G,).
        """
        of_rank = self.ranks.entries_per_rank(labels.long(), bank_labels.long()).mean(0)
        sums = [of_rank[g.positive.start : g.positive.stop].sum() + g.key_is_positive for g in self.groups]
        return torch.stack(sums).float()


class RINCELoss(RankedLoss):
    """Compute the ranked InfoNCE loss (RINCE) over a memory bank.

    Every distinct positive similarity is one rank. The term of rank ``i`` has the entries of rank ``i`` as positives
    and all farther entries as negatives, at temperature ``min_tau + (1 - s_i) * (max_tau - min_tau)``. Entries of
    closer ranks are left out (Hoffmann et al. 2022, eq. 4 to 6). The loss is the mean over the ranks that the anchors'
    classes have.

    Args:
        class_similarity: Similarities of the classes, (C, C), in [0, 1], 1 on the diagonal; 0 means unrelated. Or any
            ``Ranks``.
        min_tau: Temperature of rank 0.
        max_tau: Temperature that a similarity of 0 would have.
        variant: Form of the terms: ``in``, ``out``, ``out_in`` (rank 0 *out*, farther ranks *in*), ``all`` or
            ``all_in``. In the form *all*, L_out of Khosla et al. (2020), the positives of an anchor are averaged and
            stay in one another's denominator.
        cumulative_positives: True is ``positives="cumulative"``.
        min_probability: Terms of at most this probability are left out of the mean, as in the official implementation;
            these hardest terms get no gradient. 0 gives the equation of the paper. The form *all* leaves none out.
        reduction: Mean of the terms of the *out* form. ``pairs``: over all pairs of the batch, as published. A class
            with ten times the images, in batch and bank alike, then weighs a hundred times. ``anchors``: over the pairs
            of each anchor, then over the anchors that have one, so that it weighs ten times. Pairs that
            ``min_probability`` leaves out count in neither mean. The other forms have one term per anchor, and are the
            same in both.
        positives: ``separate``: one term per rank, in which closer ranks are left out. ``cumulative``: two terms, as
            the official CIFAR-100 commands train. The second has every related class as positive, the anchor's too but
            not the key, and all others as negative, with the temperature of rank 1. It counts where some anchor has a
            related class. ``nested``: one term per rank, with all ranks up to it as positives, and the key in each.

    Raises:
        ValueError: If the table is not square, leaves [0, 1] or is not 1 on the diagonal; unless
            ``0 < min_tau <= max_tau``; if another argument is invalid.

    Shape:
        - query, key: (N, D), L2-normalized; labels: (N,); bank: (K, D); bank_labels: (K,), -1 for an empty entry.
        - output: scalar.

    Examples:
        >>> criterion = RINCELoss(torch.tensor([[1.0, 0.75, 0.0], [0.75, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        >>> query, labels = F.normalize(torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0]]), dim=1), torch.tensor([0, 1])
        >>> print(f"{criterion(query, query, labels, bank=torch.eye(3), bank_labels=torch.arange(3)):.3f}")
        0.068
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
    """Compute a supervised contrastive loss over a memory bank: SCL in, SCL out, or SupCon.

    This is RINCE with one rank. ``all`` is L_out of Khosla et al. (2020, eq. 2), which the field calls SupCon. ``in``
    has the gradients of their L_in if ``min_probability`` leaves nothing out, and is smaller by the mean of log |P|.
    ``out`` is not their L_out: the denominator of a pair holds that positive and the negatives, not the other
    positives, and the mean is over all pairs, not within anchors first (Hoffmann et al. 2022, sec. 3). With
    ``reduction="anchors"`` the mean is theirs, and with ``min_probability=0`` as well it is SINCERE (Feeney and Hughes
    2023). Where each anchor has one positive, all forms are equal.

    Args:
        num_classes: Number of classes C; labels count from 0.
        temperature: Temperature.
        variant: ``in``, ``out`` or ``all``.
        min_probability: Terms of at most this probability are left out, as in ``RINCELoss``.
        reduction: ``pairs`` or ``anchors``, as in ``RINCELoss``.

    Raises:
        ValueError: If an argument is invalid.

    Shape:
        - query, key: (N, D), L2-normalized; labels: (N,); bank: (K, D); bank_labels: (K,), -1 for an empty entry.
        - output: scalar.

    Examples:
        >>> criterion = SupConLoss(num_classes=2, temperature=0.5, variant="all")
        >>> x, labels = torch.eye(2), torch.tensor([0, 1])
        >>> print(f"{criterion(x, x, labels, bank=x, bank_labels=labels):.3f}")
        0.759
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
    """Compute RINCE without classes, over ranks from nested groups.

    Groups are, for example, photograph, place and city, or frame, shot and video. All arguments but the groups are
    those of ``RINCELoss``.

    Args:
        groups: Group of each label at each level, (G, L), as in ``NestedRanks``.
        min_tau: Temperature of rank 0.
        max_tau: Temperature that a similarity of 0 would have.
        variant: ``in``, ``out``, ``out_in``, ``all`` or ``all_in``.
        cumulative_positives: True is ``positives="cumulative"``.
        min_probability: Terms of at most this probability are left out of the mean.
        reduction: ``pairs`` or ``anchors``.
        positives: ``separate``, ``cumulative`` or ``nested``.

    Raises:
        ValueError: If groups are not nested, level 0 is not a label's own, or another argument is invalid.

    Shape:
        - query, key: (N, D), L2-normalized; labels: (N,); bank: (K, D); bank_labels: (K,), -1 for an empty entry.
        - output: scalar.

    Examples:
        >>> criterion = NestedRINCELoss(torch.tensor([[0, 0], [1, 0], [2, 1]]))  # frames 0 and 1 are of one video
        >>> x, labels = torch.eye(3), torch.arange(3)
        >>> print(f"{criterion(x, x, labels, bank=x, bank_labels=labels):.3f}")
        0.347
    """

    def __init__(
        self,
        groups: Tensor,
        min_tau: float = 0.1,
        max_tau: float = 0.6,
        variant: str = "out_in",
        cumulative_positives: bool = False,
        min_probability: float = 1e-7,
        reduction: str = "pairs",
        positives: str = "separate",
    ):
        ranks = NestedRanks(groups)
        super().__init__(ranks, min_tau, max_tau, variant, cumulative_positives, min_probability, reduction, positives)


class CoarseSupConLoss(RankedLoss):
    """Compute a supervised contrastive loss in which every related class is a positive.

    The anchor's key is a positive too. This is a baseline of the RINCE paper.

    Args:
        ranks: Similarities of the classes, (C, C), as in ``RINCELoss``, or any ``Ranks``.
        temperature: Temperature.
        variant: ``in``, ``out`` or ``all``, as in ``SupConLoss``.
        min_probability: Terms of at most this probability are left out, as in ``RINCELoss``.
        reduction: ``pairs`` or ``anchors``, as in ``RINCELoss``.
        fine: Whether ``SupConLoss`` on the classes is added: two losses over one head.

    Raises:
        ValueError: If there is one rank only, or another argument is invalid.

    Shape:
        - query, key: (N, D), L2-normalized; labels: (N,); bank: (K, D); bank_labels: (K,), -1 for an empty entry.
        - output: scalar.

    Examples:
        >>> criterion = CoarseSupConLoss(torch.tensor([[1.0, 0.75, 0.0], [0.75, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        >>> x, labels = torch.eye(3), torch.arange(3)
        >>> print(f"{criterion(x, x, labels, bank=x, bank_labels=labels):.3f}")
        0.173
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
    """Compute HiMulCon, the hierarchical multi-label contrastive loss (Zhang et al. 2022).

    The loss is (1 / L) sum over levels l of 2^(1 / l) L_l. L_l is SupCon, with the ranks up to level l as positives; l
    = 1 is the finest level.

    Args:
        ranks: Similarities of the classes, (C, C), as in ``RINCELoss``, or any ``Ranks``; the L ranks are the levels.
        temperature: Temperature.
        enforce: Whether the term of a level is at least the largest of finer levels (HiMulConE). The terms compared are
            means over the batch, as in the authors' code; the paper compares pairs.

    Raises:
        ValueError: If there is one rank only, which is SupCon, or the temperature is not above 0.

    Shape:
        - query, key: (N, D), L2-normalized; labels: (N,); bank: (K, D); bank_labels: (K,), -1 for an empty entry.
        - output: scalar.

    Examples:
        >>> criterion = HiMulConLoss(torch.tensor([[1.0, 0.75, 0.0], [0.75, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        >>> x, labels = torch.eye(3), torch.arange(3)
        >>> print(f"{criterion(x, x, labels, bank=x, bank_labels=labels):.3f}")
        2.755
    """

    def __init__(self, ranks: Tensor | Ranks, temperature: float = 0.1, enforce: bool = False):
        ranks = as_ranks(ranks)
        n = _several(ranks)
        sets = [range(r + 1) for r in range(n)]
        groups = [Group(temperature, "all", of, True, 0.0, "anchors") for of in sets]
        super().__init__(ranks, groups, sets, [2 ** (1 / level) / n for level in range(1, n + 1)])
        self.enforce = enforce

    def compare(self, candidates: Candidates) -> RankTerms:
        """Compute the terms of anchors among candidates, which are in float32 or better."""
        terms = super().compare(candidates)
        return terms.rising() if self.enforce else terms


def _several(ranks: Ranks) -> int:
    if len(ranks.similarities) < 2:
        raise ValueError(
            "there is one rank, and this loss needs groups of classes, or several distances; one rank alone is SupCon"
        )
    return len(ranks.similarities)


class TwoHeadLoss(BankLoss):
    """Add two losses, each of which takes one half of the dimensions: a projection head each.

    This is a baseline of the RINCE paper.

    Args:
        fine: Loss of one term, for the first half.
        coarse: Loss of one term, for the second half.

    Shape:
        - query, key: (N, 2 D); labels: (N,); bank: (K, 2 D); bank_labels: (K,), -1 for an empty entry. The halves are
          L2-normalized by the loss.
        - output: scalar.

    Examples:
        >>> table = torch.tensor([[1.0, 0.75, 0.0], [0.75, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> criterion = TwoHeadLoss(SupConLoss(num_classes=3), CoarseSupConLoss(table))
        >>> x, labels = F.normalize(torch.eye(3).repeat(1, 2), dim=1), torch.arange(3)
        >>> print(f"{criterion(x, x, labels, bank=x, bank_labels=labels):.3f}")
        0.173
    """

    def __init__(self, fine: BankLoss, coarse: BankLoss):
        super().__init__(fine.num_labels, fine.taus + coarse.taus)
        self.fine, self.coarse = fine, coarse

    def compare(self, candidates: Candidates) -> RankTerms:
        """Compute the terms of anchors among candidates, which are in float32 or better."""
        halves = [x.chunk(2, dim=1) for x in (candidates.query, candidates.key, candidates.entries)]
        found = []
        for half, loss in enumerate((self.fine, self.coarse)):
            q, k, m = (F.normalize(x[half], dim=1) for x in halves)
            found.append(loss.compare(candidates._replace(query=q, key=k, entries=m)))
        total, count, occurs = (torch.cat([getattr(t, n) for t in found]) for n in ("total", "count", "occurs"))
        return RankTerms(total, count, occurs, torch.ones_like(total))

    def positives_per_anchor(self, labels: Tensor, bank_labels: Tensor) -> Tensor:
        """Count the positives that an anchor has in each term, for logs.

        Args:
            labels: Labels of the anchors, (N,).
            bank_labels: Labels of the bank, (K,); -1 for an empty entry.

        Returns:
            Mean number of positives, (G,).
        """
        return torch.cat([loss.positives_per_anchor(labels, bank_labels) for loss in (self.fine, self.coarse)])

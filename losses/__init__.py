"""Objectives of contrastive learning with graded similarity: RINCE (Hoffmann et al., "Ranking Info Noise Contrastive
Estimation", AAAI 2022) and its rivals. Needs nothing but torch.

Shapes: N anchors, K bank entries, D dimensions, C classes, R ranks. All is computed in float32 or better, whatever
autocast says, and in log space where exponentials would not do. Nothing depends on the data's values for its shape, and
nothing waits for the device, but the first `forward` of a loss, which checks what it is given; training calls `terms`.
"""

from .bank_loss import BankLoss, Candidates
from .equations import REDUCTIONS, VARIANTS, RankTerms, rince, rince_terms
from .graded import RankNContrastLoss, TripletLoss, XCLRLoss, YAwareLoss
from .in_batch import InBatchLoss
from .ranked import (
    POSITIVES,
    CoarseSupConLoss,
    HiMulConLoss,
    NestedRINCELoss,
    RINCELoss,
    SupConLoss,
    TwoHeadLoss,
)
from .ranks import ClassRanks, NestedRanks, Ranks, ValueRanks

__all__ = [
    "POSITIVES", "REDUCTIONS", "VARIANTS", "BankLoss", "Candidates", "ClassRanks", "CoarseSupConLoss", "HiMulConLoss",
    "InBatchLoss", "NestedRINCELoss", "NestedRanks", "RINCELoss", "RankNContrastLoss", "RankTerms", "Ranks",
    "SupConLoss", "TripletLoss", "TwoHeadLoss", "ValueRanks", "XCLRLoss", "YAwareLoss", "rince", "rince_terms",
]  # fmt: skip

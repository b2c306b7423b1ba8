"""Losses of contrastive learning with graded similarity: RINCE and its rivals.

RINCE is the loss of Hoffmann et al., "Ranking Info Noise Contrastive Estimation", AAAI 2022. The package needs nothing
but torch.

Shapes: N anchors, K bank entries, D dimensions, C classes, R ranks. All losses compute in float32 or better, also under
autocast, and in log space where exponentials would overflow. No shape depends on the values of the data. No call waits
for the device, except the first ``forward`` of a loss, which checks its input. Training calls ``terms``, which does not
check.
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

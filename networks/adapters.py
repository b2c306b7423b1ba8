"""Frozen encoders as other people's OOD detectors take them: pytorch-ood's, and OpenOOD's."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UnitFeatures(nn.Module):
    """An encoder whose features [N, d] have length 1, as this project's own detectors take them."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder, self.dim = encoder, encoder.dim

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.encoder(images).float(), dim=1)


class OpenOODNet(nn.Module):
    """What OpenOOD's postprocessors ask of a network: logits, features before the last layer, and that layer.

    encoder: [N, 3, H, W] -> [N, d]; fc: a linear layer [d -> C]. A contrastive encoder has none: `of_means` makes one
    of the means of its classes. Detectors that look at features alone (MDS, RMDS, KNN) do not depend on it; those that
    look at a classifier's weights or logits (ReAct, ViM, ASH, DICE, MSP, energy) have no meaning then.
    """

    def __init__(self, encoder: nn.Module, fc: nn.Linear):
        super().__init__()
        self.backbone, self.fc, self.feature_size = encoder, fc, fc.in_features

    @classmethod
    def of_means(cls, encoder: nn.Module, means: Tensor) -> "OpenOODNet":
        """With cosines to class means [C, d] as logits; features of length 1."""
        layer = nn.Linear(means.shape[1], len(means), bias=True)
        with torch.no_grad():
            layer.weight.copy_(F.normalize(means.float(), dim=1))
            layer.bias.zero_()
        return cls(UnitFeatures(encoder), layer)

    def forward(
        self, x: Tensor, return_feature: bool = False, return_feature_list: bool = False
    ) -> Tensor | tuple[Tensor, Tensor | list[Tensor]]:
        """Logits [N, C]; with return_feature also features [N, d], with return_feature_list those in a list."""
        feature = self.backbone(x)
        logits = self.fc(feature)
        if return_feature_list:
            return logits, [feature]
        return (logits, feature) if return_feature else logits

    def forward_threshold(self, x: Tensor, threshold: float) -> Tensor:
        """Logits of features cut at a threshold (ReAct)."""
        return self.fc(self.backbone(x).clip(max=threshold))

    def get_fc(self) -> tuple[Any, Any]:
        """Weight [C, d] and bias [C] of the last layer, as NumPy's arrays."""
        return self.fc.weight.detach().cpu().numpy(), self.fc.bias.detach().cpu().numpy()

    def get_fc_layer(self) -> nn.Linear:
        """The last layer."""
        return self.fc

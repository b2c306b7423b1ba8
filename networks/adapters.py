"""Frozen encoders as pytorch-ood's and OpenOOD's detectors of outliers take them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UnitFeatures(nn.Module):
    """Encode images as L2-normalized features, as this project's own detectors take them.

    Args:
        encoder: Any encoder, (N, ...) to (N, d), with its attribute ``dim``.

    Shape:
        - images: (N, 3, H, W), or what the encoder takes.
        - output: (N, d).

    Examples:
        >>> encoder = vectors.vector_encoder("linear", dim=2)
        >>> UnitFeatures(encoder)(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder, self.dim = encoder, encoder.dim

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features of images."""
        return F.normalize(self.encoder(images).float(), dim=1)


class OpenOODNet(nn.Module):
    """Give OpenOOD's postprocessors what they ask of a network: logits, features, last layer.

    A contrastive encoder has no last layer: ``of_means`` makes one of the means of its classes. Detectors that look at
    features alone (MDS, RMDS, KNN) do not depend on it. Those that look at a classifier's weights or logits (ReAct,
    ViM, ASH, DICE, MSP, energy) mean nothing then.

    Args:
        encoder: Any encoder, (N, 3, H, W) to (N, d).
        fc: Linear layer, (N, d) to (N, C).

    Shape:
        - x: (N, 3, H, W).
        - output: logits, (N, C).

    Examples:
        >>> net = OpenOODNet.of_means(vectors.vector_encoder("linear", dim=2), means=torch.eye(2))
        >>> logits, features = net(torch.tensor([[3.0, 4.0]]), return_feature=True)
        >>> logits.shape, features.shape
        (torch.Size([1, 2]), torch.Size([1, 2]))
    """

    def __init__(self, encoder: nn.Module, fc: nn.Linear):
        super().__init__()
        self.backbone, self.fc, self.feature_size = encoder, fc, fc.in_features

    @classmethod
    def of_means(cls, encoder: nn.Module, means: Tensor) -> "OpenOODNet":
        """Make a network whose logits are cosines of features and class means.

        Its features have length 1.

        Args:
            encoder: Any encoder, (N, 3, H, W) to (N, d), with its attribute ``dim``.
            means: Mean of each class, (C, d).

        Returns:
            The network.
        """
        layer = nn.Linear(means.shape[1], len(means), bias=True)
        with torch.no_grad():
            layer.weight.copy_(F.normalize(means.float(), dim=1))
            layer.bias.zero_()
        return cls(UnitFeatures(encoder), layer)

    def forward(
        self, x: Tensor, return_feature: bool = False, return_feature_list: bool = False
    ) -> Tensor | tuple[Tensor, Tensor | list[Tensor]]:
        """Compute logits, and features if asked for.

        Args:
            x: Images, (N, 3, H, W).
            return_feature: Whether features, (N, d), follow.
            return_feature_list: Whether a list of them follows instead.

        Returns:
            Logits, (N, C), or a tuple of these and what was asked for.
        """
        feature = self.backbone(x)
        logits = self.fc(feature)
        if return_feature_list:
            return logits, [feature]
        return (logits, feature) if return_feature else logits

    def forward_threshold(self, x: Tensor, threshold: float) -> Tensor:
        """Compute logits (N, C) of features that are cut at a threshold (ReAct)."""
        return self.fc(self.backbone(x).clip(max=threshold))

    def get_fc(self) -> tuple[Any, Any]:
        """Return weight (C, d) and bias (C,) of the last layer, as NumPy arrays."""
        return self.fc.weight.detach().cpu().numpy(), self.fc.bias.detach().cpu().numpy()

    def get_fc_layer(self) -> nn.Linear:
        """Return the last layer."""
        return self.fc

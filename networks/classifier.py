"""Encoder and linear classifier: the cross-entropy baseline."""

from torch import Tensor, nn


class Classifier(nn.Module):
    """encoder [N, 3, H, W] -> [N, d], its attribute `dim`, then a linear layer: logits [N, classes]."""

    def __init__(self, encoder: nn.Module, classes: int):
        super().__init__()
        self.encoder, self.fc = encoder, nn.Linear(encoder.dim, classes)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.encoder(images))

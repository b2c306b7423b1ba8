"""Encoder and linear classifier: the cross-entropy baseline, and its targets."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module):
    """Classify images by a linear layer over an encoder.

    Args:
        encoder: Any encoder, (N, 3, H, W) to (N, d), with its attribute ``dim``.
        classes: Number of classes.
        superclasses: Number of superclasses, of which a second linear layer has a logit each; 0 for no such layer.

    Shape:
        - images: (N, 3, H, W).
        - output: logits, (N, classes + superclasses).

    Examples:
        >>> model = Classifier(vectors.vector_encoder("linear", dim=8), classes=3, superclasses=2)
        >>> model(torch.zeros(4, 8)).shape
        torch.Size([4, 5])
    """

    def __init__(self, encoder: nn.Module, classes: int, superclasses: int = 0):
        super().__init__()
        self.encoder, self.fc = encoder, nn.Linear(encoder.dim, classes)  # type: ignore[arg-type]
        # made last, so that the rest begins as without it
        self.coarse_fc = nn.Linear(encoder.dim, superclasses) if superclasses else None  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of images."""
        features = self.encoder(images)
        logits = self.fc(features)
        return logits if self.coarse_fc is None else torch.cat([logits, self.coarse_fc(features)], dim=1)


def soft_targets(similarity: Tensor, beta: float) -> Tensor:
    """Spread each class's target over all classes by their similarity, most of it on itself.

    Row y is the softmax over classes c of -beta (1 - S[y, c]): the larger beta, the harder. The soft labels of
    Bertinetto et al. 2020, "Making Better Mistakes", with 1 - S as the distance of two classes.

    Args:
        similarity: Similarities S of the classes, (C, C), real-valued, 1 on the diagonal.
        beta: Inverse temperature, above 0.

    Returns:
        Probabilities, (C, C), each row with the sum 1.

    Examples:
        >>> soft_targets(torch.eye(2), beta=2.0)
        tensor([[0.8808, 0.1192],
                [0.1192, 0.8808]])
    """
    return torch.softmax(-beta * (1 - similarity), dim=1)


def smooth_targets(superclass: Tensor, epsilon: float) -> Tensor:
    """Take epsilon from each class's target and spread it evenly over its siblings.

    Label smoothing (Szegedy et al. 2016) inside superclasses. A class without siblings keeps 1.

    Args:
        superclass: Number of each class's superclass, (C,).
        epsilon: Share of the siblings, in [0, 1].

    Returns:
        Probabilities, (C, C), each row with the sum 1.

    Examples:
        >>> smooth_targets(torch.tensor([0, 0, 1]), epsilon=0.25)
        tensor([[0.7500, 0.2500, 0.0000],
                [0.2500, 0.7500, 0.0000],
                [0.0000, 0.0000, 1.0000]])
    """
    siblings = (superclass[:, None] == superclass).float().fill_diagonal_(0)
    counts = siblings.sum(1, keepdim=True)
    own = 1 - epsilon * (counts > 0).float()
    return epsilon * siblings / counts.clamp(min=1) + torch.diag(own[:, 0])


@dataclass(frozen=True)
class Targets:
    """Hold what a classifier is to predict for each class.

    Attributes:
        probabilities: A row per class, (C, C), as ``soft_targets`` gives them; None for the class itself.
        superclass: Number of each class's superclass, (C,), which a second layer is to predict; None without that
            layer.

    Examples:
        >>> targets = Targets(superclass=torch.tensor([0, 0, 1]))
        >>> targets.superclasses, f"{targets.loss(torch.zeros(4, 5), torch.tensor([0, 1, 2, 2])):.3f}"
        (2, '1.792')
    """

    probabilities: Tensor | None = None
    superclass: Tensor | None = None

    @property
    def superclasses(self) -> int:
        """Number of logits of the second layer; 0 without it."""
        return 0 if self.superclass is None else int(self.superclass.max()) + 1

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean cross-entropy of a batch, with a second layer the sum of both means.

        Args:
            logits: Output of ``Classifier``, (N, C) or (N, C + superclasses).
            labels: Labels, (N,).

        Returns:
            The loss, a scalar.
        """
        target = labels if self.probabilities is None else self.probabilities[labels]
        if self.superclass is None:
            return F.cross_entropy(logits, target)
        of_classes, of_superclasses = logits.tensor_split([len(self.superclass)], dim=1)
        return F.cross_entropy(of_classes, target) + F.cross_entropy(of_superclasses, self.superclass[labels])

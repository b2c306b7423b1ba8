"""Encoder and linear classifier: the cross-entropy baseline, and the targets that it is trained on."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module):
    """encoder [N, 3, H, W] -> [N, d], its attribute `dim`, then a linear layer: logits [N, classes].

    With `superclasses` a second linear layer has a logit for each of these, which follow: [N, classes + superclasses].
    """

    def __init__(self, encoder: nn.Module, classes: int, superclasses: int = 0):
        super().__init__()
        self.encoder, self.fc = encoder, nn.Linear(encoder.dim, classes)  # type: ignore[arg-type]
        # made last, so that the rest begins as without it
        self.coarse_fc = nn.Linear(encoder.dim, superclasses) if superclasses else None  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        features = self.encoder(images)
        logits = self.fc(features)
        return logits if self.coarse_fc is None else torch.cat([logits, self.coarse_fc(features)], dim=1)


def soft_targets(similarity: Tensor, beta: float) -> Tensor:
    """Spread each class's target over all classes by their similarity, the own class the most likely.

    Row y is the softmax over classes c of -beta (1 - S[y, c]): the larger beta, the harder. The soft labels of
    Bertinetto et al. 2020, "Making Better Mistakes", with 1 - S as the distance of two classes.

    Args:
        similarity: S, real-valued, 1 on the diagonal, (C, C).
        beta: Inverse temperature, above 0.

    Returns:
        Probabilities, (C, C), each row with the sum 1.
    """
    return torch.softmax(-beta * (1 - similarity), dim=1)


def smooth_targets(superclass: Tensor, epsilon: float) -> Tensor:
    """Take epsilon from the own class's target and spread it evenly over its siblings.

    Label smoothing (Szegedy et al. 2016) inside superclasses. A class without siblings keeps 1.

    Args:
        superclass: The number of each class's superclass, (C,).
        epsilon: The share of the siblings, in [0, 1].

    Returns:
        Probabilities, (C, C), each row with the sum 1.
    """
    siblings = (superclass[:, None] == superclass).float().fill_diagonal_(0)
    counts = siblings.sum(1, keepdim=True)
    own = 1 - epsilon * (counts > 0).float()
    return epsilon * siblings / counts.clamp(min=1) + torch.diag(own[:, 0])


@dataclass(frozen=True)
class Targets:
    """What a classifier's logits are to say of a class.

    Attributes:
        probabilities: A row per class, (C, C), as `soft_targets` has them; None: the class itself.
        superclass: What a second layer is to say, the number of each class's superclass, (C,); None: it has none.
    """

    probabilities: Tensor | None = None
    superclass: Tensor | None = None

    @property
    def superclasses(self) -> int:
        """How many logits the second layer has; 0 without one."""
        return 0 if self.superclass is None else int(self.superclass.max()) + 1

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean cross-entropy of a batch, with a second layer the sum of both layers' means.

        Shape:
            - logits: of `Classifier`, (N, C) or (N, C + superclasses); labels: (N,).
            - output: scalar.
        """
        target = labels if self.probabilities is None else self.probabilities[labels]
        if self.superclass is None:
            return F.cross_entropy(logits, target)
        of_classes, of_superclasses = logits.tensor_split([len(self.superclass)], dim=1)
        return F.cross_entropy(of_classes, target) + F.cross_entropy(of_superclasses, self.superclass[labels])

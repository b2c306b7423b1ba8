"""Encoders of vectors: small networks over features that another model made."""

from typing import Any

import torch
from torch import Tensor, nn

NAMES = ("linear", "mlp", "residual")
PARTS = ("encoder.", "head.")  # of the names of a model's weights


class Residual(nn.Module):
    """Add to the input a layer of ReLU and a linear one, which begin as 0.

    Args:
        dim: Dimensions d of the vectors.
        hidden: Units of the hidden layer.
        batch_norm: Whether BatchNorm stands between linear layer and ReLU.

    Shape:
        - x: (N, d).
        - output: (N, d).

    Examples:
        >>> Residual(dim=2, hidden=8)(torch.ones(1, 2))
        tensor([[1., 1.]], grad_fn=<AddBackward0>)
    """

    def __init__(self, dim: int, hidden: int, batch_norm: bool = False):
        super().__init__()
        last = nn.Linear(hidden, dim)
        self.block = nn.Sequential(_layer(dim, hidden, batch_norm), nn.ReLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Encode vectors."""
        return x + self.block(x)


def vector_encoder(name: str, dim: int, hidden: int | None = None, batch_norm: bool = False) -> nn.Module:
    """Make an encoder of vectors; its attribute ``dim`` is h.

    Args:
        name: ``linear``, the identity, so that the projection head alone is trained; ``mlp``, a linear layer with ReLU;
            ``residual``, the input plus such a layer and a linear one, which keeps the dimensions.
        dim: Dimensions d of the vectors.
        hidden: Units of the hidden layer; those of the vectors by default.
        batch_norm: Whether BatchNorm stands between linear layer and ReLU.

    Returns:
        The encoder, (N, d) to (N, h).

    Raises:
        ValueError: If there is no encoder of this name.

    Examples:
        >>> encoder = vector_encoder("mlp", dim=768, hidden=256)
        >>> encoder(torch.zeros(4, 768)).shape, encoder.dim
        (torch.Size([4, 256]), 256)
    """
    hidden = hidden or dim
    if name == "linear":
        encoder: nn.Module = nn.Identity()
        encoder.dim = dim  # type: ignore[assignment]
    elif name == "mlp":
        encoder = nn.Sequential(_layer(dim, hidden, batch_norm), nn.ReLU())
        encoder.dim = hidden  # type: ignore[assignment]
    elif name == "residual":
        encoder = Residual(dim, hidden, batch_norm)
        encoder.dim = dim  # type: ignore[assignment]
    else:
        raise ValueError(f"{name} is not an encoder of features; choose one of {', '.join(NAMES)}")
    return encoder


def vector_encoder_like(name: str, weights: dict[str, Tensor], dim: int) -> nn.Module:
    """Make the encoder of vectors that has weights of these names and shapes.

    Args:
        name: ``linear``, ``mlp`` or ``residual``.
        weights: Weights by name.
        dim: Dimensions of the vectors.

    Returns:
        The encoder, with random weights.

    Examples:
        >>> weights = vector_encoder("mlp", dim=8, hidden=4).state_dict()
        >>> vector_encoder_like("mlp", weights, dim=8).dim
        4
    """
    first = next((x for key, x in weights.items() if key.endswith("0.0.weight")), torch.empty(dim, dim))
    return vector_encoder(name, dim, len(first), any("running_mean" in key for key in weights))


class VectorModel(nn.Module):
    """Normalize, encode and project vectors.

    Args:
        encoder: Encoder of vectors, (N, d) to (N, h).
        head: Projection head, (N, h) to (N, D); the identity of a model without one.
        normalize: ``l2``, rows to length 1; ``standard``, by mean and standard deviation; ``none``.
        mean: Mean of each dimension, (d,).
        std: Standard deviation of each dimension, (d,).

    Shape:
        - x: (N, d).
        - output: (N, D).

    Examples:
        >>> model = VectorModel(vector_encoder("linear", dim=2), nn.Identity(), normalize="l2")
        >>> model(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        normalize: str,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ):
        super().__init__()
        self.encoder, self.head, self.normalize = encoder, head, normalize
        self.mean, self.std = (None if x is None else torch.tensor(x) for x in (mean, std))

    def hidden(self, x: Tensor) -> Tensor:
        """Encode vectors, without the head.

        Args:
            x: Vectors, (N, d).

        Returns:
            Features, (N, h).
        """
        if self.normalize == "l2":
            x = nn.functional.normalize(x, dim=1)
        elif self.mean is not None and self.std is not None:
            x = (x - self.mean.to(x)) / self.std.to(x)
        return self.encoder(x)

    def forward(self, x: Tensor) -> Tensor:
        """Compute embeddings of vectors."""
        return self.head(self.hidden(x))


def build_vector_model(name: str, weights: dict[str, Tensor], card: dict[str, Any]) -> VectorModel:
    """Make a model of vectors from its weights and its model card, in eval mode.

    Args:
        name: Name of the encoder.
        weights: Weights called ``encoder.*`` and ``head.*``.
        card: Model card: ``size``, ``normalize``, and ``mean`` and ``std`` if any.

    Returns:
        The model.

    Examples:
        >>> model = build_vector_model("linear", {}, {"size": 8, "normalize": "none"})
        >>> model(torch.zeros(4, 8)).shape
        torch.Size([4, 8])
    """
    parts = {part: {k.removeprefix(part): x for k, x in weights.items() if k.startswith(part)} for part in PARTS}
    encoder = vector_encoder_like(name, parts["encoder."], card["size"])
    head: nn.Module = nn.Identity()
    if parts["head."]:
        outputs, inputs = parts["head."]["0.weight"].shape
        head = nn.Sequential(nn.Linear(inputs, outputs))
    encoder.load_state_dict(parts["encoder."])
    head.load_state_dict(parts["head."])
    return VectorModel(encoder, head, card["normalize"], card.get("mean"), card.get("std")).eval()


def _layer(dim: int, hidden: int, batch_norm: bool) -> nn.Module:
    linear = nn.Linear(dim, hidden)
    return nn.Sequential(linear, nn.BatchNorm1d(hidden)) if batch_norm else nn.Sequential(linear)

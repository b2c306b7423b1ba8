"""Encoders of vectors: small networks over features that another model made."""

import torch
from torch import Tensor, nn

NAMES = ("linear", "mlp", "residual")


class Residual(nn.Module):
    """x + Linear(h, d)(ReLU(Linear(d, h)(x))), [N, d] -> [N, d]; it begins as the identity."""

    def __init__(self, dim: int, hidden: int, batch_norm: bool = False):
        super().__init__()
        last = nn.Linear(hidden, dim)
        self.block = nn.Sequential(_layer(dim, hidden, batch_norm), nn.ReLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def vector_encoder(name: str, dim: int, hidden: int | None = None, batch_norm: bool = False) -> nn.Module:
    """Make an encoder of vectors, [N, d] -> [N, h]; its attribute ``dim`` is h.

    Args:
        name: ``linear``, the identity, so that the projection head alone is trained; ``mlp``, a linear layer with
            ReLU; ``residual``, the input plus such a layer and a linear one, which keeps the dimensions.
        dim: Dimensions of the vectors.
        hidden: Units of the hidden layer; those of the vectors by default.
        batch_norm: Whether BatchNorm stands between linear layer and ReLU.

    Raises:
        ValueError: If there is no encoder of this name.
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
        raise ValueError(f"{name} is no encoder of vectors; choose one of {', '.join(NAMES)}")
    return encoder


def vector_encoder_like(name: str, weights: dict[str, Tensor], dim: int) -> nn.Module:
    """Make the encoder of vectors that has weights of these names and shapes; dim: as of `vector_encoder`."""
    first = next((x for key, x in weights.items() if key.endswith("0.0.weight")), torch.empty(dim, dim))
    return vector_encoder(name, dim, len(first), any("running_mean" in key for key in weights))


def _layer(dim: int, hidden: int, batch_norm: bool) -> nn.Module:
    linear = nn.Linear(dim, hidden)
    return nn.Sequential(linear, nn.BatchNorm1d(hidden)) if batch_norm else nn.Sequential(linear)

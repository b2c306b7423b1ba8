"""Query encoder, momentum encoder and memory bank: the forward pass of a training step."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .memory_bank import MemoryBank


def projection_head(dim: int, out_dim: int = 128) -> nn.Module:
    """Make the projection head Linear(d, d)-ReLU-Linear(d, out_dim).

    Args:
        dim: Dimensions d of the encoder's output.
        out_dim: Dimensions of the embeddings.

    Returns:
        The head, (N, d) to (N, out_dim).

    Examples:
        >>> projection_head(512)(torch.zeros(4, 512)).shape
        torch.Size([4, 128])
    """
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out_dim))


class Heads(nn.Module):
    """Apply several heads to the features of one encoder, and concatenate their outputs.

    Args:
        *heads: The heads, (N, d) to (N, D) each.

    Shape:
        - x: (N, d).
        - output: (N, sum of all D).

    Examples:
        >>> Heads(projection_head(8, 4), projection_head(8, 4))(torch.zeros(2, 8)).shape
        torch.Size([2, 8])
    """

    def __init__(self, *heads: nn.Module):
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs of all heads."""
        return torch.cat([head(x) for head in self.heads], dim=1)


class Criterion(Protocol):
    """What ``ContrastiveModel`` asks of a loss; ``losses.RINCELoss`` has it."""

    def terms(self, query: Tensor, key: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor) -> Any:
        """Compute the terms of a loss, as ``losses.BankLoss.terms``."""


class ContrastiveModel(nn.Module):
    """Train an encoder against a momentum encoder and a memory bank (He et al. 2020).

    The momentum encoder is a copy of encoder and head. Its parameters follow those of the query encoder without
    gradient, theta_k = m theta_k + (1 - m) theta_q. Its BatchNorm runs in train mode, with statistics of its own. All
    else runs as in evaluation: without dropout and drop-path.

    Args:
        encoder: Any encoder, (N, 3, H, W) to (N, d).
        head: Projection head, (N, d) to (N, D).
        bank: Memory bank of embeddings of D dimensions.
        criterion: Loss whose ``terms`` takes what ``losses.RINCELoss.terms`` takes. Its backward pass must not read the
            bank, in which ``forward`` has put new keys by then.
        momentum: Momentum m of the key encoder, in [0, 1].
        gather: Joins a tensor over all processes in the order of their indices, without gradient, so that each bank
            gets the same keys.
        shuffle: Takes ``encode_keys`` and the images. Gives the keys of these images, and those of all processes in the
            order of their indices, encoded in other batches. None lets each process encode its own.

    Raises:
        ValueError: If the momentum is not in [0, 1].

    Shape:
        - query_view, key_view: (N, 3, H, W), two views of the same images; labels: (N,).
        - output: the terms of the criterion.

    Examples:
        >>> encoder, bank = vectors.vector_encoder("mlp", dim=8), MemoryBank(size=32, dim=4)
        >>> model = ContrastiveModel(encoder, projection_head(8, 4), bank, losses.SupConLoss(num_classes=3))
        >>> views, labels = torch.randn(2, 6, 8), torch.arange(6) % 3  # vectors stand for images
        >>> model(views[0], views[1], labels).loss().backward()
        >>> bank.labels[:8]
        tensor([ 0,  1,  2,  0,  1,  2, -1, -1])
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        bank: MemoryBank,
        criterion: Criterion,
        momentum: float = 0.99,
        gather: Callable[[Tensor], Tensor] = lambda x: x,
        shuffle: Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, Tensor]] | None = None,
    ):
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"the key encoder's momentum is {momentum}; it must lie in [0, 1]")
        self.encoder, self.head = encoder, head
        self.key_encoder, self.key_head = deepcopy(encoder), deepcopy(head)
        for parameter in (*self.key_encoder.parameters(), *self.key_head.parameters()):
            parameter.requires_grad_(False)
        self.bank, self.criterion, self.momentum = bank, criterion, momentum
        self.gather, self.shuffle = gather, shuffle
        self.train()

    def train(self, mode: bool = True) -> "ContrastiveModel":
        """Set train or evaluation mode; the key encoder's dropout stays off in both.

        Args:
            mode: Whether the model trains.

        Returns:
            The model.
        """
        super().train(mode)
        for net in (self.key_encoder, self.key_head):
            for module in net.modules():
                module.training = mode and isinstance(module, _BatchNorm)
        return self

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """Move the key encoder: theta_k = m theta_k + (1 - m) theta_q."""
        # together, since an encoder of features may have none
        keys: list[Tensor] = [*self.key_encoder.parameters(), *self.key_head.parameters()]
        queries: list[Tensor] = [*self.encoder.parameters(), *self.head.parameters()]
        torch._foreach_lerp_(keys, queries, 1 - self.momentum)

    def encode_keys(self, views: Tensor) -> Tensor:
        """Encode views as keys.

        Args:
            views: Images, (N, 3, H, W).

        Returns:
            L2-normalized embeddings, (N, D).
        """
        return F.normalize(self.key_head(self.key_encoder(views)).float(), dim=1)

    def forward(self, query_view: Tensor, key_view: Tensor, labels: Tensor) -> Any:
        """Score queries against the bank, then push the keys over its oldest entries.

        Args:
            query_view: Images, (N, 3, H, W).
            key_view: Another view of each, (N, 3, H, W).
            labels: Labels, (N,).

        Returns:
            The terms of the criterion.
        """
        # encode queries, with gradient
        q = F.normalize(self.head(self.encoder(query_view)).float(), dim=1)

        # encode keys, with the key encoder one small move behind
        with torch.no_grad():
            self.update_key_encoder()
            k, keys = self.shuffle(self.encode_keys, key_view) if self.shuffle else (self.encode_keys(key_view), None)

        # score against the bank as it was
        terms = self.criterion.terms(q, k, labels, self.bank.keys, self.bank.labels)

        # push the keys of all processes over the oldest
        self.bank.push(self.gather(k) if keys is None else keys, self.gather(labels))
        return terms

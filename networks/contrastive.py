"""Query encoder, momentum key encoder and memory bank: one training step's forward pass."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .memory_bank import MemoryBank


def projection_head(dim: int, out_dim: int = 128) -> nn.Module:
    """Linear(d, d)-ReLU-Linear(d, out_dim): [N, d] -> [N, out_dim]."""
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out_dim))


class Heads(nn.Module):
    """Several heads of one encoder, their outputs side by side: [N, d] -> [N, sum of their D]."""

    def __init__(self, *heads: nn.Module):
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([head(x) for head in self.heads], dim=1)


class Criterion(Protocol):
    """What the model asks of a loss; losses.RINCELoss has it."""

    def terms(self, query: Tensor, key: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor) -> Any:
        """query, key: [N, D]; labels: [N]; bank: [K, D]; bank_labels: [K] -> what `forward` returns."""


class ContrastiveModel(nn.Module):
    """Contrastive learning with a momentum encoder and a labelled bank (design of He et al. 2020).

    encoder: [N, 3, H, W] -> [N, d]; head: [N, d] -> [N, D]. Their copies are the key encoder: its parameters follow
    the query's, theta_k = m theta_k + (1 - m) theta_q, without gradient; its BatchNorm, where there is one, runs in
    train mode with statistics of its own, and all else as in evaluation: without dropout and drop-path.
    criterion: has `terms(query, key, labels, bank, bank_labels)`, as losses.RINCELoss; its backward must not read the
        bank, in which `forward` has put new keys by then.
    gather: joins a tensor over all processes in rank order, without gradient, so that every bank gets the same keys.
    shuffle: (encode, images) -> the keys of these images, and of all processes' in rank order, encoded in other
        batches; None: each process encodes its own.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        bank: MemoryBank,
        criterion: Criterion,
        momentum: float = 0.99,
        gather: Callable[[Tensor], Tensor] = lambda x: x,
        shuffle: Callable | None = None,
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
        """Likewise for training, or evaluation, all but what the key encoder must not draw."""
        super().train(mode)
        for net in (self.key_encoder, self.key_head):
            for module in net.modules():
                module.training = mode and isinstance(module, _BatchNorm)
        return self

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """theta_k = m theta_k + (1 - m) theta_q."""
        # together, since an encoder of features may have none
        keys: list[Tensor] = [*self.key_encoder.parameters(), *self.key_head.parameters()]
        queries: list[Tensor] = [*self.encoder.parameters(), *self.head.parameters()]
        torch._foreach_lerp_(keys, queries, 1 - self.momentum)

    def encode_keys(self, views: Tensor) -> Tensor:
        """[n, 3, H, W] -> unit vectors [n, D]."""
        return F.normalize(self.key_head(self.key_encoder(views)).float(), dim=1)

    def forward(self, query_view: Tensor, key_view: Tensor, labels: Tensor) -> Any:
        """Two views [N, 3, H, W] of the same images and labels [N] -> the criterion's terms; fills the bank."""
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

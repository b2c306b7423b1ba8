"""A first-in first-out queue of keys and their labels (He et al. 2020, with labels)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MemoryBank(nn.Module):
    """`size` unit vectors of `dim` dimensions with labels; a label of -1 is a slot not filled yet.

    Keys, labels and pointer are buffers, so that a resumed run goes on with the same bank.
    """

    keys: Tensor
    labels: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        if size < 1:
            raise ValueError(f"a memory bank of {size} keys is none; the size must be at least 1")
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("labels", torch.full((size,), -1, dtype=torch.long))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        return len(self.keys)

    @torch.no_grad()
    def push(self, keys: Tensor, labels: Tensor) -> None:
        """Write keys [N, D] and labels [N] over the oldest slots, round the end; of more than `size`, the last stay."""
        size, n = len(self.keys), len(keys)
        slot = (self.pointer + torch.arange(n, device=keys.device)) % size
        newest = slice(max(0, n - size), None)
        self.keys[slot[newest]] = keys[newest].to(self.keys.dtype)
        self.labels[slot[newest]] = labels[newest].to(self.labels.dtype)
        self.pointer.add_(n).remainder_(size)

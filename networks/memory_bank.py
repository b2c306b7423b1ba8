"""The memory bank: earlier keys and their labels (He et al. 2020, with labels)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MemoryBank(nn.Module):
    """Store the newest keys with their labels; new keys overwrite the oldest.

    Keys, labels and pointer are buffers, so that a run resumes with the same bank. An empty entry has a random key and
    the label -1.

    Args:
        size: Number of entries K.
        dim: Dimensions D of the keys.

    Raises:
        ValueError: If the size is below 1.

    Attributes:
        keys: The keys, (K, D), L2-normalized.
        labels: Their labels, (K,); -1 for an empty entry.
        pointer: Index of the oldest entry, a scalar.

    Examples:
        >>> bank = MemoryBank(size=4, dim=2)
        >>> bank.push(torch.eye(2), torch.tensor([5, 6]))
        >>> bank.labels
        tensor([ 5,  6, -1, -1])
    """

    keys: Tensor
    labels: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        if size < 1:
            raise ValueError(f"the memory bank has size {size}; it must be at least 1")
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("labels", torch.full((size,), -1, dtype=torch.long))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        """Return the number of entries, empty ones included."""
        return len(self.keys)

    @torch.no_grad()
    def push(self, keys: Tensor, labels: Tensor) -> None:
        """Write keys and labels over the oldest entries; of more than ``size``, the last stay.

        Args:
            keys: L2-normalized keys, (N, D).
            labels: Their labels, (N,).
        """
        size, n = len(self.keys), len(keys)
        slot = (self.pointer + torch.arange(n, device=keys.device)) % size
        newest = slice(max(0, n - size), None)
        self.keys[slot[newest]] = keys[newest].to(self.keys.dtype)
        self.labels[slot[newest]] = labels[newest].to(self.labels.dtype)
        self.pointer.add_(n).remainder_(size)

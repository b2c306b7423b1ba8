"""A loss without a bank: the keys of the batch, of all processes, are the candidates."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .bank_loss import BankLoss, Candidates
from .equations import RankTerms, widen
from .ranks import as_integers


class _GatherKeys(torch.autograd.Function):
    """Gather (N, D) of all processes to (world N, D); a key's gradient is the sum over all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def _all_reduce(x: Tensor, op: str) -> Tensor:
    dist.all_reduce(x, {"sum": dist.ReduceOp.SUM}[op])
    return x


class InBatchLoss(nn.Module):
    """Compute a loss whose candidates are the keys of the batch instead of a bank.

    Temperatures, ranks, form, probability threshold and reduction are those of the criterion. The key of an anchor is a
    positive of rank 0, as with a bank.

    Without keys, the queries are the candidates of one another, and an anchor is no candidate of its own. An anchor
    without a positive adds nothing, and a batch without any positive has loss 0, with a graph. Two views of each image
    as anchors and candidates alike, as in SimCLR and SupCon, are ``criterion(torch.cat([x, y]), None,
    labels.repeat(2))``. The mean is over the ranks that the anchors have in the criterion's table, whether or not the
    batch holds a positive of them.

    Where torch.distributed is initialized, keys and labels of all processes are gathered. Each process must bring the
    same number. Terms are summed over the processes before they are divided by their number. So the mean over the
    processes of what ``forward`` returns is the loss of the whole batch. DistributedDataParallel, which averages
    gradients, then gives the gradient that one process has on the whole batch. Keys get gradients from all processes;
    detach them where a momentum encoder makes them.

    Args:
        criterion: Any loss over a bank.

    Shape:
        - query, key: (N, D), L2-normalized; labels: (N,).
        - output: scalar.

    Examples:
        >>> criterion = InBatchLoss(SupConLoss(num_classes=2, temperature=0.5))
        >>> query = torch.eye(2)
        >>> print(f"{criterion(query, query, torch.tensor([0, 1])):.3f}")
        0.127
    """

    def __init__(self, criterion: BankLoss):
        super().__init__()
        self.criterion = criterion

    def terms(self, query: Tensor, key: Tensor | None, labels: Tensor) -> RankTerms:
        """Compute the terms of the loss before their mean, without a check of values.

        Args:
            query: L2-normalized embeddings of the anchors, (N, D).
            key: L2-normalized embeddings of their keys, (N, D); None for the queries themselves.
            labels: Labels of the anchors, (N,), of any integer type.

        Returns:
            The terms; their method ``loss`` gives the scalar.

        Raises:
            ValueError: If labels are not integers.
        """
        labels = as_integers(labels, "labels")
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        with torch.autocast(query.device.type, enabled=False):
            q, k = widen([query, query if key is None else key])
            first = dist.get_rank() * len(q) if several else 0
            keys = _GatherKeys.apply(k) if several else k
            with torch.no_grad():
                key_labels = _GatherKeys.apply(labels) if several else labels
                place = first + torch.arange(len(q), device=q.device)  # of the key among the keys
            terms = self.criterion.compare(Candidates(q, k, labels, keys, key_labels, place, key is not None))
        return terms.over_processes(_all_reduce, dist.get_world_size()) if several else terms

    def forward(self, query: Tensor, key: Tensor | None, labels: Tensor) -> Tensor:
        """Compute the loss of queries among keys.

        Args:
            query: L2-normalized embeddings of the anchors, (N, D).
            key: L2-normalized embeddings of their keys, (N, D); None for the queries themselves.
            labels: Labels of the anchors, (N,), of any integer type, from 0.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: If a label is out of range, or an embedding is not L2-normalized.
        """
        vectors = {"query": query} if key is None else {"query": query, "key": key}
        self.criterion.check({"labels": labels}, vectors)
        return self.terms(query, key, labels).loss()

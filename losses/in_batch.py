"""A loss without a bank: the batch's own keys, of all processes, are the candidates."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .bank_loss import BankLoss, Candidates
from .equations import RankTerms, widen
from .ranks import as_integers


class _GatherKeys(torch.autograd.Function):
    """[N, D] of every process -> [world N, D] in rank order; the gradient of a key is the sum over all processes."""

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
    """A loss whose candidates are the batch's own keys, of all processes, instead of a bank.

    criterion: any loss over a bank; its temperatures, ranks, form, threshold, reduction hold. An
        anchor's key is a positive of rank 0, as with a bank. Without keys, the queries are the candidates of one
        another, and an anchor is none of its own: one that is alone in its class then has no positive and adds nothing,
        and a batch without any positive has loss 0, with a graph. Two views of each image as anchors and candidates
        alike, as in SimCLR and SupCon, are `forward(torch.cat([x, y]), None, labels.repeat(2))`. The mean is over the
        ranks that the anchors have in the criterion's table, whether or not the batch holds a positive of them.

    Processes: where torch.distributed is initialised, keys and labels of all are gathered; every process must bring
    equally many. Terms are summed over processes before they are divided by their number, so that the mean over the
    processes of what `forward` returns is the loss of the whole batch, and DistributedDataParallel, which averages
    gradients, gives the gradient that one process has on the whole batch. Keys get gradients, from all processes;
    detach them where a momentum encoder makes them.
    """

    def __init__(self, criterion: BankLoss):
        super().__init__()
        self.criterion = criterion

    def terms(self, query: Tensor, key: Tensor | None, labels: Tensor) -> RankTerms:
        """The terms of each rank; the arguments of `forward`, whose values it does not check."""
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
        """query, key: [N, D] unit vectors, key None = the queries themselves; labels: [N] from 0 -> scalar.

        Raises ValueError as the criterion's forward does.
        """
        vectors = {"query": query} if key is None else {"query": query, "key": key}
        self.criterion.check({"labels": labels}, vectors)
        return self.terms(query, key, labels).loss()

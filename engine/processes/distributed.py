"""Which process this is, and the few collective operations that a run needs."""

import contextlib
import os
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from util import InputError

EXIT_STOPPED = 75  # asked to stop, all saved, to be started again: EX_TEMPFAIL of sysexits.h

# process groups on the host, over gloo, beside the one that gradients take: `host` for the run's own words, `end`,
# without a time limit, for the end of a run
groups = {}


def rank() -> int:
    """Return this process's number over all nodes, 0 in a run of one process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes over all nodes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Only the main process writes files and prints."""
    return rank() == 0


def will_be_main(node: int = 0) -> bool:
    """Before processes meet: whether this one will be the main process. node: its node's number, from 0."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", node))) == 0


def say(text: str) -> None:
    """Print a line from the main process, if there is one to print."""
    if text and is_main():
        print(text, flush=True)


def shares(total: int) -> list[int]:
    """How many of `total` rows each process has: as equal as can be, the first ones one more."""
    each, more = divmod(total, world_size())
    return [each + (r < more) for r in range(world_size())]


def gather(x: Tensor, total: int | None = None) -> Tensor:
    """[n, ...] of every process, joined in rank order -> [total, ...]; no gradient flows through it.

    total: rows of all processes, dealt out as `shares` says; None: n is the same on all.
    """
    if world_size() == 1:
        return x.detach()
    x = x.detach().contiguous()
    rows = shares(total) if total else [len(x)] * world_size()
    if len(x) < max(rows):  # collectives want equal parts
        x = torch.cat([x, x.new_zeros(max(rows) - len(x), *x.shape[1:])])
    parts = [torch.empty_like(x) for _ in rows]
    dist.all_gather(parts, x)
    return torch.cat([part[:n] for part, n in zip(parts, rows, strict=True)])


def encode_shuffled(encode: Callable[[Tensor], Tensor], x: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """encode(x), each row on a process drawn anew -> [n, D] of this process's rows, [total, D] of all, in rank order.

    BatchNorm then sees other images together than without it (He et al. 2020, sec. 3.3). The order is the main
    process's, from torch's global random numbers.
    """
    order = torch.randperm(total, device=x.device)
    dist.broadcast(order, src=0)
    mine = order.split(shares(total))[rank()]
    shuffled = gather(encode(gather(x, total)[mine]), total)
    keys = torch.empty_like(shuffled)
    keys[order] = shuffled
    return keys.split(shares(total))[rank()], keys


def all_reduce(x: Tensor, op: str = "mean") -> Tensor:
    """Compute the mean, sum or maximum (op "mean", "sum", "max") of a tensor over all processes."""
    x = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(x, dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM)
    return x / world_size() if op == "mean" else x


def broadcast_buffers(model) -> None:
    """Give every process the main process's buffers, such as BatchNorm's running means."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier(group=groups.get("host"))


def wait_for_all() -> None:
    """At the end of a run: wait for the others without a limit, since the main process may have much to do alone."""
    if world_size() > 1:
        dist.barrier(group=groups["end"])


def end_at_once(code: int) -> None:
    """End this process, whatever the others do: putting things in order may wait for them."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def gather_objects(value) -> list:
    """Gather a plain value of every process, in rank order, by way of the host."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value, group=groups.get("host"))
    return values


def vote(wishes: list[bool]) -> list[bool]:
    """Which wishes any of several processes has; all ask together, by way of the host: no device is waited for."""
    ballot = torch.tensor(wishes, dtype=torch.uint8)
    dist.all_reduce(ballot, dist.ReduceOp.MAX, group=groups.get("host"))
    return ballot.bool().tolist()


class MainFailed(InputError):
    """The main process met bad input, and says so itself."""


@contextlib.contextmanager
def main_first():
    """Let the main process go through the block before the others, to download or to find bad input once."""
    if not is_main() and (message := _from_main(None)):
        raise MainFailed(message)
    try:
        yield
    except InputError as error:
        if is_main():
            _from_main(str(error))
        raise
    if is_main():
        _from_main("")


def _from_main(value):
    """Return the main process's value (a plain one), on every process."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0, group=groups.get("host"))
    return box[0]

"""Start the workers of a run, and the few collective operations that it needs.

Three ways to start: plain `python script.py` makes one process per GPU (or --nproc_per_node of them); `torchrun` sets
its own environment; several nodes without torchrun are named by --world-size, --rank and --dist-url.
"""

import contextlib
import os
import socket
import sys
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from util import InputError


def rank() -> int:
    """This process's number over all nodes, 0 in a run of one process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes over all nodes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Only the main process writes files and prints."""
    return rank() == 0


def gather(x: Tensor) -> Tensor:
    """[n, ...] of every process, equal n, joined in rank order -> [world * n, ...]; no gradient flows through it."""
    if world_size() == 1:
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def all_reduce(x: Tensor, op: str = "mean") -> Tensor:
    """The mean, sum or maximum (op "mean", "sum", "max") of a tensor over all processes."""
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
        dist.barrier()


class MainFailed(InputError):
    """The main process met bad input, and says so itself."""


@contextlib.contextmanager
def main_first():
    """The main process goes through the block before the others, to download or to find bad input once."""
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
    """The main process's value (a plain one), on every process."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def launch(worker: Callable, options) -> None:
    """Run worker(options, device) in every process of the run; returns when all are done.

    options: has nproc_per_node (None = one per GPU, one on a machine without), world_size (number of nodes), rank (of
    this node), dist_url, dist_backend. Raises InputError if a worker met bad input.
    """
    cuda = torch.cuda.is_available()
    if not cuda and os.environ.get("RANK", "0") == "0":
        print("no CUDA device: this runs on the CPU, processes talk over gloo", file=sys.stderr)
    backend = options.dist_backend.lower() if cuda else "gloo"
    if backend not in ("nccl", "gloo"):
        raise InputError(f"--dist-backend {backend} is unknown; choose nccl or gloo")
    if "LOCAL_RANK" in os.environ and "RANK" in os.environ:  # torchrun
        return _run(int(os.environ["LOCAL_RANK"]), None, worker, options, backend, "env://", None, None)
    local = options.nproc_per_node or max(1, torch.cuda.device_count())
    if cuda and local > torch.cuda.device_count():
        raise InputError(f"--nproc_per_node {local} is more than the {torch.cuda.device_count()} GPUs of this node")
    nodes, node_rank = max(1, options.world_size), max(0, options.rank)
    if nodes > 1 and not options.dist_url:
        raise InputError("--world-size counts nodes; with more than one, give --dist-url tcp://HOST:PORT of node 0")
    if nodes * local == 1:
        return worker(options, _device(0))
    url = options.dist_url or f"tcp://127.0.0.1:{_free_port()}"
    return _spawn(local, (worker, options, backend, url, nodes * local, node_rank * local))


def _spawn(local, args) -> None:
    context = mp.get_context("spawn")
    errors = context.SimpleQueue()
    try:
        mp.start_processes(_run, (errors, *args), nprocs=local, start_method="spawn")
    except mp.ProcessExitedException as stopped:
        if not errors.empty():
            raise InputError(errors.get()) from None
        raise SystemExit(f"worker {stopped.error_index} stopped: {stopped}") from None


def _run(local_rank, errors, worker, options, backend, url, world, first_rank) -> None:
    device = _device(local_rank)
    threads = os.environ.get("OMP_NUM_THREADS")
    if device.type == "cpu" and threads is None and world:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    ranks = {} if world is None else {"world_size": world, "rank": first_rank + local_rank}
    dist.init_process_group(backend, init_method=url, timeout=timedelta(minutes=30), **ranks)
    try:
        worker(options, device)
        barrier()
    except InputError as error:
        if errors is None:
            if isinstance(error, MainFailed):
                sys.exit(2)
            raise
        errors.put(str(error))
        sys.exit(2)
    finally:
        with contextlib.suppress(Exception):
            dist.destroy_process_group()


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

"""Start the workers of a run, and the few collective operations that it needs.

Four ways to start: plain `python script.py` makes one process per GPU (or --nproc_per_node of them); `torchrun` and
SLURM's `srun` (one task a process) set an environment of their own; several nodes without them are named by
--world-size, --rank and --dist-url.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

import util
from util import InputError

EXIT_STOPPED = 75  # asked to stop, all saved, to be started again: EX_TEMPFAIL of sysexits.h
GRACE_SECONDS = 5  # for processes to end by themselves after one has failed

# process groups on the host, over gloo, beside the one that gradients take: `host` for the run's own words, `watch` for
# finding out who hangs, once the others are broken
_groups = {}


def rank() -> int:
    """This process's number over all nodes, 0 in a run of one process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes over all nodes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Only the main process writes files and prints."""
    return rank() == 0


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
    order = torch.randperm(total).to(x.device)
    dist.broadcast(order, src=0)
    mine = order.split(shares(total))[rank()]
    shuffled = gather(encode(gather(x, total)[mine]), total)
    keys = torch.empty_like(shuffled)
    keys[order] = shuffled
    return keys.split(shares(total))[rank()], keys


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
        dist.barrier(group=_groups.get("host"))


def gather_objects(value) -> list:
    """A plain value of every process, in rank order, by way of the host."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value, group=_groups.get("host"))
    return values


class Votes:
    """Wishes that any process may have, known to all at the same step.

    They are added up on the host, over gloo, while the next step is computed: neither host nor device waits, and all
    learn of a wish one step later. A process alone learns of it at once.
    """

    def __init__(self):
        self.under_way = None

    def cast(self, wishes: list[bool]) -> list[bool]:
        """Once a step on every process: which wishes some process had, the step before."""
        if world_size() == 1:
            return wishes
        ballot = torch.tensor(wishes, dtype=torch.uint8)
        work = dist.all_reduce(ballot, dist.ReduceOp.MAX, group=_groups.get("host"), async_op=True)
        before, self.under_way = self.under_way, (work, ballot)
        if before is None:
            return [False] * len(wishes)
        before[0].wait()
        return before[1].bool().tolist()


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
    this node), dist_url, dist_backend, timeout_minutes. Raises InputError if a worker met bad input, SystemExit if one
    failed or was asked to stop.
    """
    cuda, env = torch.cuda.is_available(), os.environ
    if not cuda and env.get("RANK", env.get("SLURM_PROCID", "0")) == "0":
        print("no CUDA device: this runs on the CPU", file=sys.stderr)
    backend = options.dist_backend.lower() if cuda else "gloo"
    if backend not in ("nccl", "gloo"):
        raise InputError(f"--dist-backend {backend} is unknown; choose nccl or gloo")
    if "LOCAL_RANK" in env and "RANK" in env:  # torchrun
        return _run(int(env["LOCAL_RANK"]), None, worker, options, backend, "env://", None, None)
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # srun
        rank, local, world = (int(env[f"SLURM_{x}"]) for x in ("PROCID", "LOCALID", "STEP_NUM_TASKS"))
        return _run(local, None, worker, options, backend, _slurm_url(env), world, rank - local)
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


def _slurm_url(env) -> str:
    """Where the tasks of a SLURM step meet: the first node of its list, a port of the job's own."""
    first = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", env["SLURM_STEP_NODELIST"])
    host = env.get("MASTER_ADDR") or first[1] + (first[2] or "")
    return f"tcp://{host}:{env.get('MASTER_PORT') or 20000 + int(env.get('SLURM_JOB_ID', 0)) % 20000}"


def _spawn(local, args) -> None:
    """Start the processes of this node and wait for them; the first that fails ends the others, and is heard."""
    context = multiprocessing.get_context("spawn")
    errors = context.SimpleQueue()
    processes = [context.Process(target=_run, args=(i, errors, *args)) for i in range(local)]
    for process in processes:
        process.start()
    with _passed_on(processes):
        while True:
            codes = [p.exitcode for p in processes]  # read once: one may end between two looks
            if any(codes) or None not in codes:
                break
            multiprocessing.connection.wait(
                [p.sentinel for p, code in zip(processes, codes, strict=True) if code is None]
            )
    failed = next((p for p, code in zip(processes, codes, strict=True) if code), None)
    if failed is None:
        return
    _end(processes, wait=failed.exitcode == EXIT_STOPPED)
    if not errors.empty():
        code, text = errors.get()
        raise InputError(text) if code == 2 else SystemExit(text)
    if failed.exitcode > 0:
        raise SystemExit(failed.exitcode)
    name = signal.Signals(-failed.exitcode).name
    raise SystemExit(f"process {processes.index(failed)} of this node was ended by {name}; SIGKILL: out of memory?")


@contextlib.contextmanager
def _passed_on(processes):
    """While it is entered, a signal that asks this process to stop asks its processes; a second Ctrl-C ends them."""
    pressed = []

    def ask(number, frame):
        pressed.extend([number] * (number == signal.SIGINT))
        for process in processes:
            if process.exitcode is None:
                process.kill() if len(pressed) > 1 else process.terminate()

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(processes, wait: bool) -> None:
    """End the processes that still run: by SIGTERM, or, where they are about to end themselves, after a wait."""
    if not wait:
        for process in processes:
            process.terminate()
    until = time.monotonic() + GRACE_SECONDS
    for process in processes:
        process.join(max(0, until - time.monotonic()))
        process.kill()
        process.join()


def _run(local_rank, errors, worker, options, backend, url, world, first_rank) -> None:
    """One process: join the others, work, say what went wrong."""
    if errors is not None:
        threading.Thread(target=_end_with_parent, daemon=True).start()
        multiprocessing.set_start_method(None, force=True)  # else its loaders are spawned too, and import torch anew
    device = _device(local_rank)
    threads = os.environ.get("OMP_NUM_THREADS")
    if device.type == "cpu" and threads is None and world:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    limit = timedelta(minutes=options.timeout_minutes)
    if backend == "nccl":
        os.environ.setdefault("TORCH_NCCL_DESYNC_DEBUG", "1")  # its watchdog names the process that lags
    later = timedelta(minutes=1) if backend == "nccl" else timedelta()  # the host's words, below, come first
    try:
        if world is None:
            how = _of_torchrun(limit)
        else:
            how = {"init_method": url, "world_size": world, "rank": first_rank + local_rank}
        dist.init_process_group(backend, timeout=limit + later, **how)
        if world_size() > 1:
            _groups["host"] = dist.new_group(backend="gloo", timeout=limit)
            _groups["watch"] = dist.new_group(backend="gloo", timeout=limit)
        worker(options, device)
        barrier()
    except (Exception, KeyboardInterrupt) as error:
        _fail(error, errors, options.timeout_minutes)
    finally:
        _groups.clear()
        with contextlib.suppress(Exception):
            dist.destroy_process_group()


def _of_torchrun(limit: timedelta) -> dict:
    """Rank, world size and store that torchrun names.

    On one node, torchrun's own store outlives a restart (--max-restarts), with the addresses of processes that are
    gone: each start has keys of its own. On several nodes the number of restarts may differ between them; there the
    README names the variable that gives each start a new store.
    """
    store, rank, world = next(rendezvous("env://", timeout=limit))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world):
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    return {"store": store, "rank": rank, "world_size": world}


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGKILL)  # or it would write on, beside the run that takes its place


def _fail(error: BaseException, errors, minutes: float) -> None:
    """Say once, from the process that it began in, what ends the run; the others wait to be ended."""
    if isinstance(error, KeyboardInterrupt):
        sys.exit(130)
    code, text = 2, util.fault(error)
    if text is None:
        code, text = 1, "".join(traceback.format_exception(error))
        if "watch" in _groups and re.search("timed? ?out", str(error), re.IGNORECASE):
            text = _who_hangs(minutes) + text.splitlines()[-1]
        elif re.search("closed by peer|connection (was )?(reset|closed)|broken pipe", str(error), re.IGNORECASE):
            time.sleep(2 * GRACE_SECONDS)
            text = f"process {rank()} has lost another process, whose own error comes first\n{text}"
    if errors is not None:
        errors.put((code, text))
        sys.exit(code)
    if isinstance(error, MainFailed):
        sys.exit(2)
    raise InputError(text) if code == 2 else SystemExit(text)


def _who_hangs(minutes: float) -> str:
    """After a time-out: the processes that do not answer. The main process finds out; the others let it speak first."""
    try:
        wait = timedelta(seconds=GRACE_SECONDS)
        dist.monitored_barrier(group=_groups.get("watch"), timeout=wait, wait_all_ranks=True)
    except Exception as error:
        named = re.search(r"[Rr]anks? ([\d, ]+) failed", str(error))
        if rank() != 0:
            time.sleep(2 * GRACE_SECONDS)
        who = f"process {named[1]}" if named and rank() == 0 else "process 0"
        return f"{who} hangs: the others waited for {minutes:g} minutes (--timeout_minutes)\n"
    return f"a collective operation hung for {minutes:g} minutes (--timeout_minutes), though all processes answer\n"


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())  # srun may show each task one GPU only
    torch.cuda.set_device(device)
    return device


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

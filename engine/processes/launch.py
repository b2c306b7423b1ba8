"""Start the processes of a run, and say once what ends it.

Four ways to start: plain `python script.py` makes one process per GPU (or --nproc_per_node of them); `torchrun` and
SLURM's `srun` (one task a process) set an environment of their own; several nodes without them are named by
--world-size, --node_rank and --dist-url.
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
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

import util
from engine.processes import cpu_threads, distributed, signals, streams
from util import InputError

START = "spawn"  # multiprocessing's way to start a process: CUDA bears no other
GRACE_SECONDS = 5  # for processes to end by themselves after one has failed


@dataclass(frozen=True)
class Processes:
    """How many processes a run has, and how they find one another.

    per_node: None = one per GPU, one on a machine without; nodes: their number; node: this one's number, from 0;
    url: tcp://HOST:PORT of node 0, None = this machine; backend: "nccl" or "gloo", on CUDA; timeout_minutes: a run that
    hangs for so long is ended.
    """

    per_node: int | None = None
    nodes: int = 1
    node: int = 0
    url: str | None = None
    backend: str = "nccl"
    timeout_minutes: float = 30


@dataclass(frozen=True)
class Meeting:
    """Where the processes of a run meet. world: their number, None = torchrun's environment says it; first: the number
    of this node's first one; here: how many this node has, where this process has started them.
    """

    backend: str
    minutes: float
    url: str | None = None
    world: int | None = None
    first: int = 0
    here: int | None = None


def launch(worker: Callable[[torch.device], None], processes: Processes, training: bool = False) -> None:
    """Run worker(device) in every process of the run; returns when all are done. `worker` can be pickled.

    training: an output that breaks does not end it. Raises InputError if a worker met bad input, SystemExit if one
    failed or was asked to stop.
    """
    if not training:
        return _launch(worker, processes)
    with streams.lasting():
        _launch(partial(streams.through, worker), processes)


def _launch(worker, processes: Processes) -> None:
    cuda, env = torch.cuda.is_available(), os.environ
    if not cuda and distributed.will_be_main():
        print("no CUDA device: this runs on the CPU", file=sys.stderr)
    backend = processes.backend.lower() if cuda else "gloo"
    if backend not in ("nccl", "gloo"):
        raise InputError(f"--dist-backend {backend} is unknown; choose nccl or gloo")
    minutes = processes.timeout_minutes
    if "LOCAL_RANK" in env and "RANK" in env:  # torchrun
        return _run(int(env["LOCAL_RANK"]), None, worker, Meeting(backend, minutes))
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # srun
        rank, local, world = (int(env[f"SLURM_{x}"]) for x in ("PROCID", "LOCALID", "STEP_NUM_TASKS"))
        return _run(local, None, worker, Meeting(backend, minutes, _slurm_url(env), world, rank - local))
    local = processes.per_node or max(1, torch.cuda.device_count())
    if cuda and local > torch.cuda.device_count():
        raise InputError(f"--nproc_per_node {local} is more than the {torch.cuda.device_count()} GPUs of this node")
    nodes, node = max(1, processes.nodes), max(0, processes.node)
    if nodes > 1 and not processes.url:
        raise InputError("--world-size counts nodes; with more than one, give --dist-url tcp://HOST:PORT of node 0")
    if nodes * local == 1:
        cpu_threads.limit_threads(local)
        return worker(_device(0))
    url = processes.url or f"tcp://127.0.0.1:{_free_port()}"
    return _spawn(local, worker, Meeting(backend, minutes, url, nodes * local, node * local, local))


def _slurm_url(env) -> str:
    """Where the tasks of a SLURM step meet: the first node of its list, a port of the job's own."""
    first = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", env["SLURM_STEP_NODELIST"])
    host = env.get("MASTER_ADDR") or first[1] + (first[2] or "")
    return f"tcp://{host}:{env.get('MASTER_PORT') or 20000 + int(env.get('SLURM_JOB_ID', 0)) % 20000}"


def _spawn(local: int, worker, meeting: Meeting) -> None:
    """Start the processes of this node and wait for them; the first that fails ends the others, and is heard."""
    context = multiprocessing.get_context(START)
    pipes = [context.Pipe(duplex=False) for _ in range(local)]  # both ends stay open: a process may say nothing
    processes = [context.Process(target=_run, args=(i, errors, worker, meeting)) for i, (_, errors) in enumerate(pipes)]
    for process in processes:
        process.start()
    with signals.passed_on(processes) as came:
        error = _first_error(processes, [reader for reader, _ in pipes])
    codes = [p.exitcode for p in processes]
    failed = next((p for p, code in zip(processes, codes, strict=True) if code), None)
    if error is None and failed is None:
        return
    _end(processes, wait=error is None and failed.exitcode == distributed.EXIT_STOPPED)
    if error is not None:
        code, text = error
        raise InputError(text) if code == 2 else SystemExit(text)
    if failed.exitcode > 0:
        raise SystemExit(failed.exitcode)
    if came:
        raise SystemExit(128 + came[0])  # as a shell says it of who is ended so
    name = signal.Signals(-failed.exitcode).name
    raise SystemExit(f"process {processes.index(failed)} of this node was ended by {name}; SIGKILL: out of memory?")


def _first_error(processes, readers) -> tuple[int, str] | None:
    """Wait until all have ended, or one has failed; returns code and text of an error as soon as a process says it."""
    while True:
        codes = [p.exitcode for p in processes]  # read once: one may end between two looks
        for reader in readers:
            if reader.poll():
                return reader.recv()
        if any(codes) or None not in codes:
            return None
        running = [p.sentinel for p, code in zip(processes, codes, strict=True) if code is None]
        multiprocessing.connection.wait(running + readers, timeout=1)  # a signal may come just before it waits


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


def _run(local_rank: int, errors, worker, meeting: Meeting) -> None:
    """One process: join the others, work, say what went wrong."""
    if errors is not None:
        util.usable_streams()
        threading.Thread(target=_end_with_parent, daemon=True).start()
        multiprocessing.set_start_method(None, force=True)  # else its loaders are spawned too, and import torch anew
    device = _device(local_rank)
    cpu_threads.limit_threads(meeting.here)
    try:
        _meet(local_rank, meeting)
        worker(device)
        distributed.wait_for_all()
    except (Exception, KeyboardInterrupt) as error:
        _fail(error, errors)
    except SystemExit:  # all have agreed on it
        _part()
        raise
    _part()


def _part() -> None:
    distributed.groups.clear()
    with contextlib.suppress(Exception):
        dist.destroy_process_group()


def _meet(local_rank: int, meeting: Meeting) -> None:
    """Join the other processes; InputError where there is no meeting."""
    limit = timedelta(minutes=meeting.minutes)
    if meeting.backend == "nccl":
        os.environ.setdefault("TORCH_NCCL_DESYNC_DEBUG", "1")  # its watchdog names the process that lags
    later = timedelta(minutes=1) if meeting.backend == "nccl" else timedelta()  # the host, below, gives up first
    try:
        if meeting.world is None:
            how = _of_torchrun(limit)
        else:
            how = {"init_method": meeting.url, "world_size": meeting.world, "rank": meeting.first + local_rank}
        if meeting.backend == "nccl":  # connects at once: a broken fabric shows here, not in the first step
            how["device_id"] = _device(local_rank)
        dist.init_process_group(meeting.backend, timeout=limit + later, **how)
    except (dist.DistNetworkError, dist.DistStoreError, ValueError) as error:
        raise InputError(_no_meeting(meeting, str(error))) from None
    if distributed.world_size() > 1:
        distributed.groups["host"] = dist.new_group(backend="gloo", timeout=limit)
        distributed.groups["end"] = dist.new_group(backend="gloo", timeout=timedelta(days=365))


def _no_meeting(meeting: Meeting, reason: str) -> str:
    """One line: where processes were to meet, why they did not, and what names the place."""
    place = meeting.url or f"tcp://{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    options = "--dist-url, or MASTER_ADDR and MASTER_PORT under torchrun and srun"
    if re.search("EADDRINUSE|in use", reason):
        return f"{place} is in use, by another run? name another port: {options}"
    reason = reason.splitlines()[0]
    return f"no process answers at {place} ({reason}): does process 0 run there? it is named by {options}"


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


def _fail(error: BaseException, errors) -> None:
    """Say once, from the process that it began in, what ends the run; the others wait to be ended.

    Nothing is put in order: destroying process groups may wait for the others.
    """
    if isinstance(error, KeyboardInterrupt):
        distributed.end_at_once(130)
    if isinstance(error, BrokenPipeError) and util.reader_is_gone():
        distributed.end_at_once(141)
    code, text = 2, util.fault(error)
    if text is None:
        code, text = 1, "".join(traceback.format_exception(error))
        if re.search("closed by peer|connection (was )?(reset|closed)|broken pipe", str(error), re.IGNORECASE):
            time.sleep(2 * GRACE_SECONDS)
            text = f"process {distributed.rank()} has lost another process, whose own error comes first\n{text}"
    if errors is not None:
        errors.send((code, text))
    elif distributed.world_size() == 1:
        raise InputError(text) if code == 2 else SystemExit(text)
    elif not isinstance(error, distributed.MainFailed):
        with contextlib.suppress(OSError):
            print(f"{Path(sys.argv[0]).name}: error: {text}" if code == 2 else text, file=sys.stderr)
    distributed.end_at_once(code)


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

"""How the cores are shared out: torch's threads, and loader processes."""

import os
import re

import torch

import util

MOST_LOADERS = 8


def processes_here(per_node: int | None = None) -> int:
    """Count the run's processes that share the cores with this one, itself included. per_node: --nproc_per_node."""
    env = os.environ
    if "LOCAL_WORLD_SIZE" in env:  # torchrun
        return int(env["LOCAL_WORLD_SIZE"])
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # srun, which gives each task cores of its own where it is asked to
        tasks = re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", "1"))
        return 1 if "SLURM_CPUS_PER_TASK" in env or not tasks else int(tasks[0])
    return per_node or max(1, torch.cuda.device_count())


def loaders(per_node: int | None = None) -> int:
    """Loader processes of each process, where nothing else is said."""
    return min(MOST_LOADERS, max(1, util.cores() // processes_here(per_node)))


def limit_threads(per_node: int | None = None) -> None:
    """Let torch have no more threads than this process's share of the cores, unless OMP_NUM_THREADS says how many: it
    knows neither a container's limit nor the other processes.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), max(1, util.cores() // processes_here(per_node))))


def line(workers: int, per_node: int | None = None) -> str:
    """Return what a run says of both."""
    processes = processes_here(per_node)
    each = f", in each of {processes} processes" if processes > 1 else ""
    cores, threads = util.cores(), torch.get_num_threads()
    text = f"{cores} core{'s' * (cores > 1)}: {threads} thread{'s' * (threads > 1)} of torch (OMP_NUM_THREADS), "
    return f"{text}{workers} loader process{'es' * (workers != 1)} (--num_workers){each}"

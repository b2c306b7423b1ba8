"""The scripts in processes of their own, forked from one that has imported torch: a start takes tenths of a second."""

import contextlib
import importlib
import io
import multiprocessing
import os
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import torch
import torch.utils.tensorboard
import torchvision  # noqa: F401 (loaded once, in the server)
from commands import ROOT

import main_supcon
import util
from engine.processes import launch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["processes"])
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])  # for the server


def start(
    folder, words: list[str], script=main_supcon.__name__, slow_writes: float = 0.0, env=None, output="output.txt"
):
    """`python script.py WORDS` in `folder`, its output added to a file there.

    slow_writes: seconds for which the writing of a checkpoint stops half-way. env: what the environment has besides.
    """
    folder.mkdir(exist_ok=True)
    process = CONTEXT.Process(target=_run, args=(str(folder), words, script, slow_writes, env or {}, output))
    process.start()
    return process


def call(folder, words: list[str], script=main_supcon.__name__) -> tuple[int, str]:
    """Exit code and output of `python script.py WORDS` in `folder`, where nothing was called before."""
    process = start(folder, words, script)
    process.join()
    return process.exitcode, (folder / "output.txt").read_text()


class Forked:
    """What reproduce.py needs of subprocess.Popen, for commands `python script.py WORDS` in the working folder."""

    def __init__(self, words: list[str], **_):
        self.output = Path(f"forked-{time.monotonic_ns()}.txt")
        self.process = start(Path.cwd(), words[2:], Path(words[1]).stem, output=str(self.output))

    @property
    def stdout(self):
        self.process.join()
        lines = self.output.read_text().splitlines(keepends=True)
        self.output.unlink()
        return lines

    @property
    def returncode(self):
        return self.process.exitcode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.join()


class InTurn(contextlib.nullcontext):
    """An executor in this thread, where scripts may handle signals."""

    def submit(self, task, *values):
        future = Future()
        future.set_result(task(*values))
        return future

    def __enter__(self):
        return self


def together(worker, args: tuple, count: int) -> None:
    """worker(rank, *args) in so many processes at once; an error of one is raised."""
    torch.multiprocessing.start_processes(worker, args, nprocs=count, start_method="forkserver")


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run, but for those of torch's compiler, which it starts
    beside those of its own work.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(") ")[2].split()[:2]
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if int(parent) == pid and state != "Z" and b"compile_worker" not in command:
            found.append(int(folder.name))
    return found


def _run(folder, words, script, slow_writes, env, to):
    os.chdir(folder)
    os.environ.update(env)
    output = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # the server's own take a pipe for a file
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # loaders are forked, as those of a command are
    launch.START = "fork"  # and so are the processes of a run, which import torch anew elsewhere
    sys.argv = [f"{script}.py", *words]
    if slow_writes:
        write_slowly(slow_writes)
    util.run_command(importlib.import_module(script).main)


def write_slowly(seconds: float) -> None:
    """From now on, the writing of a checkpoint stops half-way for a while."""
    save = torch.save

    def slow(state, file, **how):
        if isinstance(file, io.BytesIO):  # torch.distributed pickles objects with it
            return save(state, file, **how)
        whole = io.BytesIO()
        save(state, whole)
        content = whole.getvalue()
        file.write(content[: len(content) // 2])
        file.flush()
        time.sleep(seconds)
        file.write(content[len(content) // 2 :])

    torch.save = slow


def wait_until(holds, process) -> None:
    """Until holds(); AssertionError where the process (or Popen) ends before, or hangs for five minutes."""
    until, alive = time.monotonic() + 300, getattr(process, "is_alive", lambda: process.poll() is None)
    while not holds():
        assert alive() and time.monotonic() < until, "ended or hung before it came so far"
        time.sleep(0.002)

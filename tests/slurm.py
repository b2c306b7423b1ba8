"""A simulated SLURM: sbatch, srun, sacct, scontrol and scancel as far as submitit and a job need them.

The commands keep the jobs in a folder, one file each. Nothing runs by itself: a test takes the scheduler's part and
says, through `Cluster`, which job starts, is preempted or killed. As in SLURM, signals reach the task that srun starts
and not what that has started; a job that is queued again has its number and its log; sacct shows the tasks of an array
that wait in one line.
"""

import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

ENDED = ("COMPLETED", "FAILED", "CANCELLED by 1000", "OUT_OF_MEMORY")


def read_job(number: str) -> dict:
    return json.loads((Path(os.environ["SIMULATED"]) / f"{number}.json").read_text())


def write_job(number: str, **change) -> None:
    """Change entries of a job, or make it."""
    file = Path(os.environ["SIMULATED"]) / f"{number}.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    temporary = file.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(before | change))
    temporary.replace(file)


def all_jobs() -> dict[str, dict]:
    files = Path(os.environ["SIMULATED"]).glob("*.json")
    jobs = {file.stem: json.loads(file.read_text()) for file in files}
    return {number: jobs[number] for number in sorted(jobs, key=lambda n: [int(part) for part in n.split("_")])}


def numbers_of(number: str) -> list[str]:
    """The jobs that a number stands for: that of an array for all of its tasks."""
    return [n for n in all_jobs() if n == number or n.startswith(f"{number}_")]


def sbatch(file: str) -> None:
    lines = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", Path(file).read_text(), re.MULTILINE)
    options = {name: "".join(shlex.split(value)) or True for name, value in lines}
    assert len(options) == len(lines), "an option that is there twice"
    if options.get("partition") != "gpu":
        sys.exit(f"sbatch: error: invalid partition specified: {options.get('partition')}\nsbatch: error: failed")
    number = str(1 + max((int(n.split("_")[0]) for n in all_jobs()), default=0))
    tasks = re.fullmatch(r"0-(\d+)%\d+", options.get("array", ""))
    after = options.get("dependency", "afterany:").removeprefix("afterany:").split(":")
    for name in [f"{number}_{i}" for i in range(int(tasks[1]) + 1)] if tasks else [number]:
        write_job(name, state="PENDING", file=file, after=[n for n in after if n], options=options, starts=0)
    print(f"Submitted batch job {number}")


def srun(*words: str) -> None:
    words, own = list(words), {}
    while words[0].startswith("--"):
        name, _, value = words.pop(0).partition("=")
        own[name] = value or (words.pop(0) if name == "--output" else True)
    number = os.environ["NUMBER"]
    log = os.open(own["--output"].replace("%A_%a", number).replace("%j", number).replace("%t", "0"),
                  os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # fmt: skip
    os.dup2(log, 1)
    os.dup2(log, 2)
    write_job(number, pid=os.getpid(), srun=own)
    os.execvpe(words[0], words, os.environ | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"})


def sacct(*words: str) -> None:
    asked = [n for flag, number in itertools.pairwise(words) if flag == "-j" for n in numbers_of(number)]
    print("JobID|State|NodeList")
    waiting = {}
    for number in asked:
        state, (array, _, task) = read_job(number)["state"], number.partition("_")
        if task and state == "PENDING":
            waiting.setdefault(array, []).append(task)
        else:
            print(f"{number}|{state}|node1\n{number}.batch|{state}|node1")
    for array, tasks in waiting.items():
        print(f"{array}_[{','.join(tasks)}%256]|PENDING|None assigned")


def scontrol(word: str, number: str) -> None:
    assert word == "requeue" and read_job(number)["options"]["requeue"] is True
    write_job(number, again=True)


def scancel(number: str) -> None:
    for one in numbers_of(number):
        job = read_job(one)
        if job["state"] == "RUNNING":
            write_job(one, cancelled=True)
            os.kill(job["pid"], signal.SIGTERM)
        elif job["state"] == "PENDING":
            write_job(one, state="CANCELLED by 1000")


class Cluster:
    """The scheduler's part, and a folder of commands for PATH."""

    def __init__(self, folder: Path, monkeypatch):
        self.processes = {}
        (folder / "bin").mkdir()
        (folder / "jobs").mkdir()
        for command in (sbatch, srun, sacct, scontrol, scancel):
            file = folder / "bin" / command.__name__
            file.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {command.__name__} "$@"\n')
            file.chmod(0o755)
        monkeypatch.setenv("SIMULATED", str(folder / "jobs"))
        monkeypatch.setenv("PATH", str(folder / "bin"), prepend=os.pathsep)

    def jobs(self) -> dict[str, str]:
        """The state of each job."""
        return {number: job["state"] for number, job in all_jobs().items()}

    def start(self, number: str) -> None:
        """Let a job that waits begin, if those before it have ended."""
        job = read_job(number)
        assert job["state"] == "PENDING" and self._is_ready(job)
        array, _, task = number.partition("_")
        env = os.environ | {"NUMBER": number, "SLURM_JOB_ID": array, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}
        if task:
            env |= {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": task}
        write_job(number, state="RUNNING", again=False, pid=None, starts=job["starts"] + 1)
        self.processes[number] = subprocess.Popen(["bash", job["file"]], env=env, start_new_session=True)

    def signal(self, number: str, *signals: signal.Signals) -> None:
        """Send signals to the task of a job that runs."""
        for one in signals:
            os.kill(read_job(number)["pid"], one)

    def finish(self, number: str) -> str:
        """Wait for the end of a job that runs; its state then."""
        code = self.processes.pop(number).wait(300)
        job = read_job(number)
        state = "COMPLETED" if code == 0 else "OUT_OF_MEMORY" if code == 137 else "FAILED"
        state = "PENDING" if job["again"] else "CANCELLED by 1000" if job.get("cancelled") else state
        write_job(number, state=state)
        return state

    def run(self) -> None:
        """Run what waits, one after the other, until nothing can begin any more."""
        while ready := [n for n, job in all_jobs().items() if job["state"] == "PENDING" and self._is_ready(job)]:
            self.start(ready[0])
            self.finish(ready[0])

    def close(self) -> None:
        """End what still runs."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _is_ready(self, job: dict) -> bool:
        return all(read_job(n)["state"] in ENDED for after in job["after"] for n in numbers_of(after))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])

"""A recipe as jobs, by submitit: under SLURM, or in processes of this machine; and what has become of them.

A job calls `reproduce.py --task ...`, and that leaves an outcome: a file with what failed. A job that ended without one
was ended by others.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import util
from engine.processes.distributed import EXIT_STOPPED
from engine.run import run_log
from engine.run.run_lock import FolderLock, held_by
from recipes import ROOT
from recipes.running import say
from util import InputError

BEFORE, TABLE = "before the methods", "the table"  # titles of jobs that are of no method
SLURM_STATES = {
    **dict.fromkeys(("RUNNING", "COMPLETING", "CONFIGURING"), "running"),
    **dict.fromkeys(("PENDING", "REQUEUED", "SUSPENDED"), "waiting"),
    "UNKNOWN": "unknown",  # no sacct, or one that keeps no account
}
SAVE_SECONDS = 180  # SLURM's warning before the time limit
GRACE_SECONDS = 300  # after SIGTERM, for what SLURM does next
MAX_TIMEOUTS = 20  # time limits that a job may take
OURS = ("array", "dependency", "error", "open_mode", "output", "signal", "requeue")


@dataclass(frozen=True)
class Task:
    """What one job calls, as submitit takes it: a command, its folder, and variables of its environment (None: unset).

    grace: seconds to wait after SIGTERM, which a scheduler sends before it queues a job again, or ends it.
    """

    title: str
    words: list[str]
    folder: str = dataclasses.field(default_factory=os.getcwd)
    environment: dict = dataclasses.field(default_factory=dict)
    grace: float = 0

    def __call__(self) -> None:
        """Run the command to its end, and exit with its code.

        A signal that asks the job to stop asks the command, which saves. Then submitit queues the job again, if it was
        the signal that submitit takes, or if the command ended as one that is to be started again.
        """
        from submitit import JobEnvironment

        again, came, process = signal.Signals[f"SIG{JobEnvironment.USR_SIG}"], [], None

        def ask(number, frame):
            came.append(number)
            if process is not None and len(came) == 1:
                process.terminate()

        queue_again = signal.signal(again, ask)  # submitit's own: it would not wait until all is saved
        signal.signal(signal.SIGTERM, ask)  # which submitit notes, and no more
        environment = {k: v for k, v in (os.environ | self.environment).items() if v is not None}
        process = subprocess.Popen(self.words, cwd=self.folder, env=environment)
        if came:
            process.terminate()
        while (code := process.poll()) is None:  # a signal that comes just before a wait would be taken after it
            time.sleep(0.1)
        if code == 0:
            return
        until = time.monotonic() + self.grace
        while came and again not in came and time.monotonic() < until:
            time.sleep(0.1)
        if again in came or (code == EXIT_STOPPED and not came):
            queue_again(again, None)
        sys.exit(code)

    def checkpoint(self):
        """Return what the job calls when it is started again: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Job:
    """A task that was handed over; id: SLURM's, or that of a process; None: it has not been started."""

    title: str
    words: list[str]
    id: str | None = None


# ---- the folder of a submission --------------------------------------------------------------------------------------


def outcome(place: Path, title: str) -> Path:
    """Return the file that a job leaves."""
    return place / f"{util.plain_name(title)}.json"


def find_log(place: Path, job: Job) -> Path:
    """Return the file that has what a job prints."""
    return place / f"{job.id}_0_log.out"


def find_last_line(place: Path, job: Job) -> str:
    """Return the last line that a job has printed, those of submitit left out; "" where there is none."""
    try:
        lines = find_log(place, job).read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip() and not line.startswith("submitit ")), "")


def write_jobs(place: Path, scheduler: str, jobs: list[Job]) -> None:
    """Note the jobs of a submission."""
    content = {"scheduler": scheduler, "jobs": [dataclasses.asdict(job) for job in jobs]}
    util.write_file(place / "jobs.json", run_log.to_json(content, indent=1).encode())


def read_jobs(place: Path) -> tuple[str, list[Job]]:
    """Return the scheduler of the last submission, and its jobs; none where there is none."""
    if not (place / "jobs.json").is_file():
        return "", []
    content = json.loads((place / "jobs.json").read_text())
    return content["scheduler"], [Job(**job) for job in content["jobs"]]


def read_failures(place: Path, job: Job) -> list[dict] | None:
    """Return what failed in a job that has come to its end; None of another."""
    file = outcome(place, job.title)
    return json.loads(file.read_text()) if file.is_file() else None


def write_failures(place: Path, title: str, failures: list[dict]) -> None:
    """Leave the outcome of a job."""
    util.write_file(outcome(place, title), run_log.to_json(failures, indent=1).encode())


def collect_failures(place: Path, of_table: bool = False) -> list[dict]:
    """Collect what failed in the jobs of a submission; of_table: in that of the table, too, which runs last."""
    found = []
    for job in read_jobs(place)[1]:
        failures = read_failures(place, job)
        if job.title != TABLE or of_table:
            found += [describe_end(place, job)] if failures is None else failures
    return found


def describe_end(place: Path, job: Job) -> dict:
    """Return the failure of a job that has ended without an outcome."""
    parts = [f"job {job.id} was ended by others", find_last_line(place, job), str(find_log(place, job))]
    return {"what": job.title, "command": shlex.join(job.words), "why": "; ".join(filter(None, parts))}


@contextlib.contextmanager
def locked(place: Path):
    """As a context: no other process submits this recipe, or runs it here as jobs. Raises InputError where one does."""
    if holder := held_by(place):
        raise InputError(f"--submit: the jobs of this recipe belong to {holder}; wait for its end, --status shows them")
    lock = FolderLock(place)
    lock.take("--submit", say)
    try:
        yield
    finally:
        lock.release()


# ---- what has become of the jobs -------------------------------------------------------------------------------------


def find_states(place: Path) -> list[tuple[Job, str]]:
    """List the jobs of the last submission, each with its state: done, failed, running, waiting, stopped or unknown."""
    scheduler, jobs = read_jobs(place)
    failures = {job.title: read_failures(place, job) for job in jobs}
    without = [job for job in jobs if failures[job.title] is None]
    states = (_ask_slurm if scheduler == "slurm" else _look_here)(place, without) if without else {}
    return [(job, states.get(job.title, "failed" if failures[job.title] else "done")) for job in jobs]


def _ask_slurm(place: Path, jobs: list[Job]) -> dict[str, str]:
    """By title, the states of jobs that have left no outcome, by one call of sacct."""
    submitit = load_submitit()
    of_slurm = {job.title: submitit.SlurmJob(folder=place, job_id=job.id) for job in jobs}
    words = {title: job.state.split()[0] for title, job in of_slurm.items()}
    return {title: SLURM_STATES.get(word, f"failed ({word})") for title, word in words.items()}


def _look_here(place: Path, jobs: list[Job]) -> dict[str, str]:
    driven = held_by(place) is not None  # on whatever machine; then what has ended has an outcome
    started = {job.title for job in jobs if job.id and (driven or _is_alive(job, place))}
    return {j.title: "running" if j.title in started else "waiting" if driven else "stopped" for j in jobs}


def _is_alive(job: Job, place: Path) -> bool:
    """Whether a job runs on after its submission was killed, as far as this system tells."""
    with contextlib.suppress(OSError):
        return f"submitit.local._local\0{place.absolute()}\0" in Path(f"/proc/{job.id}/cmdline").read_text()
    return False


def show_status(place: Path, recipe: Path) -> None:
    """Print how many jobs are in which state, then a line for each: its state, number, and last line."""
    found = find_states(place)
    if not found:
        raise InputError(f"--status: {recipe} was not submitted with these options; {place} holds no jobs")
    counts = Counter(state.split()[0] for _, state in found)
    print(", ".join(f"{number} {word}" for word, number in counts.items()))
    rows = []
    for job, state in found:
        failures = read_failures(place, job)
        rows.append([job.title, state, job.id or "-", failures[0]["why"] if failures else find_last_line(place, job)])
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)][:3]
    for *cells, last in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(cells, wide, strict=True)), last]).rstrip())


# ---- to SLURM --------------------------------------------------------------------------------------------------------


def read_options(text: str) -> dict:
    """Return the options of sbatch by name, as submitit takes them, "time" in minutes. Raises InputError."""
    try:
        words = shlex.split(text)
    except ValueError:
        raise InputError(f"--slurm {text}: a quote is not closed") from None
    found = {}
    for word in words:
        match = re.fullmatch(r"--([a-z][a-z-]*)(?:=(.+))?", word)
        if not match:
            raise InputError(f"--slurm: {word}: write an option of sbatch in its long form with =, as --partition=gpu")
        found[match[1].replace("-", "_")] = match[2] or True
    for name in found.keys() & {*OURS}:
        raise InputError(f"--slurm: --{name.replace('_', '-')} is set by --submit; leave it out")
    for name in ("nodes", "ntasks", "ntasks_per_node"):
        if found.get(name, "1") != "1":
            given = f"--{name.replace('_', '-')}={found[name]}"
            raise InputError(f"--slurm: {given}: a job is one task on one node, and starts a process per GPU itself")
    if "time" not in found:
        raise InputError(
            "--slurm: --time is missing, after which a job is queued again; give it, such as --time=12:00:00"
        )
    return {**found, "time": read_minutes(str(found["time"]))}


def read_minutes(text: str) -> int:
    """Return a time as sbatch takes it (M, M:S, H:M:S, D-H, D-H:M, D-H:M:S) in minutes, rounded up."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise InputError(f"--slurm: --time={text}: must be as 90, 12:00:00 or 2-12:00:00")
    days, first, second, third = (None if part is None else int(part) for part in match.groups())
    if days is None and third is None:  # it begins with minutes
        hours, minutes, seconds = 0, first, second or 0
    else:
        hours, minutes, seconds = 24 * (days or 0) + first, second or 0, third or 0
    return max(1, 60 * hours + minutes + math.ceil(seconds / 60))


def load_submitit():
    """Load the library, where it is used."""
    try:
        import submitit
    except ModuleNotFoundError:
        raise InputError('--submit: needs submitit; pip install ".[slurm]"') from None
    return submitit


def find_python() -> str:
    """How a job calls this Python, with our modules in its path."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return shlex.join(["env", f"PYTHONPATH={os.pathsep.join(paths)}", sys.executable])


def submit_to_slurm(stages: list[list[Task]], place: Path, options: dict, limit: int | None) -> None:
    """Hand each stage to SLURM, several tasks as one array, of which `limit` run at a time; a stage begins when the one
    before has ended, in whatever way. What an earlier submission still has in the queue is not handed over again.
    """
    submitit = load_submitit()
    if not (shutil.which("sbatch") and shutil.which("srun")):
        raise InputError(
            "--submit slurm: this machine has no sbatch and srun; submit from one that has, or give --submit local"
        )
    executor = submitit.SlurmExecutor(place, max_num_timeout=MAX_TIMEOUTS, python=find_python())
    cpus = options.get("cpus_per_task")
    executor.update_parameters(
        time=options["time"],
        job_name=place.name,
        signal_delay_s=SAVE_SECONDS,
        stderr_to_stdout=True,
        array_parallelism=limit or max(map(len, stages)),
        srun_args=[f"--cpus-per-task={cpus}"] if cpus else None,  # which srun does not take from sbatch
        additional_parameters={**options, "requeue": True},
    )
    jobs, old = _find_queued(place)
    if old is not None:  # the new table comes after all
        submitit.SlurmJob(folder=place, job_id=old.id).cancel(check=False)
    queued = [job.words for job in jobs]
    for stage in stages:
        tasks = [dataclasses.replace(task, grace=GRACE_SECONDS) for task in stage if task.words not in queued]
        if not tasks:
            continue
        after = [job for job in jobs if job.title == BEFORE or stage[0].title == TABLE]
        numbers = dict.fromkeys(job.id if job.words in queued else job.id.partition("_")[0] for job in after)
        executor.update_parameters(dependency=f"afterany:{':'.join(numbers)}" if numbers else None)
        for task in tasks:
            outcome(place, task.title).unlink(missing_ok=True)
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # where submitit prints what it raises
                handed = executor.submit_array(tasks)
        except submitit.core.utils.FailedJobError as error:
            raise InputError(f"--slurm: sbatch refuses the job: {util.reason(error)}") from None
        jobs += [Job(task.title, task.words, job.job_id) for task, job in zip(tasks, handed, strict=True)]
        write_jobs(place, "slurm", jobs)
        what = tasks[0].title if len(tasks) == 1 else f"{len(tasks)} runs, an array"
        say(f"== {what}: job {handed[0].job_id.partition('_')[0]}")


def _find_queued(place: Path) -> tuple[list[Job], Job | None]:
    """Return the jobs that SLURM still has of an earlier submission, and that of its table."""
    if read_jobs(place)[0] != "slurm":
        return [], None
    found = [job for job, state in find_states(place) if state in ("running", "waiting")]
    for job in found:
        if job.title != TABLE:
            say(f"== {job.title}: is job {job.id} already")
    return [j for j in found if j.title != TABLE], next((j for j in found if j.title == TABLE), None)


# ---- on this machine -------------------------------------------------------------------------------------------------


def run_here(stages: list[list[Task]], place: Path, limit: int) -> None:
    """Run the stages one after the other, of each `limit` tasks at a time, until all have ended."""
    executor = load_submitit().LocalExecutor(place, python=find_python())
    executor.update_parameters(timeout_min=60 * 24 * 3650, stderr_to_stdout=True)
    jobs = {task.title: Job(task.title, task.words) for stage in stages for task in stage}
    for job in jobs.values():
        outcome(place, job.title).unlink(missing_ok=True)
    write_jobs(place, "local", list(jobs.values()))
    # submitit would hide the GPUs
    gpus = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}
    running = {}

    def start(task):
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for this process, which ends the others
        try:
            running[task.title] = executor.submit(dataclasses.replace(task, environment=gpus))
        finally:
            signal.signal(signal.SIGINT, before)
        jobs[task.title] = job = Job(task.title, task.words, running[task.title].job_id)
        write_jobs(place, "local", list(jobs.values()))
        say(f"== {task.title}: process {job.id}; {find_log(place, job)}")

    def forget_ended():
        for title in [title for title, handed in running.items() if handed.done()]:
            del running[title]
            failures = read_failures(place, jobs[title])
            if failures is None:
                failures = [describe_end(place, jobs[title])]
                write_failures(place, title, failures)
            say(f"== {title}: " + (f"FAILED: {failures[0]['why']}" if failures else "done"))

    try:
        for stage in stages:
            waiting = list(stage)
            while waiting or running:
                while waiting and len(running) < limit:
                    start(waiting.pop(0))
                time.sleep(0.1)
                forget_ended()
    except BaseException:
        for handed in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(handed.job_id), signal.SIGTERM)
        while not all(handed.done() for handed in running.values()):
            time.sleep(0.1)
        raise

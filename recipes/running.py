"""Runs the commands of a recipe as a user would."""

import os
import re
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import util
from engine.run import checkpoint
from recipes import ROOT, completed, run_folder
from recipes.schema import option
from util import InputError

EPOCH = re.compile(r"epoch \d+/\d+  ")  # the line that ends one, not those of its steps
SHOW_EVERY = 10  # seconds between such lines of a job beside others


def say(text: str) -> None:
    """Print one line, or several, whole: others print at the same time."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Runner:
    """Calls commands, keeps what they print, and remembers which failed."""

    say = staticmethod(say)

    def __init__(self, logs: Path, jobs: int):
        self.logs, self.jobs, self.failures, self.stopped = logs, jobs, [], threading.Event()
        self.running = set()

    def stop(self) -> None:
        """Start nothing more, and end what runs: a training saves first."""
        self.stopped.set()
        for process in list(self.running):
            process.terminate()

    def call(self, title: str, command: str, show: bool = False) -> bool:
        """Run a command as a user would, showing what it prints, of several jobs epochs alone; whether it succeeded."""
        if self.stopped.is_set():
            return False
        words = shlex.split(command)
        words = [sys.executable, str(ROOT / words[1]) if words[1].endswith(".py") else words[1], *words[2:]]
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)} | ({"OMP_NUM_THREADS": "1"} if self.jobs > 1 else {})
        log = self.logs / f"{util.plain_name(title)}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        say(f"== {title}" if self.jobs > 1 else f"\n== {title}\n{command}")
        begin = shown = time.perf_counter()
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with log.open("w") as file, subprocess.Popen(words, text=True, env=env, **pipes) as process:
            self.running.add(process)
            lines = []
            try:
                for line in process.stdout:
                    file.write(line)
                    file.flush()
                    lines.append(line)
                    if self.jobs == 1 or show:
                        say(line.rstrip("\n"))
                    elif EPOCH.match(line) and time.perf_counter() - shown > SHOW_EVERY:
                        shown = time.perf_counter()
                        say(f"   {title}: {line.strip()}")
            except BaseException:  # Ctrl-C, or SIGTERM: Popen would wait for the script's own end
                process.terminate()
                raise
            finally:
                self.running.discard(process)
        if process.returncode == 0:
            say(f"== {title}: done in {time.perf_counter() - begin:.0f} s")
            return True
        if self.stopped.is_set():
            say(f"== {title}: stopped; {log}")
            return False
        say(f"== {title}: FAILED with exit code {process.returncode}; {log}\n{''.join(lines[-3:])}")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        self.fail(title, command, f"exit code {process.returncode}: {last}; {log}")
        return False

    def fail(self, title: str, command: str, why: str) -> None:
        """Remember a failure for the end."""
        self.failures.append({"what": title, "command": command, "why": why})

    def train(self, title: str, command: str) -> Path | None:
        """The folder of the finished training."""
        folder = run_folder(command)
        found = completed.find_run([folder], command)
        if found and (changed := completed.find_change_since(folder, command)):
            raise InputError(
                f"{changed} has changed since {folder} was trained; put the file back, remove the folder to train "
                "again, or give another --exp_name"
            )
        if found and completed.epochs_left(folder) <= 0:
            self.say(f"== {title}: is done, {folder}")
            return folder
        if found and checkpoint.history(folder):
            command += f" --resume {shlex.quote(str(folder))}"
        return folder if self.call(title, command) and completed.epochs_left(folder) <= 0 else None

    def evaluate(self, title: str, command: str, sha256: str) -> dict | None:
        """The record of the evaluation; a probe that was cut off goes on."""
        record = completed.find_record(command, sha256)
        if record:
            self.say(f"== {title}: is done, {record['file']}")
            return record
        root = Path(option(command, "--save_folder", "./save"))
        names = [f"*{sha256[:8]}*", *filter(None, [option(command, "--exp_name")])]
        folders = [place.parent for name in names for place in sorted((root / "linear").glob(f"*/{name}/last.pth"))]
        probe = completed.find_run(folders, command)
        if probe:
            goes_on = completed.epochs_left(probe) > 0 and not completed.find_change_since(probe, command)
            command += f" --resume {shlex.quote(str(probe))}" if goes_on else " --overwrite"
        if not self.call(title, command):
            return None
        record = completed.find_record(command, sha256)
        if record is None:
            self.fail(title, command, f"left no record of the checkpoint {sha256[:8]} in {root / 'results'}")
        return record


class Finder(Runner):
    """Finds what is there already: calls nothing, and says nothing."""

    def say(self, text: str) -> None:
        pass

    def call(self, title: str, command: str, show: bool = False) -> bool:
        return False

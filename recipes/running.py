"""Runs the commands of a recipe as a user would."""

import os
import re
import shlex
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import recipes
import util
from engine.cli import config
from engine.processes.distributed import EXIT_STOPPED
from engine.run import checkpoint
from recipes import completed, schema
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
        self.running, self.cut_off = set(), False  # cut_off: a script saved, to be started again

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
        words = [sys.executable, str(recipes.ROOT / words[1]) if words[1].endswith(".py") else words[1], *words[2:]]
        paths = [str(recipes.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
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
        self.cut_off |= process.returncode == EXIT_STOPPED
        say(f"== {title}: FAILED with exit code {process.returncode}; {log}\n{''.join(lines[-3:])}")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        self.fail(title, command, f"exit code {process.returncode}: {last}; {log}")
        return False

    def fail(self, title: str, command: str, why: str) -> None:
        """Remember a failure for the end."""
        self.failures.append({"what": title, "command": command, "why": why})

    def train(self, title: str, command: str) -> Path | None:
        """Return the folder of the finished training."""
        folder = recipes.run_folder(command)
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
        """Evaluate, unless that is done, and return the record; a probe that was cut off goes on."""
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


def run_method(recipe: dict, name: str, seed: int, scope: recipes.Scope, runner: Runner) -> dict:
    """One method with one seed: {"seed", "values" by column, "records": file by evaluation}, and its checkpoint."""
    title, file = recipes.title(recipe, name, seed), recipes.given(recipe, name)
    wanted = recipes.commands(recipe, name, seed, scope)
    scripts = {schema.words(command)[1] for command in wanted.values()}
    values, records, seconds, about = {}, {}, None, {}
    if file:
        source = {"folder": str(file.parent), **completed.check_given(file)}
        if "warning" in source:
            runner.say(f"== {title}: warning: {source['warning']}")
    else:
        training = wanted.pop("training")
        folder = runner.train(f"{title}: training", training)
        if folder is None:
            return {"seed": seed, "values": values, "records": records}
        source = {"folder": str(folder), "sha256": util.sha256(folder / "last.pth"), "training": training}
        seconds = completed.seconds(folder)
    for step, command in wanted.items():
        command = command.replace("$path2chkpt", shlex.quote(source["folder"]))
        found = runner.evaluate(f"{title}: {step}", command, source["sha256"])
        if found is None:
            continue
        records[step], measured = found["file"], completed.figures(found["metrics"])
        about |= {"machine": f"{found['machine']}, torch {found['versions']['torch']}"}
        for column, path in recipe["evaluations"][step]["columns"].items():
            if path in measured:
                values[column] = measured[path]
            else:
                near, there = util.nearest(path, measured), ", ".join(measured)
                why = f"no value {path} for column {column}{near}; it has {there}, in {found['file']}"
                runner.fail(f"{title}: {step}", command, why)
    values = recipes.add_means(recipe, values) | ({} if seconds is None else {"seconds": seconds})
    about["protocols"] = {script: config.protocol(script) for script in sorted(scripts)}
    return {"seed": seed, "values": values, "records": records, **source, **about}


def attempt(recipe: dict, name: str, seed: int, scope: recipes.Scope, runner: Runner) -> dict:
    """run_method; whatever goes wrong is a failure of this method alone."""
    try:
        return run_method(recipe, name, seed, scope, runner)
    except Exception as error:
        why = util.fault(error)
        if why is None:
            runner.say(traceback.format_exc())
            why = f"{type(error).__name__}: {error}"
        title = recipes.title(recipe, name, seed)
        runner.say(f"== {title}: FAILED: {why}")
        runner.fail(title, recipes.commands(recipe, name, seed, scope).get("training", ""), why)
        return {"seed": seed, "values": {}, "records": {}}

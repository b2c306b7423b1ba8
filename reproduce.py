"""Runs a recipe: trains and evaluates the methods of a table through the scripts, as a user would, and tables them.

python reproduce.py recipes/digits.yaml
python reproduce.py recipes/cifar100.yaml --seeds 3 --only rince_out_in
python reproduce.py recipes/imagenet100.yaml --dry-run

What is done is skipped: a training whose folder has the same command and all its epochs, an evaluation with a record of
the same command on the same checkpoint. A training that was cut off goes on. A failure is reported at the end, and the
rest goes on. The table (Markdown, and JSON with the records behind each figure) lies in save/tables.
"""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
import recipes
from engine import checkpoint
from recipes import done, table
from util import InputError

ROOT = Path(__file__).resolve().parent
EPOCH = re.compile(r"epoch \d+/\d+  ")  # the line that ends one, not those of its steps
SHOW_EVERY = 10  # seconds between such lines of a job beside others


def get_parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("recipe", type=util.user_path, help="YAML file, one of recipes/")
    p.add_argument("--seeds", type=int, default=1, help="seeds 0, 1, ... of each method (default: 1)")
    p.add_argument("--only", nargs="+", default=[], metavar="NAME", help="run these methods; show the others if done")
    p.add_argument("--scale", type=float, default=1.0, help="share of the epochs, to try a recipe out (default: 1)")
    p.add_argument("--options", default="", help='for every script, as --options="--num_workers 4"; one that all have')
    p.add_argument(
        "--jobs", type=int, help="models at a time, one core each; 0: one a core (default: the recipe's, or 1)"
    )
    p.add_argument(
        "--out", type=util.user_path, default=Path("save/tables"), help="folder of the table (default: save/tables)"
    )
    p.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    return p


class Runner:
    """Calls commands, keeps what they print, and remembers which failed."""

    def __init__(self, logs: Path, jobs: int):
        self.logs, self.jobs, self.failures, self.stopped = logs, jobs, [], threading.Event()
        self.running = set()

    def stop(self) -> None:
        """Start nothing more, and end what runs: a training saves first."""
        self.stopped.set()
        for process in list(self.running):
            process.terminate()

    def call(self, title: str, command: str, show: bool = False) -> bool:
        """Run a command as a user would; whether it succeeded. Shown as it runs; of jobs side by side, without `show`,
        the epochs only.
        """
        if self.stopped.is_set():
            return False
        words = shlex.split(command)
        words = [sys.executable, str(ROOT / words[1]) if words[1].endswith(".py") else words[1], *words[2:]]
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)} | ({"OMP_NUM_THREADS": "1"} if self.jobs > 1 else {})
        log = self.logs / f"{title.replace(', ', '_').replace(': ', '_').replace(' ', '_')}.txt"
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
        say(f"== {title}: FAILED with exit code {process.returncode}; {log}\n{''.join(lines[-3:])}")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        self.fail(title, command, f"exit code {process.returncode}: {last}; {log}")
        return False

    def fail(self, title: str, command: str, why: str) -> None:
        """Remember a failure for the end."""
        self.failures.append({"what": title, "command": command, "why": why})

    def train(self, title: str, command: str) -> Path | None:
        """The folder of the finished training."""
        folder = recipes.run_folder(command)
        found = done.find_run([folder], command)
        if found and done.epochs_left(folder) <= 0:
            say(f"== {title}: is done, {folder}")
            return folder
        if found and checkpoint.history(folder):
            command += f" --resume {shlex.quote(str(folder))}"
        return folder if self.call(title, command) else None

    def evaluate(self, title: str, command: str, sha256: str) -> dict | None:
        """The record of the evaluation; a probe that was cut off goes on."""
        record = done.find_record(command, sha256)
        if record:
            say(f"== {title}: is done, {record['file']}")
            return record
        root = Path(recipes.option(command, "--save_folder", "./save"))
        names = [f"*{sha256[:8]}*", *filter(None, [recipes.option(command, "--exp_name")])]
        folders = [place.parent for name in names for place in sorted((root / "linear").glob(f"*/{name}/last.pth"))]
        probe = done.find_run(folders, command)
        if probe:
            command += f" --resume {shlex.quote(str(probe))}" if done.epochs_left(probe) > 0 else " --overwrite"
        if not self.call(title, command):
            return None
        record = done.find_record(command, sha256)
        if record is None:
            self.fail(title, command, f"left no record of the checkpoint {sha256[:8]} in {root / 'results'}")
        return record


def say(text: str) -> None:
    """One line, or several, whole: others print at the same time."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def trained(title: str, command: str, runner: Runner | None) -> dict | None:
    """What a record says of a finished training, and "seconds" where they are known; only what is there already without
    a runner.
    """
    if runner:
        folder = runner.train(f"{title}: training", command)
    else:
        folder = done.find_run([recipes.run_folder(command)], command)
    if folder is None or done.epochs_left(folder) > 0:
        return None
    seconds = done.seconds(folder)
    found = {"folder": str(folder), "sha256": checkpoint.sha256(folder / "last.pth"), "training": command}
    return found if seconds is None else {**found, "seconds": seconds}


def given(title: str, file: Path, runner: Runner | None) -> dict | None:
    """What a record says of a checkpoint that is not trained; None where it is not there and nothing is run."""
    if not runner and not file.is_file():
        return None
    sha256, warning = done.hash_of_given(file)
    if warning and runner:
        say(f"== {title}: warning: {warning}")
    return {"folder": str(file.parent), "sha256": sha256, **({"warning": warning} if warning else {})}


def run_method(recipe: dict, name: str, seed: int, scope: recipes.Scope, runner: Runner | None) -> dict:
    """One method with one seed: {"seed", "values" by column, "records": file by evaluation}; only what is there
    already without a runner.
    """
    title, file = recipes.title(recipe, name, seed), recipes.given(recipe, name)
    wanted = recipes.commands(recipe, name, seed, scope)
    source = given(title, file, runner) if file else trained(title, wanted.pop("training"), runner)
    result = {"seed": seed, "values": {}, "records": {}}
    if source is None:
        return result
    seconds = source.pop("seconds", None)
    result |= source
    for step, command in wanted.items():
        command = command.replace("$path2chkpt", shlex.quote(source["folder"]))
        find = partial(runner.evaluate, f"{title}: {step}") if runner else done.find_record
        found = find(command, source["sha256"])
        if found is None:
            continue
        result["records"][step] = found["file"]
        for column, path in recipe["evaluations"][step]["columns"].items():
            value = found["metrics"]
            for key in path.split("."):
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, int | float):
                result["values"][column] = value
            elif runner:
                known = figures(found["metrics"])
                why = f"no figure {path} for column {column}{util.nearest(path, known)}; there are {', '.join(known)}"
                runner.fail(f"{title}: {step}", command, f"{why}, in {found['file']}")
    return result | {"values": result["values"] | ({} if seconds is None else {"seconds": seconds})}


def figures(metrics: dict, before: str = "") -> list[str]:
    """The paths of a record's figures, as columns name them."""
    paths = []
    for key, value in metrics.items():
        paths += figures(value, f"{before}{key}.") if isinstance(value, dict) else [before + key]
    return paths


def attempt(recipe: dict, name: str, seed: int, scope: recipes.Scope, runner: Runner, wanted: bool) -> dict:
    """run_method, by `runner` if it is wanted; whatever goes wrong is a failure of this method alone."""
    try:
        return run_method(recipe, name, seed, scope, runner if wanted else None)
    except Exception as error:
        why = util.fault(error)
        if why is None:
            traceback.print_exc()
            why = f"{type(error).__name__}: {error}"
        title = recipes.title(recipe, name, seed)
        say(f"== {title}: FAILED: {why}")
        runner.fail(title, recipes.commands(recipe, name, seed, scope).get("training", ""), why)
        return {"seed": seed, "values": {}, "records": {}}


def run_methods(recipe: dict, names, scope: recipes.Scope, runner: Runner) -> dict[str, list[dict]]:
    """The results of every method, a list over seeds; the methods `names` are run, of the others what is there."""
    wanted = [(name, seed) for name in recipe["methods"] for seed in recipes.seeds(recipe, name, scope)]
    with ThreadPoolExecutor(runner.jobs) as pool:
        tasks = [pool.submit(attempt, recipe, n, s, scope, runner, n in names) for n, s in wanted]
        try:
            results = [task.result() for task in tasks]
        except BaseException:
            runner.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return {m: [run for (name, _), run in zip(wanted, results, strict=True) if name == m] for m in recipe["methods"]}


def run_recipe(recipe: dict, names, scope: recipes.Scope, args) -> list[dict]:
    """Runs what is not done, writes and prints the table; returns what failed."""
    util.check_folder(args.out, "--out")
    stem = args.recipe.stem + (f"_scale{args.scale:g}" if args.scale != 1 else "")
    jobs = recipe["jobs"] if args.jobs is None else args.jobs
    runner = Runner(args.out / "logs" / stem, jobs or os.cpu_count() or 1)
    for entry in recipe["before"]:
        if "makes" not in entry or not Path(entry["makes"]).exists():
            call_beside(runner, "before", recipes.in_one_line(entry["command"]))
    results = run_methods(recipe, names, scope, runner)
    content = {"recipe": recipe, "command": sys.argv, "seeds": args.seeds, "scale": args.scale, "results": results}
    util.write_file(args.out / f"{stem}.json", json.dumps({**content, "failures": runner.failures}, indent=1).encode())
    for entry in recipe["after"] if not args.only and args.scale == 1 else ():
        if not runner.failures:
            place = shlex.quote(str(args.out / f"{stem}.json"))
            call_beside(runner, "after", recipes.in_one_line(entry["command"]).replace("$table", place))
    text = table.markdown(recipe, results, scope, runner.failures)
    util.write_file(args.out / f"{stem}.md", text.encode())
    say(f"\n{text}\nsaved {args.out / stem}.md and .json")
    return runner.failures


def call_beside(runner: Runner, when: str, command: str) -> None:
    """A command that belongs to no method, before or after them."""
    runner.call(f"{when}: {' '.join(command.split()[1:4])}", command, show=True)


def main():
    args = get_parser().parse_args()
    recipe = recipes.read(args.recipe)
    for name in args.only:
        if name not in recipe["methods"]:
            raise InputError(f"--only {name}: no method of {args.recipe}{util.nearest(name, recipe['methods'])}")
    if args.seeds < 1 or not 0 < args.scale <= 1 or (args.jobs or 0) < 0:
        raise InputError(
            f"--seeds {args.seeds} --scale {args.scale} --jobs {args.jobs}: seeds start at 1, jobs at 0, "
            "the scale lies in (0, 1]"
        )
    names = args.only or list(recipe["methods"])
    scope = recipes.Scope(args.seeds, args.scale, args.options)
    recipes.check_commands(recipe, names, scope, str(args.recipe))
    if args.dry_run:
        return recipes.print_commands(recipe, names, scope)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        failures = run_recipe(recipe, names, scope, args)
    except KeyboardInterrupt:
        print("reproduce.py: stopped; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before)
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    util.run_command(main)

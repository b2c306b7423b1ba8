"""Runs a recipe: trains and evaluates the methods of a table through the scripts, as a user would, and tables them.

python reproduce.py recipes/digits.yaml
python reproduce.py recipes/cifar100.yaml --seeds 3 --only rince_out_in
python reproduce.py recipes/imagenet100.yaml --dry-run

What is done is skipped: a training whose folder has the same command and all its epochs, an evaluation with a record of
the same command on the same checkpoint. A training that was cut off goes on. A failure is reported at the end, and the
rest goes on. The table (Markdown, and JSON with the records behind each figure) lies in save/tables.
"""

import argparse
import hashlib
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

import util
from util import InputError

ROOT = Path(__file__).resolve().parent
KEYS = {
    "recipe": ("title", "about", "jobs", "before", "methods", "evaluations", "after", "published"),
    "method": ("title", "command", "scaled", "with"),
    "evaluation": ("command", "scaled", "columns"),
    "before": ("command", "makes"),
}


def get_parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("recipe", type=Path, help="YAML file, one of recipes/")
    p.add_argument("--seeds", type=int, default=1, help="seeds 0, 1, ... of each method (default: 1)")
    p.add_argument("--only", nargs="+", default=[], metavar="NAME", help="run these methods; show the others if done")
    p.add_argument("--scale", type=float, default=1.0, help="share of the epochs, to try a recipe out (default: 1)")
    p.add_argument("--options", default="", help='for every script, as --options="--num_workers 4"; one that all have')
    p.add_argument(
        "--jobs", type=int, help="models at a time, one core each; 0: one a core (default: the recipe's, or 1)"
    )
    p.add_argument("--out", type=Path, default=Path("save/tables"), help="folder of the table (default: save/tables)")
    p.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    return p


# ---- the recipe ------------------------------------------------------------------------------------------------------


def read_recipe(path: Path) -> dict:
    """The recipe, with everything there that may be left out. Raises InputError naming file and key."""
    recipe = util.read_yaml(path, str(path))
    if not isinstance(recipe, dict):
        raise InputError(f"{path}: must be a mapping with methods and evaluations")
    recipe = {"about": "", "before": [], "after": [], "jobs": 1, "published": None, **recipe}
    for name in ("title", "methods", "evaluations"):
        if not recipe.get(name):
            raise InputError(f"{path}: {name} is missing")
    parts = {"recipe": [recipe], "before": recipe["before"]}
    parts |= {"method": recipe["methods"].values(), "evaluation": recipe["evaluations"].values()}
    for kind, entries in parts.items():
        for entry in entries:
            if "command" not in entry and kind != "recipe":
                raise InputError(f"{path}: {kind} {entry} has no command")
            for key in entry:
                if key not in KEYS[kind]:
                    raise InputError(f"{path}: {kind} has an unknown key {key}{util.nearest(key, KEYS[kind])}")
    return recipe


def option(command: str, name: str, default=None):
    """The value that a command line gives an option, the last one if several do."""
    words = [part for word in shlex.split(command) for part in (word.split("=", 1) if word[:2] == "--" else [word])]
    places = [i for i, word in enumerate(words[:-1]) if word == name]
    return words[places[-1] + 1] if places else default


def scaled(entry: dict, scale: float) -> str:
    """The options that shorten a command to a share of its epochs; none at scale 1."""
    if scale == 1:
        return ""
    numbers = {name: value if isinstance(value, list) else [value] for name, value in entry.get("scaled", {}).items()}
    return "".join(f" --{k} {','.join(str(max(1, round(scale * v))) for v in of)}" for k, of in numbers.items())


def commands(recipe: dict, name: str, seed: int, args) -> dict[str, str]:
    """The commands of a method with a seed, by name: "training", then the evaluations.

    Seed 0 at full scale is the recipe's own wording; else --seed, shorter epochs and a name of the run's own follow it.
    """
    method = recipe["methods"][name]
    found = {}
    for step, entry in {"training": method, **recipe["evaluations"]}.items():
        command = " ".join(entry["command"].split())
        for key, value in method.get("with", {}).items():
            command = command.replace(f"{{{key}}}", str(value))
        command += scaled(entry, args.scale) + (f" {args.options}" if args.options else "")
        if seed and command.split()[1].startswith("main_"):
            command += f" --seed {seed}"
        suffix = (f"_seed{seed}" if seed else "") + (f"_scale{args.scale:g}" if args.scale != 1 else "")
        if step == "training" and suffix:
            command += f" --exp_name {option(command, '--exp_name')}{suffix}"
        found[step] = command
    return found


def run_folder(training: str) -> Path:
    """Where a training's checkpoints lie."""
    root = Path(option(training, "--save_folder", "./save"))
    return root / "SupCon" / f"{option(training, '--dataset', 'digits')}_models" / option(training, "--exp_name", "")


# ---- what is done ----------------------------------------------------------------------------------------------------


def same(words: list[str], command: str) -> bool:
    """Whether a script was called so, wherever it lies, resumed and overwriting or not."""
    words = [Path(words[0]).name, *words[1:]]
    while "--resume" in words:
        at = words.index("--resume")
        words = words[:at] + words[at + 2 :]
    return [word for word in words if word != "--overwrite"] == shlex.split(command)[1:]


def find_run(folders, command: str) -> Path | None:
    """The folder of a run of this command, whole or cut off."""
    for path in (folder / "config.yaml" for folder in folders):
        if path.is_file() and same(yaml.safe_load(path.read_text())["about"]["command"], command):
            return path.parent
    return None


def epochs_left(folder: Path) -> int:
    """Epochs that a run still has to train."""
    epochs = yaml.safe_load((folder / "config.yaml").read_text())["epochs"]
    done = [record["epoch"] for record in read_log(folder) if "epoch" in record]
    return epochs - (done[-1] if done and (folder / "last.pth").is_file() else 0)


def read_log(folder: Path) -> list[dict]:
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def find_record(command: str, sha256: str) -> dict | None:
    """The record of an evaluation by this command of this checkpoint, with the file that holds it; None without."""
    folder = Path(option(command, "--save_folder", "./save")) / "results"
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if record.get("checkpoint", {}).get("sha256") == sha256 and same(record["command"], command):
            return {**record, "file": str(path)}
    return None


# ---- running ---------------------------------------------------------------------------------------------------------


class Runner:
    """Calls commands, keeps what they print, and remembers which failed."""

    def __init__(self, logs: Path, jobs: int):
        self.logs, self.jobs, self.failures, self.stopped = logs, jobs, [], threading.Event()
        self.running = set()

    def stop(self, scripts_too: bool) -> None:
        """Start nothing more; end what runs, unless the user's Ctrl-C has reached it already."""
        self.stopped.set()
        for process in list(self.running) if scripts_too else ():
            process.terminate()

    def call(self, title: str, command: str) -> bool:
        """Run a command as a user would; whether it succeeded. Shown as it runs; of several jobs, if it fails."""
        if self.stopped.is_set():
            return False
        words = shlex.split(command)
        words = [sys.executable, str(ROOT / words[1]) if words[1].endswith(".py") else words[1], *words[2:]]
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)} | ({"OMP_NUM_THREADS": "1"} if self.jobs > 1 else {})
        log = self.logs / f"{title.replace(', ', '_').replace(': ', '_').replace(' ', '_')}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"== {title}" if self.jobs > 1 else f"\n== {title}\n{command}", flush=True)
        begin = time.perf_counter()
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with log.open("w") as file, subprocess.Popen(words, text=True, env=env, **pipes) as process:
            self.running.add(process)
            lines = []
            for line in process.stdout:
                file.write(line)
                file.flush()
                lines.append(line)
                if self.jobs == 1:
                    print(line, end="", flush=True)
        self.running.discard(process)
        if process.returncode == 0:
            print(f"== {title}: done in {time.perf_counter() - begin:.0f} s", flush=True)
            return True
        print(f"== {title}: FAILED with exit code {process.returncode}; {log}\n{''.join(lines[-3:])}", flush=True)
        self.fail(title, command, f"exit code {process.returncode}, {log}")
        return False

    def fail(self, title: str, command: str, why: str) -> None:
        """Remember a failure for the end."""
        self.failures.append({"what": title, "command": command, "why": why})

    def train(self, title: str, command: str) -> Path | None:
        """The folder of the finished training."""
        folder = run_folder(command)
        found = find_run([folder], command)
        if found and epochs_left(folder) <= 0:
            print(f"== {title}: is done, {folder}", flush=True)
            return folder
        cut_off = found and (folder / "last.pth").is_file()
        return folder if self.call(title, command + (f" --resume {folder}" if cut_off else "")) else None

    def evaluate(self, title: str, command: str, sha256: str) -> dict | None:
        """The record of the evaluation; a probe that was cut off goes on."""
        record = find_record(command, sha256)
        if record:
            print(f"== {title}: is done, {record['file']}", flush=True)
            return record
        root = Path(option(command, "--save_folder", "./save"))
        folders = [folder.parent for folder in sorted((root / "linear").glob(f"*/*{sha256[:8]}*/last.pth"))]
        probe = find_run(folders, command)
        more = "" if probe is None else f" --resume {probe}" if epochs_left(probe) > 0 else " --overwrite"
        return find_record(command, sha256) if self.call(title, command + more) else None


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_method(recipe: dict, name: str, seed: int, args, runner: Runner | None) -> dict:
    """One method with one seed: {"seed", "values" by column, "records": file by evaluation}; only what is there
    already without a runner.
    """
    title = f"{name}, seed {seed}"
    wanted = commands(recipe, name, seed, args)
    training = wanted.pop("training")
    folder = runner.train(f"{title}: training", training) if runner else find_run([run_folder(training)], training)
    result = {"seed": seed, "values": {}, "records": {}}
    if folder is None or epochs_left(folder) > 0:
        return result
    checkpoint = sha256(folder / "last.pth")
    seconds = [record["seconds"] for record in read_log(folder) if "seconds" in record]
    result |= {"folder": str(folder), "sha256": checkpoint, "training": training}
    for step, command in wanted.items():
        command = command.replace("$path2chkpt", str(folder))
        found = runner.evaluate(f"{title}: {step}", command, checkpoint) if runner else find_record(command, checkpoint)
        if found is None:
            continue
        result["records"][step] = found["file"]
        for column, path in recipe["evaluations"][step]["columns"].items():
            value = found["metrics"]
            for key in path.split("."):
                value = value.get(key) if isinstance(value, dict) else None
            if value is not None:
                result["values"][column] = value
            elif runner:
                runner.fail(f"{title}: {step}", command, f"no {path} for column {column} in {found['file']}")
    return result | {"values": result["values"] | ({"seconds": sum(seconds)} if seconds else {})}


def run_methods(recipe: dict, names, args, runner: Runner) -> dict[str, list[dict]]:
    """The results of every method, a list over seeds; the methods `names` are run, of the others what is there."""
    wanted = [(name, seed) for name in recipe["methods"] for seed in range(args.seeds)]
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with ThreadPoolExecutor(runner.jobs) as pool:
        tasks = [pool.submit(run_method, recipe, n, s, args, runner if n in names else None) for n, s in wanted]
        try:
            done = [task.result() for task in tasks]
        except BaseException as reason:
            runner.stop(scripts_too=not isinstance(reason, KeyboardInterrupt))
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
    return {m: [run for (name, _), run in zip(wanted, done, strict=True) if name == m] for m in recipe["methods"]}


# ---- the table -------------------------------------------------------------------------------------------------------


def cell(values: list[float], wanted: int, digits: int = 1) -> str:
    """Mean and standard deviation (n - 1) over seeds; how many there are, where some are missing."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}" + (
        f" ({len(values)} of {wanted})" if wanted > len(values) else ""
    )


def markdown(recipe: dict, results: dict, args, failures: list[dict]) -> str:
    """The table, what it is made of, and what failed."""
    columns = [column for evaluation in recipe["evaluations"].values() for column in evaluation["columns"]]
    published = recipe["published"]
    head = ["method", *columns, "seconds", *(["published"] if published is not None else [])]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, runs in results.items():
        of = {c: [run["values"][c] for run in runs if c in run["values"]] for c in (*columns, "seconds")}
        row = [recipe["methods"][name].get("title", name)]
        row += [cell(of[c], args.seeds) for c in columns]
        row.append(f"{statistics.mean(of['seconds']):.0f}" if of["seconds"] else "-")
        if published is not None:
            row.append(str(published.get(name, "")))
        lines.append(f"| {' | '.join(row)} |")
    seeds = "seed 0" if args.seeds == 1 else f"seeds 0 to {args.seeds - 1}, mean ± standard deviation"
    notes = [f"In percent, {seeds}; seconds of training. {recipe['about']}".strip()]
    if args.scale != 1:
        notes.append(f"SCALED: {100 * args.scale:g} % of the epochs. This shows that the recipe runs; it is no result.")
    if args.options:
        notes.append(f"With {args.options} added to every command.")
    notes += [f"FAILED: {f['what']} ({f['why']})" for f in failures]
    return "\n\n".join([f"## {recipe['title']}", "\n".join(lines), *notes]) + "\n"


def print_commands(recipe: dict, names, args) -> None:
    """What would be run, as a shell takes it."""
    for entry in recipe["before"]:
        print(" ".join(entry["command"].split()))
    for name in names:
        for seed in range(args.seeds):
            found = commands(recipe, name, seed, args)
            print(f"\n# {recipe['methods'][name].get('title', name)}, seed {seed}\n{found.pop('training')}")
            print(f"path2chkpt={run_folder(commands(recipe, name, seed, args)['training'])}", *found.values(), sep="\n")
    for command in recipe["after"]:
        print(" ".join(command.split()))


def main():
    args = get_parser().parse_args()
    recipe = read_recipe(args.recipe)
    for name in args.only:
        if name not in recipe["methods"]:
            raise InputError(f"--only {name}: no method of {args.recipe}{util.nearest(name, recipe['methods'])}")
    if args.seeds < 1 or not 0 < args.scale <= 1:
        raise InputError(f"--seeds {args.seeds} --scale {args.scale}: seeds start at 1, the scale lies in (0, 1]")
    names = args.only or list(recipe["methods"])
    if args.dry_run:
        return print_commands(recipe, names, args)
    util.check_folder(args.out, "--out")
    stem = args.recipe.stem + (f"_scale{args.scale:g}" if args.scale != 1 else "")
    jobs = recipe["jobs"] if args.jobs is None else args.jobs
    runner = Runner(args.out / "logs" / stem, jobs or os.cpu_count() or 1)
    for entry in recipe["before"]:
        if not Path(entry.get("makes", "")).exists() or "makes" not in entry:
            runner.call(f"before: {' '.join(entry['command'].split()[1:4])}", " ".join(entry["command"].split()))
    results = run_methods(recipe, names, args, runner)
    content = {"recipe": recipe, "command": sys.argv, "seeds": args.seeds, "scale": args.scale, "results": results}
    util.write_file(args.out / f"{stem}.json", json.dumps({**content, "failures": runner.failures}, indent=1).encode())
    for command in recipe["after"]:
        if not runner.failures and not args.only and args.scale == 1:
            command = " ".join(command.split()).replace("$table", str(args.out / f"{stem}.json"))
            runner.call(f"after: {' '.join(command.split()[1:4])}", command)
    text = markdown(recipe, results, args, runner.failures)
    util.write_file(args.out / f"{stem}.md", text.encode())
    print(f"\n{text}\nsaved {args.out / stem}.md and .json")
    if runner.failures:
        sys.exit(1)


if __name__ == "__main__":
    util.run_command(main)

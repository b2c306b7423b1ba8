"""What is done of a recipe: runs of the same command, records of the same evaluation, given checkpoints."""

import json
import shlex
from functools import cache
from pathlib import Path

import util
from engine.cli import config
from engine.cli.config import protocol
from engine.cli.parsing import Means
from engine.encoder import official_checkpoints
from engine.encoder.records import read_table
from engine.run import checkpoint, run_log
from recipes import RAW, Scope, add_means, commands, find_parser, parse, seeds
from recipes.schema import option, words
from util import InputError


def same(called: list[str], command: str) -> bool:
    """Whether a script was called so, wherever it lies, overwriting or not; whatever it may have resumed."""
    script, *own = words(command)[1:]
    return Path(called[0]).name == script and _meaning(called[1:], script) == _meaning(own, script)


def _meaning(called: list[str], script: str) -> list[str]:
    """Return the words, options in their first spelling, without those of Means.START."""
    parser, kept, skip = _parser(script), [], False
    means, actions = parser.meanings(), {name: a for a in parser._actions for name in a.option_strings}
    for word, value in zip(called, [*called[1:], ""], strict=True):
        name, equals, own_value = word.partition("=")
        action = actions.get(name)
        if skip:
            skip = False
        elif action and Means.START in means[action.dest]:
            skip = not equals and (action.nargs != "?" or value.lower() in ("true", "false"))
        else:
            kept.append(f"{action.option_strings[0]}{equals}{own_value}" if action else word)
    return kept


_parser = cache(find_parser)  # of a script: every record asks


def find_changed_file(command: str, before: list[dict]) -> str | None:
    """Find the first option of a command, with its file, whose content has changed since something was made from it.

    before: check sums as runs and records have them (config.files_of). What they do not know, as those of older
    versions, and a file that is gone, is not held against them.
    """
    try:
        now = config.files_of(parse(command, command), words(command)[2:])
    except InputError:  # the file of --config is gone
        return None
    return next((f for files in before for f in sorted(files.keys() & now.keys()) if files[f] != now[f]), None)


def find_run(folders, command: str) -> Path | None:
    """Find the folder of a run of this command, whole or cut off, whose every start had its options."""
    for folder in folders:
        file = folder / "config.yaml"
        if not file.is_file():
            continue
        found = config.read_yaml(file, str(file))
        try:
            called = found["about"]["command"]
        except (TypeError, KeyError):
            raise InputError(f"{file}: has no command that the run was started with") from None
        script, number = words(command)[1], found["about"].get("protocol", 1)
        if number == protocol(script) and same(called, command) and kept_its_options(folder, script):
            return folder
    return None


def find_change_since(folder: Path, command: str) -> str | None:
    """`find_changed_file` since a run of this command was started, or resumed."""
    return find_changed_file(command, [start.get("files", {}) for start in read_starts(folder)])


def read_starts(folder: Path) -> list[dict]:
    """Return what is known of a run's starts, from the last one that began from scratch; [] where none did."""
    starts = run_log.read_json_lines(folder / "starts.jsonl")
    scratch = [i for i, start in enumerate(starts) if start["resumed"] is None]
    return starts[scratch[-1] :] if scratch else []


def kept_its_options(folder: Path, script: str) -> bool:
    """Whether a run began from scratch, and resumed nothing but itself with the options that it has now."""
    starts, means = read_starts(folder), find_parser(script).meanings()
    for start in starts:
        then, now = start["options"], starts[-1]["options"]
        both = then.keys() & now.keys()  # an option may be younger than the run
        if any(then[name] != now[name] for name in both if Means.FREE not in means.get(name, Means.RESULT)):
            return False
        if start["resumed"] is not None and Path(start["resumed"]).resolve().parent != folder.resolve():
            return False
    return bool(starts)


def epochs_left(folder: Path) -> int:
    """Epochs that a run still has to train, by what its last.pth holds; all of them without one."""
    epochs = config.read_yaml(folder / "config.yaml", str(folder / "config.yaml"))["epochs"]
    if not (folder / "last.pth").is_file():
        return epochs
    return epochs - checkpoint.load(folder / "last.pth")["epoch"]


def seconds(folder: Path) -> float | None:
    """Time of training; None where it was cut off and resumed, since an epoch's time counts from there."""
    starts = run_log.read_json_lines(folder / "starts.jsonl")
    if not starts or starts[-1]["resumed"] is not None:
        return None
    return sum(record.get("seconds", 0) for record in run_log.read_json_lines(folder / "log.jsonl"))


def check_given(file: Path) -> dict[str, str]:
    """Return the "sha256" of a given checkpoint, and a "warning" where other weights lie in the place of published
    ones.

    Raises InputError, in one line, where there is none: published weights by name, hash and place.
    """
    if file == RAW:
        return {"sha256": str(RAW)}
    meant = official_checkpoints.find_by_place(file)
    weights = meant and f"the published weights {meant.name} ({meant.file}, SHA-256 {meant.sha256})"
    if not file.is_file():
        raise InputError(f"{file}: no such file" + (f"; put {weights} there" if weights else ""))
    sha256 = util.sha256(file)
    if not meant or sha256 == meant.sha256:
        return {"sha256": sha256}
    warning = f"{file} is not the published file: its SHA-256 is {sha256}, not that of {weights}"
    return {"sha256": sha256, "warning": warning}


def _resumed_itself(called: list[str], command: str) -> bool:
    """Whether a call that resumed something, as a probe may, resumed a run of this command."""
    place = option(shlex.join(called), "--resume", "auto")
    if place == "auto":
        return True
    folder = Path(place) if Path(place).is_dir() else Path(place).parent
    return find_run([folder], command) is not None


def find_record(command: str, sha256: str) -> dict | None:
    """Find the record, and its "file", of an evaluation of this checkpoint by this command, with unchanged files."""
    folder = Path(option(command, "--save_folder", "./save")) / "results"
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text())
            wanted = record["checkpoint"]["sha256"] == sha256 and same(record["command"], command)
            wanted = wanted and record.get("protocol", 1) == protocol(words(command)[1])
            wanted = wanted and _resumed_itself(record["command"], command)
        except (ValueError, TypeError, KeyError):  # not a record
            continue
        if wanted and not find_changed_file(command, [record.get("files", {})]):
            return {**record, "file": str(path)}
    return None


def take_up(recipe: dict, scope: Scope) -> dict[tuple[str, int], dict]:
    """By method and seed, the runs of the table that the recipe has under `results`, where there is such a file."""
    file = util.user_path(recipe.get("results") or "")
    if not file.is_file():
        return {}
    table = read_table(file)
    wanted = [(name, seed) for name in recipe["methods"] for seed in seeds(recipe, name, scope)]
    found = {(name, seed): _take_up_run(table, recipe, name, seed, scope) for name, seed in wanted}
    return {key: run for key, run in found.items() if run is not None}


def _take_up_run(table: dict, recipe: dict, name: str, seed: int, scope: Scope) -> dict | None:
    """Return a run of an earlier table under the recipe's columns; None unless its commands, and what their figures
    mean, are as today, and it has them all.
    """
    then, runs = table["recipe"], table["results"].get(name, [])
    run = next((run for run in runs if run["seed"] == seed), None)
    if run is None:
        return None
    before = commands(then, name, seed, Scope(table["seeds"], table["scale"], table.get("options", "")))
    values = {"seconds": run["values"]["seconds"]} if "seconds" in run["values"] else {}
    for step, command in commands(recipe, name, seed, scope).items():
        script = words(command)[1]
        if step not in before or not same(words(before[step])[1:], command):
            return None
        if run.get("protocols", {}).get(script, protocol(script)) != protocol(script):
            return None
        if step == "training":
            continue
        titles = {path: column for column, path in then["evaluations"][step]["columns"].items()}
        for column, path in recipe["evaluations"][step]["columns"].items():
            if titles.get(path) not in run["values"]:
                return None
            values[column] = run["values"][titles[path]]
    return {**run, "values": add_means(recipe, values)}


def figures(metrics: dict, before: str = "") -> dict[str, float]:
    """Return the figures of a record by their paths, as columns name them: `fine.mAP`."""
    found = {}
    for key, value in metrics.items():
        if isinstance(value, dict):
            found |= figures(value, f"{before}{key}.")
        elif isinstance(value, int | float):
            found[before + key] = value
    return found

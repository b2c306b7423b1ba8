"""Recipes: the commands of a table, from a YAML file of this folder or of the user's."""

import importlib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import util
from engine.cli import config, options
from engine.cli.parsing import Options, Parser
from recipes import grid
from recipes.schema import NUMBERS, check, check_entry, in_one_line, option, words
from util import InputError

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Scope:
    """How much of a recipe is run: so many seeds of each method, a share of the epochs, options for every script."""

    seeds: int = 1
    scale: float = 1.0
    options: str = ""


def read(path: Path) -> dict:
    """Read the recipe, with everything there that may be left out. Raises InputError naming file and key."""
    recipe = check_entry(config.read_yaml(path, str(path), as_written=True), "recipe", str(path))
    recipe = {
        "about": "", "before": [], "after": [], "jobs": "1", "published": None, "baseline": None, "grid": {},
        "means": {}, "correction": None, "results": None, "report": None, **recipe,
    }  # fmt: skip
    recipe["jobs"] = int(recipe["jobs"])
    for kind, key in (("method", "methods"), ("evaluation", "evaluations")):
        for name, entry in recipe[key].items():
            where = f"{path}: {kind} {name}"
            check_entry(entry, kind, where)
            for option_name, numbers in (entry.get("scaled") or {}).items():
                check(f"{where}: scaled: {option_name}", numbers, NUMBERS)
            command = entry.get("command")
            if kind == "method":
                check_source(entry, where)
            if command and option(command, "--seed") is not None:
                raise InputError(f"{where}: leave --seed out of the command, --seeds adds it")
    for kind in ("before", "after"):
        recipe[kind] = [{"command": entry} if isinstance(entry, str) else entry for entry in recipe[kind]]
        for number, entry in enumerate(recipe[kind], 1):
            check_entry(entry, kind, f"{path}: {kind} {number}")
    recipe["methods"] = grid.expand(recipe, str(path))
    check_names(recipe, path)
    for name, entry in recipe["evaluations"].items():
        where = f"{path}: evaluation {name}: for"
        entry["for"] = [cell for method in entry.get("for") or () for cell in grid.find_methods(recipe, method, where)]
    check_columns(recipe, path)
    recipe["published"] = read_published(recipe, path)
    check_baseline(recipe, path)
    if recipe["report"]:
        check_entry(recipe["report"], "report", f"{path}: report")
        recipe["after"].append({"command": make_report(recipe, f"{path}: report")})
    return recipe


def make_report(recipe: dict, where: str) -> str:
    """Return the command that writes the page of a table, of the methods under `for` (default: all) with seed 0. Raises
    InputError, beginning with `where`, where they are too many, or the script refuses it.
    """
    named = recipe["report"].get("for") or recipe["methods"]
    names = [cell for method in named for cell in grid.find_methods(recipe, method, f"{where}: for")]
    if len(names) > options.MOST_ENCODERS:
        raise InputError(
            f"{where}: for: {len(names)} methods; name at most {options.MOST_ENCODERS} that the page compares"
        )
    folders = [given(recipe, name) or run_folder(commands(recipe, name, 0, Scope())["training"]) for name in names]
    titles = [grid.find_title(recipe, name) for name in names]
    command = f"{in_one_line(recipe['report']['command'])} --ckpt {shlex.join(map(str, folders))}"
    command += f" --names {shlex.join(titles)} --table"
    parse(f"{command} table.json", where)
    return f"{command} $table"


def check_source(method: dict, where: str) -> None:
    """Raise InputError, beginning with `where`, unless a method is trained, as a run that has a name, or else given."""
    command, given = method.get("command"), method.get("checkpoint")
    if not command and not given:
        raise InputError(f"{where}: command is missing, or checkpoint, a file that needs no training")
    if command and given:
        raise InputError(f"{where}: command and checkpoint: give one of the two")
    for key in ("scaled", "seeds"):
        if given and method.get(key):
            raise InputError(f"{where}: {key} has no use without a command")
    if method.get("seeds") == "0":
        raise InputError(f"{where}: seeds must be at least 1")
    if command and not option(command, "--exp_name"):
        raise InputError(f"{where}: its command must name the run with --exp_name")


def check_names(recipe: dict, path: Path) -> None:
    """Raise InputError where a method or an evaluation is called as an entry of ours, or two would have one log."""
    for kind, ours, what in (("method", "source", "published"), ("evaluation", "training", "a method's commands")):
        names = recipe[f"{kind}s"]
        if ours in names:
            raise InputError(f"{path}: {kind} {ours}: give it another name; {ours} has a meaning in {what}")
        if (again := util.twice(map(util.plain_name, names))) is not None:
            raise InputError(f"{path}: {kind} {again}: two have this name, apart from spaces and signs; rename one")


def check_columns(recipe: dict, path: Path) -> None:
    """Raise InputError where a method has two columns of one name, or a column is no path into a record's metrics."""
    taken = {column: set(recipe["methods"]) for column in ("method", "seconds", "published")}  # the table's own
    for name, evaluation in recipe["evaluations"].items():
        methods = {method for method in recipe["methods"] if is_for(evaluation, method)}
        for column, place in evaluation["columns"].items():
            check(f"{path}: evaluation {name}: columns: {column}", place, "text")
            if taken.setdefault(column, set()) & methods:
                raise InputError(f"{path}: evaluation {name}: column {column} exists; give another name")
            taken[column] |= methods
    measured = columns({**recipe, "means": {}})
    for mean, parts in recipe["means"].items():
        if mean in taken:
            raise InputError(f"{path}: means: column {mean} exists; give another name")
        check(f"{path}: means: {mean}", parts, "a list")
        for part in parts:
            if part not in measured:
                raise InputError(f"{path}: means: {mean}: no column {part}{util.nearest(part, measured)}")


def read_published(recipe: dict, path: Path) -> dict | None:
    """Read what is under `published`, a method's for each of its cells without its own; InputError for wrong names."""
    published = dict(recipe["published"] or {})
    if published and not published.get("source"):
        raise InputError(f"{path}: published: source is missing, the text that names where the values are from")
    known, found = columns(recipe), {}
    for name, figures in published.items():
        if name == "source":
            found[name] = figures
            continue
        cells = grid.find_methods(recipe, name, f"{path}: published")
        check(f"{path}: published: {name}", figures, "a mapping")
        for column in figures:
            if column not in known:
                raise InputError(f"{path}: published {name}: no column {column}{util.nearest(column, known)}")
        found |= {cell: published.get(cell, figures) for cell in cells}
    return None if recipe["published"] is None else found


def check_baseline(recipe: dict, path: Path) -> None:
    """Raise InputError unless the baseline, where there is one, is a method that is trained, and so has seeds; and for
    a correction that is not known, or has no differences to correct.
    """
    if recipe["correction"] and (recipe["correction"] != "Holm" or not recipe["baseline"]):
        raise InputError(f"{path}: correction {recipe['correction']}: must be Holm, of a recipe with a baseline")
    for name in grid.find_methods(recipe, recipe["baseline"], f"{path}: baseline") if recipe["baseline"] else ():
        if given(recipe, name):
            raise InputError(f"{path}: baseline: {name} is a given checkpoint, which has no seeds to pair")


def columns(recipe: dict) -> list[str]:
    """Return the columns of the recipe's table, means last, without seconds; evaluations of methods may share one."""
    found = dict.fromkeys(c for evaluation in recipe["evaluations"].values() for c in evaluation["columns"])
    return [*found, *recipe.get("means", {})]


def add_means(recipe: dict, values: dict[str, float]) -> dict[str, float]:
    """Return a run's figures by column, and the recipe's means of those of which all columns are there."""
    whole = {mean: parts for mean, parts in recipe["means"].items() if parts and all(part in values for part in parts)}
    return values | {mean: sum(values[part] for part in parts) / len(parts) for mean, parts in whole.items()}


def is_for(evaluation: dict, method: str) -> bool:
    """Whether a method has this evaluation: one with `for` is for the methods that it names."""
    return not evaluation.get("for") or method in evaluation["for"]


RAW = Path(options.RAW)  # as a method's checkpoint


def given(recipe: dict, name: str) -> Path | None:
    """Return the checkpoint of a method that is not trained; None of one that is."""
    file = recipe["methods"][name].get("checkpoint")
    return file and util.user_path(file)


def seeds(recipe: dict, name: str, scope: Scope) -> range:
    """Return the seeds that a method is run with, at most its own number of them: a given checkpoint is what it is."""
    own = recipe["methods"][name].get("seeds")
    return range(1 if given(recipe, name) else min(scope.seeds, int(own or scope.seeds)))


def list_runs(recipe: dict, names, scope: Scope) -> list[tuple[str, int]]:
    """List (method, seed) of these methods, seed by seed: a table that is broken off has pairs to compare."""
    return [(name, seed) for seed in range(scope.seeds) for name in names if seed in seeds(recipe, name, scope)]


def title(recipe: dict, name: str, seed: int) -> str:
    """Return what a method with a seed is called while it runs."""
    return name if given(recipe, name) else f"{name}, seed {seed}"


def scaled(entry: dict, scale: float) -> str:
    """Return the options that shorten a command to a share of its epochs; none at scale 1."""
    if scale == 1:
        return ""
    given = entry.get("scaled") or {}
    numbers = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
    return "".join(f" --{k} {','.join(str(max(1, round(scale * float(v)))) for v in vs)}" for k, vs in numbers.items())


def commands(recipe: dict, name: str, seed: int, scope: Scope) -> dict[str, str]:
    """Return the commands of a method with a seed, by name: "training" where it has one, then its evaluations.

    Seed 0 at full scale is the recipe's own wording, with the file's name for last.pth where a checkpoint is given;
    else --seed, shorter epochs and a name of the run's own follow it.
    """
    method, file = recipe["methods"][name], given(recipe, name)
    entries = {} if file else {"training": method}
    entries |= {key: evaluation for key, evaluation in recipe["evaluations"].items() if is_for(evaluation, name)}
    found = {}
    for step, entry in entries.items():
        command = in_one_line(entry["command"])
        for key, value in (method.get("with") or {}).items():
            command = command.replace(f"{{{key}}}", str(value))
        command = put_file(command, file) if file else command
        command += scaled(entry, scope.scale) + (f" {scope.options}" if scope.options else "")
        if seed and command.split()[1].startswith("main_"):
            command += f" --seed {seed}"
        suffix = (f"_seed{seed}" if seed else "") + (f"_scale{scope.scale:g}" if scope.scale != 1 else "")
        # a scaled training has a checkpoint, and so a probe, of its own; a given checkpoint's probes lie side by side
        if suffix and (step == "training" or (file and command.split()[1] == "main_linear.py")):
            command += f" --exp_name {option(command, '--exp_name', f'{name}_{step}')}{suffix}"
        found[step] = command
    return found


def put_file(command: str, file: Path) -> str:
    """Return a command with a given checkpoint for what is a run's folder, or the last.pth in it, elsewhere; of raw
    features without a checkpoint, and without the layer of one.
    """
    if file == RAW:
        return re.sub(r" --(ckpt|layer)[ =]\S+", "", command)
    name = shlex.quote(file.name)
    return re.sub(r"\$path2chkpt(/last\.pth|/)?(?![\w/.])", lambda _: f"$path2chkpt/{name}", command)


def run_folder(training: str) -> Path:
    """Where a training's checkpoints lie."""
    root = Path(option(training, "--save_folder", "./save"))
    dataset = "features" if option(training, "--features", "") else option(training, "--dataset", "digits")
    return root / "SupCon" / f"{dataset}_models" / option(training, "--exp_name", "")


def check_commands(recipe: dict, names, scope: Scope, source: str) -> None:
    """Raise InputError, beginning with `source`, where a script would refuse an option or a value of a command."""
    for name in names:
        for seed in {0, seeds(recipe, name, scope)[-1]}:
            for step, command in commands(recipe, name, seed, scope).items():
                where = f"{source}: {name}: {step}"
                unknown = [word for word in re.findall(r"\$\w+", command) if word != "$path2chkpt"]
                if unknown:
                    raise InputError(f"{where}: {unknown[0]} is unknown; a run's folder is $path2chkpt")
                parse(command, where)


def find_parser(script: str) -> Parser:
    """Find the parser of a script, NAME.py; one without options for a command of another kind."""
    return importlib.import_module(script.removesuffix(".py")).get_parser() if script.endswith(".py") else Parser()


def parse(command: str, where: str) -> Options:
    """Let a script's parser read a command; InputError, beginning with `where`, if it refuses."""
    script, given = words(command)[1], words(command)[2:]
    if not script.endswith(".py"):
        return Options()
    if not (ROOT / script).is_file():
        raise InputError(f"{where}: the script {script} does not exist")
    parser = find_parser(script)

    def refuse(message):
        raise InputError(f"{where}: {script}: {message}")

    parser.exit_with = refuse
    return parser.parse_args(config.command_line(parser, given, script.removesuffix(".py")))


def print_commands(recipe: dict, names, scope: Scope) -> None:
    """Print what would be run, as a shell takes it."""
    for entry in recipe["before"]:
        print(in_one_line(entry["command"]))
    for name in names:
        for seed in seeds(recipe, name, scope):
            found, file = commands(recipe, name, seed, scope), given(recipe, name)
            folder = file.parent if file else run_folder(found["training"])
            head = recipe["methods"][name].get("title", name) + (f", {file}" if file else f", seed {seed}")
            training = [found.pop("training")] if not file else []
            print(f"\n# {head}", *training, f"path2chkpt={shlex.quote(str(folder))}", *found.values(), sep="\n")
    for entry in recipe["after"]:
        print(in_one_line(entry["command"]))

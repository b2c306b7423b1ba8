"""Recipes: the commands of a table, from a YAML file of this folder or of the user's."""

import shlex
from pathlib import Path

import util
from util import InputError

KEYS = {
    "recipe": ("title", "about", "jobs", "before", "methods", "evaluations", "after", "published"),
    "method": ("title", "command", "scaled", "with"),
    "evaluation": ("command", "scaled", "columns"),
    "before": ("command", "makes"),
}


def read(path: Path) -> dict:
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
    check_published(recipe, path)
    return recipe


def check_published(recipe: dict, path: Path) -> None:
    """Raise InputError where `published` names no method or column, or no source of its figures."""
    published = recipe["published"] or {}
    if not isinstance(published, dict) or (published and not published.get("source")):
        raise InputError(f"{path}: published must be a mapping with a source, and of each method column: figure")
    known = columns(recipe)
    for name, figures in published.items():
        if name == "source":
            continue
        if name not in recipe["methods"]:
            raise InputError(f"{path}: published: there is no method {name}{util.nearest(name, recipe['methods'])}")
        for column in figures:
            if column not in known:
                raise InputError(f"{path}: published {name}: no column {column}{util.nearest(column, known)}")


def columns(recipe: dict) -> list[str]:
    """The columns of the recipe's table, training time left out."""
    return [column for evaluation in recipe["evaluations"].values() for column in evaluation["columns"]]


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

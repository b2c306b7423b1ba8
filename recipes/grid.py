"""The grid of a recipe: a method whose options take several values becomes one for each combination of them, a cell."""

import itertools
import shlex

import util
from recipes.schema import NUMBERS, check, option, words
from util import InputError

NO_AXES = {"seed": "--seeds sets the seeds", "exp_name": "a cell's name has its values"}


def axes(grid: dict, where: str) -> dict[str, dict[str, str]]:
    """Axis -> label -> value, as in a command. Raises InputError that begins with `where`."""
    found = {}
    for axis, values in grid.items():
        if axis.startswith("-"):
            raise InputError(f"{where}: {axis}: write the option without dashes, {axis.lstrip('-')}")
        if axis in NO_AXES:
            raise InputError(f"{where}: {axis} cannot be an axis: {NO_AXES[axis]}")
        if not isinstance(values, list | dict) or not values:
            raise InputError(f"{where}: {axis} must be a list of values, or a mapping `label: value`, not {values!r}")
        pairs = list(values.items()) if isinstance(values, dict) else [(value, value) for value in values]
        for label, value in pairs:
            check(f"{where}: {axis}: {label}", value, "text")
            if not words(value):
                raise InputError(f"{where}: {axis}: {value!r} must be a value as in a command")
        if (again := util.twice(util.plain_name(label) for label, _ in pairs)) is not None:
            raise InputError(f"{where}: {axis}: two cells have the name {axis}{again}; give other labels")
        found[axis] = dict(pairs)
    return found


def expand(recipe: dict, source: str) -> dict[str, dict]:
    """Expand the methods, those with a grid, their own or the recipe's, as their cells; InputError beginning with
    `source`.

    A cell has "cell": {"method": the name of what it is a cell of, "title", "axes": {axis: label}}.
    """
    of_all, used, methods = axes(recipe["grid"], f"{source}: grid"), False, {}
    for name, method in recipe["methods"].items():
        where, own, trained = f"{source}: method {name}: grid", method.get("grid"), bool(method.get("command"))
        if own and not trained:
            raise InputError(f"{where}: a given checkpoint has no options that could take other values")
        used |= trained and own is None
        of_method = axes(own, where) if own is not None else of_all if trained else {}
        for labels in itertools.product(*of_method.values()):
            chosen = dict(zip(of_method, labels, strict=True))
            values = {axis: of_method[axis][label] for axis, label in chosen.items()}
            key, cell = make_cell(name, {k: v for k, v in method.items() if k != "grid"}, chosen, values, where)
            if key in methods or (key != name and key in recipe["methods"]):
                raise InputError(f"{where}: two methods have the name {key}; give other names or labels")
            methods[key] = cell
    if of_all and not used:
        raise InputError(f"{source}: grid: it needs a method with a command and without a grid of its own")
    return methods


def make_cell(name: str, method: dict, labels: dict, values: dict, where: str) -> tuple[str, dict]:
    """Name and method of the cell with these labels and values by axis; the method itself where there is no axis."""
    if not labels:
        return name, method
    taken = next((axis for axis in values if axis in (method.get("with") or {})), None)
    if taken:
        raise InputError(f"{where}: {taken}: is under `with`, too, which sets {{{taken}}} in commands; rename one")
    suffix = "".join(f"_{axis}{util.plain_name(label)}" for axis, label in labels.items())
    options = " ".join(f"--{axis} {value}" for axis, value in values.items())
    run = shlex.quote(option(method["command"], "--exp_name") + suffix)
    scaled = dict(method.get("scaled") or {})
    for axis in scaled.keys() & values.keys():  # a share of the cell's own epochs
        scaled[axis] = values[axis].split(",")
        check(f"{where}: {axis}, which is scaled", scaled[axis], NUMBERS)
    title = method.get("title", name)
    return f"{name}{suffix}", {
        **method,
        "title": ", ".join([title, *(f"{axis} {label}" for axis, label in labels.items())]),
        "command": f"{method['command']} {options} --exp_name {run}",
        "with": {**(method.get("with") or {}), **values},
        "scaled": scaled,
        "cell": {"method": name, "title": title, "axes": labels},
    }


def find_methods(recipe: dict, name: str, where: str) -> list[str]:
    """Find the methods that a name stands for: one, a cell, or all cells of one; InputError beginning with `where`."""
    check(where, name, "text")
    method_of = {key: method.get("cell", {}).get("method", key) for key, method in recipe["methods"].items()}
    (name,) = util.match_spelling([name], [*method_of.values(), *method_of])
    found = [name] if name in method_of else [key for key, method in method_of.items() if method == name]
    if not found:
        known = dict.fromkeys([*method_of.values(), *method_of])
        raise InputError(f"{where}: unknown method {name}{util.nearest(name, known)}")
    return found


def find_baseline(recipe: dict, name: str) -> str | None:
    """Find the baseline of a method, of several cells that with its values; None of a baseline, or without just one."""
    methods, cells = recipe["methods"], find_methods(recipe, recipe["baseline"], "baseline")
    if name in cells:
        return None
    if len(cells) > 1:
        own = read_axes(methods[name]).items()
        cells = [c for c in cells if all(read_axes(methods[c]).get(axis, label) == label for axis, label in own)]
    return cells[0] if len(cells) == 1 else None


def read_axes(method: dict) -> dict[str, str]:
    """Axis -> label of a cell; none of a method without a grid."""
    return method.get("cell", {}).get("axes", {})


def find_title(recipe: dict, name: str) -> str:
    """Find the title of a method, of a cell, or of what has several cells, of which each then stands for its like."""
    first, *others = (recipe["methods"][key] for key in find_methods(recipe, name, "title"))
    if not others:
        return first.get("title", name)
    return f"{first['cell']['title']} of the same {' and '.join(first['cell']['axes'])}"

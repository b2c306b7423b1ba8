"""What a recipe's entries must be, and how its commands are taken apart."""

import math
import shlex

import util
from util import InputError

NUMBERS = "a number, or a list of numbers"
# kind of entry -> its keys, those that it must have marked with *, and what each must be
FORMS = {
    "recipe": {
        "title*": "text", "methods*": "a mapping", "evaluations*": "a mapping", "about": "text",
        "jobs": "a whole number", "before": "a list", "after": "a list", "published": "a mapping", "baseline": "text",
        "grid": "a mapping", "means": "a mapping", "correction": "text", "results": "text",
        "report": "a mapping",
    },
    "method": {
        "command": "a command", "checkpoint": "text", "title": "text", "scaled": "a mapping", "with": "a mapping",
        "grid": "a mapping", "seeds": "a whole number",
    },
    "evaluation": {"command*": "a command", "columns*": "a mapping", "scaled": "a mapping", "for": "a list"},
    "before": {"command*": "a command", "makes": "text"},
    "after": {"command*": "a command"},
    "report": {"command*": "a command", "for": "a list"},
}  # fmt: skip


def check_entry(entry, kind: str, where: str) -> dict:
    """Check the entry, a mapping in the form of its kind; else InputError that begins with `where`."""
    check(where, entry, "a mapping")
    forms = {key.rstrip("*"): form for key, form in FORMS[kind].items()}
    for key in entry:
        if key not in forms:
            raise InputError(f"{where}: unknown key {key}{util.nearest(key, forms)}")
    for key, form in forms.items():
        if f"{key}*" in FORMS[kind] and not entry.get(key):
            raise InputError(f"{where}: {key} is missing")
        if entry.get(key) is not None:
            check(f"{where}: {key}", entry[key], form)
    return {key: value for key, value in entry.items() if value is not None}


def check(where: str, value, form: str) -> None:
    """Raise InputError, beginning with `where`, where a value is not of the form that is asked for."""
    numbers = value if isinstance(value, list) else [value]
    right = {
        "text": isinstance(value, str),
        "a mapping": isinstance(value, dict) and all(isinstance(key, str) for key in value),
        "a list": isinstance(value, list),
        "a whole number": isinstance(value, str) and value.isdecimal(),
        NUMBERS: all(is_number(number) for number in numbers),
        "a command": isinstance(value, str) and len(words(value)) > 1 and words(value)[0] == "python",
    }
    if not right[form]:
        example = ", such as `python main_supcon.py --exp_name NAME`" if form == "a command" else ""
        raise InputError(f"{where} must be {form}{example}, not {value!r}")


def is_number(value) -> bool:
    """Whether a text is a finite number."""
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def words(command: str) -> list[str]:
    """Split a command line into words; [] where a quote is not closed."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


def option(command: str, name: str, default=None):
    """Return the value that a command line gives an option, the last one of several; `~` is expanded, as scripts do."""
    parts = [part for word in words(command) for part in (word.split("=", 1) if word[:2] == "--" else [word])]
    places = [i for i, part in enumerate(parts[:-1]) if part == name]
    return util.user_text(parts[places[-1] + 1]) if places else default


def in_one_line(command: str) -> str:
    """Return a command of a recipe, which may be folded over lines."""
    return " ".join(command.split())

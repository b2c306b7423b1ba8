"""The docstrings of the wheel: they say what there is to say, and their examples print what they show.

Their form is ruff's to hold: see pyproject.toml.
"""

import doctest
import importlib
import inspect

import pytest
from commands import ROOT

import evaluation
import losses

FILES = sorted(file for package in ("losses", "networks", "evaluation") for file in (ROOT / package).glob("*.py"))
MODULES = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in FILES]
EXPORTED = {name: getattr(package, name) for package in (losses, evaluation) for name in package.__all__}
KNOWN = {name: importlib.import_module(f"networks.{name}") for name in ("memory_bank", "vectors")} | {"losses": losses}
every_module = pytest.mark.parametrize("name", MODULES)


def documented(name):
    """Return what users of a module are to know: what is exported, and of networks all that is public."""
    module = importlib.import_module(name)
    own = [x for x in vars(module).values() if getattr(x, "__module__", None) == name and hasattr(x, "__name__")]
    in_networks = name.startswith("networks.")
    return [x for x in own if x.__name__ in EXPORTED or (in_networks and not x.__name__.startswith("_"))]


@every_module
def test_examples_print_what_they_show(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module, globs=EXPORTED | KNOWN | vars(module)).failed == 0


@every_module
def test_what_users_are_to_know_has_arguments_and_an_example_unless_one_line_says_all(name):
    for x in documented(name):
        lines = inspect.getdoc(x).splitlines()
        assert len(lines) == 1 or "Examples:" in lines, x
        assert len(lines) == 1 or {"Args:", "Attributes:"} & {*lines} or not inspect.signature(x).parameters, x
        assert len(lines) > 1 or x.__name__ not in EXPORTED, x


@every_module
def test_first_lines_are_short_sentences(name):
    module = importlib.import_module(name)
    tests = doctest.DocTestFinder(exclude_empty=False).find(module)
    firsts = [test.docstring.strip().splitlines()[0] for test in tests if test.docstring.strip()]
    assert firsts and [first for first in firsts if len(first) > 88 or not first.endswith(".")] == []

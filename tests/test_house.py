"""The house: every option is read, and things are added where they belong."""

import argparse
import ast
import importlib
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from commands import ROOT, module_file
from test_import_law import imported

from engine.cli.parsing import as_typed

SCRIPTS = (
    "main_supcon", "main_ce", "main_linear", "retrieval", "out_of_dist_detection", "reproduce", "report",
    "engine.extract",
)  # fmt: skip


def own_modules(name, found=None):
    """The tree's own modules that a module imports, itself included: name -> parsed file."""
    found = {} if found is None else found
    if name not in found:
        found[name] = ast.parse(module_file(name).read_text())
        for module in imported(name, found[name]):
            own_modules(module, found)
    return found


def options_read(trees):
    """Names that are read off `args`, or off an attribute of that name."""
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    loaded = [node for node in nodes if isinstance(node.ctx, ast.Load)]
    return {n.attr for n in loaded if "args" in (getattr(n.value, "id", None), getattr(n.value, "attr", None))}


SHARED = ("factory", "objective")  # modules of the engine from which a script takes what it needs


def reached(trees):
    """What runs for a script, of its modules (name -> parsed file): of those that all scripts share, only what another
    of them names, and what that names.
    """
    shared = {f"engine.{name}" for name in SHARED}
    others = [tree for name, tree in trees.items() if name not in shared]
    defined = {}
    for node in (node for name in shared & trees.keys() for node in trees[name].body):
        names = [node.name] if isinstance(node, ast.FunctionDef) else [t.id for t in getattr(node, "targets", [])]
        defined |= dict.fromkeys(names, node)

    def taken(tree):
        attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        return {node.attr for node in attributes if getattr(node.value, "id", None) in SHARED}

    found, new = set(), set().union(*map(taken, others)) & defined.keys()
    while new:
        found |= new
        nodes = [defined[name] for name in new]
        called = {n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name)}
        new = (called.union(*map(taken, nodes)) & defined.keys()) - found
    return others + [defined[name] for name in sorted(found)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_of_a_script_is_read_somewhere(script):
    declared = {a.dest for a in importlib.import_module(script).get_parser()._actions} - {"help", "config"}
    assert declared - options_read(reached(own_modules(script))) == set()


def test_an_option_that_nothing_reads_would_be_found():
    read = options_read(reached(own_modules("main_ce")))
    assert "batch_size" in read
    assert "memorybank_size" not in read
    assert "features_cache" not in read  # engine.factory reads it, in a function that main_ce does not call


@pytest.mark.parametrize("script", SCRIPTS[:5])
def test_help_is_grouped_and_shows_every_default(script):
    parser = importlib.import_module(script).get_parser()
    text = parser.format_help()
    assert len(text.splitlines()) < 260
    assert {"data:", "output:"} <= set(text.splitlines())
    for action in parser._actions:
        assert action.option_strings[0] in text
        if action.default not in (None, argparse.SUPPRESS) and action.default != []:
            assert f"(default: {as_typed(action.default)})" in re.sub(r"\s+", " ", text)


def test_one_version_of_ruff_is_pinned():
    (pinned,) = re.findall(r'"(ruff==[\d.]+)"', (ROOT / "pyproject.toml").read_text())
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["additional_dependencies"] for hook in hooks] == [[pinned], [pinned]]


@pytest.mark.parametrize(
    ("message", "passes"),
    [
        ("loss: count the anchor once in L_out", True),
        ("datasets, reports: read tars faster\n\nA body may have any length, " + "and more, " * 9, True),
        ("docs/data.md: embed a table", True),
        ("area: " + "a" * 66, True),
        ("Merge branch 'main' into a-branch", True),
        ('Revert "an old subject of more than 72 characters, which git quotes, whatever it was in the past"', True),
        ("fixup! loss: count the anchor once in L_out", True),
        ("area: " + "a" * 67, False),
        ("Count the anchor once\n\nloss: not the first line", False),
        ("loss: counted the anchor once", False),
        ("loss: counting the anchor once", False),
        ("loss: count the anchor once.", False),
        ("loss:count the anchor once", False),
        ("loss: ", False),
        ("\nloss: count the anchor once", False),
    ],
)
def test_the_hook_takes_subjects_of_the_agreed_form_alone(message, passes):
    """As pygrep does with --multiline --negate."""
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][1]["hooks"]
    assert hook["language"] == "pygrep" and hook["args"] == ["--multiline", "--negate"]
    found = re.search(hook["entry"].encode(), f"{message}\n".encode(), re.MULTILINE | re.DOTALL)
    assert bool(found) == passes


# ---- a data set, a ranking and a variant, added as CONTRIBUTING.md says ----------------------------------------------

ADDED = {
    "A data set": {
        "datasets/sources.py": (
            "SOURCES = {\n",
            'def stripes(folder, split):\n    """Gray stripes of three widths."""\n'
            "    labels = np.arange(60) % 3\n"
            "    rows = [np.arange(12) // (c + 1) % 2 * 200 + i % 7 for i, c in enumerate(labels)]\n"
            "    images = np.stack([np.tile(row, (12, 1)) for row in rows]).astype(np.uint8)\n"
            "    return images, labels, ['fine', 'mid', 'wide']\n"
            "\n\nSOURCES = {\n"
            '    "stripes": Source(stripes, size=12, small=True, mean=None, std=None, superclasses="stripes"),\n',
        ),
        "datasets/rankings/superclasses/stripes.yaml": (None, "narrow: [fine, mid]\nbroad: [wide]\n"),
    },
    "A ranking by name": {
        "datasets/rankings/table.py": (
            "NAMED = {",
            "def neighbors(classes, superclasses):\n"
            "    n = np.arange(len(classes))\n"
            "    return np.where(abs(n[:, None] - n) == 1, 0.6, np.eye(len(n)))\n\n\n"
            'NAMED = {"neighbors": neighbors, ',
        )
    },
    "A loss variant": {"losses/equations.py": ("VARIANTS = {", 'VARIANTS = {"in_out": ("in", "out"), ')},
}


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the tree to which one of each was added."""
    root = tmp_path_factory.mktemp("tree") / "rince"
    ignored = shutil.ignore_patterns(".*", "save", "data", "build", "__pycache__", "tests", "*.egg-info")
    shutil.copytree(ROOT, root, ignore=ignored)
    for name, (old, new) in (item for files in ADDED.values() for item in files.items()):
        text = (root / name).read_text() if old else ""
        assert not old or text.count(old) == 1
        (root / name).write_text(text.replace(old, new) if old else new)
    return root


def test_each_addition_touches_the_files_that_contributing_names():
    for what, files in ADDED.items():
        text = (ROOT / "CONTRIBUTING.md").read_text()
        (paragraph,) = re.findall(rf"\* \*\*{what}\*\*:(.*?)(?=\n\* |\Z)", text, flags=re.DOTALL)
        assert all(f"`{name.replace('stripes.yaml', 'NAME.yaml')}`" in paragraph for name in files)


def test_trainings_take_what_was_added(extended, tmp_path):
    common = "--dataset stripes --model resnet8 --epochs 1 --batch_size 20 --num_workers 0"
    runs = f"{common} --ranking superclass", f"{common} --ranking neighbors --variant in_out"
    code = "import sys, main_supcon\nfor words in sys.argv[1:]:\n"
    code += "    sys.argv = ['main_supcon.py', *words.split()]\n    main_supcon.main()\n"
    done = subprocess.run(
        [sys.executable, "-c", code, *runs], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(extended)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split("RINCE ")[1:]
    assert first.startswith("in: 60 images, 3 classes")
    assert "similarity 0.75, tau 0.225; positives of a class 0/1/1 classes" in first
    assert second.startswith("in_out: 60 images, 3 classes")
    assert "similarity 0.6, tau 0.3; positives of a class 1/1/2 classes" in second
    assert "epoch 1/1  loss" in first and "epoch 1/1  loss" in second

"""The layers: imports run downward, options end at the scripts, and nothing heavy is loaded before its use.

Sizes and complexity are ruff's to hold: see pyproject.toml.
"""

import ast
import json
import subprocess
import sys

from commands import ROOT

SCRIPTS = ("main_supcon", "main_ce", "main_linear", "retrieval", "out_of_dist_detection", "rankings", "report")
GROUND = {"losses", "networks", "evaluation", "util"}
DATA = {"datasets", "datasets.rankings"}
BELOW = GROUND | DATA
# the engine's packages, the lower ones first: each may import those named, and the layers below
ENGINE = {
    "engine.processes": set(),
    "engine.cli": {"engine.processes"},
    "engine.batches": {"engine.processes"},
    "engine.train": {"engine.processes", "engine.batches"},
    "engine.run": {"engine.processes", "engine.cli", "engine.train"},
    "engine.encoder": {"engine.processes", "engine.cli", "engine.batches", "engine.train", "engine.run"},
}
WHOLE_ENGINE = {"engine", *ENGINE}
# package or module -> what it may import beside itself: the longest name that fits a module counts
LAW = {
    **{name: set() for name in GROUND},
    "datasets": {"util"},
    "datasets.rankings": {"datasets", "util"},
    **{name: BELOW | others for name, others in ENGINE.items()},
    "engine": BELOW | set(ENGINE),
    "figures": BELOW | WHOLE_ENGINE,
    "recipes": {"engine.processes", "engine.cli", "engine.run", "engine.encoder", "util"},
    "reports": BELOW | WHOLE_ENGINE | {"figures", "recipes"},
    "benchmarks": BELOW | WHOLE_ENGINE | {"figures", "recipes"},
    **{script: BELOW | WHOLE_ENGINE | {"figures", "recipes", "reports", "benchmarks"} for script in SCRIPTS},
    "reproduce": {"recipes", "engine.processes.distributed", "util"},
    "hubconf": {"losses", "networks", "evaluation", "util", "engine.encoder.pretrained"},
}
FILES = [*ROOT.glob("*.py"), *(f for name in LAW for f in (ROOT / name).rglob("*.py"))]
# whose functions may have an `args`: the others take values
COMMANDS = {*SCRIPTS, "reproduce", "engine.extract"}
KNOW_OPTIONS = {
    *COMMANDS,
    "engine.cli.options",
    "engine.cli.config",
    "engine.factory",
    "engine.objective",
    "engine.run.runs",
}


def name_of(file):
    """A file's name as a module."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(file) for file in FILES}


def package_of(module):
    """The entry of LAW that a module belongs to; None for other people's modules."""
    return max((name for name in LAW if f"{module}.".startswith(f"{name}.")), key=len, default=None)


def imported(module, tree):
    """The modules of ours that a module imports, anywhere in it."""
    package = module.split(".") if (ROOT / module.replace(".", "/")).is_dir() else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if package_of(alias.name))
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            found = {f"{source}.{a.name}" if f"{source}.{a.name}" in MODULES else source for a in node.names}
            yield from (name for name in found if package_of(name))


def breaks(module, code):
    """What of a module's imports the law forbids."""
    own = package_of(module)
    found = imported(module, ast.parse(code))
    return [name for name in found if package_of(name) != own and not {package_of(name), name} & LAW[own]]


def test_imports_run_downward():
    assert {f"{name_of(f)} imports {name}" for f in FILES for name in breaks(name_of(f), f.read_text())} == set()


def test_an_import_upward_would_be_found():
    for module, line in (
        ("losses", "import util"),
        ("networks.contrastive", "from ..losses import rince"),
        ("datasets.rankings.table", "def f():\n    from engine.cli import options"),
        ("main_ce", "import main_supcon"),
        ("engine.batches.loading", "from engine.run import runs"),
        ("engine.run.runs", "from engine import factory"),
    ):
        assert len(breaks(module, line)) == 1


def test_options_are_known_to_the_commands_and_to_five_modules_of_the_engine():
    for file in FILES:
        functions = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.FunctionDef)]
        takers = [f.name for f in functions if "args" in (a.arg for a in f.args.args)]
        assert not takers or name_of(file) in KNOW_OPTIONS or package_of(name_of(file)) == "benchmarks", takers


HEAVY = {
    "torchvision",
    "sklearn",
    "scipy",
    "matplotlib",
    "tensorboard",
    "transformers",
    "torch._dynamo",
    "PIL.ImageQt",
    "bokeh",
}


def loaded_by(code: str) -> set[str]:
    """Which of HEAVY a new interpreter has after this code."""
    show = f"import json, sys; print(json.dumps([m for m in {sorted(HEAVY)} if m in sys.modules]))"
    command = [sys.executable, "-c", f"{code}\n{show}"]
    return set(json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout))


def test_reading_options_loads_nothing_heavy_but_torch():
    parsers = "\n".join(f"import {script}; {script}.get_parser()" for script in sorted(COMMANDS))
    assert loaded_by(parsers) == set()


def test_loader_processes_load_nothing_that_they_do_not_use():
    """What a loader process that is not forked imports: what its data set, collation and start are pickled by."""
    code = "import pickle; from datasets.views import Views, as_it_is; from engine.processes import signals\n"
    code += "from datasets import build, packed; from datasets.augmentation import Augmentation\n"
    code += "augmentation = Augmentation(8, (0.5,) * 3, (0.2,) * 3)\n"
    code += "pickle.loads(pickle.dumps((as_it_is, signals.ignore, packed.Pack, Views(None, augmentation, 0, True))))"
    assert loaded_by(code) == set()

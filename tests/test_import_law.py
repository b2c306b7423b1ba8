"""The floors of the house: imports run downward, options end at the scripts, and nothing heavy is loaded before use."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT

SCRIPTS = ("main_supcon", "main_ce", "main_linear", "retrieval", "out_of_dist_detection", "rankings")
GROUND = {"losses", "networks", "evaluation", "util"}
DATA = {"datasets", "datasets.rankings"}
BELOW = {"figures", "recipes", "benchmarks"}
# room -> what it may import beside itself; a room is a module or package, or one of a package that has a law of its own
LAW = {
    **{room: set() for room in GROUND},
    "datasets": {"util"},
    "datasets.rankings": {"datasets", "util"},
    "engine": GROUND | DATA,
    "figures": GROUND | DATA | {"engine"},
    "recipes": {"engine", "util"},
    "benchmarks": GROUND | DATA | {"engine", "figures", "recipes"},
    **{script: GROUND | DATA | BELOW | {"engine"} for script in SCRIPTS},
    "reproduce": {"recipes", "engine.config", "engine.checkpoint", "util"},
    "hubconf": {"losses", "networks", "evaluation", "util", "engine.checkpoint"},
}
FOLDERS = ("networks", "evaluation", "datasets", "engine", "figures", "recipes", "benchmarks")


def sources(root: Path) -> list[Path]:
    """The Python files of a tree of ours, tests left out."""
    return [*root.glob("*.py"), *(file for folder in FOLDERS for file in (root / folder).rglob("*.py"))]


FILES = sources(ROOT)
# whose functions may have an `args`: the others take values
KNOW_OPTIONS = {*SCRIPTS, "reproduce", "engine.options", "engine.config", "engine.objective", "engine.runs"}
# functions of more than six values: inner ones of the loss, which autograd calls by position, the losses, whose options
# are the objective's, and the model, built once of all its parts
WIDE = {"losses.fast_terms", "losses.forward", "losses.__init__", "networks.contrastive.__init__"}


def name_of(file: Path, root: Path = ROOT) -> str:
    """A file's name as a module."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    """The room that a module lies in; None for other people's modules."""
    if module == "datasets.rankings" or module.startswith("datasets.rankings."):
        return "datasets.rankings"
    top = module.split(".")[0]
    return top if top in LAW else None


def imported(file: Path, root: Path = ROOT) -> set[str]:
    """The modules of ours that a file imports, anywhere in it."""
    package = name_of(file, root).split(".")
    package = package if file.name == "__init__.py" else package[:-1]
    modules = {name_of(f, root) for f in sources(root)}
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            found |= {source if f"{source}.{a.name}" not in modules else f"{source}.{a.name}" for a in node.names}
    return {module for module in found if room_of(module)}


def breaks(file: Path, root: Path = ROOT) -> list[str]:
    """What of a file's imports the law forbids."""
    own = room_of(name_of(file, root))
    return [
        f"{name_of(file, root)} imports {module}"
        for module in sorted(imported(file, root))
        if room_of(module) != own and not {room_of(module), module} & LAW[own]
    ]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_run_downward(file):
    assert room_of(name_of(file)), "a room that the plan of the house does not know"
    assert breaks(file) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("losses", "import util"),
        ("networks/resnet", "from losses import rince"),
        ("evaluation/ood", "from engine import frozen"),
        ("datasets/sources", "from datasets.rankings import table"),
        ("datasets/rankings/table", "def f():\n    from engine import options"),
        ("engine/runs", "from figures import curves"),
        ("figures/curves", "import retrieval"),
        ("recipes/done", "from datasets import rankings"),
        ("main_ce", "import main_supcon"),
        ("reproduce", "from engine import training"),
        ("hubconf", "from engine.frozen import load"),
        ("networks/contrastive", "from ..losses import rince"),
    ],
)
def test_an_import_upward_would_be_found(tmp_path, name, line):
    for file in FILES:
        (tmp_path / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file.relative_to(ROOT)).touch()
    (tmp_path / f"{name}.py").write_text(f"{line}\n")
    assert len(breaks(tmp_path / f"{name}.py", tmp_path)) == 1


def test_a_ground_floor_package_imports_itself_by_relative_names():
    """So that it works in the wheel too, where it lies in `rince`."""
    for file in FILES:
        if room_of(name_of(file)) in ("networks", "evaluation"):
            tree = ast.walk(ast.parse(file.read_text()))
            absolute = [n.module for n in tree if isinstance(n, ast.ImportFrom) and not n.level and n.module]
            assert not [module for module in absolute if room_of(module)]


def test_the_rooms_depend_on_one_another_at_most_fifty_times():
    edges = {(name_of(f).split(".")[0], m.split(".")[0]) for f in FILES for m in imported(f)}
    assert len({e for e in edges if e[0] != e[1]}) <= 50


def functions():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                a = node.args
                names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs) if x.arg not in ("self", "cls", "ctx")]
                yield name_of(file), node, names


def test_options_are_known_to_the_scripts_and_to_four_rooms_of_the_engine():
    outside = [f"{m}.{f.name}" for m, f, names in functions() if "args" in names and m not in KNOW_OPTIONS]
    assert [name for name in outside if not name.startswith("benchmarks.")] == []


def test_functions_take_six_values_at_most():
    assert {f"{m}.{f.name}" for m, f, names in functions() if len(names) > 6} == WIDE


def test_functions_have_sixty_lines_at_most_and_scripts_tell_a_story_of_150():
    assert [f"{m}.{f.name}" for m, f, _ in functions() if f.end_lineno - f.lineno >= 60] == []
    for script in SCRIPTS:
        assert len((ROOT / f"{script}.py").read_text().splitlines()) < 160


# ---- start-up --------------------------------------------------------------------------------------------------------

HEAVY = {"torchvision", "sklearn", "scipy", "matplotlib", "tensorboard", "transformers", "torch._dynamo", "PIL.ImageQt"}


def loaded_by(code: str) -> set[str]:
    """Which of HEAVY a new interpreter has after this code."""
    show = f"import json, sys; print(json.dumps([m for m in {sorted(HEAVY)} if m in sys.modules]))"
    command = [sys.executable, "-c", f"{code}\n{show}"]
    return set(json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout))


def test_reading_options_loads_nothing_heavy_but_torch():
    parsers = "\n".join(f"import {script}; {script}.get_parser()" for script in (*SCRIPTS, "reproduce"))
    assert loaded_by(parsers) == set()


def test_loader_processes_load_nothing_that_they_do_not_use():
    """What a loader process that is not forked imports: what its data set, collation and start are pickled by."""
    code = "import pickle; from datasets.views import Views, as_it_is; from engine import signals\n"
    code += "from datasets import build, packed; from datasets.augmentation import Augmentation\n"
    code += "augmentation = Augmentation(8, (0.5,) * 3, (0.2,) * 3)\n"
    code += "pickle.loads(pickle.dumps((as_it_is, signals.ignore, packed.Pack, Views(None, augmentation, 0, True))))"
    assert loaded_by(code) == set()

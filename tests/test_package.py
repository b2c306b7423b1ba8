"""The wheel `rince`, the list of what it and the scripts depend on, and a start without any of that."""

import ast
import os
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest
from commands import ROOT
from hatchling.metadata.core import ProjectMetadata

from datasets import text_files

PROJECT = ProjectMetadata(str(ROOT), None).core
EXTRAS = PROJECT.optional_dependencies
IMPORTED_AS = {
    "faiss-cpu": "faiss",
    "huggingface-hub": "huggingface_hub",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "pytorch-metric-learning": "pytorch_metric_learning",
    "pytorch-ood": "pytorch_ood",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "umap-learn": "umap",
}
GROUND_FLOOR = [f for room in ("losses", "networks", "evaluation") for f in (ROOT / room).glob("*.py")]
PACKAGES = [path.parent for path in ROOT.glob("*/__init__.py")]
SCRIPTS = sorted({*ROOT.glob("*.py"), *(f for folder in PACKAGES for f in folder.rglob("*.py"))} - {*GROUND_FLOOR})
TESTS = sorted((ROOT / "tests").rglob("*.py"))


# ---- the wheel -------------------------------------------------------------------------------------------------------

USE = """
import sys, torch
import torch.nn.functional as F
from rince.evaluation import retrieval_metrics
from rince.losses import RINCELoss
from rince.networks import classifier, contrastive, memory_bank, resnet

torch.manual_seed(0)
bank = memory_bank.MemoryBank(16, 8)
bank.push(F.normalize(torch.randn(12, 8), dim=1), torch.arange(12) % 3)
q, k = F.normalize(torch.randn(2, 4, 8), dim=2)
loss = RINCELoss(torch.tensor([[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]))
print(loss(q, k, torch.tensor([0, 1, 2, 0]), bank.keys, bank.labels).item())
print(retrieval_metrics(q, torch.arange(4), q, torch.arange(4))["R@1"])
print({m.partition(".")[0] for m in sys.modules} & {"losses", "networks", "evaluation", "datasets", "util", "engine"})
"""


def build(source, kind, folder):
    """The one file that the build backend makes of a source tree; kind: wheel or sdist."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (made,) = folder.iterdir()
    return made


def test_the_wheel_holds_the_ground_floor_and_computes_anywhere(tmp_path):
    wheel = build(ROOT, "wheel", tmp_path / "wheel")
    names = zipfile.ZipFile(wheel).namelist()
    modules = {f"rince/{path.relative_to(ROOT)}" for path in GROUND_FLOOR}
    about = {f"rince-{PROJECT.version}.dist-info/{n}" for n in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")}
    assert set(names) == modules | {"rince/__init__.py", "rince/py.typed"} | about

    with tarfile.open(build(ROOT, "sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert build(source, "wheel", tmp_path / "again").read_bytes() == wheel.read_bytes()

    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True)
    installed, here = (
        subprocess.run(
            [sys.executable, "-c", code], cwd=elsewhere, env={**os.environ, "PYTHONPATH": str(place)},
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()
        for code, place in ((USE, site), (USE.replace("rince.", ""), ROOT))
    )  # fmt: skip
    assert installed[:2] == here[:2] and float(installed[1]) == 1
    assert installed[2] == "set()"


# ---- dependencies ----------------------------------------------------------------------------------------------------


def name_of(requirement):
    return re.match(r"[\w-]+", requirement)[0].lower()


def declared(*extras):
    """Import names of the dependencies, and of some extras."""
    lists = [PROJECT.dependencies, *(EXTRAS[extra] for extra in extras)]
    return {IMPORTED_AS.get(name_of(r), name_of(r)) for requirements in lists for r in requirements}


def foreign(files, everywhere=True):
    """Other people's modules that files import, anywhere or only where they are loaded with the file."""
    ours = {path.stem for path in [*ROOT.glob("*.py"), *PACKAGES, *TESTS]} | {"rince", "examples"}
    found = set()
    for file in files:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree) if everywhere else tree.body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module)
    if "torch.utils.tensorboard" in found:  # torch asks for the package, which it does not bring along
        found.add("tensorboard")
    return {name.partition(".")[0] for name in found} - ours - set(sys.stdlib_module_names)


def test_the_dependencies_and_extras_are_what_is_imported_the_optional_ones_only_where_they_are_used():
    assert foreign(GROUND_FLOOR) == declared("timm") and foreign(GROUND_FLOOR, everywhere=False) <= declared()
    optional = declared("wordnet", "umap", "timm", "parquet", "video", "slurm", "report", "bench") - declared()
    assert foreign(SCRIPTS) | declared() == declared("scripts") | optional
    assert foreign(SCRIPTS, everywhere=False) <= declared("scripts") and {"scipy", "PIL"} <= foreign(SCRIPTS)
    assert foreign(TESTS) <= declared("scripts", "timm", "dev", "oracles")
    assert not foreign(TESTS, everywhere=False) & (declared("oracles") - declared())


@pytest.mark.parametrize("file", ["Makefile", "requirements.yml"])
def test_environments_are_made_with_the_scripts_dependencies_and_the_tools(file):
    text = (ROOT / file).read_text()
    assert re.findall(r"\.\[([\w,]+)\]", re.sub(r"\.\[(oracles|bench|docs)\]", "", text)) == ["scripts,timm,dev"]
    assert not re.search(r"\s-e\s", text)  # an editable install holds copies, which no edit reaches


def test_every_direct_dependency_has_its_tested_version_in_the_constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [re.fullmatch(r"([\w-]+)==[\d.]+", line)[1] for line in lines if not line.startswith("#")]
    requirements = [*PROJECT.dependencies, *(r for extra in EXTRAS.values() for r in extra)]
    assert sorted(pinned) == sorted({name_of(r) for r in requirements})


# ---- a start without the packages ------------------------------------------------------------------------------------

STARTED = [
    [f"-m{path.relative_to(ROOT).with_suffix('')}".replace("/", ".")] if path.parent != ROOT else [path.name]
    for path in SCRIPTS
    if '__name__ == "__main__"' in path.read_text()
]


@pytest.mark.parametrize("script", STARTED, ids="".join)
def test_without_its_packages_a_script_says_in_one_line_how_to_get_them(script):
    command = [sys.executable, "-S", "-E", *script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    line = r"No module named '\w+': run `make \.venv/\.installed`, then `source \.venv/bin/activate`\n"
    assert (done.returncode, done.stdout) == (2, "") and re.fullmatch(line, done.stderr)


def test_the_commands_that_make_an_environment_are_the_makefiles():
    command = ["make", "--dry-run", "--always-make", ".venv/.installed"]
    assert "-m venv .venv" in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_package_that_is_missing_later_is_not_taken_for_a_missing_environment(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ModuleNotFoundError, match="yaml"):
        text_files.read_yaml(ROOT / "recipes" / "digits.yaml", "a file")

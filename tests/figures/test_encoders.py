"""Pictures of several checkpoints, from the command line: they are drawn, or a line says what does not go together."""

from functools import partial

import commands
import pytest
import torch
from commands import CE, run
from made_data import make_image_folders
from PIL import Image

from engine import checkpoint

SCRIPTS = ("figures.classes", "figures.strips")
HELD_OUT = "--hold_out 2 3 5 7 8"  # leaves two superclasses, and half of the work


@pytest.fixture(scope="module")
def root(digits):
    """Beside the digits' models: one that knows other classes, files of superclasses, folders of images."""
    state = checkpoint.load(digits / "random" / "last.pth")
    for name, known in (("fewer", "0123456"), ("others", "012345678a")):
        (digits / name).mkdir()
        checkpoint.save(digits / name / "last.pth", {**state, "classes": list(known)})
    (digits / "one.yaml").write_text(f"all: {list('0123456789')}\n")
    (digits / "alone.yaml").write_text("".join(f'"group {c}": ["{c}"]\n' for c in range(10)))
    for part, classes in (("train", ["cat", "dog", "car"]), ("val", ["cat", "dog"])):
        make_image_folders(digits / "images" / part, classes, each=2)
    (digits / "pets.yaml").write_text("pets: [cat, dog]\nvehicles: [car]\n")
    return digits


@pytest.mark.parametrize("script", SCRIPTS)
def test_two_checkpoints_are_drawn_side_by_side_by_kept_features(monkeypatch, capsys, root, script):
    words = f"{HELD_OUT} --ckpt {CE} random --features_cache kept --out new/{script}.png"
    words += " --queries 2 --nearest 3" if script == "figures.strips" else ""
    run(monkeypatch, root, words, script)
    assert capsys.readouterr().out.endswith(f"drew new/{script}.png\n")
    with Image.open(root / f"new/{script}.png") as picture:
        assert picture.convert("L").getextrema() == (0, 255)
    assert len({path.name.split("_")[0] for path in (root / "kept").iterdir()}) == 2


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (f"{CE} none.pth", "--ckpt none.pth: no such file"),
        (f"{CE} random --names SCL", "--names: 1 for 2 checkpoints of --ckpt; give one each"),
        (f"{CE} random --names SCL SCL", "--names: two are called SCL"),
        ("random random", "--ckpt: two are called random; give --names that differ"),
        (f"{CE} random fewer", "fewer/last.pth: was trained on other classes than "),
        (f"{CE} others", "(without 9)"),
        (f"{CE} --superclasses none.yaml", "--superclasses none.yaml: no such file"),
        (f"{CE} --superclasses one.yaml", "--superclasses one.yaml: all classes are of one superclass"),
        (f"{CE} --superclasses alone.yaml", "--superclasses alone.yaml: no two classes are of one superclass"),
        ("random --dataset path --data_folder images", "--dataset path: has no superclasses of its own; give"),
        (f"{CE} --out {CE}/last.pth/x.png", "last.pth"),
    ],
)
def test_what_does_not_go_together_is_one_line(monkeypatch, capsys, root, script, words, reason):
    error_of = partial(commands.error_of, script=script)
    assert reason in error_of(monkeypatch, capsys, root, f"--ckpt {words}")


@pytest.mark.parametrize(
    ("script", "words", "reason"),
    [
        (
            "figures.classes",
            "--dataset path --data_folder images --superclasses pets.yaml",
            "class car has no validation",
        ),
        ("figures.strips", "--queries 11", "--queries 11: there are 10 classes with test images"),
        ("figures.strips", f"{HELD_OUT} --queries 6", "--queries 6: there are 5 classes with test images"),
        ("figures.strips", "--nearest 5000", "--nearest 5000: there are 1442 training images"),
    ],
)
def test_what_there_is_too_little_of_is_one_line(monkeypatch, capsys, root, script, words, reason):
    assert reason in commands.error_of(monkeypatch, capsys, root, f"--ckpt random {words}", script)


def test_features_that_are_all_0_are_no_picture(monkeypatch, capsys, root):
    state = checkpoint.load(root / "random" / "last.pth")
    weights = {k: torch.zeros_like(v) for k, v in state["model"].items()}
    (root / "zero").mkdir()
    checkpoint.save(root / "zero" / "last.pth", {**state, "model": weights})
    found = commands.error_of(monkeypatch, capsys, root, f"{HELD_OUT} --ckpt random zero", "figures.classes")
    assert "zero/last.pth: all features are 0" in found

"""Pictures of encoders: numbers as loops have them, maps that keep what they should, one line for bad input."""

import numpy as np
import pytest
import reference
import torch
from commands import CE, error_of, run
from made_data import clouds, make_image_folders
from PIL import Image

from engine.run import checkpoint
from figures import encoders

HELD_OUT = "--hold_out 2 3 5 7 8"  # leaves two superclasses, and half of the work


def test_cosines_of_classes_are_means_over_pairs_of_images():
    z, labels = clouds(each=3)
    x = z * torch.arange(1, 10)[:, None]  # of any length
    want = reference.class_cosines(x.tolist(), labels.tolist(), 3)
    assert encoders.class_cosines(x, labels, 3) == pytest.approx(np.array(want), abs=1e-6)


def test_pairs_of_images_are_told_apart_by_class_and_superclass():
    labels = np.array([0, 0, 1, 2])
    kinds = encoders.pair_kinds(labels[:, None], labels, [0, 0, 1])
    assert kinds.tolist() == [[0, 0, 1, 2], [0, 0, 1, 2], [1, 1, 0, 2], [2, 2, 2, 0]]


def test_a_map_keeps_the_classes_apart_near_ones_near_and_is_the_same_every_time():
    z, labels = clouds(each=60)
    points = encoders.mds(z.numpy())
    assert points.shape == (180, 2)
    assert np.array_equal(points, encoders.mds(z.numpy()))
    middle = np.stack([points[labels == c].mean(0) for c in range(3)])
    spread = max(points[labels == c].std(0).max() for c in range(3))
    near, *far = (np.linalg.norm(middle[a] - middle[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert min(near, *far) > 3 * spread
    assert near < 0.8 * min(far)


def test_names_are_moved_apart_by_no_more_than_they_overlap():
    places = np.array([[0, 0], [0.5, 0.1], [0.2, 0], [5, 0], [5, 3]], dtype=float)
    moved = encoders.spread_apart(places, np.ones(5), 0.4)
    assert np.array_equal(moved[:, 0], places[:, 0])
    assert np.array_equal(moved[3:], places[3:])
    assert np.diff(np.sort(moved[:3, 1])) == pytest.approx([0.4, 0.4], abs=0.02)
    assert np.abs(moved - places).max() < 0.5


@pytest.fixture(scope="module")
def root(digits):
    """Beside the digits' models: some of other classes or features of 0, files of superclasses, images."""
    state = checkpoint.load(digits / "random" / "last.pth")
    zeros = {k: torch.zeros_like(v) for k, v in state["model"].items()}
    changes = {
        "fewer": {"classes": list("0123456")},
        "others": {"classes": list("012345678a")},
        "zero": {"model": zeros},
    }
    for name, change in changes.items():
        (digits / name).mkdir()
        checkpoint.save(digits / name / "last.pth", state | change)
    (digits / "one.yaml").write_text(f"all: {list('0123456789')}\n")
    (digits / "alone.yaml").write_text("".join(f'"group {c}": ["{c}"]\n' for c in range(10)))
    (digits / "cats.yaml").write_text("cats: [lion, tiger]\n")
    (digits / "pets.yaml").write_text("pets: [cat, dog]\nvehicles: [car]\n")
    for part, classes in (("train", ["cat", "dog", "car"]), ("val", ["cat", "dog"])):
        make_image_folders(digits / "images" / part, classes, each=2)
    return digits


@pytest.mark.parametrize("script", ["classes", "strips"])
def test_two_checkpoints_are_drawn_side_by_side_by_kept_features(monkeypatch, capsys, root, script):
    words = f"{HELD_OUT} --ckpt {CE} random --features_cache kept_{script} --out new/{script}.png"
    words += " --queries 2 --nearest 3" if script == "strips" else ""
    run(monkeypatch, root, words, f"figures.{script}")
    assert capsys.readouterr().out.endswith(f"drew new/{script}.png\n")
    with Image.open(root / f"new/{script}.png") as picture:
        assert picture.convert("L").getextrema() == (0, 255)
    assert len({path.name.split("_")[0] for path in (root / f"kept_{script}").iterdir()}) == 2


IMAGES = "random --dataset path --data_folder images"


@pytest.mark.parametrize(
    ("script", "words", "reason"),
    [
        ("classes", f"{CE} none.pth", "--ckpt none.pth: no such file"),
        ("classes", f"{CE} random --names SCL", "--names: 1 for 2 checkpoints of --ckpt; give one each"),
        ("strips", f"{CE} random --names SCL SCL", "--names: two are called SCL"),
        ("classes", "random random", "--ckpt: two are called random; give --names that differ"),
        ("strips", f"{CE} random fewer", "fewer/last.pth: was trained on other classes than "),
        ("classes", f"{CE} others", "(without 9)"),
        ("classes", f"random zero {HELD_OUT}", "zero/last.pth: all features are 0"),
        ("classes", "random --superclasses none.yaml", "--superclasses none.yaml: no such file"),
        ("classes", "random --superclasses cats.yaml", "--superclasses cats.yaml: lacks the class 0"),
        ("strips", "random --superclasses one.yaml", "--superclasses one.yaml: all classes are of one superclass"),
        ("classes", "random --superclasses alone.yaml", "alone.yaml: no two classes are of one superclass"),
        ("classes", IMAGES, "--dataset path: has no superclasses; give"),
        ("classes", f"{IMAGES} --superclasses pets.yaml", "class car has no validation"),
        ("strips", f"random {HELD_OUT} --queries 6", "only 5 classes have test images"),
        ("strips", "random --nearest 5000", "--nearest 5000: give at most 1442"),
        ("strips", f"random --out {CE}/last.pth/x.png", "last.pth"),
        ("classes", "random --out x.xyz", "--out x.xyz: a picture's name ends in .png, .pdf, .svg, .jpg"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(monkeypatch, capsys, root, script, words, reason):
    assert reason in error_of(monkeypatch, capsys, root, f"--ckpt {words}", f"figures.{script}")

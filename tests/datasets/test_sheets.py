"""CIFAR from sheets of tiles: every tile becomes the image of its class; where a sheet is wrong, nothing is written."""

import pickle
from functools import partial

import commands
import numpy as np
import pytest
from commands import run
from PIL import Image

import datasets
from datasets import prepare, sheets
from datasets.rankings import files
from util import InputError

make = partial(run, script="datasets.prepare")
error_of = partial(commands.error_of, script="datasets.prepare")
FINE = sorted(c for names in files.known_superclasses("cifar100").values() for c in names)
SHAPES = {"cifar100/train": (2, 3), "cifar100/test": (1, 2), "cifar10/test": (3, 1)}  # rows, columns of tiles


@pytest.fixture
def tiles(monkeypatch, tmp_path):
    """Sheets of a few tiles a class below tmp_path/sheets; by part and class the tiles that they hold."""
    rng, found, parts = np.random.default_rng(0), {}, {}
    for part, (rows, columns) in SHAPES.items():
        (tmp_path / "sheets" / part).mkdir(parents=True)
        for name in sheets.CIFAR10 if part == "cifar10/test" else FINE:
            of_class = rng.integers(0, 255, (rows * columns, 32, 32, 3), dtype=np.uint8)
            sheet = np.zeros((32 * rows, 32 * columns, 3), np.uint8)
            for i, tile in enumerate(of_class):
                row, column = divmod(i, columns)
                sheet[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = tile
            Image.fromarray(sheet).save(tmp_path / "sheets" / part / f"{name}.webp", lossless=True)
            found[part, name] = of_class
        pixels = np.concatenate([x for (of, _), x in found.items() if of == part])
        parts[part] = rows * columns, tuple(pixels.mean((0, 1, 2)) / 255)
    monkeypatch.setattr(sheets, "PARTS", parts)
    return found


COMMAND = "cifar --from_sheets sheets --out data"


def test_every_tile_becomes_an_image_of_its_class(monkeypatch, capsys, tmp_path, tiles):
    make(monkeypatch, tmp_path, COMMAND)
    assert "cifar100/train: 600 images of 100 classes" in capsys.readouterr().out
    for part, (rows, columns) in SHAPES.items():
        name, split = part.split("/")
        data = datasets.build(name, tmp_path / "data", split)
        assert len(data) == rows * columns * len(data.classes)
        for label, of_class in enumerate(data.classes):
            assert np.array_equal(data.images[(data.labels == label).numpy()], tiles[part, of_class])
    assert datasets.build("cifar100", tmp_path / "data").classes == FINE
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    make(monkeypatch, tmp_path, COMMAND)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == again


def test_superclasses_are_numbered_as_in_the_published_files(monkeypatch, tmp_path, tiles):
    make(monkeypatch, tmp_path, COMMAND)
    folder = tmp_path / "data/cifar-100-python"
    content, meta = (pickle.loads((folder / name).read_bytes()) for name in ("test", "meta"))
    assert meta["coarse_label_names"] == sorted(files.known_superclasses("cifar100"))
    for fine, coarse in zip(content["fine_labels"], content["coarse_labels"], strict=True):
        members = files.known_superclasses("cifar100")[meta["coarse_label_names"][coarse]]
        assert meta["fine_label_names"][fine] in members


def test_test_images_alone_are_outliers_and_no_training_set(monkeypatch, tmp_path, tiles):
    make(monkeypatch, tmp_path, COMMAND)
    assert len(datasets.build_outliers("cifar10", tmp_path / "data")) == 30
    with pytest.raises(InputError, match="holds no cifar-10-batches-py, and the download failed"):
        datasets.build("cifar10", tmp_path / "data", "train")


@pytest.mark.parametrize(
    ("spoil", "want"),
    [
        (lambda root: (root / "cifar100/test/bee.webp").unlink(), "cifar100/test: the sheet bee.webp is missing"),
        (
            lambda root: (root / "cifar10/test/cat.webp").write_bytes(
                (root / "cifar10/test/cat.webp").read_bytes()[:900]
            ),
            "cat.webp: not a readable image",
        ),
        (
            lambda root: Image.new("RGB", (64, 65)).save(root / "cifar100/train/can.webp"),
            "can.webp: 64 x 65 pixels are not 6 tiles of 32 x 32",
        ),
        (
            lambda root: [
                Image.new("RGB", (32, 96)).save(root / f"cifar10/test/{name}.webp") for name in sheets.CIFAR10
            ],
            "cifar10/test: the mean of its channels is [0. 0. 0.], not",
        ),
        (lambda root: (root / "cifar10").rename(root / "cifar_10"), "sheets/cifar10/test: no such folder"),
    ],
    ids=["missing", "damaged", "of another size", "of other images", "no folder"],
)
def test_a_wrong_sheet_is_one_line_and_nothing_is_written(monkeypatch, capsys, tmp_path, tiles, spoil, want):
    spoil(tmp_path / "sheets")
    line = error_of(monkeypatch, capsys, tmp_path, COMMAND)
    assert "--from_sheets" in line
    assert want in line
    assert not (tmp_path / "data").exists()


def test_another_file_that_is_there_is_left_alone(monkeypatch, capsys, tmp_path, tiles):
    mine = tmp_path / "data/cifar-100-python/test"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert "is there already and is another file" in error_of(monkeypatch, capsys, tmp_path, COMMAND)
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == [mine]
    assert mine.read_bytes() == b"mine"


def test_the_published_counts_and_means_are_those_of_the_data_sets():
    """Of CIFAR-100's training images the views' mean, known elsewhere, is the same to a thousandth."""
    assert {part: each for part, (each, _) in sheets.PARTS.items()} == dict(zip(SHAPES, (500, 100, 1000), strict=True))
    assert sheets.PARTS["cifar100/train"][1] == pytest.approx(datasets.spec("cifar100").mean, abs=1e-3)
    assert prepare.get_parser().parse_args(["cifar"]).from_sheets is None

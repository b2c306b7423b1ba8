"""--values: numbers as labels, from class names, an image list, or features; faults are one line."""

import numpy as np
import pytest
import torch
from made_data import make_image_folders

import datasets
from datasets import Selection
from datasets.features import FeatureFiles
from util import InputError

AGES = [31.5, 8, 31.5, 102, 8, 0.1]


def build(name, folder="./data", column="label", split="train"):
    return datasets.build(name, folder, split, Selection(values=column))


def numbers(data):
    """The number of each item."""
    return data.values[data.labels].tolist()


@pytest.fixture
def listed(tmp_path):
    """Six images, two of them for validation, with a label and an age."""
    make_image_folders(tmp_path, ["flat"], each=6)
    rows = [f"flat/flat_{i}.JPEG,cat,{'val' if i > 3 else 'train'},{age}" for i, age in enumerate(AGES)]
    (tmp_path / "list.csv").write_text("path,label,split,age\n" + "\n".join(rows) + "\n")
    return tmp_path


def test_the_names_of_classes_may_be_the_numbers_and_rise_as_numbers_do(tmp_path):
    plain, data = datasets.build("digits"), build("digits")
    assert numbers(data) == plain.labels.tolist() and data.superclasses is None
    make_image_folders(tmp_path / "train", ["10", "9", "2.5", "-1"], each=2)
    data = build("path", tmp_path)
    assert data.classes == ["-1", "2.5", "9", "10"]
    assert [float(image.split("/")[-2]) for image in data.images] == numbers(data)


def test_a_list_has_a_column_of_numbers_and_validation_may_have_others(listed):
    train, test = datasets.build_pair("path", listed / "list.csv", Selection(values="age"))
    assert train.classes == ["8", "31.5", "102"] and test.classes == ["0.1", "8"]
    assert numbers(train) == AGES[:4] and numbers(test) == AGES[4:]
    (listed / "skipped.txt").write_text(f"{train.images[3]}\n")
    train, _ = datasets.build_pair("path", listed / "list.csv", Selection(values="age", skip=listed / "skipped.txt"))
    assert numbers(train) == AGES[:3]  # the only image of 102


@pytest.mark.parametrize("form", ["npz", "csv", "parquet", "labels"])
def test_features_have_a_column_of_numbers(tmp_path, form):
    rows = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    given = {"labels": ["a", "b"] * 3, "coarse": [*"cdefgh"], "age": AGES}  # of which no number is a class
    file, more = tmp_path / f"a.{form}", {}
    if form == "npz":
        np.savez(file, features=rows, **given)
    elif form == "csv":
        lines = [f"{x},{y},a,{age}" for (x, y), age in zip(rows, AGES, strict=True)]
        file.write_text("\n".join(["f1,f2,label,age", *lines]))
    elif form == "parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"features": list(rows), **given}), file)
    else:
        file, more = tmp_path / "a.npy", {"labels": [str(tmp_path / "ages.txt")]}
        np.save(file, rows)
        (tmp_path / "ages.txt").write_text("\n".join(map(str, AGES)))
    column = "label" if form == "labels" else "age"
    more |= {"label_columns": ["coarse"]} if form == "npz" else {}
    data = build("features", FeatureFiles([str(file)], **more), column)
    assert numbers(data) == AGES
    assert torch.allclose(data.images.take(torch.arange(6)), torch.from_numpy(rows))  # the age is no feature


def test_float_labels_keep_every_digit(tmp_path):
    ages = np.random.default_rng(1).normal(size=6)
    np.savez(tmp_path / "a.npz", features=np.ones((6, 2), np.float32), y=ages)
    assert numbers(build("features", FeatureFiles([str(tmp_path / "a.npz")]))) == ages.tolist()
    with pytest.raises(InputError, match=r"must be \[n\] integers or names, not 6 of type float64"):
        datasets.build("features", FeatureFiles([str(tmp_path / "a.npz")]))  # without --values


@pytest.mark.parametrize(
    ("column", "text", "words"),
    [
        ("dose", "path,label,age\nflat/flat_0.JPEG,cat,1\n", "list.csv: has no column dose; it has path, label, age"),
        ("age", "path,label,age\nflat/flat_0.JPEG,cat,\n", "line 2: must have 3 entries"),
        ("age", "path,label,age\nflat/flat_0.JPEG,cat,old\n", "the training data have old; it must be a finite number"),
        ("age", "path,label,age\nflat/flat_0.JPEG,cat,nan\n", "the training data have nan; it must be a finite number"),
        ("age", "path,label,age\nflat/flat_0.JPEG,cat,4\n", "the training data have a single value, 4"),
        ("label", "path,label,age\nflat/flat_0.JPEG,cat,4\n", "--values label: the training data have cat; it must be"),
        ("age", "path,label,age\nflat/flat_9.JPEG,cat,4\n", "flat/flat_9.JPEG does not exist"),
    ],
)
def test_a_bad_list_is_one_line(listed, column, text, words):
    (listed / "list.csv").write_text(text)
    with pytest.raises(InputError) as error:
        build("path", listed / "list.csv", column)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "column", "words"),
    [
        ({"y": [1.5, np.nan, 3]}, "label", "the training data have nan; it must be a finite number"),
        ({"y": [1.5, 2]}, "label", "rows differ in number: 3 of features, 2 of y"),
        ({"age": [1.5, 2, 3]}, "label", "has no labels; give --labels"),
        ({"y": [1, 2, 3]}, "age", "has no column age; it has features, y"),
        ({"y": np.ones((3, 2))}, "label", "y must be [n] integers or names, not 3 x 2 of type float64"),
    ],
)
def test_bad_features_are_one_line(tmp_path, given, column, words):
    np.savez(tmp_path / "a.npz", features=np.ones((3, 2), np.float32), **given)
    with pytest.raises(InputError) as error:
        build("features", FeatureFiles([str(tmp_path / "a.npz")]), column)
    assert words in str(error.value)


def test_class_folders_have_no_columns():
    with pytest.raises(InputError, match=r"^--values age: digits has no columns; give --values label"):
        build("digits", column="age")

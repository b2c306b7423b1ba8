"""Files of features: every form gives the same rows, labels, classes and superclasses; bad files are one line."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from datasets.features import FeatureFiles, read_features
from util import InputError

NAMES = ["bee", "ant", "cow", "bee", "ant", "dog"]
GROUPS = ["insect", "insect", "mammal", "insect", "insect", "mammal"]
ROWS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def write(path, rows=ROWS, labels=NAMES, **more):
    """A file of features in the form of its ending; more: further keys or columns."""
    content = {"features": rows, **({} if labels is None else {"labels": labels}), **more}
    if path.suffix == ".npz":
        np.savez(path, **content)
    elif path.suffix == ".pt":
        torch.save({k: torch.as_tensor(v) if k == "features" else v for k, v in content.items()}, path)
    elif path.suffix == ".safetensors":
        texts = {k: json.dumps(list(v)) for k, v in content.items() if k != "features"}
        save_file({"features": torch.as_tensor(content["features"])}, path, texts)
    elif path.suffix == ".parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        content["features"] = list(content["features"])
        parquet.write_table(pyarrow.table({k: v for k, v in content.items() if k != "classes"}), path)
    elif path.suffix == ".csv":
        columns = {f"x{i}": column for i, column in enumerate(content.pop("features").T)} | content
        lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        path.write_text("\n".join(lines))
    elif path.suffix == ".npy":
        np.save(path, content["features"])
    return str(path)


FORMS = [".npz", ".pt", ".safetensors", ".parquet", ".csv"]


@pytest.mark.parametrize("ending", FORMS)
def test_every_form_gives_the_same_rows_labels_classes_and_superclasses(tmp_path, ending):
    file = write(tmp_path / f"a{ending}", coarse=GROUPS)
    rows, labels, classes, taxonomy = read_features(FeatureFiles([file]), "train")
    assert torch.equal(rows.take(torch.arange(6)), torch.from_numpy(ROWS))
    assert classes == ["ant", "bee", "cow", "dog"] and labels.tolist() == [1, 0, 2, 1, 0, 3]
    assert taxonomy.groups == {name: ((group,),) for name, group in zip(NAMES, GROUPS, strict=True)}
    assert rows.name(2) == f"{file}:2"


def test_an_array_alone_has_its_labels_in_another_file(tmp_path):
    file = write(tmp_path / "a.npy")
    (tmp_path / "labels.txt").write_text("\n".join(NAMES))
    np.save(tmp_path / "labels.npy", np.array(NAMES))
    (tmp_path / "labels.csv").write_text("label,coarse\n" + "\n".join(map(",".join, zip(NAMES, GROUPS, strict=True))))
    found = [
        read_features(FeatureFiles([file], labels=[str(tmp_path / f"labels.{e}")]), "train")
        for e in ("txt", "npy", "csv")
    ]
    for _, labels, classes, _ in found:
        assert classes == ["ant", "bee", "cow", "dog"] and labels.tolist() == [1, 0, 2, 1, 0, 3]
    assert found[2][3].groups["cow"] == (("mammal",),)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_of_any_precision_stay_so_in_memory_and_are_taken_as_float32(tmp_path, dtype):
    x = torch.from_numpy(ROWS).to(dtype)
    file = write(tmp_path / "a.safetensors", x)
    rows, *_ = read_features(FeatureFiles([file]), "train")
    assert rows.parts[0].dtype == dtype
    assert torch.equal(rows.take(torch.tensor([4, 1])), x[[4, 1]].float())


def test_shards_are_read_in_the_order_of_their_names_and_rows_of_several_are_taken_at_once(tmp_path):
    for i in (2, 0, 1):
        write(tmp_path / f"part-{i}.npz", ROWS[2 * i : 2 * i + 2], NAMES[2 * i : 2 * i + 2])
    rows, labels, classes, _ = read_features(FeatureFiles([str(tmp_path / "part-*.npz")]), "train")
    chosen = torch.tensor([5, 0, 3, 0])
    assert torch.equal(rows.take(chosen), torch.from_numpy(ROWS)[chosen])
    assert [classes[label] for label in labels] == NAMES
    assert torch.equal(rows[[4, 5, 1]].take(torch.tensor([0, 2])), torch.from_numpy(ROWS)[[4, 1]])
    assert rows[[3, 0]].name(0) == f"{tmp_path / 'part-1.npz'}:1"


def test_stored_views_of_an_item_are_taken_by_number_and_the_first_without(tmp_path):
    x = np.random.default_rng(1).normal(size=(6, 3, 4)).astype(np.float32)
    rows, *_ = read_features(FeatureFiles([write(tmp_path / "a.npz", x)]), "train")
    assert rows.views == 3 and rows.dim == 4
    assert torch.equal(rows.take(torch.tensor([2, 5])), torch.from_numpy(x)[[2, 5], 0])
    assert torch.equal(rows.take(torch.tensor([2, 5]), torch.tensor([2, 1])), torch.from_numpy(x)[[2, 5], [2, 1]])


def test_integer_labels_are_ordered_by_value_and_named_by_a_key_or_a_file(tmp_path):
    numbers = [10, 9, 10, 2, 9, 2]
    (tmp_path / "names.txt").write_text("\n".join(f"name {9 - i}" for i in range(11)))
    plain = write(tmp_path / "a.csv", labels=numbers)
    named = write(tmp_path / "b.npz", labels=[2, 0, 2, 1, 0, 1], classes=["c", "b", "a"])
    _, labels, classes, _ = read_features(FeatureFiles([plain]), "train")
    assert classes == ["2", "9", "10"] and labels.tolist() == [2, 1, 2, 0, 1, 0]
    _, labels, classes, _ = read_features(FeatureFiles([named]), "train")
    assert classes == ["a", "b", "c"] and [classes[y] for y in labels] == ["a", "c", "a", "b", "c", "b"]
    _, labels, classes, _ = read_features(FeatureFiles([plain], class_names=str(tmp_path / "names.txt")), "train")
    assert [classes[y] for y in labels] == [f"name {9 - n}" for n in numbers]


def test_a_column_split_decides_where_no_file_of_validation_is_given(tmp_path):
    split = ["train", "validation", "train", "train", "test", "train"]
    file = write(tmp_path / "a.npz", split=split)
    train, *_ = read_features(FeatureFiles([file]), "train")
    test, of_test, classes, _ = read_features(FeatureFiles([file]), "test")
    assert torch.equal(train.take(torch.arange(4)), torch.from_numpy(ROWS)[[0, 2, 3, 5]])
    assert len(test) == 1 and classes[of_test[0]] == "ant"  # val comes before test
    assert len(read_features(FeatureFiles([file]), "all")[0]) == 6


def test_columns_of_labels_may_have_names_of_their_own(tmp_path):
    file = write(tmp_path / "a.csv", labels=None, intent=NAMES, domain=GROUPS)
    _, _, classes, taxonomy = read_features(FeatureFiles([file], label_columns=["intent", "domain"]), "train")
    assert classes == ["ant", "bee", "cow", "dog"] and taxonomy.groups["dog"] == (("mammal",),)


@pytest.mark.parametrize("ending", FORMS)
def test_several_columns_of_labels_are_a_taxonomy(tmp_path, ending):
    more = {"name": NAMES, "kind": [7, 7, 8, 7, 7, 9], "kingdom": ["animal"] * 6}
    file = write(tmp_path / f"a{ending}", labels=None, **more)
    columns = ["name", "kind", "kingdom"]
    _, labels, classes, taxonomy = read_features(FeatureFiles([file], label_columns=columns), "train")
    assert classes == ["ant", "bee", "cow", "dog"] and labels.tolist() == [1, 0, 2, 1, 0, 3]
    assert taxonomy.levels == ("kind", "kingdom")
    of = {"ant": "7", "bee": "7", "cow": "8", "dog": "9"}
    assert taxonomy.groups == {name: ((kind, "animal"), ("animal",)) for name, kind in of.items()}


def test_of_two_keys_of_labels_the_first_counts_and_the_other_is_no_superclass(tmp_path):
    file = write(tmp_path / "a.npz", y=[1, 0, 2, 1, 0, 3])
    _, _, classes, taxonomy = read_features(FeatureFiles([file]), "train")
    assert classes == ["ant", "bee", "cow", "dog"] and taxonomy is None


def test_class_names_of_the_hubs_parquet_are_read_from_its_schema(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    about = {"info": {"features": {"label": {"names": ["zero", "one"], "_type": "ClassLabel"}}}}
    table = pyarrow.table({"embedding": list(ROWS), "label": [1, 0, 1, 0, 1, 0]})
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), tmp_path / "a.parquet")
    _, labels, classes, _ = read_features(FeatureFiles([str(tmp_path / "a.parquet")]), "train")
    assert classes == ["one", "zero"] and [classes[y] for y in labels] == ["one", "zero"] * 3


def test_rows_without_labels_do_where_none_are_asked_for(tmp_path):
    rows, labels, _, _ = read_features(FeatureFiles([write(tmp_path / "a.npy")], labeled=False), "all")
    assert len(rows) == len(labels) == 6


class Unsafe:
    """What no reader may unpickle."""


def bad_rows(*values):
    rows = ROWS.copy()
    for row, value in enumerate(values):
        rows[row * 2] = value
    return rows


BAD = {
    "a.npy": (lambda p: write(p), "has no labels; give --labels"),
    "b.npz": (lambda p: write(p, labels=NAMES[:4]), "rows differ in number: 6 of features, 4 of labels"),
    "c.npz": (lambda p: write(p, (ROWS * 9).astype(np.int32)), "type int32; they must be floating-point"),
    "d.npz": (lambda p: np.savez(p, vectors=ROWS), "neither features (features, embeddings, embedding, X) nor"),
    "e.npz": (lambda p: write(p, ROWS[:0], np.array([], str)), "holds no row"),
    "f.npz": (lambda p: write(p, labels=np.array(NAMES, dtype=object)), "refused, it holds pickled objects"),
    "g.pt": (lambda p: torch.save({"features": Unsafe()}, p), "refused, it holds pickled objects"),
    "h.npy": (lambda p: p.write_bytes(pickle.dumps(ROWS)), "refused, it holds pickled objects"),
    "i.pt": (lambda p: p.write_bytes(b"no"), "not readable as a file of torch.save"),
    "j.safetensors": (lambda p: p.write_bytes(b"no"), "not readable as a safetensors file"),
    "k.parquet": (lambda p: p.write_bytes(b"no"), "not readable as Parquet"),
    "l.csv": (lambda p: p.write_text("x0,label\n1,a\n2\n"), "line 3: must have 2 entries"),
    "m.h5": (lambda p: p.write_bytes(b"no"), "has another ending than those that are read"),
    "n.npz": (lambda p: write(p, ROWS[0]), "have the shape [4]; it must be [n, d]"),
    "o.npz": (lambda p: write(p, coarse=[*"abcdef"]), "labels ant belongs to coarse b and to coarse e;"),
    "p.npz": (lambda p: write(p, labels=[0, 1, 2, 3, 4, 5], classes=["a", "b"]), "has 2 class names, and a label is 2"),
    "q.npz": (lambda p: write(p, split=["x"] * 6), "split x is unknown; write train, val or test"),
}


@pytest.mark.parametrize(("name", "make", "words"), [(n, *of) for n, of in BAD.items()], ids=BAD)
def test_a_file_that_cannot_serve_is_named_with_what_is_wrong(tmp_path, name, make, words):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    make(tmp_path / name)
    with pytest.raises(InputError) as error:
        read_features(FeatureFiles([str(tmp_path / name)]), "train")
    assert words in str(error.value) and f"--features {tmp_path / name}" in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(train=["none.npz"]), "--features none.npz: no such file"),
        (dict(train=["a.npy"], labels=["short.txt"]), "--labels short.txt: has 2 labels, --features has 6 rows"),
        (
            dict(train=["a.npy"], labels=["a.npz"], label_columns=["intent"]),
            "--labels a.npz: has no column intent; it has features, labels",
        ),
        (dict(train=["a.npz", "wide.npz"]), "--features wide.npz: a row has the shape [8], in a.npz it is [4]"),
        (
            dict(train=["a.npz"], class_names="short.txt"),
            "--class_names short.txt: has no use, since labels are names, such as bee",
        ),
        (
            dict(train=["three.csv"], label_columns=["a", "b", "c"]),
            "--features three.csv: b v belongs to c w and to c y; columns of labels must be nested, the finest first",
        ),
        (dict(train=["short.txt"]), "--features short.txt: holds labels alone; give them as --labels"),
    ],
)
def test_options_that_contradict_the_files_are_one_line(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.npy")
    write(tmp_path / "a.npz")
    write(tmp_path / "wide.npz", np.tile(ROWS, 2))
    (tmp_path / "short.txt").write_text("a\nb\n")
    (tmp_path / "three.csv").write_text("x,a,b,c\n1,u,v,w\n1,t,v,y\n")
    with pytest.raises(InputError) as error:
        read_features(FeatureFiles(**options), "train")
    assert words in str(error.value)


def test_evaluation_without_its_features_says_what_to_give(tmp_path):
    with pytest.raises(InputError, match="--features_val: give the features to evaluate; a column `split`"):
        read_features(FeatureFiles([write(tmp_path / "a.npz")]), "test")


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (0.0, "zero")])
def test_a_row_without_a_direction_is_refused_when_it_is_first_read_with_their_number(tmp_path, value, kind):
    rows, *_ = read_features(FeatureFiles([write(tmp_path / "a.npz", bad_rows(1, value, value))]), "train")
    rows.take(torch.tensor([0, 1]))
    with pytest.raises(
        InputError, match=rf"a.npz: 2 of 6 rows are NaN, infinite or zero; the first is row 2 \({kind}\)"
    ):
        rows.take(torch.tensor([1, 4]))

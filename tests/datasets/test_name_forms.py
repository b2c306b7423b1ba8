"""One name in two Unicode forms, é as one character (NFC) or two (NFD, macOS), is one name wherever names meet."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from commands import error_of, result, run
from made_data import make_image_folders

import datasets
from datasets import rankings
from datasets.rankings import comparison, files, instances, make
from engine.encoder import detectors
from figures import encoders
from recipes import grid
from util import InputError

NFC = ["café", "thé", "zoo"]
NFD = [unicodedata.normalize("NFD", name) for name in NFC]
FORMS = pytest.mark.parametrize(("ours", "theirs"), [(NFD, NFC), (NFC, NFD)], ids=["ours NFD", "ours NFC"])
WANT = [[1, 0.75, 0], [0.75, 1, 0], [0, 0, 1]]


def sources(folder: Path, names: list[str]) -> list[str]:
    """A ranking in each form that it may have: café and thé are similar."""
    cafe, the, zoo = names
    texts = {
        "superclasses.yaml": f"drinks: [{cafe}, {the}]\nother: [{zoo}]\n",
        "nested.yaml": f"all:\n  drinks: [{cafe}, {the}]\nno:\n  other: [{zoo}]\n",
        "levels.csv": f"class,kind\n{cafe},drinks\n{the},drinks\n{zoo},other\n",
        "matrix.csv": f"class,{cafe},{the},{zoo}\n{cafe},1,0.75,0\n{the},0.75,1,0\n{zoo},0,0,1\n",
        "list.csv": f"path,label,kind\na.jpg,{cafe},drinks\nb.jpg,{the},drinks\nc.jpg,{zoo},other\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    np.savez(folder / "matrix.npz", similarity=np.array(WANT), classes=np.array(names))
    return [f"{folder}/{name}" for name in (*texts, "matrix.npz")]


@FORMS
def test_a_ranking_in_any_file_meets_the_classes(tmp_path, ours, theirs):
    for source in sources(tmp_path, theirs):
        assert rankings.find_similarities(source, ours).tolist() == WANT, source
        assert detectors.compute_nearness(source, "path", ours[:1], theirs[1:]).tolist() == [0.75, 0], source
    with pytest.raises(InputError, match="lacks the class four"):
        rankings.find_similarities(source, [*ours, "four"])


@FORMS
def test_rankings_meet_one_another_and_names_the_classes_they_are_of(tmp_path, ours, theirs):
    words = "".join(f"{name},word {i}\n" for i, name in enumerate([*theirs, "tea"]))
    (tmp_path / "names.csv").write_text(words, encoding="utf-8")
    make_image_folders(tmp_path / "images", [*ours, "tea"], each=1)
    found = make.read_classes(tmp_path / "names.csv", tmp_path / "images")
    assert found == dict(zip([ours[0], "tea", *ours[1:]], ("word 0", "word 3", "word 1", "word 2"), strict=True))
    for name, names in (("a.csv", ours), ("b.csv", theirs)):
        files.write_matrix(tmp_path / name, np.eye(4), [*names, "tea"], "made")
    tables, classes, _ = comparison.load_common([f"{tmp_path}/a.csv", f"{tmp_path}/b.csv"])
    assert classes == [*ours, "tea"] and len(tables) == 2
    groups = tmp_path / "groups.yaml"
    groups.write_text(f"a: [{theirs[0]}, {theirs[1]}]\nb: [{theirs[2]}, tea]\n", encoding="utf-8")
    assert encoders.find_superclasses(str(groups), "path", [*ours, "tea"]) == {"a": ours[:2], "b": [ours[2], "tea"]}
    assert grid.find_methods({"methods": {ours[0]: {}}}, theirs[0], "here") == [ours[0]]


@FORMS
def test_classes_are_chosen_and_splits_meet_and_all_are_shown_as_the_folders_have_them(tmp_path, ours, theirs):
    make_image_folders(tmp_path / "train", ours, each=2)
    make_image_folders(tmp_path / "val", theirs, each=1)
    train, test = datasets.build_pair("path", tmp_path)
    assert train.classes == test.classes == ours and test.labels.tolist() == [0, 1, 2]
    held, _ = datasets.build_pair("path", tmp_path, datasets.Selection(exclude=(theirs[0],)))
    assert held.classes == ours[1:]
    assert datasets.build_outliers("path", tmp_path, "train", (theirs[1],)).classes == [ours[1]]
    rows = [f"{split}/{c}/{c}_0.JPEG,{c},{split}" for split, of in (("train", ours), ("val", theirs)) for c in of]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]), encoding="utf-8")
    train, test = datasets.build_pair("path", tmp_path / "list.csv")
    assert train.classes == test.classes == ours and test.labels.tolist() == [0, 1, 2]


def test_classes_are_numbered_alike_in_both_forms(tmp_path):
    for folder, names in (("a", NFC), ("b", NFD)):
        make_image_folders(tmp_path / folder, [*names, "cafz"], each=1)
    a, b = (datasets.build("path", tmp_path / folder).classes for folder in "ab")
    assert [unicodedata.normalize("NFC", name) for name in b] == a


BOTH = f"{NFC[0]},{NFD[0]}"
TWICE = {
    "superclasses.yaml": f"a: [{NFC[0]}]\nb: [{NFD[0]}]\n",
    "superclasses of one name.yaml": f"{NFC[0]}: [x]\n{NFD[0]}: [y]\n",
    "nested.yaml": f"a:\n  b: [{NFC[0]}]\n  c: [{NFD[0]}]\n",
    "levels.csv": f"class,kind\n{NFC[0]},a\n{NFD[0]},b\n",
    "header.csv": f"class,{BOTH}\nx,a,b\ny,a,b\n",
    "matrix.csv": f"class,{BOTH}\n{NFC[0]},1,0\n{NFD[0]},0,1\n",
}


@pytest.mark.parametrize("name", TWICE)
def test_a_name_that_stands_in_a_file_in_both_forms_stands_in_it_twice(tmp_path, name):
    (tmp_path / name).write_text(TWICE[name], encoding="utf-8")
    with pytest.raises(InputError, match="is there twice"):
        rankings.find_similarities(f"{tmp_path}/{name}", ["x"])


def test_two_class_folders_of_one_name_are_one_line(tmp_path):
    make_image_folders(tmp_path, [NFC[0], NFD[0]], each=1)
    with pytest.raises(InputError, match=r"two classes are called caf.*, in two Unicode forms"):
        datasets.build("path", tmp_path)


def test_groups_of_images_in_both_forms_are_one(tmp_path):
    make_image_folders(tmp_path, ["a"], each=2)
    table = f"image,place,town\na/a_0.JPEG,{NFC[0]},{NFD[1]}\na/a_1.JPEG,{NFD[0]},{NFC[1]}\n"
    (tmp_path / "groups.csv").write_text(table, encoding="utf-8")
    data, groups, _ = instances.build(tmp_path, tmp_path / "groups.csv")
    assert data.classes == NFC[:1] and groups.tolist() == [[0, 0]]


@FORMS
def test_a_run_on_one_form_is_evaluated_and_resumed_on_the_other(monkeypatch, capsys, tmp_path, ours, theirs):
    for folder, names in (("a", ours), ("b", theirs)):
        for split in ("train", "val"):
            make_image_folders(tmp_path / folder / split, [*names, "tea"], each=2)
    (tmp_path / "r.yaml").write_text(f"x: [{theirs[0]}, {theirs[1]}]\ny: [{theirs[2]}, tea]\n", encoding="utf-8")
    common = "--dataset path --size 32 --num_workers 0 --batch_size 4"
    short = f"{common} --model resnet8 --epochs 1 --memorybank_size 8 --ranking r.yaml --save_freq 9"
    run(monkeypatch, tmp_path, f"{short} --data_folder a --exp_name one")
    run(
        monkeypatch, tmp_path, f"{short} --data_folder b --epochs 2 --exp_name two --resume save/SupCon/path_models/one"
    )
    evaluate = f"{common} --data_folder b --ckpt save/SupCon/path_models/one"
    capsys.readouterr()
    more = "--labelset both --superclasses r.yaml --ranking checkpoint"
    run(monkeypatch, tmp_path, f"{evaluate} {more}", "retrieval")
    assert "warning" not in capsys.readouterr().err
    record = result(tmp_path, "retrieval_*")
    assert list(record["by_class"]["fine"]) == [theirs[0], "tea", *theirs[1:]]  # as the folders that are looked at
    outliers = (
        f"{evaluate} --exclude_classes {ours[0]} --dataset_outliers path --data_folder_outliers b/val --detector knn"
    )
    error = error_of(monkeypatch, capsys, tmp_path, f"{outliers} --outlier_classes {ours[1]} ", "out_of_dist_detection")
    assert "OOD images are validation images" in error and "has no such class" not in error


def test_outliers_of_train_and_val_in_two_forms_are_one_class(tmp_path):
    make_image_folders(tmp_path / "train", NFD, each=1)
    make_image_folders(tmp_path / "val", NFC, each=1)
    outliers = datasets.build_outliers("path", tmp_path, "all")
    assert len(outliers) == 6 and len(outliers.classes) == 3

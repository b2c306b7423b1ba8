"""datasets.prepare makes the folders of the documented commands, twice without harm, and never touches the source."""

import errno
import json
import os
import shutil
from functools import partial

import commands
import numpy as np
import pytest
from commands import run
from made_data import make_image_folders, make_tiny_imagenet
from scipy.io import savemat

import datasets
from datasets import clinc150, prepare, rankings
from datasets.text_tables import TextTable, read_texts

SPLITS = ("imagenet100", "imagenet_outliers_split1", "imagenet_outliers_split2", "imagenet_outliers_split3")
WNIDS = [w for s in SPLITS for w in datasets.class_list("ImageNet-100" if s == "imagenet100" else s)]
LISTS = ["ImageNet-100", *SPLITS[1:]]


make = partial(run, script="datasets.prepare")
error_of = partial(commands.error_of, script="datasets.prepare")


def imagenet(root, validation):
    """ImageNet-shaped: 400 wnids, two training images each; validation by class folder, devkit, or solution file."""
    order = sorted(WNIDS, key=lambda w: w[::-1])  # class numbers in another order than the wnids
    names = [f"ILSVRC2012_val_{i:08d}" for i in range(1, 401)]
    truth = [order[(7 * i) % 400] for i in range(400)]
    make_image_folders(root / "train", ["one"], each=1, size=(24, 20))
    picture = (root / "train/one/one_0.JPEG").read_bytes()
    shutil.rmtree(root / "train/one")
    for wnid in WNIDS:
        (root / "train" / wnid).mkdir(parents=True)
        for i in range(2):
            (root / "train" / wnid / f"{wnid}_{i}.JPEG").write_bytes(picture)
    for name, wnid in zip(names, truth, strict=True):
        folder = root / "val" / (wnid if validation == "folders" else "")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.JPEG").write_bytes(picture)
    if validation == "devkit":
        kit = root / "ILSVRC2012_devkit_t12" / "data"
        kit.mkdir(parents=True)
        synsets = np.zeros(400, dtype=[("ILSVRC2012_ID", "i4"), ("WNID", "O")])
        synsets["ILSVRC2012_ID"], synsets["WNID"] = np.arange(1, 401), order
        savemat(kit / "meta.mat", {"synsets": synsets})
        lines = [str(order.index(wnid) + 1) for wnid in truth]
        (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(lines) + "\n")
    if validation == "solution":
        rows = [f"{name},{wnid} 1 2 3 4 {wnid} 5 6 7 8" for name, wnid in zip(names, truth, strict=True)]
        (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]) + "\n")
    return {f"{name}.JPEG": wnid for name, wnid in zip(names, truth, strict=True)}


def state_of(folder):
    return sorted((str(f), f.lstat().st_mtime_ns, f.lstat().st_size) for f in folder.rglob("*"))


TINY = {"tiny_imagenet_inliers": 180, "tiny_imagenet_outliers": 20}


@pytest.mark.parametrize("counts", [dict.fromkeys(LISTS, 100), TINY], ids=["ImageNet", "Tiny-ImageNet"])
def test_lists_hold_distinct_wnids_and_share_none(counts):
    lists = {name: datasets.class_list(name) for name in counts}
    assert {name: len(wnids) for name, wnids in lists.items()} == counts
    assert all(list(wnids) == sorted(wnids) for wnids in lists.values())
    assert len({wnid for wnids in lists.values() for wnid in wnids}) == sum(counts.values())


@pytest.mark.parametrize("copy", [False, True], ids=["links", "copies"])
@pytest.mark.parametrize("validation", ["folders", "devkit", "solution"])
def test_imagenet_becomes_the_documented_folders(monkeypatch, capsys, tmp_path, validation, copy):
    truth = imagenet(tmp_path / "full", validation)
    before = state_of(tmp_path / "full")
    command = "imagenet100 --imagenet full --out data" + (" --copy" if copy else "")
    make(monkeypatch, tmp_path, command)
    first = state_of(tmp_path / "data")
    make(monkeypatch, tmp_path, command)
    assert ": 0 " in capsys.readouterr().out.splitlines()[-1]
    assert state_of(tmp_path / "data") == first
    assert state_of(tmp_path / "full") == before
    for split in SPLITS:
        for place in (split, f"{split}/train") + (("imagenet100/images",) if split == "imagenet100" else ()):
            train, test = datasets.build_pair("imagenet_100", tmp_path / "data" / place)
            assert tuple(train.classes) == datasets.class_list("ImageNet-100" if split == "imagenet100" else split)
            assert (len(train), len(test)) == (200, 100)
            names = [os.path.basename(f) for f in test.images]
            assert [truth[n] for n in names] == [test.classes[y] for y in test.labels]


def test_tiny_imagenet_is_sorted_and_split(monkeypatch, tmp_path):
    wnids = [*datasets.class_list("tiny_imagenet_inliers"), *datasets.class_list("tiny_imagenet_outliers")]
    make_tiny_imagenet(tmp_path, wnids, each=1)
    before = state_of(tmp_path / "tiny-imagenet-200")
    for _ in range(2):
        make(monkeypatch, tmp_path, "tiny_imagenet --source . --out data")
    for folder, count in (("tiny_imagenet", 180), ("tiny_imagenet_outliers", 20)):
        train, test = datasets.build_pair("path", tmp_path / "data" / folder)
        assert len(train.classes) == len(train) == len(test) == count
    assert state_of(tmp_path / "tiny-imagenet-200") == before


def make_awa2(folder):
    make_image_folders(folder / "Animals_with_Attributes2" / "JPEGImages", [f"animal{i}" for i in range(50)], each=2)


def test_awa2_is_linked_and_checked(monkeypatch, capsys, tmp_path):
    make_awa2(tmp_path / "download")
    make(monkeypatch, tmp_path, "awa2 --source download --out data")
    outliers = datasets.build_outliers("AwA2", tmp_path / "data" / "Animals_with_Attributes2" / "JPEGImages")
    assert (len(outliers), len(outliers.classes)) == (100, 50)
    line = error_of(monkeypatch, capsys, tmp_path, "awa2 --source download --out data --check")
    assert "--check: 51 problems" in line  # each class has too few images, and so have all
    shutil.rmtree(tmp_path / "download" / "Animals_with_Attributes2" / "JPEGImages" / "animal7")
    assert "49 class folders; AwA2 has 50" in error_of(monkeypatch, capsys, tmp_path, "awa2 --source download --out x")


def test_check_names_damaged_images_and_images_in_two_splits(monkeypatch, tmp_path, capsys):
    make_awa2(tmp_path)
    images = tmp_path / "Animals_with_Attributes2" / "JPEGImages"
    os.truncate(images / "animal3" / "animal3_0.JPEG", 200)
    (images / "animal4" / "twice.JPEG").symlink_to(images / "animal5" / "animal5_1.JPEG")
    make(monkeypatch, tmp_path, "awa2 --source . --out data")
    plan = prepare.plan_awa2(tmp_path)
    monkeypatch.setattr(prepare, "find_published_counts", lambda place: (1, 9))
    problems = prepare.check(plan, tmp_path / "data", "imagenet100")
    assert len(problems) == 2
    assert "animal5_1.JPEG: is in" in problems[0]
    assert "animal3_0.JPEG: not a readable image" in problems[1]
    listed = (tmp_path / "data" / "imagenet100_damaged.txt").read_text().split()
    assert [os.path.basename(f) for f in listed] == ["animal3_0.JPEG"]


def test_nothing_that_is_there_is_overwritten_and_nothing_goes_into_the_source(monkeypatch, capsys, tmp_path):
    make_awa2(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    make(monkeypatch, tmp_path, "awa2 --source a --out data")
    assert "not to" in error_of(monkeypatch, capsys, tmp_path, "awa2 --source b --out data")
    assert "is a link, unlike with --copy" in error_of(
        monkeypatch, capsys, tmp_path, "awa2 --source a --out data --copy"
    )
    make(monkeypatch, tmp_path, "awa2 --source a --out copies --copy")
    assert "is not a link" in error_of(monkeypatch, capsys, tmp_path, "awa2 --source a --out copies")
    os.unlink(tmp_path / "copies/Animals_with_Attributes2/JPEGImages/animal0/animal0_0.JPEG")
    assert "exists and differs from" in error_of(monkeypatch, capsys, tmp_path, "awa2 --source a --out copies --copy")
    inside = "a/Animals_with_Attributes2/JPEGImages/animal0"
    assert "is inside the source" in error_of(monkeypatch, capsys, tmp_path, f"awa2 --source a --out {inside}")
    (tmp_path / "through").mkdir()
    (tmp_path / "through" / "Animals_with_Attributes2").symlink_to(tmp_path / "b" / "Animals_with_Attributes2")
    assert "nothing is written through links" in error_of(
        monkeypatch, capsys, tmp_path, "awa2 --source a --out through"
    )


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_or_no_permission_is_one_line_and_the_same_command_goes_on(
    monkeypatch, capsys, tmp_path, fault, copy
):
    make_awa2(tmp_path / "download")
    real, calls = prepare.link_or_copy, []

    def full_after_three(place, source, copy):
        calls.append(place)
        if len(calls) == 4:
            raise OSError(fault, os.strerror(fault))
        real(place, source, copy)

    monkeypatch.setattr(prepare, "link_or_copy", full_after_three)
    command = "awa2 --source download --out data" + (" --copy" if copy else "")
    line = error_of(monkeypatch, capsys, tmp_path, command)
    assert f"animal11: {os.strerror(fault)}; 3 of 50 are made and stay" in line
    make(monkeypatch, tmp_path, command)
    assert "47 " in capsys.readouterr().out
    assert len(datasets.build_outliers("AwA2", tmp_path / "data/Animals_with_Attributes2/JPEGImages")) == 100


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("imagenet100 --imagenet nowhere", "--imagenet nowhere: no such folder"),
        ("imagenet100 --imagenet empty", "has no folder val"),
        ("tiny_imagenet --source nowhere", "--source nowhere: no such folder"),
        ("awa2 --source nowhere", "--source nowhere: no such folder"),
        ("awa2 --source nowhere --out file", "--out file: "),
        ("imagenet100", "required: --imagenet"),
    ],
)
def test_a_wrong_source_is_one_line(monkeypatch, capsys, tmp_path, command, reason):
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    assert reason in error_of(monkeypatch, capsys, tmp_path, command)
    assert not (tmp_path / "data").exists()


def test_a_class_that_imagenet_lacks_and_a_short_ground_truth_are_named(monkeypatch, capsys, tmp_path):
    imagenet(tmp_path / "full", "devkit")
    (tmp_path / "full" / "train" / WNIDS[3]).rename(tmp_path / "elsewhere")
    assert f"{WNIDS[3]}: is missing" in error_of(monkeypatch, capsys, tmp_path, "imagenet100 --imagenet full --out d")
    (tmp_path / "full" / "val" / "ILSVRC2012_val_00000400.JPEG").unlink()
    line = error_of(monkeypatch, capsys, tmp_path, "imagenet100 --imagenet full")
    assert "399 images, but the ground truth has 400 lines" in line
    (tmp_path / "full" / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nval_1\n")
    line = error_of(monkeypatch, capsys, tmp_path, "imagenet100 --imagenet full")
    assert "LOC_val_solution.csv, line 2: must be an image, a comma and its boxes" in line


def test_cifar_without_a_network_is_one_line(monkeypatch, capsys, tmp_path):
    line = error_of(monkeypatch, capsys, tmp_path, "cifar --out data")
    assert "holds no cifar-10-batches-py, and the download failed" in line


INTENTS = {"money": ["pay", "no"], "travel": ["fly"]}
CLINC = {
    "train": [["pay, please", "pay"], ["#1 no", "no"], ['fly "me"', "fly"]], "val": [["pay it", "pay"]],
    "test": [["no way", "no"]], "oos_train": [["left out", "oos"]], "oos_val": [], "oos_test": [["sing", "oos"]],
}  # fmt: skip


def write_clinc150(folder, data=CLINC, domains=INTENTS):
    folder.mkdir(parents=True)
    (folder / "data_full.json").write_text(json.dumps(data))
    (folder / "domains.json").write_text(json.dumps(domains))


def test_clinc150_becomes_tables_of_texts_with_domains_and_out_of_scope_texts(monkeypatch, capsys, tmp_path):
    write_clinc150(tmp_path / "download")
    for _ in range(2):
        make(monkeypatch, tmp_path, "clinc150 --from download --out data")
    assert "3 of train, 1 of val, 1 of test, 1 of out_of_scope in data/clinc150" in capsys.readouterr().out
    tables = {f.stem: read_texts(f, "--texts") for f in (tmp_path / "data/clinc150").iterdir()}
    assert tables.keys() == {"train", "val", "test", "out_of_scope"}
    whole = TextTable(["pay, please", "#1 no", 'fly "me"'], ["pay", "no", "fly"], ["money", "money", "travel"])
    assert tables["train"] == whole
    assert tables["test"] == TextTable(["no way"], ["no"], ["money"])
    assert tables["out_of_scope"] == TextTable(["sing"], ["out_of_scope"], None)
    (tmp_path / "data/clinc150/val.csv").write_text("text,label\nmine,x\n")
    line = error_of(monkeypatch, capsys, tmp_path, "clinc150 --from download --out data")
    assert "val.csv exists and differs; remove it first" in line
    assert (tmp_path / "data/clinc150/val.csv").read_text() == "text,label\nmine,x\n"


@pytest.mark.parametrize(
    ("data", "domains", "reason"),
    [
        (CLINC, {"money": ["pay", "no"]}, "domains.json: names no domain of the intent fly"),
        ({**CLINC, "val": [["pay"]]}, INTENTS, "must hold lists of [text, intent]"),
        ({"train": []}, INTENTS, "KeyError: 'val'"),
        ({**CLINC, "test": [[" ", "no"]]}, INTENTS, "1 texts of test are empty"),
        ([], INTENTS, "must hold lists of [text, intent]"),
    ],
)
def test_files_that_are_not_those_of_clinc150_are_one_line(monkeypatch, capsys, tmp_path, data, domains, reason):
    write_clinc150(tmp_path / "download", data, domains)
    assert reason in error_of(monkeypatch, capsys, tmp_path, "clinc150 --from download --out data")
    assert not (tmp_path / "data").exists()


def test_clinc150_is_downloaded_from_its_authors_and_without_a_network_one_line_says_what_to_give(
    monkeypatch, capsys, tmp_path
):
    write_clinc150(tmp_path / "server")
    monkeypatch.setattr(clinc150, "URL", f"file://{tmp_path}/server/")
    make(monkeypatch, tmp_path, "clinc150 --out data")
    assert len(list((tmp_path / "data/clinc150").iterdir())) == 4
    monkeypatch.setattr(clinc150, "URL", f"file://{tmp_path}/nowhere/")
    line = error_of(monkeypatch, capsys, tmp_path, "clinc150 --out other")
    assert "data_full.json: the download failed (" in line
    assert line.endswith("/nowhere/ into a folder, and give --from FOLDER")
    (tmp_path / "server" / "domains.json").write_text("<html>")
    assert "not readable as JSON" in error_of(monkeypatch, capsys, tmp_path, "clinc150 --from server --out other")
    assert "--from nowhere/data_full.json: no such file" in error_of(
        monkeypatch, capsys, tmp_path, "clinc150 --from nowhere --out other"
    )


def test_the_domains_of_clinc150_ship_as_superclasses():
    groups = rankings.read_shipped("clinc150")
    assert [len(intents) for intents in groups.values()] == [15] * 10
    assert {"yes", "no"} < {*groups["meta"]}  # which YAML takes for truth values
    table, classes = rankings.load("clinc150", "--ranking")
    assert len(classes) == 150
    assert table[classes.index("yes"), classes.index("no")] == 0.75

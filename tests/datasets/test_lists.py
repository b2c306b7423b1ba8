"""Image lists in the place of folders: what they name, faults by their line, whole commands, packs, levels."""

import os
import shutil

import pytest
import torch
from commands import error_of, result, run
from made_data import make_image_folders

import datasets
from datasets import rankings
from util import InputError

HEAD = "path,label,split,genus,family\n"
OF = {"lion": "Panthera,Felidae", "tiger": "Panthera,Felidae", "wolf": "Canis,Canidae"}


@pytest.fixture
def listed(tmp_path):
    """Images in one folder, and a list of them beside it: six a class for training, two for validation."""
    make_image_folders(tmp_path / "made", list(OF), each=8)
    (tmp_path / "flat").mkdir()
    rows = []
    for name, groups in OF.items():
        for i, file in enumerate(sorted((tmp_path / "made" / name).iterdir())):
            shutil.move(file, tmp_path / "flat" / file.name)
            rows.append(f"flat/{file.name},{name},{'val' if i > 5 else 'train'},{groups}")
    (tmp_path / "list.csv").write_text(HEAD + "\n".join(rows[::-1]) + "\n")
    return tmp_path


def test_a_list_names_images_labels_and_splits(listed):
    train, test = datasets.build_pair("path", listed / "list.csv")
    assert train.classes == test.classes == ["lion", "tiger", "wolf"]
    assert torch.bincount(train.labels).tolist() == [6, 6, 6] and torch.bincount(test.labels).tolist() == [2, 2, 2]
    assert all(train.classes[y] in f for data in (train, test) for f, y in zip(data.images, data.labels, strict=True))
    assert len(datasets.build_outliers("path", listed / "list.csv", "all")) == 24


def test_a_list_without_splits_is_for_training_alone_and_paths_may_be_absolute(listed):
    file = sorted((listed / "flat").iterdir())[0]
    (listed / "other.csv").write_text(f"path;label\n{file};a\n")
    assert datasets.build("path", listed / "other.csv").images == [str(file)]
    with pytest.raises(InputError, match="no row of the split val or test; it has no column split"):
        datasets.build("path", listed / "other.csv", "test")


def test_rows_whose_path_begins_with_a_hash_are_rows_and_comments_stand_above_the_header(listed):
    (listed / "flat").rename(listed / "#flat")
    text = (listed / "list.csv").read_text().replace("flat/", "#flat/")
    (listed / "list.csv").write_text(f"# by hand, by me\n\n# again\n{text}")
    train = datasets.build("path", listed / "list.csv")
    assert len(train) == 18
    assert rankings.find_similarities(f"{listed}/list.csv", ["lion", "tiger", "wolf"])[0].tolist() == [1, 0.75, 0]


def test_a_list_for_the_digits_is_an_error_that_says_how_it_was_meant(listed):
    with pytest.raises(InputError, match="is an image list, and the data set digits reads none: give --dataset path"):
        datasets.build("digits", listed / "list.csv")


def test_a_list_of_absolute_paths_is_packed_and_its_damaged_images_can_be_skipped(monkeypatch, listed):
    files = sorted((listed / "flat").iterdir())[:4]
    (listed / "deep" / "er").mkdir(parents=True)
    rows = [f"{file},{'ab'[i % 2]}" for i, file in enumerate(files)]
    (listed / "deep" / "er" / "l.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    for _ in range(2):  # the second time it is there already
        run(monkeypatch, listed, "pack --data_folder deep/er/l.csv --out packs --side 64 --check", "datasets.prepare")
    packed = datasets.build("path", listed / "packs")
    assert [os.path.realpath(f) for f in packed.images] == [str(f) for f in files]
    (listed / "skip.txt").write_text(f"{files[1]}\n")
    assert len(datasets.build("path", listed / "packs", which=datasets.Selection(skip=listed / "skip.txt"))) == 3


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("", "the first line of an image list must be `path,label`"),
        ("image,label\n", "the first line of an image list must be `path,label`"),
        ("path,label\n", "names no image"),
        ("path,label\nflat/none.jpg,a\n", "line 2: the image flat/none.jpg does not exist"),
        ("path,label,split\nIMAGE,a,train\nIMAGE,b,train\n", "line 3: the image IMAGE is also in line 2"),
        ("path,label,split\nIMAGE,a,train\n./IMAGE,b,val\n", "line 3: the image ./IMAGE is also in line 2"),
        ("path,label,split\nIMAGE,a,train\nlink.JPEG,a,val\n", "line 3: the image link.JPEG is also in line 2"),
        ("path,label\n#1.JPEG,a\n", "line 2: the image #1.JPEG does not exist"),
        ("path,label,split\nIMAGE,a,training\n", "line 2: split training is unknown; write train, val or test"),
        ("path,label,split\nIMAGE,a,train\nOTHER,b,val\n", "line 3: no training image has the label b"),
        ("path,label,split\nIMAGE,a\n", "line 2: must have 3 entries"),
        ("path,label,split\nIMAGE,a,val\n", "has no row of the split train"),
    ],
)
def test_a_fault_in_a_list_is_one_line_with_its_place(monkeypatch, capsys, listed, rows, reason):
    first, second = (f"flat/{file.name}" for file in sorted((listed / "flat").iterdir())[:2])
    text = {"IMAGE": first, "OTHER": second}
    for name, path in text.items():
        rows, reason = rows.replace(name, path), reason.replace(name, path)
    (listed / "bad.csv").write_text(rows)
    (listed / "link.JPEG").symlink_to(listed / first)
    command = "--dataset path --data_folder bad.csv --ranking identity --model resnet8 --size 32"
    error = error_of(monkeypatch, capsys, listed, command)
    assert "--data_folder bad.csv" in error and reason in error
    assert not (listed / "save").exists()


def test_a_list_trains_by_its_own_levels_and_is_evaluated(monkeypatch, capsys, listed):
    common = "--dataset path --data_folder list.csv --size 32 --num_workers 0 --batch_size 6"
    training = f"{common} --model resnet8 --epochs 1 --memorybank_size 12 --exp_name a"
    run(monkeypatch, listed, f"{training} --ranking list.csv")
    printed = capsys.readouterr().out
    assert "18 images, 3 classes" in printed and "lion: tiger 0.75" in printed
    evaluate = f"{common} --ckpt save/SupCon/path_models/a"
    run(monkeypatch, listed, f"{evaluate} --labelset levels --superclasses list.csv --ranking checkpoint", "retrieval")
    found = result(listed, "retrieval_*")
    assert list(found["metrics"]) == ["class", "genus", "family", "ranks"] and found["images"]["test"] == 6
    make_image_folders(listed / "made", ["x"], each=1)
    (listed / "out.csv").write_text("path,label\nmade/x/x_0.JPEG,x\n")
    outliers = f"{evaluate} --dataset_outliers path --detector knn --knn_k 3 --data_folder_outliers out.csv"
    run(monkeypatch, listed, outliers, "out_of_dist_detection")


# ---- OpenOOD's lists -------------------------------------------------------------------------------------------------


@pytest.fixture
def openood(tmp_path):
    """A folder as OpenOOD's download makes it: images in one place, lists in another."""
    make_image_folders(tmp_path / "images_classic/texture", ["banded", "blotchy"], each=3)
    images = sorted(f for f in (tmp_path / "images_classic").rglob("*") if f.is_file())
    names = [str(f.relative_to(tmp_path / "images_classic")) for f in images]
    place = tmp_path / "benchmark_imglist/cifar100"
    place.mkdir(parents=True)
    (place / "test_texture.txt").write_text("".join(f"{name} -1\n" for name in names[:-1]))
    return place / "test_texture.txt", names


def test_outliers_of_a_list_of_openood_are_the_images_it_names_wherever_the_command_is_run(monkeypatch, openood):
    file, names = openood
    for folder, path in ((file.parent, file), (file.parents[2], file.relative_to(file.parents[2]))):
        monkeypatch.chdir(folder)
        data = datasets.build_outliers("path", path)
        assert [str(f).endswith(name) for f, name in zip(data.images, names[:-1], strict=True)] == [True] * 5
        assert data.classes == ["-1"]
        assert data.image(0).size


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a.jpg\n", "must be lines of `path label`"),
        ("", "must be lines of `path label`"),
        ("a.jpg -1\n", "the image a.jpg is neither in images_classic or images_largescale near the list"),
        ("IMAGE -1\na.jpg -1\n", "line 2: the image .* does not exist"),
        ("IMAGE -1\n\n./IMAGE -1\n", "line 3: the image ./IMAGE is also in line 1"),
    ],
)
def test_what_is_no_list_of_openood_is_one_line(openood, text, reason):
    file, (name, *_) = openood
    file.write_text(text.replace("IMAGE", name))
    with pytest.raises(InputError, match=reason.replace("IMAGE", name)):
        datasets.build_outliers("path", file)
    with pytest.raises(InputError, match="are for OOD images alone"):
        datasets.build("path", file)

"""Damaged images: named before training, or skipped, counted and listed during it."""

from functools import partial

import commands
import processes
import pytest
import torch
from commands import run
from made_data import make_image_folders

import datasets
from datasets.rankings import instances
from util import InputError

error_of = partial(commands.error_of, script="main_supcon")
SMALL = "--dataset path --data_folder mine --size 32 --batch_size 5 --epochs 1 --model resnet8 "
RINCE = SMALL + "--loss_type supcon --exp_name a "
LIST = "save/SupCon/path_models/a/damaged_images.txt"
DAMAGED = [f"train/cat/cat_{i}.JPEG" for i in (1, 3)]


@pytest.fixture
def mine(tmp_path):
    """Two classes of five training images, two of them damaged, and of two validation images."""
    make_image_folders(tmp_path / "mine" / "train", ["cat", "dog"], each=5)
    make_image_folders(tmp_path / "mine" / "val", ["cat", "dog"], each=2)
    for name in DAMAGED:
        damage(tmp_path / "mine" / name)
    return tmp_path


def damage(path):
    path.write_bytes(path.read_bytes()[:200])


def listed(folder):
    return [line.removeprefix(f"{folder.resolve()}/mine/") for line in (folder / LIST).read_text().splitlines()]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_skips_them_with_a_count_and_their_names(monkeypatch, capfd, mine, workers):
    run(monkeypatch, mine, f"{RINCE} --num_workers {workers}")
    printed = capfd.readouterr()
    for name in DAMAGED:
        assert printed.err.count(f"warning: mine/{name}: not a readable image") == 1
    assert "2 corrupt images skipped so far, such as mine/train/cat/cat_3.JPEG; listed in" in printed.out
    assert listed(mine) == DAMAGED
    log = (mine / "save/SupCon/path_models/a/log.jsonl").read_text()
    assert '"damaged_images": 2' in log


def test_every_image_is_decoded_before_training_if_asked_and_the_list_can_be_skipped(monkeypatch, capsys, mine):
    line = error_of(monkeypatch, capsys, mine, f"{RINCE} --num_workers 0 --check_data")
    assert "--check_data: 2 of 10 training images are corrupt, such as mine/train/cat/cat_1.JPEG" in line
    assert f"give --skip_images {LIST}" in line
    assert listed(mine) == DAMAGED
    assert not (mine / "save/SupCon/path_models/a/last.pth").exists()
    run(monkeypatch, mine, f"{RINCE} --num_workers 0 --check_data --skip_images {LIST}")
    printed = capsys.readouterr()
    assert "SCL in: 8 images, 2 classes" in printed.out and "warning" not in printed.err
    assert "decoded 8 training images, 0 corrupt" in printed.out


def test_checked_and_skipped_images_leave_the_data_set(monkeypatch, capsys, mine):
    damage(mine / "mine/val/dog/dog_0.JPEG")
    run(monkeypatch, mine, f"{SMALL} --num_workers 0 --check_data --on_bad_image skip --exp_name a", "main_ce")
    assert "cross-entropy: 2 classes, 8 training and 3 validation images" in capsys.readouterr().out
    assert listed(mine) == [*DAMAGED, "val/dog/dog_0.JPEG"]
    line = error_of(monkeypatch, capsys, mine, f"{SMALL} --num_workers 0 --check_data --exp_name b", script="main_ce")
    assert "--check_data: 2 of 10 training and 1 of 4 validation images are corrupt, such as mine/train/cat" in line


def test_a_list_in_use_grows_with_what_is_found_later(monkeypatch, mine):
    with pytest.raises(SystemExit):
        run(monkeypatch, mine, f"{RINCE} --num_workers 0 --check_data")
    damage(mine / "mine/train/dog/dog_2.JPEG")
    found_later = f"{RINCE} --num_workers 0 --knn_freq 1"  # which looks at all images too
    run(monkeypatch, mine, f"{found_later} --skip_images {LIST}")
    assert listed(mine) == [*DAMAGED, "train/dog/dog_2.JPEG"]


def test_on_bad_image_error_stops_the_run_with_its_name(monkeypatch, capsys, mine):
    line = error_of(monkeypatch, capsys, mine, f"{RINCE} --num_workers 2 --on_bad_image error")
    assert "mine/train/cat/cat_" in line
    assert "leave it out with --skip_images LIST" in line


def test_an_evaluation_names_the_image_and_the_way_round_it(monkeypatch, capsys, mine):
    run(monkeypatch, mine, f"{SMALL} --num_workers 0 --exp_name a", "main_ce")
    evaluate = "--dataset path --data_folder mine --ckpt save/SupCon/path_models/a --num_workers 1"
    line = commands.error_of(monkeypatch, capsys, mine, evaluate, "retrieval")
    assert "cat_1.JPEG: not a readable image" in line
    assert "leave it out with --skip_images LIST" in line
    run(monkeypatch, mine, f"{evaluate} --skip_images {LIST}", "retrieval")
    assert "fine" in capsys.readouterr().out


def test_another_image_takes_the_place_with_its_own_label(tmp_path, capsys):
    make_image_folders(tmp_path, ["a", "b"], each=2)
    damage(tmp_path / "a" / "a_1.JPEG")
    data = datasets.build("path", tmp_path)
    with pytest.raises(InputError, match=r"a_1\.JPEG: not a readable image"):
        data[1]
    data.tolerate_damage()
    assert data[1][1] == 1
    assert data[1][0].tobytes() == data[2][0].tobytes()
    assert data.bad.tolist() == [False, True, False, False]
    assert capsys.readouterr().err.count("warning") == 1
    for f in data.images:
        damage(tmp_path / f)
    with pytest.raises(InputError, match="none of the 4 training images can be read"):
        data[0]


def test_a_linked_image_is_skipped_by_its_target_and_a_list_may_name_others(tmp_path):
    make_image_folders(tmp_path / "real", ["a"], each=3)
    (tmp_path / "links" / "train").mkdir(parents=True)
    (tmp_path / "links" / "train" / "a").symlink_to(tmp_path / "real" / "a")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/real/a/a_1.JPEG\n\n/elsewhere/b.png\n")
    data = datasets.build("path", tmp_path / "links", which=datasets.Selection(skip=tmp_path / "list.txt"))
    assert [f[-8:] for f in data.images] == ["a_0.JPEG", "a_2.JPEG"]
    with pytest.raises(InputError, match="--skip_images nowhere: no such file"):
        datasets.build("path", tmp_path / "links", which=datasets.Selection(skip="nowhere"))
    (tmp_path / "list.txt").write_text("a/a_1.JPEG\n")  # relative to another folder than this one
    with pytest.raises(InputError, match=r"no line, such as a/a_1\.JPEG, is a file; give paths from the root"):
        datasets.build("path", tmp_path / "links", which=datasets.Selection(skip=tmp_path / "list.txt"))


SCRIPTS = {
    "main_supcon": ("validation", "--loss_type supcon --knn_freq 1"),
    "main_ce": ("training", ""),
    "main_linear": ("validation", "--ckpt none"),
    "retrieval": ("training", "--ckpt none"),
    "out_of_dist_detection": ("validation", "--ckpt none --dataset_outliers digits"),
    "rankings": ("training", "features --ckpt none --out r.csv"),
    "figures.classes": ("validation", "--ckpt none"),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_list_that_empties_a_class_is_one_line_in_every_script(monkeypatch, capsys, tmp_path, script):
    part, options = SCRIPTS[script]
    for split in ("train", "val"):
        make_image_folders(tmp_path / "mine" / split, ["cat", "dog", "eel"], each=1)
    (tmp_path / "bad.txt").write_text(f"mine/{'train' if part == 'training' else 'val'}/dog/dog_0.JPEG\n")
    command = f"{options} --dataset path --data_folder mine --skip_images bad.txt"
    line = commands.error_of(monkeypatch, capsys, tmp_path, command, script)
    reason = f"leaves no {part} image of the class dog; leave it out with --exclude_classes"
    assert f"--skip_images bad.txt: {reason}" in line


def test_other_filters_that_empty_a_class_name_it_and_themselves(monkeypatch, capsys, mine, tmp_path):
    for i in range(5):
        if not (i == 1 or i == 3):
            damage(mine / f"mine/train/cat/cat_{i}.JPEG")
    line = error_of(monkeypatch, capsys, mine, f"{RINCE} --num_workers 0 --check_data --on_bad_image skip")
    assert "--on_bad_image skip: leaves no training image of the class cat; leave it out with --exclude_classes" in line
    make_image_folders(tmp_path / "other/train", ["cat", "dog"], each=1)
    make_image_folders(tmp_path / "other/val", ["dog"], each=1)
    with pytest.raises(InputError, match="no validation image is of the classes that --exclude_classes leaves"):
        datasets.build_pair("path", tmp_path / "other", which=datasets.Selection(exclude=("dog",)))
    (tmp_path / "bad.txt").write_text(f"{tmp_path}/other/val/dog/dog_0.JPEG\n")
    with pytest.raises(InputError, match="leaves no outlier image of"):
        datasets.leave_out_images(
            tmp_path / "bad.txt", {"outlier": datasets.build_outliers("path", tmp_path / "other")}
        )


def test_groups_without_classes_may_lose_all_their_images(tmp_path):
    make_image_folders(tmp_path, ["a"], each=3)
    (tmp_path / "groups.csv").write_text("image,g\na/a_0.JPEG,x\na/a_1.JPEG,y\n")
    (tmp_path / "bad.txt").write_text(f"{tmp_path}/a/a_0.JPEG\n")
    data = instances.build(tmp_path, tmp_path / "groups.csv")[0]
    (data,) = datasets.leave_out_images(tmp_path / "bad.txt", {"training": data})
    assert (len(data), data.classes) == (1, ["x", "y"])


def test_two_processes_share_the_check_and_count_each_image_once(mine):
    options = "--batch_size 4 --num_workers 0 --nproc_per_node 2 --check_data --on_bad_image skip"
    code, printed = processes.call(mine, f"{RINCE} {options}".split())
    assert code == 0, printed
    assert printed.count("decoded 10 training images, 2 corrupt") == 1
    assert listed(mine) == DAMAGED
    state = torch.load(mine / "save/SupCon/path_models/a/last.pth", weights_only=True)
    assert int(state["model"]["bank.pointer"]) == 8

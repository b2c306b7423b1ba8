"""What is wrong with an evaluation or a classifier's training is said in one line, before any work."""

import math

import pytest
from commands import CE, error_of, result, run
from made_data import make_image_folders, make_tiny_imagenet

import out_of_dist_detection as ood
import retrieval
import util
from engine.run import checkpoint

NEAR = f"--ckpt {CE} --hold_out 4 8 --dataset_outliers digits --outlier_classes 4 8"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--dataset_outliers path --data_folder_outliers nowhere", "--data_folder_outliers nowhere: no such folder"),
        ("--dataset_outliers AwA2 --data_folder_outliers empty", "--data_folder_outliers empty: holds no image"),
        (
            "--dataset_outliers tiny_imagenet --data_folder_outliers empty",
            "--data_folder_outliers empty: has no folders train and val",
        ),
        ("--dataset_outliers digits", "class 0 is also a class of --dataset"),
        ("--dataset_outliers cifar10 --data_folder_outliers none", "--data_folder_outliers none: holds no cifar-10"),
        ("--dataset_outliers digits --outlier_classes 11", "--outlier_classes 11: digits has no such class"),
        ("--dataset_outliers digits --outlier_classes 4 --hold_out 4 --detector knn --knn_k 5000", "k = 5000"),
    ],
)
def test_bad_outliers_are_one_clear_line(monkeypatch, capsys, digits, options, reason):
    (digits / "empty").mkdir(exist_ok=True)
    assert reason in error_of(monkeypatch, capsys, digits, f"--ckpt {CE} {options}", "out_of_dist_detection")


@pytest.mark.parametrize("script", ["main_ce", "main_linear", "retrieval", "out_of_dist_detection"])
def test_a_class_in_validation_that_training_lacks_is_named(monkeypatch, capsys, tmp_path, digits, script):
    make_image_folders(tmp_path / "mine" / "train", ["cat", "dog"], each=2)
    make_image_folders(tmp_path / "mine" / "val", ["cat", "eel"], each=1)
    options = "--dataset path --data_folder mine"
    if script != "main_ce":
        options += f" --ckpt {digits / CE}"
    if script == "out_of_dist_detection":
        options += " --dataset_outliers digits"
    line = error_of(monkeypatch, capsys, tmp_path, options, script)
    assert "--data_folder mine: class eel is in validation, but training lacks it" in line
    assert not (tmp_path / "save").exists()


@pytest.mark.parametrize("script", ["main_ce", "main_linear"])
def test_a_single_class_is_nothing_to_classify(monkeypatch, capsys, digits, script):
    options = "--hold_out 0 1 2 3 4 5 6 7 8" + (f" --ckpt {CE}" if script == "main_linear" else "")
    assert "holds a single class" in error_of(monkeypatch, capsys, digits, options, script)


def test_a_damaged_cache_file_is_named_and_made_anew(monkeypatch, capsys, digits):
    run(monkeypatch, digits, f"--ckpt {CE} --features_cache broken", "retrieval")
    before = result(digits, "retrieval_digits_ce_fine_*")["metrics"]
    file = max((digits / "broken").iterdir(), key=lambda f: f.stat().st_size)
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes(b ^ 255 for b in whole[middle : middle + 60]) + whole[middle + 60 :])
    run(monkeypatch, digits, f"--ckpt {CE} --features_cache broken", "retrieval")
    line = f"--features_cache: broken/{file.name} corrupt, or of an older version (BadZipFile); it is made again\n"
    assert capsys.readouterr().out.count(line) == 1
    found = result(digits, "retrieval_digits_ce_fine_*")
    assert found["metrics"] == before
    assert [part["reused"] for part in found["features"].values()] == [False, True]
    assert file.read_bytes() == whole


def test_other_classes_than_in_training_are_warned_of(monkeypatch, capsys, digits):
    run(monkeypatch, digits, f"--ckpt {CE} --hold_out 4", "retrieval")
    assert "was trained on 10 classes of digits, this evaluates 9; see --exclude_classes" in capsys.readouterr().err


@pytest.fixture
def same(monkeypatch, tmp_path):
    """Images as a folder, another's links, a list and packs; and other images in `out`."""
    for split in ("train", "val"):
        make_image_folders(tmp_path / "mine" / split, ["cat", "dog"], each=2)
    make_image_folders(tmp_path / "out", ["eel"], each=2)
    files = sorted((tmp_path / "mine").rglob("*.JPEG"))
    rows = [f"./{f.relative_to(tmp_path)},{f.parent.name},{f.parent.parent.name}\n" for f in files]
    (tmp_path / "list.csv").write_text("path,label,split\n" + "".join(rows))
    (tmp_path / "openood.txt").write_text(f"out/eel/eel_0.JPEG -1\n{files[-1].relative_to(tmp_path)} -1\n")
    for place, targets in (
        ("links/a", files[4:5]),
        ("some", files[:2]),
        ("links/b", [*(tmp_path / "out/eel").iterdir()]),
    ):
        (tmp_path / place).mkdir(parents=True)
        for target in targets:
            (tmp_path / place / target.name).symlink_to(target)
    (tmp_path / "some" / "eel.JPEG").symlink_to(tmp_path / "out/eel/eel_0.JPEG")
    run(monkeypatch, tmp_path, "pack --data_folder mine --out packs --side 32 --format raw", "datasets.prepare")
    return tmp_path


def outliers_of(inliers, outliers):
    return (
        f"--dataset path --data_folder {inliers} --ckpt none --dataset_outliers path --data_folder_outliers {outliers}"
    )


@pytest.mark.parametrize(
    ("inliers", "outliers", "reason"),
    [
        ("mine", "mine/val", "4 of 4 OOD images are validation images, such as ROOT/mine/val/cat/cat_0.JPEG"),
        ("mine", "mine --outlier_split all", "4 of 8 OOD images are validation images"),
        ("mine", "links", "1 of 3 OOD images are validation images, such as ROOT/mine/val/cat/cat_0.JPEG"),
        ("mine", "packs", "4 of 4 OOD images are validation images"),
        ("mine", "list.csv", "4 of 4 OOD images are validation images"),
        ("mine", "openood.txt", "1 of 2 OOD images are validation images, such as ROOT/mine/val/dog/dog_1.JPEG"),
        ("packs", "packs", "4 of 4 OOD images are validation images"),
        ("packs", "mine", "4 of 4 OOD images are validation images"),
        ("packs", "list.csv", "4 of 4 OOD images are validation images"),
        ("list.csv", "packs", "4 of 4 OOD images are validation images"),
        (
            "mine",
            "mine --outlier_split train",
            "4 of the 4 OOD images are training images, such as ROOT/mine/train/cat",
        ),
        ("mine --images_per_class 1", "mine/train", "4 of the 4 OOD images are training images"),
        ("packs", "packs --outlier_split train", "4 of the 4 OOD images are training images"),
        ("list.csv", "mine --outlier_split train", "4 of the 4 OOD images are training images"),
    ],
)
def test_outliers_that_are_inliers_or_training_images_are_refused(monkeypatch, capsys, same, inliers, outliers, reason):
    line = error_of(monkeypatch, capsys, same, outliers_of(inliers, outliers), "out_of_dist_detection")
    assert f"--data_folder_outliers {outliers.split()[0]}: " in line
    assert reason.replace("ROOT", str(same)) in line


@pytest.mark.parametrize(
    ("inliers", "outliers", "line"),
    [
        ("mine", "some", "warning: 2 of the 3 OOD images are training images, such as ROOT/mine/train/cat/cat_0.JPEG"),
        ("packs", "some", "warning: 2 of the 3 OOD images are training images, such as ROOT/mine/train/cat/cat_0.JPEG"),
        ("packs", "out", ""),
        ("mine --hold_out dog", "mine --outlier_split train --outlier_classes dog", ""),
        ("moved", "out", "packs/train.pack: its folder of images ROOT/moved/train is missing"),
    ],
)
def test_training_images_among_outliers_are_counted(monkeypatch, capsys, same, inliers, outliers, line):
    monkeypatch.chdir(same)
    if inliers == "moved":
        (same / "mine").rename(same / "moved")
        run(monkeypatch, same, "pack --data_folder moved --out packs2/packs --side 32", "datasets.prepare")
        (same / "moved").rename(same / "mine")
        inliers = "packs2/packs"
    capsys.readouterr()
    args = ood.get_parser().parse_args(outliers_of(inliers, outliers).split())
    assert len(ood.load_data(args)[2])
    printed = capsys.readouterr().out
    assert line.replace("ROOT", str(same)) in printed if line else not printed


def test_held_out_classes_of_a_flat_folder_are_no_inliers(monkeypatch, tmp_path):
    make_tiny_imagenet(tmp_path, ["cat", "eel"], each=2)
    monkeypatch.chdir(tmp_path)
    options = "--dataset tiny_imagenet --data_folder . --hold_out eel --ckpt none --dataset_outliers tiny_imagenet"
    args = ood.get_parser().parse_args(f"{options} --data_folder_outliers . --outlier_classes eel".split())
    assert [len(part) for part in ood.load_data(args)] == [2, 2, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(monkeypatch, capsys, tmp_path, digits, workers):
    for split in ("train", "val"):
        make_image_folders(tmp_path / "mine" / split, ["cat", "dog"], each=2)
    file = tmp_path / "mine" / "train" / "dog" / "dog_1.JPEG"
    for content in (file.read_bytes()[:300], b""):
        file.write_bytes(content)
        options = f"--dataset path --data_folder mine --ckpt {digits / CE} --num_workers {workers}"
        line = error_of(monkeypatch, capsys, tmp_path, options, "retrieval")
        assert "error: mine/train/dog/dog_1.JPEG: not a readable image" in line


@pytest.mark.parametrize(
    ("script", "options", "reason"),
    [
        ("main_ce", "--save_folder file", "--save_folder file: "),
        ("retrieval", f"--ckpt {CE} --save_folder file/x", "--save_folder file/x: "),
        ("retrieval", f"--ckpt {CE} --features_cache file", "--features_cache file: "),
        ("main_ce", "--exp_name a/b", "--exp_name a/b: must be a plain name"),
        ("main_supcon", "--exp_name ..", "--exp_name ..: must be a plain name"),
        ("main_ce", "--num_workers -1", "argument --num_workers"),
        ("main_ce", "--mean (0.5,0.5,0.5) --std (0,0,0)", "argument --std"),
        ("main_ce", f"--exp_name ce --epochs 20 --resume {CE} --hold_out 1", "was trained on other classes"),
        ("main_supcon", f"--resume {CE}", "was written by main_ce.py, not by main_supcon.py"),
        ("main_ce", "--resume random", "holds no state of an optimizer"),
        ("retrieval", "--ckpt probe", "is a linear probe"),
        ("main_linear", "--ckpt nowhere/last.pth", "--ckpt nowhere/last.pth: no such file"),
        ("out_of_dist_detection", f"{NEAR} --model resnet18", "last.pth holds a resnet20; give --model resnet20"),
        ("retrieval", f"--ckpt {CE} --model_type contrastive", "--model_type contrastive: "),
        (
            "out_of_dist_detection",
            "--ckpt random --hold_out 4 --dataset_outliers digits --outlier_classes 4 --detector energy",
            "is a contrastive model, which names no class; msp, energy and confusion need one of main_ce.py",
        ),
        ("main_linear", "--ckpt random --model_type cross_entropy", "--model_type cross_entropy: "),
        ("retrieval", f"--ckpt {CE} --model foo", "--model foo is unknown"),
        ("retrieval", f"--ckpt {CE} --superclasses x.yaml", "--superclasses x.yaml: has no use with --labelset fine"),
        ("retrieval", f"--ckpt {CE} --hold_out 0 1 2 3 4 5 6 7 8", "--labelset fine: there is one class only"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(monkeypatch, capsys, digits, script, options, reason):
    (digits / "file").write_text("not a folder")
    if not (digits / "probe").exists():
        (digits / "probe").mkdir()
        checkpoint.save(digits / "probe" / "last.pth", {"model": {}, "script": "main_linear"})
    assert reason in error_of(monkeypatch, capsys, digits, options, script)


def test_an_encoder_whose_features_are_nan_is_not_scored(monkeypatch, capsys, tmp_path, digits):
    state = checkpoint.load(digits / CE)
    state["model"] = {k: v * math.nan if v.is_floating_point() else v for k, v in state["model"].items()}
    checkpoint.save(tmp_path / "last.pth", state)
    line = error_of(monkeypatch, capsys, tmp_path, "--ckpt last.pth", "retrieval")
    assert "some features are NaN or infinite" in line
    assert not (tmp_path / "save").exists()


def test_a_superclass_file_that_is_not_there_is_named_with_its_flag():
    args = retrieval.get_parser().parse_args(["--ckpt", "x", "--labelset", "coarse", "--superclasses", "nowhere.yaml"])
    with pytest.raises(util.InputError, match=r"--superclasses nowhere\.yaml: no such file"):
        retrieval.label_sets(args, [], None)

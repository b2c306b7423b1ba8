"""The documented evaluations and cross-entropy trainings, on small data in the form of the real sets."""

import json
import shutil

import pytest
import torch
from commands import ROOT, error_of, result, run
from made_data import make_cifar10, make_cifar100, make_image_folders, make_tiny_imagenet, original_checkpoint
from test_main_supcon import IMAGENET

import datasets
import util
from engine.run import checkpoint
from networks import resnet

WNIDS = datasets.class_list("ImageNet-100")
LINEAR_IMAGENET = (
    "python main_linear.py --model=resnet18_standard --batch_size 512 --learning_rate 5 --ckpt $path2chkpt/last.pth "
    "--data_folder=./data/imagenet100/images --dataset=imagenet_100 --size=224 --num_workers=32 --epochs=100"
)
OOD_IMAGENET = (
    "python out_of_dist_detection.py --model=resnet18_standard --dataset=imagenet_100 --dataset_outliers={} "
    "--data_folder=./data/imagenet100/images --data_folder_outliers=./data/{} --size=224 --ckpt $path2chkpt/last.pth "
    "--num_workers=8"
)
OUTLIERS = {
    "AwA2": OOD_IMAGENET.format("AwA2", "Animals_with_Attributes2/JPEGImages"),
    **{
        f"imagenet_outliers_split{i}": OOD_IMAGENET.format("imagenet", f"imagenet_outliers_split{i}") for i in (1, 2, 3)
    },
}
CE_IMAGENET = (
    "python main_ce.py --data_folder=./data/imagenet100/train --dataset=imagenet_100 --cosine --model=resnet18 "
    "--learning_rate=0.3 --batch_size=768 --size=224 --exp_name=imagenet100_ce_baseline_sslAugment --epochs=500 "
    "--size=224 --num_workers=16 --save_freq=100 --use_ssl_augmentations=True --imagenet100=True"
)
CE_CIFAR = (
    "python main_ce.py --batch_size 512 --num_workers 8 --print_freq 100 --data_folder ./data --dataset cifar100 "
    "--cosine --learning_rate 0.8 --exp_name cifar100_cross_entropy"
)
CIFAR = "--dataset cifar100 --data_folder ./data"
TAIL = "--model resnet50 --model_type {} --ckpt $path2chkpt/last.pth"
CIFAR_EVALUATIONS = {
    "linear": f"python main_linear.py --batch_size 512 --learning_rate 5 {CIFAR} {TAIL}",
    "fine": f"python retrieval.py {CIFAR} --labelset fine {TAIL}",
    "coarse": f"python retrieval.py {CIFAR} --labelset coarse {TAIL}",
    "cifar10": "python out_of_dist_detection.py --dataset_outliers cifar10 --data_folder_outliers ./data "
    f"{CIFAR} --size 32 {TAIL}",
    "tiny_imagenet": "python out_of_dist_detection.py --dataset_outliers tiny_imagenet --data_folder_outliers ./data "
    f"{CIFAR} --size 32 {TAIL}",
}
SHORT = "--epochs 1 --num_workers 0"


def test_the_imagenet_commands_of_the_readme_are_those_that_are_run_here_and_in_test_main_supcon():
    lines = {line for line in (ROOT / "README.md").read_text().splitlines() if "=./data/imagenet100/" in line}
    assert len(lines) == 6 and lines <= {*IMAGENET.values(), *OUTLIERS.values(), LINEAR_IMAGENET, CE_IMAGENET}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with small data in the form of the real sets, where the commands expect them, and checkpoints."""
    root = tmp_path_factory.mktemp("world")
    data = root / "data"
    make_image_folders(data / "imagenet100" / "train", WNIDS, each=2)
    make_image_folders(data / "imagenet100" / "val", WNIDS, each=1)
    for i in (1, 2, 3):
        wnids = (ROOT / "datasets" / f"imagenet_outliers_split{i}.txt").read_text().split()[:4]
        make_image_folders(data / f"imagenet_outliers_split{i}" / "train", wnids, each=9)
        make_image_folders(data / f"imagenet_outliers_split{i}" / "val", wnids, each=i)
    make_image_folders(data / "Animals_with_Attributes2" / "JPEGImages", ["antelope", "zebra"], each=5)
    make_cifar100(data, train=200, test=100)
    make_cifar10(data, train=10, test=30)
    make_tiny_imagenet(data, WNIDS[:3], each=4)
    torch.manual_seed(0)
    original_checkpoint(root / "imagenet" / "last.pth", resnet.encoder("resnet18"), "imagenet", "resnet18", "imagenet")
    for kind, classes in (("contrastive", None), ("cross_entropy", 100)):
        encoder = resnet.encoder("resnet50", small_images=True)
        original_checkpoint(root / kind / "last.pth", encoder, "cifar", "resnet50", "cifar100", classes)
    return root


def in_folder(command, folder, options=""):
    return f"{command} {options}".replace("$path2chkpt", str(folder))


def test_the_documented_linear_probe_of_imagenet_100(monkeypatch, capsys, world):
    run(monkeypatch, world, in_folder(LINEAR_IMAGENET, "imagenet", f"{SHORT} --size 32 --batch_size 100"))
    found = result(world, "linear_imagenet_100_imagenet_*")
    assert set(found["metrics"]) == {"best", "last"}
    assert 0 <= found["metrics"]["last"]["top-1"] <= found["metrics"]["last"]["top-5"] <= 100
    assert found["probe"] == "augmented"
    assert found["views"]["size"] == 32
    assert found["images"] == {"train": 200, "validation": 100}
    assert "probe (augmented)" in capsys.readouterr().out


@pytest.mark.parametrize("name", OUTLIERS)
def test_the_documented_ood_detection_of_imagenet_100(monkeypatch, capsys, world, name):
    command = in_folder(OUTLIERS[name], "imagenet", "--num_workers 0 --size 32 --features_cache features")
    run(monkeypatch, world, command)
    found = result(world, f"ood_imagenet_100_imagenet_*{name}*")
    outliers = {"AwA2": 10, **{f"imagenet_outliers_split{i}": 4 * i for i in (1, 2, 3)}}[name]  # of the splits, val
    assert found["images"] == {"train": 200, "inliers": 100, "outliers": outliers}
    assert set(found["metrics"]) == {"AUROC", "FPR95", "FPR95-out", "AUPR", "AUPR-in", "AUPR-out"}
    assert found["checkpoint"]["sha256"] == util.sha256(world / "imagenet" / "last.pth")
    assert found["data_folders"]["inliers"] == str(world / "data/imagenet100/images")
    assert found["options"]["detector"] == "gaussian"
    assert {"torch", "torchvision", "scikit-learn"} <= set(found["versions"])
    (picture,) = (world / "save" / "results").glob(f"ood_imagenet_100_imagenet_*{name}*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"{found['metrics']['AUROC']:.2f}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["contrastive", "cross_entropy"])
@pytest.mark.parametrize("name", CIFAR_EVALUATIONS)
def test_the_documented_evaluations_of_cifar_100(monkeypatch, world, kind, name):
    options = "--num_workers 0 --size 8 --features_cache features"
    if name == "linear":
        options += " --epochs 1 --batch_size 50"
    run(monkeypatch, world, in_folder(CIFAR_EVALUATIONS[name].format(kind), kind, options))
    found = result(world, f"*_cifar100_{kind}_*{'augmented' if name == 'linear' else name}*")
    if name in ("fine", "coarse"):
        assert set(found["metrics"][name]) == {"R@1", "R@5", "R@10", "R@20", "AP", "AP-published", "mAP"}
    elif name != "linear":
        assert found["images"] == {"train": 200, "inliers": 100, "outliers": {"cifar10": 30, "tiny_imagenet": 12}[name]}
    assert found["checkpoint"]["model"] == "resnet50"


def test_the_documented_cross_entropy_of_imagenet_100_uses_its_classes_only(monkeypatch, world):
    make_image_folders(world / "data" / "imagenet100" / "train", ["n99999999"], each=1)
    try:
        run(monkeypatch, world, f"{CE_IMAGENET} {SHORT} --size 32 --batch_size 100")
    finally:
        shutil.rmtree(world / "data" / "imagenet100" / "train" / "n99999999")
    folder = world / "save" / "SupCon" / "imagenet_100_models" / "imagenet100_ce_baseline_sslAugment"
    state = checkpoint.load(folder)
    assert state["classes"] == list(WNIDS)
    assert result(world, "cross_entropy_imagenet_100_*")["images"] == {"train": 200, "validation": 100}
    # its own checkpoint is evaluated without saying what it is
    command = in_folder(OUTLIERS["AwA2"], folder, "--num_workers 0 --size 32 --detector energy")
    run(monkeypatch, world, command)
    assert result(world, "ood_imagenet_100_imagenet100_ce_*AwA2_energy*")["metrics"]["AUROC"] >= 0


def test_the_documented_cross_entropy_of_cifar_100_logs_and_saves(monkeypatch, world):
    run(monkeypatch, world, f"{CE_CIFAR} {SHORT} --size 8 --batch_size 100 --model resnet18 --save_freq 1")
    folder = world / "save" / "SupCon" / "cifar100_models" / "cifar100_cross_entropy"
    names = {"last.pth", "ckpt_epoch_1.pth", "log.jsonl", "starts.jsonl", "config.yaml", "lock"}
    assert {f.name for f in folder.iterdir()} == names
    record = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    assert {"loss", "train_top1", "val_top1", "val_top5", "learning_rate", "images_per_second"} <= set(record)
    assert list((world / "save/SupCon/cifar100_tensorboard/cifar100_cross_entropy").glob("events.*"))
    state = checkpoint.load(folder)
    assert state["best"]["top-1"] == state["latest"]["top-1"] == record["val_top1"]
    run(monkeypatch, world, f"{CE_CIFAR} --epochs 2 --num_workers 0 --size 8 --batch_size 100 --model resnet18 "
        f"--resume {folder}")  # fmt: skip
    assert checkpoint.load(folder)["epoch"] == 2
    assert checkpoint.load(folder)["best"]["top-1"] >= record["val_top1"]


def test_imagenet_100_is_retrieved_too(monkeypatch, world):
    run(monkeypatch, world, "--dataset imagenet_100 --data_folder data/imagenet100 --ckpt imagenet --size 32 "
        "--num_workers 0", "retrieval")  # fmt: skip
    assert result(world, "retrieval_imagenet_100_imagenet_fine_*")["images"] == {"train": 200, "test": 100}


def test_a_stem_that_the_file_does_not_have_is_an_error_that_names_the_layer(monkeypatch, capsys, world):
    line = error_of(monkeypatch, capsys, world, f"{CIFAR} --ckpt contrastive --model resnet50_standard", "retrieval")
    assert "conv1.weight has shape (64, 3, 3, 3) instead of (64, 3, 7, 7)" in line
    assert "check --model" in line


def test_outliers_of_an_inlier_wnid_are_refused_whatever_the_folder(monkeypatch, capsys, world):
    options = "--dataset imagenet_100 --data_folder data/imagenet100 --ckpt imagenet --num_workers 0 "
    options += "--dataset_outliers path --data_folder_outliers data/imagenet100/val"
    assert f"class {WNIDS[0]} is an inlier too" in error_of(
        monkeypatch, capsys, world, options, "out_of_dist_detection"
    )

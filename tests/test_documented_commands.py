"""The paper's commands as the README has them, on small data in the form of the real sets."""

import json
import shutil

import pytest
import torch
from commands import PAPER, error_of, result, run
from made_data import make_image_folders, make_paper_data, original_checkpoint

import datasets
import util
from engine.run import checkpoint
from networks import resnet

WNIDS = datasets.class_list("ImageNet-100")
SHORT = "--epochs 1 --num_workers 0"
# what each pre-training trains on, as the run prints it
OBJECTIVES = {
    "rince_imagenet100": [
        "RINCE out_in: 200 images, 100 classes",
        "rank 1: similarity 0.75, from 0.402 to 0.7401, tau 0.225; positives of a class 0/2/10 classes, 0/4/20 images",
        "25 classes without a related class: ",
    ],
    "imagenet100_SCL_out": [
        "SCL out: 200 images, 100 classes",
        "positives of a class 1 classes, 2 images\nwarning: --memorybank_size",
    ],
    "test_RINCE_out_in": [
        "RINCE out_in, cumulative positives: 100 images",
        "similarity 0.75, tau 0.225; positives of a class 4 classes, 4",
    ],
    "test_RINCE_in": ["RINCE in, cumulative positives: 100 images", "tau 0.225"],
    "test_RINCE_out": ["RINCE out, cumulative positives: 100 images", "tau 0.225"],
    "test_SCL_in": [
        "SCL in: 100 images, 100 classes\nrank 0: similarity 1, tau 0.1; positives of a class 1 classes, 1"
    ],
    "test_SCL_out": ["SCL out: 100 images, 100 classes\nrank 0: similarity 1, tau 0.1"],
}
CIFAR_EVALUATIONS = ("main_linear", "labelset fine", "labelset coarse", "outliers cifar10", "outliers tiny_imagenet")


def find_command(part, data="", folder="", options=""):
    """The one command of the paper with this part and data, and more options; folder: where its checkpoint lies."""
    (command,) = [command for command in PAPER if part in f"{command} " and data in command]
    return f"{command} {options}".replace("$path2chkpt", str(folder))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with small data in the form of the real sets, where the commands expect them, and checkpoints."""
    root = tmp_path_factory.mktemp("world")
    make_paper_data(root)
    torch.manual_seed(0)
    original_checkpoint(root / "imagenet" / "last.pth", resnet.encoder("resnet18"), "imagenet", "resnet18", "imagenet")
    for kind, classes in (("contrastive", None), ("cross_entropy", 100)):
        encoder = resnet.encoder("resnet50", small_images=True)
        original_checkpoint(root / kind / "last.pth", encoder, "cifar", "resnet50", "cifar100", classes)
    return root


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_pre_training_trains_and_writes_what_it_should(monkeypatch, capsys, world, name):
    dataset = "imagenet" if "imagenet" in name else "cifar100"
    short = f"{SHORT} --batch_size 100 --size " + ("32" if dataset == "imagenet" else "8")
    if dataset == "cifar100" and name != "test_RINCE_out_in":  # the default encoder once: it takes seconds
        short += " --model resnet18"
    run(monkeypatch, world, find_command(f"{name} ", options=short))
    printed = capsys.readouterr()
    for part in OBJECTIVES[name]:
        assert part in printed.out
    assert printed.err.count("no CUDA device") == 1
    folder = world / "save" / "SupCon" / f"{dataset}_models" / name
    state = torch.load(folder / "last.pth", weights_only=True)
    assert state["epoch"] == 1
    assert all(x.isfinite().all() for x in state["model"].values() if x.is_floating_point())
    assert list((world / "save" / "SupCon" / f"{dataset}_tensorboard" / name).glob("events.*"))
    record = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    assert {"loss", "loss_rank_0", "positives_rank_0", "learning_rate", "images_per_second"} <= set(record)


def test_the_linear_probe_of_imagenet_100(monkeypatch, capsys, world):
    options = f"{SHORT} --size 32 --batch_size 100"
    run(monkeypatch, world, find_command("main_linear", "imagenet_100", folder="imagenet", options=options))
    found = result(world, "linear_imagenet_100_imagenet_*")
    assert set(found["metrics"]) == {"best", "last"}
    assert 0 <= found["metrics"]["last"]["top-1"] <= found["metrics"]["last"]["top-5"] <= 100
    assert (found["probe"], found["views"]["size"]) == ("augmented", 32)
    assert found["images"] == {"train": 200, "validation": 100}
    assert "probe (augmented)" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "outliers"), [("AwA2", 10), ("split1", 4), ("split2", 8), ("split3", 12)])  # val's
def test_the_ood_detection_of_imagenet_100(monkeypatch, capsys, world, name, outliers):
    options = "--num_workers 0 --size 32 --features_cache features"
    command = find_command("out_of_dist", name[:-1] if "split" in name else name, folder="imagenet", options=options)
    run(monkeypatch, world, command.replace("split1", name))
    found = result(world, f"ood_imagenet_100_imagenet_*{name}*")
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
def test_the_evaluations_of_cifar_100(monkeypatch, world, kind, name):
    options = "--num_workers 0 --size 8 --features_cache features"
    options += " --epochs 1 --batch_size 50" if name == "main_linear" else ""
    command = find_command(name, "--dataset cifar100", folder=kind, options=options)
    run(monkeypatch, world, command.replace("--model_type contrastive", f"--model_type {kind}"))
    what = {"main_linear": "augmented"}.get(name, name.split()[-1])
    found = result(world, f"*_cifar100_{kind}_*{what}*")
    if "labelset" in name:
        others = {"mAP-other-classes"} if what == "coarse" else set()
        assert set(found["metrics"][what]) == {"R@1", "R@5", "R@10", "R@20", "AP", "AP-published", "mAP", *others}
    elif "outliers" in name:
        assert found["images"] == {"train": 100, "inliers": 100, "outliers": {"cifar10": 30, "tiny_imagenet": 12}[what]}
    assert found["checkpoint"]["model"] == "resnet50"


def test_cross_entropy_on_imagenet_100_uses_its_classes_only(monkeypatch, world):
    make_image_folders(world / "data" / "imagenet100" / "train", ["n99999999"], each=1)
    try:
        run(monkeypatch, world, find_command("main_ce", "imagenet", options=f"{SHORT} --size 32 --batch_size 100"))
    finally:
        shutil.rmtree(world / "data" / "imagenet100" / "train" / "n99999999")
    folder = world / "save" / "SupCon" / "imagenet_100_models" / "imagenet100_ce_baseline_sslAugment"
    assert checkpoint.load(folder)["classes"] == list(WNIDS)
    assert result(world, "cross_entropy_imagenet_100_*")["images"] == {"train": 200, "validation": 100}
    # its own checkpoint is evaluated without saying what it is
    options = "--num_workers 0 --size 32 --detector energy"
    run(monkeypatch, world, find_command("out_of_dist", "AwA2", folder=folder, options=options))
    assert result(world, "ood_imagenet_100_imagenet100_ce_*AwA2_energy*")["metrics"]["AUROC"] >= 0


def test_cross_entropy_on_cifar_100_logs_and_saves(monkeypatch, world):
    options = "--num_workers 0 --size 8 --batch_size 100 --model resnet18 --save_freq 1"
    run(monkeypatch, world, find_command("main_ce", "cifar100", options=f"{options} --epochs 1"))
    folder = world / "save" / "SupCon" / "cifar100_models" / "cifar100_cross_entropy"
    names = {"last.pth", "ckpt_epoch_1.pth", "log.jsonl", "starts.jsonl", "config.yaml", "lock"}
    assert {f.name for f in folder.iterdir()} == names
    record = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    assert {"loss", "train_top1", "val_top1", "val_top5", "learning_rate", "images_per_second"} <= set(record)
    assert list((world / "save/SupCon/cifar100_tensorboard/cifar100_cross_entropy").glob("events.*"))
    state = checkpoint.load(folder)
    assert state["best"]["top-1"] == state["latest"]["top-1"] == record["val_top1"]
    run(monkeypatch, world, find_command("main_ce", "cifar100", options=f"{options} --epochs 2 --resume {folder}"))
    state = checkpoint.load(folder)
    assert state["epoch"] == 2 and state["best"]["top-1"] >= record["val_top1"]


def test_imagenet_100_is_retrieved_too(monkeypatch, world):
    words = "--dataset imagenet_100 --data_folder data/imagenet100 --ckpt imagenet --size 32 --num_workers 0"
    run(monkeypatch, world, words, "retrieval")
    assert result(world, "retrieval_imagenet_100_imagenet_fine_*")["images"] == {"train": 200, "test": 100}


CIFAR = "--dataset cifar100 --data_folder ./data --ckpt contrastive"
IMAGENET = "--dataset imagenet_100 --data_folder data/imagenet100 --ckpt imagenet --num_workers 0"


@pytest.mark.parametrize(
    ("script", "words", "reason"),
    [
        (
            "retrieval",
            f"{CIFAR} --model resnet50_standard",
            "conv1.weight has shape (64, 3, 3, 3) instead of (64, 3, 7",
        ),
        (
            "out_of_dist_detection",
            f"{IMAGENET} --dataset_outliers path --data_folder_outliers data/imagenet100/val",
            f"class {WNIDS[0]} is also a class of --dataset",
        ),
        (
            "main_supcon",
            "--dataset imagenet --data_folder data/imagenet100 --ranking roberta_threshold",
            "give --thresholds, published: 0.4",
        ),
    ],
)
def test_what_does_not_fit_the_data_or_the_checkpoint_is_one_line(monkeypatch, capsys, world, script, words, reason):
    assert reason in error_of(monkeypatch, capsys, world, words, script)

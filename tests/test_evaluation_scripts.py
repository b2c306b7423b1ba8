"""main_ce.py, main_linear.py, retrieval.py and out_of_dist_detection.py as users run them."""

import json
import math
import shutil
import subprocess
import sys

import pytest
import torch
from commands import ROOT, error_of, result, run
from made_data import make_cifar10, make_cifar100, make_image_folders, make_tiny_imagenet, original_checkpoint

import checkpoint
import datasets
import frozen
import retrieval
import util
from datasets import augmentation
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
    assert set(found["metrics"]) == {"AUROC", "FPR95", "AUPR", "AUPR-in", "AUPR-out"}
    assert found["checkpoint"]["sha256"] == checkpoint.sha256(world / "imagenet" / "last.pth")
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
        assert set(found["metrics"][name]) == {"R@1", "R@5", "R@10", "R@20", "AP", "mAP"}
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
    names = {"last.pth", "ckpt_epoch_1.pth", "log.jsonl", "starts.jsonl", "config.yaml"}
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


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A cross-entropy model of the digits with the default recipe, and an encoder with random weights."""
    root = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(monkeypatch, root, "--exp_name ce", "main_ce")
    torch.manual_seed(0)
    random = {f"encoder.{k}": v for k, v in resnet.encoder("resnet20").state_dict().items()}
    (root / "random").mkdir()
    checkpoint.save(root / "random" / "last.pth", {"model": random, "options": {"model": "resnet20"}})
    return root


CE = "save/SupCon/digits_models/ce"


def test_cross_entropy_reaches_97_percent_on_the_digits(digits):
    metrics = result(digits, "cross_entropy_digits_ce_*")["metrics"]
    assert metrics["last"]["top-1"] >= 97
    assert metrics["best"]["top-1"] >= metrics["last"]["top-1"]


def test_a_probe_of_a_random_encoder_is_far_below_that_of_a_trained_one(monkeypatch, digits):
    for folder in ("random", CE):
        run(monkeypatch, digits, f"--ckpt {folder} --cache_features", "main_linear")
    random, trained = (
        result(digits, f"linear_digits_{n}_cached*")["metrics"]["last"]["top-1"] for n in ("random", "ce")
    )
    assert trained >= 97
    assert random < trained - 15


def test_probing_leaves_the_encoder_as_it_was_and_saves_the_classifier_alone(monkeypatch, digits):
    before = checkpoint.sha256(digits / CE / "last.pth")
    run(monkeypatch, digits, f"--ckpt {CE} --epochs 1 --exp_name aug --save_freq 1", "main_linear")
    assert checkpoint.sha256(digits / CE / "last.pth") == before
    state = checkpoint.load(digits / "save/linear/digits_models/aug")
    assert {k: tuple(v.shape) for k, v in state["model"].items()} == {"weight": (10, 64), "bias": (10,)}
    run(
        monkeypatch,
        digits,
        f"--ckpt {CE} --epochs 2 --exp_name aug --resume save/linear/digits_models/aug",
        "main_linear",
    )
    assert checkpoint.load(digits / "save/linear/digits_models/aug")["epoch"] == 2


def test_probing_moves_neither_the_encoders_weights_nor_its_running_means(monkeypatch, digits):
    nets, load = [], frozen.load
    monkeypatch.setattr(frozen, "load", lambda *args: nets.append(load(*args)) or nets[-1])
    run(monkeypatch, digits, f"--ckpt {CE} --epochs 1 --exp_name still", "main_linear")
    weights, _ = checkpoint.encoder_weights(checkpoint.load(digits / CE), "")
    assert all(torch.equal(value, weights[name]) for name, value in nets[0].encoder.state_dict().items())


def test_a_probe_resumes_on_the_same_encoder_only(monkeypatch, capsys, digits):
    run(monkeypatch, digits, f"--ckpt {CE} --epochs 1 --exp_name fixed", "main_linear")
    options = "--epochs 2 --exp_name fixed --resume save/linear/digits_models/fixed --ckpt"
    assert "another --ckpt" in error_of(monkeypatch, capsys, digits, f"{options} random", "main_linear")


NEAR = f"--ckpt {CE} --hold_out 4 8 --dataset_outliers digits --outlier_classes 4 8"


def detect_noise(monkeypatch, digits, detector):
    """The record of digits against 40 images of noise."""
    torch.manual_seed(0)
    if not (digits / "noise").exists():
        make_image_folders(digits / "noise", ["noise"], each=40, size=(8, 8))
    run(monkeypatch, digits, f"--ckpt {CE} --dataset_outliers path --data_folder_outliers noise --detector {detector}",
        "out_of_dist_detection")  # fmt: skip
    return result(digits, f"ood_digits_ce_noise_{detector}*")


@pytest.mark.parametrize("detector", ["gaussian", "knn", "mahalanobis"])
def test_detectors_on_features_tell_noise_from_digits(monkeypatch, digits, detector):
    found = detect_noise(monkeypatch, digits, detector)
    assert found["images"]["outliers"] == 40
    assert found["metrics"]["AUROC"] > 65


@pytest.mark.parametrize("detector", ["msp", "energy"])
def test_detectors_on_logits_are_those_of_the_checkpoints_classifier(monkeypatch, digits, detector):
    found = detect_noise(monkeypatch, digits, detector)
    encoder = resnet.encoder("resnet20", small_images=True)
    weights = checkpoint.load_encoder(digits / CE, encoder)["model"]
    spec = datasets.spec("digits")
    transform = augmentation.evaluation(8, spec.mean, spec.std, small=True)
    scores = []
    for data in (datasets.build("digits", split="test"), datasets.build_outliers("path", digits / "noise")):
        with torch.no_grad():
            x = encoder.eval()(torch.stack([transform(data.image(i)) for i in range(len(data))]))
        logits = (x @ weights["fc.weight"].T + weights["fc.bias"]).double().tolist()
        sums = [math.log(sum(math.exp(z) for z in row)) for row in logits]
        scores.append([max(row) - s if detector == "msp" else s for row, s in zip(logits, sums, strict=True)])
    right = sum((a > b) + (a == b) / 2 for a in scores[0] for b in scores[1])
    assert found["metrics"]["AUROC"] == pytest.approx(100 * right / len(scores[0]) / len(scores[1]), abs=0.05)


def test_held_out_classes_are_the_outliers_of_one_split_or_all(monkeypatch, digits):
    for split, images in (("test", 70), ("train", 285), ("all", 355)):
        run(monkeypatch, digits, f"{NEAR} --outlier_split {split}", "out_of_dist_detection")
        name = "digits_4-8" + ("" if split == "test" else f"_{split}")
        found = result(digits, f"ood_digits_without_4-8_ce_{name}_gaussian_*")
        assert found["images"]["outliers"] == images


def test_the_three_scripts_share_cached_features_and_read_no_image_twice(monkeypatch, digits):
    read = []
    image = datasets.ImageData.image
    monkeypatch.setattr(datasets.ImageData, "image", lambda self, i: read.append(i) or image(self, i))
    cache = "--features_cache cache"
    run(monkeypatch, digits, f"--ckpt {CE} --cache_features --epochs 1 --exp_name c {cache}", "main_linear")
    assert len(read) == 1797
    run(monkeypatch, digits, f"--ckpt {CE} {cache}", "retrieval")
    assert len(read) == 1797
    noise = digits / "noise2"
    make_image_folders(noise, ["noise"], each=5, size=(8, 8))
    run(monkeypatch, digits, f"--ckpt {CE} --dataset_outliers path --data_folder_outliers noise2 {cache}",
        "out_of_dist_detection")  # fmt: skip
    assert len(read) == 1797 + 5
    with_cache = result(digits, "ood_digits_ce_noise2*")
    assert with_cache["features"]["train"]["reused"]
    assert not with_cache["features"]["outliers"]["reused"]
    run(monkeypatch, digits, f"--ckpt {CE} --dataset_outliers path --data_folder_outliers noise2",
        "out_of_dist_detection")  # fmt: skip
    assert result(digits, "ood_digits_ce_noise2*")["metrics"] == with_cache["metrics"]  # the same record, anew


def test_cached_features_are_made_anew_when_checkpoint_views_or_images_change(monkeypatch, digits):
    noise = digits / "noise3"
    make_image_folders(noise, ["noise"], each=5, size=(8, 8))
    base = "--dataset_outliers path --data_folder_outliers noise3 --detector msp --features_cache cache3"

    def files(options):
        run(monkeypatch, digits, f"{base} {options}", "out_of_dist_detection")
        return len(list((digits / "cache3").iterdir()))

    assert files(f"--ckpt {CE}") == 2
    assert files(f"--ckpt {CE}") == 2
    assert files(f"--ckpt {CE} --size 16") == 4
    make_image_folders(noise, ["noise"], each=6, size=(8, 8))
    assert files(f"--ckpt {CE}") == 5
    state = checkpoint.load(digits / CE)
    state["model"]["encoder.stem.0.weight"] += 1
    (digits / "moved" / "ce").mkdir(parents=True)  # another run of the same name
    checkpoint.save(digits / "moved" / "ce" / "last.pth", state)
    assert files("--ckpt moved/ce") == 7


def test_two_processes_extract_the_same_features_and_train_the_same_probe(digits):
    def command(script, *options):
        done = subprocess.run(
            [sys.executable, str(ROOT / f"{script}.py"), *options],
            cwd=digits,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    kept = []
    for n in ("1", "2"):
        command("retrieval", "--ckpt", CE, "--nproc_per_node", n, "--features_cache", f"by{n}")
        kept.append(sorted((digits / f"by{n}").iterdir()))
    assert [f.name for f in kept[0]] == [f.name for f in kept[1]]
    for one, two in zip(*kept, strict=True):
        one, two = (torch.load(f, weights_only=True)["features"] for f in (one, two))
        assert torch.allclose(one, two, atol=1e-5)
    printed = command("main_linear", "--ckpt", CE, "--cache_features", "--nproc_per_node", "2", "--exp_name", "two")
    assert printed.count("epoch 30/30  loss") == 1
    assert result(digits, "linear_digits_two_cached*")["metrics"]["last"]["top-1"] >= 97


def test_two_processes_train_and_validate_a_classifier_on_every_image_once(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "main_ce.py"), "--nproc_per_node", "2", "--epochs", "2", "--model", "resnet8",
         "--exp_name", "two"], cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    last = result(tmp_path, "cross_entropy_digits_two_*")["metrics"]["last"]["top-1"]
    assert last * 355 / 100 == pytest.approx(round(last * 355 / 100), abs=1e-6)  # of 355 images, a whole number
    # what is saved is what was validated
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(monkeypatch, tmp_path, "--exp_name two --epochs 3 --model resnet8 --resume save/SupCon/digits_models/two "
            "--learning_rate 1e-30", "main_ce")  # fmt: skip
    state = checkpoint.load(tmp_path / "save/SupCon/digits_models/two")
    assert state["epoch"] == 3


def test_both_label_sets_of_an_own_folder_are_drawn(monkeypatch, capsys, tmp_path, digits):
    make_image_folders(tmp_path / "mine" / "train", ["cat", "dog", "car"], each=8)
    make_image_folders(tmp_path / "mine" / "val", ["cat", "dog"], each=2)  # validation may lack a class
    (tmp_path / "groups.yaml").write_text("animals: [cat, dog]\nthings: [car]\n")
    own = f"--dataset path --data_folder mine --size 32 --num_workers 0 --ckpt {digits / CE}"
    run(monkeypatch, tmp_path, f"{own} --labelset both --superclasses groups.yaml", "retrieval")
    found = result(tmp_path, "retrieval_path_ce_both_*")
    assert found["metrics"]["fine"]["R@20"] == found["metrics"]["coarse"]["R@20"] == 100
    assert found["images"] == {"train": 24, "test": 4}
    assert len(list((tmp_path / "save" / "results").glob("*.png"))) == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed if line.startswith(("fine", "coarse"))] == ["fine", "coarse"]


def test_imagenet_100_is_retrieved_too(monkeypatch, world):
    run(monkeypatch, world, "--dataset imagenet_100 --data_folder data/imagenet100 --ckpt imagenet --size 32 "
        "--num_workers 0", "retrieval")  # fmt: skip
    assert result(world, "retrieval_imagenet_100_imagenet_fine_*")["images"] == {"train": 200, "test": 100}


def test_model_left_out_is_read_from_the_checkpoint_and_the_stem_from_its_weights(monkeypatch, world):
    run(monkeypatch, world, "--dataset path --data_folder data/imagenet100 --ckpt contrastive --size 32 "
        "--num_workers 0", "retrieval")  # fmt: skip
    assert result(world, "retrieval_path_contrastive_fine_*")["checkpoint"]["model"] == "resnet50"


BAD = {
    "main_linear": "--cache_features",
    "retrieval": "",
    "out_of_dist_detection": "--dataset_outliers digits --outlier_classes 4 --hold_out 4",
}


@pytest.mark.parametrize("script", BAD)
def test_a_missing_checkpoint_and_a_wrong_model_are_named_by_every_script(monkeypatch, capsys, digits, script):
    options = BAD[script]
    assert "required: --ckpt" in error_of(monkeypatch, capsys, digits, options, script)
    missing = error_of(monkeypatch, capsys, digits, f"{options} --ckpt nowhere/last.pth", script)
    assert "--ckpt nowhere/last.pth: no such file" in missing
    wrong = error_of(monkeypatch, capsys, digits, f"{options} --ckpt {CE} --model resnet18", script)
    assert "--model resnet18: " in wrong
    assert "holds a resnet20" in wrong
    kind = error_of(monkeypatch, capsys, digits, f"{options} --ckpt {CE} --model_type contrastive", script)
    assert "--model_type contrastive" in kind


def test_a_stem_that_the_file_does_not_have_is_an_error_that_names_the_layer(monkeypatch, capsys, world):
    line = error_of(monkeypatch, capsys, world, f"{CIFAR} --ckpt contrastive --model resnet50_standard", "retrieval")
    assert "conv1.weight has shape (64, 3, 3, 3) instead of (64, 3, 7, 7)" in line
    assert "check --model" in line


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--dataset_outliers path --data_folder_outliers nowhere", "--data_folder_outliers nowhere: no such folder"),
        ("--dataset_outliers AwA2 --data_folder_outliers empty", "--data_folder_outliers empty: holds no image"),
        (
            "--dataset_outliers tiny_imagenet --data_folder_outliers empty",
            "--data_folder_outliers empty: neither it nor",
        ),
        ("--dataset_outliers digits", "class 0 is an inlier too"),
        ("--dataset_outliers cifar10 --data_folder_outliers none", "--data_folder_outliers none: holds no cifar-10"),
        ("--dataset_outliers digits --outlier_classes 11", "--outlier_classes 11: digits has no such class"),
        ("--dataset_outliers digits --outlier_classes 4 --hold_out 4 --detector knn --knn_k 5000", "k = 5000"),
        ("--dataset_outliers digits --outlier_classes 4 --hold_out 4 --detector knn --knn_k 0", "argument --knn_k"),
        ("--dataset_outliers nothing", "argument --dataset_outliers: invalid choice"),
        ("", "required: --dataset_outliers"),
    ],
)
def test_bad_outliers_are_one_clear_line(monkeypatch, capsys, digits, options, reason):
    (digits / "empty").mkdir(exist_ok=True)
    assert reason in error_of(monkeypatch, capsys, digits, f"--ckpt {CE} {options}", "out_of_dist_detection")


@pytest.mark.parametrize("detector", ["msp", "energy"])
def test_a_detector_on_logits_refuses_a_model_without_a_classifier(monkeypatch, capsys, world, detector):
    options = f"{CIFAR} --ckpt contrastive --dataset_outliers cifar10 --detector {detector}"
    line = error_of(monkeypatch, capsys, world, options, "out_of_dist_detection")
    assert f"--detector {detector} needs a classifier" in line


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


def test_a_damaged_cache_file_is_named_and_not_used(monkeypatch, capsys, digits):
    run(monkeypatch, digits, f"--ckpt {CE} --features_cache broken", "retrieval")
    file = next((digits / "broken").iterdir())
    file.write_bytes(file.read_bytes()[:1000])
    line = error_of(monkeypatch, capsys, digits, f"--ckpt {CE} --features_cache broken", "retrieval")
    assert f"--features_cache broken/{file.name}: damaged" in line


def test_results_of_other_checkpoints_and_options_lie_side_by_side(monkeypatch, digits, tmp_path):
    shutil.copytree(digits / CE, tmp_path / "run")
    again = "--ckpt run --num_workers 1"  # the same result
    for options in ("--ckpt run/last.pth", "--ckpt run/ckpt_epoch_10.pth", "--ckpt run --size 16", again):
        run(monkeypatch, tmp_path, options, "retrieval")
    assert len(list((tmp_path / "save" / "results").glob("*.json"))) == 3


def test_other_classes_than_in_training_are_warned_of(monkeypatch, capsys, digits):
    run(monkeypatch, digits, f"--ckpt {CE} --hold_out 4", "retrieval")
    assert "was trained on 10 classes of digits, this evaluates 9; see --hold_out" in capsys.readouterr().err


def test_outliers_that_lie_among_the_inliers_are_refused(monkeypatch, capsys, tmp_path, digits):
    for split in ("train", "val"):
        make_image_folders(tmp_path / "mine" / split, ["cat", "dog"], each=2)
    options = f"--dataset path --data_folder mine --ckpt {digits / CE} --dataset_outliers path --data_folder_outliers"
    line = error_of(monkeypatch, capsys, tmp_path, f"{options} mine/val", "out_of_dist_detection")
    assert "--data_folder_outliers mine/val: holds inliers, " in line


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
        ("main_ce", "--resume random", "holds no state of an optimiser"),
        ("retrieval", "--ckpt probe", "is a linear probe"),
        ("retrieval", f"--ckpt {CE} --model foo", "--model foo is unknown"),
        ("retrieval", f"--ckpt {CE} --superclasses x.yaml", "--superclasses x.yaml: has no use with --labelset fine"),
        ("retrieval", f"--ckpt {CE} --hold_out 0 1 2 3 4 5 6 7 8", "--labelset fine: there is a single class"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(monkeypatch, capsys, digits, script, options, reason):
    (digits / "file").write_text("not a folder")
    if not (digits / "probe").exists():
        (digits / "probe").mkdir()
        checkpoint.save(digits / "probe" / "last.pth", {"model": {}, "script": "main_linear"})
    assert reason in error_of(monkeypatch, capsys, digits, options, script)


def test_overwriting_a_run_starts_its_log_anew(monkeypatch, capsys, tmp_path):
    short = "--exp_name a --model resnet8 --batch_size 256"
    run(monkeypatch, tmp_path, f"{short} --epochs 2", "main_ce")
    run(monkeypatch, tmp_path, f"{short} --epochs 1 --overwrite", "main_ce")
    lines = (tmp_path / "save/SupCon/digits_models/a/log.jsonl").read_text().splitlines()
    assert len(lines) == 1
    line = error_of(monkeypatch, capsys, tmp_path, f"{short} --overwrite --learning_rate 1e30", "main_ce")
    assert "last good checkpoint: none yet" in line


def test_an_encoder_whose_features_are_nan_is_not_scored(monkeypatch, capsys, tmp_path, digits):
    state = checkpoint.load(digits / CE)
    state["model"] = {k: v * math.nan if v.is_floating_point() else v for k, v in state["model"].items()}
    checkpoint.save(tmp_path / "last.pth", state)
    line = error_of(monkeypatch, capsys, tmp_path, "--ckpt last.pth", "retrieval")
    assert "some features are NaN or infinite" in line
    assert not (tmp_path / "save").exists()


def test_outliers_of_an_inlier_wnid_are_refused_whatever_the_folder(monkeypatch, capsys, world):
    options = "--dataset imagenet_100 --data_folder data/imagenet100 --ckpt imagenet --num_workers 0 "
    options += "--dataset_outliers path --data_folder_outliers data/imagenet100/val"
    assert f"class {WNIDS[0]} is an inlier too" in error_of(
        monkeypatch, capsys, world, options, "out_of_dist_detection"
    )


def test_a_checkpoint_that_was_trained_on_the_outliers_is_warned_of(monkeypatch, capsys, digits):
    run(monkeypatch, digits, NEAR, "out_of_dist_detection")
    assert "was trained on the outliers' class 4" in capsys.readouterr().err


def test_a_superclass_file_that_is_not_there_is_named_with_its_flag():
    args = retrieval.get_parser().parse_args(["--ckpt", "x", "--superclasses", "nowhere.yaml"])
    with pytest.raises(util.InputError, match=r"--superclasses nowhere\.yaml: no such file"):
        retrieval.coarse_labels(args, [])

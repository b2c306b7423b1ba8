"""Published weights: known by their hash, and what of a classifier's outputs are the evaluated classes."""

import argparse
import re

import pytest
import torch
from commands import CE, ROOT, result, run
from made_data import make_image_folders, original_checkpoint

import datasets
import recipes
import util
from engine.encoder import official_checkpoints, trained_encoder
from engine.run import checkpoint
from networks import resnet
from util import InputError


def publish(monkeypatch, file, **more):
    """Put a made file into the table of published weights."""
    known = official_checkpoints.Weights("Made-10", "RINCE made", "made/last.pth", util.sha256(file), **more)
    monkeypatch.setattr(official_checkpoints, "WEIGHTS", (*official_checkpoints.WEIGHTS, known))


def test_the_table_holds_eight_files_each_with_a_hash_and_a_place_of_its_own():
    assert len(official_checkpoints.WEIGHTS) == 8
    assert all(re.fullmatch("[0-9a-f]{64}", weights.sha256) for weights in official_checkpoints.WEIGHTS)
    assert len({weights.sha256 for weights in official_checkpoints.WEIGHTS}) == 8
    assert len({weights.place for weights in official_checkpoints.WEIGHTS}) == 8
    assert [w.name for w in official_checkpoints.WEIGHTS if w.classes] == ["cross-entropy, ImageNet-100"]


def test_weights_are_found_by_hash_and_by_place():
    cross_entropy = official_checkpoints.find("b7e32d43c208327dc85ea98fefcb335cfefc559dd432a186882c4a1bc7b1dfe3")
    assert cross_entropy.name == "cross-entropy, ImageNet-100"
    assert official_checkpoints.find("0" * 64) is None
    assert str(cross_entropy.place) == "data/published/ImageNet-100/CE/ckpt_epoch_500.pth"
    for root in ("data/published", "/elsewhere"):
        assert official_checkpoints.find_by_place(f"{root}/ImageNet-100/CE/ckpt_epoch_500.pth") == cross_entropy
    assert official_checkpoints.find_by_place("data/published/CIFAR-100/CE/ckpt_epoch_500.pth") is None


def test_the_recipe_evaluates_each_of_them_where_it_is_looked_for_under_its_name():
    recipe = recipes.read(ROOT / "recipes" / "published.yaml")
    methods = {method["checkpoint"]: method["title"] for method in recipe["methods"].values()}
    assert methods == {str(weights.place): weights.name for weights in official_checkpoints.WEIGHTS}
    for name, method in recipe["methods"].items():
        trained_on = method["title"].rpartition(", ")[2]
        commands = recipes.commands(recipe, name, 0, recipes.Scope())
        assert len(commands) == 5
        for command in commands.values():
            dataset = {"CIFAR-100": "cifar100", "ImageNet-100": "imagenet_100"}[trained_on]
            assert recipes.option(command, "--dataset") == dataset
            file = method["checkpoint"].rpartition("/")[2]
            assert recipes.option(command, "--ckpt") == f"$path2chkpt/{file}"


def test_an_evaluation_says_and_records_which_published_weights_it_is_of(monkeypatch, capsys, tmp_path):
    for name in ("known", "unknown"):
        encoder = resnet.encoder("resnet8")
        original_checkpoint(tmp_path / name / "last.pth", encoder, "cifar", "resnet8", "cifar100")
    publish(monkeypatch, tmp_path / "known" / "last.pth")
    for name in ("known", "unknown"):
        run(monkeypatch, tmp_path, f"--ckpt {name} --num_workers 0", "retrieval")
    lines = [line for line in capsys.readouterr().out.splitlines() if "official weights" in line]
    assert lines == ["--ckpt known/last.pth: these are the official weights RINCE made, Made-10"]
    records = [result(tmp_path, f"retrieval_digits_{name}_*")["checkpoint"] for name in ("known", "unknown")]
    assert [record["published"] for record in records] == ["RINCE made, Made-10", None]


# ---- outputs of a classifier that are no classes ---------------------------------------------------------------------


def classifier(outputs, dataset=None, classes=None, sha256="0" * 64):
    """A FrozenEncoder with a classifier of random weights, as far as its outputs are asked for."""
    record = {"path": "a.pth", "sha256": sha256, "dataset": dataset, "classes": classes}
    weights = {"weight": torch.randn(outputs, 4), "bias": torch.randn(outputs)}
    return trained_encoder.FrozenEncoder(torch.nn.Identity(), record, "a", weights, None, datasets.ViewSettings(8))


CROSS_ENTROPY = "b7e32d43c208327dc85ea98fefcb335cfefc559dd432a186882c4a1bc7b1dfe3"
OUTPUTS = {
    "as many as classes": (classifier(10, "digits"), "digits", 10, 10, None),
    "of its class list": (classifier(10, "digits", list("0123456789")), "digits", 8, 10, None),
    "more than its class list": (classifier(12, None, list("0123456789")), "digits", 8, 10, "has 12 outputs, for 10"),
    "published": (classifier(1000, None, None, CROSS_ENTROPY), "imagenet_100", 100, 100, "has 1000 outputs, for 100"),
    "published, held out": (classifier(1000, None, None, CROSS_ENTROPY), "imagenet_100", 90, 100, "at the first 100"),
    "as published": (classifier(1000, "imagenet_100"), "imagenet", 100, 100, "at the first 100"),
    "as published, held out": (classifier(1000, "imagenet_100"), "imagenet", 90, 1000, "and which are theirs"),
    "ImageNet": (classifier(1000, "imagenet"), "imagenet_100", 100, 1000, "is not known: msp and energy look at all"),
    "other images": (classifier(1000, "imagenet_100"), "path", 100, 1000, "is not known: msp and energy look at all"),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_left_out_where_the_classes_are_known_and_all_kept_with_a_warning_elsewhere(capsys, name):
    net, dataset, classes, kept, warning = OUTPUTS[name]
    assert trained_encoder.count_outputs(net, dataset, ["c"] * classes) == kept
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(warning)
    assert all(line.startswith("warning: --ckpt a.pth: ") and warning in line for line in lines)


@pytest.mark.parametrize("net", [classifier(90), classifier(120, None, ["c"] * 90), classifier(90, "imagenet_100")])
def test_fewer_outputs_than_classes_are_an_error(net):
    with pytest.raises(InputError, match=r"--ckpt a\.pth: its classifier knows 90 classes, imagenet has 100"):
        trained_encoder.count_outputs(net, "imagenet", ["c"] * 100)


def test_logits_are_those_of_the_first_outputs_and_few_inliers_among_them_are_warned_of(capsys):
    net, x = classifier(5), torch.randn(40, 4)
    want = x.double() @ net.classifier["weight"].double().T + net.classifier["bias"].double()
    for outputs in (5, 2):
        (inliers, others), said = trained_encoder.compute_logits(net, outputs, [x, x[:3]])
        assert torch.allclose(inliers, want[:, :outputs]) and torch.equal(others, inliers[:3])
    share = 100 * sum(row.index(max(row)) < 2 for row in want.tolist()) / 40
    assert said["outputs"] == {"of": 5, "used": 2, "largest_among_used": pytest.approx(share)}
    for output, warning in (
        (3, "only 0 % of the validation images have their largest output among the first 2"),
        (0, ""),
    ):
        net.classifier["bias"][output] += 1000 if warning else 2000
        capsys.readouterr()
        trained_encoder.compute_logits(net, 2, [x, x])
        assert warning in capsys.readouterr().err if warning else capsys.readouterr().err == ""


@pytest.mark.parametrize("detector", ["msp", "energy"])
def test_dead_outputs_of_a_published_classifier_change_no_score(monkeypatch, capsys, digits, detector):
    """The digits' classifier with fifteen outputs more that were never trained, and which are near the largest ones."""
    state = checkpoint.load(digits / CE)
    weights = {f"module.{key}": value for key, value in state["model"].items()}
    torch.manual_seed(0)
    dead = torch.randn(15, 64) * weights["module.fc.weight"].std(), torch.full((15,), 2.0)
    for name, more in zip(("weight", "bias"), dead, strict=True):
        weights[f"module.fc.{name}"] = torch.cat([weights[f"module.fc.{name}"], more])
    (digits / "dead").mkdir(exist_ok=True)
    options = argparse.Namespace(model="resnet20", dataset="digits")
    torch.save({"opt": options, "model": weights, "epoch": 1, "optimizer": {}}, digits / "dead" / "last.pth")
    if not (digits / "noise4").exists():
        make_image_folders(digits / "noise4", ["noise"], each=40, size=(8, 8))

    def detect(ckpt, name):
        options = f"--ckpt {ckpt} --dataset_outliers path --data_folder_outliers noise4 --detector {detector}"
        run(monkeypatch, digits, options, "out_of_dist_detection")
        return result(digits, f"ood_digits_{name}_noise4_{detector}*")

    want, unknown = detect(CE, "ce"), detect("dead", "dead")
    assert unknown["outputs"] == {"of": 25, "used": 25}
    assert unknown["metrics"] != want["metrics"]
    assert "25 outputs, digits 10 classes, and which are theirs is not known" in capsys.readouterr().err
    publish(monkeypatch, digits / "dead" / "last.pth", classes=10)
    known = detect("dead", "dead")
    assert known["metrics"] == pytest.approx(want["metrics"])
    assert {key: known["outputs"][key] for key in ("of", "used")} == {"of": 25, "used": 10}
    assert known["outputs"]["largest_among_used"] > 50
    assert "has 25 outputs, for 10 classes: msp and energy look at the first 10" in capsys.readouterr().err

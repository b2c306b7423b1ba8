"""Cross-entropy over similar classes, soft, smooth and with two heads, as users run it."""

import json

import numpy as np
import processes
import pytest
import reference
import torch
from commands import error_of, result, run
from made_data import make_image_folders
from test_heads import FILES, GROUP, NAMES, make

import datasets
import hubconf
import main_ce
from datasets.features import FeatureFiles
from engine import objective
from engine.cli import config
from engine.run import checkpoint

SHORT = f"{FILES} --batch_size 31 --optimizer sgd --learning_rate 0.1 --cosine False --print_freq 100"
SOFT = "--targets soft --ranking superclass"
BOTH = f"{SOFT} --beta 4 --heads 2"
RUNS = "save/SupCon/features_models"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Features with superclasses, and a run of three epochs on them, soft and with two heads."""
    root = tmp_path_factory.mktemp("targets")
    make(root / "train.npz", 20, 1)
    make(root / "val.npz", 5, 2)
    with pytest.MonkeyPatch.context() as patch:
        run(patch, root, f"{SHORT} {BOTH} --epochs 3 --exp_name both", "main_ce")
    return root


@pytest.fixture(scope="module")
def two_heads(tmp_path_factory):
    """A run of the digits, smooth and with two heads."""
    root = tmp_path_factory.mktemp("two_heads")
    words = "--targets smooth --heads 2 --hold_out 4 8 --model resnet8 --epochs 1 --exp_name a"
    with pytest.MonkeyPatch.context() as patch:
        run(patch, root, words, "main_ce")
    return root / "save/SupCon/digits_models/a"


def weights(path):
    return checkpoint.load(path)["model"]


def test_the_coarse_accuracy_is_that_of_the_second_layer_and_top1_stays_that_of_the_first(folder):
    layers, data = weights(folder / RUNS / "both"), np.load(folder / "val.npz")
    x = torch.nn.functional.normalize(torch.from_numpy(data["features"]), dim=1)
    x = (x @ layers["encoder.0.0.weight"].T + layers["encoder.0.0.bias"]).clamp(min=0)
    fine, coarse = ((x @ layers[f"{f}.weight"].T + layers[f"{f}.bias"]).argmax(1) for f in ("fc", "coarse_fc"))
    groups = sorted(set(GROUP.values()))
    of = {"top1": np.array(NAMES)[fine] == data["labels"], "coarse_top1": np.array(groups)[coarse] == data["coarse"]}
    log = json.loads((folder / RUNS / "both/log.jsonl").read_text().splitlines()[-1])
    last = result(folder, "cross_entropy_features_both*")["metrics"]["last"]
    for name, right in of.items():
        assert log[f"val_{name}"] == pytest.approx(100 * np.mean(right))
    assert last["coarse top-1"] == log["val_coarse_top1"] and last["top-1"] == log["val_top1"]
    assert 50 < log["train_coarse_top1"] <= 100


def test_two_processes_train_what_one_does(folder, tmp_path):
    words = f"{SHORT} {BOTH} --epochs 3 --exp_name two --nproc_per_node 2"
    for name in ("train.npz", "val.npz"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    code, printed = processes.call(tmp_path, words.split(), "main_ce")
    assert code == 0, printed
    for name, value in weights(folder / RUNS / "both").items():
        torch.testing.assert_close(weights(tmp_path / RUNS / "two")[name], value, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_ends_as_one_left_alone(folder, monkeypatch):
    run(monkeypatch, folder, f"{SHORT} {BOTH} --epochs 1 --exp_name again", "main_ce")
    run(monkeypatch, folder, f"{SHORT} {BOTH} --epochs 3 --exp_name again --resume auto", "main_ce")
    again = weights(folder / RUNS / "again")
    assert all(torch.equal(value, again[name]) for name, value in weights(folder / RUNS / "both").items())


def targets(folder, words):
    """What `objective.build_targets` makes of a command's options."""
    args = config.parse_words(main_ce.get_parser(), main_ce.RECIPES, f"{FILES} {words}".split(), "main_ce")
    train = datasets.build("features", FeatureFiles([str(folder / "train.npz")], [str(folder / "val.npz")]))
    return objective.build_targets(args, train, torch.device("cpu"))[0]


def test_soft_targets_are_of_the_rankings_own_values_before_they_are_ranks(folder, tmp_path):
    cosines = np.corrcoef(np.random.default_rng(0).normal(size=(8, 5)))  # some below 0, and 28 distinct ones
    np.savez(tmp_path / "cosines.npz", similarity=cosines, classes=NAMES[::-1])
    found = targets(folder, f"--targets soft --ranking {tmp_path}/cosines.npz --beta 3")
    want = reference.soft_targets(cosines[::-1, ::-1].tolist(), 3)
    torch.testing.assert_close(found.probabilities, torch.tensor(want))
    assert found.superclass is None


def test_smooth_targets_and_a_second_head_are_of_the_superclasses_of_a_file_where_one_is_given(folder, tmp_path):
    groups = [GROUP[name] for name in NAMES]
    found = targets(folder, "--targets smooth --heads 2")
    torch.testing.assert_close(found.probabilities, torch.tensor(reference.smooth_targets(groups, 0.1)))
    assert found.superclass.tolist() == [0] * 4 + [1] * 4
    (tmp_path / "own.yaml").write_text("a: [class 7, class 0]\nunused: [x]\nb: [" + ", ".join(NAMES[1:7]) + "]\n")
    found = targets(folder, f"--targets smooth --epsilon 0.3 --superclasses {tmp_path}/own.yaml")
    torch.testing.assert_close(found.probabilities, torch.tensor(reference.smooth_targets("abbbbbba", 0.3)))
    found = targets(folder, f"--heads 2 --superclasses {tmp_path}/own.yaml")
    assert found.superclass.tolist() == [0, 1, 1, 1, 1, 1, 1, 0] and found.probabilities is None


@pytest.mark.parametrize(
    ("words", "name", "objective"),
    [
        ("", "cross_entropy_mlp_seed0", "cross-entropy"),
        (SOFT, "cross_entropy_soft_mlp_seed0", "cross-entropy, soft targets of superclass (beta 10)"),
        (
            f"{SOFT} --beta 2",
            "cross_entropy_soft_mlp_seed1",
            "cross-entropy, soft targets of superclass (beta 2)",
        ),
        (
            "--targets smooth --heads 2",
            "cross_entropy_smooth_two_heads_mlp_seed0",
            "cross-entropy, targets smooth over siblings (epsilon 0.1), a second head of 2 superclasses",
        ),
    ],
)
def test_name_first_line_and_record_say_the_objective(folder, monkeypatch, capsys, words, name, objective):
    run(monkeypatch, folder, f"{SHORT} --epochs 1 --seed {name[-1]} {words}", "main_ce")
    assert f"\n{objective}: 8 classes, 160 training and 40 validation images\n" in capsys.readouterr().out
    assert result(folder, f"cross_entropy_features_{name}_*")["objective"] == objective


def test_the_contrastive_augmentation_stands_in_first_line_record_and_card(tmp_path, monkeypatch, capsys):
    run(monkeypatch, tmp_path, "--use_ssl_augmentations --model resnet8 --epochs 1 --exp_name a", "main_ce")
    assert "\ncross-entropy, contrastive augmentation: 10 classes" in capsys.readouterr().out
    assert result(tmp_path, "cross_entropy_*")["options"]["use_ssl_augmentations"] is True
    run(monkeypatch, tmp_path, "--ckpt save/SupCon/digits_models/a --out card", "engine.export")
    card = json.loads((tmp_path / "card/encoder.json").read_text())
    assert card["options"]["use_ssl_augmentations"] is True and card["options"]["targets"] == "hard"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("main_linear", "--cache_features --epochs 1"),
        ("retrieval", "--labelset both"),
        ("out_of_dist_detection", "--dataset_outliers digits --outlier_classes 4 8 --detector energy"),
        ("main_ce", "--exp_name b --model resnet8 --epochs 1 --init {0}"),
        ("main_ce", "--exp_name a --targets smooth --heads 2 --model resnet8 --epochs 2 --resume {0}"),
    ],
)
def test_a_checkpoint_with_two_heads_is_taken_wherever_one_with_one_is(two_heads, monkeypatch, script, words):
    ckpt = "" if script == "main_ce" else f"--ckpt {two_heads}"
    run(monkeypatch, two_heads.parents[3], f"{words.format(two_heads)} {ckpt} --hold_out 4 8", script)


def test_an_export_and_a_classifier_have_the_first_layers_logits(two_heads, monkeypatch, tmp_path):
    run(monkeypatch, tmp_path, f"--ckpt {two_heads} --out out", "engine.export")
    x = torch.rand(3, 3, 8, 8)
    model, layers = hubconf.classifier(two_heads), weights(two_heads)
    features = hubconf.encoder(tmp_path / "out")(x)
    torch.testing.assert_close(model(x), features @ layers["fc.weight"].T + layers["fc.bias"])
    assert model(x).shape == (3, 8)


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("coarse_fc.scale", "its classifier coarse_fc has weight and bias and scale; it needs weight and bias"),
        ("third_fc.weight", "third_fc.weight is left over"),
        ("fc.coarse_fc.weight", "its classifier fc has"),
    ],
)
def test_other_keys_next_to_a_second_layer_are_refused(two_heads, monkeypatch, capsys, tmp_path, key, line):
    state = checkpoint.load(two_heads)
    state["model"][key] = torch.ones(1)
    checkpoint.save(tmp_path / "last.pth", state)
    assert line in error_of(monkeypatch, capsys, tmp_path, "--ckpt last.pth --hold_out 4 8", "retrieval")


def test_official_files_have_no_second_layer(two_heads, monkeypatch, capsys, tmp_path):
    state = {"model": weights(two_heads), "opt": {"model": "resnet8"}}
    torch.save(state, tmp_path / "last.pth")
    line = error_of(monkeypatch, capsys, tmp_path, "--ckpt last.pth --hold_out 4 8 --model resnet8", "retrieval")
    assert "coarse_fc.bias is left over" in line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--targets soft", "--targets soft: needs a ranking of classes; give --ranking"),
        ("--ranking superclass", "--ranking superclass: has no use without --targets soft"),
        ("--beta 10", "--beta 10.0: has no use without --targets soft"),
        ("--targets smooth --beta 10", "--beta 10.0: has no use without --targets soft"),
        (f"{SOFT} --epsilon 0.1", "--epsilon 0.1: has no use without --targets smooth"),
        (f"{SOFT} --superclasses a.yaml", "--superclasses a.yaml: has no use without --targets smooth or --heads 2"),
        (f"{SOFT} --beta 0", "argument --beta: 0.0 is not above 0"),
        ("--targets smooth --epsilon 1.5", "argument --epsilon: 1.5 is not in [0, 1]"),
        ("--targets smooth --dataset path --data_folder mine", "--targets smooth: path has no superclasses of its own"),
        (
            "--heads 2 --dataset path --data_folder mine",
            "--heads 2: path has no superclasses of its own; give",
        ),
        ("--heads 2 --superclasses none.yaml", "--superclasses none.yaml: no such file"),
        ("--heads 2 --superclasses one.yaml", "--heads 2: --superclasses one.yaml has 1 superclasses of 10 classes"),
        ("--config three.yaml", "three.yaml: heads: 3 is unknown; choose one of 1, 2"),
    ],
)
def test_what_does_not_go_together_is_one_line(monkeypatch, capsys, tmp_path, words, line):
    (tmp_path / "one.yaml").write_text(f"all: {[str(digit) for digit in range(10)]}\n")
    (tmp_path / "three.yaml").write_text("heads: 3\n")
    for split in ("train", "val"):
        make_image_folders(tmp_path / "mine" / split, ["cat", "dog"], each=2)
    assert line in error_of(monkeypatch, capsys, tmp_path, words, "main_ce")
    assert not (tmp_path / "save/SupCon").exists()


def test_a_resume_names_other_targets_and_refuses_another_number_of_heads(folder, monkeypatch, capsys):
    more = f"{SHORT} --epochs 4 --exp_name more --resume"
    run(monkeypatch, folder, f"{more} {RUNS}/both --heads 2", "main_ce")
    assert "--targets hard (was soft)" in capsys.readouterr().out
    line = error_of(monkeypatch, capsys, folder, f"{more} {RUNS}/both --overwrite", "main_ce")
    assert "was trained with --heads 2, not 1" in line
    older = checkpoint.load(folder / RUNS / "both")
    for name in ("targets", "heads"):
        del older["options"][name]  # as before there were any
    checkpoint.save(folder / "older.pth", older)
    line = error_of(monkeypatch, capsys, folder, f"{more} older.pth --overwrite {BOTH}", "main_ce")
    assert "was trained with --heads 1, not 2" in line

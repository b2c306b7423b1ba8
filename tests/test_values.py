"""Numbers as labels, from the command line: trained, resumed, watched, evaluated, and refused in one line."""

import json

import numpy as np
import processes
import pytest
import torch
from commands import error_of, result, run
from made_data import make_image_folders
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import RidgeCV
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import datasets
import main_supcon
from engine import objective
from engine.run import checkpoint

DIGITS = "--values label --model resnet8 --batch_size 256 --memorybank_size 512 --feat_dim 16"
FILES = "--features train.npz --features_val val.npz --values label"
SHORT = f"{FILES} --batch_size 64 --memorybank_size 256 --feat_dim 16"
RUNS = "save/SupCon/features_models"
LOSSES = {
    "rnc": "rnc", "yaware": "yaware --sigma 40", "rince": "rince --thresholds 10 40 80", "supcon": "supcon",
    "himulcon": "himulcon --thresholds 10 40", "coarse": "supcon_coarse --thresholds 0 40",
    "heads": "two_losses_two_heads --thresholds 10 40",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """scikit-learn's diabetes in two files, and a run of two epochs of each loss."""
    root, data = tmp_path_factory.mktemp("diabetes"), load_diabetes()
    order = np.random.default_rng(0).permutation(len(data.target))
    for name, chosen in (("train", order[:342]), ("val", order[342:])):
        np.savez(root / f"{name}.npz", features=data.data[chosen].astype(np.float32), y=data.target[chosen])
    with pytest.MonkeyPatch.context() as patch:
        for name, loss in LOSSES.items():
            how = f"--loss_type {loss} --epochs 2 --save_freq 1 --knn_freq 1 --exp_name {name}"
            run(patch, root, f"{SHORT} {how}")
    return root


def lines_of(root, name):
    return [json.loads(line) for line in (root / RUNS / name / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_trains_is_watched_keeps_its_values_and_resumes_to_the_same_weights(folder, monkeypatch, name):
    whole = checkpoint.load(folder / RUNS / name)
    values = np.load(folder / "train.npz")["y"]
    assert whole["ranking"]["values"].tolist() == np.unique(values).tolist()
    assert whole["classes"] == [f"{v:g}" for v in np.unique(values)]
    assert whole["model"]["bank.labels"].dtype == torch.long
    log = lines_of(folder, name)[-1]
    assert np.isfinite(log["loss"]) and -50 < log["val_r2"] < 100
    again = f"--loss_type {LOSSES[name]} --epochs 2 --knn_freq 1 --exp_name {name}_again"
    run(monkeypatch, folder, f"{SHORT} {again} --resume {RUNS}/{name}/ckpt_epoch_1.pth")
    again = checkpoint.load(folder / RUNS / f"{name}_again")["model"]
    assert all(torch.equal(x, again[key]) for key, x in whole["model"].items())


def test_a_head_each_has_equal_values_or_those_within_the_first_threshold_and_those_within_the_last():
    data = datasets.ImageData([""] * 3, torch.tensor([0, 1, 2]), ["0", "5", "30"], groups=True)
    line = "--values label --loss_type two_losses_two_heads --thresholds 10 40"
    criterion, _, kept = objective.build_loss(main_supcon.get_parser().parse_args(line.split()), data)
    everyone = torch.arange(3)
    assert criterion.fine.ranks.between(everyone, everyone).tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    assert criterion.coarse.ranks.between(everyone, everyone).tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    assert kept["values"].tolist() == [0, 5, 30]


def test_the_lines_of_a_run_say_values_ranks_and_how_many_images_each_has(monkeypatch, capsys, tmp_path):
    run(monkeypatch, tmp_path, f"{DIGITS} --epochs 1 --loss_type rince --thresholds 0 1.5 --exp_name a")
    said = capsys.readouterr().out
    assert "RINCE in: 1442 images, 10 values\nvalues from 0 to 9\n" in said
    of_number = np.bincount(load_digits().target)
    of_number -= of_number // 5  # for validation
    near = np.convolve(of_number, [1, 0, 1], "same")  # one more, or one less
    for rank, limit, tau, counts in ((0, "0", "0.1", of_number), (1, "1.5", "0.225", near)):
        counts = counts.repeat(of_number)
        shown = f"{counts.min()}/{np.median(counts):g}/{counts.max()} images (min/median/max)"
        assert f"rank {rank}: values within {limit}, tau {tau}; an image has {shown}" in said


def test_digits_are_trained_and_measured_by_their_number_or_class_and_their_card_says_it(monkeypatch, capsys, tmp_path):
    ckpt = "--ckpt save/SupCon/digits_models/rnc"
    run(monkeypatch, tmp_path, f"{DIGITS} --epochs 3 --loss_type rnc --exp_name rnc")
    run(monkeypatch, tmp_path, f"--values label {ckpt}", "retrieval")
    metrics = result(tmp_path, "retrieval_digits_rnc_values_*")["metrics"]["values"]
    assert metrics["kNN R2"] > 60 and metrics["kNN MAE"] < 1.5
    run(monkeypatch, tmp_path, ckpt, "retrieval")
    assert "warning" not in capsys.readouterr().err
    assert result(tmp_path, "retrieval_digits_rnc_fine_*")["metrics"]["fine"]["R@1"] > 60
    found = error_of(monkeypatch, capsys, tmp_path, f"--ranking checkpoint {ckpt}", "retrieval")
    assert "was trained on numbers, not on classes; give --values" in found
    run(monkeypatch, tmp_path, f"{ckpt} --out card", "engine.export")
    card = json.loads((tmp_path / "card/encoder.json").read_text())
    assert card["ranking"] == {"values": [0, 9]} and card["options"]["values"] == "label"


def test_images_of_a_list_have_a_column_of_numbers(monkeypatch, tmp_path):
    make_image_folders(tmp_path, ["flat"], each=30, size=(16, 16))
    rows = [f"flat/flat_{i}.JPEG,cat,{'val' if i % 3 == 2 else 'train'},{40 + i / 4}" for i in range(30)]
    (tmp_path / "list.csv").write_text("path,label,split,age\n" + "\n".join(rows) + "\n")
    data = "--dataset path --data_folder list.csv --values age --size 16 --num_workers 0"
    how = "--model resnet8 --batch_size 10 --memorybank_size 20 --epochs 1 --knn_freq 1 --exp_name a"
    run(monkeypatch, tmp_path, f"{data} {how} --loss_type yaware --sigma 2")
    run(monkeypatch, tmp_path, f"{data} --ckpt save/SupCon/path_models/a", "retrieval")
    found = result(tmp_path, "retrieval_path_a_values_*")
    assert found["images"] == {"train": 20, "test": 10} and 0 < found["metrics"]["values"]["kNN MAE"] < 8


def test_raw_features_are_measured_as_scikit_learn_does(folder, monkeypatch, capsys):
    run(monkeypatch, folder, f"{FILES} --knn_vote 7", "retrieval")
    assert "kNN MAE    kNN R2  ridge MAE  ridge R2  Spearman" in capsys.readouterr().out
    found = result(folder, "retrieval_features_raw_values_*")["metrics"]["values"]
    train, val = (np.load(folder / f"{part}.npz") for part in ("train", "val"))
    x, y = (part["features"] / np.linalg.norm(part["features"], axis=1)[:, None] for part in (train, val))
    by_neighbors = KNeighborsRegressor(7, metric="cosine").fit(x, train["y"]).predict(y)
    probe = make_pipeline(StandardScaler(), RidgeCV([10.0**p for p in range(-2, 7)])).fit(x, train["y"]).predict(y)
    for name, predicted in (("kNN", by_neighbors), ("ridge", probe)):
        assert found[f"{name} MAE"] == pytest.approx(mean_absolute_error(val["y"], predicted), rel=1e-4)
        assert found[f"{name} R2"] == pytest.approx(100 * r2_score(val["y"], predicted), rel=1e-4)


def test_two_processes_train_as_one_and_measure_as_one(folder, tmp_path):
    for name in ("train.npz", "val.npz"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    words = f"{SHORT} --loss_type {LOSSES['yaware']} --epochs 1 --precision float32 --dropout 0".split()
    for count in (1, 2):
        several = ["--nproc_per_node", str(count)]
        assert processes.call(tmp_path, [*words, "--exp_name", f"of_{count}", *several])[0] == 0
        evaluate = [*FILES.split(), "--ckpt", f"{RUNS}/of_1", "--layer", "output", "--save_folder", f"of_{count}/save"]
        assert processes.call(tmp_path, [*evaluate, *several], "retrieval")[0] == 0
    one, two = (checkpoint.load(tmp_path / RUNS / f"of_{count}")["model"] for count in (1, 2))
    assert all(torch.allclose(x.float(), two[key].float(), atol=1e-5) for key, x in one.items())
    one, two = (result(tmp_path / f"of_{count}", "*")["metrics"] for count in (1, 2))
    assert one["values"] == pytest.approx(two["values"], rel=1e-4)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--loss_type rince", "--loss_type rince: needs --thresholds with --values"),
        ("--loss_type supcon --thresholds 5", "--loss_type supcon: has no use for --thresholds with --values"),
        ("--loss_type rnc --thresholds 5", "--loss_type rnc: has no use for --thresholds with --values"),
        ("--loss_type yaware", "--loss_type yaware: needs --sigma with --values"),
        ("--loss_type xclr", "--loss_type xclr: needs similarities of classes, not --values"),
        ("--loss_type triplet", "--loss_type triplet: needs similarities of classes, not --values"),
        ("--thresholds 0.8 0.4", "--thresholds 0.8 0.4: must rise from 0 or more with --values"),
        ("--thresholds -1 4", "--thresholds -1 4: must rise from 0 or more with --values"),
        ("--loss_type himulcon --thresholds 5", "this loss needs groups of classes, or several distances"),
        ("--thresholds 5 --sigma 2", "--sigma: has no use with --loss_type rince"),
        ("--thresholds 5 --ranking identity", "--ranking has no use with --values"),
        ("--thresholds 5 --exclude_classes 4", "--exclude_classes has no use with --values"),
        ("--thresholds 5 --images_per_class 4", "--images_per_class has no use with --values"),
        ("--thresholds 5 --n_sim_classes 4", "--n_sim_classes has no use with --values"),
        ("--thresholds 5 --instance_ranks a.csv", "--instance_ranks has no use with --values"),
    ],
)
def test_what_training_on_values_has_no_use_for_is_one_line(monkeypatch, capsys, tmp_path, line, words):
    assert words in error_of(monkeypatch, capsys, tmp_path, f"{DIGITS} --epochs 1 {line}")
    assert not (tmp_path / "save").exists()


@pytest.mark.parametrize(
    "line",
    ["--gallery test", "--labelset coarse", "--superclasses a.yaml", "--ranking checkpoint", "--thresholds 0.5"],
)
def test_what_an_evaluation_of_values_has_no_use_for_is_one_line(folder, monkeypatch, capsys, line):
    found = error_of(monkeypatch, capsys, folder, f"{FILES} {line}", "retrieval")
    assert f"{line.split()[0]} has no use with --values" in found

"""main_ce.py, main_linear.py, retrieval.py and out_of_dist_detection.py on the digits, as users run them."""

import json
import math
import shutil

import processes
import pytest
import torch
import yaml
from commands import CE, error_of, result, run
from made_data import make_image_folders

import datasets
import util
from datasets import augmentation
from engine.checkpoint import load_encoder
from engine.encoder import pretrained, trained_encoder
from engine.run import checkpoint
from networks import resnet

NEAR = f"--ckpt {CE} --hold_out 4 8 --dataset_outliers digits --outlier_classes 4 8"


def detect_noise(monkeypatch, digits, detector):
    """The record of digits against 40 images of noise."""
    torch.manual_seed(0)
    if not (digits / "noise").exists():
        make_image_folders(digits / "noise", ["noise"], each=40, size=(8, 8))
    run(monkeypatch, digits, f"--ckpt {CE} --dataset_outliers path --data_folder_outliers noise --detector {detector}",
        "out_of_dist_detection")  # fmt: skip
    return result(digits, f"ood_digits_ce_noise_{detector}*")


def test_cross_entropy_reaches_95_percent_on_the_digits_in_six_epochs(digits):
    metrics = result(digits, "cross_entropy_digits_ce_*")["metrics"]
    assert metrics["last"]["top-1"] >= 95
    assert metrics["best"]["top-1"] >= metrics["last"]["top-1"]


def test_a_probe_of_a_random_encoder_is_far_below_that_of_a_trained_one(monkeypatch, digits):
    for folder in ("random", CE):
        run(monkeypatch, digits, f"--ckpt {folder} --cache_features", "main_linear")
    random, trained = (
        result(digits, f"linear_digits_{n}_cached*")["metrics"]["last"]["top-1"] for n in ("random", "ce")
    )
    assert trained >= 96
    assert random < trained - 15


def test_a_probe_saves_its_classifier_alone_and_resumes_on_the_same_encoder_only(monkeypatch, capsys, digits):
    before = util.sha256(digits / CE / "last.pth")
    run(monkeypatch, digits, f"--ckpt {CE} --epochs 1 --exp_name aug --save_freq 1", "main_linear")
    assert util.sha256(digits / CE / "last.pth") == before
    state = checkpoint.load(digits / "save/linear/digits_models/aug")
    assert {k: tuple(v.shape) for k, v in state["model"].items()} == {"weight": (10, 64), "bias": (10,)}
    again = "--epochs 2 --exp_name aug --resume save/linear/digits_models/aug --ckpt"
    assert "another --ckpt" in error_of(monkeypatch, capsys, digits, f"{again} random", "main_linear")
    run(monkeypatch, digits, f"{again} {CE}", "main_linear")
    assert checkpoint.load(digits / "save/linear/digits_models/aug")["epoch"] == 2


def test_probing_moves_neither_the_encoders_weights_nor_its_running_means(monkeypatch, digits):
    nets, load = [], trained_encoder.load
    monkeypatch.setattr(trained_encoder, "load", lambda *args: nets.append(load(*args)) or nets[-1])
    run(monkeypatch, digits, f"--ckpt {CE} --epochs 1 --exp_name still", "main_linear")
    weights, _ = pretrained.split_weights(checkpoint.load(digits / CE), "")
    assert all(torch.equal(value, weights[name]) for name, value in nets[0].encoder.state_dict().items())


@pytest.mark.parametrize("detector", ["gaussian", "knn", "mahalanobis", "rmds"])
def test_detectors_on_features_tell_noise_from_digits(monkeypatch, digits, detector):
    found = detect_noise(monkeypatch, digits, detector)
    assert found["images"]["outliers"] == 40
    assert found["metrics"]["AUROC"] > 65


@pytest.mark.parametrize("detector", ["msp", "energy"])
def test_detectors_on_logits_are_those_of_the_checkpoints_classifier(monkeypatch, digits, detector):
    found = detect_noise(monkeypatch, digits, detector)
    encoder = resnet.encoder("resnet20", small_images=True)
    weights = load_encoder(digits / CE, encoder)["model"]
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


def test_classes_left_out_are_the_outliers_of_one_split_or_all_and_their_training_is_warned_of(
    monkeypatch, capsys, digits
):
    for split, images in (("test", 70), ("train", 285), ("all", 355)):
        run(monkeypatch, digits, f"{NEAR} --outlier_split {split}", "out_of_dist_detection")
        name = "digits_4-8" + ("" if split == "test" else f"_{split}")
        found = result(digits, f"ood_digits_without_4-8_ce_{name}_gaussian_*")
        assert found["images"]["outliers"] == images
        assert "was trained on the OOD class 4" in capsys.readouterr().err


def test_the_three_scripts_share_cached_features_and_read_no_image_twice(monkeypatch, digits):
    read = []
    items = datasets.ImageData.__getitems__
    monkeypatch.setattr(datasets.ImageData, "__getitems__", lambda self, i: read.extend(i) or items(self, i))
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
    def command(script, options):
        code, printed = processes.call(digits / name, f"--ckpt {digits / CE} {options}".split(), script)
        assert code == 0, printed
        return printed

    kept = []
    for n in (1, 2):
        name = f"by{n}"
        command("retrieval", f"--nproc_per_node {n} --features_cache {digits / name}/kept")
        kept.append(sorted((digits / name / "kept").iterdir()))
    assert [f.name for f in kept[0]] == [f.name for f in kept[1]]
    for one, two in zip(*kept, strict=True):
        one, two = (torch.load(f, weights_only=True)["features"] for f in (one, two))
        assert torch.allclose(one, two, atol=1e-5)
    name = "probed"
    printed = command("main_linear", "--cache_features --nproc_per_node 2 --exp_name two --epochs 8")
    assert printed.count("epoch 8/8  loss") == 1
    assert result(digits / name, "linear_digits_two_cached*")["metrics"]["last"]["top-1"] >= 96


def test_two_processes_train_and_validate_a_classifier_on_every_image_once(tmp_path):
    words = "--nproc_per_node 2 --epochs 2 --model resnet8 --exp_name two"
    code, printed = processes.call(tmp_path, words.split(), "main_ce")
    assert code == 0, printed
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


def test_results_of_other_checkpoints_and_options_lie_side_by_side(monkeypatch, digits, tmp_path):
    shutil.copytree(digits / CE, tmp_path / "run")
    again = "--ckpt run --num_workers 1"  # the same result
    for options in ("--ckpt run/last.pth", "--ckpt run/ckpt_epoch_5.pth", "--ckpt run --size 16", again):
        run(monkeypatch, tmp_path, options, "retrieval")
    assert len(list((tmp_path / "save" / "results").glob("*.json"))) == 3


def test_overwriting_a_run_starts_its_log_anew(monkeypatch, capsys, tmp_path):
    short = "--exp_name a --model resnet8 --batch_size 256"
    run(monkeypatch, tmp_path, f"{short} --epochs 2", "main_ce")
    run(monkeypatch, tmp_path, f"{short} --epochs 1 --overwrite", "main_ce")
    lines = (tmp_path / "save/SupCon/digits_models/a/log.jsonl").read_text().splitlines()
    assert len(lines) == 1
    line = error_of(monkeypatch, capsys, tmp_path, f"{short} --overwrite --learning_rate 1e30", "main_ce")
    assert "last good checkpoint: none yet" in line


def test_few_images_a_class_are_recorded_and_part_of_every_name(monkeypatch, digits):
    few = "--hold_out 0 1 2 3 --images_per_class 12"
    run(monkeypatch, digits, f"{few} --model resnet8 --batch_size 64 --memorybank_size 64 --epochs 1")
    (folder,) = (digits / "save/SupCon/digits_models").glob("*_12_per_class_*")
    assert yaml.safe_load((folder / "config.yaml").read_text())["images_per_class"] == 12
    run(monkeypatch, digits, f"--ckpt {folder} --config {folder}/config.yaml", "retrieval")
    run(monkeypatch, digits, f"--ckpt {folder} {few} --cache_features --epochs 2", "main_linear")
    names = "retrieval_digits_without_0-1-2-3_12_per_class_*.json", "linear_digits_without_0-1-2-3_12_per_class_*.json"
    for name in names:
        (path,) = (digits / "save/results").glob(name)
        record = json.loads(path.read_text())
        assert (record["images"]["train"], record["options"]["images_per_class"]) == (72, 12)
    assert len(list((digits / "save/linear/digits_models").glob("*_12_per_class_*"))) == 1


def test_a_probe_of_a_large_batch_begins_at_its_learning_rate(monkeypatch, digits):
    options = "--batch_size 512 --learning_rate 0.7 --cosine False --epochs 20 --cache_features --exp_name large"
    run(monkeypatch, digits, f"--ckpt {CE} {options}", "main_linear")
    log = (digits / "save/linear/digits_models/large/log.jsonl").read_text().splitlines()
    assert json.loads(log[0])["learning_rate"] == 0.7
    run(monkeypatch, digits, f"--ckpt {CE} {options}_warm --warm", "main_linear")
    log = (digits / "save/linear/digits_models/large_warm/log.jsonl").read_text().splitlines()
    assert json.loads(log[0])["learning_rate"] < 0.1


OOD_KNN = f"--ckpt {CE} --hold_out 4 --dataset_outliers digits --outlier_classes 4 --detector knn --images_per_class 7"


@pytest.mark.parametrize(
    ("script", "options", "line"),
    [
        ("out_of_dist_detection", OOD_KNN, "--knn_k 50: more than half of the 63 training images: "),
        ("out_of_dist_detection", f"{OOD_KNN} --knn_k 8", "--knn_k 8: more than the 7 images of the smallest class: "),
        ("out_of_dist_detection", f"{OOD_KNN} --knn_k 7", ""),
        ("retrieval", f"--ckpt {CE} --images_per_class 2 --knn_k 21", "--knn_vote 21: the gallery has 20 images; "),
        ("retrieval", f"--ckpt {CE} --images_per_class 2 --knn_k 20", ""),
        ("retrieval", f"--ckpt {CE} --within test --knn_k 355", "--knn_vote 355: the gallery has 354 images; "),
        ("main_supcon", "--images_per_class 19 --batch_size 64 --memorybank_size 64 --epochs 1 --knn_freq 1",
         "--knn_freq: there are 190 training images, fewer than its 200 neighbors; "),
    ],
)  # fmt: skip
def test_more_neighbors_than_there_are_near_ones_is_a_line(
    monkeypatch, capsys, tmp_path, digits, script, options, line
):
    run(monkeypatch, digits, f"{options} --save_folder {tmp_path}", script)
    said = [x for x in capsys.readouterr().out.splitlines() if x.startswith("--knn")]
    assert len(said) == bool(line)
    assert not line or said[0].startswith(line)


def test_test_images_look_for_one_another_within_test(monkeypatch, capsys, digits):
    run(monkeypatch, digits, f"--ckpt {CE} --labelset both --within test --knn_k 20", "retrieval")
    printed = capsys.readouterr().out
    assert [word in printed for word in ("R-precision", "MAP@R", "kNN")] == [True] * 3
    record = next(
        json.loads(f.read_text())
        for f in (digits / "save/results").glob("retrieval_digits_ce_both_*.json")
        if "--within" in json.loads(f.read_text())["command"]
    )
    fine = record["metrics"]["fine"]
    assert 0 < fine["MAP@R"] <= fine["R-precision"] < 100
    assert fine["kNN"] > 90
    assert record["metrics"]["coarse"].keys() == {*fine, "mAP-other-classes"}
    assert record["queries"] == {"fine": 355, "coarse": 355}
    by_class = record["by_class"]["fine"]
    assert list(by_class) == [str(c) for c in range(10)]
    test = datasets.build("digits", split="test")
    counts = torch.bincount(test.labels).tolist()
    mean = sum(n * by_class[str(c)]["mAP"] for c, n in enumerate(counts)) / len(test)
    assert mean == pytest.approx(fine["mAP"])


def test_images_of_classes_that_were_never_trained_on_are_asked_for_among_themselves(monkeypatch, capsys, tmp_path):
    run(monkeypatch, tmp_path, "--hold_out 4 6 8 --model resnet8 --epochs 1 --batch_size 512 --exp_name a", "main_ce")
    labels = datasets.build("digits", split="test").labels
    capsys.readouterr()
    for gallery in ("train", "test"):
        words = f"--ckpt save/SupCon/digits_models/a --labelset both --ranking superclass --gallery {gallery}"
        for only in ("classes excluded", "hold_out 0 1 2 3 5 7 9"):
            run(monkeypatch, tmp_path, f"{words} --{only} --save_folder {gallery}/{only.split()[0]}/save", "retrieval")
        unseen, others = (result(tmp_path / gallery / name, "retrieval*") for name in ("classes", "hold_out"))
        assert unseen["metrics"] == others["metrics"] and unseen["images"] == others["images"]
        assert unseen["classes"] == ["4", "6", "8"] and unseen["options"]["classes"] == "excluded"
        # 6 and 8 share a superclass; 4 is alone in its own, and no query there
        assert unseen["queries_other_classes"] == int((labels == 6).sum() + (labels == 8).sum())
    assert "warning" not in capsys.readouterr().err
    run(monkeypatch, tmp_path, "--ckpt save/SupCon/digits_models/a --hold_out 4 --labelset both", "retrieval")
    head, fine, coarse = capsys.readouterr().out.splitlines()[-4:-1]
    assert head.endswith("mAP  mAP-other-classes") and fine.split()[-1] == "-" and float(coarse.split()[-1]) > 0

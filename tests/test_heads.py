"""Heads on files of features, from the command line: trained, resumed, evaluated, and refused in one line."""

import json
import shlex

import numpy as np
import pytest
import torch
from commands import error_of, result, run
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors

from engine.run import checkpoint

NAMES = [f"class {c}" for c in range(8)]
GROUP = {name: f"group {c // 4}" for c, name in enumerate(NAMES)}
FILES = "--features train.npz --features_val val.npz"
SHORT = f"{FILES} --batch_size 32 --memorybank_size 64 --feat_dim 8 --epochs 2 --print_freq 100 --learning_rate 0.02"
RUN = "save/SupCon/features_models"


def make(path, per_class, seed, noise=1.0, **change):
    """Rows around one center per class, 16 dimensions, named labels and superclasses."""
    centers = np.random.default_rng(0).normal(size=(8, 16))
    rng = np.random.default_rng(seed)
    labels = np.arange(8).repeat(per_class)
    rows = (centers[labels] + noise * rng.normal(size=(len(labels), 16))).astype(np.float32)
    names = [NAMES[y] for y in labels]
    np.savez(path, **{"features": rows, "labels": names, "coarse": [GROUP[n] for n in names], **change})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Features, and a run of two epochs of each loss on them."""
    root = tmp_path_factory.mktemp("features")
    make(root / "train.npz", 20, 1)
    make(root / "val.npz", 5, 2)
    np.savez(root / "others.npz", features=np.random.default_rng(3).normal(size=(30, 16)).astype(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        run(patch, root, f"{SHORT} --exp_name rince --knn_freq 1", "main_supcon")
        run(patch, root, f"{FILES} --batch_size 32 --epochs 2 --exp_name ce --model residual --batch_norm", "main_ce")
    return root


def records(root, start):
    return [json.loads(path.read_text()) for path in sorted((root / "save/results").glob(f"{start}*.json"))]


def test_a_run_on_features_says_its_loss_and_keeps_how_rows_are_normalized(folder):
    state = torch.load(folder / RUN / "rince/last.pth", weights_only=True)
    assert state["size"] == 16 and state["normalize"] == "l2" and state["classes"] == NAMES
    assert state["ranking"]["similarity"][0, :5].tolist() == [1.0, 0.75, 0.75, 0.75, 0.0]  # of the second column
    assert {"encoder.0.0.weight", "head.0.weight"} <= state["model"].keys()
    log = [json.loads(line) for line in (folder / RUN / "rince/log.jsonl").read_text().splitlines()]
    assert log[-1]["loss_rank_1"] > 0 and log[-1]["val_knn"] > 50


@pytest.mark.parametrize("normalize", ["l2", "standard", "none"])
def test_raw_features_retrieve_as_scikit_learn_finds_neighbors(folder, monkeypatch, normalize):
    run(monkeypatch, folder, f"{FILES} --labelset both --normalize {normalize}", "retrieval")
    metrics = records(folder, "retrieval_features_raw")[-1]["metrics"]
    found = [r for r in records(folder, "retrieval_features_raw") if r["options"]["normalize"] == normalize]
    metrics = found[0]["metrics"]
    train, val = (np.load(folder / f"{part}.npz") for part in ("train", "val"))
    x, y = (part["features"].astype(float) for part in (train, val))
    if normalize == "standard":
        mean, std = x.mean(0), x.std(0)
        x, y = (x - mean) / std, (y - mean) / std
    nearest = NearestNeighbors(metric="cosine").fit(x)
    distance, index = nearest.kneighbors(y, len(x))
    for name, key in (("fine", "labels"), ("coarse", "coarse")):
        right = train[key][index] == val[key][:, None]
        assert metrics[name]["R@1"] == pytest.approx(100 * right[:, 0].mean())
        precision = [average_precision_score(r, -d) for r, d in zip(right, distance, strict=True)]
        assert metrics[name]["mAP"] == pytest.approx(100 * np.mean(precision), rel=1e-6)
    others = train["labels"][index] != val["labels"][:, None]  # `right` is of the superclasses here
    apart = [average_precision_score(r[o], -d[o]) for r, d, o in zip(right, distance, others, strict=True)]
    assert metrics["coarse"]["mAP-other-classes"] == pytest.approx(100 * np.mean(apart), rel=1e-6)


def test_columns_of_labels_are_the_ranking_of_a_training_and_the_levels_of_its_evaluation(folder, monkeypatch, capsys):
    labels = np.arange(8)
    for name, each, seed in (("t", 20, 1), ("v", 5, 2)):
        columns = {"pair": labels.repeat(each) // 2, "half": np.array(["a", "b"])[labels.repeat(each) // 4]}
        make(folder / f"{name}.npz", each, seed, **columns)
    files = "--features t.npz --features_val v.npz --label_columns labels pair half"
    run(monkeypatch, folder, f"{SHORT} {files} --exp_name deep --epochs 1")
    table = torch.load(folder / RUN / "deep/last.pth", weights_only=True)["ranking"]["similarity"]
    assert table[0].tolist() == [1.0, 0.75, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0]
    run(monkeypatch, folder, f"{files} --labelset levels", "retrieval")
    (found,) = [r["metrics"] for r in records(folder, "retrieval") if r["options"]["labelset"] == "levels"]
    assert list(found) == ["class", "pair", "half"]
    for superclasses, name in (("", "pair"), ("--superclasses halves.yaml", "half")):
        (folder / "halves.yaml").write_text(f"a: [{', '.join(NAMES[:4])}]\nb: [{', '.join(NAMES[4:])}]\n")
        run(monkeypatch, folder, f"{files} --labelset coarse {superclasses}", "retrieval")
        coarse = [r["metrics"]["coarse"] for r in records(folder, "retrieval") if r["options"]["labelset"] == "coarse"]
        assert found[name] in [{k: x for k, x in of.items() if k != "mAP-other-classes"} for of in coarse]


def test_outliers_of_a_file_are_near_by_their_own_columns_of_labels(folder, monkeypatch, capsys, tmp_path):
    for name in ("train.npz", "val.npz"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    make(tmp_path / "others.npz", 5, 3, labels=["x", "y"] * 20, coarse=["group 0", "group 9"] * 20)
    words = f"{FILES} --features_outliers others.npz --detector knn --ranking superclass"
    run(monkeypatch, tmp_path, words, "out_of_dist_detection")
    near = result(tmp_path, "ood*")["nearness"]["classes"]
    assert {name: of["similarity"] for name, of in near.items()} == {"x": 0.75, "y": 0.0}
    others = dict(np.load(tmp_path / "others.npz"))
    np.savez(tmp_path / "others.npz", **others, superclass=["all"] * 40)
    assert "lacks the class x" in error_of(monkeypatch, capsys, tmp_path, words, "out_of_dist_detection")


def test_a_head_may_be_the_projection_alone(folder, monkeypatch, tmp_path):
    for name in ("train.npz", "val.npz"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    run(monkeypatch, tmp_path, f"{SHORT} --model linear --exp_name linear")
    state = torch.load(tmp_path / RUN / "linear/last.pth", weights_only=True)["model"]
    assert not torch.equal(state["head.0.weight"], state["key_head.0.weight"])
    run(monkeypatch, tmp_path, f"{FILES} --ckpt {RUN}/linear --layer output", "retrieval")
    assert records(tmp_path, "retrieval")[0]["metrics"]["fine"]["mAP"] > 30


def test_both_layers_of_a_head_are_measured_and_a_record_says_which(folder, monkeypatch, capsys):
    run(monkeypatch, folder, f"{FILES} --ckpt {RUN}/rince", "retrieval")
    printed = capsys.readouterr().out
    assert "layer output: 8 dimensions" in printed and "layer hidden: 16 dimensions" in printed
    assert sorted(r["options"]["layer"] for r in records(folder, "retrieval_features_rince")) == ["hidden", "output"]
    run(monkeypatch, folder, f"{FILES} --ckpt {RUN}/ce --labelset coarse", "retrieval")
    assert [r["options"]["layer"] for r in records(folder, "retrieval_features_ce")] == [None]


def test_a_picture_compares_raw_features_with_a_head(folder, monkeypatch):
    words = (
        f"{FILES} --exclude_classes '{NAMES[-1]}' --ckpt raw {RUN}/rince --names raw head --out {folder}/classes.png"
    )
    run(monkeypatch, folder, words, "figures.classes")
    assert (folder / "classes.png").stat().st_size > 5000


def test_cached_features_of_one_layer_do_not_serve_the_other_of_the_same_width(folder, monkeypatch, tmp_path):
    for name in ("train.npz", "val.npz"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    run(monkeypatch, tmp_path, f"{SHORT} --feat_dim 16 --exp_name wide")
    evaluate = f"{FILES} --ckpt {RUN}/wide"
    run(monkeypatch, tmp_path, f"{evaluate} --features_cache kept", "retrieval")
    cached = {r["options"]["layer"]: r["metrics"] for r in records(tmp_path, "retrieval")}
    run(monkeypatch, tmp_path, evaluate, "retrieval")
    assert cached == {r["options"]["layer"]: r["metrics"] for r in records(tmp_path, "retrieval")}
    assert cached["output"] != cached["hidden"]


def test_the_output_of_a_head_is_what_ten_lines_of_torch_make_of_it(folder):
    from datasets import build_pair
    from datasets.features import FeatureFiles
    from engine.batches.loading import Loading
    from engine.encoder import trained_encoder

    train, test = build_pair("features", FeatureFiles([str(folder / "train.npz")], [str(folder / "val.npz")]))
    net = trained_encoder.load(folder / RUN / "rince", train, "features").take_layer("output")
    found = trained_encoder.extract_features(net, test, "val", Loading(64, 0, torch.device("cpu")))
    weights = torch.load(folder / RUN / "rince/last.pth", weights_only=True)["model"]
    x = torch.nn.functional.normalize(torch.from_numpy(np.load(folder / "val.npz")["features"]), dim=1)
    x = (x @ weights["encoder.0.0.weight"].T + weights["encoder.0.0.bias"]).clamp(min=0)
    assert torch.allclose(found, x @ weights["head.0.weight"].T + weights["head.0.bias"], atol=1e-6)


RECIPE = """title: heads
methods:
  raw features: {checkpoint: raw}
  RINCE in: {command: python main_supcon.py OPTIONS --exp_name rince --variant in}
evaluations:
  retrieval:
    command: python retrieval.py FILES --ckpt $path2chkpt --layer output
    columns: {mAP: fine.mAP}
"""


def test_a_recipes_method_may_be_the_features_themselves(folder, monkeypatch, tmp_path):
    for name in ("train.npz", "val.npz"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "heads.yaml").write_text(RECIPE.replace("OPTIONS", SHORT).replace("FILES", FILES))
    for _ in range(2):  # the second time, all is done
        run(monkeypatch, tmp_path, "heads.yaml --seeds 2", "reproduce")
    table = json.loads((tmp_path / "save/tables/heads.json").read_text())
    raw, heads = (table["results"][name] for name in ("raw features", "RINCE in"))
    assert len(raw) == 1 and len(heads) == 2 and not table["failures"]
    run(monkeypatch, tmp_path, FILES, "retrieval")
    assert raw[0]["values"]["mAP"] == records(tmp_path, "retrieval_features_raw")[0]["metrics"]["fine"]["mAP"]


@pytest.mark.parametrize("name", ["rince", "ce"])
def test_an_exported_head_is_the_checkpoints_and_evaluates_as_it_does(folder, monkeypatch, tmp_path, name):
    from networks import exported

    run(monkeypatch, folder, f"--ckpt {RUN}/{name} --out {tmp_path}/head", "engine.export")
    model, card = exported.load(tmp_path / "head")
    assert (card["normalize"], card["classes"]) == ("l2", NAMES)
    for ckpt in (f"{RUN}/{name}", f"{tmp_path}/head"):
        run(monkeypatch, folder, f"{FILES} --ckpt {ckpt} --layer hidden --knn_vote 3", "retrieval")
    ckpts = f"{RUN}/{name}", f"{tmp_path}/head"
    found = [r for r in records(folder, "retrieval") if r["options"]["knn_k"] == 3 and r["options"]["ckpt"] in ckpts]
    assert len({json.dumps(r["metrics"]) for r in found}) == 1 and len(found) == 2
    rows = torch.from_numpy(np.load(folder / "val.npz")["features"])
    assert model(rows).shape == (40, card["dim"]) and model.hidden(rows).shape == (40, 16)


def test_rows_of_a_list_are_left_out_and_a_list_of_none_of_them_is_refused(folder, monkeypatch, capsys, tmp_path):
    for name in ("train.npz", "val.npz"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "skip.txt").write_text("train.npz:0\ntrain.npz:41\n./val.npz:3\n")
    (tmp_path / "none.txt").write_text("train.npz:999\n")
    run(monkeypatch, tmp_path, f"{FILES} --skip_images skip.txt", "retrieval")
    assert result(tmp_path, "retrieval_features_raw*")["images"] == {"train": 158, "test": 39}
    line = error_of(monkeypatch, capsys, tmp_path, f"{FILES} --skip_images none.txt", "retrieval")
    assert "--skip_images none.txt: no line, such as train.npz:999, is a file" in line


def test_the_first_lines_of_a_run_say_how_rows_are_normalized(folder, monkeypatch, capsys, tmp_path):
    (tmp_path / "train.npz").write_bytes((folder / "train.npz").read_bytes())
    words = (
        "--features train.npz --normalize standard --batch_size 32 --memorybank_size 32 --epochs 1 --sampler balanced"
    )
    run(monkeypatch, tmp_path, words)
    assert "features: 16 dimensions, normalized: standard; encoder mlp" in capsys.readouterr().out
    state = checkpoint.load(tmp_path / RUN / "rince_in_mlp_seed0")
    assert len(state["mean"]) == 16 and state["normalize"] == "standard"


@pytest.mark.parametrize("detector", ["knn --knn_k 5", "gaussian", "mahalanobis", "rmds"])
def test_every_detector_tells_outliers_of_a_file_from_the_classes(folder, monkeypatch, detector):
    for ckpt in ("", f"--ckpt {RUN}/rince --layer output"):
        words = f"{FILES} --features_outliers others.npz --detector {detector} {ckpt}"
        run(monkeypatch, folder, words, "out_of_dist_detection")
    found = [r for r in records(folder, "ood") if r["options"]["detector"] == detector.split()[0]]
    assert len(found) == 2 and all(r["metrics"]["AUROC"] > 60 for r in found)


@pytest.mark.parametrize("detector", ["msp", "energy"])
def test_detectors_on_logits_take_a_cross_entropy_head(folder, monkeypatch, detector):
    words = f"{FILES} --features_outliers others.npz --detector {detector} --ckpt {RUN}/ce"
    run(monkeypatch, folder, words, "out_of_dist_detection")


def test_a_probe_reads_classes_off_a_head_and_off_raw_features(folder, monkeypatch):
    for ckpt in ("", f"--ckpt {RUN}/rince"):
        run(monkeypatch, folder, f"{FILES} {ckpt} --epochs 5 --batch_size 32 --learning_rate 1", "main_linear")
    assert all(r["metrics"]["last"]["top-1"] > 35 for r in records(folder, "linear"))


def test_a_head_goes_on_from_a_checkpoint_to_the_same_weights(folder, monkeypatch, tmp_path):
    for name in ("train.npz", "val.npz"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    words = "--exp_name one --dropout 0.2 --noise 0.1 --model residual --batch_norm"
    run(monkeypatch, tmp_path, f"{SHORT} {words} --epochs 1")
    run(monkeypatch, tmp_path, f"{SHORT} {words} --epochs 3 --resume auto")
    run(monkeypatch, tmp_path, f"{SHORT} {words} --exp_name whole --epochs 1")
    run(monkeypatch, tmp_path, f"{SHORT} {words} --exp_name whole --epochs 3 --resume auto --print_freq 1")
    one, whole = (checkpoint.load(tmp_path / RUN / name / "last.pth")["model"] for name in ("one", "whole"))
    assert all(torch.equal(one[key], whole[key]) for key in one)


def test_classes_that_are_left_out_are_evaluated_among_themselves_by_a_file_of_their_own(folder, monkeypatch, tmp_path):
    make(tmp_path / "train.npz", 20, 1)
    make(tmp_path / "val.npz", 5, 2)
    excluded = " ".join(shlex.quote(name) for name in NAMES[::2])
    run(monkeypatch, tmp_path, f"{SHORT} --exp_name half --exclude_classes {excluded}")
    assert checkpoint.load(tmp_path / RUN / "half/last.pth")["classes"] == NAMES[1::2]
    words = f"--features_val val.npz --features val.npz --gallery test --ckpt {RUN}/half --layer output --labelset both"
    run(monkeypatch, tmp_path, words, "retrieval")
    assert result(tmp_path, "retrieval_features_half*")["images"]["test"] == 40


def test_classes_that_a_head_never_saw_are_asked_for_among_themselves(folder, monkeypatch, capsys, tmp_path):
    for name in ("train.npz", "val.npz"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "unseen.txt").write_text("class 0\n\nclass 2\nclass 4\n")
    excluded, seen = (" ".join(f"'class {c}'" for c in of) for of in ((0, 2, 4), (1, 3, 5, 6, 7)))
    run(monkeypatch, tmp_path, f"{SHORT} --exp_name part --exclude_classes {excluded}")
    capsys.readouterr()
    ways = {
        "excluded": "--classes excluded",
        "excluded of a config": f"--classes excluded --config {RUN}/part/config.yaml",
        "a file": "--classes unseen.txt",
        "all others left out": f"--exclude_classes {seen}",
    }
    for gallery, size in (("train", 60), ("test", 15)):
        found = {}
        for name, words in ways.items():
            where = f"--ckpt {RUN}/part --layer output --labelset both --ranking superclass --gallery {gallery}"
            folder_of = f"{gallery}_{name.replace(' ', '_')}"
            run(monkeypatch, tmp_path, f"{FILES} {where} {words} --save_folder {folder_of}/save", "retrieval")
            found[name] = result(tmp_path / folder_of, "retrieval*")
        for name in [*ways][:3]:
            assert found[name]["metrics"] == found["all others left out"]["metrics"]
            assert found[name]["classes"] == ["class 0", "class 2", "class 4"]
        assert found["excluded"]["images"] == {"train": size, "test": 15}
    assert "warning" not in capsys.readouterr().err
    run(monkeypatch, tmp_path, f"{FILES} --classes unseen.txt", "retrieval")
    assert result(tmp_path, "retrieval_features_raw_fine_unseen_*")["images"] == {"train": 60, "test": 15}
    outliers = f"--features_outliers val.npz --outlier_classes {excluded} --exclude_classes {excluded} --knn_k 5"
    where = f"{FILES} {outliers} --detector knn --ckpt {RUN}/part --layer output"
    run(monkeypatch, tmp_path, where, "out_of_dist_detection")
    assert result(tmp_path, "ood_features_*")["images"] == {"train": 100, "inliers": 25, "outliers": 15}


@pytest.mark.parametrize(
    ("script", "words", "line"),
    [
        ("main_supcon", f"{FILES} --size 32", "--size: has no use with --features"),
        ("main_supcon", f"{FILES} --colour 1", "--color: has no use with --features"),
        ("main_supcon", f"{FILES} --pretrained", "--pretrained: has no use with --features"),
        ("main_supcon", "--dropout 0.1", "--dropout: has no use without --features"),
        ("main_supcon", f"{FILES} --dropout 1", "--dropout 1: must be below 1"),
        ("main_supcon", f"{FILES} --model resnet8", "--model resnet8: is an encoder of images; of features: linear"),
        ("main_supcon", f"{FILES} --dataset digits", "--dataset digits: features and --features go together"),
        ("main_supcon", "--dataset features", "--dataset features: features and --features go together"),
        ("main_supcon", "--features nan.npz", "--features nan.npz: 2 of 160 rows are NaN, infinite or zero; the first"),
        ("main_supcon", "--features flat.npz --variant in", "RINCE needs a ranking of classes"),
        ("main_ce", "--features train.npz", "--features_val: give the features to evaluate"),
        (
            "main_ce",
            "--features half.npz --features_val val.npz",
            "val.npz: class class 4 is in validation, but",
        ),
        ("main_linear", f"{FILES} --cache_features False", "--cache_features False: features are not augmented"),
        ("retrieval", "--features train.npz --features_val wide.npz", "wide.npz: a row has 32 dimensions"),
        ("retrieval", f"--features wide.npz --features_val wide.npz --ckpt {RUN}/rince", "the encoder takes 16"),
        ("retrieval", f"{FILES} --ckpt {RUN}/ce --layer output", "--layer output"),
        ("retrieval", f"--ckpt {RUN}/rince", "is an encoder of features; give features"),
        ("retrieval", f"{FILES} --classes excluded", "--classes excluded: raw features have no checkpoint that lists"),
        ("retrieval", f"{FILES} --classes excluded --ckpt {RUN}/rince", "last.pth names no class that it was trained"),
        ("retrieval", f"{FILES} --classes none.txt", "--classes none.txt: no such file"),
        ("retrieval", f"{FILES} --classes empty.txt", "--classes empty.txt: holds no class name; write one per line"),
        ("retrieval", f"{FILES} --classes other.txt", "--classes other.txt: class cat: train has no such class; it"),
        (
            "out_of_dist_detection",
            f"{FILES} --dataset_outliers digits",
            "--features_outliers go together",
        ),
        ("out_of_dist_detection", f"{FILES} --features_outliers val.npz", "OOD images are validation images"),
    ],
)
def test_what_does_not_go_together_is_one_line(folder, monkeypatch, capsys, script, words, line):
    if not (folder / "nan.npz").exists():
        make(folder / "nan.npz", 20, 1)
        data = dict(np.load(folder / "nan.npz"))
        data["features"][[5, 70]] = np.nan
        np.savez(folder / "nan.npz", **data)
        make(folder / "wide.npz", 5, 2, features=np.ones((40, 32), np.float32))
        half = {key: value[:80] for key, value in dict(np.load(folder / "train.npz")).items()}
        np.savez(folder / "half.npz", **half)
        (folder / "empty.txt").write_text("\n")
        (folder / "other.txt").write_text("cat\n")
        np.savez(folder / "flat.npz", **{key: half[key] for key in ("features", "labels")})
    extra = "--batch_size 32 --memorybank_size 64" if script == "main_supcon" else ""
    assert line in error_of(monkeypatch, capsys, folder, f"{words} {extra}", script)

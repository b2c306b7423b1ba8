"""The ranking that a checkpoint carries: what retrieval measures the order of."""

import types

import pytest
import torch
from commands import error_of, result, run

import datasets
import util
from datasets import rankings
from engine.encoder import detectors, rank_consistency
from engine.run import checkpoint, resume

OWN = "save/SupCon/digits_models/own"
FILE = "class,zero,one,two\nzero,1,0.6,0.1\none,0.6,1,0.4\ntwo,0.1,0.4,1\n"


def net(ranking, classes=("zero", "one", "two")):
    return types.SimpleNamespace(ranking=ranking, record={"path": "a.pth", "classes": list(classes)})


TRAINED = torch.tensor([[1, 0.75, 0], [0.75, 1, 0], [0, 0, 1]])
SOURCE = torch.tensor([[1, 0.6, 0.1], [0.6, 1, 0.4], [0.1, 0.4, 1]], dtype=torch.float64)


KEPT = {"similarity": TRAINED, "source": SOURCE}


def find(ranking, kept, classes=("zero", "one", "two"), ranks=rankings.ALL, dataset="path"):
    return rank_consistency.find_similarity(ranking, ranks, net(kept), dataset, [*classes])


def test_a_checkpoints_ranking_is_the_one_it_was_trained_on_in_the_order_of_the_classes_that_are_evaluated():
    table = find("checkpoint", KEPT, ["two", "zero", "one"])
    assert torch.equal(table, torch.tensor([[1, 0, 0], [0, 1, 0.75], [0, 0.75, 1]]))
    assert torch.equal(find("checkpoint", KEPT, ["one", "zero"]), TRAINED[:2, :2])


def test_with_thresholds_or_a_rank_a_value_its_ranks_are_made_again_of_the_similarities_behind_it():
    both = find("checkpoint", KEPT, ranks=rankings.Ranks(thresholds=[0.5, 0.3]))
    assert torch.equal(both, torch.tensor([[1, 0.75, 0], [0.75, 1, 0.5], [0, 0.5, 1]]))
    assert torch.allclose(find("checkpoint", KEPT, ranks=rankings.Ranks(every_value=True)), SOURCE.float())


def test_any_other_ranking_is_read_as_in_training(tmp_path):
    (tmp_path / "r.csv").write_text(FILE)
    assert torch.allclose(find(f"{tmp_path}/r.csv", None, ["two", "one"]), torch.tensor([[1, 0.4], [0.4, 1]]))
    digits = datasets.build("digits", split="test").classes
    own = find("superclass", None, digits, dataset="digits")
    assert torch.equal(own, rankings.class_similarity("superclass", digits, superclasses="digits")[0])


CHANGED = "a.pth holds no table of its 3 classes: it was changed"


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (None, "--ranking checkpoint: a.pth holds no ranking: it is of an older version, or was trained without one"),
        ({"groups": torch.zeros(3, 1), "levels": ["a"]}, "a.pth was trained on groups without classes"),
        ({"source": SOURCE}, CHANGED),
        ({"similarity": TRAINED[:2], "source": SOURCE}, CHANGED),
        ({"similarity": TRAINED / 0, "source": SOURCE}, CHANGED),
        ([TRAINED], CHANGED),
        (KEPT, "lacks the class three of the data set"),
    ],
)
def test_a_checkpoint_without_a_table_of_its_classes_is_one_line(kept, reason):
    with pytest.raises(util.InputError, match=reason):
        find("checkpoint", kept, ["zero", "three"])


@pytest.mark.parametrize(
    ("now", "want"),
    [
        (KEPT, False),
        (KEPT | {"source": SOURCE / 2}, True),
        (KEPT | {"source": SOURCE.float().double()}, False),
        (KEPT | {"similarity": TRAINED[:2, :2]}, True),
        ({"groups": torch.zeros(3, 1), "levels": ["a"]}, True),
        (None, True),
    ],
)
def test_another_ranking_than_the_checkpoints_is_noticed(now, want):
    assert resume.is_other_ranking({"similarity": TRAINED.clone(), "source": SOURCE.clone()}, now) == want
    assert resume.is_other_ranking([1], now)
    groups = {"groups": torch.zeros(3, 1), "levels": ["a"]}
    assert resume.is_other_ranking(groups, {**groups, "levels": ["b"]})


@pytest.mark.parametrize(
    ("own", "levels", "rows"),
    [
        (["class"], ["genus", "family"], ["class", "genus", "family"]),
        (["class"], ["order", "class", "phylum"], ["class", "order", "level class", "phylum"]),
        (["class"], ["class", "level class", "ranks"], ["class", "level class", "level level class", "level ranks"]),
        ([], ["class", "ranks"], ["class", "level ranks"]),
    ],
)
def test_a_level_of_any_name_takes_no_row_of_ours(own, levels, rows):
    kept = {name: torch.tensor([i]) for i, name in enumerate([*own, *levels])}
    found = rank_consistency.add_levels({n: kept[n] for n in own}, dict(zip(levels, range(len(levels)), strict=True)))
    assert list(found) == rows and list(found.values())[len(own) :] == list(range(len(levels)))


# ---- outliers --------------------------------------------------------------------------------------------------------


def test_an_outlier_class_is_as_near_as_its_most_similar_training_class(tmp_path):
    (tmp_path / "r.csv").write_text(FILE)
    found = detectors.compute_nearness(f"{tmp_path}/r.csv", "path", ["zero", "two"], ["one"])
    assert found.tolist() == [0.6]
    digits = detectors.compute_nearness("superclass", "digits", list("01235679"), ["8", "4"])
    assert digits.tolist() == [0.75, 0.75]


def test_nearness_and_auroc_stand_side_by_side_with_their_rank_correlation():
    near, nan = torch.tensor([0.1, 0.2, 0.3, 0.9]), float("nan")
    found = detectors.correlate_nearness(near, torch.tensor([90.0, 80, 70, nan]), ["a", "b", "c", "without images"])
    assert found["Spearman"] == pytest.approx(-1) and found["p"] < 0.01
    assert found["classes"]["b"] == {"similarity": pytest.approx(0.2), "AUROC": 80} and len(found["classes"]) == 3
    for unknown in ([90.0, 80, nan, nan], [90.0, 90, 90, 90]):
        found = detectors.correlate_nearness(near, torch.tensor(unknown), list("abcd"))
        assert found["Spearman"] is None and found["p"] is None


# ---- whole commands --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run of one epoch on the digits' superclasses."""
    root = tmp_path_factory.mktemp("ordering")
    with pytest.MonkeyPatch.context() as patch:
        run(patch, root, "--epochs 1 --model resnet8 --batch_size 256 --hold_out 4 --exp_name own")
    return root


def test_the_order_is_measured_by_the_checkpoints_own_ranking_as_by_its_source(monkeypatch, capsys, trained):
    kept = checkpoint.load(trained / OWN)["ranking"]
    assert torch.equal(kept["similarity"].double(), kept["source"])
    evaluate = f"--hold_out 4 --ckpt {OWN} --labelset both"
    for name, options in (("a", "--ranking checkpoint"), ("b", "--ranking superclass"), ("c", "")):
        run(monkeypatch, trained, f"{evaluate} {options} --save_folder {name}/save", "retrieval")
    printed = capsys.readouterr().out
    a, b, c = (result(trained / name, "retrieval_*")["metrics"] for name in "abc")
    assert a == b and a.keys() - c.keys() == {"ranks"} and a["fine"] == c["fine"]
    assert list(a["ranks"]) == [
        "AUROC", "AUROC 0>1", "AUROC 1>2", "NDCG", "H-AP", "ASI", "nearest other", "Spearman", "Kendall",
    ]  # fmt: skip
    assert a["ranks"]["AUROC 0>1"] > 60 and 1 <= a["ranks"]["nearest other"] <= 2
    assert "ranks by similarity: 0: 1, 1: 0.75, 2: 0" in printed and "order of" in printed


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--thresholds 0.5", "--thresholds and --ranks: have no use without --ranking"),
        ("--ranking lacking.csv", "--ranking lacking.csv: lacks the class 0 of the data set"),
        ("--ranking one.yaml --thresholds 0.5 0.7", "--thresholds 0.5 0.7: must fall"),
        ("--ranking alike.csv", "--ranking alike.csv: has a single rank, so rank consistency is not defined"),
    ],
)
def test_a_ranking_that_does_not_fit_is_one_line_before_features_are_extracted(
    monkeypatch, capsys, trained, options, reason
):
    digits = [str(d) for d in range(10)]
    (trained / "lacking.csv").write_text(FILE)
    (trained / "one.yaml").write_text("a: [" + ", ".join(f'"{d}"' for d in digits) + "]\n")
    rows = [f"{d}," + ",".join("1" * 10) for d in digits]
    (trained / "alike.csv").write_text("\n".join(["class," + ",".join(digits), *rows]) + "\n")
    monkeypatch.setattr("engine.encoder.trained_encoder.extract_features", None)
    assert reason in error_of(monkeypatch, capsys, trained, f"--hold_out 4 --ckpt {OWN} {options}", "retrieval")


def test_a_resumed_run_says_that_its_ranking_is_another(monkeypatch, capsys, trained):
    (trained / "other.yaml").write_text('a: ["0", "1", "2", "3", "5"]\nb: ["6", "7", "8", "9"]\n')
    again = f"--model resnet8 --batch_size 256 --hold_out 4 --resume {OWN} --exp_name two --epochs 2"
    run(monkeypatch, trained, f"{again} --ranking other.yaml")
    assert "the ranking is another than the checkpoint was trained on" in capsys.readouterr().out
    run(monkeypatch, trained, again.replace("two", "three"))
    assert "the ranking is another" not in capsys.readouterr().out


def test_outlier_classes_are_drawn_by_their_nearness(monkeypatch, capsys, trained):
    command = f"--hold_out 4 --ckpt {OWN} --dataset_outliers digits --outlier_classes 4 --detector knn"
    run(monkeypatch, trained, f"{command} --ranking superclass", "out_of_dist_detection")
    record = result(trained, "ood_digits_*")
    near = {"similarity": 0.75, "AUROC": pytest.approx(record["metrics"]["AUROC"])}
    assert record["nearness"]["classes"] == {"4": near}
    assert "nearness" not in record["metrics"]  # one class has no rank correlation
    assert len(list((trained / "save/results").glob("ood_digits_*_nearness.png"))) == 1
    error = error_of(monkeypatch, capsys, trained, f"{command} --ranking lacking.csv", "out_of_dist_detection")
    assert "--ranking lacking.csv: lacks the class 0" in error
    error = error_of(monkeypatch, capsys, trained, f"{command} --ranking checkpoint", "out_of_dist_detection")
    assert "knows the classes that were trained on alone" in error

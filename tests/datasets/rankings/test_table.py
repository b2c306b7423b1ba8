"""Class similarity: the published figures, superclasses, files, and what is wrong with a bad file."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

import datasets
from datasets import rankings
from datasets.rankings import Ranks, class_similarity, files
from util import InputError

HERE = Path(datasets.__file__).parent
WNIDS = (HERE / "ImageNet-100.txt").read_text().split()


def write_csv(path, names, rows, header=None):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", *(header or names)])
        writer.writerows([n, *row] for n, row in zip(names, rows, strict=True))
    return str(path)


@pytest.mark.parametrize(("threshold", "pairs"), [(0.3, 1212), (0.4, 262), (0.5, 66), (0.6, 14)])
def test_published_cosines_give_the_published_number_of_similar_pairs(threshold, pairs):
    table, order = class_similarity("roberta_threshold", WNIDS, ranks=Ranks(thresholds=[threshold]))
    assert order == WNIDS
    assert int((table == 0.75).sum()) == pairs
    assert sorted(table.unique().tolist()) == [0, 0.75, 1]
    similar = (table > 0).sum(1) - 1
    if threshold == 0.4:  # the published one
        assert (int((similar == 0).sum()), int(similar.max())) == (25, 10)


def test_several_thresholds_give_one_rank_each_up_to_hierarchy_k():
    table, _ = class_similarity("roberta_threshold", WNIDS, ranks=Ranks(thresholds=[0.6, 0.4]))
    assert int((table == 0.75).sum()) == 14
    assert int((table == 0.5).sum()) == 262 - 14
    table, _ = class_similarity("roberta_threshold", WNIDS, ranks=Ranks(thresholds=[0.6, 0.4], hierarchy_k=1))
    assert int((table > 0).sum()) == 100 + 14


def test_cifar100_has_20_superclasses_of_5_classes():
    groups = rankings.read_shipped("cifar100")
    classes = sorted(c for members in groups.values() for c in members)
    assert len(groups) == 20
    assert len(set(classes)) == 100
    table, _ = class_similarity("superclass", classes, superclasses="cifar100", ranks=Ranks(similarity_threshold=0.5))
    assert table.diagonal().eq(1).all()
    assert ((table == 0.75).sum(1) == 4).all()
    assert table[classes.index("baby"), classes.index("woman")] == 0.75


def test_the_superclasses_of_fashion_mnist_cover_its_classes():
    from torchvision.datasets import FashionMNIST

    class_similarity("superclass", list(FashionMNIST.classes), superclasses="fashion_mnist")


def test_n_sim_classes_counts_the_own_class_and_keeps_the_nearest():
    table = np.array([[1, 0.5, 0.75, 0], [0.5, 1, 0, 0], [0.75, 0, 1, 0.5], [0, 0, 0.5, 1]])
    assert torch.equal(rankings.assign_ranks(table, Ranks(n_sim_classes=1)), torch.eye(4))
    assert rankings.assign_ranks(table, Ranks(n_sim_classes=2))[0].tolist() == [1, 0, 0.75, 0]


def test_similarities_below_the_threshold_become_unrelated():
    table = np.array([[1, 0.5, 0.25], [0.5, 1, 0], [0.25, 0, 1]])
    found = rankings.assign_ranks(table, Ranks(similarity_threshold=0.5))
    assert found.tolist() == [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]


SQUARE = [[1, 0.5], [0.5, 1]]
BAD = {
    "lacks the class c": (["a", "b"], SQUARE, None),
    "not symmetric": (["a", "c"], [[1, 0.5], [0.25, 1]], None),
    "is 1.5, not in": (["a", "c"], [[1, 1.5], [1.5, 1]], None),
    "is nan, not in": (["a", "c"], [[1, "nan"], ["nan", 1]], None),
    "with itself is 0.9": (["a", "c"], [[1, 0.5], [0.5, 0.9]], None),
    "must be a square": (["a", "c"], [[1, 0.5, 0], [0.5, 1, 0]], ["a", "c", "d"]),
    "name the same classes": (["a", "c"], SQUARE, ["c", "a"]),
    "not readable": (["a", "c"], [[1, "x"], ["x", 1]], None),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_ranking_file_is_named_with_its_fault(tmp_path, reason):
    names, rows, header = BAD[reason]
    path = write_csv(tmp_path / "r.csv", names, rows, header)
    with pytest.raises(InputError, match=reason) as error:
        class_similarity(path, ["a", "c"])
    assert "--ranking" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "below 0; give --thresholds, published"),
        ({"thresholds": [0.4, 0.6]}, "must fall"),
        ({"thresholds": [0.8, 0.6, 0.5, 0.4]}, "at most 3"),
        ({"thresholds": [0.4], "n_sim_classes": 0}, "at least 1"),
        ({"thresholds": [0.4], "every_value": True}, "--ranks and --thresholds: give one;"),
    ],
)
def test_bad_ranking_options_are_named(options, reason):
    with pytest.raises(InputError, match=reason):
        class_similarity("roberta_threshold", WNIDS, ranks=Ranks(**options))


def test_a_ranking_that_is_no_file_and_no_name_lists_the_names():
    with pytest.raises(InputError, match="no such file or folder, and none of identity, superclass, inaturalist"):
        class_similarity("robreta", ["a"])


def test_an_npz_is_a_ranking_as_a_csv_is(tmp_path):
    rows = np.array([[1, 0.5, 0], [0.5, 1, 0.25], [0, 0.25, 1]])
    for name in ("r.csv", "r.npz"):
        files.write_matrix(tmp_path / name, rows, ["a", "b", "c"], "made by hand")
        table, classes = files.read_matrix(tmp_path / name)
        assert classes == ["a", "b", "c"]
        assert (table == rows).all()
        similarity, _ = class_similarity(str(tmp_path / name), ["c", "a", "b"])
        assert similarity.tolist() == [[1, 0, 0.25], [0, 1, 0.5], [0.25, 0.5, 1]]


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_thresholds_are_met_by_the_numbers_of_an_npz_as_by_those_of_a_csv(tmp_path, kind):
    steps = np.round(np.random.default_rng(0).choice(np.arange(0, 1, 0.05), (14, 14)), 2)
    table = np.triu(steps, 1) + np.triu(steps, 1).T + np.eye(14)
    names = [f"c{i}" for i in range(14)]
    files.write_matrix(tmp_path / "r.csv", table, names, "made")
    np.savez(tmp_path / "r.npz", similarity=table.astype(kind), classes=np.array(names))
    found = []
    for name in ("r.csv", "r.npz"):
        for how in ({"thresholds": [0.9, 0.6, 0.3]}, {"similarity_threshold": 0.7, "every_value": True}):
            found.append(class_similarity(f"{tmp_path}/{name}", names, ranks=Ranks(**how))[0])
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])
    assert int((found[0] == 0.75).sum()) == int(((table >= 0.9) & (table < 1)).sum())
    assert int((found[1] > 0).sum()) == int((table >= 0.7).sum())


def test_a_number_below_a_threshold_by_its_own_precision_is_below_it():
    below = np.nextafter(np.float32(0.9), np.float32(0))
    table = np.array([[1, below, 0.9], [below, 1, 0.1], [0.9, 0.1, 1]], np.float32)
    assert rankings.assign_ranks(table, Ranks(thresholds=[0.9]))[0].tolist() == [1, 0, 0.75]


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_a_number_of_few_digits_is_read_as_it_is_printed(kind):
    x = np.random.default_rng(0).uniform(-1, 1, 5000).astype(kind)
    read = files.widen_numbers(x)
    assert (read.astype(kind) == x).all() and np.abs(read - [float(str(v)) for v in x]).max() < 1e-5
    short = np.arange(-100, 101) / 100
    assert (files.widen_numbers(short.astype(kind)) == short).all()


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"similarity": np.eye(2)}, "classes is not a file|not readable as arrays"),
        ({"similarity": np.eye(3), "classes": np.array(["a", "b"])}, "must be a square"),
        ({"similarity": np.ones((2, 3)), "classes": np.array(["a", "b"])}, "must be a square"),
        ({"similarity": np.eye(2), "classes": np.array(["a", "a"])}, "class a is there twice"),
        ({"similarity": np.eye(2), "classes": np.array(["a", None])}, "not readable as arrays"),
        ({"similarity": np.array([["x", "y"]] * 2), "classes": np.array(["a", "b"])}, "not readable as arrays"),
        (b"", "not readable as arrays"),
        (b"PK", "not readable as arrays"),
        (b"class,a", "not readable as arrays"),
    ],
)
def test_a_bad_npz_is_named_and_no_pickle_in_it_is_run(tmp_path, arrays, reason):
    if isinstance(arrays, bytes):
        (tmp_path / "r.npz").write_bytes(arrays)
    else:
        np.savez(tmp_path / "r.npz", **arrays)
    with pytest.raises(InputError, match=reason) as error:
        class_similarity(str(tmp_path / "r.npz"), ["a", "b"])
    assert f"--ranking {tmp_path / 'r.npz'}" in str(error.value)


@pytest.mark.parametrize("name", ["r.csv", "r.npz"])
def test_a_similarity_that_is_no_number_is_not_written(tmp_path, name):
    with pytest.raises(InputError, match="the similarity of a and b is not a number; nothing is written"):
        files.write_matrix(tmp_path / name, np.array([[1, np.nan], [np.nan, 1]]), ["a", "b"], "made")
    assert not list(tmp_path.iterdir())


def test_ranks_makes_a_rank_of_every_value_however_many():
    table = np.eye(9)
    a, b = np.triu_indices(9, k=1)
    table[a, b] = table[b, a] = np.linspace(0.1, 0.9, len(a))
    with pytest.raises(InputError, match="37 distinct values would be 37 ranks; give --thresholds, or --ranks"):
        rankings.assign_ranks(table)
    assert len(rankings.assign_ranks(table, Ranks(every_value=True)).unique()) == 37
    many = np.eye(20)
    a, b = np.triu_indices(20, k=1)
    many[a, b] = many[b, a] = np.linspace(0.1, 0.9, len(a))
    with pytest.raises(InputError, match=r"191 distinct values would be 191 ranks; give --thresholds$"):
        rankings.assign_ranks(many, Ranks(every_value=True))


def test_a_run_says_what_it_trains_on():
    classes = ["n01558993", "grey_wolf", "red+fox", "car", "lorry", "spoon"]
    raw = np.eye(6)
    for a, b, value in ((0, 1, 0.45), (1, 2, 0.7), (3, 4, 0.62), (0, 5, 0.1)):
        raw[a, b] = raw[b, a] = value
    table = rankings.assign_ranks(raw, Ranks(thresholds=[0.6, 0.4]))
    lines = rankings.summarize_ranking(table, (0.1, 0.225, 0.35), raw, classes, torch.tensor([5, 10, 20, 30, 40, 50]))
    assert lines == [
        "rank 0: similarity 1, tau 0.1; positives of a class 1 classes, 5/25/50 images (min/median/max)",
        "rank 1: similarity 0.75, from 0.62 to 0.7, tau 0.225; positives of a class 0/1/1 classes, 0/15/40 images",
        "rank 2: similarity 0.5, from 0.45 to 0.45, tau 0.35; positives of a class 0/0/1 classes, 0/0/10 images",
        "1 classes without a related class: spoon",
        "e.g. grey wolf: red fox 0.7, robin 0.45",
        "e.g. car: lorry 0.62",
    ]


def test_without_similar_classes_there_is_one_line():
    lines = rankings.summarize_ranking(torch.eye(3), (0.1,), np.eye(3), ["a", "b", "c"], torch.tensor([4, 4, 4]))
    assert lines == ["rank 0: similarity 1, tau 0.1; positives of a class 1 classes, 4 images"]


def test_names_in_words_know_the_400_wnids_of_inliers_and_outliers():
    lists = ["ImageNet-100.txt", *(f"imagenet_outliers_split{i}.txt" for i in (1, 2, 3))]
    wnids = [w for f in lists for w in (HERE / f).read_text().split()]
    words = files.name_classes(wnids)
    assert len(set(words.values())) == 400
    assert (words["n02085620"], files.name_classes(["a_b"])["a_b"]) == ("Chihuahua", "a b")

"""Class similarity: the published figures, superclasses, files, and what is wrong with a bad file."""

import csv
from pathlib import Path

import pytest
import torch

from datasets import ranking_files, rankings, sources
from datasets.rankings import class_similarity
from util import InputError

HERE = Path(rankings.__file__).parent
WNIDS = (HERE / "ImageNet-100.txt").read_text().split()


def write_csv(path, names, rows, header=None):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", *(header or names)])
        writer.writerows([n, *row] for n, row in zip(names, rows, strict=True))
    return str(path)


@pytest.mark.parametrize(("threshold", "pairs"), [(0.3, 1212), (0.4, 262), (0.5, 66), (0.6, 14)])
def test_published_cosines_give_the_published_number_of_similar_pairs(threshold, pairs):
    table, order = class_similarity("roberta_threshold", WNIDS, thresholds=[threshold])
    assert order == WNIDS
    assert int((table == 0.75).sum()) == pairs
    assert sorted(table.unique().tolist()) == [0, 0.75, 1]


def test_at_the_published_threshold_25_classes_have_no_similar_class_and_none_more_than_10():
    table, _ = class_similarity("roberta_threshold", WNIDS, thresholds=[0.4])
    similar = (table > 0).sum(1) - 1
    assert int((similar == 0).sum()) == 25
    assert int(similar.max()) == 10


def test_several_thresholds_give_one_rank_each_up_to_hierarchy_k():
    table, _ = class_similarity("roberta_threshold", WNIDS, thresholds=[0.6, 0.4])
    assert int((table == 0.75).sum()) == 14
    assert int((table == 0.5).sum()) == 262 - 14
    table, _ = class_similarity("roberta_threshold", WNIDS, thresholds=[0.6, 0.4], hierarchy_k=1)
    assert int((table > 0).sum()) == 100 + 14


def test_rows_follow_the_data_sets_class_order():
    table, _ = class_similarity("roberta_threshold", WNIDS, thresholds=[0.4])
    flipped, order = class_similarity("roberta_threshold", WNIDS[::-1], thresholds=[0.4])
    assert order == WNIDS[::-1]
    assert torch.equal(flipped, table.flip(0, 1))


def test_the_four_class_lists_hold_100_wnids_each_and_do_not_overlap():
    files = ["ImageNet-100.txt", *(f"imagenet_outliers_split{i}.txt" for i in (1, 2, 3))]
    lists = [(HERE / f).read_text().split() for f in files]
    assert all(len(set(x)) == 100 and sorted(x) == x for x in lists)
    assert len(set().union(*lists)) == 400


def test_cifar100_has_20_superclasses_of_5_classes():
    groups = ranking_files.known_superclasses("cifar100")
    classes = sorted(c for members in groups.values() for c in members)
    assert len(groups) == 20
    assert len(set(classes)) == 100
    table, _ = class_similarity("superclass", classes, superclasses="cifar100", similarity_threshold=0.5)
    assert table.diagonal().eq(1).all()
    assert ((table == 0.75).sum(1) == 4).all()
    assert table[classes.index("baby"), classes.index("woman")] == 0.75


def test_every_named_superclass_file_covers_its_data_set():
    _, _, digits = sources.digits(Path(), "train")
    class_similarity("superclass", digits, superclasses="digits")
    from torchvision.datasets import FashionMNIST

    class_similarity("superclass", list(FashionMNIST.classes), superclasses="fashion_mnist")


def test_n_sim_classes_counts_the_own_class_and_keeps_the_nearest():
    names = ["a", "b", "c", "d"]
    groups = torch.tensor([[1, 0.5, 0.75, 0], [0.5, 1, 0, 0], [0.75, 0, 1, 0.5], [0, 0, 0.5, 1]])
    assert torch.equal(similarity_of(groups, names, n_sim_classes=1), torch.eye(4))
    two = similarity_of(groups, names, n_sim_classes=2)
    assert two[0].tolist() == [1, 0, 0.75, 0]


def test_similarities_below_the_threshold_become_unrelated():
    names = ["a", "b", "c"]
    rows = torch.tensor([[1, 0.5, 0.25], [0.5, 1, 0], [0.25, 0, 1]])
    table = similarity_of(rows, names, similarity_threshold=0.5)
    assert table.tolist() == [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]


def similarity_of(rows, names, **options):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return class_similarity(write_csv(Path(folder) / "r.csv", names, rows.tolist()), names, **options)[0]


def test_a_yaml_of_superclasses_is_a_ranking(tmp_path):
    path = tmp_path / "groups.yaml"
    path.write_text("animals: [cat, dog]\nthings: [car]\n")
    table, _ = class_similarity(str(path), ["car", "cat", "dog"])
    assert table.tolist() == [[1, 0, 0], [0, 1, 0.75], [0, 0.75, 1]]


SQUARE = [[1, 0.5], [0.5, 1]]
BAD = {
    "lacks the class c": (["a", "b"], SQUARE, None),
    "not symmetric": (["a", "c"], [[1, 0.5], [0.25, 1]], None),
    "is 1.5, not in": (["a", "c"], [[1, 1.5], [1.5, 1]], None),
    "is nan, not in": (["a", "c"], [[1, "nan"], ["nan", 1]], None),
    "with itself is 0.9": (["a", "c"], [[1, 0.5], [0.5, 0.9]], None),
    "must be square": (["a", "c"], [[1, 0.5, 0], [0.5, 1, 0]], ["a", "c", "d"]),
    "name the same classes": (["a", "c"], SQUARE, ["c", "a"]),
    "below 0; give --thresholds": (["a", "c"], [[1, -0.5], [-0.5, 1]], None),
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
        ({}, "below 0; give --thresholds .--roberta_float_threshold"),
        ({"thresholds": [0.4, 0.6]}, "must fall"),
        ({"thresholds": [0.8, 0.6, 0.5, 0.4]}, "at most 3"),
        ({"thresholds": [0.4], "n_sim_classes": 0}, "at least 1"),
    ],
)
def test_bad_ranking_options_are_named(options, reason):
    with pytest.raises(InputError, match=reason):
        class_similarity("roberta_threshold", WNIDS, **options)


def test_a_class_that_stands_in_two_superclasses_is_named(tmp_path):
    path = tmp_path / "groups.yaml"
    path.write_text("animals: [cat, dog]\npets: [cat]\n")
    with pytest.raises(InputError, match="class cat stands in it twice"):
        class_similarity(str(path), ["cat", "dog"])


def test_a_ranking_that_is_no_file_and_no_name_lists_the_names():
    with pytest.raises(InputError, match="identity, superclass, roberta_threshold"):
        class_similarity("robreta", ["a"])

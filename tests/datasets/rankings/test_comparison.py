"""Rankings held against one another, and what training would find of them: references, ends, whole commands."""

import itertools
import re

import numpy as np
import pytest
import reference
import torch
from commands import error_of, run
from PIL import Image

from datasets.rankings import comparison
from datasets.rankings.files import write_matrix


def table(seed, classes=6, values=None):
    rng = np.random.default_rng(seed)
    found = rng.choice(values, (classes, classes)) if values else rng.uniform(0, 1, (classes, classes))
    found = np.triu(found, 1)
    return found + found.T + np.eye(classes)


KINDS = [(None, None), ((0, 0.5, 0.75), None), ((0, 0.75), (0, 0.5, 0.75))]


@pytest.mark.parametrize(("of_a", "of_b"), KINDS)
def test_mantels_test_equals_its_reference_over_every_order_of_the_classes(monkeypatch, of_a, of_b):
    a, b = table(0, 5, of_a), table(1, 5, of_b)
    orders = [list(o) for o in itertools.permutations(range(5))]
    rho, p = reference.mantel_exact(a.tolist(), b.tolist(), orders)
    found, most, share = comparison.correlate(a, b, permutations=4000)
    assert found == pytest.approx(rho) and rho <= most <= 1 + 1e-12
    assert share == pytest.approx(p, abs=0.03)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("of_a", "of_b"), KINDS)
def test_the_overlap_of_the_nearest_is_the_mean_over_every_way_to_break_ties(seed, of_a, of_b):
    a, b = table(seed, 6, of_a), table(seed + 9, 6, of_b)
    for k in (1, 3, 5):
        found, most, chance = comparison.measure_overlap(a, b, k)
        assert found == pytest.approx(reference.overlap(a.tolist(), b.tolist(), k)) and chance == k / 5
        assert found <= most + 1e-12 and most <= 1 + 1e-12


def test_a_ranking_agrees_with_itself_and_with_any_that_keeps_its_order_and_not_with_noise():
    a, rng = table(0, 30), np.random.default_rng(0)
    assert comparison.correlate(a, a, 99) == pytest.approx((1, 1, 0.01))
    assert comparison.correlate(a, a**3, 99) == pytest.approx((1, 1, 0.01))
    assert comparison.correlate(a, 1 - a, 99)[0] == pytest.approx(-1)
    assert comparison.correlate(a, table(5, 30), 99)[:2] == pytest.approx(comparison.correlate(table(5, 30), a, 99)[:2])
    order = rng.permutation(30)
    noise = [comparison.correlate(a, table(seed, 30), 99)[2] for seed in range(10, 50)]
    assert np.mean(np.array(noise) < 0.05) <= 0.15  # a test at 5 %
    assert abs(comparison.correlate(a, a[order][:, order], 99)[0]) < 0.3
    assert comparison.measure_overlap(a, a, 4)[0] == 1


def test_the_largest_rho_of_two_superclasses_is_reached_by_equal_ones_alone():
    groups = np.kron(np.eye(5), np.ones((4, 4))) * 0.75
    np.fill_diagonal(groups, 1)
    fine = table(3, 20) * 0.1 + groups * 0.5
    np.fill_diagonal(fine, 1)
    rho, most, _ = comparison.correlate(groups, fine, 9)
    assert rho == pytest.approx(most) and most < 0.75
    found, at_most, _ = comparison.measure_overlap(groups, fine, 5)  # three siblings, and two of the sixteen others
    assert found == pytest.approx(at_most) == pytest.approx((3 + 2 * 2 / 16) / 5)
    assert comparison.correlate(groups, groups, 9)[1] == pytest.approx(1)


def test_a_table_of_one_similarity_correlates_with_nothing():
    found = comparison.compare_pairs({"a": np.eye(5), "b": table(0, 5)}, 2, 9)["a", "b"]
    assert np.isnan([found["rho"], found["at most"], found["p"]]).all()
    assert found["overlap %"] == pytest.approx(50) == found["chance level %"]


def test_what_is_foreseen_of_the_ranks_is_what_every_bank_drawn_at_random_has():
    similarity = torch.tensor([[1, 0.75, 0.75, 0], [0.75, 1, 0.5, 0], [0.75, 0.5, 1, 0], [0, 0, 0, 1]])
    found = comparison.foresee_ranks(similarity, 6)
    ranks = [found[name] for name in ("0", "1", "2")]
    assert [rank["similarity"] for rank in ranks] == [1, 0.75, 0.5]
    assert [(row["fewest"], row["most"]) for row in found.values()] == [(1, 1), (0, 2), (0, 1), (0, 2)]
    assert [row["none %"] for row in found.values()] == [0, 25, 50, 25]
    related = [similarity == rank["similarity"] for rank in ranks] + [(similarity > 0) & (similarity < 1)]
    banks = list(itertools.product(range(4), repeat=6))  # all equally likely
    for row, at in zip(found.values(), related, strict=True):
        counts = [[sum(bool(of[key]) for key in bank) for bank in banks] for of in at]
        assert row["keys"] == pytest.approx(np.mean(counts))
        empty = [np.mean(np.array(n) == 0) for n, of in zip(counts, at, strict=True) if of.any()]
        assert row["empty %"] == pytest.approx(100 * np.mean(empty))
    alone = comparison.foresee_ranks(torch.eye(4), 9)["similar"]
    assert alone["none %"] == 100 and np.isnan(alone["empty %"])


# ---- whole commands --------------------------------------------------------------------------------------------------


def test_rankings_are_compared_over_their_common_classes_and_drawn(monkeypatch, capsys, tmp_path):
    names = [str(d) for d in range(10)]
    write_matrix(tmp_path / "r.csv", table(0, 10), names, "random")
    write_matrix(tmp_path / "small.csv", table(1, 8), names[2:], "random")
    run(monkeypatch, tmp_path, "compare digits r.csv small.csv --thresholds 0.6 --k 2 --out new/c.png", "rankings")
    printed = capsys.readouterr().out
    assert "8 classes that all have; left out: 2 of digits, 2 of r.csv" in printed
    for line in ("digits, r.csv ", "digits, small.csv ", "r.csv, small.csv ", "ranks of digits ", "ranks of r.csv "):
        assert f"\n{line}" in printed
    assert re.search(r"\n1 +0\.75 +\d", printed)
    with Image.open(tmp_path / "new/c.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    run(monkeypatch, tmp_path, "compare r.csv --ranks", "rankings")
    assert "\n45 " in capsys.readouterr().out and (tmp_path / "compare.png").exists()
    (tmp_path / "five.yaml").write_text("pets: [cat, dog]\nvehicles: [car, bus, van]\n")
    run(monkeypatch, tmp_path, "compare five.yaml --bank 64", "rankings")  # fewer classes than k has by default
    assert "ranks of five.yaml" in capsys.readouterr().out
    run(monkeypatch, tmp_path, "compare r.csv", "rankings")
    assert "r.csv: training cannot use it as it is: 46 distinct values would be 46 ranks;" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("none.csv", "compare none.csv: no such file or folder, and none of cifar100, clinc150, digits,"),
        ("digits --tresholds 0.4", "did you mean --thresholds?"),
        ("r.csv r.csv", "compare r.csv: is given twice"),
        ("superclass r.csv", "compare superclass: no such file or folder, and none of cifar100, clinc150, digits,"),
        ("r.csv other.csv", "compare: 0 classes are in all rankings (of r.csv 6, other.csv 6); at least 4 are needed"),
        ("r.csv --k 6", "--k 6: must be below the number of classes, 6"),
        ("r.csv --out c.txt", "--out c.txt: a picture's name ends in"),
    ],
)
def test_what_cannot_be_compared_is_one_line(monkeypatch, capsys, tmp_path, words, reason):
    write_matrix(tmp_path / "r.csv", table(0), list("abcdef"), "random")
    write_matrix(tmp_path / "other.csv", table(0), list("uvwxyz"), "random")
    assert reason in error_of(monkeypatch, capsys, tmp_path, f"compare {words}", "rankings")
    assert not (tmp_path / "compare.png").exists()

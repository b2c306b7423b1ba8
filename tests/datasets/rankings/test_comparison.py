"""Rankings held against one another, and what training would find of them: references, ends, words, whole commands."""

import itertools

import numpy as np
import pytest
import reference
import torch
from commands import error_of, run
from PIL import Image

from datasets.rankings import Ranks, comparison
from datasets.rankings.files import write_table


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
    found, most, share = comparison.mantel(a, b, permutations=4000)
    assert found == pytest.approx(rho) and rho <= most <= 1 + 1e-12
    assert share == pytest.approx(p, abs=0.03)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("of_a", "of_b"), KINDS)
def test_the_overlap_of_the_nearest_is_the_mean_over_every_way_to_break_ties(seed, of_a, of_b):
    a, b = table(seed, 6, of_a), table(seed + 9, 6, of_b)
    for k in (1, 3, 5):
        found, most, chance = comparison.overlap(a, b, k)
        assert found == pytest.approx(reference.overlap(a.tolist(), b.tolist(), k)) and chance == k / 5
        assert found <= most + 1e-12 and most <= 1 + 1e-12


def test_a_ranking_agrees_with_itself_and_with_any_that_keeps_its_order_and_not_with_noise():
    a, rng = table(0, 30), np.random.default_rng(0)
    assert comparison.mantel(a, a, 99) == pytest.approx((1, 1, 0.01))
    assert comparison.mantel(a, a**3, 99) == pytest.approx((1, 1, 0.01))
    assert comparison.mantel(a, 1 - a, 99)[0] == pytest.approx(-1)
    assert comparison.mantel(a, table(5, 30), 99)[:2] == pytest.approx(comparison.mantel(table(5, 30), a, 99)[:2])
    order = rng.permutation(30)
    noise = [comparison.mantel(a, table(seed, 30), 99)[2] for seed in range(10, 50)]
    assert np.mean(np.array(noise) < 0.05) <= 0.15  # a test at 5 %
    assert abs(comparison.mantel(a, a[order][:, order], 99)[0]) < 0.3
    assert comparison.overlap(a, a, 4)[0] == 1


def test_the_largest_rho_of_two_superclasses_is_reached_by_equal_ones_alone():
    groups = np.kron(np.eye(5), np.ones((4, 4))) * 0.75
    np.fill_diagonal(groups, 1)
    fine = table(3, 20) * 0.1 + groups * 0.5
    np.fill_diagonal(fine, 1)
    rho, most, _ = comparison.mantel(groups, fine, 9)
    assert rho == pytest.approx(most) and most < 0.75
    found, at_most, _ = comparison.overlap(groups, fine, 5)  # three sisters, and two of the sixteen others
    assert found == pytest.approx(at_most) == pytest.approx((3 + 2 * 2 / 16) / 5)
    assert comparison.mantel(groups, groups, 9)[1] == pytest.approx(1)


def test_a_table_of_one_similarity_correlates_with_nothing():
    with pytest.raises(ValueError, match="equally similar"):
        comparison.mantel(np.eye(5), table(0, 5))
    found = comparison.agreement({"a": np.eye(5), "b": table(0, 5)}, 2, 9, 0)["a", "b"]
    assert found["rho"] is None and found["overlap"][0] == pytest.approx(0.5)  # by chance


def test_the_outlook_counts_what_a_bank_drawn_at_random_has():
    similarity = torch.tensor([[1, 0.75, 0.75, 0], [0.75, 1, 0.5, 0], [0.75, 0.5, 1, 0], [0, 0, 0, 1]])
    found = comparison.outlook(similarity, 6)
    assert [rank["similarity"] for rank in found] == [1, 0.75, 0.5]
    assert [rank["classes"] for rank in found] == [(1, 1), (0, 2), (0, 1)]
    assert [rank["without"] for rank in found] == [0, 0.25, 0.5]
    banks = list(itertools.product(range(4), repeat=6))  # all equally likely
    for rank in found:
        of = [[c for c in range(4) if float(similarity[anchor, c]) == rank["similarity"]] for anchor in range(4)]
        counts = [[sum(key in at for key in bank) for bank in banks] for at in of]
        assert rank["keys"] == pytest.approx(np.mean(counts))
        none = [np.mean(np.array(n) == 0) for n, at in zip(counts, of, strict=True) if at]
        assert rank["empty"] == pytest.approx(np.mean(none))
    assert comparison.lonely(similarity, list("abcd")) == ["d"]


@pytest.mark.parametrize(
    ("rho", "most", "p", "words"),
    [
        (0.9, 1.0, 0.001, "Spearman 0.90, p 0.001: much alike"),
        (0.3, 0.34, 0.001, "Spearman 0.30 of at most 0.34, p 0.001: much alike"),
        (0.3, 1.0, 0.001, "related"),
        (0.1, 1.0, 0.01, "hardly alike"),
        (0.5, 1.0, 0.2, "no more than chance would give"),
        (1.0, 1.0, 0.3, "alike, of too few classes to tell it from chance"),
        (-0.03, 1.0, 0.04, "hardly alike"),
        (-0.5, 1.0, 0.001, "contradict"),
    ],
)
def test_a_verdict_says_what_the_numbers_carry(rho, most, p, words):
    assert words in comparison.verdict("a", "b", rho, most, p)


def test_what_stands_in_the_way_of_training_is_said_with_what_to_do():
    similarity = torch.tensor([[1, 0.75, 0, 0], [0.75, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    names = ["a", "b", "c", "d"]
    lines = comparison.as_trained("r", similarity.numpy(), Ranks(), names, 2)
    assert lines[1] == "r: rank 1, similarity 0.75: a class has 0 to 1 classes, an anchor 0.2 keys in a bank of 2"
    assert "2 of 4 classes have no similar one, and are trained as SCL does: c, d" in lines[2]
    assert "in a bank of 2, rank 1 is empty for 56 % of the anchors" in "\n".join(lines)
    assert "no class has a similar one: this is SCL" in comparison.as_trained("r", np.eye(4), Ranks(), names, 9)[-1]
    alike = np.full((4, 4), 0.5) + np.eye(4) / 2
    assert "more than half of the bank is similar" in comparison.as_trained("r", alike, Ranks(), names, 99)[-1]
    (line,) = comparison.as_trained("r", table(0, 20), Ranks(), names * 5, 99)
    assert line.startswith(
        "r: not to be trained on as it is: 191 distinct values would be 191 ranks; give --thresholds"
    )


# ---- whole commands --------------------------------------------------------------------------------------------------


def test_rankings_are_compared_over_their_common_classes_and_drawn(monkeypatch, capsys, tmp_path):
    names = [str(d) for d in range(10)]
    write_table(tmp_path / "r.csv", table(0, 10), names, "random")
    write_table(tmp_path / "small.csv", table(1, 8), names[2:], "random")
    run(monkeypatch, tmp_path, "compare digits r.csv small.csv --thresholds 0.6 --k 2 --out new/c.png", "rankings")
    printed = capsys.readouterr().out
    assert "8 classes that all have; left out: 2 of digits, 2 of r.csv" in printed
    assert "digits and r.csv: Spearman" in printed and "r.csv and small.csv: share" in printed
    assert "r.csv: rank 1, similarity 0.75" in printed and "digits: rank 1, similarity 0.75" in printed
    with Image.open(tmp_path / "new/c.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    run(monkeypatch, tmp_path, "compare r.csv --ranks", "rankings")
    assert "r.csv: rank 45" in capsys.readouterr().out and (tmp_path / "compare.png").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("none.csv", "compare none.csv: no such file, and none of cifar100, digits,"),
        ("digits --tresholds 0.4", "did you mean --thresholds?"),
        ("r.csv r.csv", "compare r.csv: is there twice"),
        ("superclass r.csv", "compare superclass: of which data set? give one of"),
        ("r.csv other.csv", "compare: 0 classes are in all rankings (of r.csv 6, other.csv 6); at least 4 are needed"),
        ("r.csv --k 6", "--k 6: must be below the number of classes, 6"),
        ("r.csv --out c.txt", "--out c.txt: a picture's name ends in"),
    ],
)
def test_what_cannot_be_compared_is_one_line(monkeypatch, capsys, tmp_path, words, reason):
    write_table(tmp_path / "r.csv", table(0), list("abcdef"), "random")
    write_table(tmp_path / "other.csv", table(0), list("uvwxyz"), "random")
    assert reason in error_of(monkeypatch, capsys, tmp_path, f"compare {words}", "rankings")
    assert not (tmp_path / "compare.png").exists()

"""Measures of the order of ranks equal their loop reference and scikit-learn, ties included; their ends and middles."""

import pytest
import reference
import torch
from scipy.stats import kendalltau, spearmanr
from sklearn.metrics import ndcg_score

from evaluation import Levels, class_correlation, rank_metrics, retrieval_metrics

TABLES = {
    "superclasses": [[1, 0.75, 0, 0], [0.75, 1, 0, 0], [0, 0, 1, 0.75], [0, 0, 0.75, 1]],
    "three ranks": [[1, 0.75, 0.5, 0], [0.75, 1, 0.5, 0], [0.5, 0.5, 1, 0], [0, 0, 0, 1]],
    "one rank": torch.eye(4).tolist(),
    "nothing unrelated": [[1, 0.5, 0.25, 0.25], [0.5, 1, 0.25, 0.25], [0.25, 0.25, 1, 0.5], [0.25, 0.25, 0.5, 1]],
    "two classes alike": [[1, 1, 0.5, 0], [1, 1, 0.5, 0], [0.5, 0.5, 1, 0], [0, 0, 0, 1]],
}


def made(seed, queries=6, gallery=21, ties=False):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(queries + gallery, 4, generator=g)
    x = torch.sign(x) if ties else x  # at most 16 directions: many equal similarities
    labels = torch.randint(4, (queries + gallery,), generator=g)
    labels[queries : queries + 4] = torch.arange(4)
    return x[:queries], labels[:queries], x[queries:], labels[queries:]


def levels(name):
    return Levels.of_table(torch.tensor(TABLES[name], dtype=torch.float64))


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize("table", TABLES)
def test_the_measures_equal_the_loop_reference(table, ties):
    for seed in range(3):
        data = made(seed, ties=ties)
        want = reference.rank_metrics(*(x.tolist() for x in data), TABLES[table])
        assert rank_metrics(*data, levels(table)) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
def test_a_query_that_lies_in_the_gallery_does_not_find_itself(ties):
    x, y, _, _ = made(3, queries=15, ties=ties)
    y[:4] = torch.arange(4)
    y[4:8] = torch.arange(4)
    itself = torch.arange(15)
    want = reference.rank_metrics(*(of.tolist() for of in (x, y, x, y)), TABLES["three ranks"], itself.tolist())
    assert rank_metrics(x, y, None, None, levels("three ranks")) == pytest.approx(want, rel=1e-5)
    y[14] = 9  # alone with its label: no query, but something that others find
    without = [retrieval_metrics(x[i : i + 1], y[i : i + 1], x[itself != i], y[itself != i]) for i in range(14)]
    mean = {name: sum(of[name] for of in without) / 14 for name in ("R@1", "R@5", "mAP")}
    found = retrieval_metrics(x, y, None, None)
    assert {k: v for k, v in found.items() if k in mean} == pytest.approx(mean)


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
def test_ndcg_equals_scikit_learn(ties):
    q, y, gallery, labels = made(5, ties=ties)
    table = torch.tensor(TABLES["three ranks"])
    q, gallery = (x / 2 if ties else torch.nn.functional.normalize(x, dim=1) for x in (q, gallery))
    want = ndcg_score(table[y][:, labels], q @ gallery.T)
    assert rank_metrics(q, y, gallery, labels, levels("three ranks"))["NDCG"] == pytest.approx(want, rel=1e-6)


def test_hierarchical_ap_of_one_rank_is_the_mean_average_precision():
    data = made(4, ties=True)
    assert rank_metrics(*data, levels("one rank"))["H-AP"] == pytest.approx(retrieval_metrics(*data)["mAP"], rel=1e-6)


def on_an_arc(angles):
    """Unit vectors at these angles from the query, which lies at 0."""
    angles = torch.tensor(angles)
    return torch.stack([angles.cos(), angles.sin()], 1)


QUERY = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
THREE, ARC = levels("three ranks"), on_an_arc([0.1, 0.2])


def test_a_perfect_order_scores_1_and_a_reversed_one_0_of_the_pairs():
    labels = torch.tensor([0, 0, 1, 1, 2, 3, 3])
    perfect = rank_metrics(*QUERY, on_an_arc([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]), labels, THREE)
    assert perfect == pytest.approx(dict.fromkeys(perfect, 1.0))
    turned = rank_metrics(*QUERY, on_an_arc([0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]), labels, THREE)
    assert [turned[f"AUROC {r}>{r + 1}"] for r in range(3)] == [0, 0, 0] and turned["AUROC"] == 0
    assert turned["nearest other"] == 3 and turned["ASI"] < 0.5 and turned["H-AP"] < 0.7


def test_a_rank_that_a_query_has_no_entries_of_is_passed_over():
    labels = torch.tensor([3, 3, 0, 2])
    found = rank_metrics(*QUERY, on_an_arc([0.1, 0.2, 0.3, 0.4]), labels, THREE)
    assert found["AUROC 2>3"] == 0 and found["AUROC 0>1"] == 1 and "AUROC 1>2" not in found and found["AUROC"] == 0.5
    assert list(found) == ["AUROC", "AUROC 0>1", "AUROC 2>3", "NDCG", "H-AP", "ASI", "nearest other"]
    alone = Levels.of_groups(torch.tensor([[0, 0], [1, 1]]))  # no two images share a group of the second level alone
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    assert "AUROC 0>1" in rank_metrics(x, torch.arange(8) // 4, None, None, alone)


def test_nested_groups_are_the_table_of_the_levels_that_labels_share():
    groups = torch.tensor([[0, 0, 0], [1, 0, 0], [2, 1, 0], [3, 2, 1]])
    shared = [[sum(a == b for a, b in zip(x, y, strict=True)) for y in groups.tolist()] for x in groups.tolist()]
    table = [[{3: 1, 2: 0.75, 1: 0.5, 0: 0}[n] for n in row] for row in shared]
    data = made(2, ties=True)
    of_groups = rank_metrics(*data, Levels.of_groups(groups))
    assert of_groups == pytest.approx(rank_metrics(*data, Levels.of_table(torch.tensor(table).double())))
    assert Levels.of_groups(groups).values.tolist() == [1, 0.75, 0.5, 0]
    assert Levels.of_groups(groups[:, [0] * 10]).values.tolist() == pytest.approx([1 - r / 10 for r in range(11)])


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        *((lambda t=t: Levels.of_table(t), "1 on the diagonal")
          for t in (torch.ones(2, 3), torch.full((2, 2), 0.5), torch.tensor([[1.0, 2], [2, 1]]), -torch.eye(2))),
        *((lambda n=n: Levels.of_groups(torch.zeros(2, n, dtype=torch.long)), "1 to 126 are possible")
          for n in (0, 127)),
        (lambda: rank_metrics(*QUERY, ARC, torch.tensor([0, 0]), levels("one rank")), "is not defined"),
        (lambda: rank_metrics(QUERY[0], torch.tensor([-1]), ARC, torch.tensor([0, 3]), THREE), "labels count from 0"),
        (lambda: rank_metrics(*QUERY, ARC * torch.nan, torch.tensor([0, 3]), THREE), "NaN, infinite, or too large"),
        (lambda: rank_metrics(*QUERY, None, None, THREE), "at least one"),
    ],
)  # fmt: skip
def test_what_has_no_order_or_no_numbers_is_named(compute, words):
    with pytest.raises(ValueError, match=words):
        compute()


@pytest.mark.parametrize("seed", range(5))
def test_equal_cosines_tie_however_they_are_summed(seed):
    """Nine classes in three groups of three: two cosines in all, turned in space so that rounding would part them."""
    g = torch.Generator().manual_seed(seed)
    group = torch.arange(9) // 3
    features = torch.eye(9) + 0.8 * (group[:, None] == group) + 0.3
    turn = torch.linalg.qr(torch.randn(40, 40, generator=g, dtype=torch.float64)).Q[:9]
    similarity = torch.eye(9) * 0.25 + 0.75 * (group[:, None] == group)
    found = class_correlation(features.double() @ turn, torch.arange(9), similarity)
    assert found == {"Spearman": pytest.approx(1, abs=1e-12), "Kendall": pytest.approx(1, abs=1e-12)}


def test_class_correlation_is_scipys_over_the_pairs_of_the_class_means():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 5, generator=g) * 3, torch.arange(60) % 4
    table = torch.tensor(TABLES["three ranks"])
    unit = [[v / of.norm() for v in of] for of in x]
    means = [
        [sum(float(u[d]) for u, label in zip(unit, y, strict=True) if label == c) for d in range(5)] for c in range(4)
    ]
    cosine = [
        sum(a * b for a, b in zip(means[c], means[d], strict=True))
        / (sum(a * a for a in means[c]) * sum(b * b for b in means[d])) ** 0.5
        for c in range(4)
        for d in range(c + 1, 4)
    ]
    similar = [TABLES["three ranks"][c][d] for c in range(4) for d in range(c + 1, 4)]
    want = {"Spearman": spearmanr(cosine, similar).statistic, "Kendall": kendalltau(cosine, similar).statistic}
    assert class_correlation(x, y, table) == pytest.approx(want, rel=1e-5)


def test_class_means_in_the_order_of_the_ranking_correlate_by_1_and_classes_without_images_are_left_out():
    x = torch.tensor([[1.0, 0, 0], [0.9, 0.3, 0], [0, 0, 1]])
    table = torch.tensor([[1, 0.5, 0, 0], [0.5, 1, 0.25, 0], [0, 0.25, 1, 0], [0, 0, 0, 1]])
    found = class_correlation(torch.cat([x, 2 * x]), torch.arange(3).repeat(2), table)
    assert found["Spearman"] == pytest.approx(spearmanr([0.949, 0, 0], [0.5, 0, 0.25]).statistic)
    assert class_correlation(x, torch.tensor([0, 1, 1]), table) == {}
    assert class_correlation(x, torch.arange(3), torch.eye(3)) == {}
    assert class_correlation(torch.ones(3, 3), torch.arange(3), table[:3, :3]) == {}
    one_way = torch.tensor([[1, 0.75, 0], [0, 1, 0], [0.5, 0, 1]])  # as --n_sim_classes makes it
    turned = [2, 0, 1]
    found = class_correlation(x, torch.arange(3), one_way)
    assert class_correlation(x[turned], torch.arange(3), one_way[turned][:, turned]) == pytest.approx(found)

"""Retrieval metrics equal their slow reference and scikit-learn, ties included."""

import pytest
import reference
import torch
from sklearn.metrics import average_precision_score

from evaluation import Curve, look_up, other_class_map, retrieval_curve, retrieval_metrics
from evaluation.retrieval import Ranked


def made(seed, queries=7, gallery=30, classes=3, ties=False):
    g = torch.Generator().manual_seed(seed)
    bases = torch.randn(queries + gallery, 4, generator=g)
    if ties:
        bases = torch.sign(bases)  # at most 16 directions: many equal similarities
    labels = torch.randint(classes, (queries + gallery,), generator=g)
    labels[queries : queries + classes] = torch.arange(classes)
    return bases[:queries], labels[:queries], bases[queries:], labels[queries:]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("seed", "gallery"), [(0, 30), (1, 30), (2, 12), (3, 4)])  # fewer than k, too
def test_retrieval_equals_the_loop_reference(seed, gallery, ties):
    q, y, g, b = made(seed, gallery=gallery, ties=ties)
    of_one = torch.full_like(b, 7)  # one label has nearly all, another one entry, a third none of the queries
    of_one[2], of_one[1] = 3, 1
    for labels, known in ((y, b), (torch.tensor([7, 7, 7, 3, 7, 7, 7]), of_one)):
        want = reference.retrieval(*(x.tolist() for x in (q, labels, g, known)), topk=(1, 5, 10, 20))
        found, precision, recall = retrieval_curve(q, labels, g, known)
        assert found == retrieval_metrics(q, labels, g, known) == pytest.approx(want, rel=1e-5)
        assert len(precision) == len(recall) == gallery
        assert float(recall[-1]) == pytest.approx(1)
        assert float(precision[0]) == pytest.approx(found["R@1"])


@pytest.mark.parametrize("seed", range(5))
def test_map_equals_scikit_learn_with_and_without_ties(seed):
    for ties in (False, True):
        q, y, g, b = made(seed, ties=ties)
        if ties:  # exact equality of similarities is decided on the same numbers
            scores = (q / 2) @ (g / 2).T
        else:
            scores = torch.nn.functional.normalize(q, dim=1) @ torch.nn.functional.normalize(g, dim=1).T
        want = sum(average_precision_score(b == y[i], scores[i]) for i in range(len(q))) / len(q)
        assert retrieval_metrics(q, y, g, b)["mAP"] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32])
def test_labels_may_be_integers_of_any_type(kind):
    q, y, g, b = made(3)
    want = retrieval_metrics(q, y, g, b), retrieval_metrics(g, b, None, None)
    assert (retrieval_metrics(q, y.to(kind), g, b.to(kind)), retrieval_metrics(g, b.to(kind), None, None)) == want


Q, Y, G, B = made(3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((Q, Y, G, B[:20]), "there are 7 and 20 labels for 7 queries in a gallery of 30"),
        ((Q, Y.repeat(2), G, B), "there are 14 and 30 labels for 7 queries"),
        ((Q, Y + 9, G, B), "label 9|label 10|label 11"),
        ((Q[:0], Y[:0], G, B), "at least one"),
        ((Q * torch.nan, Y, G, B), "NaN, infinite, or too large"),
        ((Q, Y, G * torch.nan, B), "NaN, infinite, or too large"),
        ((torch.eye(3), torch.arange(3), None, None), "every query is alone with its label"),
    ],
)
def test_what_cannot_be_retrieved_is_named(given, words):
    with pytest.raises(ValueError, match=words):
        retrieval_metrics(*given)


def test_queries_that_look_for_one_another_never_find_themselves():
    features, labels = made(0, queries=1, gallery=29)[2:]
    others = [[j for j in range(len(labels)) if j != i] for i in range(len(labels))]
    parts = [
        reference.retrieval(
            *(x.tolist() for x in (features[[i]], labels[[i]], features[o], labels[o])), topk=(1, 5, 10, 20)
        )
        for i, o in enumerate(others)
    ]
    found = retrieval_metrics(features, labels, None, None)
    for name in ("R@1", "R@5", "mAP", "R-precision", "MAP@R"):
        assert found[name] == pytest.approx(sum(p[name] for p in parts) / len(parts), rel=1e-5)


def test_figures_of_a_class_are_those_of_its_queries_alone():
    q, y, g, b = made(1, queries=20)
    classes = torch.arange(20) % 4  # finer than the labels, or across them
    curve = Curve(y, b)
    look_up(q, g, [curve])
    found = curve.by_class(classes, 5)
    for c in range(4):
        want = retrieval_metrics(q[classes == c], y[classes == c], g, b)
        assert {name: float(x[c]) for name, x in found.items()} == pytest.approx({name: want[name] for name in found})
    assert all(x[4].isnan() for x in found.values())


GROUPS = torch.tensor([0, 1, 0, 1, 0, 2])  # the last class is alone in its group


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_map_among_other_classes_equals_the_loop_reference(seed, ties):
    q, y, g, b = made(seed, queries=11, gallery=40, classes=6, ties=ties)
    b[b == 2] = 0  # a class of queries that the gallery lacks
    lists, groups = [x.tolist() for x in (q, y, g, b)], GROUPS.tolist()
    want = reference.other_class_map(*lists, groups)
    for chunk in (None, 3):
        assert other_class_map(q, y, g, b, GROUPS, chunk) == pytest.approx(want, rel=1e-5)
    within = reference.other_class_map(*lists[2:], *lists[2:], groups, own=range(40))
    assert other_class_map(g, b, None, None, GROUPS, 7) == pytest.approx(within, rel=1e-5)


def test_the_map_among_other_classes_is_the_map_of_groups_in_a_gallery_without_the_own_class():
    q, y, g, b = made(0, queries=40, gallery=90, classes=5)
    apart = [retrieval_metrics(q[y == c], GROUPS[y[y == c]], g[b != c], GROUPS[b[b != c]])["mAP"] for c in range(5)]
    want = sum(len(y[y == c]) * ap for c, ap in enumerate(apart)) / len(y)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    names = torch.tensor([3, 0, 5, 1, 4, 2])  # other numbers for the same classes
    renamed = names[y], g[order], names[b[order]], GROUPS[names.argsort()]
    assert other_class_map(q, y, g, b, GROUPS) == pytest.approx(want)
    assert other_class_map(q, *renamed) == pytest.approx(want)


def test_a_perfect_own_class_gives_no_more_than_chance_among_other_classes_and_perfect_groups_give_all():
    labels = torch.arange(20).repeat(30)
    groups = torch.arange(20) // 4
    own, noise = torch.nn.functional.one_hot(labels, 20), torch.randn(600, 64, generator=torch.manual_seed(0))
    alone = torch.cat([own, 0.03 * noise], dim=1)
    together = torch.nn.functional.one_hot(groups[labels], 5).float()
    fine, coarse = (retrieval_metrics(alone, of, None, None)["mAP"] for of in (labels, groups[labels]))
    assert fine == 1 and coarse > 0.3
    assert other_class_map(alone, labels, None, None, groups) == pytest.approx(3 / 19, abs=0.02)
    assert other_class_map(torch.ones(600, 2), labels, None, None, groups) == pytest.approx(3 / 19)  # all tie
    assert other_class_map(together, labels, None, None, groups) == 1


def test_without_another_class_of_a_group_there_is_no_query():
    with pytest.raises(ValueError, match="no query has another class of its group in the gallery"):
        other_class_map(Q, Y, G, B, torch.arange(3))


def close_ones(rows=5, size=400):
    """Similarities with many equal ones, zeros of both signs, the smallest numbers, and the end of the range."""
    some = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1, -1, 0.5, 0.5000001, -0.5, -0.5000001, 1e-30, -1e-30])
    return some[torch.randint(len(some), (rows, size), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_equal_similarities_stand_in_the_order_of_the_gallery(monkeypatch, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    similarity = close_ones()
    values, order = similarity.sort(dim=1, descending=True, stable=True)
    ranked = Ranked(similarity)
    assert torch.equal(ranked.order, order)
    last = [[max(j for j in range(len(row)) if row[j] == x) for x in row] for row in values.tolist()]
    first = [[min(j for j in range(len(row)) if row[j] == x) for x in row] for row in values.tolist()]
    before, upto = ranked.ties(torch.arange(400).repeat(5, 1))
    assert before.tolist() == first and (upto - 1).tolist() == last


def test_places_are_those_in_the_order_and_what_is_not_real_comes_last():
    ranked = Ranked(close_ones())
    entries = torch.randperm(400, generator=torch.Generator().manual_seed(1))[:90].repeat(5, 1)
    real = torch.arange(90) < torch.tensor([90, 1, 0, 45, 89])[:, None]
    index, places, of_places, found = ranked.places(entries, real)
    _, upto = ranked.ties(torch.arange(400).repeat(5, 1))
    for i in range(5):
        want = sorted(ranked.order[i].tolist().index(j) for j in entries[i, real[i]].tolist())
        ends = [int(upto[i, p]) - 1 for p in want]
        assert places[i].tolist() == want + [400] * (90 - len(want))
        assert index[i].tolist() == ranked.order[i, want].tolist() + [0] * (90 - len(want))
        assert of_places[i, : len(want)].tolist() == [end + 1 for end in ends]
        assert found[i, : len(want)].tolist() == [sum(p <= end for p in want) for end in ends]


def test_without_numpy_beside_torch_the_metrics_are_the_same(monkeypatch):
    data = made(3, ties=True)
    want = retrieval_metrics(*data)

    def refused(_):
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr(torch.Tensor, "numpy", refused)
    assert retrieval_metrics(*data) == want


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_r_precision_and_map_at_r_are_those_of_pytorch_metric_learning(seed):
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    names = {"precision_at_1": "R@1", "r_precision": "R-precision", "mean_average_precision_at_r": "MAP@R"}
    oracle = AccuracyCalculator(include=tuple(names), k="max_bin_count", knn_func=CustomKNN(CosineSimilarity()))
    features, labels = made(seed, queries=1, gallery=400, classes=7)[2:]
    found = retrieval_metrics(features, labels, None, None)
    want = oracle.get_accuracy(features, labels)  # the queries look for one another
    assert {theirs: found[ours] for theirs, ours in names.items()} == pytest.approx(want, rel=1e-5)
    q, y, g, b = made(seed, queries=50, gallery=400, classes=7)
    want = oracle.get_accuracy(q, y, g, b)
    found = retrieval_metrics(q, y, g, b)
    assert {theirs: found[ours] for theirs, ours in names.items()} == pytest.approx(want, rel=1e-5)

"""How features lie, and what their neighbors say, against slow references."""

import pytest
import reference
import torch
import torch.nn.functional as F

from evaluation import alignment, features, knn_accuracy, neighbor_accuracy, uniformity


def unit(seed, rows, dim=5):
    x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=1)


def test_alignment_and_uniformity_equal_the_references():
    x, y = unit(0, 9), unit(1, 9)
    assert float(alignment(x, y)) == pytest.approx(reference.alignment(x.tolist(), y.tolist()))
    assert float(uniformity(x)) == pytest.approx(reference.uniformity(x.tolist()))


@pytest.mark.parametrize("k", [1, 4, 200])
def test_knn_accuracy_equals_the_reference(k):
    features, gallery = unit(2, 300), unit(3, 40)
    labels, known = torch.arange(300) % 4, torch.arange(40) % 4
    want = reference.knn_accuracy(*(x.tolist() for x in (features, labels, gallery, known)), k=k, tau=0.07)
    assert knn_accuracy(3 * features, labels, gallery, known, k=k) == pytest.approx(want)
    assert 0.1 < want < 0.6


def test_knn_accuracy_of_images_among_themselves_leaves_each_out():
    torch.manual_seed(1)
    x, y = torch.randn(300, 3), torch.arange(300) % 3  # more than a block of 256
    others = [[j for j in range(300) if j != i] for i in range(300)]
    parts = [knn_accuracy(x[[i]], y[[i]], x[o], y[o], k=5) for i, o in enumerate(others)]
    assert knn_accuracy(x, y, None, None, k=5) == pytest.approx(sum(parts) / 300)
    with pytest.raises(ValueError, match="needs queries and a gallery"):
        knn_accuracy(x[:1], y[:1], None, None)
    with pytest.raises(ValueError, match="alone with its label"):
        knn_accuracy(x[:3], torch.arange(3), None, None)


def test_images_that_are_alone_with_their_label_are_no_queries_of_the_vote():
    x = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1], [-1, 0], [0, -1]])
    assert knn_accuracy(x, torch.tensor([0, 0, 1, 1, 2, 3]), None, None, k=1) == 1.0


def test_knn_accuracy_of_nothing_is_an_error():
    for queries, gallery in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="needs queries and a gallery"):
            knn_accuracy(torch.ones(queries, 2), torch.zeros(queries), torch.ones(gallery, 2), torch.zeros(gallery))


@pytest.mark.parametrize("held", [1, 50, 10**6])
def test_features_come_in_order_however_many_wait_on_the_device(monkeypatch, held):
    monkeypatch.setattr(features, "HELD", held)
    batches = [(torch.full((n, 4), float(i)), torch.full((n,), i)) for i, n in enumerate((5, 5, 5, 2))]
    x, y = features.extract(torch.nn.Identity(), batches, "cpu")
    assert x[:, 0].tolist() == y.tolist() == [0.0] * 5 + [1] * 5 + [2] * 5 + [3] * 2


@pytest.mark.parametrize("seed", range(3))
def test_the_accuracy_of_the_nearest_neighbor_equals_the_loop_reference(seed):
    g = torch.Generator().manual_seed(seed)
    x, groups = torch.randn(300, 4, generator=g), torch.randint(0, 40, (300, 1), generator=g)
    groups = torch.cat([torch.arange(300)[:, None], groups, groups // 7], 1)
    want = reference.neighbor_accuracy(x.tolist(), groups.tolist())
    assert want[0] is None and neighbor_accuracy(x, groups) == [None, *map(pytest.approx, want[1:])]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_figures_that_are_watched_in_training_do_not_end_it_where_a_feature_is_no_number(bad):
    x, y = torch.eye(6), torch.arange(6) % 2
    x[2, 2] = bad
    assert 0 <= knn_accuracy(x, y, x, y) <= 1
    assert 0 <= neighbor_accuracy(x, y[:, None])[0] <= 1

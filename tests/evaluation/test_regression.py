"""What features tell of a real value equals loop references, scikit-learn and scipy."""

import pytest
import reference
import torch
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.neighbors import KNeighborsRegressor

import evaluation
from evaluation import regression


def made(seed, queries=9, gallery=24, ties=False):
    """Features [n, 3] that tell a value in part, and values [n]; in place of noise ties, of both."""
    g = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, queries + gallery, 3, generator=g)
    values = 50 + 10 * x.double().sum(1) + 5 * noise[:, 0].double()
    if ties:
        x, values = x.sign(), values.round(decimals=-1)
    return x[:queries], values[:queries], x[queries:], values[queries:]


def lists(*tensors):
    return [x.double().tolist() for x in tensors]


@pytest.mark.parametrize("k", [1, 5, 24, 99])
def test_neighbors_tell_the_mean_of_their_values_as_in_scikit_learn(k):
    x, y, g, b = made(k)
    found = evaluation.knn_regression(x, g, b, k)
    assert found.tolist() == pytest.approx(reference.knn_regression(*lists(x, g, b), min(k, 24)))
    peer = KNeighborsRegressor(min(k, 24), metric="cosine").fit(g.double(), b)
    assert found.tolist() == pytest.approx(peer.predict(x.double()))
    want = {"MAE": mean_absolute_error(y, found), "R2": r2_score(y, found)}
    assert evaluation.regression_scores(found, y) == pytest.approx(want)
    assert evaluation.regression_scores(found, y) == pytest.approx(reference.regression_scores(*lists(found, y)))


@pytest.mark.parametrize("seed", range(3))
def test_the_probe_is_ridge_regression_whose_penalty_leaving_one_out_chooses(seed, monkeypatch):
    monkeypatch.setattr(regression, "PENALTIES", (0.1, 3.0, 100.0))
    x, _, g, b = made(seed)
    scale = torch.tensor([1.0, 100.0, 0.01])
    found = evaluation.ridge_regression(x * scale, g * scale, b)
    want = reference.ridge_regression(*lists(x * scale, g * scale, b), regression.PENALTIES)
    assert found.tolist() == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
def test_the_order_by_distance_is_the_mean_of_spearmans_rho(ties):
    x, y, g, b = made(1, ties=ties)
    found = evaluation.value_consistency(x, y, g, b, chunk=4)
    assert found == pytest.approx(reference.value_consistency(*lists(x, y, g, b)))
    unit = torch.nn.functional.normalize
    cosines = (unit(x.double()) @ unit(g.double()).T).round(decimals=12)
    each = [float(spearmanr(c, -(b - v).abs()).statistic) for c, v in zip(cosines, y, strict=True)]
    assert found == pytest.approx(sum(each) / len(each))


def test_features_on_an_arc_by_value_are_in_perfect_order_and_collapsed_ones_in_none():
    values = torch.arange(20.0)
    arc = torch.stack([(values / 10).cos(), (values / 10).sin()], 1)
    ends = torch.tensor([0, 19])  # of others two are as far
    assert evaluation.value_consistency(arc[ends], values[ends], arc, values) == pytest.approx(1)
    assert evaluation.value_consistency(torch.ones(20, 2), values, torch.ones(20, 2), values) == 0
    assert evaluation.value_consistency(arc, values, arc, torch.ones(20)) == 0


def test_all_metrics_together_are_those_of_the_functions():
    x, y, g, b = made(2)
    found = evaluation.regression_metrics(x, y, g, b, k=3)
    scores = evaluation.regression_scores(evaluation.ridge_regression(x, g, b), y)
    assert list(found) == ["kNN MAE", "kNN R2", "ridge MAE", "ridge R2", "Spearman"]
    assert (found["ridge MAE"], found["ridge R2"]) == (scores["MAE"], scores["R2"])
    assert found["kNN R2"] == evaluation.regression_scores(evaluation.knn_regression(x, g, b, 3), y)["R2"]


def test_equal_values_have_no_r2():
    with pytest.raises(ValueError, match="all equal"):
        evaluation.regression_scores(torch.rand(3), torch.ones(3))

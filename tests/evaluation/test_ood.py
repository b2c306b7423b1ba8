"""OOD scores and metrics equal their slow references and scikit-learn, ties included."""

import math

import pytest
import reference
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.mixture import GaussianMixture

import evaluation
from evaluation import (
    auroc_by_class,
    energy_scores,
    gaussian_scores,
    knn_scores,
    mahalanobis_scores,
    msp_scores,
    ood_metrics,
    relative_mahalanobis_scores,
)


def made(classes, each, dim, tests, seed=0, spread=0.3):
    """Normalised features of classes around their own means, and test features, half of them far away."""
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, dim, generator=g)
    labels = torch.arange(classes).repeat_interleave(each)
    train = means[labels] + spread * torch.randn(classes * each, dim, generator=g)
    near = means[torch.randint(classes, (tests // 2,), generator=g)]
    test = torch.cat([near, torch.randn(tests - tests // 2, dim, generator=g)])
    test += spread * torch.randn(tests, dim, generator=g)
    return F.normalize(train, dim=1), labels, F.normalize(test, dim=1)


def by_scikit_learn(train, labels, features):
    scores = [
        GaussianMixture(1, reg_covar=1e-6)
        .fit(train[labels == c].double().numpy())
        .score_samples(features.double().numpy())
        for c in labels.unique()
    ]
    return torch.stack([torch.from_numpy(s) for s in scores]).amax(0)


@pytest.mark.parametrize(
    ("classes", "each", "dim"),
    [(4, 300, 32), (3, 65, 64), (3, 64, 64), (3, 20, 64), (2, 500, 2048)],
    ids=[
        "well-conditioned",
        "just enough images",
        "as many images as dimensions",
        "few images",
        "rank-deficient, 2048-d",
    ],
)
def test_gaussian_scores_equal_scikit_learns_gaussian_per_class(classes, each, dim):
    train, labels, test = made(classes, each, dim, 60)
    want, got = by_scikit_learn(train, labels, test), gaussian_scores(train, labels, test)
    assert (want - got).abs().max() < 1e-3
    auroc = [ood_metrics(s[:30], s[30:])["AUROC"] for s in (want, got)]
    assert auroc[0] == pytest.approx(auroc[1], abs=1e-5)


@pytest.mark.parametrize(("each", "dim"), [(9, 4), (3, 6), (1, 3)])
def test_gaussian_scores_equal_the_loop_reference(each, dim):
    train, labels, test = made(3, each, dim, 8)
    want = reference.gaussian_scores(train.tolist(), labels.tolist(), test.tolist())
    assert gaussian_scores(train, labels, test).tolist() == pytest.approx(want, rel=1e-8)


@pytest.mark.parametrize(("each", "dim"), [(9, 4), (3, 6)])
def test_mahalanobis_scores_equal_the_loop_reference(each, dim):
    train, labels, test = made(3, each, dim, 8)
    want = reference.mahalanobis_scores(train.tolist(), labels.tolist(), test.tolist())
    assert mahalanobis_scores(train, labels, test).tolist() == pytest.approx(want, rel=1e-6)
    want = reference.relative_mahalanobis_scores(train.tolist(), labels.tolist(), test.tolist())
    assert relative_mahalanobis_scores(train, labels, test).tolist() == pytest.approx(want, rel=1e-6, abs=1e-6)


def test_gaussian_and_mahalanobis_scores_do_not_depend_on_chunks_or_on_the_order_of_the_training_images():
    train, labels, test = made(3, 40, 8, 20)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))
    for score in (gaussian_scores, mahalanobis_scores, relative_mahalanobis_scores):
        whole = score(train, labels, test)
        assert torch.allclose(score(train, labels, test, chunk=7), whole, rtol=1e-9)
        assert torch.allclose(score(train[order], labels[order], test), whole, rtol=1e-9)


def test_class_numbers_with_gaps_score_as_without():
    train, labels, test = made(3, 40, 8, 20)
    for score in (gaussian_scores, mahalanobis_scores, relative_mahalanobis_scores):
        assert torch.equal(score(train, labels * 10 + 5, test), score(train, labels, test))


def test_a_rotation_of_the_feature_space_changes_no_gaussian_score():
    train, labels, test = made(3, 40, 8, 20)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    turned = gaussian_scores(train.double() @ rotation, labels, test.double() @ rotation)
    assert torch.allclose(turned, gaussian_scores(train, labels, test), atol=1e-8)


def test_the_density_of_one_class_integrates_to_one():
    train, labels, _ = made(1, 50, 2, 2)
    axis = torch.linspace(-3, 3, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    density = gaussian_scores(train, labels, grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(density) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("k", [1, 3, 27])
def test_knn_scores_equal_the_loop_reference(k):
    train, _, test = made(3, 9, 5, 8)
    want = reference.knn_scores(train.tolist(), test.tolist(), k)
    assert knn_scores(train * 3, test * 5, k, chunk=3).tolist() == pytest.approx(want, abs=1e-3)


def test_knn_without_enough_training_images_is_an_error():
    train, _, test = made(3, 9, 5, 8)
    with pytest.raises(ValueError, match="k = 28"):
        knn_scores(train, test, 28)


def test_msp_and_energy_equal_their_formulas():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)) * 30
    for row, msp, energy in zip(logits.tolist(), msp_scores(logits), energy_scores(logits), strict=True):
        total = math.fsum(math.exp(x - max(row)) for x in row)
        assert float(msp) == pytest.approx(-math.log(total), abs=1e-9)
        assert float(energy) == pytest.approx(max(row) + math.log(total))


def test_msp_still_ranks_images_whose_probability_rounds_to_one():
    scores = msp_scores(torch.tensor([[40.0, 0], [41.0, 0]]))
    assert scores[0] < scores[1]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_ood_metrics_equal_the_loop_reference_and_scikit_learn(seed, ties):
    g = torch.Generator().manual_seed(seed)
    inlier, outlier = torch.randn(37, generator=g) + 1, torch.randn(23, generator=g)
    if ties:
        inlier, outlier = inlier.round(), outlier.round()
    got = ood_metrics(inlier, outlier)
    want = reference.ood_metrics(inlier.tolist(), outlier.tolist())
    assert {name: got[name] for name in want} == pytest.approx(want)
    truth, score = [1] * 37 + [0] * 23, torch.cat([inlier, outlier])
    assert got["AUROC"] == pytest.approx(roc_auc_score(truth, score))
    assert got["AUPR"] == got["AUPR-in"] == pytest.approx(average_precision_score(truth, score))


def test_auroc_is_one_zero_and_a_half_in_the_obvious_cases():
    high, low, equal = torch.tensor([3.0, 4, 5]), torch.tensor([0.0, 1]), torch.zeros(4)
    assert ood_metrics(high, low) == {
        "AUROC": 1, "FPR95": 0, "FPR95-out": 0, "AUPR": 1, "AUPR-in": 1, "AUPR-out": 1,
    }  # fmt: skip
    assert ood_metrics(low, high)["AUROC"] == 0
    assert ood_metrics(low, high)["FPR95"] == 1
    assert ood_metrics(equal, equal)["AUROC"] == 0.5


def test_a_strictly_rising_map_of_the_scores_changes_no_metric():
    g = torch.Generator().manual_seed(3)
    inlier, outlier = torch.randn(40, generator=g).double() + 1, torch.randn(30, generator=g).double()
    assert ood_metrics(inlier.exp(), outlier.exp()) == pytest.approx(ood_metrics(inlier, outlier))


def test_exactly_95_percent_of_the_inliers_is_enough():
    inlier = torch.arange(20.0)  # the threshold is 1: 19 of 20 stay
    assert ood_metrics(inlier, torch.tensor([0.5, 0.9]))["FPR95"] == 0
    assert ood_metrics(inlier, torch.tensor([1.0, 0.9]))["FPR95"] == 0.5


def test_the_two_fpr95_take_the_one_or_the_other_as_positive():
    """N(0, 1) against N(-2, 0.5): 95 % of inliers lie above -1.645, 95 % of outliers below -1.178."""
    grid = (torch.arange(20000) + 0.5) / 20000
    normal = torch.distributions.Normal(0.0, 1.0)
    inlier, outlier = normal.icdf(grid), -2 + 0.5 * normal.icdf(grid)
    found = ood_metrics(inlier, outlier)
    assert found["FPR95"] == pytest.approx(float(1 - normal.cdf(torch.tensor((-1.645 + 2) / 0.5))), abs=2e-3)
    assert found["FPR95-out"] == pytest.approx(float(normal.cdf(torch.tensor(-1.178))), abs=2e-3)
    assert ood_metrics(-outlier, -inlier)["FPR95"] == pytest.approx(found["FPR95-out"])


@pytest.mark.parametrize(
    ("inlier", "outlier", "reason"),
    [
        ([], [1.0], "0 and 1"),
        ([1.0], [], "1 and 0"),
        ([1.0, math.nan], [0.0], "1 of 3 scores"),
        ([math.inf], [0.0], "1 of 2"),
    ],
)
def test_scores_without_both_kinds_or_not_finite_are_errors(inlier, outlier, reason):
    with pytest.raises(ValueError, match=reason):
        ood_metrics(torch.tensor(inlier), torch.tensor(outlier))


def test_widths_that_differ_and_empty_training_sets_are_errors():
    train, labels, test = made(2, 5, 4, 4)
    for score in (gaussian_scores, mahalanobis_scores, relative_mahalanobis_scores):
        with pytest.raises(ValueError, match="width 4, the others 3"):
            score(train, labels, test[:, :3])
        with pytest.raises(ValueError, match="no training features"):
            score(train[:0], labels[:0], test)


def test_the_retrieval_curve_belongs_to_its_metrics():
    train, labels, test = made(3, 10, 5, 6)
    metrics, precision, recall = evaluation.retrieval_curve(test, torch.tensor([0, 1, 2, 0, 1, 2]), train, labels)
    assert metrics == evaluation.retrieval_metrics(test, torch.tensor([0, 1, 2, 0, 1, 2]), train, labels)
    assert len(precision) == len(recall) == 30
    assert float(recall[-1]) == pytest.approx(1)
    assert float(precision[-1]) == pytest.approx(10 / 30)
    assert float(precision[0]) == pytest.approx(metrics["R@1"])
    assert (recall.diff() >= 0).all()


def test_knn_keeps_its_digits_where_all_features_lie_in_a_narrow_cone():
    g = torch.Generator().manual_seed(0)
    base = F.normalize(torch.randn(16, generator=g), dim=0)
    train, test = (base + 1e-3 * torch.randn(n, 16, generator=g) for n in (60, 20))
    want = reference.knn_scores(train.tolist(), test.tolist(), 3)
    assert knn_scores(train, test, 3).tolist() == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("spread", [0.03, 1e-3, 1e-5])
def test_knn_keeps_its_digits_in_tight_clusters_far_from_one_another(spread):
    g = torch.Generator().manual_seed(0)
    means = torch.randn(4, 16, generator=g)
    cluster = torch.arange(80) % 4
    train, test = (means[cluster[:n]] + spread * torch.randn(n, 16, generator=g) for n in (80, 20))
    want = reference.knn_scores(train.tolist(), test.tolist(), 3)
    assert knn_scores(train, test, 3).tolist() == pytest.approx(want, rel=1e-4)
    assert not knn_scores(train, train, 1).any()  # each is there itself


def test_features_that_are_not_finite_are_an_error_that_says_so():
    train, labels, test = made(2, 5, 4, 4)
    train[0, 0] = math.nan
    for score in (gaussian_scores, mahalanobis_scores, relative_mahalanobis_scores):
        with pytest.raises(ValueError, match="not positive definite: features must be finite"):
            score(train, labels, test)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_knn_of_features_that_are_no_numbers_or_too_large_is_an_error(bad):
    train, _, test = made(2, 5, 4, 4)
    test[0, 0] = bad
    with pytest.raises(ValueError, match="NaN, infinite, or too large"):
        knn_scores(train, test, 1)


def test_an_image_that_is_in_the_training_set_lies_at_distance_zero():
    x = F.normalize(torch.randn(300, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    assert knn_scores(x, x, 1).abs().max() < 1e-7


@pytest.mark.parametrize("seed", range(3))
def test_the_auroc_of_each_class_of_outliers_equals_counting(seed):
    g = torch.Generator().manual_seed(seed)
    inlier, outlier = torch.randint(9, (40,), generator=g), torch.randint(9, (30,), generator=g)  # many ties
    labels = torch.randint(4, (30,), generator=g)
    labels[labels == 2] = 3
    want = reference.auroc_by_class(inlier.tolist(), outlier.tolist(), labels.tolist(), 4)
    found = auroc_by_class(inlier, outlier, labels, 4).tolist()
    assert math.isnan(found[2]) and want[2] is None
    assert [found[c] for c in (0, 1, 3)] == pytest.approx([want[c] for c in (0, 1, 3)])
    with pytest.raises(ValueError, match="finite"):
        auroc_by_class(torch.tensor([0.0]), torch.tensor([math.nan]), torch.tensor([0]), 1)
    with pytest.raises(ValueError, match="needs inliers"):
        auroc_by_class(torch.tensor([]), torch.tensor([0.0]), torch.tensor([0]), 1)

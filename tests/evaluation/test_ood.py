"""OOD scores and metrics equal their slow references and scikit-learn, ties included."""

import math

import pytest
import reference
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.mixture import GaussianMixture

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

CLASS_SCORES = (gaussian_scores, mahalanobis_scores, relative_mahalanobis_scores)


def made(classes, each, dim, tests, seed=0, spread=0.3):
    """Normalized features of classes around their own means, and test features, half of them far away."""
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
@pytest.mark.parametrize("score", CLASS_SCORES)
def test_scores_by_class_equal_the_loop_reference(score, each, dim):
    train, labels, test = made(3, each, dim, 8)
    want = getattr(reference, score.__name__)(train.tolist(), labels.tolist(), test.tolist())
    assert score(train, labels, test).tolist() == pytest.approx(want, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("score", CLASS_SCORES)
def test_chunks_gaps_in_class_numbers_and_the_order_of_the_training_images_change_no_score(score):
    train, labels, test = made(3, 40, 8, 20)
    order, whole = torch.randperm(len(train), generator=torch.Generator().manual_seed(1)), score(train, labels, test)
    assert torch.allclose(score(train, labels, test, chunk=7), whole, rtol=1e-9)
    assert torch.allclose(score(train[order], labels[order], test), whole, rtol=1e-9)
    assert torch.equal(score(train, labels * 10 + 5, test), whole)


@pytest.mark.parametrize("k", [1, 3, 27])
def test_knn_scores_equal_the_loop_reference(k):
    train, _, test = made(3, 9, 5, 8)
    want = reference.knn_scores(train.tolist(), test.tolist(), k)
    assert knn_scores(train * 3, test * 5, k, chunk=3).tolist() == pytest.approx(want, abs=1e-3)


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
@pytest.mark.parametrize(("seed", "inliers", "outliers"), [(0, 37, 23), (1, 37, 23), (2, 40, 20), (3, 20, 40)])
def test_ood_metrics_equal_the_loop_reference_and_scikit_learn(seed, inliers, outliers, ties):
    """Of 20 and 40 scores, 95 % are a whole number: so many are enough."""
    g = torch.Generator().manual_seed(seed)
    inlier, outlier = torch.randn(inliers, generator=g) + 1, torch.randn(outliers, generator=g)
    if ties:
        inlier, outlier = inlier.round(), outlier.round()
    got = ood_metrics(inlier, outlier)
    want = reference.ood_metrics(inlier.tolist(), outlier.tolist())
    assert {name: got[name] for name in want} == pytest.approx(want)
    truth, score = [1] * inliers + [0] * outliers, torch.cat([inlier, outlier])
    assert got["AUROC"] == pytest.approx(roc_auc_score(truth, score))
    assert got["AUPR"] == got["AUPR-in"] == pytest.approx(average_precision_score(truth, score))


TRAIN, LABELS, TEST = made(2, 5, 4, 4)
NAN, ONE, NONE = torch.tensor([math.nan]), torch.tensor([1.0]), torch.tensor([])
ZERO = torch.tensor([0])


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        (lambda: ood_metrics(NONE, ONE), "0 and 1"),
        (lambda: ood_metrics(ONE, NONE), "1 and 0"),
        (lambda: ood_metrics(torch.cat([ONE, NAN]), ONE), "1 of 3 scores"),
        (lambda: ood_metrics(1 / (ONE - 1), ONE), "1 of 2"),
        (lambda: auroc_by_class(ONE, NAN, ZERO, 1), "finite"),
        (lambda: auroc_by_class(NONE, ONE, ZERO, 1), "needs ID scores"),
        *((lambda score=s: score(TRAIN, LABELS, TEST[:, :3]), "width 4, the others 3") for s in CLASS_SCORES),
        *((lambda score=s: score(TRAIN[:0], LABELS[:0], TEST), "no training features") for s in CLASS_SCORES),
        *((lambda score=s: score(TRAIN * NAN, LABELS, TEST), "features must be finite") for s in CLASS_SCORES),
        *((lambda x=x: knn_scores(TRAIN, TEST * x, 1), "NaN, infinite, or too large") for x in (NAN, 1 / ZERO, 1e30)),
        (lambda: knn_scores(TRAIN, TEST, 11), "k = 11"),
    ],
)
def test_what_has_no_score_is_named(compute, words):
    with pytest.raises(ValueError, match=words):
        compute()


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

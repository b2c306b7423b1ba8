"""Views of features are drawn by (seed, epoch, row) alone, and are what a loop over numbers makes of them."""

import math

import numpy as np
import pytest
import reference
import torch

from datasets import ImageData
from datasets.feature_views import FeatureViews, Normalization, Perturbation, complete, keyed_words
from datasets.features import FeatureRows
from datasets.sources import ViewSettings
from util import InputError

ROWS = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
L2, NONE = (Normalization(ViewSettings(normalize=how)) for how in ("l2", "none"))


def views(perturbation, rows=ROWS, normalization=L2, seed=3):
    data = ImageData(FeatureRows([rows], ["a.npy"]), torch.arange(len(rows)) % 7, [*"abcdefg"])
    return FeatureViews(data, normalization, perturbation, seed)


def test_words_equal_those_of_the_reference_for_any_seed_epoch_and_row():
    epochs, rows = np.array([1, 1, 900], np.uint64), np.array([0, 2**40, 7], np.uint64)
    for seed in (0, 5, 2**63 + 1, -1):
        found = keyed_words(seed, epochs, rows, 4).tolist()
        assert found == [reference.random_words(seed, int(e), int(r), 4) for e, r in zip(epochs, rows, strict=True)]


def test_dropout_equals_the_reference():
    found, labels = views(Perturbation(0.3))[[(2, 5), (2, 11)]]
    assert labels.tolist() == [5, 4]
    for i, row in enumerate((5, 11)):
        unit = (ROWS[row] / ROWS[row].norm()).tolist()
        words = reference.random_words(3, 2, row, 4)[1:]  # the first one chooses among stored views
        assert found[:, i].tolist() == [
            pytest.approx(v, abs=1e-6) for v in reference.dropped_views(unit, words, 0.3, 2)
        ]


@pytest.mark.parametrize("perturbation", [Perturbation(0.2), Perturbation(0.0, 0.5), Perturbation(0.2, 0.5, views=1)])
def test_a_row_has_the_same_views_in_any_batch_and_others_in_another_epoch_or_by_another_seed(perturbation):
    made = views(perturbation)
    together = made[[(1, 3), (1, 20), (1, 8)]][0]
    alone = made[[(1, 20)]][0]
    assert torch.equal(together[..., 1, :], alone[..., 0, :])
    assert not torch.equal(made[[(2, 20)]][0], alone)
    assert not torch.equal(views(perturbation, seed=4)[[(1, 20)]][0], alone)


def test_the_two_views_of_a_row_differ_and_a_single_one_has_no_axis_of_views():
    found = views(Perturbation(0.5))[[(1, i) for i in range(40)]][0]
    assert found.shape == (2, 40, 6) and not torch.equal(found[0], found[1])
    assert views(Perturbation(0.5, views=1))[[(1, 0), (1, 1)]][0].shape == (2, 6)


def test_dropout_keeps_the_mean_and_its_share_and_noise_has_its_spread():
    wide = torch.ones(64, 500)
    dropped = views(Perturbation(0.25), wide, NONE)[[(1, i) for i in range(64)]][0]
    assert float((dropped == 0).double().mean()) == pytest.approx(0.25, abs=0.005)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.005)
    noise = views(Perturbation(0.0, 0.5), wide, NONE)[[(1, i) for i in range(64)]][0] - 1
    assert noise.isfinite().all() and float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.std()) == pytest.approx(0.5, abs=0.01)
    assert float((noise.abs() < 0.5).double().mean()) == pytest.approx(math.erf(0.5**0.5), abs=0.01)


def test_without_dropout_and_noise_a_view_is_the_normalized_row():
    found = views(Perturbation(0.0))[[(1, 4)]][0]
    assert torch.equal(found[0], found[1]) and torch.allclose(found[0, 0], ROWS[4] / ROWS[4].norm())


@pytest.mark.parametrize("stored", [2, 5])
def test_stored_views_are_drawn_two_different_ones_each_as_often(stored):
    x = torch.arange(1.0, stored + 1).view(1, stored, 1).expand(500, stored, 3)
    found = views(Perturbation(0.0), x, NONE)[[(1, i) for i in range(500)]][0][:, :, 0]
    assert (found[0] != found[1]).all()
    shares = torch.bincount(found.flatten().long(), minlength=stored + 1)[1:] / 1000
    assert shares.tolist() == pytest.approx([1 / stored] * stored, abs=0.06)


def test_standard_normalization_is_by_mean_and_std_of_the_training_rows_and_leaves_constants_alone():
    x = torch.cat([ROWS, torch.full((40, 1), 3.0)], 1)
    scaled = Normalization(complete(ViewSettings(normalize="standard"), FeatureRows([x], ["a.npy"])))(x)
    assert torch.allclose(scaled[:, :6].mean(0), torch.zeros(6), atol=1e-6)
    assert torch.allclose(scaled[:, :6].std(0, correction=0), torch.ones(6), atol=1e-5)
    assert torch.equal(scaled[:, 6], torch.zeros(40))


def test_rows_are_scaled_to_length_1_or_not_at_all_as_given_and_have_the_encoders_width():
    x = torch.tensor([[3.0, 4.0]])
    rows = FeatureRows([x], ["a.npy"])
    assert torch.allclose(Normalization(complete(ViewSettings(), rows))(x), torch.tensor([[0.6, 0.8]]))
    assert torch.equal(Normalization(complete(ViewSettings(normalize="none"), rows))(x), x)
    with pytest.raises(InputError, match=r"--features a[.]npy: its rows have 2 dimensions, the encoder takes 3"):
        complete(ViewSettings(3), rows)

"""The loss of random embeddings is the mean over many more draws, and what hands and logarithms say."""

import math

import pytest
import torch
from loss_cases import asymmetric_table, generator, superclass_table, unit

import losses
from losses import NestedRINCELoss, RINCELoss, SupConLoss


def bank_labels_of(slots, classes, empty, seed=0):
    """[K] labels of unequal classes, and empty slots."""
    labels = (classes * torch.rand(slots, generator=generator(seed)) ** 2).long()
    labels[slots - empty :] = -1
    return labels


def by_drawing(criterion, bank_labels, dim, anchors=256, repeats=4):
    """[G] mean terms of random unit vectors through the loss itself, its anchors' labels spread as the bank's."""
    gen, filled, total, count = generator(1), bank_labels[bank_labels >= 0].sort().values, 0, 0
    for i in range(repeats):
        place = (torch.arange(anchors) + (i + 0.5) / repeats) * len(filled) / anchors
        query, key, bank = (unit(n, dim, gen, torch.float32) for n in (anchors, anchors, len(bank_labels)))
        terms = criterion.terms(query, key, filled[place.long()], bank, bank_labels)
        total, count = total + terms.total.double(), count + terms.count
    return total / count.clamp(min=1)


@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("variant", losses.VARIANTS)
@pytest.mark.parametrize(("dim", "slots", "classes"), [(128, 4096, 100), (64, 512, 10)])
def test_chance_is_what_the_loss_has_on_random_vectors(dim, slots, classes, variant, cumulative, reduction):
    bank_labels = bank_labels_of(slots, classes, slots // 8)
    criterion = RINCELoss(superclass_table(classes), 0.1, 0.6, variant, cumulative, 1e-7, reduction)
    got = criterion.chance(bank_labels[bank_labels >= 0], bank_labels, dim)
    want = by_drawing(criterion, bank_labels, dim, repeats=4 if slots > 1000 else 16)
    assert got.shape == (2,)
    torch.testing.assert_close(got, want, rtol=0.02, atol=0)


@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
@pytest.mark.parametrize("variant", ["in", "out"])
@pytest.mark.parametrize(
    ("taus", "min_probability"),
    [((0.1, 0.6), 3e-3), ((0.02, 0.06), 1e-7), ((0.01, 0.03), 1e-7)],
    ids=["a high cut", "a low temperature", "a very low one"],
)
def test_what_the_filter_leaves_out_does_not_count(taus, min_probability, variant, reduction):
    bank_labels = bank_labels_of(512, 10, 64)
    criterion = RINCELoss(superclass_table(10), *taus, variant, False, min_probability, reduction)
    labels = bank_labels[bank_labels >= 0]
    got = criterion.chance(labels, bank_labels, 64)
    want = by_drawing(criterion, bank_labels, 64, repeats=40)
    torch.testing.assert_close(got, want, rtol=0.05, atol=0)
    whole = RINCELoss(superclass_table(10), *taus, variant, False, 0, reduction).chance(labels, bank_labels, 64)
    assert (got <= whole + 1e-6).all()
    assert variant == "in" or got[0] < 0.9 * whole[0]  # so that the filter is felt


@pytest.mark.parametrize("variant", ["in", "out"])
def test_three_dimensions_by_hand(variant):
    """There a cosine is uniform in [-1, 1]: the own key and one negative, by the midpoint rule."""
    steps, tau = 400, 0.5
    t = [(i + 0.5) * 2 / steps - 1 for i in range(steps)]
    want = math.fsum(math.log1p(math.exp((n - p) / tau)) for p in t for n in t) / steps**2
    criterion = SupConLoss(2, tau, variant, min_probability=0)
    assert criterion.chance(torch.tensor([0]), torch.tensor([1]), 3).item() == pytest.approx(want, rel=0.02)


def test_at_a_high_temperature_it_is_the_logarithm_of_the_numbers():
    bank_labels = torch.tensor([0] * 3 + [1] * 20)
    labels = torch.tensor([0])
    for variant, want in (("in", math.log(24 / 4)), ("out", math.log(1 + 20))):
        chance = SupConLoss(2, 1e4, variant).chance(labels, bank_labels, 16)
        assert chance.item() == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize(("reduction", "share"), [("pairs", 6 / 8), ("anchors", 1 / 2)])
def test_anchors_weigh_as_the_reduction_says(reduction, share):
    """Classes with five and one entries in the bank, beside the own key: six and two pairs."""
    bank_labels = torch.tensor([0] * 5 + [1] + [-1] * 10)
    criterion = SupConLoss(2, 0.2, "out", 0, reduction)
    one, other, both = (criterion.chance(torch.tensor(y), bank_labels, 8).item() for y in ([0], [1], [0, 1]))
    assert both == pytest.approx(share * one + (1 - share) * other, rel=0.01)
    assert one < other


@pytest.mark.parametrize("variant", losses.VARIANTS)
@pytest.mark.parametrize("cumulative", [False, True])
def test_nested_groups_have_the_chance_of_their_class_table(cumulative, variant):
    groups = torch.tensor([[0, 0], [1, 0], [2, 1], [3, 1], [4, 2]])
    table = torch.eye(5, dtype=torch.float64)
    table[0, 1] = table[1, 0] = table[2, 3] = table[3, 2] = 0.75
    bank_labels = bank_labels_of(60, 5, 7)
    labels = torch.tensor([0, 0, 1, 3, 4])
    nested = NestedRINCELoss(groups, 0.1, 0.6, variant, cumulative).chance(labels, bank_labels, 16)
    torch.testing.assert_close(nested, RINCELoss(table, 0.1, 0.6, variant, cumulative).chance(labels, bank_labels, 16))


def test_the_numbers_of_entries_are_those_of_the_ranks():
    gen = generator(2)
    bank_labels = bank_labels_of(40, 6, 5)
    labels = torch.randint(6, (9,), generator=gen)
    groups = torch.tensor([[0, 0, 0], [1, 0, 0], [2, 1, 0], [3, 2, 1], [4, 2, 1], [5, 3, 2]])
    for criterion in (RINCELoss(asymmetric_table(3, gen)), NestedRINCELoss(groups)):
        ranks = criterion.ranks(labels, bank_labels)
        want = torch.stack([(ranks == r).sum(1) for r in range(len(criterion.taus) + 1)], 1)
        assert torch.equal(criterion.entries_per_rank(labels, bank_labels), want.double())


def test_a_rank_without_a_positive_has_chance_zero_as_its_term():
    criterion = RINCELoss(superclass_table(), variant="out", cumulative_positives=True)
    chance = criterion.chance(torch.tensor([0]), torch.full((8,), 4), 16)
    assert chance[0] > 0
    assert chance[1] == 0
    nobody = criterion.chance(torch.tensor([], dtype=torch.long), torch.full((8,), -1), 16)
    assert nobody.tolist() == [0, 0]


@pytest.mark.parametrize("tau", [1e-4, 1e-3, 100.0])
def test_extreme_temperatures_give_a_finite_number(tau):
    for min_probability in (0, 1e-7):
        chance = SupConLoss(2, tau, "in", min_probability).chance(torch.tensor([0]), torch.tensor([0, 1, 1, -1]), 8)
        assert chance.isfinite().all()


@pytest.mark.parametrize("min_probability", [0, 1e-7, 0.01])
def test_nothing_is_drawn_from_the_global_random_numbers_and_each_call_gives_the_same(min_probability):
    bank_labels = bank_labels_of(200, 6, 10)
    criterion = RINCELoss(superclass_table(), min_probability=min_probability)
    torch.manual_seed(5)
    before, found = torch.get_rng_state(), []
    for _ in range(2):
        found.append(criterion.chance(bank_labels.clamp(min=0), bank_labels, 32))
        torch.rand(1)
        torch.set_rng_state(before)
    assert torch.equal(*found)
    criterion.chance(bank_labels.clamp(min=0), bank_labels, 32)
    assert torch.equal(torch.get_rng_state(), before)

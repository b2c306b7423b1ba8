"""The loss of random embeddings is the mean over many more draws, and what hands say."""

import math

import pytest
import torch
from loss_cases import GROUPS, GROUPS_TABLE, asymmetric_table, generator, superclass_table, unit

import losses
from losses import NestedRINCELoss, RINCELoss, SupConLoss


def bank_labels_of(slots, classes, empty, seed=0):
    """[K] labels of unequal classes, and empty entries."""
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
    torch.testing.assert_close(got, want, rtol=0.02, atol=0)


@pytest.mark.parametrize("variant", ["in", "out"])
@pytest.mark.parametrize(
    ("taus", "min_probability"),
    [((0.1, 0.6), 3e-3), ((0.02, 0.06), 1e-7), ((0.01, 0.03), 1e-7)],
    ids=["a high cut", "a low temperature", "a very low one"],
)
def test_what_the_filter_leaves_out_does_not_count(taus, min_probability, variant):
    bank_labels = bank_labels_of(512, 10, 64)
    labels = bank_labels[bank_labels >= 0]
    filtered, whole = (RINCELoss(superclass_table(10), *taus, variant, False, p) for p in (min_probability, 0))
    got = filtered.chance(labels, bank_labels, 64)
    torch.testing.assert_close(got, by_drawing(filtered, bank_labels, 64, repeats=40), rtol=0.05, atol=0)
    assert variant == "in" or got[0] < 0.9 * whole.chance(labels, bank_labels, 64)[0]  # so that the filter is felt


@pytest.mark.parametrize("variant", ["in", "out"])
def test_three_dimensions_by_hand(variant):
    """There a cosine is uniform in [-1, 1]: the own key and one negative, by the midpoint rule."""
    steps, tau = 400, 0.5
    t = [(i + 0.5) * 2 / steps - 1 for i in range(steps)]
    want = math.fsum(math.log1p(math.exp((n - p) / tau)) for p in t for n in t) / steps**2
    criterion = SupConLoss(2, tau, variant, min_probability=0)
    assert criterion.chance(torch.tensor([0]), torch.tensor([1]), 3).item() == pytest.approx(want, rel=0.02)


def test_nested_groups_have_the_chance_of_their_class_table():
    bank_labels, labels = bank_labels_of(60, 5, 7), torch.tensor([0, 0, 1, 3, 4])
    nested, plain = (c.chance(labels, bank_labels, 16) for c in (NestedRINCELoss(GROUPS), RINCELoss(GROUPS_TABLE)))
    torch.testing.assert_close(nested, plain)


def test_the_numbers_of_entries_are_those_of_the_ranks():
    gen = generator(2)
    bank_labels, labels = bank_labels_of(40, 6, 5), torch.randint(6, (9,), generator=gen)
    groups = torch.tensor([[0, 0, 0], [1, 0, 0], [2, 1, 0], [3, 2, 1], [4, 2, 1], [5, 3, 2]])
    for criterion in (RINCELoss(asymmetric_table(3, gen)), NestedRINCELoss(groups)):
        ranks = criterion.ranks.between(labels, bank_labels)
        want = torch.stack([(ranks == r).sum(1) for r in range(len(criterion.taus))], 1)
        assert torch.equal(criterion.ranks.entries_per_rank(labels, bank_labels), want.double())


def test_a_rank_without_a_positive_has_chance_zero_as_its_term():
    criterion = RINCELoss(superclass_table(), variant="out", cumulative_positives=True)
    chance = criterion.chance(torch.tensor([0]), torch.full((8,), 4), 16)
    assert chance[0] > 0
    assert chance[1] == 0
    nobody = criterion.chance(torch.tensor([], dtype=torch.long), torch.full((8,), -1), 16)
    assert nobody.tolist() == [0, 0]


def test_nothing_is_drawn_from_the_global_random_numbers_and_each_call_gives_the_same():
    bank_labels, criterion = bank_labels_of(200, 6, 10), RINCELoss(superclass_table())
    before = torch.get_rng_state()
    first = criterion.chance(bank_labels.clamp(min=0), bank_labels, 32)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(criterion.chance(bank_labels.clamp(min=0), bank_labels, 32), first)

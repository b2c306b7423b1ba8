"""Nested groups of images: the ranks of the reference, the loss of the class table."""

import pytest
import reference
import torch
from loss_cases import batch, expected, generator, loss_and_grads, nested_groups, unit

import losses
from losses import NestedRINCELoss, RINCELoss

# Nested groups


@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("levels", [1, 2, 3, 5])
@pytest.mark.parametrize("variant", losses.VARIANTS)
def test_nested_groups_are_the_ranks_of_the_reference(variant, levels, cumulative):
    gen = generator(levels)
    groups = nested_groups(9, levels, gen)
    rank = [[reference.nested_rank(groups.tolist(), a, b) for b in range(9)] for a in range(9)]
    step = min(0.25, 1 / levels)
    table = torch.tensor([[max(0.0, 1 - r * step) if r < levels else 0.0 for r in row] for row in rank])
    data = batch(seed=levels, classes=9, filled=12)
    labels, bank_labels = data[2], data[4]
    criterion = NestedRINCELoss(groups, 0.1, 0.6, variant, cumulative, 1e-7)
    assert criterion.ranks(labels, bank_labels).tolist() == [
        [reference.nested_rank(groups.tolist(), a, b) for b in bank_labels.tolist()] for a in labels.tolist()
    ]
    levels_present = len(set(table[table > 0].tolist()))
    if levels_present == levels:  # else the table has fewer ranks than there are levels
        want = expected(data, table.double(), 0.1, 0.6, variant, cumulative, 1e-7)
        assert criterion(*data).item() == pytest.approx(want, rel=1e-6)


def test_nested_groups_equal_the_class_table_in_loss_and_gradient():
    groups = torch.tensor([[0, 0], [1, 0], [2, 1], [3, 1], [4, 2]])
    table = torch.eye(5, dtype=torch.float64)
    table[0, 1] = table[1, 0] = table[2, 3] = table[3, 2] = 0.75
    data = batch(seed=3, classes=5)
    ours = loss_and_grads(NestedRINCELoss(groups), *data)
    for got, want in zip(ours, loss_and_grads(RINCELoss(table), *data), strict=True):
        torch.testing.assert_close(got, want)
    labels, bank_labels = data[2], data[4]
    counted = NestedRINCELoss(groups).positives_per_anchor(labels, bank_labels)
    torch.testing.assert_close(counted, RINCELoss(table).positives_per_anchor(labels, bank_labels))


def test_a_level_at_which_a_label_is_alone_does_not_occur():
    groups = torch.tensor([[0, 0], [1, 1], [2, 1]])
    criterion = NestedRINCELoss(groups)
    assert criterion.has_rank.tolist() == [[True, False], [True, True], [True, True]]
    query = unit(1, 4, generator(0))
    terms = criterion.terms(query, query, torch.tensor([0]), unit(4, 4, generator(1)), torch.tensor([1, 2, -1, 0]))
    assert terms.occurs.tolist() == [True, False]


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ([[0, 0], [1, 0], [1, 0]], "a label's own"),
        ([[0, 0, 0], [1, 0, 1], [2, 1, 1]], "group of level 1 lies in two of level 2"),
        ([], "is needed"),
    ],
)
def test_groups_that_are_not_nested_are_named(groups, reason):
    with pytest.raises(ValueError, match=reason):
        NestedRINCELoss(torch.tensor(groups))

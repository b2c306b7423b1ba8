"""Nested groups of images: the ranks of the reference, the loss of the class table."""

import pytest
import reference
import torch
from loss_cases import FORMS, GROUPS, GROUPS_TABLE, batch, expected, generator, loss_and_grads, nested_groups, unit

from losses import NestedRINCELoss, RINCELoss


@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("levels", [1, 2, 3, 5])
@pytest.mark.parametrize(("variant", "reduction"), FORMS)
def test_nested_groups_are_the_ranks_of_the_reference(variant, reduction, levels, cumulative):
    groups = nested_groups(9, levels, generator(levels))
    rank = [[reference.nested_rank(groups.tolist(), a, b) for b in range(9)] for a in range(9)]
    step = min(0.25, 1 / levels)
    table = torch.tensor([[1 - r * step if r < levels else 0.0 for r in row] for row in rank]).double()
    data, how = batch(seed=levels, classes=9, filled=12), (0.1, 0.6, variant, cumulative, 1e-7, reduction)
    _, _, labels, _, bank_labels = data
    criterion = NestedRINCELoss(groups, *how)
    assert criterion.ranks.between(labels, bank_labels).tolist() == [
        [reference.nested_rank(groups.tolist(), a, b) for b in bank_labels.tolist()] for a in labels.tolist()
    ]
    if len({r for row in rank for r in row if r < levels}) == levels:  # else the table has fewer ranks than levels
        assert criterion(*data).item() == pytest.approx(expected(data, table, *how), rel=1e-6)


def test_nested_groups_equal_their_class_table_in_loss_gradient_and_counts():
    data = batch(seed=3, classes=5)
    nested, plain = NestedRINCELoss(GROUPS), RINCELoss(GROUPS_TABLE)
    torch.testing.assert_close(loss_and_grads(nested, *data), loss_and_grads(plain, *data))
    counts = (criterion.positives_per_anchor(data[2], data[4]) for criterion in (nested, plain))
    torch.testing.assert_close(*counts)


def test_a_level_at_which_a_label_is_alone_does_not_occur():
    criterion = NestedRINCELoss(torch.tensor([[0, 0], [1, 1], [2, 1]]))
    assert criterion.ranks.has_rank.tolist() == [[True, False], [True, True], [True, True]]
    query = unit(1, 4, generator(0))
    terms = criterion.terms(query, query, torch.tensor([0]), unit(4, 4, generator(1)), torch.tensor([1, 2, -1, 0]))
    assert terms.occurs.tolist() == [True, False]

"""The objective equals its slow reference, also at the edges, and names what is wrong."""

import math

import pytest
import reference
import torch
from loss_cases import (
    CLASSES,
    FORMS,
    HEADS,
    asymmetric_table,
    batch,
    expected,
    generator,
    hard_batch,
    loss_and_grads,
    superclass_table,
    unit,
)

import losses
from losses import NestedRINCELoss, RINCELoss, SupConLoss

# Values: the reference


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize(("variant", "reduction"), FORMS)
def test_rince_equals_the_reference(variant, reduction, ranks, cumulative, head, use_head):
    taus = use_head(head)
    table = asymmetric_table(ranks, generator(ranks))
    for min_probability in (0, 1e-7, 0.02):
        how = *taus, variant, cumulative, min_probability, reduction
        for slots, filled in ((16, 0), (16, 8), (16, 16), (0, 0)):
            data = batch(seed=10 * ranks + filled, slots=slots, filled=filled)
            loss, *gradients = loss_and_grads(RINCELoss(table, *how), *data)
            assert loss.item() == pytest.approx(expected(data, table, *how), rel=1e-10), (min_probability, filled)
            assert all(x.isfinite().all() for x in gradients)


def edges():
    """Name -> table, labels of the anchors, labels of the bank."""
    table, bank_labels = superclass_table(), batch(seed=12)[4]
    alone, farther = table.clone(), table.clone()
    alone[0, 1], farther[0, 1] = 0, 0.5
    return {
        "class 1, the only one of rank 1, is not in the bank": (table, [0] * 7, torch.full((16,), 4)),
        "neither class 1 nor class 0 for half of the anchors": (table, [0, 3] * 3 + [0], bank_labels.clamp(min=2)),
        "no anchor has a class of rank 1": (alone, [0] * 7, bank_labels),
        "the farther rank that occurs is the third": (farther, [0] * 7, bank_labels),
    }


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize(("variant", "reduction"), FORMS)
@pytest.mark.parametrize("edge", edges())
def test_ranks_without_positives_and_ranks_that_do_not_occur_equal_the_reference(
    edge, variant, reduction, cumulative, head, use_head
):
    table, labels, bank_labels = edges()[edge]
    query, key, _, bank, _ = batch(seed=12)
    data, how = (query, key, torch.tensor(labels), bank, bank_labels), (variant, cumulative, 1e-7, reduction)
    taus = use_head(head)
    loss, *gradients = loss_and_grads(RINCELoss(table, *taus, *how), *data)
    assert loss.item() == pytest.approx(expected(data, table, *taus, *how), rel=1e-10)
    assert all(x.isfinite().all() for x in gradients)


@pytest.mark.parametrize("min_probability", [0, 1e-7, 0.02])
@pytest.mark.parametrize(("variant", "reduction"), FORMS)
@pytest.mark.parametrize("taus", [(0.1,), (0.1, 0.35), (0.05, 0.1, 0.2), (0.01, 0.02, 0.5, 0.6)])
def test_rince_on_ranks_equals_the_reference(taus, variant, reduction, min_probability):
    gen, how = generator(len(taus)), (taus, variant, min_probability, reduction)
    similarity = 2 * torch.rand(8, 20, generator=gen, dtype=torch.float64) - 1
    rank = torch.randint(-1, len(taus) + 3, (8, 20), generator=gen)
    rank[0], rank[1], rank[2] = len(taus), 0, -1  # rows of negatives alone, of positives alone, without entries
    for ranks in (rank, rank.masked_fill(rank == 1, 9)):  # the second lacks a rank
        want = reference.rince_on_ranks(similarity.tolist(), ranks.tolist(), *how)
        assert losses.rince(similarity, ranks, *how).item() == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("rank", [-1, 2], ids=["unused", "negative"])
@pytest.mark.parametrize("variant", losses.VARIANTS)
def test_ranks_without_positives_have_zero_loss_with_a_graph(variant, rank):
    similarity = unit(4, 5, generator(13)).requires_grad_()
    loss = losses.rince(similarity, torch.full((4, 5), rank), [0.1, 0.2], variant)
    assert loss == 0
    loss.backward()
    assert torch.equal(similarity.grad, torch.zeros_like(similarity))


def test_a_one_rank_loss_by_hand():
    # q.k = 0.6, q.m = 0: -log(exp(6) / (exp(6) + exp(0))) = log(1 + exp(-6))
    query, key, bank = torch.tensor([[[1, 0]], [[0.6, 0.8]], [[0, 1]]], dtype=torch.float64)
    loss = SupConLoss(2, 0.1)(query, key, torch.tensor([0]), bank, torch.tensor([1]))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-6)), rel=1e-10)


@pytest.mark.parametrize(("variant", "reduction"), FORMS)
def test_supcon_is_rince_with_one_rank(variant, reduction):
    data = batch(seed=3)
    supcon = SupConLoss(CLASSES, 0.1, variant, reduction=reduction)
    one_rank = RINCELoss(torch.eye(CLASSES), 0.1, 0.6, variant, reduction=reduction)
    assert all(map(torch.equal, loss_and_grads(supcon, *data), loss_and_grads(one_rank, *data)))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("min_probability", [0, 0.02])
def test_in_terms_are_the_same_to_the_bit_in_both_reductions(min_probability, head, use_head):
    how = asymmetric_table(3, generator(1)), *use_head(head), "in", False, min_probability
    assert all(map(torch.equal, *(loss_and_grads(RINCELoss(*how, r), *batch(seed=6)) for r in losses.REDUCTIONS)))


@pytest.mark.parametrize(("reduction", "weight"), [("pairs", 100), ("anchors", 10)])
def test_a_class_of_ten_times_the_images_weighs_a_hundred_times_over_pairs_and_ten_times_within_anchors(
    reduction, weight
):
    """Ten anchors and ten entries of class a beside one and one of class b; all pairs of a class are equally hard."""
    rank = torch.ones(11, 11, dtype=torch.long)
    rank[:10, :10] = rank[10, 10] = 0
    similarity = torch.full((11, 11), 0.5, dtype=torch.float64)
    similarity[:10, 10], similarity[10, :10], similarity[10, 10] = -0.2, 0.3, 0.1
    a, b = math.log1p(math.exp(-0.7 / 0.1)), math.log1p(10 * math.exp(0.2 / 0.1))
    loss = losses.rince(similarity, rank, [0.1], "out", 0, reduction)
    assert loss.item() == pytest.approx((weight * a + b) / (weight + 1), rel=1e-12)


def test_positives_per_anchor_counts_bank_and_own_key():
    criterion = RINCELoss(superclass_table())
    got = criterion.positives_per_anchor(torch.tensor([0, 2]), torch.tensor([0, 0, 1, 2, 5, -1, -1]))
    assert got.tolist() == [(2 + 1) / 2 + 1, (1 + 0) / 2]


def test_vectors_of_different_types_count_in_the_widest():
    query, key, labels, bank, bank_labels = batch(seed=23)
    criterion = RINCELoss(superclass_table())
    found = criterion(query.float(), key.float(), labels, bank, bank_labels)
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(float(criterion(query, key, labels, bank, bank_labels)), rel=1e-6)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("variant", "reduction"), FORMS)
def test_a_vector_that_is_no_number_shows(variant, reduction, head, use_head):
    query, *rest = batch(seed=12)
    query[0, 0] = math.nan
    assert RINCELoss(superclass_table(), *use_head(head), variant, reduction=reduction)(query, *rest).isnan()


# The published filter


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("variant", "reduction"), FORMS)
def test_the_filter_takes_the_gradient_of_a_hard_anchor_and_zero_keeps_it(variant, reduction, head, use_head):
    tau, _ = use_head(head)
    published = loss_and_grads(SupConLoss(1, tau, variant, reduction=reduction), *hard_batch())
    assert not any(x.any() for x in published)
    found = loss_and_grads(SupConLoss(1, tau, variant, 0, reduction), *hard_batch())
    wanted = torch.tensor(2 / tau), torch.tensor([[2 / tau, 0, 0]]), torch.tensor([[-1 / tau, 0, 0]])
    torch.testing.assert_close(found, [x.double() for x in wanted], rtol=1e-7, atol=0)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("variant", "reduction"), FORMS)
def test_the_filter_leaves_a_hard_term_out_of_the_count(variant, reduction, head, use_head):
    tau, _ = use_head(head)
    query, key, labels, bank, bank_labels = hard_batch(2)
    key[1] = query[1]  # the second anchor is easy: probability 1/2
    terms = SupConLoss(1, tau, variant, reduction=reduction).terms(query, key, labels, bank, bank_labels)
    assert terms.count.tolist() == [1]
    assert terms.loss().item() == pytest.approx(math.log(2), rel=1e-10)


@pytest.mark.parametrize("head", ["fast", "log space"])
@pytest.mark.parametrize("variant", ["in", "out"])
@pytest.mark.parametrize(("logit_gap", "kept"), [(16.11, True), (16.13, False)])
def test_the_filter_cuts_at_one_in_ten_million(logit_gap, kept, variant, head, use_head):
    # p = 1 / (1 + exp(gap)); p = 1e-7 at a gap of 16.118
    tau, _ = use_head(head)
    query, _, labels, bank, bank_labels = hard_batch()
    cosine = 1 - logit_gap * tau
    key = torch.tensor([[cosine, math.sqrt(1 - cosine**2), 0]], dtype=torch.float64)
    terms = SupConLoss(1, tau, variant).terms(query, key, labels, bank, bank_labels)
    assert terms.count.tolist() == [int(kept)]


# Errors


ZEROS = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RINCELoss(torch.ones(2, 3)), r"shape \(2, 3\); \[C, C\] is needed"),
        (lambda: RINCELoss(torch.ones(3)), r"shape \(3,\)"),
        (lambda: RINCELoss(torch.ones(0, 0)), r"shape \(0, 0\)"),
        (lambda: RINCELoss(torch.tensor([[1.0, 0.5], [0.5, 0.9]])), "1 on the diagonal"),
        (lambda: RINCELoss(torch.tensor([[1.0, 1.5], [0.5, 1.0]])), r"lie in \[0, 1\]"),
        (lambda: RINCELoss(torch.tensor([[1.0, -0.5], [0.5, 1.0]])), r"lie in \[0, 1\]"),
        (lambda: RINCELoss(torch.tensor([[1.0, math.nan], [0.5, 1.0]])), r"lie in \[0, 1\]"),
        (lambda: RINCELoss(torch.rand(20, 20, generator=generator(25)).fill_diagonal_(1)), "at most 126 ranks"),
        (lambda: RINCELoss(torch.eye(2), 0, 0.1), "0 < min_tau <= max_tau, not 0 and 0.1"),
        (lambda: RINCELoss(torch.eye(2), 0.2, 0.1), "0 < min_tau <= max_tau"),
        (lambda: RINCELoss(torch.eye(2), math.nan, 0.1), "0 < min_tau <= max_tau"),
        (lambda: SupConLoss(2, min_probability=-0.1), "min_probability is -0.1"),
        (lambda: SupConLoss(2, min_probability=1), "min_probability is 1"),
        (lambda: SupConLoss(2, min_probability=math.nan), "min_probability is nan"),
        (lambda: RINCELoss(torch.eye(2), variant="sum"), "'sum'; choose one of in, out, out_in"),
        (lambda: SupConLoss(2, variant="sum"), "'sum'; choose"),
        (lambda: losses.rince(ZEROS, ZEROS, [0.1], "sum"), "'sum'; choose"),
        (lambda: RINCELoss(torch.eye(2), reduction="mean"), "'mean'; choose one of pairs, anchors"),
        (lambda: SupConLoss(2, reduction="mean"), "'mean'; choose"),
        (lambda: NestedRINCELoss(torch.tensor([[0], [1]]), reduction="mean"), "'mean'; choose"),
        (lambda: losses.rince(ZEROS, ZEROS, [0.1], reduction="mean"), "'mean'; choose"),
        (lambda: losses.rince(torch.zeros(2, 3), torch.zeros(2, 4), [0.1]), r"similarity \(2, 3\) and rank \(2, 4\)"),
        (lambda: losses.rince(ZEROS, ZEROS, []), "one temperature above 0 per rank"),
        (lambda: losses.rince(ZEROS, ZEROS, [0.1, 0.0]), "one temperature above 0 per rank"),
        (lambda: NestedRINCELoss(torch.tensor([[0, 0], [1, 0], [1, 0]])), "a label's own"),
        (
            lambda: NestedRINCELoss(torch.tensor([[0, 0, 0], [1, 0, 1], [2, 1, 1]])),
            "level 1 is in two groups of level 2",
        ),
        (lambda: NestedRINCELoss(torch.tensor([])), "is needed"),
    ],
)
def test_what_a_loss_cannot_be_made_of_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()

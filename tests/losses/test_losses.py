"""The objective equals its slow reference, keeps its promises at the edges, and names what is wrong."""

import math

import pytest
import reference
import torch
import torch.nn.functional as F
from loss_cases import (
    CLASSES,
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
from losses import RINCELoss, SupConLoss

# Values: the reference


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("min_probability", [0, 1e-7, 0.02])
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("variant", losses.VARIANTS)
def test_rince_equals_the_reference(variant, ranks, cumulative, min_probability, head, use_head):
    taus = use_head(head)
    table = asymmetric_table(ranks, generator(ranks))
    criterion = RINCELoss(table, *taus, variant, cumulative, min_probability)
    for filled in (0, 8, 16):
        data = batch(seed=10 * ranks + filled, filled=filled)
        want = expected(data, table, *taus, variant, cumulative, min_probability)
        assert criterion(*data).item() == pytest.approx(want, rel=1e-10), f"{filled} of 16 slots filled"


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("variant", losses.VARIANTS)
def test_rince_on_superclasses_equals_the_reference(variant, cumulative, head, use_head):
    taus = use_head(head)
    table, data = superclass_table(), batch(seed=1)
    want = expected(data, table, *taus, variant, cumulative, 1e-7)
    assert RINCELoss(table, *taus, variant, cumulative)(*data).item() == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("variant", losses.VARIANTS)
def test_a_bank_without_slots_leaves_the_own_keys_alone(variant, cumulative, head, use_head):
    taus = use_head(head)
    table, data = superclass_table(), batch(seed=2, slots=0)
    loss, *grads = loss_and_grads(RINCELoss(table, *taus, variant, cumulative), *data)
    assert loss == expected(data, table, *taus, variant, cumulative) == 0
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize("min_probability", [0, 1e-7, 0.02])
@pytest.mark.parametrize("variant", losses.VARIANTS)
@pytest.mark.parametrize("taus", [(0.1,), (0.1, 0.35), (0.05, 0.1, 0.2), (0.01, 0.02, 0.5, 0.6)])
def test_rince_on_ranks_equals_the_reference(taus, variant, min_probability):
    gen = generator(len(taus))
    similarity = 2 * torch.rand(8, 20, generator=gen, dtype=torch.float64) - 1
    rank = torch.randint(-1, len(taus) + 3, (8, 20), generator=gen)
    rank[0] = len(taus)  # a row without positives
    rank[1] = 0  # a row of positives alone
    rank[2] = -1  # a row without entries
    want = reference.rince_on_ranks(similarity.tolist(), rank.tolist(), taus, variant, min_probability)
    assert losses.rince(similarity, rank, taus, variant, min_probability).item() == pytest.approx(want, rel=1e-10)


def test_a_rank_without_entries_is_not_in_the_mean():
    similarity = torch.tensor([[0.3, 0.9, -0.2]], dtype=torch.float64)
    rank = torch.tensor([[0, 2, 3]])
    want = reference.rince_on_ranks(similarity.tolist(), rank.tolist(), [0.1, 0.2, 0.3], "in")
    assert losses.rince(similarity, rank, [0.1, 0.2, 0.3], "in").item() == pytest.approx(want, rel=1e-10)
    two_ranks = losses.rince(similarity, torch.tensor([[0, 1, 2]]), [0.1, 0.3], "in")
    assert two_ranks.item() == pytest.approx(want, rel=1e-10)


def test_a_one_rank_loss_by_hand():
    # q.k = 0.6, q.m = 0: -log(exp(6) / (exp(6) + exp(0))) = log(1 + exp(-6))
    query = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    key = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    bank = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    loss = SupConLoss(2, 0.1)(query, key, torch.tensor([0]), bank, torch.tensor([1]))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-6)), rel=1e-10)


@pytest.mark.parametrize("variant", ["in", "out"])
def test_supcon_equals_rince_with_one_rank(variant):
    data = batch(seed=3)
    one_rank = RINCELoss(torch.eye(CLASSES), 0.1, 0.6, variant)
    for got, want in zip(
        loss_and_grads(SupConLoss(CLASSES, 0.1, variant), *data), loss_and_grads(one_rank, *data), strict=True
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("variant", ["in", "out"])
def test_supcon_equals_the_supervised_infonce(variant):
    query, key, labels, bank, bank_labels = data = batch(seed=4, anchors=5)
    terms = []
    for n in range(5):
        own = (query[n] @ key[n]).div(0.1).exp()
        e = (bank @ query[n]).div(0.1).exp()
        positive, negative = e[bank_labels == labels[n]], e[bank_labels != labels[n]].sum()
        numerators = torch.cat([own[None], positive])
        numerators = numerators.sum()[None] if variant == "in" else numerators
        terms.append(-(numerators / (numerators + negative)).log())
    want = torch.cat(terms).mean().item()
    assert SupConLoss(CLASSES, 0.1, variant, min_probability=0)(*data).item() == pytest.approx(want, rel=1e-10)


# Properties


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("variant", losses.VARIANTS)
def test_permuting_the_bank_changes_nothing(variant, cumulative, head, use_head):
    criterion = RINCELoss(asymmetric_table(3, generator(0)), *use_head(head), variant, cumulative)
    query, key, labels, bank, bank_labels = batch(seed=5, filled=12)
    order = torch.randperm(len(bank), generator=generator(6))
    before = loss_and_grads(criterion, query, key, labels, bank, bank_labels)
    after = loss_and_grads(criterion, query, key, labels, bank[order], bank_labels[order])
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("cumulative", [False, True])
def test_empty_slots_are_negatives(cumulative, head, use_head):
    taus = use_head(head)
    query, key, labels, bank, bank_labels = batch(seed=7, filled=10)
    wider = F.pad(superclass_table(), (0, 1, 0, 1))  # one more class, unrelated to all
    wider[-1, -1] = 1
    as_negatives = torch.where(bank_labels < 0, CLASSES, bank_labels)
    empty = loss_and_grads(
        RINCELoss(superclass_table(), *taus, "out_in", cumulative), query, key, labels, bank, bank_labels
    )
    negative = loss_and_grads(RINCELoss(wider, *taus, "out_in", cumulative), query, key, labels, bank, as_negatives)
    torch.testing.assert_close(empty, negative, rtol=1e-12, atol=0)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("variant", losses.VARIANTS)
def test_the_own_key_is_no_part_of_the_second_cumulative_term(variant, head, use_head):
    criterion = RINCELoss(superclass_table(), *use_head(head), variant, cumulative_positives=True, min_probability=0)
    query, key, *rest = batch(seed=8)
    key.requires_grad_()
    terms, moved = criterion.terms(query, key, *rest), criterion.terms(query, -key, *rest)
    assert terms.per_rank()[0] != moved.per_rank()[0]
    assert terms.per_rank()[1].item() == pytest.approx(moved.per_rank()[1].item(), rel=1e-12)
    assert terms.count[1] == moved.count[1]
    (grad,) = torch.autograd.grad(terms.total[1], key)
    assert not grad.any()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("variant", ["in", "out_in"])
def test_closer_ranks_get_no_gradient_from_a_farther_rank(variant, head, use_head):
    criterion = RINCELoss(superclass_table(), *use_head(head), variant)
    query, key, labels, bank, bank_labels = batch(seed=9)
    labels = torch.zeros_like(labels)
    bank.requires_grad_()
    (grad,) = torch.autograd.grad(criterion.terms(query, key, labels, bank, bank_labels).total[1], bank)
    assert not grad[bank_labels == 0].any()
    assert grad[bank_labels > 0].any(1).all()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("variant", losses.VARIANTS)
def test_a_rank_without_positives_adds_zero_and_counts_in_the_mean(variant, head, use_head):
    criterion = RINCELoss(superclass_table(), *use_head(head), variant)
    query, key, labels, bank, _ = batch(seed=11)
    labels, bank_labels = torch.zeros_like(labels), torch.full((len(bank),), 4)  # class 1 is not in the bank
    query.requires_grad_()
    terms = criterion.terms(query, key, labels, bank, bank_labels)
    assert terms.occurs.tolist() == [True, True]
    assert terms.per_rank()[1] == 0
    assert terms.loss().item() == pytest.approx(terms.per_rank()[0].item() / 2, rel=1e-12)
    (grad,) = torch.autograd.grad(terms.per_rank()[1], query)
    assert not grad.any()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("cumulative", [False, True])
def test_a_rank_that_no_anchor_has_in_the_table_is_not_in_the_mean(cumulative, head, use_head):
    table = superclass_table()
    table[0, 1] = 0  # class 0 has no relatives
    criterion = RINCELoss(table, *use_head(head), "out_in", cumulative)
    query, key, labels, bank, bank_labels = batch(seed=12)
    terms = criterion.terms(query, key, torch.zeros_like(labels), bank, bank_labels)
    assert terms.occurs.tolist() == [True, False]
    assert terms.loss().item() == pytest.approx(terms.per_rank()[0].item(), rel=1e-12)


@pytest.mark.parametrize("head", HEADS)
def test_the_second_cumulative_term_is_in_the_mean_if_any_farther_rank_occurs(head, use_head):
    taus = use_head(head)
    table = superclass_table()
    table[0, 1] = 0.5  # the classes of the batch have relatives at 0.5, none at 0.75
    query, key, labels, bank, bank_labels = batch(seed=12)
    data = (query, key, torch.zeros_like(labels), bank, bank_labels)
    terms = RINCELoss(table, *taus, "out_in", cumulative_positives=True).terms(*data)
    assert terms.occurs.tolist() == [True, True]
    assert terms.loss().item() == pytest.approx(expected(data, table, *taus, "out_in", True, 1e-7), rel=1e-10)


@pytest.mark.parametrize("rank", [-1, 2], ids=["unused", "negative"])
@pytest.mark.parametrize("variant", losses.VARIANTS)
def test_a_batch_without_positives_has_zero_loss_with_a_graph(variant, rank):
    similarity = unit(4, 5, generator(13)).requires_grad_()
    loss = losses.rince(similarity, torch.full((4, 5), rank), [0.1, 0.2], variant)
    assert loss == 0
    assert loss.requires_grad
    loss.backward()
    assert torch.equal(similarity.grad, torch.zeros_like(similarity))


def test_positives_per_anchor_counts_bank_and_own_key():
    criterion = RINCELoss(superclass_table())
    got = criterion.positives_per_anchor(torch.tensor([0, 2]), torch.tensor([0, 0, 1, 2, 5, -1, -1]))
    assert got.tolist() == [(2 + 1) / 2 + 1, (1 + 0) / 2]


# The published filter


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("variant", ["in", "out"])
def test_the_filter_takes_the_gradient_of_a_hard_anchor_and_zero_keeps_it(variant, head, use_head):
    tau, _ = use_head(head)
    published = loss_and_grads(SupConLoss(1, tau, variant), *hard_batch())
    assert not any(x.any() for x in published)
    loss, query_grad, key_grad = loss_and_grads(SupConLoss(1, tau, variant, min_probability=0), *hard_batch())
    assert loss.item() == pytest.approx(2 / tau, rel=1e-7)
    torch.testing.assert_close(query_grad, torch.tensor([[2 / tau, 0, 0]]).double(), rtol=1e-7, atol=0)
    torch.testing.assert_close(key_grad, torch.tensor([[-1 / tau, 0, 0]]).double(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("variant", ["in", "out"])
def test_the_filter_leaves_a_hard_term_out_of_the_count(variant, head, use_head):
    tau, _ = use_head(head)
    query, key, labels, bank, bank_labels = hard_batch(2)
    key[1] = query[1]  # the second anchor is easy: probability 1/2
    terms = SupConLoss(1, tau, variant).terms(query, key, labels, bank, bank_labels)
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


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.ones(2, 3), r"shape \(2, 3\); \[C, C\] is needed"),
        (torch.ones(3), r"shape \(3,\)"),
        (torch.ones(0, 0), r"shape \(0, 0\)"),
        (torch.tensor([[1.0, 0.5], [0.5, 0.9]]), "1 on the diagonal"),
        (torch.tensor([[1.0, 1.5], [0.5, 1.0]]), r"lie in \[0, 1\]"),
        (torch.tensor([[1.0, -0.5], [0.5, 1.0]]), r"lie in \[0, 1\]"),
        (torch.tensor([[1.0, math.nan], [0.5, 1.0]]), r"lie in \[0, 1\]"),
        (torch.rand(20, 20, generator=generator(25)).fill_diagonal_(1), "at most 126 ranks"),
    ],
)
def test_a_table_that_is_none_raises(table, message):
    with pytest.raises(ValueError, match=message):
        RINCELoss(table)


@pytest.mark.parametrize(("min_tau", "max_tau"), [(0, 0.1), (-0.1, 0.1), (0.2, 0.1), (math.nan, 0.1)])
def test_temperatures_that_are_none_raise(min_tau, max_tau):
    with pytest.raises(ValueError, match=f"0 < min_tau <= max_tau, not {min_tau} and {max_tau}"):
        RINCELoss(torch.eye(2), min_tau, max_tau)


@pytest.mark.parametrize("min_probability", [-0.1, 1, math.nan])
def test_a_probability_that_is_none_raises(min_probability):
    with pytest.raises(ValueError, match=f"min_probability is {min_probability}"):
        SupConLoss(2, min_probability=min_probability)


@pytest.mark.parametrize(
    "make",
    [
        lambda v: RINCELoss(torch.eye(2), variant=v),
        lambda v: SupConLoss(2, variant=v),
        lambda v: losses.rince(torch.zeros(2, 2), torch.zeros(2, 2), [0.1], v),
    ],
    ids=["RINCELoss", "SupConLoss", "rince"],
)
def test_an_unknown_variant_raises_and_names_the_known_ones(make):
    with pytest.raises(ValueError, match="'sum'; choose one of in, out, out_in"):
        make("sum")


def test_shapes_that_differ_raise():
    with pytest.raises(ValueError, match=r"similarity \(2, 3\) and rank \(2, 4\)"):
        losses.rince(torch.zeros(2, 3), torch.zeros(2, 4), [0.1])


@pytest.mark.parametrize("taus", [[], [0.1, 0.0], [-1.0]])
def test_rank_temperatures_that_are_none_raise(taus):
    with pytest.raises(ValueError, match="one temperature above 0 a rank"):
        losses.rince(torch.zeros(2, 3), torch.zeros(2, 3), taus)


def test_vectors_of_different_types_count_in_the_widest():
    query, key, labels, bank, bank_labels = batch(seed=23)
    criterion = RINCELoss(superclass_table())
    found = criterion(query.float(), key.float(), labels, bank, bank_labels)
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(float(criterion(query, key, labels, bank, bank_labels)), rel=1e-6)

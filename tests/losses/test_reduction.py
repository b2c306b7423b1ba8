"""The out form's mean within anchors: it equals its reference, has its own gradients, and weighs anchors alike."""

import math

import pytest
import reference
import torch
from loss_cases import (
    CLASSES,
    HEADS,
    asymmetric_table,
    batch,
    expected,
    generator,
    hard_batch,
    loss_and_grads,
    nested_groups,
    superclass_table,
    unit,
)

import losses
from losses import InBatchLoss, NestedRINCELoss, RINCELoss, SupConLoss

# Values: the reference


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("variant", losses.VARIANTS)
def test_the_mean_within_anchors_equals_the_reference(variant, cumulative, head, use_head):
    taus = use_head(head)
    for ranks in (1, 2, 4):
        table = asymmetric_table(ranks, generator(ranks))
        for min_probability in (0, 1e-7, 0.02):
            criterion = RINCELoss(table, *taus, variant, cumulative, min_probability, "anchors")
            for filled in (0, 8, 16):
                data = batch(seed=10 * ranks + filled, filled=filled)
                want = expected(data, table, *taus, variant, cumulative, min_probability, "anchors")
                case = f"{ranks} ranks, filter {min_probability}, {filled} of 16 slots filled"
                assert criterion(*data).item() == pytest.approx(want, rel=1e-10), case


@pytest.mark.parametrize("variant", losses.VARIANTS)
@pytest.mark.parametrize("taus", [(0.1,), (0.05, 0.1, 0.2), (0.01, 0.02, 0.5, 0.6)])
def test_it_equals_the_reference_on_ranks(taus, variant):
    gen = generator(len(taus))
    similarity = 2 * torch.rand(8, 20, generator=gen, dtype=torch.float64) - 1
    rank = torch.randint(-1, len(taus) + 3, (8, 20), generator=gen)
    rank[0], rank[1], rank[2] = len(taus), 0, -1  # rows of negatives alone, of positives alone, without entries
    for min_probability in (0, 1e-7, 0.02):
        how = taus, variant, min_probability, "anchors"
        want = reference.rince_on_ranks(similarity.tolist(), rank.tolist(), *how)
        assert losses.rince(similarity, rank, *how).item() == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("variant", losses.VARIANTS)
def test_it_equals_the_reference_on_nested_groups(variant, cumulative):
    groups = nested_groups(9, 3, generator(3))
    table = torch.tensor(
        [[{0: 1.0, 1: 0.75, 2: 0.5, 3: 0.0}[reference.nested_rank(groups.tolist(), a, b)] for b in range(9)]
         for a in range(9)], dtype=torch.float64,
    )  # fmt: skip
    data = batch(seed=3, classes=9, filled=12)
    criterion = NestedRINCELoss(groups, 0.1, 0.6, variant, cumulative, 1e-7, "anchors")
    want = expected(data, table, 0.1, 0.6, variant, cumulative, 1e-7, "anchors")
    assert criterion(*data).item() == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("own_key", [True, False])
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("variant", losses.VARIANTS)
def test_it_equals_the_reference_without_a_bank(variant, cumulative, own_key):
    table = superclass_table()
    query, key, labels, *_ = batch(seed=5, anchors=10)
    lists = query.tolist(), key.tolist() if own_key else None, labels.tolist(), table.tolist()
    for min_probability in (0, 0.02):
        criterion = InBatchLoss(RINCELoss(table, 0.1, 0.6, variant, cumulative, min_probability, "anchors"))
        want = reference.rince_in_batch(*lists, variant, cumulative, min_probability, "anchors")
        assert float(criterion(query, key if own_key else None, labels)) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("min_probability", [0, 0.02])
def test_in_terms_are_the_same_to_the_bit(min_probability, cumulative, head, use_head):
    how = asymmetric_table(3, generator(1)), *use_head(head), "in", cumulative, min_probability
    for got, want in zip(*(loss_and_grads(RINCELoss(*how, r), *batch(seed=6)) for r in losses.REDUCTIONS), strict=True):
        assert torch.equal(got, want)


# Gradients


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("min_probability", [0, 0.02])
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("variant", ["out", "out_in"])
def test_gradcheck_passes(variant, cumulative, min_probability, head, use_head):
    how = *use_head(head), variant, cumulative, min_probability, "anchors"
    criterion = RINCELoss(asymmetric_table(3, generator(1)), *how)
    query, key, labels, bank, bank_labels = batch(seed=14, anchors=3, slots=8, filled=6, dim=3)
    inputs = [x.requires_grad_() for x in (query, key, bank)]
    assert torch.autograd.gradcheck(lambda q, k, m: criterion(q, k, labels, m, bank_labels), inputs)


def test_gradcheck_passes_without_a_bank():
    query, key, labels, *_ = batch(seed=15, anchors=6)
    loss = InBatchLoss(RINCELoss(superclass_table(), 0.2, 0.6, "out", reduction="anchors"))
    inputs = query.requires_grad_(), key.requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k: loss(q, k, labels), inputs)
    assert torch.autograd.gradcheck(lambda q: loss(q, None, labels), inputs[:1])


@pytest.mark.parametrize("rows", [3, 100])
@pytest.mark.parametrize("min_probability", [0, 0.02])
@pytest.mark.parametrize("cumulative", [False, True])
def test_the_fast_path_has_the_gradients_of_the_log_space_path(cumulative, min_probability, rows, monkeypatch):
    how = 0.04, 0.6, "out", cumulative, min_probability, "anchors"
    criterion = RINCELoss(asymmetric_table(4, generator(2)), *how)
    query, key, labels, bank, bank_labels = batch(seed=16, anchors=32, slots=64, filled=48)
    inputs, found = [x.requires_grad_() for x in (query, key, bank)], []
    monkeypatch.setattr(losses, "LEAST_ROWS", 1)
    monkeypatch.setitem(losses.BLOCK, "cpu", rows * 65)  # anchors, a block at a time
    for least in (losses.FAST_MIN_TAU, math.inf):
        monkeypatch.setattr(losses, "FAST_MIN_TAU", least)
        loss = criterion(query, key, labels, bank, bank_labels)
        found.append((loss.detach(), *torch.autograd.grad(loss, inputs)))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


# Edges


@pytest.mark.parametrize("head", HEADS)
def test_where_every_anchor_has_one_pair_both_reductions_are_one(head, use_head):
    taus = use_head(head)
    query, key, labels, bank, _ = batch(seed=7)
    data = query, key, torch.zeros_like(labels), bank, torch.full((len(bank),), 4)  # of another class: own keys alone
    pairs, anchors = (
        loss_and_grads(RINCELoss(superclass_table(), *taus, "out", reduction=r), *data) for r in losses.REDUCTIONS
    )
    torch.testing.assert_close(anchors, pairs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("head", HEADS)
def test_an_anchor_without_a_positive_is_not_in_the_mean(head, use_head):
    criterion = RINCELoss(superclass_table(), *use_head(head), "out", min_probability=0, reduction="anchors")
    query, key, _, bank, bank_labels = batch(seed=8, anchors=2)
    bank_labels = torch.where(bank_labels == 2, 3, bank_labels)  # no entry of class 2
    labels = torch.tensor([0, 3])  # of rank 1, the second has none
    terms = criterion.terms(query, key, labels, bank, bank_labels)
    assert terms.count.tolist() == [2, 1]
    alone = criterion.terms(query[:1], key[:1], labels[:1], bank, bank_labels)
    assert terms.per_rank()[1].item() == pytest.approx(alone.per_rank()[1].item(), rel=1e-12)


@pytest.mark.parametrize("head", HEADS)
def test_an_anchor_of_which_every_pair_is_left_out_is_not_in_the_mean_and_gets_no_gradient(head, use_head):
    tau, _ = use_head(head)
    query, key, labels, bank, bank_labels = hard_batch(2)
    key[1] = query[1]  # the second anchor is easy: probability 1/2
    criterion = SupConLoss(1, tau, "out", reduction="anchors")
    assert criterion.terms(query, key, labels, bank, bank_labels).count.tolist() == [1]
    loss, query_grad, key_grad = loss_and_grads(criterion, query, key, labels, bank, bank_labels)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-10)
    assert not query_grad[0].any() and not key_grad[0].any()
    assert key_grad[1].any()
    none = loss_and_grads(criterion, *hard_batch())
    assert not any(x.any() for x in none)


@pytest.mark.parametrize("head", ["fast", "log space"])
def test_pairs_that_are_left_out_share_no_weight(head, use_head):
    """One easy pair and one that the filter leaves out: the easy one has the anchor's whole weight."""
    tau, _ = use_head(head)
    query, _, labels, bank, bank_labels = hard_batch()
    bank, bank_labels = torch.cat([bank, query]), torch.cat([bank_labels, labels])
    loss, _, _ = loss_and_grads(
        SupConLoss(1, tau, "out", reduction="anchors"), query, -query, labels, bank, bank_labels
    )
    assert loss.item() == pytest.approx(math.log(2), rel=1e-10)


@pytest.mark.parametrize("head", HEADS)
def test_a_batch_without_positives_has_zero_loss_with_a_graph(head, use_head):
    criterion = RINCELoss(superclass_table(), *use_head(head), "out", reduction="anchors")
    query, key, labels, bank, _ = batch(seed=11)
    query.requires_grad_()
    terms = criterion.terms(query, key, torch.zeros_like(labels), bank, torch.full((len(bank),), 4))
    (grad,) = torch.autograd.grad(terms.per_rank()[1], query)
    assert terms.per_rank()[1] == 0
    assert not grad.any()


@pytest.mark.parametrize("head", HEADS)
def test_a_vector_that_is_no_number_shows(head, use_head):
    query, *rest = batch(seed=12)
    query[0, 0] = math.nan
    assert RINCELoss(superclass_table(), *use_head(head), "out", reduction="anchors")(query, *rest).isnan()


# What it is for


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


@pytest.mark.parametrize(("reduction", "weight"), [("pairs", 100), ("anchors", 10)])
def test_tenfold_copies_of_a_class_in_batch_and_bank_change_its_weight_alone(reduction, weight):
    """In the term without the own key; the other class's anchors see ten times the negatives, so are left out here."""
    table = superclass_table(4)
    query, key, _, bank, _ = batch(seed=13, anchors=2, slots=4, classes=4)
    labels, bank_labels = torch.tensor([0, 2]), torch.tensor([1, 3, 0, 2])
    times, slots = torch.tensor([10, 1]), torch.tensor([10, 1, 10, 1])  # classes 0 and 1 tenfold
    criterion = RINCELoss(table, 0.1, 0.6, "out", min_probability=0, reduction=reduction)
    q, k, m = (x.repeat_interleave(n, 0) for x, n in ((query, times), (key, times), (bank, slots)))
    many = criterion.terms(q, k, labels.repeat_interleave(times), m, bank_labels.repeat_interleave(slots))
    a, b = (
        criterion.terms(query[i : i + 1], key[i : i + 1], labels[i : i + 1], m, bank_labels.repeat_interleave(slots))
        for i in (0, 1)
    )
    want = (weight * a.per_rank()[1] + b.per_rank()[1]) / (weight + 1)
    assert many.per_rank()[1].item() == pytest.approx(want.item(), rel=1e-10)


def test_scl_out_within_anchors_is_khoslas_mean_over_our_pairs():
    query, key, labels, bank, bank_labels = data = batch(seed=4, anchors=5)
    means = []
    for n in range(5):
        own = (query[n] @ key[n]).div(0.1).exp()
        e = (bank @ query[n]).div(0.1).exp()
        numerators = torch.cat([own[None], e[bank_labels == labels[n]]])
        means.append(-(numerators / (numerators + e[bank_labels != labels[n]].sum())).log().mean())
    criterion = SupConLoss(CLASSES, 0.1, "out", min_probability=0, reduction="anchors")
    assert criterion(*data).item() == pytest.approx(torch.stack(means).mean().item(), rel=1e-10)


# Errors


@pytest.mark.parametrize(
    "make",
    [
        lambda r: RINCELoss(torch.eye(2), reduction=r),
        lambda r: SupConLoss(2, reduction=r),
        lambda r: NestedRINCELoss(torch.tensor([[0], [1]]), reduction=r),
        lambda r: losses.rince(unit(2, 2, generator(0)), torch.zeros(2, 2), [0.1], reduction=r),
        lambda r: losses.rince_terms(unit(2, 2, generator(0)), torch.zeros(2, 2), [0.1], reduction=r),
    ],
    ids=["RINCELoss", "SupConLoss", "NestedRINCELoss", "rince", "rince_terms"],
)
def test_an_unknown_reduction_raises_and_names_the_known_ones(make):
    with pytest.raises(ValueError, match="reduction is 'mean'; choose one of pairs, anchors"):
        make("mean")

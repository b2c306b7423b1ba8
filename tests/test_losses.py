"""The objective equals its slow reference, has the gradients of its own value, and keeps its promises at the edges."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import losses
from benchmarks.loss_head import CountOperations
from losses import NestedRINCELoss, RINCELoss, SupConLoss
from tests import reference

CLASSES = 6
LEVELS = [1.0, 0.75, 0.5, 0.2]
HEADS = ("fast", "log space", "low temperature")


def generator(seed):
    return torch.Generator().manual_seed(seed)


def unit(rows, dim, gen, dtype=torch.float64):
    return F.normalize(torch.randn(rows, dim, generator=gen, dtype=torch.float64), dim=1).to(dtype)


def asymmetric_table(ranks, gen):
    """[C, C] random table that has each of the first `ranks` levels, 1 beside the diagonal too."""
    levels = torch.tensor([*LEVELS[:ranks], 0.0], dtype=torch.float64)
    table = levels[torch.randint(ranks + 1, (CLASSES, CLASSES), generator=gen)]
    table[0, 1 : ranks + 2] = levels
    return table.fill_diagonal_(1)


def superclass_table(classes=CLASSES, size=2):
    group = torch.arange(classes) // size
    table = 0.75 * (group[:, None] == group).double()
    return table.fill_diagonal_(1)


def batch(seed, anchors=7, slots=16, filled=16, dim=4, classes=CLASSES, dtype=torch.float64):
    """query, key, labels, bank, bank_labels; the slots after the first `filled` are empty."""
    gen = generator(seed)
    labels = torch.randint(classes, (anchors,), generator=gen)
    bank_labels = torch.randint(classes, (slots,), generator=gen)
    bank_labels[filled:] = -1
    query, key, bank = unit(anchors, dim, gen, dtype), unit(anchors, dim, gen, dtype), unit(slots, dim, gen, dtype)
    return query, key, labels, bank, bank_labels


def expected(data, table, *args, **kwargs):
    return reference.rince(*(x.tolist() for x in (*data, table)), *args, **kwargs)


def loss_and_grads(criterion, query, key, *rest):
    query, key = query.clone().requires_grad_(), key.clone().requires_grad_()
    loss = criterion(query, key, *rest)
    return loss.detach(), *torch.autograd.grad(loss, (query, key))


def hard_batch(query_rows=1):
    """Anchors whose own key is opposite to them and a negative on top of them: probability exp(-2 / tau)."""
    query = torch.eye(3, dtype=torch.float64)[[0] * query_rows]
    labels = torch.zeros(query_rows, dtype=torch.long)
    return query, -query, labels, query[:1].clone(), torch.tensor([-1])


@pytest.fixture
def use_head(monkeypatch):
    """Chooses the way through the loss, makes the other one an error, and gives the temperatures that go with it."""

    def choose(head):
        def wrong(*_):
            raise AssertionError(f"the loss left the path {head!r}")

        monkeypatch.setattr(losses, "masked_terms" if head == "fast" else "fast_terms", wrong)
        if head == "log space":
            monkeypatch.setattr(losses, "FAST_MIN_TAU", math.inf)
        return (0.01, 0.03) if head == "low temperature" else (0.1, 0.6)

    return choose


def nested_groups(labels, levels, gen):
    """[G, L] random groups: label g at level 0, its group's group at the next."""
    groups = torch.arange(labels)
    columns = [groups]
    for level in range(1, levels):
        size = max(1, labels // 2**level)
        columns.append(torch.randint(size, (labels,), generator=gen)[columns[-1]])
    return torch.stack(columns, 1)


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


# Gradients


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("min_probability", [0, 0.02])
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("variant", losses.VARIANTS)
def test_gradcheck_passes(variant, cumulative, min_probability, head, use_head):
    criterion = RINCELoss(asymmetric_table(3, generator(1)), *use_head(head), variant, cumulative, min_probability)
    query, key, labels, bank, bank_labels = batch(seed=14, anchors=3, slots=8, filled=6, dim=3)
    inputs = [x.requires_grad_() for x in (query, key, bank)]
    assert torch.autograd.gradcheck(lambda q, k, m: criterion(q, k, labels, m, bank_labels), inputs)


@pytest.mark.parametrize("variant", losses.VARIANTS)
def test_gradcheck_passes_on_ranks(variant):
    gen = generator(15)
    similarity = (2 * torch.rand(4, 7, generator=gen, dtype=torch.float64) - 1).requires_grad_()
    rank = torch.randint(-1, 4, (4, 7), generator=gen)
    rank[0], rank[1] = 3, -1
    assert torch.autograd.gradcheck(partial(losses.rince, rank=rank, taus=[0.1, 0.3], variant=variant), similarity)


@pytest.mark.parametrize("min_probability", [0, 1e-7, 0.02])
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("variant", losses.VARIANTS)
def test_the_fast_path_has_the_gradients_of_the_log_space_path(variant, cumulative, min_probability, monkeypatch):
    criterion = RINCELoss(asymmetric_table(4, generator(2)), 0.04, 0.6, variant, cumulative, min_probability)
    data = batch(seed=16, anchors=32, slots=64, filled=48)
    sums = loss_and_grads(criterion, *data)
    monkeypatch.setattr(losses, "FAST_MIN_TAU", math.inf)
    torch.testing.assert_close(sums, loss_and_grads(criterion, *data), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
@pytest.mark.parametrize("variant", losses.VARIANTS)
def test_blocks_of_anchors_change_nothing(variant, rows, monkeypatch):
    criterion = RINCELoss(asymmetric_table(3, generator(1)), 0.1, 0.6, variant, min_probability=0.02)
    query, key, labels, bank, bank_labels = batch(seed=20)
    inputs = [x.requires_grad_() for x in (query, key, bank)]
    found = []
    for block in (rows * 17, 1e9):  # an anchor has 16 slots and its own key
        monkeypatch.setitem(losses.BLOCK, "cpu", int(block))
        loss = criterion(query, key, labels, bank, bank_labels)
        found.append((loss, *torch.autograd.grad(loss, inputs)))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("head", HEADS)
def test_the_bank_may_be_overwritten_before_backward(head, use_head):
    criterion = RINCELoss(superclass_table(), *use_head(head))
    query, key, labels, bank, bank_labels = batch(seed=21)
    _, want, _ = loss_and_grads(criterion, query, key, labels, bank, bank_labels)
    query.requires_grad_()
    loss = criterion(query, key, labels, bank, bank_labels)
    bank.zero_()
    bank_labels.fill_(-1)
    loss.backward()
    torch.testing.assert_close(query.grad, want)


@pytest.mark.parametrize("scale_needs_grad", [False, True])
def test_differentiating_twice_raises(scale_needs_grad):
    query, key, *rest = batch(seed=17)
    query, key = query.requires_grad_(), key.requires_grad_()
    loss = RINCELoss(superclass_table())(query, key, *rest)
    scale = torch.ones((), dtype=loss.dtype, requires_grad=scale_needs_grad)

    def gradient_penalty():
        (grad,) = torch.autograd.grad(loss * scale, query, create_graph=True)
        grad.square().sum().backward()

    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        gradient_penalty()


# Precision


@pytest.mark.parametrize("min_tau", [0.01, losses.FAST_MIN_TAU, 0.1])
@pytest.mark.parametrize("min_probability", [0, 1e-7])
@pytest.mark.parametrize("variant", losses.VARIANTS)
def test_float32_is_finite_and_close_to_float64(variant, min_probability, min_tau):
    criterion = RINCELoss(superclass_table(), min_tau, min_tau, variant, min_probability=min_probability)
    data = batch(seed=18, anchors=64, slots=128, dim=16)
    single = [x.float() if x.is_floating_point() else x for x in data]
    data = [x.double() if x.is_floating_point() else x for x in single]
    got, want = loss_and_grads(criterion, *single), loss_and_grads(criterion, *data)
    assert all(x.isfinite().all() and x.dtype == torch.float32 for x in got)
    torch.testing.assert_close([x.double() for x in got], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("min_tau", [0.01, losses.FAST_MIN_TAU])
@pytest.mark.parametrize("variant", ["in", "out"])
def test_float32_survives_the_hardest_anchor(variant, min_tau):
    data = [x.float() if x.is_floating_point() else x for x in hard_batch()]
    loss, query_grad, _ = loss_and_grads(SupConLoss(1, min_tau, variant, min_probability=0), *data)
    assert loss.item() == pytest.approx(2 / min_tau, rel=1e-6)
    torch.testing.assert_close(query_grad, torch.tensor([[2 / min_tau, 0, 0]]))


@pytest.mark.parametrize("min_tau", [0.01, 0.1])
@pytest.mark.parametrize("variant", losses.VARIANTS)
def test_bfloat16_inputs_give_a_finite_float32_loss(variant, min_tau):
    data = batch(seed=19, dtype=torch.bfloat16)
    loss, *grads = loss_and_grads(RINCELoss(superclass_table(), min_tau, 0.6, variant), *data)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(g.isfinite().all() and g.dtype == torch.bfloat16 for g in grads)


@pytest.mark.parametrize("min_tau", [0.01, 0.1])
def test_autocast_changes_nothing(min_tau):
    criterion, data = RINCELoss(superclass_table(), min_tau, 0.6), batch(seed=20, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion(*data)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, criterion(*data))


def test_autocast_changes_nothing_on_ranks():
    gen = generator(21)
    similarity, rank = torch.rand(4, 9, generator=gen), torch.randint(3, (4, 9), generator=gen)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = losses.rince(similarity, rank, [0.01, 0.1])
    assert loss.dtype == torch.float32
    assert torch.equal(loss, losses.rince(similarity, rank, [0.01, 0.1]))


# Shapes that do not depend on values; cost


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("cumulative", [False, True])
def test_the_loss_runs_without_values(cumulative, head, use_head):
    criterion = RINCELoss(superclass_table(), *use_head(head), cumulative_positives=cumulative)
    data = batch(seed=22, dtype=torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        query, *rest = (mode.from_tensor(x) for x in data)
        query = query.detach().requires_grad_()
        loss = criterion(query, *rest)
        loss.backward()
    assert loss.shape == ()
    assert query.grad.shape == query.shape


@pytest.mark.parametrize("head", ["fast", "low temperature"])
@pytest.mark.parametrize("cumulative", [False, True])
def test_the_compiled_loss_equals_the_eager_one(cumulative, head, use_head):
    criterion = RINCELoss(superclass_table(), *use_head(head), cumulative_positives=cumulative)
    data = batch(seed=23)
    torch.compiler.reset()
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(loss_and_grads(compiled, *data), loss_and_grads(criterion, *data))


@pytest.mark.parametrize(("anchors", "slots"), [(8, 16), (24, 96)])
def test_forward_and_backward_are_at_most_200_operations_at_any_size(anchors, slots):
    criterion = RINCELoss(superclass_table(classes=100, size=5))
    query, *rest = batch(seed=24, anchors=anchors, slots=slots, classes=100, dtype=torch.float32)
    query.requires_grad_()
    with CountOperations() as counter:
        criterion(query, *rest).backward()
    assert 0 < counter.count <= 120


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

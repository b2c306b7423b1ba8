"""The objective has the gradients of its own value, in every precision, at a bounded cost."""

import math
from functools import partial

import pytest
import torch
from loss_cases import FORMS, HEADS, asymmetric_table, batch, generator, hard_batch, loss_and_grads, superclass_table

import losses
from benchmarks.loss import CountOperations
from losses import RINCELoss, SupConLoss, blocks


def loss_and_all_grads(criterion, query, key, labels, bank, bank_labels):
    """With the gradient in the bank."""
    inputs = [x.clone().requires_grad_() for x in (query, key, bank)]
    loss = criterion(*inputs[:2], labels, inputs[2], bank_labels)
    return loss.detach(), *torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("min_probability", [0, 0.02])
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize(("variant", "reduction"), FORMS)
def test_gradcheck_passes(variant, reduction, cumulative, min_probability, head, use_head):
    how = *use_head(head), variant, cumulative, min_probability, reduction
    criterion = RINCELoss(asymmetric_table(3, generator(1)), *how)
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
@pytest.mark.parametrize(("variant", "reduction"), FORMS)
def test_both_ways_and_blocks_of_any_size_have_one_value_and_gradient(
    variant, reduction, cumulative, min_probability, monkeypatch
):
    how = blocks.FAST_MIN_TAU, 0.6, variant, cumulative, min_probability, reduction
    criterion = RINCELoss(asymmetric_table(4, generator(2)), *how)
    data, found = batch(seed=16, anchors=32, slots=64, filled=48), []
    monkeypatch.setattr(blocks, "LEAST_ROWS", 1)
    for rows, least in ((100, blocks.FAST_MIN_TAU), (7, blocks.FAST_MIN_TAU), (1, blocks.FAST_MIN_TAU), (3, math.inf)):
        monkeypatch.setitem(blocks.BLOCK, "cpu", rows * 65)  # an anchor has 64 entries and its own key
        monkeypatch.setattr(blocks, "FAST_MIN_TAU", least)
        found.append(loss_and_all_grads(criterion, *data))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-12)


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


@pytest.mark.parametrize("min_tau", [0.01, 0.1])
@pytest.mark.parametrize("scale_needs_grad", [False, True])
def test_differentiating_twice_raises(scale_needs_grad, min_tau):
    query, key, *rest = batch(seed=17)
    query, key = query.requires_grad_(), key.requires_grad_()
    loss = RINCELoss(superclass_table(), min_tau)(query, key, *rest)
    scale = torch.ones((), dtype=loss.dtype, requires_grad=scale_needs_grad)

    def gradient_penalty():
        (grad,) = torch.autograd.grad(loss * scale, query, create_graph=True)
        grad.square().sum().backward()

    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        gradient_penalty()


# Precision


@pytest.mark.parametrize("min_tau", [0.01, blocks.FAST_MIN_TAU, 0.1])
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


@pytest.mark.parametrize("min_tau", [0.01, blocks.FAST_MIN_TAU])
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


@pytest.mark.parametrize("tau", [0.05, 0.07, 0.1])
@pytest.mark.parametrize("variant", ["in", "out"])
def test_float32_keeps_its_digits_where_almost_all_is_learned(variant, tau):
    """Classes at the corners of a simplex, their images close together: odds far below float32's last digit of 1."""
    gen, corners = generator(16), torch.eye(32, dtype=torch.float64) - 1 / 32
    labels, bank_labels = torch.arange(8), torch.arange(64) % 32
    query, key, bank = (
        torch.nn.functional.normalize(corners[y] + 1e-3 * torch.randn(len(y), 32, generator=gen).double(), dim=1)
        for y in (labels, labels, bank_labels)
    )
    narrow, wide = (
        loss_and_all_grads(SupConLoss(32, tau, variant), query.to(t), key.to(t), labels, bank.to(t), bank_labels)
        for t in (torch.float32, torch.float64)
    )
    assert all((x - y).norm() < 1e-4 * y.norm() for x, y in zip(narrow[1:], wide[1:], strict=True))
    assert narrow[0].item() == pytest.approx(wide[0].item(), rel=1e-4, abs=1e-7 if variant == "out" else 0)


@pytest.mark.parametrize("min_tau", [0.01, 0.1])
def test_autocast_changes_nothing(min_tau):
    gen, criterion, data = generator(21), RINCELoss(superclass_table(), min_tau), batch(seed=20, dtype=torch.float32)
    similarity, rank = torch.rand(4, 9, generator=gen), torch.randint(3, (4, 9), generator=gen)

    def compute():
        return losses.rince(similarity, rank, [min_tau, 0.1]), *loss_and_all_grads(criterion, *data)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = compute()
    assert {x.dtype for x in found} == {torch.float32}
    assert all(map(torch.equal, found, compute()))


# Shapes that do not depend on values; cost


@pytest.mark.parametrize("head", ["fast", "low temperature"])
@pytest.mark.parametrize("cumulative", [False, True])
def test_the_loss_compiles_as_one_graph_and_equals_the_eager_one(cumulative, head, use_head):
    criterion = RINCELoss(superclass_table(), *use_head(head), cumulative_positives=cumulative)
    data = batch(seed=23)
    torch.compiler.reset()
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(loss_and_grads(compiled, *data), loss_and_grads(criterion, *data))


@pytest.mark.parametrize(("anchors", "slots"), [(8, 16), (24, 96)])
def test_forward_and_backward_are_at_most_130_operations_at_any_size(anchors, slots):
    criterion = RINCELoss(superclass_table(classes=100, size=5))
    query, *rest = batch(seed=24, anchors=anchors, slots=slots, classes=100, dtype=torch.float32)
    query.requires_grad_()
    with CountOperations() as counter:
        criterion.terms(query, *rest).loss().backward()  # as in training, where nothing is checked
    assert 0 < counter.count <= 130

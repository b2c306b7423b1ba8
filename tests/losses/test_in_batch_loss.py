"""The loss without a bank: the batch's own keys, over one process or two."""

import math
import tempfile
from pathlib import Path

import pytest
import reference
import torch
import torch.distributed as dist
import torch.nn.functional as F
from loss_cases import FORMS, GROUPS, GROUPS_TABLE
from processes import together
from torch.nn.parallel import DistributedDataParallel

import losses
from losses import InBatchLoss, NestedRINCELoss, RINCELoss, SupConLoss, blocks

TABLE = torch.tensor([[1, 0.75, 0.5, 0], [0.75, 1, 0, 0], [0.5, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)


def batch(seed=0, n=10, dim=5, classes=4):
    g = torch.Generator().manual_seed(seed)
    q, k = (F.normalize(torch.randn(n, dim, generator=g, dtype=torch.float64), dim=1) for _ in range(2))
    return q, k, torch.randint(classes, (n,), generator=g)


@pytest.mark.parametrize("min_probability", [0, 0.02])
@pytest.mark.parametrize("own_key", [True, False])
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize(("variant", "reduction"), FORMS)
def test_the_batch_as_its_own_bank_equals_the_reference(variant, reduction, cumulative, own_key, min_probability):
    query, key, labels = batch()
    key = key if own_key else None
    how = variant, cumulative, min_probability, reduction
    lists = query.tolist(), key.tolist() if own_key else None, labels.tolist(), TABLE.tolist()
    criterion = InBatchLoss(RINCELoss(TABLE, 0.1, 0.6, *how))
    assert float(criterion(query, key, labels)) == pytest.approx(reference.rince_in_batch(*lists, *how), rel=1e-10)


def views_and_positives(labels, seed=5):
    """Unit vectors z [2N, D] of two views, and the places of each one's positives among the others."""
    x, y, _ = batch(seed, n=len(labels))
    z, both = torch.cat([x, y]), [*labels, *labels]
    return z, [[j for j, b in enumerate(both) if b == a and j != i] for i, a in enumerate(both)]


def test_two_views_of_images_without_classes_are_simclrs_loss():
    z, positives = views_and_positives(range(6))
    want = 0.0
    for i, (j,) in enumerate(positives):  # NT-Xent (Chen et al. 2020, eq. 1)
        others = sum(math.exp(float(z[i] @ z[k]) / 0.2) for k in range(12) if k != i)
        want -= math.log(math.exp(float(z[i] @ z[j]) / 0.2) / others) / 12
    for variant in ("in", "out"):
        criterion = InBatchLoss(SupConLoss(6, 0.2, variant, min_probability=0))
        assert float(criterion(z, None, torch.arange(6).repeat(2))) == pytest.approx(want, rel=1e-6)


def test_scl_in_has_the_gradients_of_khoslas_l_in_and_differs_by_the_mean_log_of_the_positives():
    labels = [0, 0, 1, 2, 1, 1]
    z, positives = views_and_positives(labels)
    z.requires_grad_()
    terms = []
    for i, places in enumerate(positives):  # Khosla et al. 2020, eq. 3
        e = torch.stack([(z[i] @ z[k] / 0.2).exp() for k in range(12) if k != i])
        of_positives = torch.stack([(z[i] @ z[k] / 0.2).exp() for k in places])
        terms.append(-(of_positives.sum() / e.sum() / len(places)).log())
    want = sum(terms) / 12
    ours = InBatchLoss(SupConLoss(3, 0.2, "in", min_probability=0))(z, None, torch.tensor(labels).repeat(2))
    apart = sum(math.log(len(places)) for places in positives) / 12
    assert float(want.detach() - ours.detach()) == pytest.approx(apart, rel=1e-6)
    torch.testing.assert_close(*(torch.autograd.grad(x, z)[0] for x in (ours, want)))


def test_nested_groups_without_a_bank_equal_their_class_table():
    query, key, labels = batch(seed=2, classes=5)
    nested, plain = (InBatchLoss(c)(query, key, labels) for c in (NestedRINCELoss(GROUPS), RINCELoss(GROUPS_TABLE)))
    assert float(nested) == pytest.approx(float(plain))


def test_an_anchor_without_a_positive_adds_nothing_and_gets_no_gradient():
    query, _, _ = batch(n=5)
    query.requires_grad_()
    loss = InBatchLoss(SupConLoss(4, variant="in", min_probability=0))
    value = loss(query, None, torch.tensor([0, 0, 0, 1, 2]))
    assert value.isfinite() and float(value.detach()) > 0
    alone = InBatchLoss(SupConLoss(5, min_probability=0))(query, None, torch.arange(5))
    assert float(alone.detach()) == 0
    (gradient,) = torch.autograd.grad(alone, query)
    assert torch.equal(gradient, torch.zeros_like(query))


@pytest.mark.parametrize("criterion", [RINCELoss(TABLE, 0.01), RINCELoss(TABLE), NestedRINCELoss(GROUPS)], ids=str)
@pytest.mark.parametrize("own_key", [True, False])
def test_blocks_of_anchors_change_nothing(own_key, criterion, monkeypatch):
    query, key, labels = batch(seed=3)
    inputs, found = [x.requires_grad_() for x in ((query, key) if own_key else (query,))], []
    monkeypatch.setattr(blocks, "LEAST_ROWS", 1)
    for rows in (3, 100):
        monkeypatch.setitem(blocks.BLOCK, "cpu", rows * 11)  # an anchor has 10 candidates and its own key
        value = InBatchLoss(criterion)(query, key if own_key else None, labels)
        found.append((value.detach(), *torch.autograd.grad(value, inputs)))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
def test_gradcheck_passes_for_queries_and_keys(reduction):
    query, key, labels = batch(n=6)
    loss = InBatchLoss(RINCELoss(TABLE, 0.2, 0.6, "out", min_probability=0, reduction=reduction))
    inputs = query.requires_grad_(), key.requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k: loss(q, k, labels), inputs)
    assert torch.autograd.gradcheck(lambda q: loss(q, None, labels), inputs[:1])


# Two processes, of which one has no positive at all for some rank


def net():
    torch.manual_seed(0)
    return torch.nn.Linear(6, 4).double()


def shards():
    g = torch.Generator().manual_seed(3)
    views = torch.randn(2, 8, 6, generator=g, dtype=torch.float64)
    return views, torch.tensor([0, 1, 0, 2, 3, 3, 3, 3])  # the second half has class 3 alone


def losses_of(model, views, labels):
    x, y = (F.normalize(model(v), dim=1) for v in views)
    loss = InBatchLoss(RINCELoss(TABLE, 0.2, 0.6, min_probability=0))
    return loss(x, y, labels) + loss(x, None, labels) + loss(x, y.detach(), labels)


def worker(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    views, labels = shards()
    model = DistributedDataParallel(net())
    loss = losses_of(model, views.chunk(world, 1)[rank], labels.chunk(world)[rank])
    loss.backward()
    torch.save({"loss": loss.detach(), "grad": model.module.weight.grad}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_loss_and_the_gradient_of_one():
    model, (views, labels) = net(), shards()
    want = losses_of(model, views, labels)
    want.backward()
    with tempfile.TemporaryDirectory() as folder:
        together(worker, (2, folder), 2)
        first, second = (torch.load(Path(folder) / f"{r}.pt", weights_only=True) for r in range(2))
    torch.testing.assert_close((first["loss"] + second["loss"]) / 2, want.detach())
    assert not torch.isclose(first["loss"], second["loss"])
    for found in (first, second):
        torch.testing.assert_close(found["grad"], model.weight.grad)

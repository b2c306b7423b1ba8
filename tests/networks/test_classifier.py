"""Targets of a classifier over similar classes, and its loss with one layer and with two."""

import pytest
import reference
import torch
from torch import nn

from networks.classifier import Classifier, Targets, smooth_targets, soft_targets

SUPERCLASS = torch.tensor([0, 1, 0, 2, 0, 1])  # the fourth class has no siblings


def similarity(seed):
    """A symmetric table, (6, 6), of cosines, as in a ranking before it has ranks."""
    x = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)).double(), dim=1)
    return (x @ x.T).fill_diagonal_(1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.5, 10.0])
def test_soft_targets_equal_the_loops_and_each_row_has_the_sum_one(seed, beta):
    found = soft_targets(similarity(seed), beta)
    torch.testing.assert_close(found.sum(1), torch.ones(6).double(), rtol=0, atol=1e-12)
    want = torch.tensor(reference.soft_targets(similarity(seed).tolist(), beta)).double()
    torch.testing.assert_close(found, want, rtol=0, atol=1e-7)


def test_soft_targets_are_hard_as_beta_grows_and_even_without_similar_classes():
    torch.testing.assert_close(soft_targets(similarity(0), 1e6), torch.eye(6).double())
    even = soft_targets(torch.eye(6), 2.0)
    others = even[~torch.eye(6, dtype=torch.bool)]
    torch.testing.assert_close(others, others[:1].expand(30))
    assert float(even[0, 0] / others[0]) == pytest.approx(torch.tensor(2.0).exp().item())


@pytest.mark.parametrize("epsilon", [0.1, 0.7, 1.0])
def test_smooth_targets_equal_the_loops_and_each_row_has_the_sum_one(epsilon):
    found = smooth_targets(SUPERCLASS, epsilon)
    torch.testing.assert_close(found.sum(1), torch.ones(6))
    torch.testing.assert_close(found, torch.tensor(reference.smooth_targets(SUPERCLASS.tolist(), epsilon)))
    assert found[3].tolist() == [0, 0, 0, 1, 0, 0]


def test_smooth_targets_without_epsilon_are_hard():
    assert torch.equal(smooth_targets(SUPERCLASS, 0.0), torch.eye(6))


@pytest.mark.parametrize("kind", ["hard", "soft", "smooth"])
@pytest.mark.parametrize("second", [False, True], ids=["one head", "two heads"])
def test_the_loss_equals_the_loops_in_value_and_gradient(kind, second):
    tables = {"soft": soft_targets(similarity(1), 3.0), "smooth": smooth_targets(SUPERCLASS, 0.2).double()}
    targets = Targets(tables.get(kind), SUPERCLASS if second else None)
    generator = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(5, 6 + targets.superclasses, generator=generator).double()
    labels = torch.tensor([0, 3, 3, 5, 2])
    rows = tables.get(kind, torch.eye(6))[labels].tolist()

    def loops(logits):
        groups = torch.eye(3)[SUPERCLASS[labels]].tolist()
        coarse = reference.cross_entropy(logits[:, 6:].tolist(), groups) if second else 0.0
        return reference.cross_entropy(logits[:, :6].tolist(), rows) + coarse

    loss = targets.loss(logits.requires_grad_(), labels)
    loss.backward()
    assert loss.item() == pytest.approx(loops(logits), abs=1e-12)
    for at in ((0, 0), (1, 3), (4, 1), (3, logits.shape[1] - 1)):
        step = torch.zeros_like(logits)
        step[at] = 1e-5
        assert logits.grad[at].item() == pytest.approx((loops(logits + step) - loops(logits - step)) / 2e-5, abs=1e-8)


def test_a_second_layer_leaves_the_first_as_it_is_and_its_logits_follow():
    models = []
    for superclasses in (0, 3):
        torch.manual_seed(0)
        encoder = nn.Linear(8, 4)
        encoder.dim = 4
        models.append(Classifier(encoder, 6, superclasses))
    x = torch.randn(2, 8)
    one, two = (model(x) for model in models)
    assert one.shape == (2, 6) and two.shape == (2, 9)
    assert torch.equal(one, two[:, :6])
    assert torch.equal(two[:, 6:], models[1].coarse_fc(models[1].encoder(x)))

"""The schedule of the learning rate, and the guard against losses and gradients that are no numbers."""

import itertools
import math

import pytest
import reference
import torch
from torch import nn

import main_linear
import main_supcon
from engine.cli import config
from engine.run import checkpoint
from engine.train.optimization import adamw
from engine.train.training import FiniteGuard, Mean, Schedule, warm_up_epochs

COSINE = dict(base=0.3, epochs=500, cosine=True, decay_rate=0.1)


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("warm_epochs, warm_share", [(0, None), (10, None), (10, 0.01)])
def test_learning_rate_equals_the_reference(cosine, warm_epochs, warm_share):
    options = dict(base=0.5, epochs=100, cosine=cosine, decay_rate=0.1, decay_epochs=(40, 70), warm_epochs=warm_epochs)
    options["warm_share"] = warm_share
    for progress in [0, 0.3, 5, 9.99, 10, 10.5, 39.5, 40, 40.9, 70, 99, 99.9]:
        assert Schedule(**options).rate(progress) == pytest.approx(reference.learning_rate(progress, **options))


def test_cosine_ends_at_the_cube_of_the_decay_rate_and_never_rises():
    rates = [Schedule(**COSINE).rate(e) for e in range(500)]
    assert rates[-1] == pytest.approx(0.3 * 0.1**3)
    assert all(a > b for a, b in itertools.pairwise(rates))


def test_warm_up_starts_at_a_hundredth_rises_each_step_and_meets_the_schedule():
    rates = [Schedule(**COSINE, warm_epochs=10).rate(s / 10) for s in range(101)]
    assert rates[0] == pytest.approx(0.01)
    assert all(a < b for a, b in itertools.pairwise(rates))
    floor = 0.3e-3
    assert rates[99] == pytest.approx(floor + (0.3 - floor) * 0.5 * (1 + math.cos(math.pi * 10 / 500)), rel=0.02)


def test_warm_up_is_for_large_batches_or_on_demand_and_at_most_half_a_run():
    assert warm_up_epochs(False, 256, 500) == 0
    assert warm_up_epochs(False, 257, 500) == 10
    assert warm_up_epochs(True, 64, 500) == 10
    assert warm_up_epochs(True, 64, 6) == 3


def by_sgd(layer):
    return torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9, weight_decay=0.1, fused=True)


def by_adamw(layer):
    return adamw(layer, 0.1, 0.1)


@pytest.mark.parametrize("make", [by_sgd, by_adamw])
@pytest.mark.parametrize("bad", ["loss", "gradient"])
@pytest.mark.parametrize("at", [1, 3])
def test_nan_leaves_weights_and_the_optimizers_state_as_they_were_before_its_step(make, bad, at):
    layer = nn.Linear(2, 2, bias=False)
    optimizer, before = make(layer), layer.weight.detach().clone()
    guard, kept = FiniteGuard(optimizer, torch.device("cpu")), None
    for step in range(1, 6):
        if step == at:
            kept = layer.weight.detach().clone(), str(optimizer.state_dict()["state"])
        loss, layer.weight.grad = torch.ones(()), torch.ones(2, 2)
        if step == at:
            (loss if bad == "loss" else layer.weight.grad[1]).div_(0)
        guard.step(loss, step)
        assert torch.equal(layer.weight, before) == (at == 1)
    assert int(guard.first_bad) == at
    assert torch.equal(layer.weight, kept[0])
    if at > 1:
        assert str(optimizer.state_dict()["state"]) == kept[1]
    else:  # as before a first step
        assert not any(x.any() for x in optimizer.state[layer.weight].values())


def test_momentum_starts_from_nothing_where_a_scaler_skips_the_first_step():
    weight = torch.nn.Parameter(torch.zeros(1000))
    optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9, fused=True)
    scaler, guard = torch.amp.GradScaler("cpu", init_scale=8.0), FiniteGuard(optimizer, torch.device("cpu"))
    for step, gradient in enumerate((float("inf"), 4.0, 2.0), 1):
        scaler.scale(torch.ones((), requires_grad=True))
        weight.grad = torch.full((1000,), gradient)
        guard.step(torch.tensor(1.0), step, scaler)
    # 4 and 2 unscaled by the 4 that the first overflow leaves: -0.1 (1 + 0.9 + 0.5)
    torch.testing.assert_close(weight.detach(), torch.full((1000,), -0.24))


def test_a_scale_that_has_shrunk_to_nothing_is_a_fault():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9, fused=True)
    scaler, guard = torch.amp.GradScaler("cpu"), FiniteGuard(optimizer, torch.device("cpu"))
    for step in range(31):
        assert not guard.collapsed(scaler) or step > 29
        scaler.scale(torch.ones((), requires_grad=True))
        weight.grad = torch.full((2,), float("nan"))
        guard.step(torch.tensor(1.0), step, scaler)
    assert guard.collapsed(scaler)
    assert torch.equal(weight, torch.ones(2))
    assert not guard.collapsed(torch.amp.GradScaler("cpu", enabled=False))


def test_a_scaler_skips_overflows_by_itself_and_its_scale_goes_on(tmp_path):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], 0.1, fused=True)
    scaler, guard = torch.amp.GradScaler("cpu", init_scale=8.0), FiniteGuard(optimizer, torch.device("cpu"))
    for step, (loss, gradient) in enumerate([(1.0, 4.0), (1.0, float("inf")), (float("nan"), float("nan"))], 1):
        before = weight.detach().clone()
        scaler.scale(torch.ones((), requires_grad=True))  # makes its scale a tensor
        weight.grad = torch.full((2,), gradient)
        guard.step(torch.tensor(loss), step, scaler)
        assert torch.equal(weight, before) == (step > 1)
        assert int(guard.first_bad) == (3 if step == 3 else -1)
    assert scaler.get_scale() == 2.0
    checkpoint.save(tmp_path / "last.pth", {"model": {}, "scaler": scaler.state_dict()})
    other = torch.amp.GradScaler("cpu")
    other.load_state_dict(checkpoint.load(tmp_path / "last.pth")["scaler"])
    assert other.state_dict() == scaler.state_dict()


def test_the_guard_changes_no_bit_of_a_good_step():
    torch.manual_seed(0)
    start_, grad = torch.randn(50), torch.randn(50)
    weights = []
    for guarded in (True, False):
        weight = torch.nn.Parameter(start_.clone())
        optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9, fused=True)
        guard = FiniteGuard(optimizer, torch.device("cpu"))
        for step in range(3):
            weight.grad = grad.clone()
            guard.step(torch.ones(()), step) if guarded else optimizer.step()
        weights.append(weight.detach())
    assert torch.equal(*weights)
    with pytest.raises(ValueError, match="needs a fused optimizer"):
        FiniteGuard(torch.optim.SGD([weight], 0.1), torch.device("cpu"))


# AdamW


class Named(nn.Module):
    """As timm's encoders: names embeddings that are not to decay."""

    def __init__(self):
        super().__init__()
        self.embedding, self.layer, self.norm = nn.Parameter(torch.ones(1, 2, 3)), nn.Linear(2, 2), nn.LayerNorm(2)

    def no_weight_decay(self):
        return {"embedding"}


def test_adamw_decays_weights_but_no_biases_norms_and_named_embeddings():
    model = nn.ModuleDict({"encoder": Named(), "frozen": nn.Linear(2, 2).requires_grad_(False)})
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    optimizer = adamw(model, 0.1, 0.5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    FiniteGuard(optimizer, torch.device("cpu")).step(torch.zeros(()), 1)
    decayed = {name for name, p in model.named_parameters() if not torch.equal(p, torch.ones_like(p))}
    assert decayed == {"encoder.layer.weight"}
    torch.testing.assert_close(model["encoder"].layer.weight.detach(), torch.full((2, 2), 1 - 0.1 * 0.5))


def test_adamw_has_defaults_of_its_own_also_where_a_data_set_has_some_and_what_is_given_wins():
    def read(words, script=main_supcon):
        args = config.parse_words(script.get_parser(), script.RECIPES, words.split(), "x")
        return args.learning_rate, args.weight_decay, args.warm

    assert read("--optimizer adamw") == (1e-3, 0.05, True)
    assert read("--optimizer adamw --learning_rate 0.01 --warm False") == (0.01, 0.05, False)
    assert read("") == (0.1, 1e-4, False)  # of the digits, by SGD
    assert read("--ckpt x --optimizer adamw", main_linear) == (1e-3, 0.05, True)


def test_the_mean_of_vectors_is_taken_by_entry():
    mean = Mean()
    for x in ([1.0, 2.0], [3.0, 6.0]):
        mean.update(torch.tensor(x))
    assert mean.value() == [2.0, 4.0]
    other = Mean()
    other.set_state(mean.state(), "cpu")
    for m in (mean, other):
        m.update(torch.tensor([8.0, 1.0]))
    assert other.value() == mean.value() == [4.0, 3.0]

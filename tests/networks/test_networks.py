"""Encoders by name, the memory bank as a queue, and one step of the momentum model."""

import copy
import random

import pytest
import reference
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from losses import RINCELoss
from networks.contrastive import ContrastiveModel, projection_head
from networks.memory_bank import MemoryBank
from networks.resnet import encoder

DIM = 4


def keys_from(start, n):
    """n keys [n, DIM] that hold their number, and the labels: the number as well."""
    labels = torch.arange(start, start + n)
    return labels[:, None].expand(-1, DIM).float(), labels


def push_all(bank, sizes):
    start = 0
    for n in sizes:
        bank.push(*keys_from(start, n))
        start += n


def numbers(sizes):
    """The pushes of `push_all` as lists."""
    counter = iter(range(sum(sizes)))
    return [[next(counter) for _ in range(n)] for n in sizes]


# Memory bank


def test_bank_starts_with_unit_vectors_and_no_labels():
    bank = MemoryBank(9, DIM)
    assert len(bank) == 9
    torch.testing.assert_close(bank.keys.norm(dim=1), torch.ones(9))
    assert bank.labels.tolist() == [-1] * 9
    assert len({tuple(k) for k in bank.keys.tolist()}) == 9


@pytest.mark.parametrize("seed", range(20))
def test_bank_is_a_queue_for_any_batch_sizes(seed):
    rng = random.Random(seed)
    size = rng.randint(1, 12)
    sizes = [rng.randint(0, 2 * size + 3) for _ in range(seed % 9)]
    bank = MemoryBank(size, DIM)
    before = bank.keys.clone()
    push_all(bank, sizes)
    want = [-1 if x is None else x for x in reference.queue(size, numbers(sizes))]
    assert bank.labels.tolist() == want
    for key, label, start in zip(bank.keys, want, before, strict=True):  # what was not reached stays as it was
        assert torch.equal(key, start if label < 0 else torch.full((DIM,), float(label)))
    assert bank.pointer.item() == sum(sizes) % size


def test_bank_goes_on_at_its_pointer_after_a_state_dict_roundtrip():
    bank, resumed = MemoryBank(5, DIM), MemoryBank(5, DIM)
    push_all(bank, [3])
    resumed.load_state_dict(bank.state_dict())
    for b in (bank, resumed):
        b.push(*keys_from(3, 4))
    assert resumed.labels.tolist() == bank.labels.tolist() == [5, 6, 2, 3, 4]
    assert torch.equal(resumed.keys, bank.keys)
    assert resumed.pointer == bank.pointer == 2


def test_bank_keeps_no_graph_of_what_it_is_given():
    bank = MemoryBank(4, DIM)
    bank.push(torch.ones(2, DIM, requires_grad=True), torch.zeros(2, dtype=torch.long))
    assert not bank.keys.requires_grad


def test_bank_of_no_keys_raises():
    with pytest.raises(ValueError, match="at least 1"):
        MemoryBank(0, DIM)


# Contrastive model


class Recorder(nn.Module):
    """A criterion that keeps what it was given."""

    def terms(self, query, key, labels, bank, bank_labels):
        self.query, self.key, self.bank, self.bank_labels = query, key, bank.clone(), bank_labels.clone()
        return (query * key).sum()


def small_model(criterion=None, momentum=0.9, **kwargs):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return ContrastiveModel(
        net, projection_head(5, DIM), MemoryBank(6, DIM), criterion or Recorder(), momentum, **kwargs
    )


def views(n=4):
    gen = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 6, 6, generator=gen), torch.randn(n, 3, 6, 6, generator=gen) + 3, torch.arange(n) % 2


@torch.no_grad()
def disturb(model):
    """Moves the query parameters away from the key's, as an optimizer would."""
    for parameter in (*model.encoder.parameters(), *model.head.parameters()):
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))


def key_parameters(model):
    return (*model.key_encoder.parameters(), *model.key_head.parameters())


def query_parameters(model):
    return (*model.encoder.parameters(), *model.head.parameters())


def test_key_encoder_starts_as_a_copy_of_the_query_encoder():
    model = small_model()
    for theta_k, theta_q in zip(key_parameters(model), query_parameters(model), strict=True):
        assert torch.equal(theta_k, theta_q)
        assert theta_k is not theta_q


def test_key_parameters_follow_the_query_parameters():
    model = small_model(momentum=0.9)
    disturb(model)
    old = [p.clone() for p in key_parameters(model)]
    model(*views())
    for theta_k, before, theta_q in zip(key_parameters(model), old, query_parameters(model), strict=True):
        torch.testing.assert_close(theta_k, 0.9 * before + 0.1 * theta_q)


def test_keys_are_encoded_after_the_key_encoder_moved():
    model = small_model(momentum=0.5)
    disturb(model)
    moved = copy.deepcopy(model)
    moved.update_key_encoder()
    query_view, key_view, labels = views()
    model(query_view, key_view, labels)
    with torch.no_grad():
        want = F.normalize(moved.key_head(moved.key_encoder(key_view)), dim=1)
    torch.testing.assert_close(model.criterion.key, want)


def test_queries_come_from_the_query_encoder_and_the_first_view():
    model = small_model()
    disturb(model)
    same = copy.deepcopy(model)
    query_view, key_view, labels = views()
    model(query_view, key_view, labels)
    torch.testing.assert_close(model.criterion.query, F.normalize(same.head(same.encoder(query_view)), dim=1))


def test_only_the_query_encoder_gets_a_gradient():
    model = small_model()
    model(*views()).backward()
    assert not model.criterion.key.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in key_parameters(model))
    assert all(p.grad is not None for p in query_parameters(model))


def test_the_bank_is_scored_as_it_was_before_the_push():
    model = small_model()
    before = copy.deepcopy(model.bank)
    model(*views(4))
    assert torch.equal(model.criterion.bank, before.keys)
    assert torch.equal(model.criterion.bank_labels, before.labels)
    assert torch.equal(model.bank.keys[:4], model.criterion.key)
    assert model.bank.labels.tolist() == [0, 1, 0, 1, -1, -1]


@pytest.mark.parametrize("min_tau", [0.01, 0.1])
def test_backward_after_the_push_uses_the_old_bank(min_tau):
    model = small_model(RINCELoss(torch.eye(2), min_tau))
    frozen = copy.deepcopy(model)
    frozen.bank.push = lambda keys, labels: None
    model(*views()).loss().backward()
    frozen(*views()).loss().backward()
    for got, want in zip(query_parameters(model), query_parameters(frozen), strict=True):
        assert torch.equal(got.grad, want.grad)


def test_the_bank_gets_the_gathered_keys_and_labels():
    model = small_model(gather=lambda x: torch.cat([x, x]))
    model(*views(2))
    assert model.bank.labels.tolist() == [0, 1, 0, 1, -1, -1]
    assert torch.equal(model.bank.keys[:4], torch.cat([model.criterion.key] * 2))


def test_key_batchnorm_has_statistics_of_its_own():
    model = small_model()
    query_view, key_view, labels = views()
    model(query_view, key_view, labels)
    for bn, conv, view in (
        (model.encoder[1], model.encoder[0], query_view),
        (model.key_encoder[1], model.key_encoder[0], key_view),
    ):
        torch.testing.assert_close(bn.running_mean, 0.1 * conv(view).detach().mean((0, 2, 3)))
    assert not torch.allclose(model.encoder[1].running_mean, model.key_encoder[1].running_mean)


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_a_momentum_outside_zero_and_one_raises(momentum):
    with pytest.raises(ValueError, match=f"momentum is {momentum}"):
        small_model(momentum=momentum)


@pytest.mark.parametrize(("dim", "out_dim"), [(64, 128), (512, 32)])
def test_the_head_is_two_linear_layers_with_a_relu_between(dim, out_dim):
    first, relu, second = projection_head(dim, out_dim)
    assert first.weight.shape == (dim, dim)
    assert isinstance(relu, nn.ReLU)
    assert second.weight.shape == (out_dim, dim)
    assert projection_head(dim)(torch.zeros(3, dim)).shape == (3, 128)


# Encoders


@pytest.mark.parametrize(
    ("name", "small_images", "small_stem"),
    [
        ("resnet18", False, False),
        ("resnet18", True, True),
        ("resnet18_standard", True, False),
        ("resnet18_cifar", False, True),
    ],
)
def test_the_stem_follows_the_images_unless_a_suffix_forces_it(name, small_images, small_stem):
    net = encoder(name, small_images).eval()
    assert net.conv1.kernel_size == ((3, 3) if small_stem else (7, 7))
    assert net.conv1.stride == ((1, 1) if small_stem else (2, 2))
    assert isinstance(net.maxpool, nn.Identity if small_stem else nn.MaxPool2d)
    assert net.dim == 512
    with torch.no_grad():
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 512)


def test_resnet18_has_the_features_of_torchvision():
    torch.manual_seed(3)
    net, theirs = encoder("resnet18").eval(), torchvision.models.resnet18().eval()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(net.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(net(images), theirs(images))


@pytest.mark.parametrize(("name", "layers"), [("resnet8", 8), ("resnet20", 20), ("resnet56", 56)])
def test_narrow_resnets_have_64_features_and_their_depth(name, layers):
    net = encoder(name, small_images=True).eval()
    with torch.no_grad():
        assert net(torch.zeros(2, 3, 16, 16)).shape == (2, 64)
    assert net.dim == 64
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) == layers - 1  # the classifier is the last layer


def test_resnet20_has_the_published_number_of_parameters():
    # He et al. 2016, table 6: 0.27 million with the classifier of 10 classes
    total = sum(p.numel() for p in encoder("resnet20").parameters()) + 64 * 10 + 10
    assert round(total / 1e6, 2) == 0.27


@pytest.mark.parametrize("name", ["resnet19", "vgg16", "resnet18_tiny", ""])
def test_an_unknown_encoder_is_named_with_those_that_there_are(name):
    with pytest.raises(ValueError, match=f"^{name} is unknown; choose one of resnet8, "):
        encoder(name)

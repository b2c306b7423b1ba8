"""The device computes what the CPU does."""

import contextlib
import types
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

import datasets
import evaluation
import util
from datasets import color_on_device
from datasets.augmentation import DRAWS, Augmentation, finish
from datasets.views import Views
from engine.batches import loading
from engine.train import training
from engine.train.optimization import sgd
from engine.train.training import FiniteGuard, Schedule, Stepper
from losses import InBatchLoss, NestedRINCELoss, RINCELoss, SupConLoss
from networks import resnet
from networks.contrastive import ContrastiveModel, projection_head
from networks.memory_bank import MemoryBank

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
CLASSES, ANCHORS, BANK, DIM = 100, 768, 8192, 128
GROUP = torch.arange(CLASSES) // 5
TABLE = torch.eye(CLASSES).maximum(0.75 * (GROUP[:, None] == GROUP))


def drawn(seed):
    return torch.Generator().manual_seed(seed)


def far(found, wanted) -> float:
    """The length of a difference, in that of what is wanted."""
    found, wanted = found.detach().cpu().double(), wanted.detach().cpu().double()
    assert found.isfinite().all()
    return float((found - wanted).norm() / wanted.norm())


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_views_are_finished_alike(device, side, layout):
    recipe = Augmentation(side, (0.5,) * 3, (0.5,) * 3)
    count = 256 if side == 32 else 64
    pixels = torch.randint(256, (count, side, side, 3), dtype=torch.uint8, generator=drawn(0))
    look = recipe.look(torch.rand(count, DRAWS, generator=drawn(1), dtype=torch.float64).numpy())
    wanted = finish(pixels.permute(0, 3, 1, 2), look, recipe.mean, recipe.std, layout)
    found = finish(pixels.to(device).permute(0, 3, 1, 2), look, recipe.mean, recipe.std, layout)
    assert found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(found.cpu(), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [32, 224])
def test_the_compiled_pass_finishes_views_alike(device, side):
    if device.type == "cpu":
        pytest.skip("tests/datasets/test_color_on_device.py compiles it for a CPU")
    recipe, said = Augmentation(side, (0.5,) * 3, (0.5,) * 3), []
    pixels = torch.randint(256, (128, side, side, 3), dtype=torch.uint8, generator=drawn(0)).permute(0, 3, 1, 2)
    look = recipe.look(torch.rand(128, DRAWS, generator=drawn(1), dtype=torch.float64).numpy())
    compiled = color_on_device.Finish(said.append)
    found = compiled(pixels.to(device), look, recipe.mean, recipe.std, torch.channels_last)
    assert compiled.ran, said  # what it says where it cannot be compiled
    assert found.is_contiguous(memory_format=torch.channels_last)
    wanted = finish(pixels, look, recipe.mean, recipe.std, torch.channels_last)
    # inductor multiplies by reciprocals, and Triton divides to two units in the last place: 6.8e-6, where emulated; a
    # wrong order of the operations, or a wrong mean, is more than 1e-3 away
    torch.testing.assert_close(found.cpu(), wanted, atol=3e-5, rtol=0)


def test_views_that_loader_processes_bring_are_finished_alike(device):
    views = Views(datasets.build("digits"), Augmentation(8, (0.5,) * 3, (0.2,) * 3), 0, finished=False)
    found = []
    for place in (CPU, device):
        loader, sampler = loading.training_loader(views, loading.Loading(64, 2, place, channels_last=True), seed=0)
        sampler.set_epoch(1)
        found.append([(images.cpu(), labels.cpu()) for images, labels in loader])
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


# ---- losses ----------------------------------------------------------------------------------------------------------

CRITERIA = {
    "RINCE in": RINCELoss(TABLE, variant="in"),
    "RINCE out": RINCELoss(TABLE, variant="out"),
    "RINCE out_in": RINCELoss(TABLE, variant="out_in"),
    "RINCE out_in, no filter": RINCELoss(TABLE, variant="out_in", min_probability=0),
    "RINCE out, pairs averaged within anchors": RINCELoss(TABLE, variant="out", reduction="anchors"),
    "RINCE out_in, cumulative": RINCELoss(TABLE, variant="out_in", cumulative_positives=True),
    "RINCE out_in, low temperature": RINCELoss(TABLE, 0.02, 0.1),
    "SCL in": SupConLoss(CLASSES, variant="in"),
    "SCL out": SupConLoss(CLASSES, variant="out"),
    "nested": NestedRINCELoss(torch.stack([torch.arange(CLASSES), GROUP], 1)),
    "in the batch": InBatchLoss(RINCELoss(TABLE)),
}


def unit(rows, generator):
    return F.normalize(torch.randn(rows, DIM, generator=generator), dim=1)


def value_and_gradients(criterion, place):
    """The loss, and its gradients in queries and keys, of one batch; a tenth of the bank's slots are empty."""
    g = drawn(0)
    query, key, bank = unit(ANCHORS, g), unit(ANCHORS, g), unit(BANK, g)
    labels, known = (torch.randint(CLASSES, (n,), generator=g) for n in (ANCHORS, BANK))
    known[-BANK // 10 :] = -1
    query, key, bank, labels, known = (x.to(place) for x in (query, key, bank, labels, known))
    query.requires_grad_()
    key.requires_grad_()
    rest = () if isinstance(criterion, InBatchLoss) else (bank, known)
    loss = deepcopy(criterion).to(place)(query, key, labels, *rest)
    return loss, *torch.autograd.grad(loss, (query, key))


@pytest.mark.parametrize("name", CRITERIA)
def test_a_loss_and_its_gradient_are_alike(device, name):
    (loss, *gradients), (wanted, *others) = (value_and_gradients(CRITERIA[name], d) for d in (device, CPU))
    assert far(loss, wanted) < 1e-5
    for gradient, other in zip(gradients, others, strict=True):
        assert far(gradient, other) < 1e-4


# ---- steps -----------------------------------------------------------------------------------------------------------


def patches(seed):
    """Two views [128, 3, 32, 32] of smooth patches of color, under a little noise, and labels [128]."""
    g = drawn(seed)
    smooth = 2 * F.interpolate(torch.randn(128, 3, 4, 4, generator=g), 32, mode="bilinear")
    views = smooth + 0.3 * torch.randn(2, 128, 3, 32, 32, generator=g)
    return views, torch.randint(CLASSES, (128,), generator=g)


def joined(tensors):
    return torch.cat([x.detach().flatten().float() for x in tensors]).cpu()


def key_parameters(model):
    return joined([*model.key_encoder.parameters(), *model.key_head.parameters()])


@contextlib.contextmanager
def fixed_algorithms():
    """cuDNN's deterministic algorithms, the same in every run: not those that are fastest on the day."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    yield
    cudnn.deterministic, cudnn.benchmark = before


def stepped(place, steps, precision=torch.float32, of_encoders=torch.float32):
    """What so many steps of RINCE make of a ResNet-20, each in one vector: the first step's gradient, momenta, how far
    the key encoder's weights went, its BatchNorm statistics; and the bank. of_encoders: the type of their weights.
    """
    util.seed_everything(0)
    encoder = resnet.encoder("resnet20", small_images=True)
    head = projection_head(encoder.dim)
    bank = MemoryBank(300, DIM)  # whose end the third batch of 128 goes round
    model = ContrastiveModel(encoder.to(of_encoders), head.to(of_encoders), bank, RINCELoss(TABLE), 0.9)
    start = key_parameters(model)
    model = training.place_model(model, place, torch.channels_last, compiled=False)
    stepper = Stepper(sgd(model, 0.05, 0.9, 1e-4), Schedule(0.05, 1, cosine=False), precision, place)
    guard, gradient = FiniteGuard(stepper.optimizer, place), None

    def step(views, labels):
        terms = model(*views, labels)
        return terms.loss(), terms.per_rank()

    with fixed_algorithms():
        for i in range(steps):
            views, labels = patches(i)
            views = [v.to(place, of_encoders).contiguous(memory_format=torch.channels_last) for v in views]
            loss, _ = stepper.backward(step, views, labels.to(place))
            if gradient is None:
                gradient = joined(p.grad for p in model.parameters() if p.requires_grad)
            guard.step(loss, i, stepper.scaler)
    return types.SimpleNamespace(
        gradient=gradient,
        momenta=joined(s["momentum_buffer"] for s in stepper.optimizer.state.values()),
        key_moved=key_parameters(model) - start,
        key_statistics=joined(b for b in model.key_encoder.buffers() if b.ndim),
        bank=bank,
    )


@pytest.fixture(scope="module")
def on_the_cpu():
    return stepped(CPU, 3)


# On a CPU, float32 moves this gradient by 4e-3 against float64, and the momenta of three steps by more; each of cuDNN's
# algorithms rounds in its own way. With encoders in float64, what the loss rounds, always in float32, moves it by 1e-6.


def test_a_steps_gradient_is_alike(device, on_the_cpu):
    assert far(stepped(device, 1).gradient, on_the_cpu.gradient) < 3e-2


def test_a_steps_gradient_is_the_same_to_the_losss_last_digits_where_encoders_are_float64(device):
    found, wanted = (stepped(d, 1, of_encoders=torch.float64).gradient for d in (device, CPU))
    assert far(found, wanted) < 1e-4


def test_a_steps_gradient_points_the_same_way_in_bfloat16(device, on_the_cpu):
    found = stepped(device, 1, torch.bfloat16).gradient
    assert F.cosine_similarity(found, on_the_cpu.gradient, dim=0) > 0.95
    assert far(found, on_the_cpu.gradient) > 2e-2  # so it is bfloat16


def test_key_encoder_bank_pointer_and_momenta_are_alike_after_three_steps(device, on_the_cpu):
    found = stepped(device, 3)
    assert int(found.bank.pointer) == int(on_the_cpu.bank.pointer) == 3 * 128 % 300
    assert torch.equal(found.bank.labels.cpu(), on_the_cpu.bank.labels)
    assert far(found.bank.keys, on_the_cpu.bank.keys) < 1e-3
    assert far(found.key_statistics, on_the_cpu.key_statistics) < 1e-3
    assert far(found.key_moved, on_the_cpu.key_moved) < 0.1
    assert far(found.momenta, on_the_cpu.momenta) < 0.2


# ---- evaluation ------------------------------------------------------------------------------------------------------

QUERIES = 500


@pytest.fixture(scope="module")
def features():
    """Unit features of 20 classes that overlap: 500 queries, a gallery of 5,000, and the labels of both."""
    centers = torch.randn(20, 64, generator=drawn(0))
    parts = []
    for count, seed in ((QUERIES, 1), (5000, 2)):
        labels = torch.randint(20, (count,), generator=drawn(seed))
        noise = torch.randn(count, 64, generator=drawn(seed + 2))
        parts += [F.normalize(centers[labels] + 2 * noise, dim=1), labels]
    return parts


def on(place, features):
    return [x.to(place) for x in features]


def test_retrieval_is_alike(device, features):
    found, wanted = (evaluation.retrieval_metrics(*on(d, features)) for d in (device, CPU))
    for name in wanted:
        # of two images at one distance, to the last digit, either may come first: one query
        assert abs(found[name] - wanted[name]) <= (1.01 / QUERIES if name.startswith("R@") else 1e-4), name


def test_knn_accuracy_is_alike(device, features):
    found, wanted = (evaluation.knn_accuracy(*on(d, features)) for d in (device, CPU))
    assert 0.1 < wanted < 1
    assert abs(found - wanted) <= 1.01 / QUERIES


@pytest.mark.parametrize("detector", ["gaussian", "mahalanobis", "knn", "msp"])
def test_ood_scores_are_alike(device, features, detector):
    def scores(place):
        test, _, train, labels = on(place, features)
        if detector == "knn":
            return evaluation.knn_scores(train, test)
        if detector == "msp":
            return evaluation.msp_scores(20 * test[:, :20])
        return getattr(evaluation, f"{detector}_scores")(train, labels, test)

    found, wanted = scores(device), scores(CPU)
    assert wanted.std() > 0
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-4, atol=1e-4)

"""The CUDA path without a GPU: what the simulated device of tests/cuda_dry.py says of our code, and what it would say.

`tests/gpu` asks a real device. Here `make test` holds that the host waits for no step, and that nothing is mixed up
between devices and streams, with faults planted in our own code to see that each is found.
"""

import json

import cuda_dry
import pytest
import torch
import torch.nn.functional as F
from commands import error_of, run
from cuda_dry import CUDA, Device, OnDevice
from made_data import make_cifar10, make_cifar100, make_image_folders
from torch import nn

import evaluation
import losses
from datasets import ImageData
from datasets.augmentation import Augmentation
from datasets.views import Views
from engine.batches import loading
from engine.batches.epoch_batches import Prefetcher
from engine.batches.loading import Resident
from engine.run import checkpoint, run_log
from engine.train import monitor
from engine.train.optimization import sgd
from engine.train.training import FiniteGuard, Mean, Schedule, Stepper
from networks.contrastive import ContrastiveModel
from networks.memory_bank import MemoryBank

# what makes up a step; the host waits in none of it
STEP = (
    (Prefetcher, "__iter__"),
    (Views, "finish"),
    (Stepper, "backward"),
    (FiniteGuard, "step"),
    (Mean, "update"),
)


@pytest.fixture
def dry():
    with Device() as device:
        yield device


def dry_run(folder, command, script="main_supcon") -> Device:
    """Runs a script on the simulated device; returns what it has seen."""
    with Device() as device, pytest.MonkeyPatch.context() as patch:
        for owner, name in STEP:
            patch.setattr(owner, name, device.marked(getattr(owner, name), f"{owner.__name__}.{name}"))
        run(patch, folder, command, script)
    return device


def texts(device) -> list[str]:
    return [str(fault) for fault in device.faults]


# ---- faults that it finds --------------------------------------------------------------------------------------------

FOUND = {
    "two devices": [
        lambda x: x + torch.ones(3),
        lambda x: torch.where(torch.tensor([True, False, True]), x, 0),
        lambda x: torch.ones(3)[x.long() - 1],
    ],
    "pageable": [
        lambda x: torch.zeros(1).to(x.device, non_blocking=True),
        lambda x: torch.zeros(10**6).cuda(non_blocking=True),
    ],
    "host waits": [
        lambda x: x[0].item(), lambda x: bool(x[0]), lambda x: int(x[0]), lambda x: x.tolist(), lambda x: x.cpu(),
        lambda x: torch.zeros(3).to(x.device), lambda x: torch.zeros(3).pin_memory().to(x.device),
        lambda x: torch.tensor(1.0, device=x.device), lambda x: x.copy_(torch.zeros(3)),
        lambda x: torch.zeros(3).copy_(x), lambda x: x.nonzero(), lambda x: x[x > 0],
        lambda x: x[torch.tensor([True, False, True])], lambda x: x[[0, 2]],
        lambda x: x.index_put_((x > 1,), x[:2] + 1), lambda x: x.masked_select(x > 0), lambda x: x.unique(),
        lambda x: torch.equal(x, x + 0), lambda x: x.repeat_interleave(x.long()), lambda x: x.long().bincount(),
        lambda x: torch.linalg.cholesky(x.diag()), lambda x: 1 in x,
        lambda x: torch.cuda.current_stream().synchronize(),
        lambda x: torch.cuda.current_stream().record_event().synchronize(),
    ],
    "nothing": [
        lambda x: (x * 2 + torch.tensor(1.0)).softmax(0).sum(), lambda x: x[torch.arange(2, device="cuda")],
        lambda x: x.masked_fill_(x > 1, 0), lambda x: x.__setitem__(x > 1, 0.0), lambda x: torch.where(x > 1, x, 0),
        lambda x: x.topk(2), lambda x: x.repeat_interleave(x.long(), output_size=6),
        lambda x: torch.zeros(3).pin_memory()[1:].to(x.device, non_blocking=True),
        lambda x: (torch.full((), 3.0, device="cuda"), torch.randperm(4, device="cuda")),
        lambda x: (len(x), x.shape, x.is_contiguous(), list(x)),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "number"), [(kind, i) for kind, each in FOUND.items() for i in range(len(each))])
def test_what_an_operation_does_to_a_step_is_reported_with_its_line(dry, kind, number):
    x = torch.tensor([1.0, 2.0, 3.0], device="cuda")
    with dry.section("step"):
        FOUND[kind][number](x)
    assert {fault.kind for fault in dry.faults} == ({kind} if kind != "nothing" else set())
    assert all(fault.place[0] == "tests/test_cuda_dry.py" and fault.place[2] == "<lambda>" for fault in dry.faults)


def batches(count=4, size=8) -> tuple[Prefetcher, Views]:
    """A loader over made-up color images, on the device."""
    images = torch.randint(256, (count * size, 12, 12, 3), dtype=torch.uint8).numpy()
    data = ImageData(images, torch.arange(count * size) % 5, list("abcde"))
    views = Views(data, Augmentation(8, (0.5,) * 3, (0.2,) * 3), seed=0, finished=False)
    return loading.training_loader(views, loading.Loading(size, 0, CUDA, channels_last=True), seed=0)[0], views


@pytest.mark.parametrize(
    ("owner", "name", "replacement", "kind", "place"),
    [
        (cuda_dry.Stream, "wait_event", lambda *_: None, "race", "datasets/color_on_device.py"),
        (OnDevice, "record_stream", lambda *_: None, "no record_stream", "datasets/color_on_device.py"),
        (loading.Loading, "of_loader", lambda _: {"generator": torch.Generator()}, "pageable",
         "engine/batches/epoch_batches.py"),
    ],
    ids=["no wait for the copy", "memory that is not marked as in use", "no pinned memory"],
)  # fmt: skip
def test_a_fault_planted_in_the_copies_of_batches_is_reported(dry, monkeypatch, owner, name, replacement, kind, place):
    monkeypatch.setattr(owner, name, replacement)
    for images, _ in batches()[0]:
        images.sum()
    assert place in {fault.place[0] for fault in dry.faults if fault.kind == kind}


def planted_item(terms):
    terms.total.sum().item()


def planted_mask(terms):
    terms.total[terms.count > 0].sum()


def planted_on_cpu(terms):
    terms.total + torch.zeros(len(terms.total))


def planted_copy(terms):
    torch.zeros(1).to(terms.total.device, non_blocking=True)


PLANTED = {
    planted_item: {"host waits"},
    planted_mask: {"host waits"},
    planted_on_cpu: {"two devices"},
    planted_copy: {"pageable"},
}


def test_faults_planted_in_a_step_are_reported_with_their_lines(monkeypatch, dry):
    per_rank = losses.RankTerms.per_rank
    monkeypatch.setattr(losses.RankTerms, "per_rank", lambda self: [f(self) for f in PLANTED] and per_rank(self))
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = ContrastiveModel(encoder, nn.Linear(4, 8), MemoryBank(16, 8), losses.RINCELoss(TABLE)).cuda()
    optimizer = sgd(model, 0.1, 0.9, 0.0)
    stepper, guard = Stepper(optimizer, Schedule(0.1, 1, False), torch.bfloat16, CUDA), FiniteGuard(optimizer, CUDA)
    images, labels = torch.randn(2, 8, 3, 6, 6, device="cuda"), torch.randint(4, (8,), device="cuda")

    def step(images, labels):
        terms = model(*images, labels)
        return terms.loss(), terms.per_rank()

    with dry.section("step"):
        loss, _ = stepper.backward(step, images, labels)
        guard.step(loss, 1)
    found = {f: {fault.kind for fault in dry.faults if fault.place[2] == f.__name__} for f in PLANTED}
    assert found == PLANTED
    assert all(fault.place[0] == "tests/test_cuda_dry.py" and fault.inside("backward") for fault in dry.faults)


# ---- our parts, alone ------------------------------------------------------------------------------------------------


def test_batches_on_the_device_are_those_finished_on_the_cpu(dry):
    torch.manual_seed(0)
    loader, views = batches()
    found = [(images, labels.tolist()) for images, labels in loader]
    views.finished, keys = True, loader.loader.batch_sampler
    for (images, labels), part in zip(found, keys, strict=True):
        expected, expected_labels = views.__getitems__(part)
        torch.testing.assert_close(images.cpu(), expected)
        assert labels == expected_labels.tolist()
        assert images[0].is_contiguous(memory_format=torch.channels_last)
    assert texts(dry) == []
    assert [w for w in dry.waits if w.inside("__iter__")] == []


def test_views_are_finished_one_by_one_without_a_wait_where_nothing_compiles(dry, monkeypatch):
    def no_compiler(*_):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: no_compiler)
    with dry.section("epoch"):
        assert len([images.sum() for images, _ in batches()[0]]) == 4
    assert texts(dry) == []


def test_features_are_extracted_without_a_wait_for_each_batch(dry):
    images, net = torch.zeros(2, 3).pin_memory(), nn.Linear(3, 2).cuda()
    before = len(dry.waits)
    evaluation.extract(net, [(images, torch.zeros(2))] * 20, CUDA)
    assert len(dry.waits) <= before + 1


def test_features_lie_on_the_device_where_they_take_half_of_it_at_most():
    features, labels = torch.zeros(100, 10), torch.zeros(100, dtype=torch.long)
    for memory, place in ((9_000, "cuda"), (7_000, "cpu")):
        with Device(memory=memory):
            kept = Resident.of(features, labels, CUDA)
            assert [x.device.type for x in kept.tensors] == [place, place]
            assert [x.shape for x in kept[[3, 4]]] == [(2, 10), (2,)]


TABLE = torch.tensor([[1, 0.75, 0, 0], [0.75, 1, 0, 0], [0, 0, 1, 0.5], [0, 0, 0.5, 1]])
VALUES = torch.tensor([0.0, 1, 1, 3])
LOSSES = {
    **{variant: (lambda v=variant: losses.RINCELoss(TABLE, variant=v)) for variant in losses.VARIANTS},
    "anchors": lambda: losses.RINCELoss(TABLE, variant="out", reduction="anchors"),
    "cumulative": lambda: losses.RINCELoss(TABLE, cumulative_positives=True),
    "log space": lambda: losses.RINCELoss(TABLE, min_tau=0.02),
    "supcon": lambda: losses.SupConLoss(4),
    "nested": lambda: losses.NestedRINCELoss(torch.tensor([[0, 0], [1, 0], [2, 1], [3, 1]])),
    "nested positives": lambda: losses.RINCELoss(TABLE, positives="nested"),
    "of values": lambda: losses.RINCELoss(losses.ValueRanks(VALUES, [0, 1])),
    "himulcone": lambda: losses.HiMulConLoss(TABLE, enforce=True),
    "two heads": lambda: losses.TwoHeadLoss(losses.SupConLoss(4), losses.CoarseSupConLoss(TABLE)),
    "xclr": lambda: losses.XCLRLoss(TABLE),
    "yaware of values": lambda: losses.YAwareLoss(VALUES, sigma=1.0),
    "rnc": lambda: losses.RankNContrastLoss(TABLE),
    "rnc of values": lambda: losses.RankNContrastLoss(VALUES, 0.02),
    "triplet": lambda: losses.TripletLoss(TABLE),
}


def given_to_a_loss(device):
    """Query with a gradient, key, labels, and a bank with empty entries."""
    torch.manual_seed(1)
    bank = MemoryBank(30, 8).to(device)
    bank.push(F.normalize(torch.randn(24, 8), dim=1).to(device), (torch.arange(24) % 4).to(device))
    query, key = (F.normalize(torch.randn(12, 8), dim=1).to(device).requires_grad_(r) for r in (True, False))
    return query, key, (torch.arange(12) % 4).to(device), bank


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_is_that_of_the_cpu_and_waits_for_nothing(name):
    def computed(criterion, query, key, labels, bank):
        terms = criterion.terms(query, key, labels, bank.keys, bank.labels)
        bank.push(key, labels)
        terms.loss().backward()
        return terms.per_rank().detach(), query.grad, bank.keys, bank.labels, bank.pointer

    expected = computed(LOSSES[name](), *given_to_a_loss(torch.device("cpu")))
    with Device() as dry:
        criterion, given = LOSSES[name]().to(CUDA), given_to_a_loss(CUDA)
        with dry.section("step"):
            found = computed(criterion, *given)
        assert texts(dry) == []
        torch.testing.assert_close([x.cpu() for x in found], list(expected))


def test_a_loss_over_the_batch_alone_waits_for_nothing(dry):
    criterion, (query, key, labels, _) = LOSSES["out_in"]().to(CUDA), given_to_a_loss(CUDA)
    with dry.section("step"):
        losses.InBatchLoss(criterion).terms(query, key, labels).loss().backward()
    assert texts(dry) == []
    assert query.grad.abs().sum() > 0


# ---- whole runs ------------------------------------------------------------------------------------------------------

FEW = "--hold_out 0 1 2 3 4 5 --model resnet8 --batch_size 64 --memorybank_size 128 --save_freq 1 --print_freq 4"


def assert_waits_at_progress_lines_only(dry, epochs=1, lines=1) -> None:
    """The host waits for no step: thrice at a progress line at most, and twice at the end of an epoch."""
    assert all(dry.launches[f"{owner.__name__}.{name}"] for owner, name in STEP if owner is not Views)
    assert texts(dry) == []
    inside = [w for w in dry.waits if w.inside("train_epoch")]
    assert 0 < len(inside) <= 3 * lines + 2 * epochs
    assert all(w.inside("check_finite") or w.inside("value") for w in inside)


def test_a_training_waits_at_progress_lines_only_and_has_the_losses_of_one_on_the_cpu(monkeypatch, tmp_path):
    command, steps = f"{FEW} --epochs 1 --learning_rate 0.02 --precision float32 --exp_name", 8
    run(monkeypatch, tmp_path, f"{command} cpu")
    dry = dry_run(tmp_path, f"{command} dry")
    assert_waits_at_progress_lines_only(dry, lines=2)
    assert dry.launches["FiniteGuard.step"] < 30 * steps
    assert dry.launches["Stepper.backward"] < 400 * steps
    models = tmp_path / "save/SupCon/digits_models"
    (on_cpu,), (found,) = (run_log.read_json_lines(models / name / "log.jsonl") for name in ("cpu", "dry"))
    for name in ("loss", "loss_rank_0", "loss_rank_1", "embedding_norm", "alignment"):
        assert found[name] == pytest.approx(on_cpu[name], rel=1e-3)


def test_a_run_says_what_memory_its_first_step_took_and_what_to_lower_where_that_is_too_much(
    monkeypatch, tmp_path, capsys
):
    with Device(memory=2_500_000):
        line = error_of(monkeypatch, capsys, tmp_path, f"{FEW} --epochs 1 --exp_name little")
    assert "CUDA out of memory. Tried to allocate" in line
    assert "give a smaller --batch_size or --size; of a training also --memorybank_size, or --prec" in line
    dry_run(tmp_path, f"{FEW} --epochs 2 --exp_name enough")
    printed = capsys.readouterr().out
    assert printed.count("memory: the first step took 0.0 GB of this GPU's 85.9 GB") == 1


@pytest.mark.slow
def test_a_resumed_run_goes_on_as_if_never_stopped_on_the_device_or_from_it_to_the_cpu(monkeypatch, tmp_path):
    command, models = f"{FEW} --epochs 2 --precision float32 --exp_name", "save/SupCon/digits_models"
    first = f"{models}/whole/ckpt_epoch_1.pth"
    dry_run(tmp_path, f"{command} whole")
    assert texts(dry_run(tmp_path, f"{command} again --resume {first}")) == []
    run(monkeypatch, tmp_path, f"{command} cpu --resume {first}")
    whole, again, cpu = (
        checkpoint.load(tmp_path / models / name / "last.pth")["model"] for name in ("whole", "again", "cpu")
    )
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    torch.testing.assert_close(cpu, whole, rtol=1e-2, atol=1e-3)


# ---- every script ----------------------------------------------------------------------------------------------------

COLOR = "--dataset cifar100 --data_folder . --num_workers 0"
TRAINING = "--model resnet8 --batch_size 40 --epochs 1 --learning_rate 0.05 --save_freq 1 --print_freq 4"
SUPCON = f"main_supcon {COLOR} --use_supercategories True {TRAINING} --memorybank_size 128"
NESTED = "main_supcon --dataset path --data_folder own --instance_ranks groups.csv --size 32 --num_workers 0"
CE = "--ckpt save/SupCon/cifar100_models/ce"
PROBE = f"main_linear {COLOR} {CE} --epochs 1 --batch_size 40 --print_freq 4 --overwrite True"
OOD = f"out_of_dist_detection {COLOR} {CE} --dataset_outliers cifar10 --data_folder_outliers . --batch_size 64"
TRAININGS = {
    "float32": f"{SUPCON} --precision float32 --knn_freq 1",
    "tf32": f"{SUPCON} --precision tf32 --channels_last True",
    "bfloat16": f"{SUPCON} --precision bfloat16 --augment_on worker",
    "float16": f"{SUPCON} --precision float16",
    "workers": f"{SUPCON} --num_workers 2",
    "cumulative": f"{SUPCON} --use_same_and_similar_class True",
    "low temperature": f"{SUPCON} --min_tau 0.02 --max_tau 0.02 --variant out_in",
    "supcon": f"{SUPCON} --loss_type supcon",
    "nested": f"{NESTED} {TRAINING} --memorybank_size 128",
    "probe": PROBE,
    "probe in bfloat16": f"{PROBE} --precision bfloat16",
    "probe of features": f"{PROBE} --cache_features",
    "probe of cached features": f"{PROBE} --cache_features --features_cache kept",
}
EVALUATIONS = {
    "retrieval": f"retrieval {COLOR} {CE} --labelset both --batch_size 64",
    **{name: f"{OOD} --detector {name}" for name in ("gaussian", "knn --knn_k 5", "mahalanobis", "msp", "energy")},
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A small CIFAR-100 and CIFAR-10, an own folder with nested groups, and a cross-entropy model of the first, trained
    on the simulated device.
    """
    root = tmp_path_factory.mktemp("pictures")
    make_cifar100(root, 128, 100)
    make_cifar10(root, 50, 20)
    make_image_folders(root / "own", ["a", "b"], each=32)
    rows = [f"{c}/{c}_{i}.JPEG,{c}{i // 8},{c}" for c in "ab" for i in range(32)]
    (root / "groups.csv").write_text("\n".join(["image,place,city", *rows]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor, "PAIRS", 16)
        dry = dry_run(root, f"{COLOR} {TRAINING} --use_ssl_augmentations True --exp_name ce", "main_ce")
    assert_waits_at_progress_lines_only(dry)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_has_no_fault_on_a_device(pictures, name):
    script, _, options = TRAININGS[name].partition(" ")
    named = "" if script == "main_linear" else f"--exp_name {name.replace(' ', '_')}"
    assert_waits_at_progress_lines_only(dry_run(pictures, f"{options} {named}", script))


@pytest.mark.slow
@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_evaluation_has_no_fault_on_a_device_and_finds_what_the_cpu_finds(monkeypatch, pictures, name):
    script, _, options = EVALUATIONS[name].partition(" ")
    folder = name.split()[0]
    assert texts(dry_run(pictures, f"{options} --save_folder dry/{folder}", script)) == []
    run(monkeypatch, pictures, f"{options} --save_folder cpu/{folder}", script)
    (found,), (expected,) = (list((pictures / place / folder / "results").glob("*.json")) for place in ("dry", "cpu"))
    found, expected = (json.loads(path.read_text()) for path in (found, expected))
    assert found["machine"] != expected["machine"]
    metrics = expected["metrics"] if script == "retrieval" else {"": expected["metrics"]}
    for labels, wanted in metrics.items():
        assert (found["metrics"][labels] if labels else found["metrics"]) == pytest.approx(wanted, abs=0.5)

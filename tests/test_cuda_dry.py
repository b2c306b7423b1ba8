"""The CUDA path without a GPU: what the stand-in of tests/cuda_dry.py says of our code, and that it finds faults."""

import json
import time

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
import util
from datasets.views import Views
from engine.batches import loading
from engine.batches.loading import Resident
from engine.batches.prefetch import Prefetcher
from engine.run import checkpoint
from engine.train import monitor
from engine.train.optimization import FiniteGuard, Schedule, Stepper, sgd
from networks.contrastive import ContrastiveModel
from networks.memory_bank import MemoryBank

# what makes up a step; the host waits in none of it
STEP = (
    (Prefetcher, "__iter__"),
    (Views, "finish"),
    (Stepper, "backward"),
    (FiniteGuard, "step"),
    (util.Mean, "update"),
)


@pytest.fixture
def dry():
    with Device() as device:
        yield device


def dry_run(folder, command, script="main_supcon") -> Device:
    """Runs a script on the stand-in; returns what it has seen."""
    with Device() as device, pytest.MonkeyPatch.context() as patch:
        for owner, name in STEP:
            patch.setattr(owner, name, device.marked(getattr(owner, name), f"{owner.__name__}.{name}"))
        run(patch, folder, command, script)
    return device


def words(device) -> list[str]:
    return [str(fault) for fault in device.faults]


def kinds(device) -> list[str]:
    return [fault.kind for fault in device.faults]


def here(fault, function) -> None:
    """Asserts that a fault names the line of this file where a function of this file made it."""
    file, _, name = fault.place
    assert (file, name) == ("tests/test_cuda_dry.py", function)


# ---- values ----------------------------------------------------------------------------------------------------------


def small_training(device, precision) -> tuple[list[float], list[torch.Tensor]]:
    """Losses and weights of three steps of a small net, drawn on the CPU."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    images, labels = torch.randn(3, 4, 3, 8, 8), torch.randint(5, (3, 4))
    net.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, fused=True)
    scaler, found = torch.amp.GradScaler(device.type, 1024, enabled=precision == torch.float16), []
    for x, y in zip(images.to(device), labels.to(device), strict=True):
        with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1e6)
        scaler.step(optimizer)
        scaler.update()
        found.append(loss.item())
    return found, [p.detach().cpu() for p in net.state_dict().values()]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_training_on_the_stand_in_is_that_on_the_cpu(precision):
    expected = small_training(torch.device("cpu"), precision)
    with Device() as dry:
        found = small_training(CUDA, precision)
    torch.testing.assert_close(found, expected)
    assert dry.faults == []


def test_a_module_and_its_optimiser_keep_their_parameters_when_it_moves(dry):
    net = nn.Linear(3, 2)
    before = list(net.parameters())
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    net.cuda()
    assert all(a is b for a, b in zip(before, net.parameters(), strict=True))
    assert all(isinstance(p, nn.Parameter) and isinstance(p, OnDevice) and p.is_cuda for p in before)
    net(torch.ones(1, 3, device="cuda")).sum().backward()
    optimizer.step()
    assert before[1].tolist() == [x - 1 for x in (before[1] + 1).tolist()]


def test_what_is_made_on_the_device_says_so(dry):
    x = torch.zeros(2, 3, device="cuda")
    made = (
        x.new_zeros(4), torch.ones_like(x), x[0], x.t(), x + 1, torch.arange(3, device=x.device), x.double(),
        torch.randperm(5, device="cuda", generator=torch.Generator("cuda")), torch.tensor(1.0, device="cuda"),
        torch.from_numpy(x.cpu().numpy()).cuda(), torch.empty(2).to(x), torch.empty(2).to(device="cuda:0"),
    )  # fmt: skip
    assert {(y.device, y.is_cuda) for y in made} == {(CUDA, True)}
    assert {y.device.type for y in (x.cpu(), x.to("cpu"), x.to(torch.empty(0)), torch.zeros(2))} == {"cpu"}
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()


def test_views_share_what_is_written_into_them(dry):
    x = torch.zeros(2, 3, device="cuda")
    x[1].add_(2)
    x.unbind(1)[0].fill_(5)
    assert x.tolist() == [[5, 0, 0], [5, 2, 2]]


def test_gradients_flow_from_one_device_to_the_other(dry):
    x = torch.ones(2, requires_grad=True)
    y = x.to("cuda")
    (y * 3).cpu().sum().backward()
    assert x.grad.tolist() == [3, 3]
    assert not x.grad.is_cuda


def test_the_device_draws_from_a_generator_of_its_own_whose_state_can_be_set_back(dry):
    torch.manual_seed(3)
    state, on_cpu = torch.cuda.get_rng_state(), torch.get_rng_state()
    first = [torch.rand(4, device="cuda").tolist(), torch.empty(4, device="cuda").uniform_().tolist()]
    assert torch.equal(torch.get_rng_state(), on_cpu)
    torch.cuda.set_rng_state(state)
    assert [torch.rand(4, device="cuda").tolist(), torch.empty(4, device="cuda").uniform_().tolist()] == first


def test_torch_is_as_it_was_afterwards():
    def state():
        cudnn, places = torch.backends.cudnn, (torch, torch.cuda, torch.Tensor, nn.utils)
        names = [f"{name} {value!r}" for place in places for name, value in vars(place).items()]
        return names, cudnn.benchmark, cudnn.allow_tf32, torch.__future__.get_swap_module_params_on_conversion()

    with Device():
        pass  # imports what it needs
    before = state()
    with Device():
        assert torch.cuda.is_available()
        torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = not torch.backends.cudnn.benchmark
    assert state() == before


# ---- faults that it finds --------------------------------------------------------------------------------------------


def test_an_operation_over_two_devices_is_reported_with_its_line(dry):
    x = torch.ones(3, device="cuda")
    for on_cpu in (torch.ones(3), torch.ones(1, 3), torch.tensor([True, False, True])):
        x + on_cpu
    torch.ones(3)[torch.zeros(2, dtype=torch.long, device="cuda")]
    assert kinds(dry) == ["two devices"] * 4
    here(dry.faults[0], "test_an_operation_over_two_devices_is_reported_with_its_line")
    assert "add" in str(dry.faults[0])


def test_numbers_of_the_cpu_may_go_with_the_device(dry):
    x = torch.ones(3, device="cuda")
    found = torch.where(x > 0, torch.tensor(2.0), x) * 3 + torch.tensor(1.0)
    assert found.tolist() == [7, 7, 7]
    assert dry.faults == []


WAITING = {
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool(x[0]),
    "int": lambda x: int(x[0]),
    "float": lambda x: float(x[0]),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to cpu": lambda x: x.to("cpu"),
    "to the device": lambda x: torch.zeros(3).to(x.device),
    "to the device, pinned": lambda x: torch.zeros(3).pin_memory().to(x.device),
    "a number to the device": lambda x: torch.tensor(1.0, device=x.device),
    "copy_": lambda x: x.copy_(torch.zeros(3)),
    "copy_ to the host": lambda x: torch.zeros(3).copy_(x),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "mask of the CPU": lambda x: x[torch.tensor([True, False, True])],
    "list of indices": lambda x: x[[0, 2]],
    "writing under a mask": lambda x: x.index_put_((x > 1,), x[:2] + 1),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x + 0),
    "repeat_interleave": lambda x: x.repeat_interleave(x.long()),
    "bincount": lambda x: x.long().bincount(),
    "cholesky": lambda x: torch.linalg.cholesky(x.diag()),
    "in": lambda x: 1 in x,
    "synchronize": lambda x: torch.cuda.synchronize(),
    "stream": lambda x: torch.cuda.current_stream().synchronize(),
    "event": lambda x: torch.cuda.current_stream().record_event().synchronize(),
}
NOT_WAITING = {
    "arithmetic": lambda x: (x * 2 + 1).softmax(0).sum(),
    "indices of the device": lambda x: x[torch.arange(2, device="cuda")],
    "filling under a mask": lambda x: x.masked_fill_(x > 1, 0),
    "setting under a mask": lambda x: x.__setitem__(x > 1, 0.0),
    "where": lambda x: torch.where(x > 1, x, 0),
    "topk": lambda x: x.topk(2),
    "repeat_interleave of known size": lambda x: x.repeat_interleave(x.long(), output_size=6),
    "pinned, non_blocking": lambda x: torch.zeros(3).pin_memory().to(x.device, non_blocking=True),
    "to the host, non_blocking": lambda x: x.to("cpu", non_blocking=True),
    "made there": lambda x: (torch.full((), 3.0, device="cuda"), torch.randperm(4, device="cuda")),
    "shape": lambda x: (len(x), x.shape, x.numel(), x.is_contiguous()),
    "list over": lambda x: list(x),
}


@pytest.mark.parametrize("name", WAITING)
def test_an_operation_for_which_the_host_waits_is_reported_inside_a_step_alone(dry, name):
    x = torch.tensor([1.0, 2.0, 3.0], device="cuda")
    WAITING[name](x)
    assert dry.faults == []
    before = len(dry.waits)
    with dry.section("step", waits=False):
        WAITING[name](x)
    assert before > 1  # one was x's own
    assert len(dry.waits) > before
    assert set(kinds(dry)) == {"host waits"}
    here(dry.faults[0], "<lambda>")


@pytest.mark.parametrize("name", NOT_WAITING)
def test_an_operation_that_does_not_make_the_host_wait_is_none(dry, name):
    x = torch.tensor([1.0, 2.0, 3.0], device="cuda")
    with dry.section("step", waits=False):
        NOT_WAITING[name](x)
    assert dry.faults == []


def test_a_non_blocking_copy_from_pageable_memory_is_reported_whatever_its_size(dry):
    for size in (1, 10**6):
        torch.zeros(size).to("cuda", non_blocking=True)
        torch.zeros(size).pin_memory()[: size // 2 + 1].to("cuda", non_blocking=True)  # a view is pinned too
    assert kinds(dry) == ["pageable"] * 2
    here(dry.faults[0], "test_a_non_blocking_copy_from_pageable_memory_is_reported_whatever_its_size")


@pytest.mark.parametrize("how", ["event", "stream", "host", "not at all"])
def test_a_stream_that_has_not_waited_for_a_tensors_maker_is_reported(dry, how):
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        x = torch.ones(3, device="cuda")
        made = side.record_event()
    if how == "event":
        torch.cuda.current_stream().wait_event(made)
    elif how == "stream":
        torch.cuda.current_stream().wait_stream(side)
    elif how == "host":
        made.synchronize()
    x + 1
    x.record_stream(torch.cuda.current_stream())
    assert kinds(dry) == (["race"] if how == "not at all" else [])


def test_writing_what_another_stream_may_still_read_is_reported(dry):
    x, side = torch.ones(3, device="cuda"), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        x * 2
    x.record_stream(side)
    x * 2  # reading goes together
    assert dry.faults == []
    x.zero_()
    assert kinds(dry) == ["race"]


def test_batch_norms_statistics_are_written_by_it(dry):
    norm, x, side = nn.BatchNorm1d(2).cuda(), torch.zeros(3, 2, device="cuda"), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        norm(x)
    norm.running_mean + 1
    assert kinds(dry) == ["race"]
    for y in (x, *norm.state_dict().values()):
        y.record_stream(side)


@pytest.mark.parametrize("how", ["recorded", "waited for", "not at all"])
def test_memory_of_another_stream_that_is_freed_while_it_may_be_in_use_is_reported(dry, how):
    side, main = torch.cuda.Stream(), torch.cuda.current_stream()
    with torch.cuda.stream(side):
        x = torch.ones(3, device="cuda")
    main.wait_stream(side)
    y = x[:2].view(2)
    y + 1
    if how == "recorded":
        y.record_stream(main)
    elif how == "waited for":
        side.wait_stream(main)
    del x
    assert dry.faults == []  # a view of it is there
    del y
    assert kinds(dry) == (["no record_stream"] if how == "not at all" else [])


# ---- what it counts --------------------------------------------------------------------------------------------------


def test_launches_are_operations_that_compute_or_copy_and_none_are_views(dry):
    x = torch.zeros(4, 6, device="cuda")
    dry.launches.clear()
    with dry.section("views"):
        x.t()[1:].unsqueeze(0).reshape(5, 4)[..., 0].expand(3, 5).detach()
        torch.empty_like(x)
        x[:0].exp()
    with dry.section("outer"):
        x.exp().add_(1)
        with dry.section("inner"):
            torch._foreach_add_([x, x.detach()], 1)
    assert dry.launches == {"all": 3, "outer": 3, "inner": 1}


def test_traffic_is_what_is_read_and_written(dry):
    x, rows = torch.zeros(4, 6, device="cuda"), torch.zeros(6, device="cuda")
    dry.traffic.clear()
    x + rows.expand(4, 6)
    assert dry.traffic["all"] == 4 * (24 + 6 + 24)


def test_memory_counts_once_for_all_views_of_it_and_until_the_last_is_gone(dry):
    x = torch.zeros(1000, device="cuda")
    y = x[:10]
    assert torch.cuda.memory_allocated() == 4000
    del x
    y + y
    assert torch.cuda.memory_allocated() == 4000
    del y
    assert torch.cuda.memory_allocated() == 0
    assert torch.cuda.max_memory_allocated() == 4040


def test_a_copy_to_the_host_is_not_there_before_the_host_has_waited(dry):
    x, pinned = torch.arange(3.0, device="cuda"), torch.empty(3, pin_memory=True)
    copies = [x.to("cpu", non_blocking=True), pinned.copy_(x, non_blocking=True)]
    done = torch.cuda.current_stream().record_event()
    x.add_(1)
    assert all(y.isnan().all() for y in copies)
    done.synchronize()
    assert [y.tolist() for y in copies] == [[0, 1, 2]] * 2


@pytest.mark.parametrize("waits", [True, False])
def test_pinned_memory_that_is_changed_before_it_was_copied_is_reported(dry, waits):
    pinned = torch.zeros(3).pin_memory()
    pinned.to("cuda", non_blocking=True)
    if waits:
        torch.cuda.current_stream().record_event().synchronize()
    pinned.fill_(1)
    torch.cuda.synchronize()
    assert kinds(dry) == ([] if waits else ["race"])


def test_more_than_the_devices_memory_is_an_error_of_torchs():
    with Device(memory=1000):
        x = torch.zeros(200, device="cuda")
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            x + 1
        del x
        assert torch.cuda.mem_get_info() == (1000, 1000)
        torch.zeros(250, device="cuda")


def test_the_host_runs_ahead_of_the_device_and_events_tell_the_devices_time():
    with Device(kernel=0.25, host=0.0) as dry:
        x = torch.zeros(3, device="cuda")
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        x.add_(1).add_(1)
        end.record()
        assert dry.now == 0
        assert not end.query()
        with pytest.raises(RuntimeError, match="completed"):
            begin.elapsed_time(end)
        end.synchronize()
        assert (dry.now, begin.elapsed_time(end)) == (0.75, 500)
        dry.works(1.0)
        begin.record()  # the device has been idle: what it is given now begins now
        x.add_(1)
        end.record()
        end.synchronize()
        assert (dry.now, begin.elapsed_time(end)) == (2.0, 250)


def test_streams_work_side_by_side_but_wait_for_events():
    with Device(kernel=0.25, host=0.0) as dry:
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            x = torch.zeros(3, device="cuda").exp()
        torch.zeros(3, device="cuda")
        torch.cuda.current_stream().wait_event(side.record_event())
        x.record_stream(torch.cuda.current_stream())
        x + 1
        torch.cuda.synchronize()
        assert dry.now == 0.75


# ---- our parts, alone ------------------------------------------------------------------------------------------------


def batches(count=4, size=8) -> tuple[Prefetcher, Views]:
    """A loader over made-up colour images, on the device."""
    from datasets import ImageData
    from datasets.augmentation import Augmentation

    images = torch.randint(256, (count * size, 12, 12, 3), dtype=torch.uint8).numpy()
    data = ImageData(images, torch.arange(count * size) % 5, list("abcde"))
    views = Views(data, Augmentation(8, (0.5,) * 3, (0.2,) * 3), seed=0, finished=False)
    return loading.training_loader(views, loading.Loading(size, 0, CUDA, channels_last=True), seed=0)[0], views


def use(loader) -> list[torch.Tensor]:
    """What a training does with batches, as far as streams see it."""
    return [images.sum() for images, _ in loader]


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
    assert words(dry) == []
    assert [w for w in dry.waits if w.inside("__iter__")] == []


def test_a_copy_stream_that_is_not_waited_for_is_reported(dry, monkeypatch):
    monkeypatch.setattr(cuda_dry.Stream, "wait_event", lambda *_: None)
    use(batches()[0])
    races = [f for f in dry.faults if f.kind == "race"]
    assert races
    assert races[0].place[0] == "datasets/color_on_device.py"
    assert "engine/batches/prefetch.py" in str(races[0])  # where it was copied


def test_batches_whose_memory_is_not_marked_as_in_use_are_reported(dry, monkeypatch):
    monkeypatch.setattr(OnDevice, "record_stream", lambda *_: None)
    use(batches()[0])
    freed = [f for f in dry.faults if f.kind == "no record_stream"]
    assert len(freed) >= 4
    assert {f.place[0] for f in freed} <= {"datasets/color_on_device.py", "datasets/views.py", "tests/test_cuda_dry.py"}


def test_batches_that_are_not_pinned_are_reported(dry, monkeypatch):
    monkeypatch.setattr(loading.Loading, "of_loader", lambda self: {"generator": torch.Generator()})
    use(batches()[0])
    assert {(f.place[0], f.place[2]) for f in dry.faults if f.kind == "pageable"} >= {
        ("engine/batches/prefetch.py", "_moved")
    }


def test_views_are_finished_one_by_one_without_a_wait_where_nothing_compiles(dry, monkeypatch):
    def no_compiler(*_):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: no_compiler)
    with dry.section("epoch", waits=False):
        use(batches()[0])
    assert words(dry) == []


def test_the_batch_of_the_step_before_is_gone_while_the_next_is_made(dry, monkeypatch):
    loader, _ = batches(count=5, size=32)
    alive, make = [], Prefetcher._finished
    monkeypatch.setattr(Prefetcher, "_finished", lambda *args: alive.append(dry.allocated) or make(*args))
    steps = iter(loader)
    while (batch := next(steps, None)) is not None:
        size = batch[0].memory.size
        del batch
    assert max(alive[1:]) < size


def test_features_are_extracted_without_a_wait_for_each_batch(dry):
    images, net = torch.zeros(2, 3).pin_memory(), nn.Linear(3, 2).cuda()
    with dry.section("extract"):
        evaluation.extract(net, [(images, torch.zeros(2))] * 20, CUDA)
    assert sum("extract" in w.sections for w in dry.waits) <= 1


@pytest.mark.parametrize(("of_loader", "idle"), [(0.06, 0.0), (0.3, 0.66)], ids=["fast loader", "slow loader"])
def test_the_share_of_waiting_for_data_is_the_devices_idle_time(monkeypatch, of_loader, idle):
    """The host waits for the loader in both; the device, which takes 0.1 s a step, in the second alone."""
    with Device(kernel=0.1, host=0.0) as dry:
        monkeypatch.setattr(time, "perf_counter", lambda: dry.now)
        x = torch.zeros(3, device="cuda")
        monkeypatch.setattr(Prefetcher, "_moved", lambda *_: (x, x))  # copies would take as long as a step

        class Slow:
            dataset = None

            def __iter__(self):
                for _ in range(30):
                    dry.works(of_loader)
                    yield None, None

        loader = Prefetcher(Slow(), CUDA, torch.contiguous_format)
        for images, _ in loader:
            images.add_(1)
        torch.cuda.synchronize()
        found = loader.scalars()["waiting_for_data"]
    # the host, which has run ahead, waits for the device at the end
    assert found == pytest.approx(idle, abs=0.05)


# ---- losses ----------------------------------------------------------------------------------------------------------

TABLE = torch.tensor([[1, 0.75, 0, 0], [0.75, 1, 0, 0], [0, 0, 1, 0.5], [0, 0, 0.5, 1]])
GROUPS = torch.tensor([[0, 0], [1, 0], [2, 1], [3, 1]])
LOSSES = {
    **{variant: (lambda v=variant: losses.RINCELoss(TABLE, variant=v)) for variant in losses.VARIANTS},
    "anchors": lambda: losses.RINCELoss(TABLE, variant="out", reduction="anchors"),
    "cumulative": lambda: losses.RINCELoss(TABLE, cumulative_positives=True),
    "log space": lambda: losses.RINCELoss(TABLE, min_tau=0.02),
    "supcon": lambda: losses.SupConLoss(4),
    "nested": lambda: losses.NestedRINCELoss(GROUPS),
}


def step_of_loss(criterion, device):
    """Terms and gradient, and the bank afterwards, of one step from made-up vectors."""
    torch.manual_seed(1)
    bank = MemoryBank(30, 8).to(device)
    bank.push(F.normalize(torch.randn(24, 8), dim=1).to(device), (torch.arange(24) % 4).to(device))
    query, key = (F.normalize(torch.randn(12, 8), dim=1).to(device).requires_grad_(r) for r in (True, False))
    labels = (torch.arange(12) % 4).to(device)
    return criterion.to(device), query, key, labels, bank


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_is_that_of_the_cpu_and_waits_for_nothing(name):
    def computed(criterion, query, key, labels, bank):
        terms = criterion.terms(query, key, labels, bank.keys, bank.labels)
        bank.push(key, labels)
        terms.loss().backward()
        return terms.per_rank().detach(), query.grad, bank.keys, bank.labels, bank.pointer

    expected = computed(*step_of_loss(LOSSES[name](), torch.device("cpu")))
    with Device() as dry:
        made = step_of_loss(LOSSES[name](), CUDA)
        with dry.section("step", waits=False):
            found = computed(*made)
        assert dry.faults == []
        torch.testing.assert_close([x.cpu() for x in found], list(expected))


def test_a_loss_over_the_batch_alone_waits_for_nothing(dry):
    criterion, query, key, labels, _ = step_of_loss(losses.RINCELoss(TABLE), CUDA)
    with dry.section("step", waits=False):
        losses.InBatchLoss(criterion).terms(query, key, labels).loss().backward()
    assert dry.faults == []
    assert query.grad.abs().sum() > 0


# ---- whole runs ------------------------------------------------------------------------------------------------------

FEW = "--hold_out 0 1 2 3 4 5 --model resnet8 --batch_size 64 --memorybank_size 128 --save_freq 1 --print_freq 4"


def logged(folder, name, method="SupCon") -> list[dict]:
    lines = (folder / f"save/{method}/digits_models/{name}/log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_waits_at_progress_lines_only(dry, lines, epochs) -> None:
    """The host waits for no step: thrice at a progress line at most, and twice at the end of an epoch."""
    assert all(dry.launches[f"{owner.__name__}.{name}"] for owner, name in STEP if owner is not Views)
    assert words(dry) == []
    inside = [w for w in dry.waits if w.inside("train_epoch")]
    assert 0 < len(inside) <= 3 * lines + 2 * epochs
    assert all(w.inside("check_finite") or w.inside("value") for w in inside)


def test_a_training_waits_at_progress_lines_only(tmp_path):
    dry = dry_run(tmp_path, f"{FEW} --epochs 1 --exp_name dry")
    assert_waits_at_progress_lines_only(dry, lines=2, epochs=1)
    steps = 8
    assert dry.launches["FiniteGuard.step"] < 30 * steps
    assert dry.launches["Stepper.backward"] < 400 * steps


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


def planted_item(terms):
    terms.total.sum().item()


def planted_mask(terms):
    terms.total[terms.count > 0].sum()


def planted_on_cpu(terms):
    terms.total + torch.zeros(len(terms.total))


def planted_copy(terms):
    terms.total.to("cpu", non_blocking=True).to(terms.total.device).to("cuda", non_blocking=True)
    torch.zeros(1).to(terms.total.device, non_blocking=True)


PLANTED = {
    planted_item: {"host waits"},
    planted_mask: {"host waits"},
    planted_on_cpu: {"two devices"},
    planted_copy: {"pageable", "host waits"},
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

    with dry.section("step", waits=False):
        loss, _ = stepper.backward(step, images, labels)
        guard.step(loss, 1)
    found = {f: {fault.kind for fault in dry.faults if fault.place[2] == f.__name__} for f in PLANTED}
    assert found == PLANTED
    assert all(fault.place[0] == "tests/test_cuda_dry.py" and fault.inside("backward") for fault in dry.faults)


# ---- every script ----------------------------------------------------------------------------------------------------

COLOUR = (
    "--dataset cifar100 --data_folder . --use_supercategories True --model resnet8 --batch_size 40 --epochs 1 "
    "--memorybank_size 128 --num_workers 0 --learning_rate 0.05 --save_freq 1 --print_freq 4"
)
RUNS = {
    "float32": "--precision float32 --knn_freq 1 --epochs 2",
    "tf32": "--precision tf32 --channels_last True",
    "bfloat16": "--precision bfloat16 --augment_on worker",
    "float16": "--precision float16",
    "workers": "--num_workers 2",
    "in": "--variant in",
    "out": "--variant out --reduction anchors",
    "out_in": "--variant out_in",
    "cumulative": "--use_same_and_similar_class True",
    "low temperature": "--min_tau 0.02 --max_tau 0.02",
    "supcon": "--loss_type supcon",
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A small CIFAR-100 and CIFAR-10, an own folder with nested groups, and a cross-entropy model of the first, trained
    on the stand-in.
    """
    root = tmp_path_factory.mktemp("pictures")
    make_cifar100(root, 128, 100)
    make_cifar10(root, 50, 20)
    make_image_folders(root / "own", ["a", "b"], each=32)
    rows = [f"{c}/{c}_{i}.JPEG,{c}{i // 8},{c}" for c in "ab" for i in range(32)]
    (root / "groups.csv").write_text("\n".join(["image,place,city", *rows]) + "\n")
    command = COLOUR.replace("--use_supercategories True ", "").replace("--memorybank_size 128 ", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor, "PAIRS", 16)
        dry = dry_run(root, f"{command} --use_ssl_augmentations True --exp_name ce", "main_ce")
    assert_waits_at_progress_lines_only(dry, lines=1, epochs=1)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_contrastive_training_has_no_fault_on_a_device(pictures, name):
    dry = dry_run(pictures, f"{COLOUR} {RUNS[name]} --exp_name {name.replace(' ', '_')}")
    epochs = 2 if name == "float32" else 1
    assert_waits_at_progress_lines_only(dry, lines=epochs, epochs=epochs)


@pytest.mark.slow
def test_training_with_nested_groups_has_no_fault_on_a_device(pictures):
    own = "--dataset path --data_folder own --instance_ranks groups.csv --size 32 --use_supercategories False"
    command = COLOUR.replace("--dataset cifar100 --data_folder . --use_supercategories True", own)
    assert_waits_at_progress_lines_only(dry_run(pictures, f"{command} --exp_name nested"), lines=1, epochs=1)


def weights(folder, name, place="SupCon/digits_models") -> dict:
    return checkpoint.load(folder / "save" / place / name / "last.pth")["model"]


@pytest.mark.slow
def test_a_training_on_the_stand_in_has_the_losses_of_one_on_the_cpu(monkeypatch, tmp_path):
    command = f"{FEW} --epochs 1 --learning_rate 0.02 --exp_name"
    run(monkeypatch, tmp_path, f"{command} cpu")
    dry_run(tmp_path, f"{command} dry --precision float32")
    (on_cpu,), (found,) = logged(tmp_path, "cpu"), logged(tmp_path, "dry")
    for name in ("loss", "loss_rank_0", "loss_rank_1", "embedding_norm", "alignment"):
        assert found[name] == pytest.approx(on_cpu[name], rel=1e-3)


@pytest.mark.slow
def test_a_resumed_run_goes_on_as_if_never_stopped_on_the_device_or_from_it_to_the_cpu(monkeypatch, tmp_path):
    command, first = (
        f"{FEW} --epochs 2 --precision float32 --exp_name",
        "save/SupCon/digits_models/whole/ckpt_epoch_1.pth",
    )
    dry_run(tmp_path, f"{command} whole")
    kept = checkpoint.load(tmp_path / first)["processes"][0]["random"]["cuda"]
    with Device() as device:
        assert device.generator.set_state(kept) is device.generator
    assert words(dry_run(tmp_path, f"{command} again --resume {first}")) == []
    run(monkeypatch, tmp_path, f"{command} cpu --resume {first}")
    whole, again, cpu = (weights(tmp_path, name) for name in ("whole", "again", "cpu"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    torch.testing.assert_close(cpu, whole, rtol=1e-2, atol=1e-3)


PROBE = "--dataset cifar100 --data_folder . --epochs 1 --batch_size 40 --num_workers 0 --print_freq 4 --overwrite True"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "--precision bfloat16"])
def test_a_probe_has_no_fault_on_a_device(pictures, kind):
    dry = dry_run(pictures, f"{PROBE} --ckpt save/SupCon/cifar100_models/ce {kind}", "main_linear")
    assert_waits_at_progress_lines_only(dry, lines=1, epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "--features_cache kept"])
def test_a_probe_of_cached_features_has_no_fault_on_a_device(pictures, kind):
    dry = dry_run(pictures, f"{PROBE} --ckpt save/SupCon/cifar100_models/ce --cache_features {kind}", "main_linear")
    assert_waits_at_progress_lines_only(dry, lines=1, epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["gaussian", "knn --knn_k 5", "mahalanobis", "msp", "energy"])
def test_detection_of_outliers_has_no_fault_on_a_device_and_finds_what_the_cpu_finds(monkeypatch, pictures, detector):
    command = (
        "--dataset cifar100 --data_folder . --dataset_outliers cifar10 --data_folder_outliers . --num_workers 0 "
        f"--batch_size 64 --ckpt save/SupCon/cifar100_models/ce --detector {detector} --save_folder"
    )
    dry = dry_run(pictures, f"{command} dry", "out_of_dist_detection")
    assert words(dry) == []
    run(monkeypatch, pictures, f"{command} cpu", "out_of_dist_detection")
    assert_same_metrics(pictures, f"ood_*{detector.split()[0]}*")


@pytest.mark.slow
def test_retrieval_has_no_fault_on_a_device_and_finds_what_the_cpu_finds(monkeypatch, pictures):
    command = (
        "--dataset cifar100 --data_folder . --labelset both --num_workers 0 --batch_size 64 "
        "--ckpt save/SupCon/cifar100_models/ce --save_folder"
    )
    dry = dry_run(pictures, f"{command} dry", "retrieval")
    assert words(dry) == []
    run(monkeypatch, pictures, f"{command} cpu", "retrieval")
    assert_same_metrics(pictures, "retrieval_*")


def assert_same_metrics(folder, pattern) -> None:
    """The newest records in the folders `dry` and `cpu` agree."""
    (found,), (expected,) = (list((folder / root / "results").glob(pattern + ".json")) for root in ("dry", "cpu"))
    found, expected = (json.loads(path.read_text()) for path in (found, expected))
    assert found["machine"] != expected["machine"]
    for name, value in expected["metrics"].items():
        assert found["metrics"][name] == pytest.approx(value, abs=0.5)


def test_features_lie_on_the_device_where_they_take_half_of_it_at_most():
    features, labels = torch.zeros(100, 10), torch.zeros(100, dtype=torch.long)
    for memory, place in ((9_000, "cuda"), (7_000, "cpu")):
        with Device(memory=memory):
            kept = Resident.of(features, labels, CUDA)
            assert [x.device.type for x in kept.tensors] == [place, place]
            assert [x.shape for x in kept[[3, 4]]] == [(2, 10), (2,)]

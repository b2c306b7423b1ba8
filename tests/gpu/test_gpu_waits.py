"""A training neither waits for the device inside a step, nor races it, nor takes more of its memory by and by."""

import gc
import warnings

import gpu_workers
import pytest
import torch
import torch.distributed as dist
from commands import run
from processes import CONTEXT

from engine.batches.epoch_batches import Prefetcher
from engine.run import runs

pytestmark = pytest.mark.gpu

RUN = "--model resnet8 --batch_size 64 --num_workers 2 --mixed_out_in --nproc_per_node 1 --exp_name a --epochs 1"
NO_SUCH_MODE = "torch looks for waits on CUDA alone"


@pytest.fixture
def group_of_one(device, backend):
    """This process as the only one of a group."""
    how = {"device_id": device} if backend == "nccl" else {}
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, **how)
    yield
    dist.destroy_process_group()


def test_steps_3_to_9_wait_for_nothing(monkeypatch, tmp_path, device, cuda_alone):
    with gpu_workers.waits_looked_for(3, 9, "error") as began:
        run(monkeypatch, tmp_path, f"{RUN} --print_freq 100")
    assert began == ["default"] * 2 + ["error"] * 7 + ["default"] * 13
    cuda_alone(NO_SUCH_MODE)


def test_steps_3_to_9_wait_for_nothing_where_keys_are_shuffled(monkeypatch, tmp_path, device, group_of_one, cuda_alone):
    with gpu_workers.waits_looked_for(3, 9, "error") as began, gpu_workers.keys_always_shuffled():
        run(monkeypatch, tmp_path, f"{RUN} --print_freq 100 --shuffle_bn")
    assert began == ["default"] * 2 + ["error"] * 7 + ["default"] * 13
    cuda_alone(NO_SUCH_MODE)


def test_a_progress_line_waits_three_times_at_most(monkeypatch, tmp_path, device, cuda_alone):
    with warnings.catch_warnings(record=True) as caught, gpu_workers.waits_looked_for(10, 10, "warn") as began:
        warnings.simplefilter("always")
        run(monkeypatch, tmp_path, f"{RUN} --print_freq 10")
    waits = [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
    assert began.count("warn") == 1
    assert len(waits) <= 3, waits
    cuda_alone(NO_SUCH_MODE)
    assert waits  # so they are counted


def test_losses_are_those_of_a_run_whose_every_launch_is_waited_for(tmp_path, shared_device, cifar, cuda_alone):
    words = f"{cifar} --epochs 2 --precision float32".split()
    found = []
    for blocking in ("0", "1"):
        folder = tmp_path / blocking
        folder.mkdir()
        environment = {"CUDA_LAUNCH_BLOCKING": blocking}
        process = CONTEXT.Process(target=gpu_workers.losses_of_steps, args=(folder, words, environment, "losses.pt"))
        process.start()
        process.join(120)
        assert process.exitcode == 0
        found.append(torch.load(folder / "losses.pt"))
    assert len(found[0]) == 20
    # sums on a GPU have no fixed order; images of another batch would move a loss by hundredths
    torch.testing.assert_close(*found, rtol=1e-3, atol=0)
    cuda_alone("a CPU has no launches")


# ---- copies beside steps ---------------------------------------------------------------------------------------------

CYCLES = 20_000_000  # of a GPU's clock: about 10 ms


def batches_ready(count: int):
    """Batches in pinned memory, each of one number: images [4, 3, 256, 256] float32, labels [4]."""
    of = [(torch.full((4, 3, 256, 256), float(i)), torch.full((4,), i)) for i in range(1, count + 1)]
    return [(images.pin_memory(), labels.pin_memory()) for images, labels in of]


class Ready(list):
    """A loader whose batches lie ready."""

    dataset = None


def sums_of_steps(monkeypatch, device, copy: int, step: int) -> list[tuple[float, int]]:
    """What steps read of ten batches that lie ready: for so many cycles the device does nothing before each copy, and
    at the begin of each step.
    """
    moved, found = Prefetcher._moved, []

    def late(*args):
        torch.cuda._sleep(copy)
        return moved(*args)

    monkeypatch.setattr(Prefetcher, "_moved", late)
    for images, labels in Prefetcher(Ready(batches_ready(10)), device, torch.contiguous_format):
        torch.cuda._sleep(step)
        found.append((images.amax(), labels.amax()))
        del images, labels  # the host is done with them long before the device
    return [(float(x), int(y)) for x, y in found]


WANTED = [(float(i), i) for i in range(1, 11)]
LATE = {"copies": (4 * CYCLES, CYCLES), "steps": (CYCLES // 4, 4 * CYCLES)}


@pytest.mark.parametrize("late", LATE)
def test_steps_read_their_own_batch_however_late_copies_or_steps_are(monkeypatch, device, late):
    if device.type != "cuda":
        pytest.skip("CUDA alone copies beside steps")
    assert sums_of_steps(monkeypatch, device, *LATE[late]) == WANTED


@pytest.mark.parametrize(
    ("late", "owner", "left_out"),
    [("copies", torch.cuda.Stream, "wait_event"), ("steps", torch.Tensor, "record_stream")],
)
def test_where_a_step_waited_for_no_copy_or_memory_was_used_again_too_soon_it_would_show(
    monkeypatch, device, late, owner, left_out
):
    if device.type != "cuda":
        pytest.skip("CUDA alone copies beside steps")
    monkeypatch.setattr(owner, left_out, lambda *_: None)
    assert sums_of_steps(monkeypatch, device, *LATE[late]) != WANTED


# ---- memory ----------------------------------------------------------------------------------------------------------

SEGMENT = 20 * 2**20  # what torch's allocator takes of the device at once, for tensors of 1 to 10 MB


def test_memory_does_not_grow_from_epoch_2_to_3_and_10(monkeypatch, tmp_path, device, cifar, cuda_alone):
    allocated, reserved, save = [], [], runs.Run.save

    def saved(self, epoch):
        if device.type == "cuda":
            gc.collect()  # what cycles of references hold goes whenever Python comes to it
            torch.cuda.synchronize()
        allocated.append(torch.cuda.memory_allocated() if device.type == "cuda" else 0)
        reserved.append(torch.cuda.memory_reserved() if device.type == "cuda" else 0)
        save(self, epoch)

    monkeypatch.setattr(runs.Run, "save", saved)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    run(monkeypatch, tmp_path, f"{cifar} --epochs 10")
    assert len(allocated) == 10
    assert allocated[1] == allocated[2] == allocated[9], allocated
    # how far the host runs ahead decides how many blocks wait for another stream: a segment or two more, once
    assert max(reserved[2], reserved[9]) <= reserved[1] + 2 * SEGMENT, reserved
    cuda_alone("a CPU reserves no memory")
    assert allocated[9] > 0

"""A training neither waits for the device inside a step, nor races it, nor takes more of its memory by and by."""

import warnings

import gpu_workers
import pytest
import torch
import torch.distributed as dist
from commands import run
from processes import CONTEXT

from engine import runs

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


def test_losses_are_those_of_a_run_whose_every_launch_is_waited_for(tmp_path, device, cifar, cuda_alone):
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


def test_reserved_memory_is_the_same_after_epochs_2_3_and_10(monkeypatch, tmp_path, device, cifar, cuda_alone):
    reserved, save = [], runs.Run.save

    def saved(self, epoch):
        reserved.append(torch.cuda.memory_reserved() if device.type == "cuda" else 0)
        save(self, epoch)

    monkeypatch.setattr(runs.Run, "save", saved)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    run(monkeypatch, tmp_path, f"{cifar} --epochs 10")
    assert len(reserved) == 10
    assert reserved[1] == reserved[2] == reserved[9], reserved
    cuda_alone("a CPU reserves no memory")
    assert reserved[9] > 0

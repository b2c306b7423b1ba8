"""Several GPUs, a process each: they compute what one does, and one that fails or dies ends all."""

import time
from functools import partial

import gpu_workers
import processes
import pytest
import torch

from engine.processes import launch

pytestmark = pytest.mark.gpu


@pytest.fixture
def together(monkeypatch, gpus, backend):
    """Runs worker(device) in a process for each GPU."""
    monkeypatch.setattr(launch, "START", processes.CONTEXT.get_start_method())

    def run(worker):
        launch.launch(worker, launch.Processes(per_node=gpus, backend=backend, timeout_minutes=2))

    return run


def assert_alike(compute, together, gpus, folder, device):
    """All processes compute what one does with the whole batch."""
    together(partial(gpu_workers.save_what, compute, folder))
    wanted = compute(device)
    for rank in range(gpus):
        found = torch.load(folder / f"{rank}.pt")
        assert found.keys() == wanted.keys()
        for name in wanted:
            for what, value in wanted[name].items():
                assert (found[name][what] - value).abs().max() <= 1e-4 * value.abs().max(), f"{name}, {what}, {rank}"


def test_losses_and_gradients_of_all_losses_are_those_of_one_process(together, gpus, tmp_path, device):
    assert_alike(partial(gpu_workers.every_loss, 8 * gpus), together, gpus, tmp_path, device)


def test_synchronised_batchnorm_is_that_of_the_whole_batch(together, gpus, tmp_path, device):
    if device.type != "cuda":
        pytest.skip("torch has synchronised BatchNorm on CUDA alone")
    assert_alike(partial(gpu_workers.whole_batch, 8 * gpus), together, gpus, tmp_path, device)


def test_steps_12_to_18_wait_for_nothing_where_keys_are_shuffled_over_gpus(together, gpus, tmp_path, cuda_alone):
    words = f"--model resnet8 --batch_size {64 - 64 % gpus} --num_workers 1 --mixed_out_in --exp_name a --epochs 1"
    words += f" --shuffle_bn --print_freq 100 --save_folder {tmp_path}/save"
    together(partial(gpu_workers.train_without_waits, words.split()))
    cuda_alone("torch looks for waits on CUDA alone")


def test_a_failure_of_one_ends_all_within_a_minute_with_one_error(together, capfd):
    begin = time.monotonic()
    with pytest.raises(SystemExit) as stop:
        together(gpu_workers.fail)
    assert time.monotonic() - begin < 60
    text = str(stop.value.code)
    assert text.count("Traceback") == text.count("ZeroDivisionError: the first error") == 1
    assert "Traceback" not in capfd.readouterr().err


def test_one_that_is_killed_ends_all_within_a_minute_and_is_named(together, gpus):
    begin = time.monotonic()
    with pytest.raises(SystemExit, match=rf"process {gpus - 1} of this node was ended by SIGKILL.*out of memory"):
        together(gpu_workers.be_killed)
    assert time.monotonic() - begin < 60

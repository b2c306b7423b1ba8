"""Several GPUs, a process each: they compute what one does, and one that fails or dies ends all."""

import time
from functools import partial

import gpu_workers
import processes
import pytest

from engine.processes import launch

pytestmark = pytest.mark.gpu


@pytest.fixture
def together(monkeypatch, gpus, backend):
    """Runs worker(device) in a process for each GPU."""
    monkeypatch.setattr(launch, "START", processes.CONTEXT.get_start_method())

    def run(worker):
        launch.launch(worker, launch.Processes(per_node=gpus, backend=backend, timeout_minutes=2))

    return run


@pytest.mark.parametrize("compute", [gpu_workers.every_loss, gpu_workers.whole_batch], ids=["losses", "--syncBN"])
def test_losses_gradients_and_synchronized_batchnorm_are_those_of_one_process(
    together, gpus, tmp_path, device, compute
):
    if compute is gpu_workers.whole_batch and device.type != "cuda":
        pytest.skip("torch has synchronized BatchNorm on CUDA alone")
    compute = partial(compute, 8 * gpus)
    together(partial(gpu_workers.save_what, compute, tmp_path))
    gpu_workers.assert_all_saved(tmp_path, compute(device), gpus)


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

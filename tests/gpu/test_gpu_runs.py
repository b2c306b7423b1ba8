"""Whole runs on the device: every precision, and from the device to the CPU and back."""

import pytest
import torch
from commands import run
from processes import start

from engine.run import checkpoint, run_log

pytestmark = pytest.mark.gpu

FOLDER = "save/SupCon/cifar100_models/a"


def log_of(folder):
    return run_log.read_json_lines(folder / FOLDER / "log.jsonl")


@pytest.fixture(scope="module")
def trained(device, cifar, tmp_path_factory):
    """Two epochs in a way that is asked for: the losses, and the checkpoint as a CPU reads it. Each way runs once."""
    done = {}

    def train(how):
        if how not in done:
            folder = tmp_path_factory.mktemp("run")
            with pytest.MonkeyPatch.context() as patch:
                run(patch, folder, f"{cifar} --epochs 2 {how}")
            state = torch.load(folder / FOLDER / "last.pth", weights_only=True, map_location="cpu")
            done[how] = [record["loss"] for record in log_of(folder)], state
        return done[how]

    return train


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
def test_two_epochs_of_cifars_size_train(trained, precision):
    losses, state = trained(f"--precision {precision}")
    plain, _ = trained("--precision float32")
    assert len(losses) == 2
    assert state["epoch"] == 2
    # a fifth leaves room for the first steps of float16, which overflow and are left out
    assert losses == pytest.approx(plain, rel=0.2 if precision == "float16" else 0.05)
    assert all(v.isfinite().all() for v in state["model"].values())


def test_two_epochs_of_cifars_size_train_compiled(trained):
    how = "--model resnet8 --precision auto"  # the smallest: it compiles in the shortest time
    losses, state = trained(f"{how} --compile")
    plain, other = trained(how)
    assert losses == pytest.approx(plain, rel=0.05)
    assert state["model"].keys() == other["model"].keys()


def test_a_run_goes_on_from_the_device_to_the_cpu_and_back(tmp_path, shared_device):
    words = "--model resnet8 --batch_size 256 --mixed_out_in --num_workers 1 --nproc_per_node 1 --exp_name a"
    places = [{}, {"CUDA_VISIBLE_DEVICES": ""}, {}]
    for epoch, env in enumerate(places, 1):
        name = f"{epoch}.txt"
        process = start(tmp_path, f"{words} --resume auto --epochs {epoch}".split(), env=env, output=name)
        process.join(120)
        printed = (tmp_path / name).read_text()
        assert process.exitcode == 0, printed
        assert ("no CUDA device" in printed) == (shared_device.type == "cpu" or epoch == 2)
        assert epoch == 1 or f"after epoch {epoch - 1}" in printed
    log = run_log.read_json_lines(tmp_path / "save/SupCon/digits_models/a/log.jsonl")
    assert [record["epoch"] for record in log] == [1, 2, 3]
    assert log[2]["loss"] == pytest.approx(log[1]["loss"], rel=0.1)  # with the bank full, as epoch 1 left it


def test_the_devices_random_numbers_go_on_where_a_checkpoint_stood(tmp_path, device):
    torch.rand(5, device=device)
    checkpoint.save(tmp_path / "last.pth", {"model": {}, "random": checkpoint.random_state()})
    wanted = torch.rand(5, device=device)
    torch.manual_seed(0)
    assert not torch.equal(torch.rand(5, device=device), wanted)
    checkpoint.set_random_state(checkpoint.load(tmp_path / "last.pth", "--resume")["random"])
    assert torch.equal(torch.rand(5, device=device), wanted)

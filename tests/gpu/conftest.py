"""What the tests of a GPU machine begin with. `--gpu-device cpu` runs them on a CPU, to try the tests themselves: that
shows nothing about a GPU, and what exists on CUDA alone is skipped.
"""

import gc

import pytest
import torch
from made_data import make_cifar100

from benchmarks import gpu
from engine.train.optimization import allow_tf32

# what torch, Triton and cuDNN warn of on CUDA alone is their own affair; what we call is an error still
THEIR_WARNINGS = r"default::UserWarning:(torch|triton)(\.|$)"


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.filterwarnings(THEIR_WARNINGS))


@pytest.fixture(scope="session")
def device(pytestconfig):
    """Where the tests compute."""
    if pytestconfig.getoption("gpu_device") == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def shared_device(device):
    """The same, for tests whose child processes compute there beside this one."""
    modes = gpu.asked("compute_mode") if device.type == "cuda" else []
    if not all(mode.startswith(("Default", "[")) for mode in modes):  # in brackets: a card that has no such modes
        pytest.skip(f"one process alone may use a GPU of this machine: nvidia-smi says {', '.join(modes)}")
    return device


@pytest.fixture(scope="module", autouse=True)
def _memory_goes_back():
    """What a module's tests have left in the allocator is there for the processes of the next module's."""
    yield
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def gpus(pytestconfig, shared_device):
    """How many processes the tests of several GPUs have, each with a device of its own."""
    count = pytestconfig.getoption("gpus")
    if count < 2:
        pytest.skip("needs several GPUs: make gpu GPUS=N")
    if shared_device.type == "cuda" and count > torch.cuda.device_count():
        pytest.skip(f"needs {count} GPUs; this machine has {torch.cuda.device_count()}")
    return count


@pytest.fixture(scope="session")
def backend(device):
    """What processes with a device each talk by."""
    return "nccl" if device.type == "cuda" else "gloo"


@pytest.fixture
def cuda_alone(device):
    """Ends a test on a CPU once it has run, before it looks at what only CUDA shows."""

    def end(what):
        if device.type != "cuda":
            pytest.skip(f"{what}; the rest of this test ran")

    return end


@pytest.fixture(autouse=True)
def _float32_throughout():
    before = torch.backends.cudnn.benchmark
    allow_tf32(False)
    yield
    allow_tf32(False)
    torch.backends.cudnn.benchmark = before


@pytest.fixture(scope="session")
def cifar(device, tmp_path_factory):
    """Made-up images of CIFAR's size, and the words of a command that trains on them, ten steps an epoch: ResNet-18 at
    the published batch on a GPU, the smallest network on a CPU.
    """
    large = device.type == "cuda"
    folder, images = tmp_path_factory.mktemp("cifar"), 5120 if large else 512
    make_cifar100(folder, images, 200)
    words = f"--dataset cifar100 --data_folder {folder} --use_supercategories True --mixed_out_in --nproc_per_node 1"
    size = "--model resnet18 --batch_size 512 --memorybank_size 8192" if large else "--model resnet8 --batch_size 51"
    return f"{words} {size} --num_workers 2 --print_freq 1000 --exp_name a"

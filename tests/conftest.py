"""One thread a test process, since pytest runs several (or --threads); what several files of tests begin with.

The process that hands out the tests reads this file too, and waits for nothing: torch is imported where tests run.
"""

import fcntl
import os
import shutil
import signal

import pytest

# tests send these; a suite that a script starts in the background would have its processes ignore Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, signal.SIG_DFL)


def pytest_addoption(parser):
    group = parser.getgroup("gpu", "tests of a GPU machine: -m gpu")
    group.addoption("--gpu-device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try the tests themselves")
    group.addoption("--gpus", type=int, default=1, metavar="N", help="GPUs of the tests of several")
    parser.addoption("--threads", type=int, default=1, metavar="N", help="threads of a test process")


def pytest_configure(config):
    os.environ["OMP_NUM_THREADS"] = str(config.getoption("threads"))
    if config.getoption("gpu_device") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for what the tests start, too


@pytest.fixture(scope="session", autouse=True)
def few_threads_and_pictures(pytestconfig):
    import torch

    from engine.train import monitor

    torch.set_num_threads(pytestconfig.getoption("threads"))
    monitor.PAIRS, monitor.PROJECTED = 16, 16  # what a run shows of itself took a third of the shortest ones


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A cross-entropy model of the digits, the default recipe in fewer epochs, and an encoder with random weights.

    Trained once for all workers of pytest; each has a copy.
    """
    own = tmp_path_factory.getbasetemp()
    common = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with open(common / "digits.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (common / "digits").exists():
            _train_digits(common / "training")
            (common / "training").rename(common / "digits")
    return shutil.copytree(common / "digits", own / "digits_copied")


def _train_digits(root):
    import torch
    from commands import run

    from engine.run import checkpoint
    from networks import resnet

    root.mkdir()
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(monkeypatch, root, "--exp_name ce --epochs 6 --save_freq 5", "main_ce")
    torch.manual_seed(0)
    random = {f"encoder.{k}": v for k, v in resnet.encoder("resnet20").state_dict().items()}
    (root / "random").mkdir()
    checkpoint.save(root / "random" / "last.pth", {"model": random, "options": {"model": "resnet20"}})

"""Process groups on the device: NCCL with one process as torchrun starts it, gloo with two that share the device."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import gpu_workers
import pytest
from commands import ROOT
from processes import children, start, together, wait_until

from engine.run import checkpoint, run_log

pytestmark = pytest.mark.gpu

RUN = "--model resnet8 --batch_size 128 --memorybank_size 256 --mixed_out_in --num_workers 2 --exp_name a --resume auto"
FOLDER = "save/SupCon/digits_models/a"


def environment():
    """What torchrun gives its only process."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    numbers = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    return {**numbers, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def log_of(folder):
    return run_log.read_json_lines(folder / FOLDER / "log.jsonl")


def test_a_run_of_torchrun_stops_with_75_at_a_signal_and_goes_on_by_itself(tmp_path, shared_device):
    with (tmp_path / "torchrun.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1",
             str(ROOT / "main_supcon.py"), *f"{RUN} --epochs 100000".split()],
            cwd=tmp_path, stdout=output, stderr=output,
        )  # fmt: skip
        until = time.monotonic() + 120
        while not log_of(tmp_path):  # an epoch is done
            assert process.poll() is None and time.monotonic() < until, (tmp_path / "torchrun.txt").read_text()
            time.sleep(0.05)
        (worker,) = re.findall(r"process (\d+) on ", (tmp_path / FOLDER / "lock").read_text())
        os.kill(int(worker), signal.SIGUSR1)
        process.wait(60)
    printed = (tmp_path / "torchrun.txt").read_text()
    assert "SIGUSR1: stopped after epoch" in printed
    assert re.search(r"exitcode\s*: 75\b", printed), printed
    done = checkpoint.load(tmp_path / FOLDER, "--resume")["epoch"]
    again = start(tmp_path, f"{RUN} --epochs {done + 1}".split(), env=environment())
    again.join(60)
    assert again.exitcode == 0, (tmp_path / "output.txt").read_text()
    assert [record["epoch"] for record in log_of(tmp_path)] == [*range(1, done + 2)]


def test_a_fault_in_a_loader_ends_the_run_within_15_seconds_in_one_line_with_code_2(tmp_path, shared_device):
    process = start(tmp_path, f"{RUN} --epochs 100000".split(), env=environment())
    wait_until(lambda: log_of(tmp_path), process)
    loaders = children(process.pid)
    assert len(loaders) >= 2
    killed = time.monotonic()
    for loader in loaders:
        os.kill(loader, signal.SIGKILL)
    process.join(60)
    assert time.monotonic() - killed < 15
    assert process.exitcode == 2
    printed = (tmp_path / "output.txt").read_text()
    assert len(re.findall("error: .*DataLoader worker.*lack of memory; give fewer --num_workers", printed)) == 1
    assert "Traceback" not in printed


def test_two_processes_on_one_device_compute_what_one_does(shared_device, tmp_path):
    compute = partial(gpu_workers.every_loss, 32)
    together(gpu_workers.on_one_device, (2, compute, tmp_path, shared_device), 2)
    gpu_workers.assert_all_saved(tmp_path, compute(shared_device), 2)

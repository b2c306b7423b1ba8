"""The processes of a run: one that fails, dies or hangs ends all, and is named once."""

import os
import re
import socket
import time
from functools import partial

import processes
import pytest
import torch
import torch.distributed as dist
import workers

from engine.processes import distributed, launch
from engine.train import training
from util import InputError


@pytest.fixture(autouse=True)
def _from_one_that_has_imported_torch(monkeypatch):
    monkeypatch.setattr(launch, "START", processes.CONTEXT.get_start_method())


def start(worker, minutes=5.0, training=False):
    launch.launch(worker, launch.Processes(per_node=2, backend="gloo", timeout_minutes=minutes), training)


def test_a_failure_ends_all_processes_and_its_traceback_is_shown_once(capfd):
    with pytest.raises(SystemExit) as stop:
        start(workers.fail)
    text = str(stop.value.code)
    assert text.count("ZeroDivisionError: the first error") == 1
    assert text.count("Traceback") == 1
    assert "Traceback" not in capfd.readouterr().err


def test_a_process_that_is_killed_is_named_with_the_likely_reason():
    with pytest.raises(SystemExit, match=r"process 1 of this node was ended by SIGKILL.*out of memory"):
        start(workers.be_killed)


@pytest.mark.parametrize("who", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_process_that_hangs_ends_the_run_after_the_time_out(who):
    with pytest.raises(SystemExit, match="Timed out waiting 3000ms"):
        start(partial(workers.hang, who), minutes=0.05)


def test_a_full_disk_met_by_a_process_is_the_commands_own_one_line_error():
    with pytest.raises(InputError, match=r"^No space left on device$"):
        start(workers.fill_the_disk)


def test_all_processes_stop_at_the_step_at_which_one_of_them_was_asked():
    with pytest.raises(SystemExit) as stop:
        start(workers.vote_and_stop)
    assert stop.value.code == distributed.EXIT_STOPPED


def test_where_the_loader_of_one_process_ends_early_all_save_the_same_step():
    with pytest.raises(SystemExit) as stop:
        start(workers.stop_one_that_waits)
    assert stop.value.code == distributed.EXIT_STOPPED


def test_the_output_of_a_trainings_processes_may_break_others_end_with_141():
    start(workers.lose_output, training=True)
    with pytest.raises(SystemExit, match="141"):
        start(workers.lose_output)


def test_the_main_process_may_go_on_alone_for_longer_than_the_time_out():
    start(workers.score_alone, minutes=0.01)


def test_an_error_ends_the_run_at_once_where_putting_things_in_order_would_wait_for_the_others():
    begin = time.monotonic()
    with pytest.raises(SystemExit, match="the first error"):
        start(workers.fail_and_wait_for_the_others)
    assert time.monotonic() - begin < 15


def test_a_port_that_is_taken_is_one_line_that_names_the_option():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=f"^{url} is in use, by another run.*--dist-url, or MASTER_ADDR"):
            launch.launch(workers.vote_and_stop, launch.Processes(1, 2, 0, url))


@pytest.mark.parametrize("url", ["tcp://127.0.0.1:1", "tcp://no.such.host.invalid:20000", "tcp://127.0.0.1"])
def test_nobody_at_the_master_is_one_line_that_names_the_option(url):
    with pytest.raises(InputError, match=f"^no process answers at {url} .*--dist-url, or MASTER_ADDR") as error:
        launch.launch(workers.vote_and_stop, launch.Processes(1, 2, 1, url, timeout_minutes=0.02))
    assert "\n" not in str(error.value)


def test_tasks_of_srun_find_one_another(tmp_path):
    """Two processes with the environment that SLURM gives its tasks."""
    words = "--epochs 1 --model resnet8 --batch_size 255 --mixed_out_in --shuffle_bn --exp_name a"
    env = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.[1-2,5]", "SLURM_JOB_ID": str(os.getpid())}
    words += f" --save_folder {tmp_path}/save"
    tasks = [
        processes.start(tmp_path / str(i), words.split(), env=env | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)})
        for i in range(2)
    ]
    for task in tasks:
        task.join(120)
    printed = [(tmp_path / str(i) / "output.txt").read_text() for i in range(2)]
    assert [task.exitcode for task in tasks] == [0, 0], printed
    assert re.search(r"epoch 1/1  loss \d", printed[0])
    assert printed[1].strip() == ""
    state = torch.load(tmp_path / "save/SupCon/digits_models/a/last.pth", weights_only=True)
    assert len(state["processes"]) == 2
    assert int(state["model"]["bank.pointer"]) == 1442 // 255 * 255 % 512


@pytest.mark.parametrize(
    ("nodes", "host"), [("gpu-[017-019,4]", "gpu-017"), ("n1,n2", "n1"), ("a[3]", "a3"), ("solo", "solo")]
)
def test_the_first_node_of_slurms_list_is_where_tasks_meet(nodes, host):
    assert launch._slurm_url({"SLURM_STEP_NODELIST": nodes, "SLURM_JOB_ID": "12"}) == f"tcp://{host}:20012"
    known = {"SLURM_STEP_NODELIST": nodes, "MASTER_ADDR": "h", "MASTER_PORT": "7"}
    assert launch._slurm_url(known) == "tcp://h:7"


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_of_a_batch_make_the_mean_over_processes_that_over_all_images(monkeypatch, world):
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    values = torch.arange(10.0) ** 2
    parts = values.split(distributed.shares(10))
    means = [training.compute_share(part, 10) * part.mean() for part in parts]
    assert torch.isclose(torch.stack(means).mean(), values.mean())
    assert distributed.shares(10) == [10 // world + (r < 10 % world) for r in range(world)]


def test_sync_batchnorm_is_refused_where_torch_has_none(monkeypatch):
    net = torch.nn.BatchNorm2d(3)
    assert training.sync_batchnorm(net, "resnet8", torch.device("cpu")) is net
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(InputError, match="--syncBN: torch has it on CUDA only"):
        training.sync_batchnorm(net, "resnet8", torch.device("cpu"))
    assert isinstance(training.sync_batchnorm(net, "resnet8", torch.device("cuda")), torch.nn.SyncBatchNorm)


def test_processes_that_end_between_two_looks_are_not_waited_for_without_end(monkeypatch):
    class Ends:
        sentinel, looked = 7, 0

        @property
        def exitcode(self):
            self.looked += 1
            return None if self.looked == 1 else 0

    waited = []
    monkeypatch.setattr(launch.multiprocessing.connection, "wait", lambda ready, timeout: waited.append(ready))
    assert launch._first_error([Ends()], []) is None
    assert waited == [[7]]  # a sentinel of a process that has ended is ready at once


@pytest.mark.parametrize(("backend", "device_id"), [("nccl", torch.device("cuda", 1)), ("gloo", None)])
def test_nccl_connects_at_once_since_each_process_names_its_gpu(monkeypatch, backend, device_id):
    """So that a broken fabric shows when processes meet; stand-ins for the meeting and for the GPUs."""
    asked = []
    monkeypatch.setenv("TORCH_NCCL_DESYNC_DEBUG", "1")  # the meeting sets it
    monkeypatch.setattr(launch, "_device", lambda local_rank: torch.device("cuda", local_rank))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **how: asked.append((backend, how)))
    launch._meet(1, launch.Meeting(backend, 30, "tcp://127.0.0.1:1", world=2))
    ((found, how),) = asked
    assert (found, how.get("device_id"), how["rank"], how["world_size"]) == (backend, device_id, 1, 2)


def test_what_processes_tell_one_another_goes_by_way_of_the_host(monkeypatch):
    """Objects sent over NCCL would be copied to a GPU and waited for there."""
    groups = []
    monkeypatch.setitem(distributed.groups, "host", "gloo on the host")
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "broadcast_object_list", lambda box, src, group: groups.append(group))
    monkeypatch.setattr(dist, "all_gather_object", lambda values, value, group: groups.append(group))
    monkeypatch.setattr(dist, "all_reduce", lambda x, op, group: groups.append(group))
    monkeypatch.setattr(dist, "barrier", lambda group: groups.append(group))
    with distributed.main_first():
        pass
    distributed.gather_objects(1)
    distributed.vote([True])
    distributed.barrier()
    assert groups == ["gloo on the host"] * 4

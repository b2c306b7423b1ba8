"""Loaders that are slow, stuck, lost or out of shared memory."""

import multiprocessing
import os
import resource
import signal
import subprocess
import threading
import time

import pytest
import torch
from commands import run
from torch.utils.data import DataLoader, Dataset

import util
from datasets.views import Views
from engine import checkpoint, loading, signals, waiting
from util import InputError


class Slow(Dataset):
    """Ten numbers; number 3 takes a while."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index == 3:
            time.sleep(0.5)
        return torch.tensor([index])


def loader(data=None, **more):
    how = loading.Loading(2, 2, torch.device("cpu")).of_loader() | more
    return loading.Loader(data or Slow(), batch_size=2, **how)


@pytest.fixture(autouse=True)
def _looked_at_often(monkeypatch):
    monkeypatch.setattr(waiting, "LOOK", 0.1)


def test_a_slow_loader_is_waited_for_and_all_its_batches_come_in_order():
    kept = loader()
    for _ in range(2):  # the second time from processes that are kept
        assert torch.cat(list(kept))[:, 0].tolist() == list(range(10))
    came = list(kept.arriving())
    assert came[1] is None
    assert torch.cat([b for b in came if b is not None])[:, 0].tolist() == list(range(10))


def test_a_training_whose_loader_is_stuck_saves_and_exits_with_75_when_asked_to_stop(monkeypatch, capsys, tmp_path):
    make = Views.__getitems__

    def stuck(views, keys):
        if len(keys) == 100 and (tmp_path / "begun").exists():
            time.sleep(600)
        if len(keys) == 100:
            (tmp_path / "begun").touch()
        return make(views, keys)

    def ask():
        while not (tmp_path / "begun").exists():
            time.sleep(0.1)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Views, "__getitems__", stuck)
    threading.Thread(target=ask).start()
    words = "--model resnet8 --batch_size 100 --epochs 3 --num_workers 1 --exp_name a"
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, tmp_path, words, "main_ce")
    assert stop.value.code == 75
    state = checkpoint.load(tmp_path / "save/SupCon/digits_models/a/last.pth")
    assert (state["epoch"], state["step"]) == (0, 1)
    assert "SIGTERM: stopped after epoch 1, step 1; saved" in capsys.readouterr().out


def test_a_stop_before_the_first_batch_saves_too_and_the_run_goes_on_from_there(monkeypatch, tmp_path):
    arriving = loading.Loader.arriving

    def never(self, wait=False):
        if wait:
            yield from arriving(self, wait)
        signal.raise_signal(signal.SIGTERM)
        while True:
            yield None

    words = "--model resnet8 --batch_size 512 --epochs 1 --save_freq 1 --num_workers 0 --exp_name a --resume auto"
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="75"):
        patch.setattr(loading.Loader, "arriving", never)
        run(patch, tmp_path, words, "main_ce")
    folder = tmp_path / "save/SupCon/digits_models/a"
    assert [f.name for f in folder.glob("*.pth")] == ["last.pth"]
    run(monkeypatch, tmp_path, words, "main_ce")
    assert checkpoint.load(folder)["epoch"] == 1


def test_a_stop_while_validation_waits_for_long_ends_the_run(monkeypatch, capsys):
    monkeypatch.setattr(waiting, "TELL", 0.15)
    with signals.StopSignals() as stop, pytest.raises(SystemExit, match="75"):
        for _ in loader():
            stop.asked = "SIGTERM"
    assert "SIGTERM: stopped while it waited for images" in capsys.readouterr().out


def stall(monkeypatch, seconds, spent, disk=False, patience=120.0):
    """A stall of so many seconds in which the loader's processes spent so many seconds of CPU time."""
    clock = [1000.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(waiting, "_state", lambda: ((clock[0] - 1000) / seconds * spent, disk))
    found = waiting.Stall(patience)
    while clock[0] < 1000 + seconds:
        clock[0] += 5
        found.look()
    return found


def test_a_loader_that_works_is_told_of_once_and_never_given_up(monkeypatch, capsys):
    assert stall(monkeypatch, seconds=600, spent=60).told
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("no images for 60 s; the loader processes work")
    assert "give more --num_workers" in line


@pytest.mark.parametrize(("disk", "what"), [(False, "do nothing"), (True, "wait for the disk")])
def test_a_loader_whose_processes_do_nothing_is_given_up_after_a_while(monkeypatch, capsys, disk, what):
    monkeypatch.setattr(waiting, "_free", lambda: 2**20)
    with pytest.raises(InputError, match=rf"loader processes {what} \(/dev/shm has 1 MB.*; given up after --timeout"):
        stall(monkeypatch, seconds=600, spent=0, disk=disk)
    assert f"no images for 60 s; the loader processes {what}" in capsys.readouterr().err
    assert not stall(monkeypatch, seconds=50, spent=0).told


def test_what_processes_do_is_read_from_the_system():
    class Busy(Slow):
        def __getitem__(self, index):
            return torch.ones(300, 300) @ torch.ones(300, 300) * sum(range(100_000))

    kept = loader(Busy())
    list(kept)
    assert 0.01 < waiting._state()[0] < 100


def test_processes_that_are_kept_and_do_not_answer_are_replaced(monkeypatch):
    kept = loader()
    before = list(kept)
    first = kept._iterator

    def silent(*_):
        raise RuntimeError("DataLoader timed out after 5 seconds")

    monkeypatch.setattr(first, "_reset", silent)
    assert torch.equal(torch.cat(list(kept)), torch.cat(before))
    assert kept._iterator is not first


# ---- shared memory ---------------------------------------------------------------------------------------------------


class Large(Dataset):
    """Images that are not in shared memory by themselves."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.zeros(100_000)


def _little_room(worker):
    signals.ignore(worker)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


def test_a_batch_that_finds_no_room_in_shared_memory_is_one_line_with_what_to_do():
    with pytest.raises(RuntimeError) as error:
        list(loader(Large(), collate_fn=list, worker_init_fn=_little_room))
    line = util.fault(error.value)
    assert line.startswith("unable to resize file </torch_")
    assert line.endswith("/dev/shm is full: give fewer --num_workers, or more --shm-size")


def test_torchs_own_hint_at_shared_memory_is_not_cut():
    error = RuntimeError(
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit. "
    )
    assert "workers are out of shared memory: /dev/shm is full: give fewer --num_workers" in util.fault(error)


def test_batches_that_will_not_fit_into_shared_memory_are_warned_of(monkeypatch, capsys):
    one = (torch.zeros(2, 1, 1000, dtype=torch.uint8), torch.zeros(2, 1, 6)), torch.zeros(1, dtype=torch.long)
    size = 2000 + 48 + 8
    for free, warned in ((8 * 100 * size, False), (8 * 100 * size - 1, True)):
        monkeypatch.setattr(waiting, "_free", lambda free=free: free)
        waiting.warn_of_shared_memory(one, images=100, batches=8)
        assert ("give fewer --num_workers, a smaller --batch_size" in capsys.readouterr().err) == warned


# ---- signals ---------------------------------------------------------------------------------------------------------


def test_a_signal_to_the_whole_group_while_loader_processes_start_is_for_the_one_that_saves(monkeypatch):
    def slow(count):
        time.sleep(0.3)  # before torch calls worker_init_fn

    begin, hits = multiprocessing.Process.start, []

    def hit(process):
        begin(process)
        for number in ("TERM", "USR1", "INT"):
            hits.append(subprocess.run(["kill", f"-{number}", str(process.pid)], check=True))  # not from its parent

    monkeypatch.setattr(torch, "set_num_threads", slow)
    monkeypatch.setattr(multiprocessing.Process, "start", hit)
    assert torch.cat(list(loader()))[:, 0].tolist() == list(range(10))
    assert len(hits) == 2 * 3


def test_signals_that_come_while_they_are_held_come_afterwards():
    with signals.StopSignals() as stop:
        with signals.held():
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # another thread would take it at once
            assert stop.asked is None
        assert stop.asked == "SIGUSR1"


def test_torchs_own_loader_is_the_one_that_is_made_patient():
    assert issubclass(loading.Loader, DataLoader)
    with pytest.raises(RuntimeError, match=r"^DataLoader timed out"):  # its words, which `arriving` goes by
        list(DataLoader(Slow(), num_workers=1, timeout=0.1))

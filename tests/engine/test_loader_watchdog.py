"""Loaders that are slow, stuck, lost or out of shared memory."""

import multiprocessing
import os
import re
import resource
import signal
import subprocess
import threading
import time

import pytest
import torch
from commands import error_of, run
from torch.utils.data import DataLoader, Dataset

import util
from datasets.views import Views
from engine.batches import loader_watchdog, loading
from engine.processes import signals
from engine.run import checkpoint
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
    return loader_watchdog.Loader(data or Slow(), batch_size=2, **how)


@pytest.fixture(autouse=True)
def _looked_at_often(monkeypatch):
    monkeypatch.setattr(loader_watchdog, "LOOK", 0.1)


def test_a_slow_loader_is_waited_for_and_all_its_batches_come_in_order():
    kept = loader()
    for _ in range(2):  # the second time from processes that are kept
        assert torch.cat(list(kept))[:, 0].tolist() == list(range(10))


@pytest.fixture
def hang(monkeypatch, tmp_path):
    """Training batches of 100 of which the second hangs, as on a disk that does not answer; the file that it leaves."""
    make, begun = Views.__getitems__, tmp_path / "begun"

    def stuck(views, keys):
        if len(keys) == 100 and begun.exists():
            (tmp_path / "hangs").touch()
            time.sleep(600)
        begun.touch()
        return make(views, keys)

    monkeypatch.setattr(Views, "__getitems__", stuck)
    return tmp_path / "hangs"


HANGING = "--model resnet8 --batch_size 100 --epochs 1 --num_workers 1 --exp_name a"
FOLDER = "save/SupCon/digits_models/a"


def test_a_training_whose_disk_hangs_saves_and_exits_with_75_when_asked_to_stop(monkeypatch, capsys, tmp_path, hang):
    def ask():
        while not hang.exists():
            time.sleep(0.1)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask).start()
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, tmp_path, HANGING, "main_ce")
    assert stop.value.code == 75
    state = checkpoint.load(tmp_path / FOLDER / "last.pth")
    assert (state["epoch"], state["step"]) == (0, 1)
    assert "SIGTERM: stopped after epoch 1, step 1; saved" in capsys.readouterr().out


def test_a_training_whose_disk_hangs_for_too_long_saves_and_ends_with_a_line(monkeypatch, capsys, tmp_path, hang):
    line = error_of(monkeypatch, capsys, tmp_path, f"{HANGING} --timeout_minutes 0.1", "main_ce")
    assert re.search(r"--timeout_minutes: no images for \d+ s; does their storage answer", line)
    assert line.endswith(f"; stopped after epoch 1, step 1; saved {FOLDER}/last.pth, go on with --resume auto")
    monkeypatch.undo()
    run(monkeypatch, tmp_path, f"{HANGING} --resume auto", "main_ce")
    assert "resumed" in (printed := capsys.readouterr().out)
    assert "in epoch 1, after step 1" in printed
    assert checkpoint.load(tmp_path / FOLDER)["epoch"] == 1


def test_a_stop_before_the_first_batch_saves_too_and_the_run_goes_on_from_there(monkeypatch, tmp_path):
    batches = loader_watchdog.Loader.__iter__

    def never(self):
        if self.ends_early:
            signal.raise_signal(signal.SIGTERM)
            return iter(())
        return batches(self)

    words = "--model resnet8 --batch_size 512 --epochs 1 --save_freq 1 --num_workers 0 --exp_name a --resume auto"
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="75"):
        patch.setattr(loader_watchdog.Loader, "__iter__", never)
        run(patch, tmp_path, words, "main_ce")
    assert [f.name for f in (tmp_path / FOLDER).glob("*.pth")] == ["last.pth"]
    run(monkeypatch, tmp_path, words, "main_ce")
    assert checkpoint.load(tmp_path / FOLDER)["epoch"] == 1


def test_a_stop_while_validation_waits_for_long_ends_the_run(monkeypatch, capsys):
    monkeypatch.setattr(loader_watchdog, "TELL", 0.15)
    with signals.StopSignals() as stop, pytest.raises(SystemExit, match="75"):
        for _ in loader():
            stop.first = "SIGTERM"
    assert "SIGTERM: stopped while it waited for images" in capsys.readouterr().out


def test_a_training_that_waits_for_a_batch_sees_the_end_of_max_hours():
    with signals.StopSignals(max_hours=1e-9):
        assert len(list(loader(ends_early=True))) < 5


def test_a_long_wait_is_told_of_once_and_given_up_in_the_end(monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(loader_watchdog.time, "monotonic", lambda: now[0])
    watchdog, lines = loader_watchdog.LoaderWatchdog(patience=120.0), []
    for now[0] in range(1000, 1121, 5):
        lines.append(watchdog.look())
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("no images for 60 s; does their storage answer? else give more --num_workers")
    assert lines[:-1] == [None] * 24
    assert lines[-1].startswith("--timeout_minutes: no images for 120 s; ")


def test_an_evaluation_whose_disk_hangs_for_too_long_ends_with_a_line():
    with pytest.raises(InputError, match=r"^--timeout_minutes: no images for \d+ s"):
        list(loader(patience=0.2))


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
    assert issubclass(loader_watchdog.Loader, DataLoader)
    with pytest.raises(RuntimeError, match=r"^DataLoader timed out"):  # its words, which the watchdog goes by
        list(DataLoader(Slow(), num_workers=1, timeout=0.1))

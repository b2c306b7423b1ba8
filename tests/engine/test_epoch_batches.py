"""Loaders that are slow, stuck or out of shared memory; batches on the device, and the time without work for it."""

import contextlib
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import threading
import time
import weakref
from types import SimpleNamespace

import pytest
import torch
import workers
from commands import error_of, run
from torch.utils.data import DataLoader, Dataset

import util
from datasets.views import Views
from engine.batches import epoch_batches, loading
from engine.batches.epoch_batches import Prefetcher
from engine.processes import signals
from engine.run import checkpoint
from engine.train import training
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
    return epoch_batches.Loader(data or Slow(), batch_size=2, **how)


@pytest.fixture(autouse=True)
def _looked_at_often(monkeypatch):
    monkeypatch.setattr(epoch_batches, "LOOK", 0.1)


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
    assert line.endswith(f"; stopped after epoch 1, step 1; saved {FOLDER}/last.pth, resume with --resume auto")
    monkeypatch.undo()
    run(monkeypatch, tmp_path, f"{HANGING} --resume auto", "main_ce")
    assert "resumed" in (printed := capsys.readouterr().out)
    assert "in epoch 1, after step 1" in printed
    assert checkpoint.load(tmp_path / FOLDER)["epoch"] == 1


def test_a_stop_while_validation_waits_for_long_ends_the_run(monkeypatch, capsys):
    monkeypatch.setattr(epoch_batches, "TELL", 0.15)
    with signals.StopSignals() as stop, pytest.raises(SystemExit, match="75"):
        for _ in loader():
            stop.first = "SIGTERM"
    assert "SIGTERM: stopped while waiting for images" in capsys.readouterr().out


def test_a_training_that_waits_for_a_batch_sees_the_end_of_max_hours():
    with signals.StopSignals(max_hours=1e-9):
        assert len(list(loader(ends_early=True))) < 5


def test_an_evaluation_that_waits_for_long_tells_of_it_once_and_gives_up_in_the_end(monkeypatch, capsys):
    monkeypatch.setattr(epoch_batches, "TELL", 0.05)
    with pytest.raises(InputError, match=r"^--timeout_minutes: no images for \d+ s"):
        list(loader(patience=0.35))
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("no images for 0 s; does their storage answer? else give more --num_workers")


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
        for number in ("TERM", "USR1", "USR2", "INT"):
            hits.append(subprocess.run(["kill", f"-{number}", str(process.pid)], check=True))  # not from its parent

    monkeypatch.setattr(torch, "set_num_threads", slow)
    monkeypatch.setattr(multiprocessing.Process, "start", hit)
    assert torch.cat(list(loader()))[:, 0].tolist() == list(range(10))
    assert len(hits) == 2 * 4


def test_signals_that_come_while_they_are_held_come_afterwards():
    with signals.StopSignals() as stop:
        with signals.held():
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # another thread would take it at once
            assert stop.asked is None
        assert stop.asked == "SIGUSR1"


def test_torchs_own_words_at_a_time_out_are_those_that_the_loader_goes_by():
    with pytest.raises(RuntimeError, match=r"^DataLoader timed out"):
        list(DataLoader(Slow(), num_workers=1, timeout=0.1))


# ---- on the device ---------------------------------------------------------------------------------------------------


class Clock:
    """time.perf_counter, and a loader of three batches of which each takes a second."""

    now, dataset = 100.0, "data"

    def perf_counter(self):
        return self.now

    def __len__(self):
        return 3

    def __iter__(self):
        for i in range(3):
            self.now += 1
            yield torch.full((2, 4), float(i)), torch.tensor([i, i])


def ready(loader):
    return Prefetcher(loader, torch.device("cpu"), torch.contiguous_format)


def test_time_in_the_loader_is_told_from_time_in_the_step_epoch_by_epoch(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(epoch_batches, "time", clock)
    loader = ready(clock)
    for in_step, share in ((0, 1.0), (3, 0.25)):
        for _ in loader:
            clock.now += in_step
        assert loader.scalars() == {"seconds": 3 + 3 * in_step, "waiting_for_data": share}
    assert (len(loader), loader.dataset) == (3, "data")


def test_an_epoch_of_which_no_step_was_left_has_waited_for_nothing(monkeypatch):
    monkeypatch.setattr(epoch_batches, "time", Clock())
    monkeypatch.setattr(Clock, "__iter__", lambda _: iter(()))
    loader = ready(Clock())
    assert list(loader) == []
    assert loader.scalars()["waiting_for_data"] == 0


class Device:
    """Stand-in for a CUDA device whose queue the host fills: work takes its time there, events tell when."""

    def __init__(self):
        self.host, self.free = 0.0, 0.0  # seconds; when all that was given to the device is done

    def perf_counter(self):
        return self.host

    def works(self, seconds):
        self.free = max(self.free, self.host) + seconds

    def event(self, **_):
        device = self

        class Event:
            def record(self):
                device.works(0)
                self.at = device.free

            def synchronize(self):
                device.host = max(device.host, self.at)

            def elapsed_time(self, other):
                return 1000 * (other.at - self.at)

        return Event()


class OnItsWay:
    """Stand-in for crops or labels that are copied to a device."""

    def to(self, *_, **__):
        return self

    def record_stream(self, stream):
        pass


@pytest.mark.parametrize(
    ("loads", "works", "idle"),
    [(0.01, 0.5, 0.01), (0.4, 0.5, 0.4), (2.0, 0.5, 2 + 9 * 1.5)],
    ids=["the device is the slow one", "the host waits, the device hardly does", "the loader is the slow one"],
)
def test_on_cuda_the_devices_idle_time_counts_and_not_the_hosts(monkeypatch, loads, works, idle):
    """The device waits for the first batch in any case."""
    device, stream = Device(), SimpleNamespace(record_event=lambda: None, wait_event=lambda _: None)
    monkeypatch.setattr(epoch_batches, "time", device)
    cuda = {"Event": device.event, "Stream": lambda _: stream, "current_stream": lambda: stream}
    for name, stand_in in {**cuda, "stream": contextlib.nullcontext}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)

    class Loads:
        dataset = SimpleNamespace(finish=lambda *_: None)

        def __iter__(self):
            for _ in range(10):
                device.host += loads
                yield (OnItsWay(), None), OnItsWay()

    loader = Prefetcher(Loads(), torch.device("cuda"), torch.contiguous_format)
    for _ in loader:
        device.works(works)
    found = loader.scalars()
    assert found["waiting_for_data"] * found["seconds"] == pytest.approx(idle)


class Data:
    """Hands out views that `finish` copies; knows which finished ones are still held when it makes the next."""

    def __init__(self):
        self.made, self.alive = [], []

    def finish(self, crops, look, memory_format, finish):
        self.alive.append(sum(x() is not None for x in self.made))
        out = crops.float()
        self.made.append(weakref.ref(out))
        return out


class Crops:
    """A loader of four batches that `Data` finishes."""

    def __init__(self):
        self.dataset = Data()

    def __len__(self):
        return 4

    def __iter__(self):
        for i in range(4):
            yield (torch.ones(2, 3), torch.ones(2, 8)), torch.tensor([i])


def test_a_finished_batch_is_gone_when_the_next_one_is_made():
    loader, steps = Crops(), workers.Steps()
    training.train_epoch(steps, ready(loader), None, steps, 1)
    assert loader.dataset.alive == [0, 0, 0, 0]


def test_features_on_the_device_come_in_the_order_that_is_asked_for():
    data = loading.Resident(torch.arange(10.0)[:, None], torch.arange(10) % 3)
    x, y = data[[7, 0, 3]]
    assert x[:, 0].tolist() == [7, 0, 3]
    assert y.tolist() == [1, 0, 0]

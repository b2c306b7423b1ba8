"""Batches on the device: nothing kept that was given away, and time without work that adds up."""

import weakref

import pytest
import torch
import workers

from engine.batches import prefetch
from engine.batches.loading import Resident
from engine.batches.prefetch import Prefetcher
from engine.train import training


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
    monkeypatch.setattr(prefetch, "time", clock)
    loader = ready(clock)
    for in_step, share in ((0, 1.0), (3, 0.25)):
        for _ in loader:
            clock.now += in_step
        assert loader.scalars() == {"seconds": 3 + 3 * in_step, "waiting_for_data": share}
    assert (len(loader), loader.dataset) == (3, "data")


def test_an_epoch_of_which_no_step_was_left_has_waited_for_nothing(monkeypatch):
    monkeypatch.setattr(prefetch, "time", Clock())
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


@pytest.mark.parametrize(
    ("loads", "works", "idle"),
    [(0.01, 0.5, 0.01), (0.4, 0.5, 0.4), (2.0, 0.5, 2 + 9 * 1.5)],
    ids=["the device is the slow one", "the host waits, the device hardly does", "the loader is the slow one"],
)
def test_on_cuda_the_devices_idle_time_counts_and_not_the_hosts(monkeypatch, loads, works, idle):
    """The device waits for the first batch in any case."""
    device = Device()
    monkeypatch.setattr(prefetch, "time", device)
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    timed = prefetch.DeviceIdle()
    timed.begin()
    for _ in range(10):
        timed.asks()
        device.host += loads
        timed.comes()
        device.works(works)
    assert timed.seconds() == pytest.approx(idle)


class Data:
    """Hands out views that `finish` copies; knows which finished ones are still held when it makes the next."""

    def __init__(self):
        self.made, self.alive = [], []

    def finish(self, crops, look, memory_format, finish):
        self.alive.append(sum(x() is not None for x in self.made))
        out = crops.float()
        self.made.append(weakref.ref(out))
        return out


class Loader:
    def __init__(self):
        self.dataset = Data()

    def __len__(self):
        return 4

    def __iter__(self):
        for i in range(4):
            yield (torch.ones(2, 3), torch.ones(2, 8)), torch.tensor([i])


def test_a_finished_batch_is_gone_when_the_next_one_is_made():
    loader, steps = Loader(), workers.Steps()
    training.train_epoch(steps, ready(loader), None, steps, 1)
    assert loader.dataset.alive == [0, 0, 0, 0]


def test_features_on_the_device_come_in_the_order_that_is_asked_for():
    data = Resident(torch.arange(10.0)[:, None], torch.arange(10) % 3)
    x, y = data[[7, 0, 3]]
    assert x[:, 0].tolist() == [7, 0, 3]
    assert y.tolist() == [1, 0, 0]

"""How a training step is fed on this machine: by loader processes, from images in memory, as from a raw pack."""

import os
import time

import torch

from benchmarks.gpu_parts import Case, Setting, timed, wait
from datasets.views import Views
from engine import loading

LONGEST = 15.0  # seconds of measured steps; loader processes that are slower than that show it in fewer


class Repeated(Views):
    """Views of a few images again and again, `count` in all: a long epoch in little memory."""

    def __init__(self, views: Views, count: int):
        super().__init__(views.data, views.augmentation, views.seed, views.finished)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, keys: list[tuple[int, int]]):
        return super().__getitems__([(epoch, index % len(self.data)) for epoch, index in keys])


def one_core(views, count: int) -> float:
    """Images/s that one core makes, as a loader process does: with one thread, after a batch that does not count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(2):
            begin = time.perf_counter()
            views.__getitems__([(1, i) for i in range(count)])
        return count / (time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)


def fed(case: Case, device, precision: torch.dtype) -> dict[str, float]:
    """The steps of a case, fed by loader processes.

    images/s; the share of the time that the host waits for a batch; loader processes; images/s that one core makes.
    """
    workers, setting = min(16, os.cpu_count() or 1), Setting(case, device, precision)
    found = {"workers": workers, "images/s a core": one_core(setting.views, len(setting.views))}
    how = loading.Loading(case.batch_size, workers, device, channels_last=True)
    ahead = workers * 2  # batches that lie ready, or are being made: torch's prefetch_factor is 2
    views = Repeated(setting.views, case.batch_size * 4 * ahead)
    loader, sampler = loading.training_loader(views, how, seed=0)
    sampler.set_epoch(1)
    return found | consumed(loader, case.batch_size, ahead, lambda batch: setting.take(*batch, timed(device)), device)


def consumed(loader, batch_size: int, ahead: int, take, device) -> dict[str, float]:
    """images/s of take(batch), and the share of the time that the host waits for a batch, once the first `ahead`
    batches, which were made while nothing was taken, are gone: to the loader's end, for LONGEST seconds at most.
    """
    begin = asked = time.perf_counter()
    waited, steps = 0.0, 0
    for batch in loader:
        if batch is None:  # it has not come yet
            continue
        waited += time.perf_counter() - asked
        take(batch)
        steps += 1
        if steps == ahead:
            wait(device)
            begin, waited = time.perf_counter(), 0.0
        asked = time.perf_counter()
        if steps > ahead and asked - begin > LONGEST:
            break
    wait(device)
    spent = time.perf_counter() - begin
    return {"images/s": batch_size * (steps - ahead) / spent, "waiting": waited / spent, "batches": steps - ahead}

"""A loader that brings nothing: shared memory, what the loader's processes do meanwhile, when to give up."""

import multiprocessing
import os
import sys
import time
from pathlib import Path

import torch

from engine import distributed
from util import InputError

LOOK = 5.0  # seconds between two looks at a loader that brings nothing
TELL = 60.0  # seconds after which it is told of
SHARED = Path("/dev/shm")  # where loader processes leave their batches, on Linux


class Stall:
    """Of a loader that has just brought nothing for LOOK seconds: `told`, whether that lasts so long that it was told.

    patience: seconds for which its processes may do nothing.
    """

    def __init__(self, patience: float):
        self.begin = self.busy = time.monotonic() - LOOK
        self.last = time.monotonic()
        self.patience, self.told, self.state = patience, False, _state()

    def look(self) -> None:
        """See what the processes have done since the last look; tell of it once; InputError where patience ends."""
        now, (before, _), self.state = time.monotonic(), self.state, _state()
        spent, disk = self.state
        works = spent - before > 0.01 * (now - self.last)  # of one core: looking for work takes less
        self.busy, self.last = now if works else self.busy, now
        if now - self.begin < TELL and now - self.busy < self.patience:
            return
        what = "wait for the disk" if disk else "do nothing"
        advice = "does the storage of the images answer? else give fewer --num_workers, or 0"
        if works:
            what, advice = "work", "give more --num_workers, or pack the images: python -m datasets.prepare pack"
        who = f"process {distributed.rank()}: " if distributed.world_size() > 1 else ""
        line = f"{who}no images for {now - self.begin:.0f} s; the loader processes {what}{_room()}: {advice}"
        if now - self.busy >= self.patience:
            raise InputError(f"{line}; given up after --timeout_minutes")
        if not self.told:
            print(line, file=sys.stderr, flush=True)
            self.told = True


def _state() -> tuple[float, bool]:
    """CPU seconds that this process's children have spent, as far as the system tells; whether one waits for a disk."""
    spent, disk = 0.0, False
    for child in multiprocessing.active_children():
        try:
            fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended, or this is not Linux
            continue
        spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        disk |= fields[0] == "D"
    return spent, disk


def _free() -> float:
    """Bytes free in shared memory; infinite where the system has no such place."""
    try:
        found = os.statvfs(SHARED)
    except OSError:
        return float("inf")
    return found.f_bavail * found.f_frsize


def _room() -> str:
    """A note for where shared memory is nearly full."""
    return f" ({SHARED} has {_free() / 2**20:.0f} MB left: --shm-size)" if _free() < 2**26 else ""


def warn_of_shared_memory(item, images: int, batches: int) -> None:
    """Warn where batches under way will not fit into shared memory. Every process of the run asks.

    item: a batch of one image, as the loader's processes hand it over; images: of a batch; batches: under way at once.
    """
    need, free = batches * images * _bytes(item), _free()
    total = sum(n for name, n in distributed.gather_objects((os.uname().nodename, need)) if name == os.uname().nodename)
    if total > free and distributed.is_main():
        print(
            f"warning: batches under way take up to {total / 2**20:.0f} MB of {SHARED}, which has {free / 2**20:.0f} "
            "MB: give fewer --num_workers, a smaller --batch_size or, in a container, more of it (--shm-size)",
            file=sys.stderr,
        )


def _tensors(batch) -> list[torch.Tensor]:
    """The tensors of a batch, however nested in tuples and lists."""
    if isinstance(batch, (tuple, list)):
        return [x for part in batch for x in _tensors(part)]
    return [batch] if isinstance(batch, torch.Tensor) else []


def _bytes(batch) -> int:
    return sum(x.nbytes for x in _tensors(batch))


class Collated:
    """For a DataLoader: batches as `collate` makes them, in a loader process already in shared memory.

    A lack of it is then an error that arrives. Left to the thread that hands batches over, torch's default, it is
    printed there, and the batch never comes.
    """

    def __init__(self, collate):
        self.collate = collate

    def __call__(self, samples):
        batch = self.collate(samples)
        if torch.utils.data.get_worker_info() is not None:
            for x in _tensors(batch):
                x.share_memory_()
        return batch

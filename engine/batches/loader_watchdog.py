"""A DataLoader that never waits for ever: it tells of a batch that does not come, and gives up in the end."""

import sys
import time

import torch
from torch.utils.data import DataLoader, get_worker_info

from engine.processes import distributed, signals
from util import InputError

LOOK = 5.0  # seconds between two looks at a loader that brings nothing
TELL = 60.0  # seconds after which it is told of


class LoaderWatchdog:
    """Watches a loader that has just brought nothing for LOOK seconds: `told` once it has told of that.

    patience: seconds after which it gives up.
    """

    def __init__(self, patience: float):
        self.begin, self.patience, self.told = time.monotonic() - LOOK, patience, False

    def look(self) -> str | None:
        """Tell of a long wait, once; returns the line of an error where patience ends."""
        waited = time.monotonic() - self.begin
        who = f"process {distributed.rank()}: " if distributed.world_size() > 1 else ""
        line = (
            f"{who}no images for {waited:.0f} s; does their storage answer? else give more --num_workers, "
            "or pack them: python -m datasets.prepare pack"
        )
        if waited >= self.patience:
            return f"--timeout_minutes: {line}"
        if waited >= TELL and not self.told:
            print(line, file=sys.stderr, flush=True)
            self.told = True
        return None


class Loader(DataLoader):
    """A DataLoader that does not wait for ever, and leaves it to `factory.loading` to say that there are more loader
    processes than cores.

    patience: seconds for which a batch is waited for. ends_early: of a training, which saves what it has: its batches
    end at a stop that comes while one is waited for, and where patience ends, which StopSignals then know of. Elsewhere
    that is an InputError, and a stop ends the process, once it has waited for long.
    """

    def __init__(self, *args, patience: float = 1800.0, num_workers: int = 0, ends_early: bool = False, **how):
        super().__init__(*args, num_workers=num_workers, timeout=LOOK if num_workers else 0, **how)
        self.collate_fn, self.patience, self.ends_early = Collated(self.collate_fn), patience, ends_early

    def check_worker_number_rationality(self) -> None:
        """torch's own warning, at every start of an epoch's loader."""

    def __iter__(self):
        batches, watchdog = self._started(), None
        while True:
            try:
                batch = next(batches)  # after a time-out, it waits for the same batch
            except StopIteration:
                return
            except RuntimeError as error:
                if not _timed_out(error):
                    raise
                watchdog = watchdog or LoaderWatchdog(self.patience)
                if self._ends(watchdog):
                    return
                continue
            watchdog = None
            yield batch

    def _started(self):
        with signals.held():
            try:
                return super().__iter__()
            except RuntimeError as error:  # of processes that are kept: they do not answer
                if not _timed_out(error):
                    raise
                self._iterator = None  # ends them; others take their place
                return super().__iter__()

    def _ends(self, watchdog: LoaderWatchdog) -> bool:
        """Whether the batches end before the one that has not come."""
        fault, asked = watchdog.look(), signals.asked()
        if self.ends_early and asked:
            return True
        if fault:
            if self.ends_early and signals.give_up(fault):
                return True
            raise InputError(fault)
        if asked and watchdog.told:
            print(f"{asked}: stopped while it waited for images; go on with --resume auto", flush=True)
            if distributed.world_size() > 1:
                distributed.end_at_once(distributed.EXIT_STOPPED)
            raise SystemExit(distributed.EXIT_STOPPED)
        return False


def _timed_out(error: RuntimeError) -> bool:
    return str(error).startswith("DataLoader timed out")


class Collated:
    """For a DataLoader: batches as `collate` makes them, in a loader process already in shared memory.

    A lack of it is then an error that arrives. Left to the thread that hands batches over, torch's default, it is
    printed there, and the batch never comes.
    """

    def __init__(self, collate):
        self.collate = collate

    def __call__(self, samples):
        batch = self.collate(samples)
        if get_worker_info() is not None:
            for x in _tensors(batch):
                x.share_memory_()
        return batch


def _tensors(batch) -> list[torch.Tensor]:
    """The tensors of a batch, however nested in tuples and lists."""
    if isinstance(batch, (tuple, list)):
        return [x for part in batch for x in _tensors(part)]
    return [batch] if isinstance(batch, torch.Tensor) else []

"""A training loader's batches on the device, ready for a step, and how long the device had nothing to do for them."""

import time

import torch

from datasets import color_on_device
from datasets.augmentation import finish
from engine.processes import distributed


class Prefetcher:
    """A loader's batches on the device and finished: (images, labels).

    On CUDA, where the host runs ahead, a batch is copied on a stream of its own while the device works on the step
    before; the device waits for the copy, the host does not. Nothing here keeps a batch once it is given away.
    """

    def __init__(self, loader, device, memory_format):
        self.loader, self.dataset, self.device, self.memory_format = loader, loader.dataset, device, memory_format
        self.idle = DeviceIdle() if device.type == "cuda" else HostWaits()
        # one for all epochs: CUDA's allocator keeps the blocks of each stream apart
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.colours = color_on_device.Finish(distributed.say) if device.type == "cuda" else finish

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        self.idle.begin()
        self.idle.asks()
        for batch in self.loader:
            # no name holds what is given away: it would live on while the next one is made
            yield self._ready(batch)
            self.idle.asks()

    def scalars(self) -> dict[str, float]:
        """Of the epoch that has just ended: its seconds, and the share of them in which the device had nothing to do
        but wait for data; without CUDA, in which this process waited for it.
        """
        seconds = max(time.perf_counter() - self.idle.since, 1e-9)
        return {"seconds": seconds, "waiting_for_data": self.idle.seconds() / seconds}

    def _ready(self, batch):
        if self.copies is None:
            batch = self._finished(*batch)
            self.idle.comes()
            return batch
        with torch.cuda.stream(self.copies):
            moved = self._moved(*batch)
            copied = self.copies.record_event()
        torch.cuda.current_stream().wait_event(copied)
        self.idle.comes()
        images, labels = moved
        for x in (images if isinstance(images, torch.Tensor) else images[0], labels):
            x.record_stream(torch.cuda.current_stream())  # its memory may not be used again before
        return self._finished(*moved)

    def _moved(self, images, labels):
        if isinstance(images, torch.Tensor):
            images = images.to(self.device, non_blocking=True)
        else:  # the parameters stay on the CPU, where what is to be done is read from them
            images = images[0].to(self.device, non_blocking=True), images[1]
        return images, labels.to(self.device, non_blocking=True)

    def _finished(self, images, labels):
        if not isinstance(images, torch.Tensor):
            return self.dataset.finish(*images, self.memory_format, self.colours), labels
        if images.ndim >= 4 and self.memory_format == torch.channels_last:
            flat = images.flatten(0, -4).contiguous(memory_format=self.memory_format)
            images = flat.unflatten(0, images.shape[:-3])
        return images, labels


class HostWaits:
    """Seconds that this process waits for data: without CUDA it is what does the work."""

    def __init__(self):
        self.begin()

    def begin(self) -> None:
        self.since, self.total = time.perf_counter(), 0.0

    def asks(self) -> None:
        self.asked = time.perf_counter()

    def comes(self) -> None:
        self.total += time.perf_counter() - self.asked

    def seconds(self) -> float:
        return self.total


class DeviceIdle:
    """Seconds in which a CUDA device, all that it was given done, waits for the next batch.

    The host runs ahead of it: that the host waits for a batch says nothing. Events in the device's own queue do: one
    after the work of a step, one where the next batch has been copied.
    """

    def __init__(self):
        self.begin()

    def begin(self) -> None:
        self.since, self.pairs = time.perf_counter(), []

    def asks(self) -> None:
        self.asked = _event()

    def comes(self) -> None:
        self.pairs.append((self.asked, _event()))

    def seconds(self) -> float:
        """Waits for the last step's batch."""
        if self.pairs:
            self.pairs[-1][1].synchronize()
        return sum(asked.elapsed_time(came) for asked, came in self.pairs) / 1000


def _event():
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event

"""Small things that every script shares: bad input, seeds, the learning-rate schedule, meters, progress."""

import contextlib
import difflib
import errno
import json
import math
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

STORAGE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


class InputError(ValueError):
    """Something the user gave is wrong; the message names the flag, file or key and what to do."""

    def __init__(self, message: str):
        # a loader process hands its traceback on as the message: the last line is what it raised
        super().__init__(message.rsplit("InputError: ", 1)[-1].strip())


def run_command(main) -> None:
    """Run a script's main: bad input, a full disk or a lack of permission becomes one line and exit code 2, as
    argparse's own errors do.
    """
    try:
        main()
    except InputError as error:
        fault = str(error)
    except OSError as error:
        if error.errno not in STORAGE_FAULTS:
            raise
        fault = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        return
    print(f"{Path(sys.argv[0]).name}: error: {fault}", file=sys.stderr)
    sys.exit(2)


def check_folder(path, flag: str) -> None:
    """Raise InputError, before any work, where nothing could be written below `path`, existing or not."""
    place = Path(path).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise InputError(f"{flag} {path}: {place} is not a folder that can be written to")


def nearest(word: str, known) -> str:
    """ "; did you mean X?" for the end of an error, X being the known word that is spelt most like it; else ""."""
    found = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f"; did you mean {found[0]}?" if found else ""


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def keyed_generator(seed: int, epoch: int, purpose: str, sample: int = 0) -> np.random.Generator:
    """Random numbers that depend on these alone: not on workers, processes, or where a run was resumed.

    purpose: "order" of an epoch, "views" of a sample. Philox, a counter-based generator (Salmon et al. 2011), has a
    stream for every key and for every value of the counter's upper words.
    """
    upper = [sample, ("order", "views").index(purpose), 0]
    key, counter = (np.array(words, dtype=np.uint64) for words in ([seed % 2**64, epoch], [0, *upper]))
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def learning_rate(
    progress: float,
    *,
    base: float,
    epochs: int,
    cosine: bool,
    decay_rate: float = 0.1,
    decay_epochs: tuple[int, ...] = (),
    warm_epochs: int = 0,
    warm_from: float = 0.01,
) -> float:
    """The learning rate, a pure function of `progress`: finished epochs, with a fraction inside an epoch.

    Constant through an epoch, whose number counts from 1: cosine from `base` to base * decay_rate^3 at the last epoch,
    or base * decay_rate^(number of decay_epochs passed). Through the first `warm_epochs` it rises linearly, step by
    step, from `warm_from` to the value that the schedule has at their end. Source: design of the published training
    (Khosla et al. 2020, RINCE).
    """

    def scheduled(epoch: float) -> float:
        if not cosine:
            return base * decay_rate ** sum(epoch > e for e in decay_epochs)
        floor = base * decay_rate**3
        return floor + (base - floor) * 0.5 * (1 + math.cos(math.pi * epoch / epochs))

    if progress < warm_epochs:
        return warm_from + progress / warm_epochs * (scheduled(warm_epochs) - warm_from)
    return scheduled(math.floor(progress) + 1)


def warm_up_epochs(warm: bool, batch_size: int, epochs: int, length: int = 10) -> int:
    """Length of the warm-up: 10 epochs with --warm or above batch size 256, at most half of a short run; else 0."""
    return min(length, epochs // 2) if warm or batch_size > 256 else 0


class Mean:
    """Running mean of tensors that stay on their device: nothing waits for the device until `value`."""

    def __init__(self):
        self.total, self.count = 0.0, 0

    def update(self, value: torch.Tensor) -> None:
        self.total = self.total + value.detach().double()
        self.count += 1

    def value(self):
        """The mean as a float, or a list of floats for a vector."""
        return (self.total / max(1, self.count)).tolist() if self.count else 0.0


class FirstBadStep:
    """Remembers, on the device, the first step whose loss was not finite, and the loss there."""

    def __init__(self, device):
        self.step = torch.full((), -1, dtype=torch.long, device=device)

    def update(self, loss: torch.Tensor, step: int) -> None:
        bad = ~torch.isfinite(loss.detach()) & (self.step < 0)
        self.step = torch.where(bad, step, self.step)


class Progress:
    """A tqdm bar on a terminal, a plain line every `every` steps in a log file; silent where `show` is false."""

    def __init__(self, title: str, steps: int, every: int, show: bool = True):
        self.title, self.steps, self.every, self.show = title, steps, every, show
        self.start = time.perf_counter()
        self.bar = None
        if show and sys.stderr.isatty():
            self.bar = tqdm(total=steps, desc=title, leave=False, dynamic_ncols=True)

    def tick(self, step: int, text: str) -> None:
        """After step `step` (from 1)."""
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
            self.bar.set_postfix_str(text)
        elif self.show and step < self.steps and step % self.every == 0:
            left = (time.perf_counter() - self.start) / step * (self.steps - step)
            print(
                "  ".join(filter(None, (f"{self.title} step {step}/{self.steps}", text, f"{left:.0f} s left"))),
                flush=True,
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def tracked(batches, title: str, every: int = 50, show: bool = True):
    """The batches, with progress."""
    progress = Progress(title, len(batches), every, show)
    for i, batch in enumerate(batches, 1):
        yield batch
        progress.tick(i, "")
    progress.close()


def pyplot():
    """matplotlib.pyplot without a screen, imported where something is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def write_file(path: Path, content: bytes) -> None:
    """Write to a temporary name, then rename: whole or not at all; folders are made. Raises InputError if it fails."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def append_json(path: Path, record: dict) -> None:
    """Add one line of JSON to a log."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")

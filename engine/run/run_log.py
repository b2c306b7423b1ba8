"""What a run tells of its epochs: log.jsonl, TensorBoard. They only show: what cannot be written is said, no more.

And JSON as all records have it.
"""

import contextlib
import json
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import util


class Board:
    """Scalars and pictures in a folder, from an epoch on: what was shown beyond it is taken back."""

    def __init__(self, folder: Path, first_epoch: int, say: Callable[[str], None]):
        self.folder, self.first_epoch, self.say = folder, first_epoch, say
        self.writer, self.broken, self.hook = None, False, threading.excepthook

    def show(self, draw: Callable) -> None:
        """draw(writer) with torch's SummaryWriter, on the disk when this returns."""
        if self.broken:
            return
        try:
            if self.writer is None:
                from torch.utils.tensorboard import SummaryWriter

                threading.excepthook = self._of_thread
                self.writer = SummaryWriter(str(self.folder), purge_step=self.first_epoch)
            draw(self.writer)
            self.writer.flush()
        except Exception as error:  # of a disk, of TensorBoard's thread, of what is drawn
            self.broken = True
            self.say(f"TensorBoard in {self.folder}: {util.reason(error)}; the run continues without TensorBoard")

    def _of_thread(self, fault) -> None:
        """Instead of the traceback of TensorBoard's thread that writes: its next call raises the same."""
        if type(fault.thread).__name__ != "_AsyncWriterThread":
            self.hook(fault)

    def close(self) -> None:
        """No more is shown."""
        if self.writer is not None:
            self.show(lambda writer: writer.close())
            threading.excepthook = self.hook


class Journal:
    """The log and the TensorBoard of a run that goes on after an epoch, 0 at its start: records beyond it go."""

    def __init__(self, folder: Path, tensorboard: Path, after_epoch: int, say: Callable[[str], None]):
        self.log, self.say = folder / "log.jsonl", say
        self.board = Board(tensorboard, after_epoch + 1, say)
        self.latest = 0, {}  # epoch and scalars that TensorBoard has not shown yet
        kept = [r for r in read_json_lines(self.log) if isinstance(r, dict) and r.get("epoch", 1) <= after_epoch]
        if self.log.exists():
            util.write_file(self.log, "".join(to_json(r) + "\n" for r in kept).encode())

    def record(self, epoch: int, scalars: dict) -> None:
        """Add an epoch to the log; TensorBoard has it later, with `show_latest`."""
        self.latest = epoch, scalars
        try:
            append_json(self.log, {"epoch": epoch, **scalars})
        except OSError as error:
            self.say(f"{error.filename}: epoch {epoch} cannot be added ({error.strerror}); the run continues")

    def show_latest(self) -> None:
        """Show the scalars of the last epoch, once, on TensorBoard."""
        (epoch, scalars), self.latest = self.latest, (0, {})
        if scalars:
            self.board.show(lambda writer: [writer.add_scalar(name, value, epoch) for name, value in scalars.items()])


def to_json(value: Any, **how: Any) -> str:
    """JSON of a record. What is no number becomes null: NaN is no JSON, and no figure."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(of) for key, of in value.items()}
        if isinstance(value, list | tuple):
            return [finite(of) for of in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(value), **how)


def append_json(path: Path, record: dict) -> None:
    """Add one line of JSON to a log, and have it on the disk."""
    try:
        with path.open("a") as file:
            file.write(to_json(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def read_json_lines(path: Path) -> list[dict]:
    """Read the records of a log; [] where there is none. A line that a crash cut short does not count."""
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records

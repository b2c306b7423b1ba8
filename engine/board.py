"""A run's TensorBoard. It only shows: what cannot be written there is said once, and the run goes on."""

import threading
from collections.abc import Callable
from pathlib import Path


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
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.say(f"TensorBoard in {self.folder}: {reason}; nothing more is shown there, the run goes on")

    def _of_thread(self, fault) -> None:
        """Instead of the traceback of TensorBoard's thread that writes: its next call raises the same."""
        if type(fault.thread).__name__ != "_AsyncWriterThread":
            self.hook(fault)

    def close(self) -> None:
        """No more is shown."""
        if self.writer is not None:
            self.show(lambda writer: writer.close())
            threading.excepthook = self.hook

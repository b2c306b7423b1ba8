"""What a training prints: standard output or error that breaks never ends it."""

import contextlib
import sys
from collections.abc import Callable

import util


class Lasting:
    """A text stream in the place of another; once that one fails, all that is written goes nowhere."""

    def __init__(self, stream, name: str):
        self.stream, self.name, self.failed = stream, name, False

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """As of a stream; no error."""
        self._do(self.stream.write, text)
        return len(text)

    def writelines(self, lines) -> None:
        """As of a stream; no error."""
        self._do(self.stream.writelines, lines)

    def flush(self) -> None:
        """As of a stream; no error."""
        self._do(self.stream.flush)

    def _do(self, action: Callable, *values) -> None:
        try:
            action(*values)
        except (OSError, ValueError) as error:  # ValueError: it is closed
            if not self.failed:
                self.failed = True
                util.silence(self.stream)
                other = sys.stdout if self is sys.stderr else sys.stderr
                reason = getattr(error, "strerror", None) or error
                print(f"{self.name} cannot be written ({reason}): the training continues without it", file=other)


@contextlib.contextmanager
def lasting():
    """While it is entered, `print` and all else that writes to sys.stdout and sys.stderr raises no error."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Lasting(sys.stdout, "standard output"), Lasting(sys.stderr, "standard error")
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def through(worker: Callable, device) -> None:
    """worker(device), whose output lasts: of a process that does not have its parent's."""
    with lasting():
        worker(device)

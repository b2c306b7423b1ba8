"""What SIGTERM, SIGUSR1 and Ctrl-C do: in a process that trains, in its loaders, and in one that waits for others."""

import contextlib
import os
import signal
import threading
import time

from engine import distributed


class StopSignals:
    """While it is entered, SIGTERM, SIGUSR1 and Ctrl-C only ask: `asked` names the first that came, else None.

    A second Ctrl-C stops at once; within a second of the first it does not count, since torchrun hands each on once
    more than the terminal does.
    """

    def __init__(self):
        self.asked, self.at = None, 0.0

    def __enter__(self):
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        now = time.monotonic()
        if self.asked is None:
            self.asked, self.at = signal.Signals(number).name, now
            if distributed.is_main():  # print may be what was interrupted, and cannot be entered twice
                os.write(2, f"{self.asked}: stops after this step, once all is saved\n".encode())
        elif number == signal.SIGINT and self.asked == "SIGINT" and now - self.at > 1:
            os._exit(128 + signal.SIGINT)


@contextlib.contextmanager
def passed_on(processes):
    """While it is entered, a signal that asks this process to stop asks its processes; a second Ctrl-C ends them."""
    pressed = []

    def ask(number, frame):
        pressed.extend([number] * (number == signal.SIGINT))
        for process in processes:
            if process.exitcode is None:
                process.kill() if len(pressed) > 1 else process.terminate()

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore(worker: int) -> None:
    """Of a loader process: signals that go to a whole job are for the process that saves; only its parent ends it."""
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for_parent, daemon=True).start()


def _end_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)

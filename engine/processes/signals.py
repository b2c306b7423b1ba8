"""What SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C do: to a process that trains, its loaders, and one that waits for them."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from engine.processes import distributed

# what a terminal, a scheduler, torchrun stop a run with
ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
entered = []  # StopSignals in force


class StopSignals:
    """While it is entered, SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C only ask, as the end of --max_hours does, which counts
    from `begin`.

    A second Ctrl-C stops at once; within a second of the first it does not count, since torchrun hands each on once
    more than the terminal does.
    """

    def __init__(self, max_hours: float | None = None, begin: float = 0.0):
        self.max_hours, self.begin = max_hours, begin
        self.first, self.at = None, 0.0
        self.fault = None  # what else ends the run, in an error

    @property
    def asked(self) -> str | None:
        """What asked first, by its name."""
        if self.first is None and self.max_hours and time.perf_counter() - self.begin > 3600 * self.max_hours:
            self.first = f"--max_hours {self.max_hours:g}"
        return self.first

    def __enter__(self):
        self.before = _take(self._ask)
        entered.append(self)
        return self

    def __exit__(self, *_):
        entered.remove(self)
        _give_back(self.before)

    def _ask(self, number, frame) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first, self.at = signal.Signals(number).name, now
            if distributed.is_main():  # print may be what was interrupted, and cannot be entered twice
                with contextlib.suppress(OSError):  # of `| tee`, which the same Ctrl-C ended
                    os.write(2, f"{self.first}: stops after this step, once all is saved\n".encode())
        elif number == signal.SIGINT and self.first == "SIGINT" and now - self.at > 1:
            os._exit(128 + signal.SIGINT)


def asked() -> str | None:
    """Return what asked this process to stop, where a StopSignals is entered."""
    return next((stop.asked for stop in entered if stop.asked), None)


def give_up(fault: str) -> bool:
    """Ask this process to stop for a fault; False where no StopSignals is entered."""
    for stop in entered:
        stop.fault = fault
    return bool(entered)


@contextlib.contextmanager
def passed_on(processes):
    """While it is entered, a signal that asks this process to stop asks its processes; a second Ctrl-C ends them.

    Gives the list of the signals that came.
    """
    came = []

    def ask(number, frame):
        came.append(number)
        for process in processes:
            if process.exitcode is None:
                process.kill() if came.count(signal.SIGINT) > 1 else process.terminate()

    before = _take(ask)
    try:
        yield came
    finally:
        _give_back(before)


def _take(handler: Callable) -> dict:
    """Give the signals that ask to stop to `handler`; returns the handlers that they had.

    Only a main thread may do so: in another they act as the program has it, and a line says so. A handler that is not
    of Python, which could not be given back, stays.
    """
    if threading.current_thread() is not threading.main_thread():
        print("not in the main thread: signals keep their effect in this program, and save nothing", file=sys.stderr)
        return {}
    return {s: signal.signal(s, handler) for s in ASKING if signal.getsignal(s) is not None}


def _give_back(handlers: dict) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def held():
    """While it is entered, signals that ask this thread to stop wait; a process that is started inside begins without
    them. What goes to the whole process may be taken by another thread: its handler only asks.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore(worker: int) -> None:
    """Of a loader process, started while they are held: signals that go to a whole job are for the process that saves;
    only its parent ends it.
    """
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    waits = hasattr(signal, "sigwaitinfo")  # not on macOS
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGTERM} if waits else ())
    if waits:
        threading.Thread(target=_end_for_parent, daemon=True).start()


def _end_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)

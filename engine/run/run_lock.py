"""One run at a time writes into a folder: a lock that the system lets go when the process that holds it ends.

POSIX record locks (`fcntl.lockf`): unlike those of `flock`, they are not inherited by loader processes, which may
outlive a killed run for a moment, and network disks know them. A process loses them when it closes the file anywhere,
so that it is opened once.
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from util import InputError

NAME = "lock"
WAIT_SECONDS = 300  # for a predecessor that is still saving
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class FolderLock:
    """The right to write into a run's folder, from `take` on until `release` or the end of the process."""

    def __init__(self, folder: Path):
        self.path, self.descriptor = folder / NAME, None  # no file object: nothing but `release` closes it

    def take(self, flag: str, say: Callable[[str], None]) -> None:
        """Make the folder and lock it. Raises InputError, beginning with `flag`, that says who holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                say(f"{self.path}: this disk has no file locks; do not start this run a second time")
                return
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            holder = _holder(self.path)
            self.release()
            raise InputError(refusal(flag, self.path.parent, holder)) from None
        os.ftruncate(self.descriptor, 0)
        job = f", SLURM job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.write(self.descriptor, f"process {os.getpid()} on {socket.gethostname()}{job}, since {since}".encode())

    def release(self) -> None:
        """Let others write into the folder."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def refusal(flag: str, folder: Path, holder: str) -> str:
    """Return what is said to a run that may not write into a folder, since another does."""
    return f"{flag}: {folder} is being written by {holder}; wait for its end, or give another --exp_name"


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip() or "another process"
    return "another process"


def held_by(folder: Path) -> str | None:
    """Who writes into a run's folder, in words; None where nobody does. Not for a process that has its FolderLock."""
    try:
        with (folder / NAME).open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return _holder(folder / NAME) if error.errno in (errno.EACCES, errno.EAGAIN) else None
    return None


def wait_until_free(folder: Path, seconds: float, say: Callable[[str], None]) -> None:
    """Wait, for so long at most, until nobody writes into a run's folder."""
    until, said = time.monotonic() + seconds, False
    while (holder := held_by(folder)) and time.monotonic() < until:
        if not said:
            said = True
            say(f"{folder} is being written by {holder}: waiting for it to end, at most {seconds:.0f} s")
        time.sleep(0.2)

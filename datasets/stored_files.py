"""Files that many images lie in: read at a place, by any number of processes; and what is kept beside them, or in the
cache folder, so that it is made once.
"""

import contextlib
import fcntl
import functools
import hashlib
import io
import os
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import util
from util import InputError

MOST_OPEN = 256  # files that a process keeps open; most systems let it have 1,024
LEFT_SECONDS = 3600  # since the last write to a file that nobody finishes: its process was killed


class PackInputError(InputError):
    """A file of many images that cannot be read any more: no image takes the place of another."""


class StoredFile:
    """A file that images lie in, at places that an index knows; each process opens it when it first reads it.

    It is read, not mapped into memory: where it is cut short, or its disk goes away, a read is an error, and a mapping
    ends the process. A read costs no more than a mapping's (benchmarks/data.py). hint: what to do where it is shorter
    than when it was opened.
    """

    def __init__(self, path: str | Path, hint: str):
        self.path, self.hint, self.state = str(path), hint, find_state(path)

    @property
    def size(self) -> int:
        """Bytes of the file when it was opened."""
        return self.state[0]

    def read(self, begin: int, length: int) -> np.ndarray:
        """[length] uint8. Raises PackInputError where there are fewer."""
        content = np.empty(length, np.uint8)
        try:
            opened = _open(self.path, self.state)
            count = os.preadv(opened.descriptor, [content], begin)
            now = os.fstat(opened.descriptor).st_size if count < length else opened.size
        except OSError as error:
            raise PackInputError(f"{self.path}: cannot be read any more ({error.strerror})") from None
        if count < length or now != self.size:
            then = f"has {now:,} bytes now, {self.size:,} when it was opened"
            raise PackInputError(f"{self.path}: {then}; {self.hint}")
        return content


class _Descriptor:
    """A file's descriptor, closed once nobody reads by it. Reads name their place, so that a fork may share it."""

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self.descriptor).st_size
        weakref.finalize(self, os.close, self.descriptor)


@functools.lru_cache(MOST_OPEN)
def _open(path: str, state: tuple[int, int]) -> _Descriptor:
    return _Descriptor(path)


def find_state(path: str | Path) -> tuple[int, int]:
    """Size and time of the last change, in ns: what changes when a file does. Raises InputError where it is missing."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return stat.st_size, stat.st_mtime_ns


# ---- what is made once -----------------------------------------------------------------------------------------------


def find_cache() -> Path:
    """Return the folder of what can be made again: RINCE_CACHE, or rince in the user's cache folder."""
    own = os.environ.get("RINCE_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rince"


def name_in_cache(path: str | Path) -> Path:
    """Return how the names of what is kept of a file in the cache folder begin, whatever links lead to the file."""
    digest = hashlib.sha256(os.path.realpath(path).encode(errors="surrogateescape")).hexdigest()
    return find_cache() / f"{util.plain_name(Path(path).stem)[:80]}-{digest[:16]}"


@contextlib.contextmanager
def wait_for_others(path: str | Path) -> Iterator[None]:
    """One process at a time makes what is kept of a file, as far as the cache folder's disk can lock files."""
    place = name_in_cache(path)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(open(f"{place}.lock", "w")), fcntl.LOCK_EX)
            for left in place.parent.glob(f"{place.name}*.tmp"):
                if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                    left.unlink()
        yield


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz file, whole or not at all. Raises InputError."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    util.write_file(path, content.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Read the arrays of an .npz file; None where it is missing or not whole."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception:  # zipfile and numpy meet damage in many ways
        return None

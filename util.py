"""Small things that all share: input errors, seeds, progress, whole writes."""

import contextlib
import difflib
import errno
import functools
import hashlib
import io
import logging
import os
import random
import re
import select
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

# Threads that wait for one another sleep. By OpenMP's default they spin, and where several trainings, or loader
# processes, share the cores, all wait for threads that have none. It is read when torch is imported; the user's stands.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

try:
    import numpy as np
    import torch
    from tqdm import tqdm
except ModuleNotFoundError as error:  # who has not made the environment: scripts import this module first
    print(f"{error}: run `make .venv/.installed`, then `source .venv/bin/activate`", file=sys.stderr)
    raise SystemExit(2) from None

STORAGE_FAULTS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE,
    errno.ENOTCONN, errno.EHOSTDOWN,
)  # fmt: skip

# what torch's and Python's own errors say, and what is to be done then
ADVICE = (
    ("shared memory|Bus error|/torch_[0-9]", "/dev/shm is full: give fewer --num_workers, or more --shm-size"),
    (r"DataLoader worker \(pid", "most likely for lack of memory; give fewer --num_workers, or 0"),
    (
        "CUDA out of memory",
        "give a smaller --batch_size or --size; of a training also --memorybank_size, or --precision bfloat16",
    ),
    ("MemoryError|ut of memory|ALLOC_FAILED|an't allocate|annot allocate", "give a smaller --batch_size"),
)


class InputError(ValueError):
    """Something the user gave is wrong; the message names the flag, file or key and what to do."""

    def __init__(self, message: str):
        # a loader process hands its traceback on as the message: the last line is what it raised, for a name with a
        # line break in it stays one
        super().__init__(message.rsplit("InputError: ", 1)[-1].strip().replace("\n", "\\n"))


def plain_name(text: str) -> str:
    """Return a text as part of a file's name: letters, digits, ._+- and for anything else _."""
    return re.sub(r"[^\w.+-]+", "_", one_form(text)).strip("_")


def reason(error: BaseException) -> str:
    """Return the first line of what an error says, or its name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def fault(error: BaseException) -> str | None:
    """One line for bad input, a full disk, a lack of permission or memory, a lost loader process; None for others."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.errno in STORAGE_FAULTS:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, (RuntimeError, MemoryError, OSError)):
        lines = f"{type(error).__name__}: {error}".splitlines()
        for pattern, advice in ADVICE:
            found = [line for line in lines if re.search(pattern, line)]
            if found:
                sentences = found[-1].removeprefix("RuntimeError: ").rstrip(". ").split(". ")
                return ". ".join(sentences[:2]) + f": {advice}"
    return None


def run_command(main: Callable[[], object]) -> None:
    """Run a script's main: what `fault` knows becomes one line and exit code 2, as argparse's own errors do.

    Where nobody reads what is printed any more (`| head`), it ends silently with 141, as a shell reports SIGPIPE; at
    Ctrl-C with 130.
    """
    usable_streams()
    try:
        try:
            main()
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except KeyboardInterrupt:
        _exit(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_is_gone():
            _exit(141)
        line = fault(error)
        if line is None:
            raise
        with contextlib.suppress(OSError):
            print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
        _exit(2)


def reader_is_gone() -> bool:
    """Whether standard output or error is a pipe that nobody reads: loader processes break pipes of their own."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(io.UnsupportedOperation):
            poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def user_path(text: str) -> Path:
    """Return a path of the command line, `~` at its beginning expanded: a shell leaves --flag=~/folder as it is."""
    return Path(text).expanduser()


def user_text(text: str) -> str:
    """Likewise, for options that are kept as text, or may be a name instead."""
    return os.path.expanduser(text)


def _exit(code: int) -> None:
    """Exit; what can be printed no more is left out, of which Python would complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            silence(stream)
    sys.exit(code)


def usable_streams() -> None:
    """Make standard streams that were closed lead nowhere, and let none fail for a character that it cannot encode.

    A closed one would give its number to the next file that is opened, and what is printed would end up in that.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def silence(stream: Any) -> None:
    """Let what is written to a stream, by whatever part of the process, go nowhere from now on."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def check_folder(path: str | Path, flag: str) -> None:
    """Raise InputError, before any work, where nothing could be written below `path`, existing or not."""
    place = Path(path).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise InputError(f"{flag} {path}: " + ("" if place == Path(path) else f"{place} ") + "is a file, not a folder")
    if not os.access(place, os.W_OK):
        raise InputError(f"{flag} {path}: {place} is not a folder that can be written to")


def closest(word: str, known: Iterable[object]) -> str | None:
    """Find the known word that is spelled most like another; None where none is alike."""
    return next(iter(difflib.get_close_matches(str(word), [str(k) for k in known], n=1)), None)


def nearest(word: str, known: Iterable[object]) -> str:
    """ "; did you mean X?" for the end of an error, X being the known word that is spelled most like it; else ""."""
    found = closest(word, known)
    return f"; did you mean {found}?" if found else ""


def one_form(name: str) -> str:
    """Return a name as names are compared: macOS has é as two characters (NFD), most editors as one (NFC)."""
    return unicodedata.normalize("NFC", str(name))


def match_spelling(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the names, each in the Unicode form that it has among the known ones, if it is one of them."""
    spelling = {one_form(name): name for name in known}
    return [spelling.get(one_form(name), name) for name in names]


def twice(names: Iterable[str]) -> str | None:
    """Find the first name that stands there a second time, in whatever Unicode form; None where there is none."""
    seen: set[str] = set()
    for name in names:
        if (form := one_form(name)) in seen:
            return name
        seen.add(form)
    return None


def sha256(path: str | Path) -> str:
    """Compute a file's SHA-256, as hexadecimal digits; it is read once while it stays unchanged."""
    stat = os.stat(path)
    return _sha256(os.path.abspath(path), (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))


@functools.cache
def _sha256(path: str, state: tuple) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def cores() -> int:
    """Cores that this process may use: its affinity and a container's limit (cgroups) counted."""
    from joblib import cpu_count  # scikit-learn's; a tenth of a second

    return max(1, cpu_count())


@contextlib.contextmanager
def quiet(library: str) -> Iterator[None]:
    """As a context: a library logs its errors alone, and not each of its tries to reach a server."""
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def clock(seconds: float) -> str:
    """Format a time that is left, as 1:20:05."""
    return str(timedelta(seconds=round(seconds)))


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
            parts = f"{self.title} step {step}/{self.steps}", text, f"ETA {clock(left)}"
            print("  ".join(filter(None, parts)), flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def temporary_name(path: Path) -> Path:
    """Where a file is written before it is renamed to `path`: no other process writes there."""
    return path.with_name(f"{path.name[:100]}.{os.getpid()}-{os.urandom(4).hex()}.tmp")


def write_file(path: Path, content: bytes) -> None:
    """Write to a temporary name, then rename: whole or not at all; folders are made. Raises InputError if it fails."""
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None

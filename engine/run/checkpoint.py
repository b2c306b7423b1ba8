"""Checkpoints: plain dictionaries of tensors and plain types, written whole or not at all, read without code."""

import argparse
import contextlib
import os
import pickle
import random
import re
import zipfile
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import Tensor, nn

from networks import cards
from util import InputError, reason, temporary_name

FORMAT = 1  # of what `save` writes; grows where an older version could not go on with it


def write_whole(path: Path, state: dict, before: Path | None = None) -> None:
    """Write to a temporary name, sync, rename: a crash leaves the file before it. Call on the main process only.

    before: the name that the file so far takes. Raises OSError that names the path; nothing half-written stays.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if before and path.exists():
            _name_also(path, before)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        fault = error
        while fault is not None and not isinstance(fault, OSError):
            fault = fault.__context__  # torch's zip writer covers a full disk with an error of its own
        if fault is None:
            raise
        fault.filename = fault.filename or str(path)
        raise fault from None


def _name_also(path: Path, other: Path) -> None:
    """Give a file another name as well, over what had it; on a disk without links it loses its own for a moment."""
    if other.exists() and path.samefile(other):  # a crash came between the two renames
        return
    link = temporary_name(other)
    try:
        os.link(path, link)
    except OSError:
        link = path
    os.replace(link, other)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(path: Path, state: dict, before: Path | None = None) -> None:
    """Write a checkpoint, whole or not at all; `state` holds tensors and plain types. `before`: as in write_whole."""
    write_whole(path, {"format": FORMAT, **state}, before)


def numbered(folder: Path) -> list[Path]:
    """List the checkpoints ckpt_epoch_N.pth of a run's folder, the highest N first."""
    found = [f for f in Path(folder).glob("ckpt_epoch_*.pth") if f.stem.removeprefix("ckpt_epoch_").isdecimal()]
    return sorted(found, key=lambda f: int(f.stem.removeprefix("ckpt_epoch_")), reverse=True)


def history(folder: Path) -> list[Path]:
    """List the checkpoints of a run's folder, newest first: last.pth, previous.pth, highest ckpt_epoch_N.pth, ..."""
    files = [Path(folder) / "last.pth", Path(folder) / "previous.pth", *numbered(folder)]
    return [file for file in files if file.exists()]


class NewerFormat(InputError):
    """A checkpoint of a version to come: an older one beside it must not take its place."""


def newest(folder: Path, flag: str = "--resume") -> tuple[Path, dict, list[str]]:
    """Find the newest checkpoint of a run's folder that can be read, its content, and what is wrong with those passed
    over.

    Raises InputError where there is none.
    """
    passed = []
    for path in history(folder):
        try:
            return path, load(path, flag), passed
        except NewerFormat:
            raise
        except InputError as error:
            passed.append(str(error))
    raise InputError(
        passed[0] + ", and no earlier one is readable" if passed else f"{flag} {folder}: holds no checkpoint"
    )


def find(path, flag: str = "--ckpt") -> Path:
    """Find the checkpoint's file: a folder means its last.pth, or the encoder that engine.export wrote there. `flag` is
    named in errors.
    """
    path = Path(path)
    if path.is_dir():
        exports = not (path / "last.pth").exists() and (path / cards.WEIGHTS).exists()
        path = path / (cards.WEIGHTS if exports else "last.pth")
    if not path.is_file():
        raise InputError(f"{flag} {path}: no such file; give a checkpoint, or a run's folder that holds last.pth")
    return path


def check_sums(path: Path) -> None:
    """Raise BadZipFile where a file of torch.save is damaged.

    torch.load does not look at the CRC-32 that its zip files hold for each record: flipped bits would load.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # as torch.load tells its two formats apart
    if zipped:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"corrupt in {damaged}")


def _entries(path: Path) -> set[str]:
    """Return the names, without their folders, in a zip archive; none of any other file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {PurePath(name).name for name in archive.namelist()}
    except Exception:  # zipfile meets damage in many ways; `read_content` says what is wrong
        return set()


def read_content(path: Path, flag: str):
    """Read what a file of torch.save or safetensors holds, on the CPU: tensors, plain types and argparse.Namespace; any
    other object is refused unrun.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path, flag)
    entries = _entries(path)
    if "constants.pkl" in entries:  # as torch.load tells them from its own, with a warning
        save = "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
        raise InputError(f"{flag} {path}: a TorchScript archive, whose code is not run; save its state dict: {save}")
    try:
        check_sums(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))  # "c" in pickle: of a text too
        if named and not _why_unreadable(path, ""):
            raise InputError(f"{flag} {path}: refused unrun, it holds a pickled object ({named[1]})") from None
        why = "no file of torch.save"
    except zipfile.BadZipFile as error:
        why = str(error)
    except Exception as error:  # torch.load meets damage in many ways, each with an exception of its own
        foreign = entries and "data.pkl" not in entries
        why = "a zip archive, but none of torch.save" if foreign else f"{type(error).__name__}: {reason(error)}"
    raise InputError(f"{flag} {path}: not a readable checkpoint ({_why_unreadable(path, why)})")


def _why_unreadable(path: Path, why: str) -> str:
    """`why`, but for a file that is empty, or a text, such as a pointer of Git LFS or a saved web page: that it is."""
    try:
        with path.open("rb") as file:
            start = file.read(60)
    except OSError:
        return why
    if not start.strip():
        return "it is empty"
    if not start.decode("utf-8", "replace").replace("\n", " ").rstrip("\ufffd").isprintable():
        return why
    return f"it is a text that begins: {start.decode('utf-8', 'ignore').splitlines()[0]}"


def load(path, flag: str = "--ckpt") -> dict:
    """Read a checkpoint's content, as `read_content` has it."""
    path = find(path, flag)
    return check_form(read_content(path, flag), f"{flag} {path}")


def holds_weights_alone(content) -> bool:
    """Whether a file's content is tensors by name."""
    return isinstance(content, dict) and bool(content) and all(isinstance(x, Tensor) for x in content.values())


def check_form(content, source: str) -> dict:
    """Check the content of a file, where that is a checkpoint's; else InputError, which begins with `source`."""
    if holds_weights_alone(content):
        raise InputError(f"{source}: holds weights alone; a resume needs a checkpoint of this code")
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(f"{source}: not a checkpoint, it has no entry 'model' with the weights")
    for name, value in content["model"].items():
        if not isinstance(value, Tensor):
            raise InputError(f"{source}: not a checkpoint, its weight {name} is a {type(value).__name__}")
    version = content.get("format", FORMAT)  # the official files have none
    if version != FORMAT:
        raise NewerFormat(f"{source}: has format {version}, this version reads {FORMAT}; update this code")
    return content


def _read_safetensors(path: Path, flag: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        why = _why_unreadable(path, str(error))
        raise InputError(f"{flag} {path}: not a readable safetensors file ({why})") from None


def random_state() -> dict:
    """Where Python's, NumPy's and torch's random numbers of this process stand, as plain types and tensors."""
    kind, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    numbers = {"python": random.getstate(), "numpy": [kind, keys.tolist(), *rest]}
    return {**numbers, "torch": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict) -> None:
    """Go on with the random numbers of `random_state`."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def trained_options(state: dict) -> dict:
    """Return the options that a checkpoint was trained with: ours, or an official one's Namespace; {} without any."""
    if isinstance(state.get("opt"), argparse.Namespace):
        return vars(state["opt"])
    return state["options"] if isinstance(state.get("options"), dict) else {}


def load_strictly(module: nn.Module, weights: dict, source: str) -> None:
    """load_state_dict that names what differs in one line, before anything is changed."""
    own = module.state_dict()
    differences = [f"{k} is missing" for k in own if k not in weights]
    differences += [f"{k} is left over" for k in weights if k not in own]
    both = [(k, own[k], weights[k]) for k in own if k in weights]
    shapes = [(k, tuple(x.shape), tuple(want.shape)) for k, want, x in both]
    differences += [f"{k} has shape {shape} instead of {wanted}" for k, shape, wanted in shapes if shape != wanted]
    kinds = [(k, x.dtype, want.dtype) for k, want, x in both if x.is_floating_point() != want.is_floating_point()]
    differences += [f"{k} has type {dtype} instead of {wanted}" for k, dtype, wanted in kinds]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        flag = "--size" if any("pos_embed has shape" in difference for difference in differences) else "--model"
        raise InputError(f"{source}: of another architecture: {'; '.join(differences[:3])}{more}; check {flag}")
    module.load_state_dict(weights)

"""Sets of features as files of safetensors: into which shards a set is cut, which of them exist, how one is written.

A file holds `features` [n, d], or [n, v, d] of v stored views, and in its metadata, as JSON, `labels` and `coarse` (the
names of each row's class and superclass) and `about` (how the features were made). `feature_files` reads it.
"""

import contextlib
import glob
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import util
from util import InputError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MOST_ROWS = 2**18  # of a shard: their names stand in a header, which safetensors limits to 100 MB


@dataclass(frozen=True)
class FeatureSet:
    """Rows of features that are to be written.

    name: first part of the files' names; shape: of a row, (d,) or (v, d); about: how the features are made, of plain
    types; labels, coarse: names of each row, None where unknown.
    """

    name: str
    rows: int
    shape: tuple[int, ...]
    dtype: str
    about: dict[str, Any]
    labels: list[str] | None = None
    coarse: list[str] | None = None


@dataclass(frozen=True)
class Shard:
    """One file of a set, and its rows, from `begin` to before `end`."""

    path: Path
    begin: int
    end: int


def plan_shards(of: FeatureSet, out: Path, megabytes: float) -> list[Shard]:
    """Return the files of a set, NAME-00000-of-00001.safetensors and so on, of at most so many megabytes and about
    equal.
    """
    row = DTYPES[of.dtype].itemsize * int(torch.tensor(of.shape).prod())
    most = min(MOST_ROWS, max(1, int(megabytes * 1e6 / row)))
    count = -(-of.rows // most)
    bounds = [i * of.rows // count for i in range(count + 1)]
    paths = [out / f"{of.name}-{i:05}-of-{count:05}.safetensors" for i in range(count)]
    return [Shard(*of_shard) for of_shard in zip(paths, bounds, bounds[1:], strict=False)]


def find_missing(of: FeatureSet, shards: list[Shard], flag: str) -> list[Shard]:
    """Find the shards that are not stored whole.

    Raises InputError, naming `flag`, for a shard that another command made, and for another shard of the same name,
    which a reader of all files of the set would take with them.
    """
    folder, planned = shards[0].path.parent, {shard.path for shard in shards}
    pattern = f"{glob.escape(of.name)}-[0-9]*-of-[0-9]*.safetensors"
    if other := next((path for path in sorted(folder.glob(pattern)) if path not in planned), None):
        raise InputError(f"{flag} {folder}: holds {other.name}, of a set in other shards; {WAY_OUT}")
    missing = []
    for shard in shards:
        found = read_about(shard.path)
        if found is None:
            missing.append(shard)
        elif difference := _find_difference(found, _describe(of, shard)):
            why = f"{shard.path.name} was made by another command ({difference})"
            raise InputError(f"{flag} {folder}: {why}; {WAY_OUT}")
    return missing


WAY_OUT = "remove it, or give another --out"


def read_about(path: Path) -> dict[str, Any] | None:
    """How the features of a file were made, {} where it does not say it; None where it is missing or not whole."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:  # which compares the file's size with its header
            return json.loads((file.metadata() or {}).get("about", "{}"))
    except (SafetensorError, OSError, ValueError):
        return None


def _describe(of: FeatureSet, shard: Shard) -> dict[str, Any]:
    rows = slice(shard.begin, shard.end)
    names = [x and x[rows] for x in (of.labels, of.coarse)]
    labels = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    where = {"rows": [shard.begin, shard.end], "of": of.rows, "labels_sha256": labels}
    return json.loads(json.dumps({**of.about, "dtype": of.dtype, "shape": of.shape, **where}))  # as it is read back


def _find_difference(old: dict[str, Any], new: dict[str, Any], above: str = "") -> str:
    """Find the first entry in which two descriptions differ, and how; "" where they are equal."""
    for key in {**old, **new}:
        one, other = old.get(key), new.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            if found := _find_difference(one, other, f"{above}{key}."):
                return found
        elif one != other:
            return f"{above}{key}: {_shorten(one)} there, {_shorten(other)} here"
    return ""


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def write_shard(of: FeatureSet, shard: Shard, features: Tensor, flag: str) -> None:
    """Write features [n, *shape] of a shard's rows, whole or not at all.

    The file has a hidden name until it is whole. Raises InputError, naming `flag`, where it cannot be written, or where
    a finite number does not fit the type.
    """
    from safetensors.torch import save

    stored = features.to(DTYPES[of.dtype]).reshape(shard.end - shard.begin, *of.shape).contiguous()
    if not stored.isfinite().all():
        raise InputError(f"--dtype {of.dtype}: a number is too large for it; give --dtype bfloat16 or float32")
    rows = slice(shard.begin, shard.end)
    metadata = {"about": _describe(of, shard)}
    metadata |= {key: x[rows] for key, x in (("labels", of.labels), ("coarse", of.coarse)) if x is not None}
    texts = {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    _write_whole(shard.path, save({"features": stored}, texts), flag)


def _write_whole(path: Path, content: bytes, flag: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")  # no pattern of a shell, or of glob, finds it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        hint = "the shards before it stay; the same command resumes"
        raise InputError(f"{flag} {path}: cannot be written ({util.reason(error)}); {hint}") from None

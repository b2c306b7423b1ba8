"""One file of features, of labels, or of both: .npy, .npz, .safetensors, .pt, Parquet, CSV.

Arrays of .npy, .safetensors and .pt files are mapped into memory, so that a file of any size opens at once.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import util
from datasets import text_files
from util import InputError

FEATURES = ("features", "embeddings", "embedding", "X")
LABELS = ("labels", "label", "y", "targets", "target")
CLASSES, SPLIT = ("classes", "class_names"), "split"
COARSE = ("coarse", "coarse_labels", "coarse_label", "superclass")
VALIDATION = {"valid": "val", "validation": "val", "dev": "val"}  # other words for a split


@dataclass
class Table:
    """What a file holds: features, None of a file of labels; labels by column, the finest first; names of integer
    labels; the split of each row.
    """

    path: str
    features: Tensor | None = None
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    classes: list[str] | None = None
    split: list[str] | None = None


def read_table(path: str, flag: str, label_columns: Sequence[str] = (), numeric: bool = False) -> Table:
    """Read a file of features, of labels, or of both, by its ending. numeric: the labels are the first column alone,
    numbers as names. Raises InputError, naming flag and file.
    """
    source, suffix = f"{flag} {path}", Path(path).suffix.lower()
    if suffix not in READERS:
        raise InputError(f"{source}: has another ending than those that are read: {', '.join(READERS)}")
    if not Path(path).is_file():
        raise InputError(f"{source}: {'is a folder, not a file' if Path(path).is_dir() else 'no such file'}")
    content = READERS[suffix](Path(path), source)
    if not isinstance(content, dict):
        content = {"features": content} if _is_matrix(content) else {"labels": content}
    keys = ", ".join(map(str, content)) or "none"
    missing = [name for name in label_columns if name not in content]
    if missing:
        raise InputError(f"{source}: has no column {missing[0]}; it has {keys}")
    features = _first(content, FEATURES)
    fine, coarse = ([name for name in options if name in content] for options in (LABELS, COARSE))
    names = list(label_columns) or fine[:1] + coarse
    if suffix in (".csv", ".tsv", ".txt"):
        content |= {name: content[name] if numeric else _integers(content[name]) for name in names}
        features = _numeric_columns(content, {*LABELS, *COARSE, *label_columns, SPLIT})
    if features is None and not names:
        known = f"neither features ({', '.join(FEATURES)}) nor labels ({', '.join(LABELS)})"
        raise InputError(f"{source}: has {known}; it has {keys}")
    classes, split = _first(content, CLASSES), content.get(SPLIT)
    table = Table(path, None if features is None else _checked(features, source))
    table.labels = {name: _as_labels(content[name], source, name, numeric) for name in names[: 1 if numeric else None]}
    table.classes = None if classes is None else _plain(classes)
    table.split = None if split is None else [VALIDATION.get(word, word) for word in _plain(split)]
    _check_counts(table, source)
    return table


def _check_counts(table: Table, source: str) -> None:
    """Raise InputError unless features, labels and split of a file have the same number of rows, and at least one."""
    counts = {"features": len(table.features)} if table.features is not None else {}
    counts |= {name: len(labels) for name, labels in table.labels.items()}
    counts |= {SPLIT: len(table.split)} if table.split is not None else {}
    if len({*counts.values()}) > 1:
        found = ", ".join(f"{n} of {name}" for name, n in counts.items())
        raise InputError(f"{source}: rows differ in number: {found}")
    if 0 in counts.values():
        raise InputError(f"{source}: holds no row")


def _first(content: dict, names: Iterable[str]):
    return next((content[name] for name in names if name in content), None)


def _plain(values) -> list[str]:
    values = values.to_pylist() if hasattr(values, "to_pylist") else values  # of pyarrow
    return [str(value) for value in values]


def _is_matrix(content) -> bool:
    return isinstance(content, np.ndarray | Tensor) and content.ndim >= 2


def _checked(features, source: str) -> Tensor:
    """Features as a tensor [n, d] or [n, v, d] of floating numbers."""
    x = torch.from_numpy(features) if isinstance(features, np.ndarray) else features
    if not isinstance(x, Tensor) or x.ndim not in (2, 3) or 0 in x.shape[1:]:
        shape = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"{source}: its features have the shape {shape}; it must be [n, d], or [n, views, d]")
    if not x.is_floating_point():
        kind = str(x.dtype).removeprefix("torch.")
        raise InputError(f"{source}: its features are of type {kind}; they must be floating-point numbers")
    return x


def _as_labels(values, source: str, name: str, numeric: bool = False) -> np.ndarray:
    """Return a column of labels [n] as int64, or names as objects of type str, which they are if numeric."""
    values = np.array(values.to_pylist()) if hasattr(values, "to_pylist") else values  # of pyarrow
    values = values.numpy() if isinstance(values, Tensor) else np.asarray(values)
    if numeric and values.ndim == 1:
        return np.array([str(value) for value in values.tolist()], dtype=object)
    if values.ndim != 1 or values.dtype.kind not in "iuUSO":
        shape = " x ".join(map(str, values.shape))
        raise InputError(f"{source}: {name} must be [n] integers or names, not {shape} of type {values.dtype}")
    return values.astype(np.int64) if values.dtype.kind in "iu" else values.astype(str).astype(object)


def _integers(cells: list[str]) -> list:
    """Return the cells of a text as integers, where all of them are."""
    return [int(cell) for cell in cells] if all(re.fullmatch(r"-?\d+", cell) for cell in cells) else cells


def _numeric_columns(content: dict, others: set[str]) -> np.ndarray | None:
    """Return the columns of a CSV that hold numbers, in their order, as float32; None where there is none."""
    columns = []
    for name, cells in content.items():
        if name not in others:
            try:
                columns.append(np.array([text_files.parse_number(cell) for cell in cells], np.float32))
            except ValueError:
                continue
    return np.stack(columns, 1) if columns else None


# ---- readers by ending -----------------------------------------------------------------------------------------------


def _read_npy(path: Path, source: str):
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{source}: {_why(error, 'a .npy file')}") from None


def _read_npz(path: Path, source: str) -> dict:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{source}: {_why(error, 'an .npz file')}") from None


def _why(error: Exception, form: str) -> str:
    if "pickle" in str(error):
        return "refused, it holds pickled objects; save plain arrays, and names as an array of type str"
    return f"not readable as {form} ({util.reason(error)})"


def _read_torch(path: Path, source: str):
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # of torch's older format, which cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load meets damage in many ways
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise InputError(f"{source}: refused, it holds pickled objects; save tensors and plain types") from None
        raise InputError(f"{source}: not readable as a file of torch.save ({util.reason(error)})") from None


def _read_safetensors(path: Path, source: str) -> dict:
    """Read the tensors, and the lists that the metadata holds as JSON: names cannot be tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return {key: json.loads(text) for key, text in (file.metadata() or {}).items() if text[:1] == "["} | content
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{source}: not readable as a safetensors file ({util.reason(error)})") from None


def _read_parquet(path: Path, source: str) -> dict:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f'{source}: needs pyarrow; pip install ".[parquet]"') from None
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{source}: not readable as Parquet ({util.reason(error)})") from None
    content: dict = {name: table.column(name).combine_chunks() for name in table.column_names}
    for name in set(FEATURES) & content.keys():
        content[name] = _stack_lists(content[name], source, name)
    about = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))  # where the hub writes class names
    label = next((name for name in LABELS if name in content), "")
    if names := about.get("info", {}).get("features", {}).get(label, {}).get("names"):
        content.setdefault(CLASSES[0], names)
    return content


def _stack_lists(column, source: str, name: str) -> np.ndarray:
    """Stack a column of lists of numbers as [n, d]."""
    import pyarrow
    from pyarrow import compute

    if not hasattr(column.type, "value_type"):
        raise InputError(f"{source}: the column {name} is of type {column.type}; it must hold lists of numbers")
    lengths, values = compute.list_value_length(column).unique(), column.flatten()
    if column.null_count or values.null_count or len(lengths) > 1:
        raise InputError(f"{source}: the lists of {name} differ in length, or have empty entries")
    if pyarrow.types.is_nested(values.type):
        raise InputError(f"{source}: the lists of {name} hold lists; it must be one list of numbers per row")
    return values.to_numpy(zero_copy_only=False, writable=True).reshape(len(column), -1)


def _read_csv(path: Path, source: str) -> dict:
    rows = text_files.read_rows(path, source)
    if not rows:
        raise InputError(f"{source}: is empty")
    (_, head), *rows = rows
    text_files.check_once(head, source, "column")
    text_files.check_widths(head, rows, source)
    columns = [[row[place] for _, row in rows] for place in range(len(head))]
    return dict(zip(head, columns, strict=True))


def read_lines(path: Path, source: str) -> list[str]:
    return [line.strip() for line in text_files.read_text(path, source).splitlines() if line.strip()]


READERS: dict[str, Callable] = {
    ".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors, ".pt": _read_torch, ".pth": _read_torch,
    ".parquet": _read_parquet, ".csv": _read_csv, ".tsv": _read_csv, ".txt": read_lines,
}  # fmt: skip

"""Images in Parquet files, as Hugging Face's library `datasets` writes them: a column of structs of bytes and path, and
columns of labels, whose names the schema has.

A group of rows is decoded whole, which a random order cannot wait for. So the images' bytes are copied, once, into a
file in the cache folder; labels are read from the Parquet file itself.
"""

import contextlib
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import util
from datasets import stored_files
from datasets.members import LIST_AGAIN, NO_BYTES, UNREADABLE, Archive
from datasets.stored_files import StoredFile
from util import InputError

ROWS = 64  # that are decoded at a time


def announce(files: list[Path]) -> None:
    """Say that images are about to be copied, where they are. Raises InputError where there is no room."""
    new = [path for path in files if not _find_copy(path).exists()]
    if not new:
        return
    place, need = stored_files.find_cache(), sum(path.stat().st_size for path in new)
    what = f"{new[0]}{f' and {len(new) - 1} others' if new[1:] else ''}: {need / 1e9:.2f} GB"
    with contextlib.suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        if need > (free := shutil.disk_usage(place).free):
            raise InputError(f"{what} do not fit into {place}, which has {free / 1e9:.2f} GB; {ANOTHER}")
    print(f"{what} of images are copied to {place}, once; {ANOTHER}", flush=True)


ANOTHER = "RINCE_CACHE=DIR names another cache folder"


def _find_copy(path: Path) -> Path:
    return Path(f"{stored_files.name_in_cache(path)}.images")


def open_parquet(path: Path) -> Archive:
    """Open the images of a file, its rows. Raises InputError where it holds no images, or cannot be copied."""
    state, data = stored_files.find_state(path), _find_copy(path)
    index = Path(f"{data}.npz")
    with stored_files.wait_for_others(path):
        kept = stored_files.read_arrays(index)
        if kept is None or kept["state"].tolist() != list(state) or not data.is_file():
            begin, size = _copy_images(path, data)
            stored_files.write_arrays(index, {"state": np.array(state), "begin": begin, "size": size})
        else:
            begin, size = kept["begin"], kept["size"]
    return Archive(path, StoredFile(data, LIST_AGAIN), None, begin, size)


def _copy_images(path: Path, data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write the bytes of a file's images to `data`, whole or not at all; where each begins, as members.Archive has it,
    and its size.
    """
    file = _open(path)
    column, total = _find_images(file, path), file.metadata.num_rows
    unfinished = util.temporary_name(data)
    begin, size, progress = array("q"), array("q"), util.Progress(f"copying the images of {path}", total, 20_000)
    try:
        data.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as out:
            for found in _read_bytes(file, column):
                begin.append(found if isinstance(found, int) else out.tell())
                size.append(0 if isinstance(found, int) else out.write(found))
                progress.tick(len(begin), f"{out.tell() / 1e9:.2f} GB")
        if begin and max(begin) == NO_BYTES:
            hint = "write it with the images embedded, as datasets' push_to_hub does"
            raise InputError(f"{path}: holds paths of images, and none of their bytes; {hint}")
        os.replace(unfinished, data)
    except OSError as error:
        raise InputError(f"{data}: cannot be written ({error.strerror or error}); {ANOTHER}") from None
    finally:
        progress.close()
        unfinished.unlink(missing_ok=True)
    return np.array(begin, dtype=np.int64), np.array(size, dtype=np.int64)


def _read_bytes(file: Any, column: str) -> Iterator[Any]:
    """Yield the bytes of each row's image in turn, NO_BYTES or UNREADABLE.

    Damage of a row group costs its rows from there on.
    """
    import pyarrow

    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(ROWS, row_groups=[group], columns=[column]):
                images = batch.column(0)
                for value in images.flatten()[0] if pyarrow.types.is_struct(images.type) else images:
                    yield value.as_buffer() if value.is_valid else NO_BYTES
                    rows -= 1
        except (pyarrow.ArrowException, OSError) as error:
            if getattr(error, "errno", None):  # of the disk, not of the file
                raise
        yield from [UNREADABLE] * rows


def _open(path: Path) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f'{path}: needs pyarrow; pip install ".[parquet]"') from None
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not readable as Parquet ({util.reason(error)})") from None


def _find_images(file: Any, path: Path) -> str:
    """Return the column of images as pyarrow names it: the first of structs of bytes and path, or of bytes."""
    import pyarrow

    for field in file.schema_arrow:
        if pyarrow.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return f"{field.name}.bytes"
        if pyarrow.types.is_binary(field.type) or pyarrow.types.is_large_binary(field.type):
            return field.name
    there = ", ".join(file.schema_arrow.names)
    raise InputError(f"{path}: has no column of images, structs of bytes and path; it has {there}")


def read_labels(path: Path, choose: Callable) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Columns of labels of a file, [n] objects, None where a row has none; and the class names of those that have them.

    choose: which of them, by the names of all columns of numbers or texts, and by those of class labels.
    Raises InputError where one cannot be read.
    """
    import pyarrow

    file, types = _open(path), pyarrow.types
    numbers = (types.is_integer, types.is_floating, types.is_boolean)
    plain = (*numbers, types.is_string, types.is_large_string, types.is_dictionary)
    found = [field.name for field in file.schema_arrow if any(is_of(field.type) for is_of in plain)]
    features = _read_features(file.schema_arrow.metadata)
    named = {name: features[name]["names"] for name in found if "names" in features.get(name, {})}
    wanted = choose(found, [*named])
    try:
        table = file.read(columns=wanted)
    except (pyarrow.ArrowException, OSError) as error:
        fault = f"its columns {', '.join(wanted)} cannot be read ({util.reason(error)})"
        raise InputError(f"{path}: {fault}") from None
    columns = {name: np.array([None, *table.column(name).to_pylist()], dtype=object)[1:] for name in wanted}
    return columns, {name: named[name] for name in wanted if name in named}


def _read_features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """Return what the library `datasets` wrote of the columns."""
    found = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    features = found.get("info", {}).get("features", {})
    return {name: of for name, of in features.items() if isinstance(of, dict)}

"""Files of similarity matrices, in CSV or npz, and of class names, in CSV or text."""

import csv
import io
import zipfile
from pathlib import Path

import numpy as np

import util
from datasets import text_files
from datasets.rankings.taxonomy import list_shipped, read_shipped
from util import InputError

HERE = Path(__file__).parent
ROBERTA = HERE / "imagenet100_roberta_cosine.csv"  # the published cosines of ImageNet-100's class names


# ---- matrices --------------------------------------------------------------------------------------------------------


def read_matrix(path: Path, flag: str = "--ranking") -> tuple[np.ndarray, list[str]]:
    """Read a similarity matrix as `read_square` has it -> [C, C], identifiers of the classes.

    Raises InputError, naming `flag`, unless it is symmetric, its diagonal is 1 and all lies in [-1, 1] (cosines are
    welcome).
    """
    source = f"{flag} {path}"
    table, names = read_square(path, source)
    if not (np.abs(table) <= 1).all():
        a, b = np.argwhere(~(np.abs(table) <= 1))[0]
        raise InputError(f"{source}: similarity of {names[a]} and {names[b]} is {table[a, b]}, not in [0, 1]")
    if np.abs(table - table.T).max() > 1e-6:
        a, b = np.argwhere(np.abs(table - table.T) > 1e-6)[0]
        ways = f"{table[a, b]} one way and {table[b, a]} back"
        raise InputError(f"{source}: not symmetric: {names[a]}, {names[b]} is {ways}")
    off = np.flatnonzero(np.abs(table.diagonal() - 1) > 1e-6)
    if len(off):
        raise InputError(f"{source}: similarity of {names[off[0]]} with itself is {table[off[0], off[0]]}, not 1")
    return (table + table.T) / 2, names  # what differs by rounding must not become two ranks


def read_square(path: Path, source: str) -> tuple[np.ndarray, list[str]]:
    """Read a square of numbers -> [C, C], identifiers of the classes.

    CSV: first line `class,a,b,...`, then a line a class, `a,1,0.75,...`, read as `text_files.read_rows` says.
    npz: arrays `similarity` [C, C] and `classes` [C]. Raises InputError, beginning with `source`, unless it is square,
    and its identifiers agree.
    """
    table, names, columns = (_read_npz if path.suffix == ".npz" else _read_csv)(path, source)
    if table.shape != (len(names), len(columns)) or len(names) != len(columns) or not names:
        shape = " x ".join(map(str, table.shape))
        hint = "a square of the classes, in a CSV with a first line `class,a,b,...`"
        raise InputError(f"{source}: has {len(names)} classes and {shape} numbers; it must be {hint}")
    text_files.check_once(names, source, "class")
    if util.match_spelling(columns, names) != names:
        raise InputError(f"{source}: header and first column must name the same classes, in the same order")
    return table, names


def _read_csv(path: Path, source: str):
    rows = text_files.read_rows(path, source)
    if not rows:
        raise InputError(f"{source}: not readable as a CSV matrix (it is empty)")
    (_, head), *rows = rows
    text_files.check_widths(head, rows, source)
    table = np.zeros((len(rows), len(head) - 1))
    for at, (line, row) in enumerate(rows):
        try:
            table[at] = [text_files.parse_number(cell) for cell in row[1:]]
        except ValueError as error:
            raise InputError(f"{source}, line {line}: not readable as a CSV matrix ({error})") from None
    return table, [row[0] for _, row in rows], head[1:]


def widen_numbers(table: np.ndarray) -> np.ndarray:
    """Numbers of any precision as float64, those of a narrower one as they are read: 0.9 of float32, not 0.89999998.

    So they are what a CSV of them holds, and at or below a threshold as there: of float16 and float32, the number of
    the fewest decimal places that is the same in that precision.
    """
    wide = table.astype(np.float64)
    if table.dtype.kind != "f" or table.dtype.itemsize >= wide.dtype.itemsize:
        return wide
    found = wide.copy()
    for places in range(12, -1, -1):
        short = np.round(wide, places)
        np.copyto(found, short, where=short.astype(table.dtype) == table)
    return found


def _read_npz(path: Path, source: str):
    try:
        with np.load(path, allow_pickle=False) as file:
            table, names = widen_numbers(file["similarity"]), [str(c) for c in file["classes"].reshape(-1)]
    except (OSError, ValueError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        fault = util.reason(error)
        raise InputError(f"{source}: not readable as arrays `similarity` and `classes` ({fault})") from None
    return table, names, names


def check_new(path: Path, flag: str) -> None:
    """Raise InputError, before any work, where a ranking's file would replace one, or be read as something else."""
    if path.suffix.lower() in (".yaml", ".yml", ".png", ".pdf", ".svg", ".jpg"):
        raise InputError(f"{flag} {path}: a ranking's name ends in .csv or .npz")
    if path.exists():
        raise InputError(f"{flag} {path}: exists and is not overwritten; give another name")


def write_matrix(path: Path, table: np.ndarray, classes: list[str], about: str) -> None:
    """Write a ranking file that `read_matrix` reads: npz by its suffix, else CSV. `about` says what it was made of.

    Raises InputError, and writes nothing, where a similarity is no number.
    """
    if len(off := np.argwhere(~np.isfinite(table))):
        a, b = (classes[i] for i in off[0])
        raise InputError(f"--out {path}: the similarity of {a} and {b} is not a number; nothing is written")
    if path.suffix == ".npz":
        content = io.BytesIO()
        np.savez_compressed(content, similarity=table, classes=np.array(classes), about=np.array(about))
        return util.write_file(path, content.getvalue())
    text = io.StringIO()
    text.write(f"# {about}\n")
    as_comment = any(name.startswith("#") for name in classes)  # what such a line would be without quotes
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if as_comment else csv.QUOTE_MINIMAL)
    writer.writerow(["class", *classes])
    for name, row in zip(classes, table, strict=True):
        writer.writerow([name, *(f"{x:.6g}" for x in row)])
    util.write_file(path, text.getvalue().encode())


# ---- class names in words --------------------------------------------------------------------------------------------


def read_names(path: Path, flag: str = "--names") -> dict[str, str]:
    """class -> name in words: a CSV of two columns, one class a line, whose second may be missing, or the classes of a
    data set whose superclasses ship, by its name.
    """
    if not path.exists() and str(path) in list_shipped():
        return name_classes(c for classes in read_shipped(str(path)).values() for c in classes)
    rows = [row for _, row in text_files.read_rows(path, f"{flag} {path}")]
    rows = rows[1:] if rows and rows[0][0].lower() in ("class", "wnid") else rows
    classes = [row[0] for row in rows]
    if not rows:
        raise InputError(f"{flag} {path}: is empty")
    text_files.check_once(classes, f"{flag} {path}", "class")
    return name_classes(classes) | {row[0]: row[1] for row in rows if len(row) > 1 and row[1]}


def name_classes(classes) -> dict[str, str]:
    """class -> name in words: ImageNet's wnids by the names in imagenet_names.csv, else `_` and `+` as blanks."""
    file = HERE / "imagenet_names.csv"
    known = dict(row for _, row in text_files.read_rows(file, str(file)))
    return {c: known.get(c, c.replace("_", " ").replace("+", " ")) for c in classes}

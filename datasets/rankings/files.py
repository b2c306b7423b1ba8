"""Files of rankings and class names: superclasses in YAML, similarity matrices in CSV or npz, names in CSV or text."""

import csv
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

import util
from datasets import texts
from util import InputError, closest

HERE = Path(__file__).parent
ROBERTA = HERE / "imagenet100_roberta_cosine.csv"  # the published cosines of ImageNet-100's class names


# ---- superclasses ----------------------------------------------------------------------------------------------------


def read_superclasses(path: Path, flag: str = "--ranking") -> dict[str, list[str]]:
    """`superclass: [classes]` from YAML; every class once. `flag` is named in errors."""
    if path.suffix in (".csv", ".npz"):
        raise InputError(f"{flag} {path}: superclasses are a YAML file of lines `superclass: [class, class, ...]`")
    groups = texts.read_yaml(path, f"{flag} {path}", as_written=True)
    if not isinstance(groups, dict) or not all(isinstance(v, list) and v for v in groups.values()):
        raise InputError(f"{flag} {path}: must be lines of `superclass: [class, class, ...]`")
    for name, classes in groups.items():
        if not all(isinstance(c, str) and c for c in (name, *classes)):
            raise InputError(f"{flag} {path}: {name}: an empty name, or something else than one; quote such names")
    for what, names in (("superclass", groups), ("class", (c for v in groups.values() for c in v))):
        if (again := util.twice(names)) is not None:
            raise InputError(f"{flag} {path}: {what} {again} stands in it twice")
    return groups


def shipped() -> list[str]:
    """Names of the superclasses that ship with a data set."""
    return sorted(f.stem for f in (HERE / "superclasses").glob("*.yaml"))


def known_superclasses(name: str) -> dict[str, list[str]]:
    """The superclasses that ship with a data set, by the name in its `Source`: one of `shipped`."""
    return read_superclasses(HERE / "superclasses" / f"{name}.yaml")


def chosen_superclasses(file: str | None, known: str | None) -> tuple[dict[str, list[str]] | None, str]:
    """superclass -> classes of --superclasses FILE, else those that ship under the name `known`, else None; and what
    errors call them.
    """
    if file:
        return read_superclasses(Path(file), "--superclasses"), f"--superclasses {file}"
    return (known_superclasses(known), known) if known else (None, "")


def of_each(classes, found: dict[str, Any], source: str) -> list:
    """What stands for each class in `found`, where its name may have another Unicode form. Raises InputError, beginning
    with `source`, where it lacks one of the classes.
    """
    names = dict(zip(util.spelt_as(found, classes), found.values(), strict=True))
    missing = [c for c in classes if c not in names]
    if missing:
        count = f"{len(missing)} in all" if len(missing) > 1 else "it alone"
        unused = [name for name in names if name not in classes]  # of these, one may be a wrong spelling
        near = closest(missing[0], unused)
        instead = f"; it has {near}, which is no class: did you mean {missing[0]}?" if near else ""
        raise InputError(f"{source}: lacks the class {missing[0]} of the data set ({count}){instead}")
    return [names[c] for c in classes]


# ---- matrices --------------------------------------------------------------------------------------------------------


def is_matrix(name: str) -> bool:
    """Whether a --ranking names a matrix file, existing or not."""
    return name.endswith((".csv", ".npz")) or Path(name).is_file()


def read_table(path: Path, flag: str = "--ranking") -> tuple[np.ndarray, list[str]]:
    """A similarity matrix -> [C, C], identifiers of the classes.

    CSV: first line `class,a,b,...`, then a line a class, `a,1,0.75,...`, read as `texts.read_rows` says.
    npz: arrays `similarity` [C, C] and `classes` [C]. Raises InputError, naming `flag`, unless it is square, its
    identifiers agree, it is symmetric, its diagonal is 1 and all lies in [-1, 1] (cosines are welcome).
    """
    if not path.exists():
        raise InputError(f"{flag} {path}: no such file")
    read = _read_npz if path.suffix == ".npz" else _read_csv
    table, names, columns = read(path, flag)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or not len(table) == len(names) == len(columns):
        shape = f"{len(names)} lines and {len(columns)} columns" if read is _read_csv else f"shape {table.shape}"
        raise InputError(
            f"{flag} {path}: has {shape}, {len(names)} classes; it must be square"
            + (", with a header line `class,...`" if read is _read_csv else "")
        )
    again = util.twice(names)
    if util.spelt_as(columns, names) != names or again is not None:
        fault = "" if again is None else f"; {again} stands in it twice"
        raise InputError(
            f"{flag} {path}: header and first column must name the same classes, each once, in order{fault}"
        )
    if not (np.abs(table) <= 1).all():
        a, b = np.argwhere(~(np.abs(table) <= 1))[0]
        raise InputError(f"{flag} {path}: similarity of {names[a]} and {names[b]} is {table[a, b]}, not in [0, 1]")
    if np.abs(table - table.T).max() > 1e-6:
        a, b = np.argwhere(np.abs(table - table.T) > 1e-6)[0]
        raise InputError(
            f"{flag} {path}: not symmetric: {names[a]}, {names[b]} is {table[a, b]} one way and {table[b, a]} back"
        )
    off = np.flatnonzero(np.abs(table.diagonal() - 1) > 1e-6)
    if len(off):
        raise InputError(f"{flag} {path}: similarity of {names[off[0]]} with itself is {table[off[0], off[0]]}, not 1")
    return (table + table.T) / 2, names  # what differs by rounding must not become two ranks


def _read_csv(path, flag):
    source = f"{flag} {path}"
    rows = texts.read_rows(path, source)
    if not rows:
        raise InputError(f"{source}: not readable as a CSV matrix (it is empty)")
    (_, head), *rows = rows
    table = []
    for line, row in rows:
        if len(row) != len(head):
            raise InputError(f"{source}, line {line}: has {len(row)} cells, the header has {len(head)}")
        try:
            table.append([texts.number(x) for x in row[1:]])
        except ValueError as error:
            raise InputError(f"{source}, line {line}: not readable as a CSV matrix ({error})") from None
    return np.array(table, dtype=np.float64).reshape(len(table), -1), [row[0] for _, row in rows], head[1:]


def as_read(table: np.ndarray) -> np.ndarray:
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


def _read_npz(path, flag):
    try:
        with np.load(path, allow_pickle=False) as file:
            table, names = as_read(file["similarity"]), [str(c) for c in file["classes"].reshape(-1)]
    except (OSError, ValueError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{flag} {path}: not readable as arrays `similarity` and `classes` ({util.reason(error)})"
        ) from None
    return table, names, names


def check_new(path: Path, flag: str) -> None:
    """Raise InputError, before any work, where a ranking's file would replace one, or be read as something else."""
    if path.suffix.lower() in (".yaml", ".yml", ".png", ".pdf", ".svg", ".jpg"):
        raise InputError(f"{flag} {path}: a ranking's name ends in .csv or .npz")
    if path.exists():
        raise InputError(f"{flag} {path}: is there already; nothing is overwritten")


def write_table(path: Path, table: np.ndarray, classes: list[str], about: str) -> None:
    """A ranking file that `read_table` reads: npz by its suffix, else CSV. `about` says what it was made of.

    Raises InputError, and writes nothing, where a similarity is no number.
    """
    if len(off := np.argwhere(~np.isfinite(table))):
        a, b = (classes[i] for i in off[0])
        raise InputError(f"--out {path}: the similarity of {a} and {b} is no number; nothing is written")
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
    """class -> name in words: a CSV of two columns, one class a line, put into words by `in_words`, or the classes of a
    data set whose superclasses ship, by its name.
    """
    if not path.exists() and str(path) in shipped():
        return in_words(c for classes in known_superclasses(str(path)).values() for c in classes)
    rows = [row for _, row in texts.read_rows(path, f"{flag} {path}")]
    rows = rows[1:] if rows and rows[0][0].lower() in ("class", "wnid") else rows
    classes = [row[0] for row in rows]
    again = util.twice(classes)
    if not rows or again is not None:
        raise InputError(f"{flag} {path}: " + (f"class {again} stands in it twice" if rows else "is empty"))
    return in_words(classes) | {row[0]: row[1] for row in rows if len(row) > 1 and row[1]}


def in_words(classes) -> dict[str, str]:
    """class -> name in words: ImageNet's wnids by the names in imagenet_names.csv, else `_` and `+` as blanks."""
    file = HERE / "imagenet_names.csv"
    known = dict(row for _, row in texts.read_rows(file, str(file)))
    return {c: known.get(c, c.replace("_", " ").replace("+", " ")) for c in classes}

"""Image lists: a CSV `path,label,split` instead of folders, for images that lie as they lie. Further columns are levels
of a taxonomy of the labels, which datasets.rankings reads from the same file. For outliers also OpenOOD's lists, lines
of `path label` in a .txt, whose images lie in a folder next to theirs.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import util
from datasets import text_files
from datasets.folders import SPLITS, find_real_paths
from util import InputError

OPENOOD = ("images_classic", "images_largescale")  # next to OpenOOD's benchmark_imglist


@dataclass(frozen=True)
class Taxonomy:
    """levels: names, the finest first; groups: class -> its group at each level, one lying in one of the next.

    A group is named by its whole path, so that two of one name under different groups are two.
    """

    levels: tuple[str, ...]
    groups: dict[str, tuple[tuple[str, ...], ...]]


def is_list(path: Path) -> bool:
    """Whether a --data_folder is an image list, existing or not."""
    return path.suffix.lower() in (".csv", ".txt")


def is_header(head: list[str]) -> bool:
    """Whether a table with this first line is an image list."""
    return head[:2] == ["path", "label"]


def read_list(
    path: Path, split: str, outliers: bool = False, values: str | None = None
) -> tuple[list[str], list[int], list[str]]:
    """Images, labels and sorted classes of a split of a list: "train", "test" (rows of val or test), or "all". Of
    outliers, a list without splits is taken whole, as a folder without them is. values: the column of numbers that are
    the labels, of which validation may have others.

    Paths are relative to the list's own folder. The whole list is looked at, whichever split is asked for. Raises
    InputError, naming file and line, for a file that is missing or there twice, an unknown split, or a label of test
    images that no training image has.
    """
    if path.suffix.lower() == ".txt":
        if not outliers:
            raise InputError(f"{path}: lines of `path label` are for OOD images alone; give a CSV path,label,split")
        return _read_openood(path)
    rows, head = _read_rows(path)
    column = head.index("split") if "split" in head else None
    if values and values not in head:
        raise InputError(f"{path}: has no column {values}; it has {', '.join(head)}")
    label_column = head.index(values or "label")
    if outliers and column is None:
        split = "all"
    files = find_images([(line, row[0]) for line, row in rows], path.parent, str(path))
    spelling: dict[str, str] = {}
    labels = [spelling.setdefault(util.one_form(row[label_column]), row[label_column]) for _, row in rows]
    parts = ["train" if column is None else row[column] for _, row in rows]
    trained = {label for label, part in zip(labels, parts, strict=True) if part == "train"}
    for (line, _), label, part in zip(rows, labels, parts, strict=True):
        if part not in SPLITS["all"]:
            raise InputError(f"{path}, line {line}: split {part} is unknown; write train, val or test")
        if trained and label not in trained and not values:
            raise InputError(f"{path}, line {line}: no training image has the label {label}")
    chosen = [i for i, part in enumerate(parts) if part in SPLITS[split]]
    if not chosen:
        hint = "; it has no column split, so that all are training images" if column is None else ""
        raise InputError(f"{path}: has no row of the split {' or '.join(SPLITS[split])}{hint}")
    return [files[i] for i in chosen], *number_labels([labels[i] for i in chosen])


def find_images(rows: list[tuple[int, str]], root: Path, source: str, home: str = "the list's folder") -> list[str]:
    """Paths of the images that lines of a table or list name, below `root`.

    Raises InputError, naming the line, for a missing one, or one that is the same file as an earlier one. home: what
    the names are relative to, in words.
    """
    images = [str(root / name) for _, name in rows]
    seen: dict[str, int] = {}
    for (line, name), image, real in zip(rows, images, find_real_paths(images), strict=True):
        if not os.path.isfile(image):
            raise InputError(f"{source}, line {line}: the image {image} does not exist; paths are relative to {home}")
        if seen.setdefault(real, line) != line:
            raise InputError(f"{source}, line {line}: the image {name} is also in line {seen[real]}; name it once")
    return images


def number_labels(labels: Sequence[str], key=util.one_form) -> tuple[list[int], list[str]]:
    """Return each label's number among the sorted classes, and these; two Unicode forms of a label are one class."""
    spelling: dict[str, str] = {}
    found = [spelling.setdefault(util.one_form(label), label) for label in labels]
    classes = sorted(spelling.values(), key=key)
    number = {name: i for i, name in enumerate(classes)}
    return [number[label] for label in found], classes


def _read_openood(path: Path) -> tuple[list[str], list[int], list[str]]:
    """Images, labels and classes of a list of OpenOOD's download, whose paths are relative to a folder of OPENOOD in
    the same place, or to the list's own.
    """
    lines = enumerate(text_files.read_text(path, str(path)).splitlines(), 1)
    rows = [(number, line.rsplit(maxsplit=1)) for number, line in lines if line.strip()]
    if not rows or any(len(row) != 2 for _, row in rows):
        raise InputError(f"{path}: must be lines of `path label`, an image and its class, as OpenOOD's lists are")
    places = [path.parent, *(above / name for above in path.absolute().parents[:4] for name in OPENOOD)]
    first = rows[0][1][0]
    root = next((place for place in places if (place / first).is_file()), None)
    if root is None:
        where = " or ".join(OPENOOD)
        raise InputError(f"{path}: the image {first} is neither in {where} near the list nor in the folder of the list")
    images = find_images([(line, row[0]) for line, row in rows], root, str(path), str(root))
    return images, *number_labels([row[1] for _, row in rows])


def _read_rows(path: Path) -> tuple[list[tuple[int, list[str]]], list[str]]:
    """Read the rows of a list with their lines, and the names of its columns."""
    rows = text_files.read_rows(path, str(path))
    head = rows[0][1] if rows else []
    if not is_header(head) or len(set(head)) < len(head):
        raise InputError(f"{path}: the first line of an image list must be `path,label`, or `path,label,split`")
    if len(rows) < 2:
        raise InputError(f"{path}: names no image")
    text_files.check_widths(head, rows[1:], str(path))
    return rows[1:], head

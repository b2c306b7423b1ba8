"""Images as they lie in fewer files: Parquet, WebDataset's shards, a zip of class folders, a list metadata.jsonl.

`find` knows by content what a folder, file or pattern holds, and `read` gives its images, labels and classes.
"""

import glob
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

import util
from datasets import features, lists, members, parquet_images, text_files
from datasets.feature_files import COARSE, LABELS, VALIDATION, read_lines
from datasets.folders import SPLITS, LeftOut, find_images_below, holds_classes, is_companion, list_entries
from util import InputError

METADATA, FILE_NAME = "metadata.jsonl", "file_name"
IMAGES_IN = (".zip", ".tar", ".parquet")
COMPRESSED = (".tar.gz", ".tgz")
ENDINGS = (*IMAGES_IN, *COMPRESSED, ".jsonl")
WORDS = {**{word: word for word in SPLITS["all"]}, "training": "train", **VALIDATION}  # for a split, in names
IN_NAME = re.compile(rf"(?<![a-z])({'|'.join(WORDS)})(?![a-z])")


@dataclass(frozen=True)
class Labels:
    """Which labels of images count: columns, the finest first, () for the usual ones; class_names: a file of names of
    integer labels; numeric: the first column alone, of numbers; optional: as of outliers, which are one class where
    they have none.
    """

    columns: Sequence[str] = ()
    class_names: str | None = None
    numeric: bool = False
    optional: bool = False


USUAL = Labels()


class Shards(NamedTuple):
    """What was found. place: as the user gave it; kind: an ending of ENDINGS; files: by split, "" where their names do
    not say it.
    """

    place: Path
    kind: str
    files: dict[str, list[Path]]

    @property
    def root(self) -> Path:
        """The folder that they lie in."""
        return self.place if self.place.is_dir() else next(iter(self.files.values()))[0].parent


class Part(NamedTuple):
    """What one file, or all, hold: images; columns: of labels, [n] objects, None where one is missing; names: of
    integer labels, by column; splits: [n], "" where none is said; left_out.
    """

    images: list
    columns: dict[str, np.ndarray]
    names: dict[str, list[str]]
    splits: np.ndarray
    left_out: LeftOut

    def select(self, rows: np.ndarray) -> "Part":
        """Select these of the images."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        return self._replace(images=[self.images[i] for i in rows], columns=columns, splits=self.splits[rows])


# ---- what is there ---------------------------------------------------------------------------------------------------


def find(place: Path) -> Shards | None:
    """Find what a --data_folder holds: a file, a pattern as shard-{000..146}.tar, or a folder of such files; else None.

    Raises InputError where a file is missing, or compressed as a whole.
    """
    if _find_ending(place) and not place.is_dir():
        return _sort_files(place, _expand(place))
    if not place.is_dir():
        return None
    home = place.parent if place.name in WORDS else place
    folders = (home, home / "data", *(home / word for word in WORDS))
    found = [file for folder in folders for file in _list_files(folder)]
    if found and _holds_other_images(home):
        found = [file for file in found if file.name == METADATA and _tells_labels(file)]
    elif found and all(_find_ending(file) in COMPRESSED for file in found) and find_images_below(home, LeftOut()):
        found = []  # what the images were downloaded in
    return _sort_files(place, found) if found else None


def _find_ending(file: Path) -> str:
    return next((ending for ending in ENDINGS if file.name.lower().endswith(ending)), "")


def _list_files(folder: Path) -> list[Path]:
    """List the shards of a folder, and its list of images."""
    if not folder.is_dir():
        return []
    kinds = {entry.name: _find_ending(Path(entry.name)) for entry in list_entries(folder)}
    kinds = {name: kind for name, kind in kinds.items() if not is_companion(name)}
    return [folder / name for name, kind in kinds.items() if name == METADATA or kind not in ("", ".zip", ".jsonl")]


def _tells_labels(listed: Path) -> bool:
    """Whether a list has labels of its own, in place of the folders' names."""
    return bool(set(LABELS) & _read_lines(listed)[0][1].keys())


def _holds_other_images(folder: Path) -> bool:
    """Whether a folder has class folders, or packs, so that shards next to them are what they were made of."""
    return holds_classes(folder) or any((folder / f"{word}.pack").exists() for word in SPLITS["all"])


def _expand(pattern: Path) -> list[Path]:
    """List the files that a pattern names, all of which must exist: {000..146}, {train,val}, *."""
    names = [str(pattern)]
    while found := re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", names[0]):
        first, last, words = found.groups()
        if not words and int(first) > int(last):
            raise InputError(f"{pattern}: {found[0]} names no file; the first number must not be larger than the last")
        parts = words.split(",") if words else [f"{i:0{len(first)}}" for i in range(int(first), int(last) + 1)]
        names = [name.replace(found[0], part, 1) for name in names for part in parts]
    files = []
    for name in names:
        there = [name] if os.path.exists(name) else sorted(glob.glob(name))
        if not there:
            raise InputError(f"{name}: no such file")
        files += map(Path, there)
    return files


def _sort_files(place: Path, files: list[Path]) -> Shards:
    """Sort the files by split. Raises InputError where they are of several kinds, or compressed."""
    kinds = {_find_ending(file): file for file in reversed(files)}
    kind, first = next(iter(kinds.items()))
    if len(kinds) > 1:
        raise InputError(
            f"{place}: holds {' and '.join(str(f) for f in kinds.values())}, images in two forms; move one"
        )
    if kind in COMPRESSED:
        raise InputError(f"{first}: is compressed, so that no image is found without all before it; {members.UNZIP}")
    by_split: dict[str, list[Path]] = {}
    for file in files:
        named = IN_NAME.search(file.name.lower())
        word = WORDS[named[1]] if named else WORDS.get(file.parent.name.lower(), "")
        by_split.setdefault("" if files == [place] else word, []).append(file)
    return Shards(place, kind, by_split)


# ---- reading ---------------------------------------------------------------------------------------------------------


def read(shards: Shards, split: str, labels: Labels = USUAL):
    """Images, labels, classes, what is left out, and a taxonomy, or None, of a split: "train", "test" or "all".

    Where neither files nor what they hold say a split, all are for training; outliers are then taken whole.
    Raises InputError, naming file and member.
    """
    word = next((word for word in SPLITS[split] if word in shards.files), "")
    files = shards.files.get(word, [])
    if split == "all" or (labels.optional and not files):
        files = [file for of_split in shards.files.values() for file in of_split]
    unread = [file for file in shards.files.get("", ()) if "train" in shards.files and file not in files]
    if shards.kind in (".tar", ".parquet"):
        (members if shards.kind == ".tar" else parquet_images).announce(files)
    parts = {file: READERS[shards.kind](file, labels) for file in files}
    if not any(part.columns for part in parts.values()):
        parts = {file: _label_by_folder(part, shards.place, labels) for file, part in parts.items()}
    part = _choose_split(_join(parts), split, word, labels) if parts else None
    if part is None or not part.images:
        named = " or ".join(f"{word}-0.tar" for word in SPLITS[split])
        hint = f"name files or folders by split, such as {named}; labels are class folders, or KEY.cls next to KEY.jpg"
        raise InputError(f"{shards.place}: holds no {'training' if split == 'train' else 'validation'} image; {hint}")
    for file in unread:
        part.left_out.add("files whose names say no split", str(file))
    try:
        return part.images, *_number(part, files, labels, shards.root)
    except InputError:
        if not labels.optional:
            raise
        return part.images, [0] * len(part.images), [shards.place.stem], part.left_out, None


def _join(parts: dict[Path, Part]) -> Part:
    """All files as one. Raises InputError where they have other columns, or class names."""
    full = {file: part for file, part in parts.items() if part.images} or parts
    begin, first = next(iter(full.items()))
    for file, part in full.items():
        if part.columns.keys() != first.columns.keys() or part.names != first.names:
            what = "columns of labels" if part.names == first.names else "class names"
            raise InputError(f"{file}: its {what} are others than those of {begin}")
    columns = {name: np.concatenate([part.columns[name] for part in full.values()]) for name in first.columns}
    splits = np.concatenate([part.splits for part in full.values()])
    images, left_out = [x for part in full.values() for x in part.images], LeftOut()
    for part in parts.values():
        left_out += part.left_out
    return Part(images, columns, first.names, splits, left_out)


def _choose_split(part: Part, split: str, word: str, labels: Labels) -> Part:
    """Choose the images of a split; word: the one that the files' names say, if any, which counts more."""
    if split == "all" or word:
        return part
    for there in SPLITS[split]:
        if there in part.splits:
            return part.select(np.flatnonzero(part.splits == there))
    whole = labels.optional or (split == "train" and not any(part.splits))
    return part if whole else part.select(np.arange(0))


# ---- readers of one file ---------------------------------------------------------------------------------------------


def _read_tar(path: Path, labels: Labels) -> Part:
    archive, index = members.open_tar(path)
    columns = {}
    for name in _choose_columns([*index.columns], [], path, labels) if index.columns else ():
        values, codes = index.columns[name]
        columns[name] = np.array([*values, None], dtype=object)[codes]
    part = Part(archive.members(), columns, {}, _no_splits(len(index.names)), index.left_out)
    if not index.columns:
        return part
    # of KEY.jpg and KEY.mask.png, the second is no image of the set
    own = np.array([name.rpartition(b"/")[2].count(b".") == 1 for name in index.names.tolist()], dtype=bool)
    return part if own.all() else part.select(np.flatnonzero(own))


def _read_zip(path: Path, labels: Labels) -> Part:
    archive, left_out = members.open_zip(path)
    return Part(archive.members(), {}, {}, _no_splits(len(archive.begin)), left_out)


def _read_parquet(path: Path, labels: Labels) -> Part:
    choose = partial(_choose_columns, path=path, labels=labels)
    columns, names = parquet_images.read_labels(path, choose)
    archive = parquet_images.open_parquet(path)
    if not columns:  # of outliers
        columns = {"file": np.full(len(archive.begin), path.stem, dtype=object)}
    return Part(archive.members(), columns, names, _no_splits(len(archive.begin)), LeftOut())


def _read_metadata(path: Path, labels: Labels) -> Part:
    """Read a list of lines {"file_name": ..., "label": ...}, as Hugging Face's imagefolder has it."""
    rows = _read_lines(path)
    lacking = next((line for line, row in rows if not isinstance(row.get(FILE_NAME), str)), None)
    if lacking:
        raise InputError(f"{path}, line {lacking}: names no image; it must have a {FILE_NAME}")
    images = lists.find_images([(line, row[FILE_NAME]) for line, row in rows], path.parent, str(path))
    wanted = _choose_columns([name for name in rows[0][1] if name != FILE_NAME], [], path, labels)
    columns = {name: np.array([None, *(row.get(name) for _, row in rows)], dtype=object)[1:] for name in wanted}
    said = [str(row.get("split") or row[FILE_NAME].removeprefix("./").partition("/")[0]) for _, row in rows]
    for (line, row), word in zip(rows, said, strict=True):
        if row.get("split") and word not in WORDS:
            raise InputError(f"{path}, line {line}: split {word} is unknown; write train, val or test")
    splits = np.array([WORDS.get(word, "") for word in said], dtype=object)
    if not columns:  # of outliers
        columns = {"file": np.full(len(rows), path.absolute().parent.name, dtype=object)}
    return Part(images, columns, {}, splits, LeftOut())


def _read_lines(path: Path) -> list[tuple[int, dict]]:
    """Read the objects of a JSON Lines file, with their lines."""
    rows = []
    for number, line in enumerate(text_files.read_text(path, str(path)).split("\n"), 1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except ValueError as error:
                raise InputError(f"{path}, line {number}: not readable as JSON ({util.reason(error)})") from None
            if not isinstance(rows[-1][1], dict):
                raise InputError(f"{path}, line {number}: must be an object, {{...}}")
    if not rows:
        raise InputError(f"{path}: names no image")
    return rows


READERS = {".tar": _read_tar, ".zip": _read_zip, ".parquet": _read_parquet, ".jsonl": _read_metadata}


def _no_splits(count: int) -> np.ndarray:
    return np.full(count, "", dtype=object)


def _choose_columns(there: list[str], named: list[str], path: Path, labels: Labels) -> list[str]:
    """Choose the columns of labels, the finest first: those that are asked for; else by usual names; else those of
    class labels, `named`. Raises InputError where there is none.
    """
    missing = next((name for name in labels.columns if name not in there), None)
    if missing and not labels.optional:
        raise InputError(f"{path}: has no column {missing}; it has {', '.join(there) or 'none'}")
    if labels.columns and not missing:
        return [*labels.columns]
    usual = [name for name in ("cls", *LABELS, "txt") if name in there][:1]
    found = [*usual, *(name for name in COARSE if name in there)] if usual else named
    if not found and not labels.optional:
        raise InputError(f"{path}: has no labels, but {', '.join(there) or 'no columns'}; give --label_columns")
    return found


def _label_by_folder(part: Part, place: Path, labels: Labels) -> Part:
    """Label the images of a tar or zip of class folders, with or without train/ and val/ above them, in the order that
    they have where it is unpacked. Images that lie in no class folder do not count, but as outliers.
    """
    if labels.columns:
        raise InputError(f"{place}: has no column {labels.columns[0]}; its classes are folders")
    paths = [image.archive.name(image.row).split("/") for image in part.images]
    while len({path[0] for path in paths}) == 1 and min(map(len, paths)) > 2 and paths[0][0].lower() not in WORDS:
        paths = [path[1:] for path in paths]  # a folder that holds all
    splits = [WORDS.get(path[0].lower(), "") if len(path) > 1 else "" for path in paths]
    if any(splits):
        paths = [path[bool(word) :] for path, word in zip(paths, splits, strict=True)]
    classes = [path[0] if len(path) > 1 else place.stem if labels.optional else "" for path in paths]
    order = sorted(
        (util.one_form(name), path, i) for i, (name, path) in enumerate(zip(classes, paths, strict=True)) if name
    )
    rows = np.array([i for *_, i in order], dtype=int)
    part = part._replace(columns={"folder": np.array(classes, dtype=object)}, splits=np.array(splits, dtype=object))
    return part.select(rows)


# ---- from columns to labels ------------------------------------------------------------------------------------------


def _number(part: Part, files: list[Path], labels: Labels, root: Path):
    """Labels [n], classes, what is left out, and the taxonomy of several columns, else None."""
    finest, *others = part.columns
    columns = {name: _check_column(part, name, labels) for name in part.columns}
    if labels.numeric:
        return *lists.number_labels([*map(str, columns[finest])]), part.left_out, None
    names = part.names.get(finest) or _read_names(root)
    if labels.class_names:
        names = read_lines(Path(labels.class_names), f"--class_names {labels.class_names}")
    by_column = {**part.names, finest: names}
    for name, values in columns.items():
        _check_names(part, name, values, by_column.get(name))
    numbers, classes = features.number_column(columns[finest], labels.class_names, names, str(files[0]))
    if not others:
        return numbers, classes, part.left_out, None
    levels = {finest: (classes, np.asarray(numbers))}
    for name in others:
        groups, of = features.factorize(columns[name])
        levels[name] = ([by_column[name][group] for group in groups] if name in by_column else groups), of
    return numbers, classes, part.left_out, features.nest(levels, str(files[0]))


def _check_column(part: Part, name: str, labels: Labels) -> np.ndarray:
    """Return a column as integers [n], or as objects of type str. Raises InputError naming the first image that has
    none, or one of another kind than the first.
    """
    values = part.columns[name]
    kinds = [type(value) for value in values]
    for i, kind in enumerate(kinds):
        if kind not in (int, str) and not (labels.numeric and kind is float):
            what = "has no label" if values[i] is None else f"has the label {values[i]}, neither an integer nor a name"
            raise InputError(f"{part.images[i]}: {what} ({name})")
        if kind is not kinds[0] and not labels.numeric:
            words = {int: "an integer", str: "a name"}
            mixed = f"has {words[kind]} as label, {values[i]}, and {part.images[0]} {words[kinds[0]]} ({name})"
            raise InputError(f"{part.images[i]}: {mixed}")
    return values.astype(np.int64) if kinds[0] is int and not labels.numeric else values


def _check_names(part: Part, column: str, values: np.ndarray, names: list[str] | None) -> None:
    """Raise InputError naming the first image whose label is outside the class names."""
    if names is None or values.dtype.kind != "i":
        return
    off = np.flatnonzero((values < 0) | (values >= len(names)))
    if len(off):
        outside = f"its {column} is {values[off[0]]}, and there are {len(names)} class names; labels count from 0"
        raise InputError(f"{part.images[off[0]]}: {outside}")


def _read_names(root: Path) -> list[str] | None:
    """Return the class names of classes.txt next to the files, or above them."""
    found = next((file for place in (root, root.parent) if (file := place / "classes.txt").is_file()), None)
    return read_lines(found, str(found)) if found else None

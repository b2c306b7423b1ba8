"""Data sets of features: rows of files, in memory or mapped into it, with labels, class names and superclasses."""

import glob
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import util
from datasets.feature_files import Table, read_lines, read_table
from datasets.folders import SPLITS
from datasets.lists import Taxonomy, number_labels
from util import InputError


@dataclass(frozen=True)
class FeatureFiles:
    """Which files hold the features of a data set, as the options name them.

    train, val: paths or glob patterns; labels, val_labels: files of labels, for features without; class_names: a file
    of names, one per line, of integer labels; label_columns: columns of labels, the finest first, where they have
    names of their own; flag: of `train`, for errors; labeled: False where labels may be missing, as of outliers;
    numeric: the labels are the first column alone, of numbers.
    """

    train: Sequence[str]
    val: Sequence[str] = ()
    labels: Sequence[str] = ()
    val_labels: Sequence[str] = ()
    class_names: str | None = None
    label_columns: Sequence[str] = ()
    flag: str = "--features"
    labeled: bool = True
    numeric: bool = False


class FeatureRows:
    """Rows of files of features, in the order of the files: [n, d], or [n, v, d] of v stored views per item.

    parts: the arrays; files: the path of each; rows: which of all their rows, in which order (None: all); flag: of the
    files, for errors.
    """

    def __init__(self, parts: list[Tensor], files: list[str], rows: Tensor | None = None, flag: str = "--features"):
        self.parts, self.files, self.flag = parts, files, flag
        self.starts = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
        self.rows = torch.arange(int(self.starts[-1])) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        """Dimensions of a row."""
        return self.parts[0].shape[-1]

    @property
    def views(self) -> int:
        """Stored views of an item."""
        return self.parts[0].shape[1] if self.parts[0].ndim == 3 else 1

    def __getitem__(self, chosen: Sequence[int] | np.ndarray | Tensor) -> "FeatureRows":
        """Return these of the rows."""
        return FeatureRows(self.parts, self.files, self.rows[torch.as_tensor(chosen, dtype=torch.long)], self.flag)

    def names(self) -> list[str]:
        """Of each item, the real path of its file, a colon and its row, from 0."""
        return self._name_rows(self.rows, [str(Path(file).resolve()) for file in self.files])

    def check_width(self, other: "FeatureRows") -> None:
        """Raise InputError where the rows of another set have another number of dimensions."""
        if other.dim != self.dim:
            there = f"in {self.flag} {self.files[0]} it has {self.dim}"
            raise InputError(f"{other.flag} {other.files[0]}: a row has {other.dim} dimensions, {there}")

    def name(self, index: int) -> str:
        """File and row of an item, as FILE:ROW; rows count from 0."""
        return self._name_rows(self.rows[index : index + 1], self.files)[0]

    def _name_rows(self, rows: Tensor, files: list[str]) -> list[str]:
        part = torch.searchsorted(self.starts, rows, right=True) - 1
        places = zip(part.tolist(), (rows - self.starts[part]).tolist(), strict=True)
        return [f"{files[p]}:{row}" for p, row in places]

    def take(self, indices: Tensor, view: Tensor | None = None) -> Tensor:
        """Rows [n, d] in float32; view: [n] which of the stored views, the first where None.

        Raises InputError for a row that is NaN, infinite or zero.
        """
        rows = self.rows[indices]
        if len(self.parts) == 1:
            found = self._of_part(0, rows, view)
        else:
            found = torch.empty(len(rows), self.dim)
            for part in range(len(self.parts)):
                inside = ((self.starts[part] <= rows) & (rows < self.starts[part + 1])).nonzero()[:, 0]
                if len(inside):
                    of_view = None if view is None else view[inside]
                    found[inside] = self._of_part(part, rows[inside] - self.starts[part], of_view)
        if not bool(_has_direction(found).all()):
            raise InputError(self._describe_faults())
        return found

    def _of_part(self, part: int, rows: Tensor, view: Tensor | None) -> Tensor:
        x = self.parts[part]
        if x.ndim == 2:
            return x[rows].float()
        return x[rows, 0 if view is None else view].float()

    def _describe_faults(self) -> str:
        """Return a line on the first file that holds rows without a direction: how many, and the first."""
        for part, file in zip(self.parts, self.files, strict=True):
            bad = []
            for begin in range(0, len(part), 2**14):
                fault = ~_has_direction(part[begin : begin + 2**14].float()).reshape(-1, self.views).all(1)
                bad += (begin + fault.nonzero()[:, 0]).tolist()
            if bad:
                what = "zero" if not part[bad[0]].any() else "NaN or infinite"
                count = f"{len(bad)} of {len(part)} rows are NaN, infinite or zero"
                return f"{self.flag} {file}: {count}; the first is row {bad[0]} ({what})"
        raise AssertionError("a row was refused, and none is at fault")


def _has_direction(x: Tensor) -> Tensor:
    """Which vectors [..., d] are neither zero nor NaN nor infinite."""
    norms = torch.linalg.vector_norm(x, dim=-1)
    return (norms > 0) & (norms < torch.inf)


def expand_patterns(patterns: Sequence[str], flag: str) -> list[str]:
    """List the files of paths and glob patterns, those of a pattern in the order of their names."""
    files: list[str] = []
    for pattern in patterns:
        found = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern))
        if not found:
            raise InputError(f"{flag} {pattern}: no such file")
        files += found
    return files


def read_features(files: FeatureFiles, split: str, whole: bool = False):
    """Rows, labels [n], classes in sorted order, and their taxonomy, of a split: "train", "test", "all".

    Columns of labels after the first are its levels; it is None without. Without files of validation, a column `split`
    decides. whole: all rows of `train`, whatever the split.
    Raises InputError where a file cannot be read, or the files contradict one another.
    """
    if split == "test" and files.val and not whole:
        return _read_part(files.val, files.val_labels, f"{files.flag}_val", files, ())
    parts = () if files.val or whole or split == "all" else SPLITS[split]
    return _read_part(files.train, files.labels, files.flag, files, parts)


def _read_part(patterns, label_patterns, flag: str, files: FeatureFiles, parts: tuple[str, ...]):
    """`read_features` of these files; parts: the values of the column `split` that count, () for all rows."""
    columns_here = () if label_patterns else files.label_columns
    tables = [read_table(path, flag, columns_here, files.numeric) for path in expand_patterns(patterns, flag)]
    rows = _stack_rows(tables, flag)
    labeled, label_flag = tables, flag
    if label_patterns:
        label_flag = _labels_flag(flag)
        paths = expand_patterns(label_patterns, label_flag)
        labeled = [read_table(path, label_flag, files.label_columns, files.numeric) for path in paths]
    if not all(table.labels for table in labeled):
        if files.labeled:
            hint = f"give {_labels_flag(flag)}, or --label_columns for columns with names of their own"
            raise InputError(f"{label_flag} {labeled[0].path}: has no labels; {hint}")
        return rows, [0] * len(rows), ["features"], None
    columns = [_join_column(labeled, place, label_flag) for place in range(len(labeled[0].labels))]
    if len(columns[0]) != len(rows):
        raise InputError(f"{label_flag} {labeled[0].path}: has {len(columns[0])} labels, {flag} has {len(rows)} rows")
    if parts:
        chosen = _rows_of_split(labeled, flag, parts)
        rows, columns = rows[chosen], [column[chosen] for column in columns]
    source = f"{label_flag} {labeled[0].path}"
    labels, classes = number_column(columns[0], files.class_names, labeled[0].classes, source)
    if len(columns) == 1:
        return rows, labels, classes, None
    levels = [(classes, labels), *map(factorize, columns[1:])]
    return rows, labels, classes, nest(dict(zip(labeled[0].labels, levels, strict=True)), source)


def _stack_rows(tables: list[Table], flag: str) -> FeatureRows:
    """Stack the rows of all tables. Raises InputError where one has no features, or others of another shape."""
    arrays = []
    for table in tables:
        if table.features is None:
            raise InputError(f"{flag} {table.path}: holds labels alone; give them as {_labels_flag(flag)}")
        shape, first = list(table.features.shape[1:]), list((arrays or [table.features])[0].shape[1:])
        if shape != first:
            raise InputError(f"{flag} {table.path}: a row has the shape {shape}, in {tables[0].path} it is {first}")
        arrays.append(table.features)
    return FeatureRows(arrays, [table.path for table in tables], flag=flag)


def _labels_flag(flag: str) -> str:
    return "--labels_val" if flag.endswith("_val") else "--labels"


def _join_column(tables: list[Table], place: int, flag: str) -> np.ndarray:
    """One column of labels over all files, [n]: integers, or objects of type str."""
    parts = []
    for table in tables:
        if len(table.labels) <= place:
            raise InputError(f"{flag} {table.path}: has fewer columns of labels than {tables[0].path}")
        parts.append([*table.labels.values()][place])
    if len({part.dtype.kind for part in parts}) > 1:
        raise InputError(f"{flag}: labels are integers in one file and names in another")
    return np.concatenate(parts)


def _rows_of_split(tables: list[Table], flag: str, parts: tuple[str, ...]) -> np.ndarray:
    """Which rows have the first of `parts` that occurs in the column `split`; without that column, all for training."""
    if not all(table.split for table in tables):
        if "train" in parts:
            return np.arange(sum(len(next(iter(table.labels.values()))) for table in tables))
        hint = f"a column `split` (train, val, test) in {tables[0].path} does as well"
        raise InputError(f"{flag}_val: give the features to evaluate; {hint}")
    split = np.array([value for table in tables for value in table.split or ()], dtype=object)
    unknown = next((value for value in {*split} if value not in SPLITS["all"]), None)
    if unknown is not None:
        raise InputError(f"{flag} {tables[0].path}: split {unknown} is unknown; write train, val or test")
    part = next((part for part in parts if part in {*split}), None)
    if part is None:
        raise InputError(f"{flag} {tables[0].path}: has no row of the split {' or '.join(parts)}")
    return (split == part).nonzero()[0]


def number_column(column: np.ndarray, class_names: str | None, classes: list[str] | None, source: str):
    """Labels [n] of a column, and the classes that occur.

    class_names, classes: a file, or a list, of names of integer labels, the first being that of 0.
    """
    values, numbers = factorize(column)
    source = f"--class_names {class_names}" if class_names else source
    names = read_lines(Path(class_names), source) if class_names else classes
    of_integers, order = isinstance(values[0], int), util.one_form
    if class_names and not of_integers:
        raise InputError(f"{source}: has no use, since labels are names, such as {values[0]}; leave it out")
    if of_integers and names is None:
        names_of, order = [str(value) for value in values], int
    elif of_integers:
        off = next((value for value in values if not 0 <= value < len(names)), None)
        if off is not None:
            raise InputError(f"{source}: has {len(names)} class names, and a label is {off}; labels count from 0")
        if (again := util.twice(names)) is not None:
            raise InputError(f"{source}: the class name {again} is there twice; give each class a name of its own")
        names_of = [names[value] for value in values]
    else:
        names_of = values
    of_value, found = number_labels(names_of, key=order)
    return np.array(of_value)[numbers], found


def factorize(column: np.ndarray) -> tuple[list, np.ndarray]:
    """Return the distinct values of a column, and [n] the number of each row's among them."""
    if column.dtype.kind == "i":
        values, numbers = np.unique(column, return_inverse=True)
        return values.tolist(), numbers
    places: dict[str, int] = {}
    numbers = np.fromiter((places.setdefault(value, len(places)) for value in column), np.int64, len(column))
    return [*places], numbers


def nest(columns: dict[str, tuple[list, np.ndarray]], source: str) -> Taxonomy:
    """Return the taxonomy of the classes. columns: of labels by name, the finest first, each as `factorize` gives it.

    Raises InputError where a group lies in two of the next column.
    """
    paths = {name: (name,) for name in next(iter(columns.values()))[0]}
    for (fine, (names, numbers)), (coarse, (groups, of)) in itertools.pairwise(columns.items()):
        parents: dict[str, str] = {}
        for pair in np.unique(numbers * len(groups) + of).tolist():
            name, group = str(names[pair // len(groups)]), str(groups[pair % len(groups)])
            if parents.setdefault(name, group) != group:
                where = f"{fine} {name} belongs to {coarse} {parents[name]} and to {coarse} {group}"
                raise InputError(f"{source}: {where}; columns of labels must be nested, the finest first")
        paths = {name: (*path, parents[path[-1]]) for name, path in paths.items()}
    groups_of = {name: tuple(path[at:] for at in range(1, len(path))) for name, path in paths.items()}
    return Taxonomy(tuple(columns)[1:], groups_of)

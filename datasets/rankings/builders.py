"""Makes tables of class similarity: from class names, superclasses, features, and noise."""

import pickle
from pathlib import Path

import numpy as np
import torch

import datasets
import util
from datasets import folders, rankings, texts
from datasets.rankings import files, taxonomy
from util import InputError

# ---- tables ----------------------------------------------------------------------------------------------------------


def superclass_table(groups: dict[str, list[str]]) -> tuple[np.ndarray, list[str]]:
    """1 on the diagonal, 0.75 inside a superclass, 0 elsewhere, and the sorted classes that it is in."""
    classes = sorted(c for members in groups.values() for c in members)
    return rankings.superclass_table(groups, classes, "superclasses"), classes


def class_means(features: torch.Tensor, labels: torch.Tensor, classes: int, centre: bool) -> np.ndarray:
    """[C, d] the mean unit feature of each class; centre: minus the mean of these means.

    Features after a ReLU all point into one corner; about their mean, their cosines spread over [-1, 1].
    """
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    means = torch.stack([unit[labels == c].mean(0) for c in range(classes)])
    return (means - means.mean(0) if centre else means).numpy()


def cosine_matrix(x: np.ndarray) -> np.ndarray:
    """[C, C] cosines of rows, rounded to six places, symmetric, 1 on the diagonal: the same on every processor.

    Numbers of unit vectors are rounded to multiples of 2 ** -26. Then products are multiples of 2 ** -52, and so are
    their sums, which stay below 2: float64 holds each of them, and no order of summation makes another last bit.
    """
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    unit = np.round(unit * 2**26) / 2**26
    table = np.round(unit @ unit.T, 6).clip(-1, 1)
    np.fill_diagonal(table, 1.0)
    return table


def confusion(counts: np.ndarray) -> np.ndarray:
    """[C, C] similarity from counts, or mean probabilities, of true classes [row] that are taken for others [column].

    Among images of two classes that are taken for one of the two, the share that is taken for the wrong one, either
    class counting alike: 0 if they are never confused, 0.5 if they cannot be told apart. So the most confused pair
    stays below the own class, whatever the classifier's accuracy. Classes that are found less often than by guessing
    count as found so often, or a stray image would make them alike. Rounded to six places; 1 on the diagonal. Raises
    ValueError where a class has no image, or no two classes are ever confused.
    """
    counts = np.asarray(counts, dtype=float)
    if not (counts.sum(1) > 0).all():
        raise ValueError(f"class {int((counts.sum(1) == 0).argmax())} has no image")
    share = counts / counts.sum(1, keepdims=True)
    wrong, right = share + share.T, share.diagonal()[:, None] + share.diagonal()
    table = np.round(wrong / (wrong + np.maximum(right, 2 / len(share))), 6)
    np.fill_diagonal(table, 0)
    if not table.any():
        raise ValueError("no image is taken for one of another class: there is nothing to tell similarity by")
    np.fill_diagonal(table, 1.0)
    return table


def of_counts(path: Path) -> tuple[np.ndarray, list[str], str]:
    """`confusion` of a CSV of counts, first line `class,a,b,...`, then a row a true class; classes; and in words."""
    source = f"--from {path}"
    rows = texts.read_rows(path, source)
    head = rows[0][1] if rows else []
    classes = [row[0] for _, row in rows[1:]]
    if len(head) < 3 or head[1:] != classes or util.twice(classes) is not None:
        raise InputError(f"{source}: must be `class,a,b,...`, then a row for each of these, in order")
    counts = np.zeros((len(classes),) * 2)
    for at, (line, row) in enumerate(rows[1:]):
        try:
            counts[at] = [texts.number(cell) for cell in row[1:]]
        except ValueError:
            raise InputError(f"{source}, line {line}: must hold {len(classes)} numbers") from None
        if not (np.isfinite(counts[at]) & (counts[at] >= 0)).all():
            raise InputError(f"{source}, line {line}: holds counts below 0, or none")
    try:
        return confusion(counts), classes, f"confusions of {path}"
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None


def of_noise(source: Path, share: float, seed: int) -> tuple[np.ndarray, list[str], str]:
    """A ranking file with a share of its pairs dealt anew, its classes, and what that is, in words."""
    if not 0 <= share <= 1:
        raise InputError(f"--share {share}: must lie in [0, 1]")
    table, classes = of_file(str(source), "--from")
    noisy, pairs = with_noise(table, share, seed), np.triu_indices(len(table), k=1)
    changed = f"{int((noisy != table)[pairs].sum())} of {len(pairs[0])} pairs have another value"
    return noisy, classes, f"noise {share:g} on {source}, seed {seed}, {changed}"


def with_noise(table: np.ndarray, share: float, seed: int) -> np.ndarray:
    """The table with the values of a random share of its pairs of classes dealt anew among these pairs.

    It stays symmetric with the same values, so that the ranks keep their sizes; share 1 is a random ranking.
    """
    rng = np.random.default_rng(seed)
    a, b = np.triu_indices(len(table), k=1)
    chosen = rng.permutation(len(a))[: round(share * len(a))]
    result = table.copy()
    result[a[chosen], b[chosen]] = table[a[chosen], b[chosen]][rng.permutation(len(chosen))]
    result[b[chosen], a[chosen]] = result[a[chosen], b[chosen]]
    return result


# ---- classes and superclasses ----------------------------------------------------------------------------------------


def read_classes(names_file: Path | None, folder: Path | None) -> dict[str, str]:
    """class -> name in words, of --names, --data_folder, or the folder's classes by the names of the file."""
    if not names_file and not folder:
        raise InputError("which classes? give --names, --data_folder, or both")
    if not folder:
        return files.read_names(names_file)
    data = datasets.build("path", folder)
    classes = data.classes
    if datasets.left_out(data):
        print(datasets.left_out(data))
    if not names_file:
        return files.in_words(classes)
    names = files.read_names(names_file)
    names = dict(zip(util.spelt_as(names, classes), names.values(), strict=True))
    foreign = [c for c in names if c not in classes]
    if foreign:
        raise InputError(
            f"--names {names_file}: {foreign[0]} is no class of {folder} ({len(foreign)} in all); its "
            f"classes are {', '.join(classes[:5])}" + (", ..." if len(classes) > 5 else "")
        )
    missing = [c for c in classes if c not in names]
    if missing:
        raise InputError(f"--names {names_file}: lacks the class {missing[0]} ({len(missing)} in all)")
    return {c: names[c] for c in classes}


def of_levels(source: str, flag: str = "--from") -> tuple[np.ndarray, list[str]]:
    """A table of superclasses, as `read_superclasses` has them, or of a taxonomy's levels, and its classes."""
    levels = taxonomy.read(source, flag) if Path(source).is_file() else None
    if levels is None and source.endswith(".csv") and Path(source).is_file():
        raise InputError(
            f"{flag} {source}: a CSV of superclasses is `class,<finest level>,...,<coarsest>`, a row a class, or an "
            "image list `path,label,split,<finest level>,...`; a matrix is a ranking already"
        )
    if levels is None:
        return superclass_table(read_superclasses(source, flag))
    return _of_taxonomy(levels, f"{flag} {source}")


def _of_taxonomy(levels: taxonomy.Taxonomy, source: str) -> tuple[np.ndarray, list[str]]:
    classes = list(levels.groups)
    return taxonomy.similarity(levels, classes, source), classes


def of_file(name: str, flag: str) -> tuple[np.ndarray, list[str]]:
    """The table of a ranking's file, of superclasses, a taxonomy or a matrix, and its classes."""
    if name.endswith((".yaml", ".yml")):
        return of_levels(name, flag)
    levels = taxonomy.read(name, flag)
    return _of_taxonomy(levels, f"{flag} {name}") if levels else files.read_table(Path(name), flag)


def read_superclasses(source: str, flag: str = "--from") -> dict[str, list[str]]:
    """superclass -> classes: a data set's own by its name, a YAML file, a folder superclass/class/, or CIFAR-100's."""
    path = Path(source)
    if not path.exists() and source in files.shipped():
        return files.known_superclasses(source)
    if not path.exists():
        known = ", ".join(files.shipped())
        raise InputError(f"{flag} {source}: no such file or folder, and none of {known}")
    if path.is_file():
        return files.read_superclasses(path, flag)
    for folder in (path, path / "cifar-100-python"):
        if (folder / "meta").is_file() and (folder / "train").is_file():
            return _coarse_labels(folder)
    return tree(path)


def _coarse_labels(folder: Path) -> dict[str, list[str]]:
    """CIFAR-100's own: the coarse label that its training images carry beside the fine one."""
    try:
        meta, train = (pickle.loads((folder / name).read_bytes(), encoding="latin1") for name in ("meta", "train"))
        pairs = sorted(set(zip(train["coarse_labels"], train["fine_labels"], strict=True)))
        coarse, fine = meta["coarse_label_names"], meta["fine_label_names"]
        groups = {name: [fine[f] for c, f in pairs if coarse[c] == name] for name in coarse}
    except Exception as error:  # a damaged pickle fails in many ways
        raise InputError(f"--from {folder}: CIFAR-100's files are damaged ({error!r})") from None
    if sorted(c for members in groups.values() for c in members) != sorted(fine):
        raise InputError(f"--from {folder}: its training images do not give every class one coarse label")
    return groups


def tree(folder: Path) -> dict[str, list[str]]:
    """superclass -> classes of a folder superclass/class/images."""
    left_out = folders.LeftOut()
    groups = {name: folders.subfolders(folder / name, left_out) for name in folders.subfolders(folder, left_out)}
    if left_out.text():
        print(left_out.text())
    empty = [name for name, classes in groups.items() if not classes]
    if not groups or empty:
        raise InputError(
            f"--from {folder}: {empty[0] if empty else 'it'} holds no folders; it must be superclass/class/"
        )
    names = [c for classes in groups.values() for c in classes]
    if (again := util.twice(names)) is not None:
        raise InputError(f"--from {folder}: the class {again} lies in two superclasses")
    return groups

"""Makes tables of class similarity: from class names, superclasses, features, and noise."""

import re
from pathlib import Path

import numpy as np
import torch

import datasets
import util
from datasets import rankings
from datasets.rankings import files, text_encoders
from datasets.rankings.taxonomy import match_classes, read_taxonomy
from util import InputError


def average_features(features: torch.Tensor, labels: torch.Tensor, classes: int, center: bool) -> np.ndarray:
    """[C, d] the mean unit feature of each class; center: minus the mean of these means.

    Features after a ReLU all point into one corner; about their mean, their cosines spread over [-1, 1].
    """
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    means = torch.stack([unit[labels == c].mean(0) for c in range(classes)])
    return (means - means.mean(0) if center else means).numpy()


def compute_cosines(x: np.ndarray) -> np.ndarray:
    """[C, C] cosines of rows, rounded to six places, symmetric, 1 on the diagonal: the same on every processor.

    Numbers of unit vectors are rounded to multiples of 2 ** -26. Then products are multiples of 2 ** -52, and so are
    their sums, which stay below 2: float64 holds each of them, and no order of summation makes another last bit.
    """
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    unit = np.round(unit * 2**26) / 2**26
    table = np.round(unit @ unit.T, 6).clip(-1, 1)
    np.fill_diagonal(table, 1.0)
    return table


def compute_confusions(counts: np.ndarray) -> np.ndarray:
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


def read_confusions(path: Path) -> tuple[np.ndarray, list[str], str]:
    """`compute_confusions` of a CSV of counts, a row a true class; the classes; and what that is, in words."""
    source = f"--from {path}"
    counts, classes = files.read_square(path, source)
    bad = ~(np.isfinite(counts) & (counts >= 0)).all(1)
    if bad.any():
        raise InputError(f"{source}: the row {classes[bad.argmax()]} holds counts below 0, or none")
    try:
        return compute_confusions(counts), classes, f"confusions of {path}"
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None


def compare_names(names: dict[str, str], model: str, templates: list[str]) -> tuple[np.ndarray, list[str], str]:
    """Cosines [C, C] of the embeddings of class names, rounded to six places, the classes, and what they are, in words.

    names: class -> name; model: hub name or folder; templates: texts that hold {} once, for the name; of several, the
    unit vectors are averaged (Radford et al. 2021, sec. 3.1.4). Raises InputError.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(f"--template {template!r}: must hold {{}} once, for the name")
    nameless = [name for name in names.values() if re.fullmatch(r"n\d{8}", name)]
    if nameless:
        hint = "give a file with lines of wnid,name"
        raise InputError(f"--names: the wnid {nameless[0]} has no name ({len(nameless)} such); {hint}")
    encoder = text_encoders.load_encoder(model)
    found = [
        text_encoders.embed_texts([template.format(name) for name in names.values()], encoder) for template in templates
    ]
    words = f"template{'s' * (len(templates) > 1)} {', '.join(map(repr, templates))}"
    about = f"cosine of class names; model {model}, {encoder.about}, {words}"
    return compute_cosines(sum(found).numpy()), list(names), about


def read_groups(source: str) -> tuple[np.ndarray, list[str], str]:
    """Read the table of superclasses or a taxonomy, its classes, and what that is, in words."""
    table, classes = rankings.load(source, "--from")
    if read_taxonomy(source, "--from") is None:
        hint = "superclasses are YAML, folders superclass/class/, or a CSV `class,<finest level>,...,<coarsest>`"
        raise InputError(f"--from {source}: is a matrix, which is a ranking already; {hint}")
    return table, classes, f"superclasses of {source}"


def add_noise(source: str, share: float, seed: int) -> tuple[np.ndarray, list[str], str]:
    """Deal a share of a ranking file's pairs again; return the table, its classes, and what that is, in words."""
    if not 0 <= share <= 1:
        raise InputError(f"--share {share}: must lie in [0, 1]")
    table, classes = rankings.load(source, "--from")
    noisy, pairs = shuffle_pairs(table, share, seed), np.triu_indices(len(table), k=1)
    changed = f"{int((noisy != table)[pairs].sum())} of {len(pairs[0])} pairs have another value"
    return noisy, classes, f"noise {share:g} on {source}, seed {seed}, {changed}"


def shuffle_pairs(table: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Deal the values of a random share of a table's pairs of classes again among these pairs.

    It stays symmetric with the same values, so that the ranks keep their sizes; share 1 is a random ranking.
    """
    rng = np.random.default_rng(seed)
    a, b = np.triu_indices(len(table), k=1)
    chosen = rng.permutation(len(a))[: round(share * len(a))]
    result = table.copy()
    result[a[chosen], b[chosen]] = table[a[chosen], b[chosen]][rng.permutation(len(chosen))]
    result[b[chosen], a[chosen]] = result[a[chosen], b[chosen]]
    return result


def read_classes(names_file: Path | None, folder: Path | None) -> dict[str, str]:
    """class -> name in words, of --names, --data_folder, or the folder's classes by the names of the file."""
    if not names_file and not folder:
        raise InputError("--names or --data_folder is missing; give one or both, to name the classes")
    if not folder:
        return files.read_names(names_file)
    data = datasets.build("path", folder)
    classes = data.classes
    if line := data.left_out.describe():
        print(line)
    if not names_file:
        return files.name_classes(classes)
    names, source = files.read_names(names_file), f"--names {names_file}"
    foreign = [c for c in util.match_spelling(names, classes) if c not in classes]
    if foreign:
        known = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
        raise InputError(
            f"{source}: {foreign[0]} is not a class of {folder} ({len(foreign)} in all), which has {known}"
        )
    return dict(zip(classes, match_classes(classes, names, source), strict=True))

"""Class similarity: from superclasses, the published RoBERTa figures or a file, to one table [C, C] in [0, 1]."""

import csv
from pathlib import Path

import numpy as np
import torch
import yaml

from util import InputError, run_command

HERE = Path(__file__).parent
NAMED = ("identity", "superclass", "roberta_threshold")
STEP = 0.25  # of similarity, a rank of distance


def read_superclasses(path: Path, flag: str = "--ranking") -> dict[str, list[str]]:
    """`superclass: [classes]` from YAML; every class once. `flag` is named in errors."""
    if not path.is_file():
        raise InputError(f"{flag} {path}: no such file")
    try:
        groups = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{flag} {path}: not readable as YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(groups, dict) or not all(isinstance(v, list) and v for v in groups.values()):
        raise InputError(f"{flag} {path}: must be lines of `superclass: [class, class, ...]`")
    groups = {str(k): [str(c) for c in v] for k, v in groups.items()}
    names = [c for v in groups.values() for c in v]
    twice = [c for c in names if names.count(c) > 1]
    if twice:
        raise InputError(f"{flag} {path}: class {twice[0]} stands in it twice")
    return groups


def superclass_labels(groups: dict[str, list[str]], classes: list[str], source: str) -> torch.Tensor:
    """[C] the number of each class's superclass."""
    where = {c: i for i, members in enumerate(groups.values()) for c in members}
    _check_has(classes, where, source)
    return torch.tensor([where[c] for c in classes])


def known_superclasses(name: str | None) -> dict[str, list[str]]:
    """The superclasses that ship with a data set, by the name in its `Source`."""
    return read_superclasses(HERE / "superclasses" / f"{name}.yaml")


def read_table(path: Path, flag: str = "--ranking") -> tuple[np.ndarray, list[str]]:
    """A CSV matrix -> [C, C], identifiers: first line `class,a,b,...`, then a line a class, `a,1,0.75,...`.

    Lines that start with # are comment. Raises InputError, naming `flag`, unless it is square, its identifiers agree,
    it is symmetric, its diagonal is 1 and all lies in [-1, 1] (cosines are welcome where thresholds are given).
    """
    try:
        with path.open(newline="") as file:
            head, *rows = [row for row in csv.reader(file) if row and not row[0].startswith("#")]
        names = [row[0] for row in rows]
        table = np.array([[float(x) for x in row[1:]] for row in rows], dtype=np.float64)
    except (OSError, ValueError) as error:
        raise InputError(f"{flag} {path}: not readable as a CSV matrix ({error})") from None
    columns = head[1:]
    if table.ndim != 2 or table.shape[0] != table.shape[1] or len(columns) != len(names):
        shape = f"{len(names)} lines and {len(columns)} columns"
        raise InputError(f"{flag} {path}: has {shape}; it must be square, with a header line `class,...`")
    if columns != names or len(set(names)) < len(names):
        raise InputError(f"{flag} {path}: header and first column must name the same classes, each once, in order")
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
    return table, names


def class_similarity(
    ranking: str,
    classes: list[str],
    *,
    superclasses: str | None = None,
    thresholds: list[float] | None = None,
    hierarchy_k: int = 3,
    similarity_threshold: float = 0.0,
    n_sim_classes: int | None = None,
) -> tuple[torch.Tensor, list[str]]:
    """The similarity table of `classes`, and the class order that it is in (that of `classes`).

    ranking: "identity" (one rank: the own class), "superclass" (0.75 inside a superclass of the data set's, named by
        `superclasses`), "roberta_threshold" (published cosines of ImageNet-100's class names), or a file: CSV matrix or
        YAML of superclasses.
    thresholds: falling; a similarity of at least the d-th has distance d, below the last one the classes are unrelated;
        s = 1 - 0.25 d for d <= hierarchy_k.
    similarity_threshold: smaller similarities become 0. n_sim_classes: so many of the most similar classes stay with
        each class, the own one counted; ties stay in class order. Raises InputError on anything that does not fit.
    """
    if ranking == "identity":
        table = np.eye(len(classes))
    elif ranking == "superclass":
        if superclasses is None:
            raise InputError("--ranking superclass: this data set has none; give a YAML file of superclasses")
        table = superclass_table(known_superclasses(superclasses), classes, f"--ranking superclass ({superclasses})")
    elif ranking.endswith((".yaml", ".yml")):
        table = superclass_table(read_superclasses(Path(ranking)), classes, f"--ranking {ranking}")
    elif ranking == "roberta_threshold" or Path(ranking).is_file() or ranking.endswith(".csv"):
        table = _thresholded_table(ranking, classes, thresholds, hierarchy_k)
    else:
        raise InputError(f"--ranking {ranking}: neither a file nor one of {', '.join(NAMED)}")
    table = np.where(table < similarity_threshold, 0.0, table)
    np.fill_diagonal(table, 1.0)
    if n_sim_classes is not None:
        table = _most_similar(table, n_sim_classes)
    return torch.tensor(table, dtype=torch.float32), list(classes)


def superclass_table(groups, classes, source) -> np.ndarray:
    """[C, C] 0.75 inside a superclass, the diagonal included, 0 elsewhere."""
    group = superclass_labels(groups, classes, source).numpy()
    return np.where(group[:, None] == group, 1 - STEP, 0.0)


def _thresholded_table(ranking, classes, thresholds, hierarchy_k) -> np.ndarray:
    published = ranking == "roberta_threshold"
    cosine, names = read_table(HERE / "imagenet100_roberta_cosine.csv" if published else Path(ranking))
    where = {name: i for i, name in enumerate(names)}
    _check_has(classes, where, f"--ranking {ranking}")
    chosen = [where[c] for c in classes]
    cosine = cosine[np.ix_(chosen, chosen)]
    if not thresholds:
        if published:
            raise InputError("--roberta_float_threshold is missing: roberta_threshold needs it (published: 0.4)")
        if cosine.min() < 0:
            raise InputError(f"--ranking {ranking}: holds values below 0; give --thresholds to make ranks of cosines")
        ranks = len(np.unique(cosine[cosine > 0]))
        if ranks > 16:
            raise InputError(f"--ranking {ranking}: {ranks} distinct values would be {ranks} ranks; give --thresholds")
        return cosine
    if sorted(set(thresholds), reverse=True) != list(thresholds):
        raise InputError(f"--thresholds {' '.join(map(str, thresholds))}: must fall, one a rank")
    if len(thresholds) > 3:
        raise InputError(f"--thresholds: {len(thresholds)} given; similarity falls by {STEP} a rank, so at most 3 fit")
    distance = 1 + (cosine[..., None] < np.array(thresholds)).sum(-1)  # 1 = above the first threshold
    related = distance <= min(len(thresholds), hierarchy_k)
    return np.where(related, 1 - STEP * distance, 0.0)


def _most_similar(table: np.ndarray, n: int) -> np.ndarray:
    if n < 1:
        raise InputError(f"--n_sim_classes {n}: must be at least 1, the own class")
    order = np.argsort(-(table + np.eye(len(table))), axis=1, kind="stable")[:, :n]  # the own class comes first
    kept = np.zeros_like(table, dtype=bool)
    np.put_along_axis(kept, order, True, axis=1)
    return np.where(kept, table, 0.0)


def _check_has(classes, names, source) -> None:
    missing = [c for c in classes if c not in names]
    if missing:
        raise InputError(f"{source}: lacks the class {missing[0]} of the data set ({len(missing)} in all)")


def summary(table: torch.Tensor, taus) -> str:
    """One line a run prints: the ranks with their temperatures, and how many similar classes a class has."""
    values = sorted(table[table > 0].unique().tolist(), reverse=True)
    ranks = "; ".join(
        f"rank {r}: similarity {s:g}, tau {t:.3g}" for r, (s, t) in enumerate(zip(values, taus, strict=True))
    )
    similar = (table > 0).sum(1) - 1
    return (
        f"{len(table)} classes; {ranks}; similar classes a class: min {similar.min()}, "
        f"median {similar.float().quantile(0.5):g}, max {similar.max()}; {int((similar == 0).sum())} without"
    )


if __name__ == "__main__":
    from datasets.ranking_builders import main

    run_command(main)

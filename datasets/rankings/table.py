"""Class similarity: from superclasses, the published RoBERTa figures or a file, to one table [C, C] in [0, 1]."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from datasets.rankings import files, taxonomy
from datasets.rankings.taxonomy import SHIPPED, STEP, list_shipped, match_classes
from util import InputError

MOST_RANKS = 126  # that a loss can hold
ROBERTA = "roberta_threshold"  # the published cosines of ImageNet-100's class names


def load(source: str, flag: str = "--ranking", others: Iterable[str] = ()) -> tuple[np.ndarray, list[str]]:
    """Load the similarities [C, C] of a ranking, as its source has them: cosines, say, that are no ranks yet; its
    classes.

    source: a file: CSV or npz matrix, YAML of superclasses, YAML or CSV of a taxonomy, image list with levels; a folder
    superclass/class/; superclasses that ship, by their name; or "roberta_threshold". Raises InputError, naming `flag`,
    where it is none of them, nor of the names `others`, or has a fault.
    """
    if source == ROBERTA:
        return files.read_matrix(files.ROBERTA, flag)
    if not Path(source).exists() and source not in list_shipped():
        known = ", ".join([*others, *list_shipped(), ROBERTA])
        raise InputError(f"{flag} {source}: no such file or folder, and none of {known}")
    found = taxonomy.read_taxonomy(source, flag)
    if found is None:
        return files.read_matrix(Path(source), flag)
    classes = sorted(found.groups) if found.levels == taxonomy.SUPERCLASSES else list(found.groups)
    return taxonomy.compute_similarity(found, classes, f"{flag} {source}"), classes


def find_rows(names: list[str], classes: list[str], source: str) -> list[int]:
    """Find the rows that `classes` have in a table of `names`; InputError, beginning with `source`, without one."""
    return match_classes(classes, {name: i for i, name in enumerate(names)}, source)


Superclasses = str | taxonomy.Taxonomy | None  # of a data set: the name of those that ship, or its own


def find_similarities(ranking: str, classes: list[str], superclasses: Superclasses = None) -> np.ndarray:
    """[C, C] similarities of `classes`, as their source has them.

    ranking: what `load` takes, of these classes and maybe more; or "identity" (no two classes are similar),
    "superclass" (0.75 inside a superclass of the data set's own, less by coarser levels), or "inaturalist" (what its
    folders' names say). Raises InputError on anything that does not fit.
    """
    if ranking in NAMED:
        return NAMED[ranking](classes, superclasses)
    table, names = load(ranking, "--ranking", NAMED)
    rows = find_rows(names, classes, f"--ranking {ranking}")
    return table[np.ix_(rows, rows)]


def identity(classes: list[str], superclasses: Superclasses) -> np.ndarray:
    """No two classes are similar."""
    return np.eye(len(classes))


def superclass(classes: list[str], superclasses: Superclasses) -> np.ndarray:
    """0.75 inside a superclass of the data set's own, less by each coarser level that it knows."""
    if superclasses is None:
        raise InputError("--ranking superclass: this data set has none; give a YAML file of superclasses")
    if isinstance(superclasses, taxonomy.Taxonomy):
        return taxonomy.compute_similarity(superclasses, classes, "--ranking superclass (the columns of labels)")
    found = taxonomy.read_taxonomy(f"{SHIPPED}/{superclasses}.yaml", "--ranking superclass")
    return taxonomy.compute_similarity(found, classes, f"--ranking superclass ({superclasses})")


def inaturalist(classes: list[str], superclasses: Superclasses) -> np.ndarray:
    """Return a rank a level, from the species to the kingdom, by the names of iNaturalist's folders."""
    source = "--ranking inaturalist"
    return taxonomy.compute_similarity(taxonomy.parse_inaturalist(classes, source), classes, source)


# --ranking NAME, where classes must be known: these, the data set's superclasses -> [C, C] similarities
NAMED = {"identity": identity, "superclass": superclass, "inaturalist": inaturalist}


@dataclass(frozen=True)
class Ranks:
    """How similarities become ranks.

    thresholds: falling; a similarity of at least the d-th has distance d, below the last one the classes are unrelated;
        s = 1 - 0.25 d for d <= hierarchy_k. Without: the table's values as they are, up to 16 distinct ones, or with
        `every_value` up to 126, with one rank each.
    similarity_threshold: smaller similarities become 0. n_sim_classes: so many of the most similar classes stay with
        each class, the own one counted; ties stay in class order.
    """

    thresholds: list[float] | None = None
    every_value: bool = False
    hierarchy_k: int = 3
    similarity_threshold: float = 0.0
    n_sim_classes: int | None = None


ALL = Ranks()  # the values as they are


def class_similarity(
    ranking: str, classes: list[str], superclasses: str | None = None, ranks: Ranks = ALL
) -> tuple[torch.Tensor, list[str]]:
    """Return the similarity table of `classes`, and the class order that it is in (that of `classes`).

    What `find_similarities` finds of ranking and superclasses, made ranks of by `assign_ranks`.
    """
    table = find_similarities(ranking, classes, superclasses)
    return assign_ranks(table, ranks, f"--ranking {ranking}"), list(classes)


def assign_ranks(table: np.ndarray, ranks: Ranks = ALL, source: str = "ranking") -> torch.Tensor:
    """[C, C] float32 in [0, 1], whose distinct positive values are the ranks; 0 = unrelated, 1 on the diagonal.

    Raises InputError, naming `source`.
    """
    table = files.widen_numbers(np.asarray(table))
    if ranks.thresholds and ranks.every_value:
        raise InputError("--ranks and --thresholds: give one; --ranks makes every value a rank")
    if ranks.thresholds:
        table = _apply_thresholds(table, ranks.thresholds, ranks.hierarchy_k)
    else:
        _check_values(table, source, MOST_RANKS if ranks.every_value else 16, ranks.every_value)
    table = np.where(table < ranks.similarity_threshold, 0.0, table)
    np.fill_diagonal(table, 1.0)
    if ranks.n_sim_classes is not None:
        table = _keep_most_similar(table, ranks.n_sim_classes)
    return torch.tensor(table, dtype=torch.float32)


def _apply_thresholds(table, thresholds, hierarchy_k) -> np.ndarray:
    if sorted(set(thresholds), reverse=True) != list(thresholds):
        raise InputError(f"--thresholds {' '.join(map(str, thresholds))}: must fall, one per rank")
    if len(thresholds) > 3:
        raise InputError(f"--thresholds: {len(thresholds)} given; similarity falls by {STEP} per rank; give at most 3")
    distance = 1 + (table[..., None] < np.array(thresholds)).sum(-1)  # 1 = above the first threshold
    related = distance <= min(len(thresholds), hierarchy_k)
    return np.where(related, 1 - STEP * distance, 0.0)


def _check_values(table, source, most, every_value) -> None:
    if table.min() < 0:
        hint = "give --thresholds, published: 0.4"
        raise InputError(f"{source}: holds values below 0; {hint}")
    ranks = len(np.unique(table[table > 0]))
    if ranks > most:
        more = "" if every_value else f", or --ranks, which makes every value a rank (at most {MOST_RANKS})"
        raise InputError(f"{source}: {ranks} distinct values would be {ranks} ranks; give --thresholds{more}")


def _keep_most_similar(table: np.ndarray, n: int) -> np.ndarray:
    if n < 1:
        raise InputError(f"--n_sim_classes {n}: must be at least 1, which is the class itself")
    order = np.argsort(-(table + np.eye(len(table))), axis=1, kind="stable")[:, :n]  # the own class comes first
    kept = np.zeros_like(table, dtype=bool)
    np.put_along_axis(kept, order, True, axis=1)
    return np.where(kept, table, 0.0)


# ---- what a run prints before it trains ------------------------------------------------------------------------------


def summarize_ranking(
    table: torch.Tensor, taus, source: np.ndarray, classes: list[str], images: torch.Tensor
) -> list[str]:
    """Return the lines of a ranking: its ranks with their positives, the classes without a similar one, and examples.

    table: [C, C] as the loss takes it; taus: of its ranks; source: [C, C] the similarities that it was made of;
    images: [C] training images of each class.
    """
    lines = []
    for rank, (value, tau) in enumerate(zip(sorted(table[table > 0].unique().tolist())[::-1], taus, strict=True)):
        of_rank = table == value
        found = source[of_rank.numpy() & ~np.eye(len(classes), dtype=bool)]
        differ = len(found) > 0 and (abs(found - value) > 1e-6).any()
        made_of = f", from {found.min():.6g} to {found.max():.6g}" if differ else ""
        positives = f"{_describe_spread(of_rank.sum(1))} classes, {_describe_spread(of_rank.long() @ images)} images"
        lines.append(f"rank {rank}: similarity {value:g}{made_of}, tau {tau:.3g}; positives of a class {positives}")
    if any("/" in line for line in lines):
        lines[0] += " (min/median/max)"
    similar = (table > 0) & ~torch.eye(len(classes), dtype=torch.bool)
    if not similar.any():
        return lines
    words = files.name_classes(classes)
    alone = [words[c] for c, some in zip(classes, similar.any(1).tolist(), strict=True) if not some]
    if alone:
        more = f" and {len(alone) - 5} more" if len(alone) > 5 else ""
        lines.append(f"{len(alone)} classes without a related class: {', '.join(alone[:5])}{more}")
    return lines + [f"e.g. {line}" for line in _find_examples(similar.numpy(), source, [words[c] for c in classes])]


def _describe_spread(numbers: torch.Tensor) -> str:
    """Fewest, median and most, or the one number that all are."""
    low, high = int(numbers.min()), int(numbers.max())
    return str(low) if low == high else f"{low}/{numbers.double().quantile(0.5):g}/{high}"


def _find_examples(similar: np.ndarray, source: np.ndarray, words: list[str], most: int = 3) -> list[str]:
    """Find the classes of the strongest ties, no class in two examples, each with its most similar classes."""
    tie = np.where(similar, source, -np.inf)
    lines, named = [], set()
    for c in np.argsort(-tie.max(1), kind="stable"):
        others = [o for o in np.argsort(-tie[c], kind="stable") if similar[c, o]][:3]
        if others and not named & {c, *others}:
            lines.append(f"{words[c]}: " + ", ".join(f"{words[o]} {source[c, o]:.2g}" for o in others))
            named |= {c, *others}
        if len(lines) == most:
            break
    return lines

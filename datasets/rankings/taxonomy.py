"""Taxonomies: classes in genera in families, at any number of levels, as a ranking and for evaluation level by level.

A taxonomy is a nested YAML file, a table `class,genus,family`, the further columns of an image list, or what
iNaturalist's names of folders say.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import util
from datasets import lists, texts
from datasets.rankings.files import of_each
from util import InputError

STEP = 0.25  # of similarity, a rank of distance

# of iNaturalist 2021's folders, 00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris, the
# finest first; the species is the class itself
INATURALIST = ("genus", "family", "order", "class", "phylum", "kingdom")


@dataclass(frozen=True)
class Taxonomy:
    """levels: names, the finest first; groups: class -> its group at each level, one lying in one of the next.

    A group is named by its whole path, so that two of one name under different groups are two.
    """

    levels: tuple[str, ...]
    groups: dict[str, tuple[tuple[str, ...], ...]]


def labels(taxonomy: Taxonomy, classes: list[str], source: str) -> dict[str, torch.Tensor]:
    """By level, the finest first: [C] the number of each class's group. InputError where the taxonomy lacks a class."""
    groups_of, found = of_each(classes, taxonomy.groups, source), {}
    for at, level in enumerate(taxonomy.levels):
        names = [groups[at] for groups in groups_of]
        number = {name: i for i, name in enumerate(dict.fromkeys(names))}
        found[level] = torch.tensor([number[name] for name in names])
    return found


def similarity(taxonomy: Taxonomy, classes: list[str], source: str) -> np.ndarray:
    """[C, C] 1 on the diagonal, less by one step a level, 0 for classes that share no group.

    With L levels above the class a step is min(0.25, 1 / (L + 1)): a rank of distance as everywhere, 0.75 inside a
    superclass, and small enough that the farthest level is above 0. As NestedRINCELoss has it for L + 1 levels.
    """
    return of_labels(list(labels(taxonomy, classes, source).values()))


def of_labels(levels: list[torch.Tensor]) -> np.ndarray:
    """As `similarity`, by the numbers [C] of each class's group at each level, the finest first."""
    step = min(STEP, 1 / (len(levels) + 1))
    found = np.zeros((len(levels[0]),) * 2)
    for distance, group in reversed(list(enumerate(levels, 1))):
        found = np.where((group[:, None] == group).numpy(), round(1 - distance * step, 12), found)  # 0.4, no 0.3999...
    np.fill_diagonal(found, 1.0)
    return found


# ---- readers ---------------------------------------------------------------------------------------------------------


def of_yaml(content: dict, source: str) -> Taxonomy:
    """What a file holds: mappings in mappings, down to lists of classes, all at one depth. `source` begins errors."""
    leaves = list(_leaves(content, (), source))
    if (again := util.twice(name for name, _ in leaves)) is not None:
        raise InputError(f"{source}: class {again} stands in it twice")
    found = dict(leaves)
    at = {len(path): name for name, path in found.items()}
    if len(at) > 1:
        raise InputError(
            f"{source}: {at[min(at)]} lies {min(at)} deep, {at[max(at)]} {max(at)}; all classes must lie at one depth"
        )
    levels = tuple(f"level {number}" for number in range(1, max(at) + 1))
    return Taxonomy(levels, {name: _nested(path) for name, path in found.items()})


def _leaves(content, above: tuple[str, ...], source: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each class, and the names above it in one Unicode form, the coarsest first."""
    where = " / ".join(above) or "the file"
    if isinstance(content, list) and above:
        for name in content:
            if not isinstance(name, str) or not name:
                raise InputError(f"{source}: {where}: an empty name, or something else than one; quote such names")
            yield name, above
        if not content:
            raise InputError(f"{source}: {where} holds no class")
    elif isinstance(content, dict) and content:
        for name, inner in content.items():
            if not isinstance(name, str) or not name:
                raise InputError(f"{source}: {where}: an empty name, or something else than one; quote such names")
            yield from _leaves(inner, (*above, util.one_form(name)), source)
    else:
        raise InputError(f"{source}: {where} must hold lines of `name: [class, class, ...]`, or names of names of them")


def _nested(path: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The groups of a class, the finest first, from its path, the coarsest first."""
    return tuple(path[:end] for end in range(len(path), 0, -1))


def is_table(rows: list[tuple[int, list[str]]]) -> bool:
    """Whether a CSV is a taxonomy, `class,genus,family`, and no matrix of similarities: most columns are headed by no
    class, and it is not a square of numbers, as a matrix under a wrong header would be.
    """
    if len(rows) < 2:
        return False
    (_, head), *body = rows
    if 2 * len({row[0] for _, row in body} & {*head[1:]}) >= len(head) - 1:
        return False
    return len(body) != len(head) - 1 or not all(_is_number(cell) for _, row in body for cell in row[1:])


def _is_number(cell: str) -> bool:
    try:
        texts.number(cell)
    except ValueError:
        return False
    return True


def of_rows(rows: list[tuple[int, list[str]]], source: str) -> Taxonomy:
    """A table of texts.read_rows: the header `class,<finest level>,...,<coarsest>`, then a row a class."""
    levels, rows_of = level_rows(rows, "class", source)
    seen: set[str] = set()
    for line, name, _ in rows_of:
        if util.one_form(name) in seen:
            raise InputError(f"{source}, line {line}: the class {name} stands in it twice")
        seen.add(util.one_form(name))
    return Taxonomy(tuple(levels), {name: _nested(tuple(reversed(groups))) for _, name, groups in rows_of})


def level_rows(
    rows: list[tuple[int, list[str]]], of: str, source: str
) -> tuple[list[str], list[tuple[int, str, list[str]]]]:
    """Names of the levels, and line, name and groups of each row, of a table of levels, whoever asks for it: the header
    `<of>,<finest level>,...,<coarsest>`, then a row a class or an image, as `of` says.

    Raises InputError, beginning with `source`, where names of the header differ in blanks and signs at most, as tags of
    TensorBoard must not, or a group lies in two groups of the next level.
    """
    (_, head), *body = rows
    again = util.twice(map(util.plain_name, head))
    if again is not None or len(head) < 2 or not all(head):
        fault = "" if again is None else f"; {again} stands in it twice"
        raise InputError(
            f"{source}: the first line must be `{of},<finest level>,...,<coarsest>`, each name once{fault}"
        )
    texts.check_widths(head, body, source)
    parents: dict[tuple[int, str], str] = {}
    spelling: dict[str, str] = {}
    found = []
    for line, (name, *row) in body:
        groups = [spelling.setdefault(util.one_form(group), group) for group in row]
        _check_nested(groups, head[1:], parents, f"{source}, line {line}")
        found.append((line, name, groups))
    return head[1:], found


def _check_nested(groups: list[str], levels: list[str], parents: dict[tuple[int, str], str], where: str) -> None:
    """Raise InputError, beginning with `where`, unless each of a row's groups, the finest first, lies in the group that
    it lay in so far. parents: (level, group) -> group of the next level; grows by the row's.
    """
    for at, (finer, coarser) in enumerate(itertools.pairwise(groups)):
        if parents.setdefault((at, finer), coarser) != coarser:
            raise InputError(
                f"{where}: {levels[at]} {finer} lies in {levels[at + 1]} {coarser} and in {parents[at, finer]}; groups "
                f"must be nested, the finest column first, and their names differ ({coarser}/{finer})"
            )


def of_inaturalist(classes: list[str], source: str) -> Taxonomy:
    """What the names of iNaturalist's folders, number_kingdom_phylum_class_order_family_genus_species, say."""
    found = {}
    for name in classes:
        parts = name.split("_")
        if len(parts) < 8 or not parts[0].isdecimal():
            raise InputError(
                f"{source}: the class {name} is no folder of iNaturalist 2021, which are called "
                "number_kingdom_phylum_class_order_family_genus_species"
            )
        found[name] = _nested(tuple(parts[1:7]))
    return Taxonomy(INATURALIST, found)


def read(name: str, flag: str) -> Taxonomy | None:
    """The taxonomy of a YAML or CSV file, or of an image list; None of superclasses alone, a matrix, or anything else.

    Raises InputError, naming `flag`, for a taxonomy that is none.
    """
    source = f"{flag} {name}"
    if name.endswith((".yaml", ".yml")):
        content = texts.read_yaml(Path(name), source, as_written=True)
        deep = isinstance(content, dict) and any(isinstance(inner, dict) for inner in content.values())
        return of_yaml(content, source) if deep else None
    if name.endswith(".csv"):
        rows = texts.read_rows(Path(name), source)
        rows = lists.levels(rows, source) or rows
        return of_rows(rows, source) if is_table(rows) else None
    return None

"""Which classes lie in which groups: superclasses, which are one level, and taxonomies of any number of levels.

They come as nested YAML, as a table `class,genus,family`, as the further columns of an image list, as folders
superclass/class/, as CIFAR-100's own files, or as the names of iNaturalist's folders.
"""

import itertools
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import util
from datasets import lists, text_files
from datasets.folders import LeftOut, list_subfolders
from datasets.lists import Taxonomy
from util import InputError, closest

SHIPPED = Path(__file__).parent / "superclasses"  # a YAML file for each data set that has them
STEP = 0.25  # of similarity, a rank of distance
SUPERCLASSES = ("level 1",)  # the levels of lines `superclass: [class, class]`, and of folders

# of iNaturalist 2021's folders, 00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris, the
# finest first; the species is the class itself
INATURALIST = ("genus", "family", "order", "class", "phylum", "kingdom")


def match_classes(classes: list[str], found: dict[str, Any], source: str) -> list:
    """Return what stands for each class in `found`, where its name may have another Unicode form. Raises InputError,
    beginning with `source`, where it lacks one of the classes.
    """
    names = dict(zip(util.match_spelling(found, classes), found.values(), strict=True))
    missing = [c for c in classes if c not in names]
    if missing:
        count = f"{len(missing)} in all" if len(missing) > 1 else "it alone"
        unused = [name for name in names if name not in classes]  # of these, one may be a wrong spelling
        near = closest(missing[0], unused)
        instead = f"; it has {near}, which is not a class: did you mean {missing[0]}?" if near else ""
        raise InputError(f"{source}: lacks the class {missing[0]} of the data set ({count}){instead}")
    return [names[c] for c in classes]


def number_groups(taxonomy: Taxonomy, classes: list[str], source: str) -> dict[str, torch.Tensor]:
    """By level, the finest first: [C] the number of each class's group. InputError where the taxonomy lacks a class."""
    groups_of, found = match_classes(classes, taxonomy.groups, source), {}
    for at, level in enumerate(taxonomy.levels):
        names = [groups[at] for groups in groups_of]
        number = {name: i for i, name in enumerate(dict.fromkeys(names))}
        found[level] = torch.tensor([number[name] for name in names])
    return found


def list_members(taxonomy: Taxonomy) -> dict[str, list[str]]:
    """superclass -> classes of the finest level."""
    found: dict[str, list[str]] = {}
    for name, (path, *_) in taxonomy.groups.items():
        found.setdefault(path[0], []).append(name)
    return found


def compute_similarity(taxonomy: Taxonomy, classes: list[str], source: str) -> np.ndarray:
    """[C, C] 1 on the diagonal, less by one step a level, 0 for classes that share no group.

    With L levels above the class a step is min(0.25, 1 / (L + 1)): a rank of distance as everywhere, 0.75 inside a
    superclass, and small enough that the farthest level is above 0. As NestedRINCELoss has it for L + 1 levels.
    """
    levels = list(number_groups(taxonomy, classes, source).values())
    step = min(STEP, 1 / (len(levels) + 1))
    found = np.zeros((len(classes),) * 2)
    for distance, group in reversed(list(enumerate(levels, 1))):
        found = np.where((group[:, None] == group).numpy(), round(1 - distance * step, 12), found)  # 0.4, no 0.3999...
    np.fill_diagonal(found, 1.0)
    return found


# ---- superclasses ----------------------------------------------------------------------------------------------------


def list_shipped() -> list[str]:
    """Names of the superclasses that ship with a data set."""
    return sorted(f.stem for f in SHIPPED.glob("*.yaml"))


def read_shipped(name: str) -> dict[str, list[str]]:
    """Return the superclasses that ship with a data set, by the name in its `Source`: one of `list_shipped`."""
    return read_superclasses(str(SHIPPED / f"{name}.yaml"))


def read_superclasses(source: str, flag: str = "--ranking") -> dict[str, list[str]]:
    """superclass -> classes of what `read_taxonomy` takes for a taxonomy of one level. `flag` is named in errors."""
    found = read_taxonomy(source, flag)
    if found is None or len(found.levels) > 1:
        raise InputError(f"{flag} {source}: superclasses are a YAML file of lines `superclass: [class, class, ...]`")
    return list_members(found)


def choose_superclasses(file: str | None, known: str | Taxonomy | None) -> tuple[dict[str, list[str]] | None, str]:
    """superclass -> classes of --superclasses FILE, else of what a data set knows: the name of those that ship, or its
    own taxonomy; else None; and what errors call them.
    """
    if file:
        return read_superclasses(file, "--superclasses"), f"--superclasses {file}"
    if isinstance(known, Taxonomy):
        return list_members(known), "the second column of labels"
    return (read_shipped(known), known) if known else (None, "")


def number_superclasses(groups: dict[str, list[str]], classes: list[str], source: str) -> torch.Tensor:
    """[C] the number of each class's superclass."""
    number = {c: i for i, members in enumerate(groups.values()) for c in members}
    return torch.tensor(match_classes(classes, number, source))


# ---- readers ---------------------------------------------------------------------------------------------------------


def read_taxonomy(source: str, flag: str) -> Taxonomy | None:
    """Return what a source says of groups; None of a matrix of similarities. Nothing else tells kinds of sources apart.

    source: a file, a folder, or the name of superclasses that ship. Raises InputError, naming `flag`, where it is
    missing, or is a taxonomy with a fault.
    """
    path, where = Path(source), f"{flag} {source}"
    if source in list_shipped() and not path.exists():
        path = SHIPPED / f"{source}.yaml"
    if path.is_dir():
        return parse_nested(_read_folder(path, where), where)
    if path.suffix in (".yaml", ".yml"):
        return parse_nested(text_files.read_yaml(path, where, as_written=True), where)
    if path.suffix == ".npz":
        return None
    rows = text_files.read_rows(path, where)
    if rows and lists.is_header(rows[0][1]):
        return parse_list(rows, where)
    return parse_rows(rows, where) if is_table(rows) else None


def parse_nested(content: Any, source: str) -> Taxonomy:
    """Parse mappings in mappings, down to lists of classes, all at one depth. `source` begins errors."""
    leaves = list(_walk_leaves(content, (), source))
    text_files.check_once((name for name, _ in leaves), source, "class")
    found = dict(leaves)
    at = {len(path): name for name, path in found.items()}
    if len(at) > 1:
        depths = f"{at[min(at)]} lies {min(at)} deep, {at[max(at)]} {max(at)}"
        raise InputError(f"{source}: {depths}; all classes must lie at one depth")
    levels = tuple(f"level {number}" for number in range(1, max(at) + 1))
    return Taxonomy(levels, {name: _name_groups(path) for name, path in found.items()})


def _walk_leaves(content: Any, above: tuple[str, ...], source: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each class, and the names above it in one Unicode form, the finest first."""
    where = " / ".join(reversed(above)) or "the file"
    if not content or not isinstance(content, (dict, list) if above else dict):
        raise InputError(f"{source}: {where} must hold lines of `name: [class, class, ...]`, nested for more levels")
    if not all(isinstance(name, str) and name for name in content):
        raise InputError(f"{source}: {where}: an empty name, or something else than one; quote such names")
    if isinstance(content, list):
        yield from ((name, above) for name in content)
        return
    text_files.check_once(content, source, "the name")
    for name, inner in content.items():
        yield from _walk_leaves(inner, (util.one_form(name), *above), source)


def _name_groups(path: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of a class from the names on its path, the finest first."""
    return tuple(tuple(path[at:]) for at in range(len(path)))


def _read_folder(folder: Path, source: str) -> dict[str, list[str]]:
    """superclass -> classes of a folder superclass/class/images, or of CIFAR-100's own files."""
    for place in (folder, folder / "cifar-100-python"):
        if (place / "meta").is_file() and (place / "train").is_file():
            return _read_coarse_labels(place, source)
    left_out = LeftOut()
    groups = {name: list_subfolders(folder / name, left_out) for name in list_subfolders(folder, left_out)}
    if line := left_out.describe():
        print(line)
    empty = [name for name, classes in groups.items() if not classes]
    if not groups or empty:
        raise InputError(f"{source}: {empty[0] if empty else 'it'} holds no folders; it must be superclass/class/")
    return groups


def _read_coarse_labels(folder: Path, source: str) -> dict[str, list[str]]:
    """CIFAR-100's own: the coarse label that its training images carry beside the fine one."""
    try:
        meta, train = (pickle.loads((folder / name).read_bytes(), encoding="latin1") for name in ("meta", "train"))
        pairs = sorted(set(zip(train["coarse_labels"], train["fine_labels"], strict=True)))
        coarse, fine = meta["coarse_label_names"], meta["fine_label_names"]
        return {name: [fine[f] for c, f in pairs if coarse[c] == name] for name in coarse}
    except Exception as error:  # a damaged pickle fails in many ways
        raise InputError(f"{source}: the files of CIFAR-100 are corrupt ({error!r}); download them again") from None


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
        text_files.parse_number(cell)
    except ValueError:
        return False
    return True


def parse_rows(rows: list[tuple[int, list[str]]], source: str) -> Taxonomy:
    """Parse a table of text_files.read_rows: the header `class,<finest level>,...,<coarsest>`, then a row a class."""
    levels, groups_by_row = parse_levels(rows, "class", source)
    text_files.check_once((name for _, name, _ in groups_by_row), source, "class")
    return Taxonomy(tuple(levels), {name: _name_groups(groups) for _, name, groups in groups_by_row})


def parse_list(rows: list[tuple[int, list[str]]], source: str) -> Taxonomy:
    """Parse the rows of an image list: the columns beside path, label and split are levels of the labels."""
    head = rows[0][1]
    kept = [at for at, name in enumerate(head) if name != "split"]
    if len(kept) < 3:
        raise InputError(
            f"{source}: this image list has no ranking; it needs columns of levels after path, label and split"
        )
    text_files.check_widths(head, rows, source)
    levels, groups_by_row = parse_levels([(line, [row[at] for at in kept]) for line, row in rows], "path", source)
    return Taxonomy(tuple(levels[1:]), {label: _name_groups(groups) for _, _, (label, *groups) in groups_by_row})


def parse_levels(
    rows: list[tuple[int, list[str]]], kind: str, source: str
) -> tuple[list[str], list[tuple[int, str, list[str]]]]:
    """Names of the levels, and line, name and groups of each row, of a table of levels, whoever asks for it: the header
    `<kind>,<finest level>,...,<coarsest>`, then a row per class or image, as `kind` says.

    Raises InputError, beginning with `source`, where names of the header differ in blanks and signs at most, as tags of
    TensorBoard must not, or a group lies in two groups of the next level.
    """
    (_, head), *body = rows
    if len(head) < 2 or not all(head):
        raise InputError(f"{source}: the first line must be `{kind},<finest level>,...,<coarsest>`")
    text_files.check_once(map(util.plain_name, head), source, "the first line must have each name once;")
    text_files.check_widths(head, body, source)
    parents: dict[tuple[int, str], str] = {}  # level and group -> group of the next level
    spelling: dict[str, str] = {}
    found = []
    for line, (name, *row) in body:
        groups = [spelling.setdefault(util.one_form(group), group) for group in row]
        for at, (finer, coarser) in enumerate(itertools.pairwise(groups)):
            if parents.setdefault((at, finer), coarser) != coarser:
                where = f"{head[at + 1]} {finer} belongs to {head[at + 2]} {coarser} and to {parents[at, finer]}"
                hint = f"groups must be nested, the finest column first, and their names differ ({coarser}/{finer})"
                raise InputError(f"{source}, line {line}: {where}; {hint}")
        found.append((line, name, groups))
    return head[1:], found


def parse_inaturalist(classes: list[str], source: str) -> Taxonomy:
    """Parse what the names of iNaturalist's folders, number_kingdom_phylum_class_order_family_genus_species, say."""
    found = {}
    for name in classes:
        parts = name.split("_")
        if len(parts) < 8 or not parts[0].isdecimal():
            called = "number_kingdom_phylum_class_order_family_genus_species"
            raise InputError(
                f"{source}: the class {name} is not a folder of iNaturalist 2021, whose names are like {called}"
            )
        found[name] = _name_groups(parts[6:0:-1])
    return Taxonomy(INATURALIST, found)

"""How near two nouns of WordNet are in its tree of "is a": path and Wu-Palmer similarity of ImageNet's wnids."""

import functools
import re
from collections import deque
from pathlib import Path

import numpy as np

from datasets import text_files
from util import InputError

MEASURES = ("path", "wup")
ROOT = "all"  # above every class without a parent, where a file has several


def read_parents(path: Path | None) -> dict[str, tuple[str, ...]]:
    """wnid -> wnids that it is a kind of.

    path: ImageNet's wordnet.is_a.txt (lines of `parent child`), WordNet's own data.noun, or a folder that holds it;
    None = the WordNet of NLTK, if it is installed. Raises InputError, naming --is_a.
    """
    if path is None:
        return _read_nltk()
    path = path / "data.noun" if path.is_dir() else path
    source = f"--is_a {path}"
    try:
        if path.name == "data.noun":
            return _parse_data_noun(filter(str.strip, text_files.read_text(path, source).split("\n")))
        return _parse_is_a(row for _, row in text_files.read_rows(path, source))
    except InputError:
        raise
    except (ValueError, IndexError):
        known = "lines of `parent child` as in ImageNet's wordnet.is_a.txt, nor WordNet's data.noun"
        raise InputError(f"{source}: neither {known}") from None


def _parse_is_a(rows) -> dict[str, tuple[str, ...]]:
    parents: dict[str, tuple[str, ...]] = {}
    for row in rows:
        parent, child = row if len(row) > 1 else row[0].split()
        parents.setdefault(parent, ())
        parents[child] = (*parents.get(child, ()), parent)
    return parents


def _parse_data_noun(lines) -> dict[str, tuple[str, ...]]:
    """Offset, file, type, number of words in hexadecimal, the words, number of pointers, the pointers of four fields
    each (wndb(5WN)); `@` and `@i` point to what a noun is a kind, or an instance, of.
    """
    parents = {}
    for line in lines:
        if line.startswith("  "):  # the license
            continue
        fields = line.split()
        at = 4 + 2 * int(fields[3], 16)
        pointers = [fields[at + 1 + 4 * i : at + 5 + 4 * i] for i in range(int(fields[at]))]
        if not re.fullmatch(r"\d{8}", fields[0]):
            raise ValueError(line)
        parents[f"n{fields[0]}"] = tuple(f"n{p[1]}" for p in pointers if p[0] in ("@", "@i"))
    return parents


def _read_nltk() -> dict[str, tuple[str, ...]]:
    try:
        from nltk.corpus import wordnet

        wordnet.ensure_loaded()
    except (ImportError, LookupError):
        hint = "or run pip install nltk, and then python -m nltk.downloader wordnet"
        raise InputError(
            f"--is_a is missing: give ImageNet's wordnet.is_a.txt or WordNet's data.noun, {hint}"
        ) from None

    def wnid(synset):
        return f"n{synset.offset():08d}"

    return {
        wnid(s): tuple(wnid(h) for h in (*s.hypernyms(), *s.instance_hypernyms())) for s in wordnet.all_synsets("n")
    }


def compare_wnids(classes: list[str], is_a: Path | None, measure: str) -> tuple[np.ndarray, list[str], str]:
    """`compute_similarities` of wnids by `read_parents` of a file; the wnids; and what that is, in words."""
    table = compute_similarities(classes, read_parents(is_a), measure)
    return table, classes, f"{measure} similarity of wnids, {is_a or 'WordNet of NLTK'}"


def compute_similarities(classes: list[str], parents: dict[str, tuple[str, ...]], measure: str) -> np.ndarray:
    """[C, C] similarity in (0, 1] of wnids, 1 on the diagonal.

    "path": 1 / (1 + edges of the shortest path through a common ancestor).
    "wup": 2 D / (a + b + 2 D) with D the depth of the deepest common ancestor, counted from 1 at the root along the
        longest path, and a, b the edges from the two classes up to it (Wu and Palmer 1994); of equally deep ones, the
        nearest.
    Where the classes have several roots, one more stands above them. Raises InputError for a class that is not there
    and for a circle.
    """
    unknown = [c for c in classes if c not in parents]
    if unknown:
        raise InputError(f"--is_a: lacks the class {unknown[0]} ({len(unknown)} in all); classes must be wnids")
    up = [_find_ancestors(c, parents) for c in classes]
    roots = {a for found in up for a in found if not parents.get(a)}
    if len(roots) > 1:
        parents = {**parents, **{root: (ROOT,) for root in roots}, ROOT: ()}
        up = [_find_ancestors(c, parents) for c in classes]
    depth = _measure_depths({a for found in up for a in found}, parents)
    table = np.eye(len(classes))
    for i, a in enumerate(up):
        for j, b in enumerate(up[:i]):
            shared = a.keys() & b.keys()
            if measure == "path":
                value = 1 / (1 + min(a[x] + b[x] for x in shared))
            else:
                d, edges = max((depth[x], -a[x] - b[x]) for x in shared)
                value = 2 * d / (2 * d - edges)
            table[i, j] = table[j, i] = value
    return table


def _find_ancestors(wnid: str, parents) -> dict[str, int]:
    """ancestor -> edges up to it, itself included."""
    found, waiting = {wnid: 0}, deque([wnid])
    while waiting:
        here = waiting.popleft()
        for parent in parents.get(here, ()):
            if parent not in found:
                found[parent] = found[here] + 1
                waiting.append(parent)
    return found


def _measure_depths(nodes, parents) -> dict[str, int]:
    """Return the number of nodes of the longest way down from a root."""

    @functools.cache
    def depth(node):
        return 1 + max((depth(p) for p in parents.get(node, ())), default=0)

    try:
        return {node: depth(node) for node in nodes}
    except RecursionError:
        raise InputError("--is_a: has a cycle: some class is its own ancestor; check the file") from None

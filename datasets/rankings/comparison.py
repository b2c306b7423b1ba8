"""Rankings held against one another, and what a loss would find in a bank: what can be said before training."""

import numpy as np
import torch

import util
from datasets.rankings import table
from util import InputError


def correlate(a: np.ndarray, b: np.ndarray, permutations: int = 999, seed: int = 0) -> tuple[float, float, float]:
    """Spearman's rho over the pairs of classes of two tables [C, C]; the largest that tables with these values could
    have, below 1 where pairs tie; and the p-value of Mantel's permutation test.

    Pairs that share a class are not independent, so whole classes are permuted, rows and columns of b together: p is
    the share of permutations, the given order counted as one, whose rho is at least as far from 0 (two-sided, as
    scikit-bio has it; Mantel 1967). All are NaN where all pairs of a table are equally similar.
    """
    x, y = _rank_pairs(a), _rank_pairs(b)
    if not (x.any() and y.any()):
        return np.nan, np.nan, np.nan
    places = np.triu_indices(len(a), 1)
    rho, most = float((x * y).sum() / 2), float((np.sort(x[places]) * np.sort(y[places])).sum())
    rng, hits = np.random.default_rng(seed), 1
    for _ in range(permutations):
        order = rng.permutation(len(y))
        hits += abs((x * y[order][:, order]).sum() / 2) >= abs(rho) - 1e-12
    return rho, most, hits / (permutations + 1)


def _rank_pairs(values: np.ndarray) -> np.ndarray:
    """[C, C] the ranks of the pairs, symmetric, those of all pairs of mean 0 and length 1; 0 where all are equal."""
    from scipy.stats import rankdata

    places = np.triu_indices(len(values), 1)
    ranks = rankdata(values[places])
    ranks -= ranks.mean()
    full = np.zeros(values.shape)
    if ranks.any():
        full[places] = ranks / np.sqrt((ranks**2).sum())
    return full + full.T


def measure_overlap(a: np.ndarray, b: np.ndarray, k: int) -> tuple[float, float, float]:
    """Measure the share of a class's k most similar ones that two tables [C, C] have in common, on average over the
    classes; the largest that their ties allow; and what unrelated tables have, k / (C - 1).

    Ties for the last places are broken at random, in each table for itself: the expected share. k < C.
    """
    x, y = _find_nearest(a, k), _find_nearest(b, k)
    most = (np.sort(x, axis=1) * np.sort(y, axis=1)).sum(1).mean() / k
    return float((x * y).sum(1).mean() / k), float(most), k / (len(a) - 1)


def _find_nearest(similar: np.ndarray, k: int) -> np.ndarray:
    """[C, C] the chance that a class is among the k most similar ones of another: 1 or 0, but where several tie for the
    last places, which they share.
    """
    others = np.where(np.eye(len(similar), dtype=bool), -np.inf, similar)
    last = np.sort(others, axis=1)[:, -k][:, None]
    above, equal = others > last, others == last
    return above + equal * (k - above.sum(1, keepdims=True)) / equal.sum(1, keepdims=True)


def compare_pairs(tables: dict[str, np.ndarray], k: int, permutations: int) -> dict[tuple[str, str], dict[str, float]]:
    """Of each pair of rankings, by column: what `correlate` and, in percent, `measure_overlap` have."""
    found, names = {}, list(tables)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            shares = [100 * share for share in measure_overlap(tables[a], tables[b], k)]
            numbers = *correlate(tables[a], tables[b], permutations), *shares
            columns = "rho", "at most", "p", "overlap %", "at most %", "chance level %"
            found[a, b] = dict(zip(columns, numbers, strict=True))
    return found


def foresee_ranks(similarity: torch.Tensor, bank: int) -> dict[str, dict[str, float]]:
    """By rank, the most similar first, and for all "similar" classes together, what anchors find in a bank of so many
    keys, if all classes are equally frequent in it.

    similarity: [C, C] in [0, 1], as the loss takes it. Columns: the rank's `similarity`, NaN of several; `fewest` and
    `most` classes that a class has there; `keys`: their expected number in the bank, on average over the classes;
    `none %`: the classes that have none there; `empty %`: the chance that an anchor of the others finds none in the
    bank, keys drawn independently, on average, NaN without others. An anchor's own key, of rank 0, is not counted.
    """
    s = similarity.double().numpy()
    values = sorted({*s[s > 0].tolist()}, reverse=True)
    rows = {str(rank): (value, s == value) for rank, value in enumerate(values)}
    rows["similar"] = np.nan, (s > 0) & ~np.eye(len(s), dtype=bool)
    found = {}
    for name, (value, related) in rows.items():
        classes = related.sum(1)
        share = classes[classes > 0] / len(s)
        found[name] = {
            "similarity": value,
            "fewest": int(classes.min()),
            "most": int(classes.max()),
            "keys": float(bank * classes.mean() / len(s)),
            "none %": 100 * float((classes == 0).mean()),
            "empty %": 100 * float(((1 - share) ** bank).mean()) if len(share) else np.nan,
        }
    return found


def load_common(names: list[str]) -> tuple[dict[str, np.ndarray], list[str], str]:
    """By name, the tables [C, C] of rankings over the classes that all have in common; these, and what was left out.

    names: what `load` takes. Raises InputError for anything else, a name that is there twice, or fewer than four common
    classes.
    """
    if len({*names}) < len(names):
        raise InputError(f"compare {max(names, key=names.count)}: is given twice; give each ranking once")
    found = {name: table.load(name, "compare") for name in names}
    shared = set.intersection(*({util.one_form(c) for c in classes} for _, classes in found.values()))
    common = [c for c in found[names[0]][1] if util.one_form(c) in shared]
    sizes = {name: len(classes) for name, (_, classes) in found.items()}
    if len(common) < 4:
        counts = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(f"compare: {len(common)} classes are in all rankings (of {counts}); at least 4 are needed")
    tables = {}
    for name, (values, classes) in found.items():
        rows = table.find_rows(classes, common, name)
        tables[name] = values[np.ix_(rows, rows)]
    left = ", ".join(f"{size - len(common)} of {name}" for name, size in sizes.items() if size > len(common))
    return tables, common, f"{len(common)} classes that all have; left out: {left}" if left else ""

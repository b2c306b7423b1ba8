"""Rankings held against one another, and what a loss would find in a bank: what can be said before training."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import util
from datasets.rankings import builders, files, table
from util import InputError

LOW_P = 0.05  # below it, agreement or its lack is called so
SIMILAR, FAR = 0.8, 0.25  # of the largest rho: from where on rankings are called much alike, and below where hardly


# ---- two tables ------------------------------------------------------------------------------------------------------


def mantel(a: np.ndarray, b: np.ndarray, permutations: int = 999, seed: int = 0) -> tuple[float, float, float]:
    """Spearman's rho over the pairs of classes of two tables [C, C]; the largest that tables with these values could
    have, below 1 where pairs tie; and the p-value of Mantel's permutation test.

    Pairs that share a class are not independent, so whole classes are permuted, rows and columns of b together: p is
    the share of permutations, the given order counted as one, whose rho is at least as far from 0 (two-sided, as
    scikit-bio has it; Mantel 1967). Raises ValueError where all pairs of a table are equally similar.
    """
    x, y = _ranked(a), _ranked(b)
    places = np.triu_indices(len(a), 1)
    rho, most = float((x * y).sum() / 2), float((np.sort(x[places]) * np.sort(y[places])).sum())
    rng, hits = np.random.default_rng(seed), 1
    for _ in range(permutations):
        order = rng.permutation(len(y))
        hits += abs((x * y[order][:, order]).sum() / 2) >= abs(rho) - 1e-12
    return rho, most, hits / (permutations + 1)


def _ranked(values: np.ndarray) -> np.ndarray:
    """[C, C] the ranks of the pairs, symmetric, those of all pairs of mean 0 and length 1."""
    from scipy.stats import rankdata

    places = np.triu_indices(len(values), 1)
    ranks = rankdata(values[places])
    ranks -= ranks.mean()
    if not ranks.any():
        raise ValueError("all pairs of classes are equally similar: there is nothing to correlate")
    full = np.zeros(values.shape)
    full[places] = ranks / np.sqrt((ranks**2).sum())
    return full + full.T


def among_nearest(similar: np.ndarray, k: int) -> np.ndarray:
    """[C, C] the chance that a class is among the k most similar ones of another: 1 or 0, but where several tie for the
    last places, which they share.
    """
    others = np.where(np.eye(len(similar), dtype=bool), -np.inf, similar)
    last = np.sort(others, axis=1)[:, -k][:, None]
    above, equal = others > last, others == last
    return above + equal * (k - above.sum(1, keepdims=True)) / equal.sum(1, keepdims=True)


def overlap(a: np.ndarray, b: np.ndarray, k: int) -> tuple[float, float, float]:
    """The share of a class's k most similar ones that two tables [C, C] have in common, on average over the classes;
    the largest that their ties allow; and what tables that have nothing to do with one another have, k / (C - 1).

    Ties for the last places are broken at random, in each table for itself: the expected share. k < C.
    """
    x, y = among_nearest(a, k), among_nearest(b, k)
    most = (np.sort(x, axis=1) * np.sort(y, axis=1)).sum(1).mean() / k
    return float((x * y).sum(1).mean() / k), float(most), k / (len(a) - 1)


# ---- one table as training takes it ----------------------------------------------------------------------------------


def outlook(similarity: torch.Tensor, bank: int) -> list[dict]:
    """What anchors find at each rank in a bank of so many keys, if all classes are equally frequent in it.

    similarity: [C, C] in [0, 1], as the loss takes it. Of each rank, the most similar first: `similarity`; `classes`:
    fewest and most classes that a class has at it; `keys`: their expected number in the bank, on average over the
    classes; `without`: the share of the classes that have none at it; `empty`: the chance that an anchor of the others
    finds none in the bank, keys drawn independently, on average. An anchor's own key, of rank 0, is not counted.
    """
    s = similarity.double().numpy()
    found = []
    for value in sorted({*s[s > 0].tolist()}, reverse=True):
        classes = (s == value).sum(1)
        share, has = classes / len(s), classes > 0
        found.append({
            "similarity": value,
            "classes": (int(classes.min()), int(classes.max())),
            "keys": float(bank * share.mean()),
            "without": float(1 - has.mean()),
            "empty": float(((1 - share[has]) ** bank).mean()),
        })  # fmt: skip
    return found


def lonely(similarity: torch.Tensor, classes: list[str]) -> list[str]:
    """The classes that have no similar one: for them the loss has one rank, as SCL has."""
    alone = ((similarity > 0).sum(1) == 1).tolist()
    return [name for name, is_alone in zip(classes, alone, strict=True) if is_alone]


# ---- in words --------------------------------------------------------------------------------------------------------


def verdict(a: str, b: str, rho: float, most: float, p: float) -> str:
    """What the correlation of two rankings lets expect, and no more: by its share of the largest there could be."""
    limit = f" of at most {most:.2f}" if most < 0.995 else ""
    said = f"{a} and {b}: Spearman {rho:.2f}{limit}, p {p:.2g}: "
    if p >= LOW_P:
        alike = rho >= SIMILAR * most
        return said + (
            "alike, of too few classes to tell it from chance" if alike else "no more than chance would give"
        )
    if rho < -FAR * most:
        return said + "they contradict one another: one calls near what the other calls far"
    if rho >= SIMILAR * most:
        return said + "much alike; expect similar runs"
    near = rho >= FAR * most
    return said + ("related, with much that only one of them has" if near else "hardly alike, though not by chance")


def warnings(name: str, ranks: list[dict], alone: list[str], count: int, bank: int) -> list[str]:
    """What of an outlook stands in the way of training, and what to do; of `count` classes, `alone` have no other."""
    lines = []
    if len(alone) == count:
        return [f"{name}: no class has a similar one: this is SCL"]
    if alone:
        named = ", ".join(alone[:5]) + (f" and {len(alone) - 5} more" if len(alone) > 5 else "")
        lines.append(
            f"{name}: {len(alone)} of {count} classes have no similar one, and are trained as SCL does: {named}"
        )
    for r, rank in enumerate(ranks):
        if rank["empty"] > 0.1:
            lines.append(
                f"{name}: in a bank of {bank}, rank {r} is empty for {100 * rank['empty']:.0f} % of the anchors that "
                "could have it: a larger bank, or fewer ranks, would fill it"
            )
        if r and rank["without"] > 0.5:
            lines.append(
                f"{name}: {100 * rank['without']:.0f} % of the classes have no class of rank {r}: few learn from it"
            )
    if len(ranks) > 1 and sum(rank["keys"] for rank in ranks[1:]) > 0.5 * bank:
        lines.append(
            f"{name}: more than half of the bank is similar to an anchor: higher thresholds would leave more negatives"
        )
    return lines


# ---- the whole diagnosis ---------------------------------------------------------------------------------------------


def read(names: list[str]) -> tuple[dict[str, np.ndarray], list[str], str]:
    """By name, the tables [C, C] of rankings over the classes that all have in common; these, and what was left out.

    names: files, of superclasses or matrices, the superclasses of a data set that ship, or "roberta_threshold". Raises
    InputError for anything else, a name that is there twice, or fewer than four common classes.
    """
    found = {}
    for name in names:
        if name in found:
            raise InputError(f"compare {name}: is there twice")
        if name in table.NAMED and name != "roberta_threshold":
            raise InputError(f"compare {name}: of which data set? give one of {', '.join(files.shipped())}, or a file")
        if name == "roberta_threshold":
            values, of = files.read_table(files.ROBERTA)
        elif name in files.shipped():
            values, of = builders.of_levels(name, "compare")
        elif not Path(name).is_file():
            known = ", ".join([*files.shipped(), "roberta_threshold"])
            raise InputError(f"compare {name}: no such file, and none of {known}")
        else:
            values, of = builders.of_file(name, "compare")
        found[name] = values, util.spelt_as(of, next(iter(found.values()))[1]) if found else of
    first, *others = found.values()
    common = [c for c in first[1] if all(c in of for _, of in others)]
    if len(common) < 4:
        sizes = ", ".join(f"{name} {len(of)}" for name, (_, of) in found.items())
        raise InputError(f"compare: {len(common)} classes are in all rankings (of {sizes}); at least 4 are needed")
    tables = {}
    for name, (values, of) in found.items():
        chosen = table.chosen(of, common, name)
        tables[name] = values[np.ix_(chosen, chosen)]
    left = [f"{len(of) - len(common)} of {name}" for name, (_, of) in found.items() if len(of) > len(common)]
    return tables, common, f"{len(common)} classes that all have; left out: {', '.join(left)}" if left else ""


def agreement(tables: dict[str, np.ndarray], k: int, permutations: int, seed: int) -> dict[tuple[str, str], dict]:
    """Of each pair of rankings: what `mantel` has, "rho", "most" and "p", None where one of them has a single
    similarity, and what `overlap` has, "overlap".
    """
    found, names = {}, list(tables)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            try:
                rho, most, p = mantel(tables[a], tables[b], permutations, seed)
            except ValueError:
                rho = most = p = None
            found[a, b] = {"rho": rho, "most": most, "p": p, "overlap": overlap(tables[a], tables[b], k)}
    return found


def as_trained(name: str, values: np.ndarray, ranks: table.Ranks, classes: list[str], bank: int) -> list[str]:
    """The lines of what training would find of one ranking; one that says why, where it would refuse it."""
    try:
        similarity = table.to_similarity(values, ranks, name)
    except InputError as error:
        return [f"{name}: not to be trained on as it is: {str(error).removeprefix(f'{name}: ')}"]
    found, lines = outlook(similarity, bank), []
    for r, rank in enumerate(found):
        low, high = rank["classes"]
        of = f"{low}" if low == high else f"{low} to {high}"
        lines.append(
            f"{name}: rank {r}, similarity {rank['similarity']:.3g}: a class has {of} classes, an anchor "
            f"{rank['keys']:.1f} keys in a bank of {bank}"
        )
    return lines + warnings(name, found, lonely(similarity, classes), len(classes), bank)


@dataclass
class Diagnosis:
    """Rankings over the same classes, what is to be said of them, and Spearman's rho of the others with the first."""

    tables: dict[str, np.ndarray]
    classes: list[str]
    lines: list[str]
    rho: dict[str, float | None]


def diagnosis(names: list[str], ranks: table.Ranks, bank: int, k: int, permutations: int) -> Diagnosis:
    """What rankings share, pair by pair, and what training by these ranks would find of each in a bank of so many keys.

    names: as `read` has them; k: most similar classes to compare; permutations: of Mantel's test. Raises InputError.
    """
    tables, classes, left_out = read(names)
    if k >= len(classes):
        raise InputError(f"--k {k}: must be below the number of classes, {len(classes)}")
    lines, rho = [left_out] if left_out else [], {}
    for (a, b), of in agreement(tables, k, permutations, 0).items():
        if of["rho"] is None:
            lines.append(f"{a} and {b}: one of them has a single similarity, so that nothing correlates")
        else:
            lines.append(verdict(a, b, of["rho"], of["most"], of["p"]))
        shared, most, chance = (100 * share for share in of["overlap"])
        limit = f" of at most {most:.0f} %" if most < 99.5 else ""
        lines.append(
            f"{a} and {b}: share {shared:.0f} %{limit} of the {k} most similar classes, by chance {chance:.0f} %"
        )
        if a == names[0]:
            rho[b] = of["rho"]
    for name, values in tables.items():
        lines += ["", *as_trained(name, values, ranks, classes, bank)]
    return Diagnosis(tables, classes, lines, rho)


def shown(name: str, ranks: table.Ranks) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Of a ranking's file: its table [C, C], the one that training takes, the names of its classes in words, and a line
    for each of the ten most similar pairs. Raises InputError.
    """
    values, classes = builders.of_file(name, "show")
    trained = table.to_similarity(values, ranks, f"show {name}").numpy()
    pairs = sorted(itertools.combinations(range(len(classes)), 2), key=lambda p: -values[p])
    words = files.in_words(classes)
    lines = [
        f"{words[classes[a]]} - {words[classes[b]]}: {values[a, b]:.6g}, in training {float(trained[a, b]):g}"
        for a, b in pairs[:10]
    ]
    return values, trained, list(words.values()), lines

"""What retrieval is to find among features, in which order, and how well it does."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

import evaluation
from datasets import rankings
from datasets.rankings import taxonomy
from engine.encoder.trained_encoder import FrozenEncoder
from engine.processes import distributed
from util import InputError

AT_R = ("R-precision", "MAP@R")
RANKS = "ranks"  # the row of a record that is no label set


@dataclass
class RetrievalTask:
    """What is looked for: by name of a label set, [C] the label of each class or group; levels: the ranks whose order
    is measured, if any; similarity: [C, C] of classes, what class means are held against; vote: of how many neighbors
    a kNN accuracy is taken, None: of none; at_r: whether R-precision and MAP@R are wanted; classes: their names, for
    figures of each, [] of groups without; apart: the label set, of superclasses, that is also looked for without the
    query's own class, if any. Of numbers there is no set, but query_values and gallery_values: [C] the number of each
    label of the queries, and of the gallery.
    """

    sets: dict[str, Tensor]
    levels: evaluation.Levels | None = None
    similarity: Tensor | None = None
    vote: int | None = None
    at_r: bool = False
    classes: list[str] = field(default_factory=list)
    apart: str | None = None
    query_values: Tensor | None = None
    gallery_values: Tensor | None = None


def add_levels(own: dict[str, Tensor], levels: dict[str, Tensor]) -> dict[str, Tensor]:
    """Label sets of ours and a user's levels, whose name may be any: one that a row of ours has is `level NAME`."""
    found = dict(own)
    for name, of in levels.items():
        while name in found or name == RANKS:
            name = f"level {name}"
        found[name] = of
    return found


def read_levels(file: str | None, classes: list[str], known: str | taxonomy.Taxonomy | None) -> dict[str, Tensor]:
    """By level of a taxonomy: [C] the number of each class's group. known: what the data set has, for no `file`."""
    flag = f"--superclasses {file}" if file else "the columns of labels"
    levels = known if isinstance(known, taxonomy.Taxonomy) else None
    if file == "inaturalist":
        levels = taxonomy.parse_inaturalist(classes, flag)
    elif file:
        levels = taxonomy.read_taxonomy(file, "--superclasses")
    if levels is None:
        raise InputError("--labelset levels: give --superclasses a taxonomy: nested YAML, class,genus,family as CSV")
    return taxonomy.number_groups(levels, classes, flag)


def find_similarity(
    ranking: str, ranks: rankings.Ranks, net: FrozenEncoder, superclasses, classes: list[str]
) -> Tensor:
    """[C, C] in [0, 1] the similarities of the classes, whose distinct values are the ranks.

    superclasses: the data set's own.
    ranking: "checkpoint", as the encoder was trained on, or anything that --ranking is in training; ranks: how its
    values become ranks, of "checkpoint" only where they say more than nothing: else it is as trained. Raises InputError
    where the ranking lacks a class, or the checkpoint has none.
    """
    flag = f"--ranking {ranking}"
    if ranking != "checkpoint":
        return rankings.assign_ranks(rankings.find_similarities(ranking, classes, superclasses), ranks, flag)
    table, names = _read_table(net, flag, "similarity" if ranks == rankings.ALL else "source")
    chosen = rankings.find_rows(names, classes, f"{flag}: {net.record['path']}")
    table = table[chosen][:, chosen]
    return table if ranks == rankings.ALL else rankings.assign_ranks(table.numpy(), ranks, flag)


def _read_table(net: FrozenEncoder, flag: str, entry: str) -> tuple[Tensor, list[str]]:
    """Read a table of the checkpoint, and the names of its classes; InputError, beginning with `flag`, without one."""
    path, kept, names = net.record["path"], net.ranking, net.record["classes"]
    if kept is None:
        raise InputError(
            f"{flag}: {path} holds no ranking: it is of an older version, or was trained without one, as SCL and "
            "cross-entropy are; give --ranking superclass, or the ranking's file"
        )
    if "groups" in kept:
        raise InputError(f"{flag}: {path} was trained on groups without classes; give --instance_ranks")
    if "values" in kept:
        raise InputError(f"{flag}: {path} was trained on numbers, not on classes; give --values")
    table = kept.get(entry) if isinstance(kept, dict) else None
    if not isinstance(table, Tensor) or table.shape != (len(names or ()),) * 2 or not torch.isfinite(table).all():
        raise InputError(f"{flag}: {path} holds no table of its {len(names or ())} classes: it was changed")
    return table, names


def measure(
    task: RetrievalTask, queries: Tensor, labels: Tensor, gallery: Tensor | None, gallery_labels: Tensor, device
) -> tuple[dict, dict, dict]:
    """Metrics and precision-recall curve by label set, the order of the ranks under "ranks"; and what a record says
    besides: how many queries have something to find, and figures of each class. Of numbers the metrics of "values".

    queries, gallery: features [n, d] and [m, d], and their labels; gallery None: the queries look for one another.
    Raises InputError where no query has anything to find.
    """
    if task.query_values is not None:
        sides = queries.to(device), task.query_values[labels], gallery.to(device), task.gallery_values[gallery_labels]
        scores = evaluation.regression_metrics(*sides, k=task.vote or evaluation.NEIGHBORS)
        return {"values": {k: v if k.endswith("MAE") else 100 * v for k, v in scores.items()}}, {}, {}
    alone = gallery is None
    x, y = queries.to(device), labels.to(device)
    g, b = (None, None) if alone else (gallery.to(device), gallery_labels.to(device))
    within = {name: group.to(device) for name, group in task.sets.items()}
    counts = {name: int(evaluation.not_alone(of[y]).sum()) if alone else len(y) for name, of in within.items()}
    asks = {name: of for name, of in within.items() if counts[name]}
    if not asks:
        what = "--gallery test: no two images share a class"
        what = what if task.classes else "--instance_ranks: no two images share a group at any level"
        raise InputError(f"{what}: there is nothing to find")
    found = {}
    for name, of in asks.items():
        finer = {"classes": y, "gallery_classes": b} if name == task.apart else {}
        found[name] = evaluation.Curve(of[y], None if alone else of[b], **finer)
    order = evaluation.Order(y, b, task.levels) if task.levels is not None else None
    evaluation.look_up(x, g, [*found.values(), *filter(None, [order])])
    others = len(y) - 1 if alone else len(b)
    if task.vote and task.vote > others:
        distributed.say(f"--knn_vote {task.vote}: the gallery has {others} images; all of them are neighbors")
    metrics, curves, said = {}, {}, {"queries": counts} if alone else {}
    said |= {"by_class": {}} if task.classes else {}
    said |= {"queries_other_classes": int((found[task.apart].others > 0).sum())} if task.apart in found else {}
    for name, curve in found.items():
        scores, precision, recall = curve.result()
        metrics[name] = {k: 100 * v for k, v in scores.items() if task.at_r or k not in AT_R}
        curves[name] = (precision.cpu(), recall.cpu(), scores["AP"])
        if task.vote:
            of = within[name]
            sides = (x, of[y], None, None) if alone else (x, of[y], g, of[b])
            metrics[name]["kNN"] = 100 * evaluation.knn_accuracy(*sides, k=task.vote)
        if task.classes:
            figures = curve.by_class(y, len(task.classes))
            rows = zip(*(values.tolist() for values in figures.values()), strict=True)
            said["by_class"][name] = {
                of_class: {k: 100 * v for k, v in zip(figures, row, strict=True)}
                for of_class, row in zip(task.classes, rows, strict=True)
                if row[0] == row[0]
            }
    if order:
        try:
            scores = order.result()
        except ValueError as error:
            raise InputError(f"rank consistency: {error}") from None
        metrics[RANKS] = {k: v if k == "nearest other" else 100 * v for k, v in scores.items()}
        if task.similarity is not None:
            metrics[RANKS] |= evaluation.class_correlation(queries, labels, task.similarity)
    return metrics, curves, said

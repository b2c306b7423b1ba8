"""Similarities of classes as matrices: a ranking and what training takes from it, several rankings side by side."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import figures
from figures.curves import GRAY, INLIER

FEW = 40  # classes whose names can be read beside those of other rankings


@dataclass(frozen=True)
class Classes:
    """What is drawn of classes: their names, in which order, and the number of each one's group."""

    names: list[str]
    order: list[int]
    group_of: list[int]


def clustered(table: np.ndarray) -> np.ndarray:
    """[C] an order in which similar classes are neighbors: average linkage, leaves in the best order."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(table) < 3:
        return np.arange(len(table))
    return leaves_list(linkage(squareform(1 - table, checks=False), "average", optimal_ordering=True))


def draw_matrix(ax, table, classes: Classes, low: float | None = None, inches: float = 5):
    """Draw similarities of classes in order, groups framed in white; returns the image, for a color bar.

    The colors reach from `low` to 1; None: from the smallest similarity, or from 0 where none is below.
    """
    names, order, group_of = [classes.names[c] for c in classes.order], classes.order, classes.group_of
    low = min(0, table.min()) if low is None else low
    image = ax.imshow(table[np.ix_(order, order)], cmap="viridis", vmin=low, vmax=1)
    size = max(3, min(10, 60 * inches / len(order)))
    ax.set_xticks(range(len(order)), names, rotation=90 if len(max(names, key=len)) > 2 else 0, fontsize=size)
    ax.set_yticks(range(len(order)), names, fontsize=size)
    width = 1.5 if len(set(group_of)) <= 10 else 0.8
    for i in range(1, len(order)):
        if group_of[order[i]] != group_of[order[i - 1]]:
            ax.axhline(i - 0.5, color="white", lw=width)
            ax.axvline(i - 0.5, color="white", lw=width)
    return image


def draw_ranking(path: Path, table: np.ndarray, ranks: np.ndarray, classes: list[str], title: str) -> None:
    """Similarities on the left, the ranks that training takes from them on the right, similar classes side by side."""
    side = max(4.0, min(12.0, 0.14 * len(classes)))
    shown = Classes(classes, clustered(table).tolist(), [0] * len(classes))
    figure, axes = figures.pyplot().subplots(1, 2, figsize=(2 * side + 2, side + 0.8), layout="constrained")
    for ax, values, name in ((axes[0], table, "similarity"), (axes[1], ranks, "ranks: similarity in training")):
        image = draw_matrix(ax, values, shown, inches=side / 1.4)
        ax.set_title(name)
        figure.colorbar(image, ax=ax, shrink=0.8)
    figures.save(figure, path, title)


def draw_comparison(
    path: Path, tables: dict[str, np.ndarray], classes: list[str], rho: dict[str, float | None]
) -> None:
    """Draw rankings side by side, and the pairs of classes of each over those of the first.

    tables: by name, [C, C] over the same classes, ordered by the first one; rho: Spearman's with the first.
    """
    first, *others = tables
    order, pairs = clustered(tables[first]), np.triu_indices(len(classes), 1)
    side = 3.2 if len(classes) <= FEW else 4.2
    down = 2 if others else 1
    size = max(5.0, (side + 0.5) * len(tables)), side * down + 1.0
    figure, axes = figures.pyplot().subplots(down, len(tables), figsize=size, layout="constrained", squeeze=False)
    for ax, (name, table) in zip(axes[0], tables.items(), strict=True):
        image = ax.imshow(table[np.ix_(order, order)], cmap="viridis")
        ax.set(xticks=[], yticks=[])
        ax.set_title(name, fontsize=9)
        if name == first and len(classes) <= FEW:
            ax.set_yticks(range(len(classes)), [classes[c].replace("_", " ") for c in order], fontsize=6)
        figure.colorbar(image, ax=ax, shrink=0.75)
    if others:
        axes[1][0].axis("off")
    for ax, name in zip(axes[1][1:] if others else (), others, strict=True):
        x, y = tables[first][pairs], tables[name][pairs]
        if len(np.unique(x)) <= 10:  # of few values: a box each
            values = np.unique(x)
            ax.boxplot([y[x == v] for v in values], tick_labels=[f"{v:.2g}" for v in values], widths=0.6, sym=".",
                       flierprops=dict(ms=2, mec=GRAY), medianprops=dict(color=INLIER, lw=2))  # fmt: skip
        else:
            ax.plot(x, y, ".", ms=3, alpha=max(0.1, min(1, 500 / len(x))), color=INLIER, mew=0)
        ax.set_xlabel(first, fontsize=9)
        ax.set_ylabel(name, fontsize=9)
        correlation = "" if rho[name] is None else f", Spearman {rho[name]:.2f}"
        ax.set_title(f"pairs of classes{correlation}", fontsize=9)
    figures.save(figure, path)

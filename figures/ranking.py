"""A ranking as a picture: the similarities of the classes, and the ranks that training takes from them."""

from pathlib import Path

import numpy as np

import figures


def clustered(table: np.ndarray) -> np.ndarray:
    """[C] an order in which similar classes are neighbours: average linkage, leaves in the best order."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(table) < 3:
        return np.arange(len(table))
    return leaves_list(linkage(squareform(1 - table, checks=False), "average", optimal_ordering=True))


def draw_ranking(path: Path, table: np.ndarray, ranks: np.ndarray, classes: list[str], title: str) -> None:
    """Similarities on the left, the ranks that training takes from them on the right, similar classes side by side."""
    plt = figures.pyplot()

    order = clustered(table)
    side = max(4.0, min(12.0, 0.14 * len(classes)))
    figure, axes = plt.subplots(1, 2, figsize=(2 * side + 2, side + 0.8), layout="constrained")
    for ax, values, name in ((axes[0], table, "similarity"), (axes[1], ranks, "ranks: similarity in training")):
        image = ax.imshow(values[np.ix_(order, order)], cmap="viridis", vmin=min(0, values.min()), vmax=1)
        ax.set(title=name, xticks=range(len(order)), yticks=range(len(order)))
        size = max(3, min(10, 60 * side / len(order) / 1.4))
        ax.set_xticklabels([classes[c] for c in order], rotation=90, fontsize=size)
        ax.set_yticklabels([classes[c] for c in order], fontsize=size)
        figure.colorbar(image, ax=ax, shrink=0.8)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)

"""Rankings side by side: their matrices in one order of the classes, and the pairs of each over those of the first."""

from pathlib import Path

import numpy as np

import figures
from figures.curves import GREY, INLIER
from figures.ranking import clustered

FEW = 40  # classes whose names can be read


def draw_comparison(
    path: Path, tables: dict[str, np.ndarray], classes: list[str], rho: dict[str, float | None]
) -> None:
    """tables: by name, [C, C] over the same classes, ordered by the first one; rho: Spearman's with the first."""
    plt = figures.pyplot()
    first, *others = tables
    order, places = clustered(tables[first]), np.triu_indices(len(classes), 1)
    side = 3.2 if len(classes) <= FEW else 4.2
    down = 2 if others else 1
    size = max(5.0, (side + 0.5) * len(tables)), side * down + 1.0
    figure, axes = plt.subplots(down, len(tables), figsize=size, layout="constrained", squeeze=False)
    for ax, (name, table) in zip(axes[0], tables.items(), strict=True):
        image = ax.imshow(table[np.ix_(order, order)], cmap="viridis")
        ax.set_title(name, fontsize=9)
        ax.set_xticks([])
        ax.set_yticks([])
        if name == first and len(classes) <= FEW:
            ax.set_yticks(range(len(classes)), [classes[c].replace("_", " ") for c in order], fontsize=6)
        figure.colorbar(image, ax=ax, shrink=0.75)
    if others:
        axes[1][0].axis("off")
    for ax, name in zip(axes[1][1:] if others else (), others, strict=True):
        x, y = tables[first][places], tables[name][places]
        if len(np.unique(x)) <= 10:  # of few values: a box each
            values = np.unique(x)
            ax.boxplot([y[x == v] for v in values], tick_labels=[f"{v:.2g}" for v in values], widths=0.6, sym=".",
                       flierprops=dict(ms=2, mec=GREY), medianprops=dict(color=INLIER, lw=2))  # fmt: skip
        else:
            ax.plot(x, y, ".", ms=3, alpha=max(0.1, min(1, 500 / len(x))), color=INLIER, mew=0)
        ax.set_xlabel(first, fontsize=9)
        ax.set_ylabel(name, fontsize=9)
        known = "" if rho[name] is None else f", Spearman {rho[name]:.2f}"
        ax.set_title(f"pairs of classes{known}", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)

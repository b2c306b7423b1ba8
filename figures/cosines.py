"""How similar the features of classes are: mean cosines, and the panels that show them by superclass."""

import numpy as np
import torch
import torch.nn.functional as F

import evaluation
from figures.maps import COLOURS, Drawn

# ---- the numbers -----------------------------------------------------------------------------------------------------


def class_means(features: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """[C, d] mean of each class's features, these brought to length 1 before."""
    z = F.normalize(features, dim=1)
    return torch.stack([z[labels == c].mean(0) for c in range(classes)])


def class_cosines(features: torch.Tensor, labels: torch.Tensor, classes: int) -> np.ndarray:
    """[C, C] mean cosine between the images of two classes (of an image with itself included)."""
    means = class_means(features, labels, classes)
    return (means @ means.T).numpy()


def within_and_across(cosines: np.ndarray, group_of: list[int]) -> tuple[float, float]:
    """Mean of [C, C] over the pairs of two classes of one group, and over those of two groups; there must be both."""
    group = np.array(group_of)
    same = group[:, None] == group
    return float(cosines[same & ~np.eye(len(group), dtype=bool)].mean()), float(cosines[~same].mean())


def nearest_in_group(z: np.ndarray, group_of: list[int]) -> tuple[int, int]:
    """Of unit vectors [C, d]: how many have their nearest other one in their group, and how many could have it."""
    group = np.array(group_of)
    other = evaluation.nearest(torch.from_numpy(z), None, 1)[1][:, 0].numpy()
    companions = (group[:, None] == group).sum(1) > 1
    return int((group[other] == group)[companions].sum()), int(companions.sum())


def pair_kinds(labels: np.ndarray, others: np.ndarray, group_of: list[int]) -> np.ndarray:
    """Of two images, by their labels, each against each as NumPy broadcasts: 0 one class, 1 one group, 2 neither."""
    group = np.array(group_of)
    return np.where(labels == others, 0, np.where(group[labels] == group[others], 1, 2))


# ---- the panels ------------------------------------------------------------------------------------------------------


def draw_matrix(ax, table, classes: Drawn, title: str, label: str, low: float | None = None):
    """Similarities of classes in order, groups framed in white; returns the image, for a colour bar.

    The colours reach from `low` to 1; None: from the smallest similarity, or from 0 where none is below.
    """
    names, order, group_of = classes.names, classes.order, classes.group_of
    low = min(0, table.min()) if low is None else low
    image = ax.imshow(table[np.ix_(order, order)], cmap="viridis", vmin=low, vmax=1)
    size = max(3, min(10, 300 / len(order)))
    ax.set(xticks=range(len(order)), yticks=range(len(order)), xlabel=label, title=title)
    ax.set_xticklabels([names[c] for c in order], rotation=90 if len(max(names, key=len)) > 2 else 0, fontsize=size)
    ax.set_yticklabels([names[c] for c in order], fontsize=size)
    width = 1.5 if len(set(group_of)) <= 10 else 0.8
    for i in range(1, len(order)):
        if group_of[order[i]] != group_of[order[i - 1]]:
            ax.axhline(i - 0.5, color="white", lw=width)
            ax.axvline(i - 0.5, color="white", lw=width)
    return image


def draw_cosines(ax, z, labels, group_of: list[int], grouped: bool) -> None:
    """Histograms of the cosines of two images: of one class, of one superclass where there are such, of others."""
    group_of = group_of if grouped else list(range(len(group_of)))
    cosines, kinds = z @ z.T, pair_kinds(labels[:, None], labels, group_of)
    pairs = np.triu(np.ones_like(kinds, dtype=bool), k=1)
    for kind, name in enumerate(("one class", "one superclass", "others")):
        found = cosines[pairs & (kinds == kind)]
        if len(found):
            how = dict(density=True, histtype="stepfilled", alpha=0.4, color=COLOURS[kind], label=name)
            ax.hist(found, bins=60, range=(min(-0.01, cosines.min()), 1), **how)
    ax.set(title="two images of ...", xlabel="cosine", ylabel="density", yticks=[])
    ax.legend(frameon=False)

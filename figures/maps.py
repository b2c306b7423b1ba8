"""Points in the plane that stand for vectors, and the panel that shows them by class and superclass."""

import warnings
from dataclasses import dataclass

import numpy as np

MARKERS = "o^sDvP*X"
# Paul Tol's muted scheme: told apart by colour-blind readers
COLOURS = ("#332288", "#CC6677", "#117733", "#88CCEE", "#882255", "#999933", "#AA4499", "#44AA99", "#661100", "#555555")


# ---- the numbers -----------------------------------------------------------------------------------------------------


def mds(z: np.ndarray) -> np.ndarray:
    """[n, d] -> [n, 2]; without a random start: the same map from the same features."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import MDS

    start = PCA(2, random_state=0).fit_transform(z)
    with warnings.catch_warnings():  # scikit-learn 1.9 warns of the default of `init` although one is given
        warnings.simplefilter("ignore", FutureWarning)
        return MDS(n_init=1, normalized_stress="auto", random_state=0).fit_transform(z, init=start)


def tsne(z: np.ndarray) -> np.ndarray:
    """[n, d] -> [n, 2]."""
    from sklearn.manifold import TSNE

    return TSNE(init="pca", metric="cosine", perplexity=min(30, (len(z) - 1) / 3), random_state=0).fit_transform(z)


def umap(z: np.ndarray) -> np.ndarray:
    """[n, d] -> [n, 2]; needs umap-learn."""
    from umap import UMAP

    return UMAP(n_neighbors=min(15, len(z) - 1), metric="cosine", random_state=0, n_jobs=1).fit_transform(z)


MAPS = {"t-SNE": tsne, "UMAP": umap, "MDS": mds}


def distance_error(z: np.ndarray, points: np.ndarray) -> float:
    """How far the distances on a map [n, 2] are off those of the vectors [n, d], 0 where all are kept: root mean square
    of the differences over the pairs, divided by that of the vectors' distances.
    """
    from scipy.spatial.distance import pdist

    true = pdist(z)
    return float(np.linalg.norm(pdist(points) - true) / np.linalg.norm(true))


def aligned(points: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """[n, 2] a map moved, turned and mirrored, not scaled, to lie as near to another of the same things as it can.

    Least squares (orthogonal Procrustes): the distances within the map stay as they are.
    """
    from scipy.linalg import orthogonal_procrustes

    middle, target = points.mean(0), onto.mean(0)
    turn, _ = orthogonal_procrustes(points - middle, onto - target)
    return (points - middle) @ turn + target


# ---- the panel -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """What is drawn of classes: their names, in which order, and the group of each, which is its shape on maps."""

    names: list[str]
    order: list[int]
    group_of: list[int]


def draw_map(ax, points, labels, classes: Drawn, title: str, legend: bool = False) -> None:
    """Images as dots: colour by label in order, shape by group; names beside their dots, or a legend below the map.

    The axes reach as far as dots and names do.
    """
    import matplotlib
    from matplotlib import patheffects

    names, order = classes.names, classes.order
    many = len(order) > len(COLOURS)
    low, high = points.min(0), points.max(0)
    centre, reach = (low + high) / 2, max((high - low).max() / 2, 1e-6)
    size = 15 if len(max(names, key=len)) < 3 else 6 if many else 10
    named = []  # label, where its name goes, colour
    for place, c in enumerate(order):
        of_label = points[labels == c]
        if not len(of_label):
            continue
        colour = matplotlib.colormaps["viridis"](place / (len(order) - 1)) if many else COLOURS[place]
        marker = MARKERS[classes.group_of[c] % len(MARKERS)]
        ax.scatter(*of_label.T, s=16, color=colour, marker=marker, linewidths=0, alpha=0.6, label=names[c])
        middle = np.median(of_label, axis=0) - centre
        beside = centre + middle * (1 + 0.17 * reach / max(np.linalg.norm(middle), 0.1 * reach))
        named.append((c, beside, colour))
    if not legend:
        em = 2.2 * reach * size / 300  # of a font of so many points, on axes that are 4 inches wide
        widths = np.array([0.65 * em * len(names[c]) for c, _, _ in named])
        outline = [patheffects.withStroke(linewidth=3, foreground="white")]  # to be read on dots of its colour
        places = spread_apart(np.array([beside for _, beside, _ in named]), widths, 1.1 * em)
        for (c, _, colour), place in zip(named, places, strict=True):
            how = dict(fontsize=size, weight="bold", color=colour, ha="center", va="center", path_effects=outline)
            ax.text(*place, names[c], **how, zorder=3)
        half = np.stack([widths / 2, np.full(len(widths), 0.6 * em)], 1)
        low, high = np.minimum(low, (places - half).min(0)), np.maximum(high, (places + half).max(0))
    if legend:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncol=3, fontsize=9, frameon=False, markerscale=1.5)
    ax.set(title=title, xticks=[], yticks=[])
    ax.update_datalim([low, high])
    ax.margins(0.05)
    ax.set_aspect("equal", adjustable="datalim")  # the panel is filled, and a circle stays one
    ax.autoscale_view()


def spread_apart(places: np.ndarray, widths: np.ndarray, height: float, rounds: int = 200) -> np.ndarray:
    """[n, 2] middles of texts, moved up and down until no two of these widths and this height overlap, or nearly so."""
    places = places.astype(float)
    for _ in range(rounds):
        apart = places[:, None] - places
        close = np.abs(apart[..., 0]) < (widths[:, None] + widths) / 2
        overlap = np.clip(height - np.abs(apart[..., 1]), 0, None) * close * ~np.eye(len(places), dtype=bool)
        if not overlap.any():
            break
        up = np.where(apart[..., 1] == 0, np.arange(len(places))[:, None] > np.arange(len(places)), apart[..., 1] > 0)
        places[:, 1] += (np.where(up, 1, -1) * overlap).sum(1) / 2
    return places

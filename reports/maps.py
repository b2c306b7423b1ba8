"""Maps of test items, one an encoder, the others turned onto the first."""

import importlib.util

import numpy as np

from figures.classes import align_map
from figures.encoders import mds

MOST_MDS = 2000  # items: its time and memory grow with their square


def choose_map(items: int) -> str:
    """Choose how maps of so many items are made."""
    if importlib.util.find_spec("umap") and items > 3:
        return "UMAP"
    return "MDS" if items <= MOST_MDS else "PCA"


def umap(z: np.ndarray) -> np.ndarray:
    """Map [n, d] to [n, 2] by UMAP of cosines; needs umap-learn."""
    from umap import UMAP

    return UMAP(n_neighbors=min(15, len(z) - 1), metric="cosine", random_state=0, n_jobs=1).fit_transform(z)


def pca(z: np.ndarray) -> np.ndarray:
    """Map [n, d] to [n, 2]."""
    from sklearn.decomposition import PCA

    return PCA(2, random_state=0).fit_transform(z)


def make_maps(units: list[np.ndarray], kind: str) -> list[np.ndarray]:
    """Make a map [n, 2] of each list of unit vectors [n, d], centered, within -1 and 1, turned onto the first."""
    make = {"UMAP": umap, "MDS": mds, "PCA": pca}[kind]
    maps = []
    for z in units:
        points = make(z) if z.shape[1] > 1 and len(z) > 2 else np.pad(z[:, :1], [(0, 0), (0, 1)])
        points = points - points.mean(0)
        points = points / max(np.abs(points).max(), 1e-9)
        maps.append(align_map(points, maps[0]) if maps else points)
    return maps

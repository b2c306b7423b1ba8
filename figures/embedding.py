"""Draws embeddings side by side: a map of the images coloured by class, and the similarity of the classes.

The map is multidimensional scaling: it keeps the distances between far classes too, which t-SNE gives up.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import util
from datasets import ranking_files, rankings, sources

MARKERS = "o^sDvP*X"


def class_cosines(features: torch.Tensor, labels: torch.Tensor, classes: int) -> np.ndarray:
    """[C, C] mean cosine between the images of two classes (of an image with itself included)."""
    z = F.normalize(features, dim=1)
    means = torch.stack([z[labels == c].mean(0) for c in range(classes)])
    return (means @ means.T).numpy()


def draw(embeddings: dict, dataset: str, path: Path) -> None:
    """One column a method: MDS map of the test images above, mean cosine of each pair of classes below.

    embeddings: method -> {"features" [n, d], "labels" [n], "classes"}; classes are ordered and shaped by superclass.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import MDS

    plt = util.pyplot()
    groups = ranking_files.known_superclasses(sources.SOURCES[dataset].superclasses)
    classes = next(iter(embeddings.values()))["classes"]
    group_of = rankings.superclass_labels(groups, classes, dataset).tolist()
    order = sorted(range(len(classes)), key=lambda c: group_of[c])
    colours = plt.get_cmap("tab10").colors
    figure, axes = plt.subplots(2, len(embeddings), figsize=(4 * len(embeddings), 8.2), layout="constrained")
    for column, (method, e) in enumerate(embeddings.items()):
        z = F.normalize(e["features"], dim=1).numpy()
        start = PCA(2, random_state=0).fit_transform(z)  # no random start: the same map from the same features
        with warnings.catch_warnings():  # scikit-learn 1.9 warns of the default of `init` although one is given
            warnings.simplefilter("ignore", FutureWarning)
            points = MDS(n_init=1, normalized_stress="auto", random_state=0).fit_transform(z, init=start)
        reach = 1.45 * np.abs(points).max()
        ax = axes[0, column]
        for c in order:
            of_class = points[e["labels"].numpy() == c]
            ax.scatter(
                *of_class.T, s=16, color=colours[c % 10], marker=MARKERS[group_of[c] % 8], linewidths=0, alpha=0.6
            )
            middle = np.median(of_class, axis=0)
            beside = middle * (1 + 0.2 * reach / np.linalg.norm(middle))
            ax.text(*beside, classes[c], fontsize=15, weight="bold", color=colours[c % 10], ha="center", va="center")
        ax.set(
            title=method, xticks=[], yticks=[], xlabel="MDS 1", ylabel="MDS 2" if column == 0 else "", aspect="equal"
        )
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach))
        ax = axes[1, column]
        cosines = class_cosines(e["features"], e["labels"], len(classes))[np.ix_(order, order)]
        image = ax.imshow(cosines, cmap="viridis", vmin=0, vmax=1)
        names = [classes[c] for c in order]
        ax.set(xticks=range(len(names)), yticks=range(len(names)), xlabel="class, ordered by superclass")
        ax.set_xticklabels(names)
        ax.set_yticklabels(names)
        for i in range(1, len(order)):
            if group_of[order[i]] != group_of[order[i - 1]]:
                ax.axhline(i - 0.5, color="white", lw=1.5)
                ax.axvline(i - 0.5, color="white", lw=1.5)
    figure.colorbar(image, ax=axes[1, :], label="mean cosine of two classes", shrink=0.8)
    shapes = {g: "●▲■◆▼✚★✖"[i % 8] for i, g in enumerate(groups)}
    figure.suptitle("    ".join(f"{s} {g}" for g, s in shapes.items()), fontsize=13, family="DejaVu Sans")
    figure.savefig(path, dpi=80)
    plt.close(figure)

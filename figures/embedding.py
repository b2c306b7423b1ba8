"""Draws embeddings: maps of the images by class and superclass, and the similarity of the classes beside the ranking.

python -m figures.embedding --ckpt save/SupCon/digits_models/NAME --out embedding.png
python -m figures.embedding --ckpt RUN --dataset path --data_folder my_images --superclasses my_superclasses.yaml
python -m figures.embedding --ckpt SCL_RUN RINCE_RUN --names SCL RINCE

Maps: t-SNE, UMAP where umap-learn is installed, and multidimensional scaling (MDS), which keeps the distances between
far classes too, which t-SNE gives up. Of several checkpoints, the MDS of each.
"""

import importlib.util
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
import numpy as np
import torch.nn.functional as F

import figures
from datasets import rankings
from datasets.rankings import files
from engine.cli import options
from figures import encoders
from figures.encoders import COLORS, MARKERS
from figures.ranking import Classes, clustered, draw_matrix
from util import InputError


def tsne(z: np.ndarray) -> np.ndarray:
    """[n, d] -> [n, 2]."""
    from sklearn.manifold import TSNE

    return TSNE(init="pca", metric="cosine", perplexity=min(30, (len(z) - 1) / 3), random_state=0).fit_transform(z)


def umap(z: np.ndarray) -> np.ndarray:
    """[n, d] -> [n, 2]; needs umap-learn."""
    from umap import UMAP

    return UMAP(n_neighbors=min(15, len(z) - 1), metric="cosine", random_state=0, n_jobs=1).fit_transform(z)


MAPS = {"t-SNE": tsne, "UMAP": umap, "MDS": encoders.mds}


def make_maps(units: dict[str, np.ndarray]) -> dict[str, tuple[str, np.ndarray]]:
    """Title -> name of the axes, map [n, 2]: of one encoder's unit vectors [n, d] all MAPS, of several their MDS."""
    if len(units) > 1:
        return {name: ("MDS", encoders.mds(z)) for name, z in units.items()}
    (z,) = units.values()
    return {name: (name, make(z)) for name, make in MAPS.items() if name != "UMAP" or importlib.util.find_spec("umap")}


def draw_map(ax, points: np.ndarray, labels: np.ndarray, classes: Classes, legend: bool = False) -> None:
    """Images as dots, color by label in order, shape by group, with names or a legend, on axes that reach as far."""
    import matplotlib

    names, order = classes.names, classes.order
    many = len(order) > len(COLORS)
    low, high = points.min(0), points.max(0)
    center, reach = (low + high) / 2, max((high - low).max() / 2, 1e-6)
    named, beside, colors = [], [], []
    for place, c in enumerate(order):
        dots = points[labels == c]
        if not len(dots):
            continue
        named.append(names[c])
        colors.append(matplotlib.colormaps["viridis"](place / (len(order) - 1)) if many else COLORS[place])
        marker = MARKERS[classes.group_of[c] % len(MARKERS)]
        ax.scatter(*dots.T, s=16, color=colors[-1], marker=marker, linewidths=0, alpha=0.6, label=names[c])
        middle = np.median(dots, axis=0) - center
        beside.append(center + middle * (1 + 0.17 * reach / max(np.linalg.norm(middle), 0.1 * reach)))
    reached = [low, high]
    if legend:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncol=3, fontsize=9, frameon=False, markerscale=1.5)
    else:
        size = 15 if len(max(names, key=len)) < 3 else 6 if many else 10
        em = 2.2 * reach * size / 300  # of a font of so many points, on axes that are 4 inches wide
        reached += [*encoders.write_names(ax, np.array(beside), named, colors, em, size, "bold")]
    ax.set(xticks=[], yticks=[])
    ax.update_datalim(reached)
    ax.margins(0.05)
    ax.set_aspect("equal", adjustable="datalim")  # the panel is filled, and a circle stays one
    ax.autoscale_view()


def draw_cosines(ax, z: np.ndarray, labels: np.ndarray, group_of: list[int], grouped: bool) -> None:
    """Histograms of the cosines of two images: of one class, of one superclass where there are such, of others."""
    group_of = group_of if grouped else list(range(len(group_of)))
    cosines, kinds = z @ z.T, encoders.pair_kinds(labels[:, None], labels, group_of)
    pairs = np.triu(np.ones_like(kinds, dtype=bool), k=1)
    for kind, name in enumerate(("one class", "one superclass", "others")):
        found = cosines[pairs & (kinds == kind)]
        if len(found):
            how = dict(density=True, histtype="stepfilled", alpha=0.4, color=COLORS[kind], label=name)
            ax.hist(found, bins=60, range=(min(-0.01, cosines.min()), 1), **how)
    ax.set(title="two images of ...", xlabel="cosine", ylabel="density", yticks=[])
    ax.legend(frameon=False)


def draw_embedding(path: Path, title: str, features: dict, labels, classes: list[str], groups, table) -> None:
    """Draw maps by class, and by superclass if there are any, and the cosines of classes, next to the ranking if given.

    features: name -> [n, d] of the images with labels [n]; groups: superclass -> classes; table: [C, C] similarities.
    """
    group_of, y = encoders.group_numbers(groups, classes), labels.numpy()
    units = {name: F.normalize(x, dim=1).numpy() for name, x in features.items()}
    cosines = {name: encoders.class_cosines(x, labels, len(classes)) for name, x in features.items()}
    first = next(iter(units))
    nearness = clustered(cosines[first] if table is None else table).tolist()
    words, order = list(files.name_classes(classes).values()), sorted(nearness, key=lambda c: group_of[c])
    by_class = Classes(words, order, group_of)
    shown = {"by class": (y, by_class)}
    if groups:
        numbers = list(range(len(groups)))
        shown["by superclass"] = np.array(group_of)[y], Classes(list(groups), numbers, numbers)
    matrices = [(name if len(units) > 1 else "in the embedding", x, "mean cosine") for name, x in cosines.items()]
    if table is not None:
        matrices.append(("the ranking", table, "similarity"))
    maps = make_maps(units)
    histogram = len(matrices) < len(maps)  # in the room that is left
    size = 5 * max(len(maps), len(matrices)), 5 * (len(shown) + 1)
    figure = figures.pyplot().figure(figsize=size, layout="constrained")
    *above, below = figure.subfigures(len(shown) + 1, 1)  # each with as many panels as it has
    for row, (by, (numbers, what)) in zip(above, shown.items(), strict=True):
        for n, (name, (axis, points)) in enumerate(maps.items()):
            ax = row.add_subplot(1, len(maps), n + 1)
            draw_map(ax, points, numbers, what, legend=by == "by superclass")
            ax.set(title=f"{name}, {by}", xlabel=f"{axis} 1", ylabel=f"{axis} 2")
            ax.dataLim.set(above[0].axes[n].dataLim)  # dots stand where they do above
            ax.autoscale_view()
    panels = below.subplots(1, len(matrices) + histogram, squeeze=False)[0]
    low = min(0, *(x.min() for x in cosines.values()))
    for ax, (name, values, what) in zip(panels, matrices, strict=not histogram):
        image = draw_matrix(ax, values, by_class, low if values is not table else None)
        ax.set(title=name, xlabel="class, ordered by " + ("superclass" if groups else "similarity"))
        below.colorbar(image, ax=ax, shrink=0.8, label=f"{what} of two classes")
    if histogram:
        draw_cosines(panels[-1], units[first], y, group_of, bool(groups))
    figures.save(figure, path, title, dpi=80)


def get_parser():
    p = encoders.parser(__doc__, "embedding.png")
    g = p.add_argument_group("classes and images")
    ranking = "as main_supcon.py's; shown beside the embedding, and orders the classes"
    g.add_argument("--ranking", type=util.user_text, help=ranking)
    g.add_argument("--images", type=options.positive_int, default=1000, help="images on the maps, evenly spread")
    return p


def main():
    comparison = encoders.Comparison(get_parser())
    args, classes, test = comparison.args, comparison.train.classes, comparison.test
    test = test.select(np.unique(np.linspace(0, len(test) - 1, min(args.images, len(test))).astype(int)).tolist())
    if len(test.labels.unique()) < len(classes):
        raise InputError(f"--images {args.images}: leaves some class without an image; give more")
    table = None
    if args.ranking:
        table = rankings.find_similarities(args.ranking, classes, comparison.train.superclasses)
    features = comparison.features(test, "the maps")
    title = f"{', '.join(features)}: {len(test)} test images of {comparison.data}"
    draw_embedding(args.out, title, features, test.labels, classes, comparison.superclasses, table)
    print(f"drew {args.out}")


if __name__ == "__main__":
    util.run_command(main)

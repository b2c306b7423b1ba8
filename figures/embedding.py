"""Draws embeddings: maps of the images by class and superclass, and the similarity of the classes beside the ranking.

python -m figures.embedding --ckpt save/SupCon/digits_models/NAME --out embedding.png
python -m figures.embedding --ckpt RUN --dataset path --data_folder my_images --superclasses my_superclasses.yaml

Maps: t-SNE, UMAP where umap-learn is installed, and multidimensional scaling (MDS), which keeps the distances between
far classes too, which t-SNE gives up.
"""

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
import numpy as np
import torch
import torch.nn.functional as F

import datasets
import figures
from datasets import rankings, sources
from datasets.rankings import files
from engine import config, distributed, frozen, options
from figures.ranking import clustered
from util import InputError

MARKERS = "o^sDvP*X"
# Paul Tol's muted scheme: told apart by colour-blind readers
COLOURS = ("#332288", "#CC6677", "#117733", "#88CCEE", "#882255", "#999933", "#AA4499", "#44AA99", "#661100", "#555555")


# ---- the numbers -----------------------------------------------------------------------------------------------------


def class_cosines(features: torch.Tensor, labels: torch.Tensor, classes: int) -> np.ndarray:
    """[C, C] mean cosine between the images of two classes (of an image with itself included)."""
    z = F.normalize(features, dim=1)
    means = torch.stack([z[labels == c].mean(0) for c in range(classes)])
    return (means @ means.T).numpy()


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


# ---- one panel -------------------------------------------------------------------------------------------------------


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


def draw_matrix(ax, table, classes: Drawn, title: str, label: str):
    """Similarities of classes in order, groups framed in white; returns the image, for a colour bar."""
    names, order, group_of = classes.names, classes.order, classes.group_of
    image = ax.imshow(table[np.ix_(order, order)], cmap="viridis", vmin=min(0, table.min()), vmax=1)
    size = max(3, min(10, 300 / len(order)))
    ax.set(xticks=range(len(order)), yticks=range(len(order)), xlabel=label, title=title)
    ax.set_xticklabels([names[c] for c in order], rotation=90 if len(max(names, key=len)) > 2 else 0, fontsize=size)
    ax.set_yticklabels([names[c] for c in order], fontsize=size)
    for i in range(1, len(order)):
        if group_of[order[i]] != group_of[order[i - 1]]:
            ax.axhline(i - 0.5, color="white", lw=1.5)
            ax.axvline(i - 0.5, color="white", lw=1.5)
    return image


def pair_kinds(labels: np.ndarray, group_of: list[int]) -> np.ndarray:
    """[n, n] of two images: 0 of one class, 1 of one group, 2 of others."""
    groups = np.array(group_of)[labels]
    return np.where(labels[:, None] == labels, 0, np.where(groups[:, None] == groups, 1, 2))


def draw_cosines(ax, z, labels, group_of: list[int], grouped: bool) -> None:
    """Histograms of the cosines of two images: of one class, of one superclass where there are such, of others."""
    cosines, kinds = z @ z.T, pair_kinds(labels, group_of if grouped else list(range(len(group_of))))
    pairs = np.triu(np.ones_like(kinds, dtype=bool), k=1)
    for kind, name in enumerate(("one class", "one superclass", "others")):
        found = cosines[pairs & (kinds == kind)]
        if len(found):
            how = dict(density=True, histtype="stepfilled", alpha=0.4, color=COLOURS[kind], label=name)
            ax.hist(found, bins=60, range=(min(-0.01, cosines.min()), 1), **how)
    ax.set(title="two images of ...", xlabel="cosine", ylabel="density", yticks=[])
    ax.legend(frameon=False)


# ---- pictures --------------------------------------------------------------------------------------------------------


def draw(embeddings: dict, dataset: str, path: Path) -> None:
    """One column a method: MDS map of the test images above, mean cosine of each pair of classes below.

    embeddings: method -> {"features" [n, d], "labels" [n], "classes"}; classes are ordered and shaped by superclass.
    """
    plt = figures.pyplot()
    groups = files.known_superclasses(sources.SOURCES[dataset].superclasses)
    classes = next(iter(embeddings.values()))["classes"]
    group_of = rankings.superclass_labels(groups, classes, dataset).tolist()
    drawn = Drawn(classes, sorted(range(len(classes)), key=lambda c: group_of[c]), group_of)
    figure, axes = plt.subplots(
        2, len(embeddings), figsize=(4 * len(embeddings), 8.2), layout="constrained", squeeze=False
    )
    for column, (method, e) in enumerate(embeddings.items()):
        points = mds(F.normalize(e["features"], dim=1).numpy())
        draw_map(axes[0, column], points, e["labels"].numpy(), drawn, method)
        axes[0, column].set(xlabel="MDS 1", ylabel="MDS 2")
        cosines = class_cosines(e["features"], e["labels"], len(classes))
        image = draw_matrix(axes[1, column], cosines, drawn, "", "class, ordered by superclass")
    figure.colorbar(image, ax=axes[1, :], label="mean cosine of two classes", shrink=0.8)
    shapes = "    ".join(f"{'●▲■◆▼✚★✖'[i % 8]} {g}" for i, g in enumerate(groups))
    figure.suptitle(shapes, fontsize=13, family="DejaVu Sans")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_run(path: Path, title: str, embedding: dict, groups, table) -> None:
    """Maps by class, and by superclass if there are any; the cosines of the classes, beside the ranking if it is given.

    embedding: "features" [n, d], "labels" [n], "classes"; groups: superclass -> classes, or None; table: [C, C]
    similarities, or None.
    """
    plt = figures.pyplot()
    features, labels, classes = (embedding[key] for key in ("features", "labels", "classes"))
    cosines = class_cosines(features, labels, len(classes))
    group_of = rankings.superclass_labels(groups, classes, "superclasses").tolist() if groups else [0] * len(classes)
    nearness = clustered(cosines if table is None else table).tolist()
    order = sorted(nearness, key=lambda c: group_of[c])
    by_class = Drawn(list(files.in_words(classes).values()), order, group_of)
    z, y = F.normalize(features, dim=1).numpy(), labels.numpy()
    maps = {name: make for name, make in MAPS.items() if name != "UMAP" or importlib.util.find_spec("umap")}
    matrices = {"in the embedding": (cosines, "mean cosine of two classes")}
    if table is not None:
        matrices["the ranking"] = table, "similarity of two classes"
    points = {name: make(z) for name, make in maps.items()}
    columns, rows = max(len(maps), len(matrices)), 3 if groups else 2
    figure = plt.figure(figsize=(5 * columns, 5 * rows), layout="constrained")
    above, *between, below = figure.subfigures(rows, 1)  # each with as many panels as it has
    for ax, name in zip(above.subplots(1, len(maps), squeeze=False)[0], maps, strict=True):
        draw_map(ax, points[name], y, by_class, f"{name}, by class")
        ax.set(xlabel=f"{name} 1", ylabel=f"{name} 2")
    for of_groups in between:
        numbers = list(range(len(groups)))
        by_group = Drawn(list(groups), numbers, numbers)
        for ax, name in zip(of_groups.subplots(1, len(maps), squeeze=False)[0], maps, strict=True):
            draw_map(ax, points[name], np.array(group_of)[y], by_group, f"{name}, by superclass", legend=True)
            ax.set(xlabel=f"{name} 1", ylabel=f"{name} 2")
            ax.dataLim.set(above.axes[list(maps).index(name)].dataLim)  # dots stand where they do above
            ax.autoscale_view()
    label = "class, ordered by " + ("superclass" if groups else "similarity")
    histogram = len(matrices) < len(maps)  # in the room that is left
    panels = below.subplots(1, len(matrices) + histogram, squeeze=False)[0]
    for ax, (name, (values, of_colours)) in zip(panels, matrices.items(), strict=not histogram):
        image = draw_matrix(ax, values, by_class, name, label)
        below.colorbar(image, ax=ax, shrink=0.8, label=of_colours)
    if histogram:
        draw_cosines(panels[-1], z, y, group_of, bool(groups))
    figure.suptitle(title)
    figure.savefig(path, dpi=80)
    plt.close(figure)


# ---- command line ----------------------------------------------------------------------------------------------------


def get_parser():
    p = options.parser(__doc__)
    options.add_data(p, datasets.NAMES)
    options.add_evaluation(p)
    g = p.add_argument_group("picture")
    g.add_argument("--superclasses", metavar="FILE", help="YAML of superclasses (None: the data set's own, if any)")
    g.add_argument("--ranking", help="as main_supcon.py's; shown beside the embedding, and orders the classes")
    g.add_argument("--images", type=options.positive_int, default=1000, help="images on the maps, evenly spread")
    g.add_argument("--out", type=util.user_path, default=Path("embedding.png"), help="file to draw")
    return p


def superclasses_of(file: str | None, dataset: str, classes: list[str]):
    """superclass -> those of the classes in it, of --superclasses or the data set's own; None without."""
    groups, source = files.chosen_superclasses(file, datasets.spec(dataset).superclasses)
    if groups is None:
        return None
    if file:
        rankings.superclass_labels(groups, classes, source)
    return {g: kept for g, members in groups.items() if (kept := [c for c in members if c in classes])}


def main():
    args = config.parse(get_parser(), options.SMALL_DATA)
    util.check_folder(args.out.absolute().parent, "--out")
    train, test = datasets.build_pair(args.dataset, **options.chosen_images(args))
    chosen = np.unique(np.linspace(0, len(test) - 1, min(args.images, len(test))).astype(int)).tolist()
    distributed.say(datasets.left_out(train, test))
    test = test.chosen(chosen)
    if len(test.labels.unique()) < len(train.classes):
        raise InputError(f"--images {args.images}: leaves some class without an image; give more")
    table = None
    if args.ranking:
        table = rankings.source_table(args.ranking, train.classes, datasets.spec(args.dataset).superclasses)
    groups = superclasses_of(args.superclasses, args.dataset, train.classes)
    loading, cache = options.loading(args, torch.device("cpu")), options.features_cache(args)
    net = frozen.load(options.wanted(args), train)
    features, labels = frozen.features(net, test, "the maps", loading, cache)
    if not features.any():
        raise InputError(f"--ckpt {args.ckpt}: all features are 0; there is nothing to draw")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    title = f"{net.name}: {len(test)} test images of {datasets.title(args.dataset, args.data_folder)}"
    embedding = {"features": features, "labels": labels, "classes": train.classes}
    draw_run(args.out, title, embedding, groups, table)
    print(f"drew {args.out}")


if __name__ == "__main__":
    util.run_command(main)

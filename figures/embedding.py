"""Draws embeddings: maps of the images by class and superclass, and the similarity of the classes beside the ranking.

python -m figures.embedding --ckpt save/SupCon/digits_models/NAME --out embedding.png
python -m figures.embedding --ckpt RUN --dataset path --data_folder my_images --superclasses my_superclasses.yaml

Maps: t-SNE, UMAP where umap-learn is installed, and multidimensional scaling (MDS), which keeps the distances between
far classes too, which t-SNE gives up.
"""

import importlib.util
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
import numpy as np
import torch
import torch.nn.functional as F

import datasets
import figures
from datasets import rankings
from datasets.rankings import files
from engine import config, distributed, frozen, options
from figures.cosines import class_cosines, draw_cosines, draw_matrix
from figures.encoders import superclasses_of
from figures.maps import MAPS, Drawn, draw_map
from figures.ranking import clustered
from util import InputError


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
    superclasses = "YAML of superclasses (None: the data set's own, if any)"
    g.add_argument("--superclasses", type=util.user_text, metavar="FILE", help=superclasses)
    ranking = "as main_supcon.py's; shown beside the embedding, and orders the classes"
    g.add_argument("--ranking", type=util.user_text, help=ranking)
    g.add_argument("--images", type=options.positive_int, default=1000, help="images on the maps, evenly spread")
    g.add_argument("--out", type=util.user_path, default=Path("embedding.png"), help="file to draw")
    return p


def main():
    args = config.parse(get_parser(), options.SMALL_DATA)
    figures.check_picture(args.out, "--out")
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

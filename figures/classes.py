"""Compares how encoders place the classes: maps of the class means by superclass, and the cosines of the classes.

python -m figures.classes --ckpt SCL_RUN RINCE_RUN --names SCL RINCE --out classes.png
python -m figures.classes --dataset cifar100 --data_folder ./data --ckpt A B --names SCL RINCE --out classes.png

One column a checkpoint. Maps: a point a class, the mean of its test images' features, all maps on one scale.
Matrices: the mean cosine between the test images of two classes, superclasses framed, all in one scale of colours.
"""

import math
import textwrap
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
from engine import config, distributed, options
from figures import encoders
from figures.cosines import class_cosines, class_means, draw_matrix, nearest_in_group, within_and_across
from figures.maps import COLOURS, MARKERS, Drawn, aligned, distance_error, mds, spread_apart
from util import InputError

FEW = 30  # classes that are drawn large, and that a matrix names one by one; of more, it names the superclasses

CAPTION = """Above: the mean feature of each class, scaled to length 1; lines lead to the middle of its superclass.
MDS keeps distances as well as two dimensions can; the maps have one scale, and the others are turned onto the first."""


# ---- the numbers -----------------------------------------------------------------------------------------------------


def maps_of(means: list[np.ndarray]) -> list[np.ndarray]:
    """An MDS map [C, 2] of each list of unit vectors [C, d], about the origin, the others turned onto the first."""
    first, *others = [mds(z) for z in means]
    first = first - first.mean(0)
    return [first, *(aligned(other, first) for other in others)]


def limits_of(points: list[np.ndarray]) -> np.ndarray:
    """[2, 2] the box, low and high corner, that holds all maps with some room, no side below 0.6 of the other."""
    every = np.concatenate(points)
    low, high = every.min(0), every.max(0)
    half = (high - low) / 2
    half = 1.12 * np.maximum(half, 0.6 * half.max())
    return np.stack([(low + high) / 2 - half, (low + high) / 2 + half])


# ---- panels ----------------------------------------------------------------------------------------------------------


def style_of(group: int) -> dict:
    """Colour and marker of a superclass: both change, so that many can be told apart."""
    return {"color": COLOURS[group % len(COLOURS)], "marker": MARKERS[group // len(COLOURS) % len(MARKERS)]}


def inches(classes: int) -> float:
    """Width of a panel of so many classes."""
    return 5.5 if classes <= FEW else 8.5


def draw_means(ax, points: np.ndarray, classes: Drawn, limits: np.ndarray, title: str) -> None:
    """A point a class with its name below it, and a line from there to the middle of its superclass.

    limits: low and high corner of the axes.
    """
    from matplotlib import patheffects

    few, group_of = len(points) <= FEW, np.array(classes.group_of)
    font, area = (10, 60) if few else (6.5, 28)  # in points, and their squares
    em = font / 72 / inches(len(points)) * (limits[1] - limits[0])[0]
    for group in np.unique(group_of):
        members, style = points[group_of == group], style_of(group)
        for point in members:
            ax.plot(*np.stack([members.mean(0), point]).T, color=style["color"], lw=0.8, alpha=0.5, zorder=1)
        ax.scatter(*members.T, s=area, linewidths=0, zorder=2, **style)
    widths = np.array([0.6 * em * len(name) for name in classes.names])
    places = spread_apart(points - [0, 1.1 * em], widths, 1.1 * em)
    outline = [patheffects.withStroke(linewidth=2, foreground="white")]
    for place, name, group in zip(places, classes.names, group_of, strict=True):
        how = dict(fontsize=font, color=style_of(group)["color"], ha="center", va="center", path_effects=outline)
        ax.text(*place, name, **how, zorder=3)
    (left, bottom), (right, top) = limits
    ax.set(title=title, xlabel="MDS 1", ylabel="MDS 2", xlim=(left, right), ylim=(bottom, top), aspect="equal")


def name_groups(ax, groups: list[str], classes: Drawn) -> None:
    """In the place of the names of many classes those of the superclasses, beside the rows, each amid its own."""
    in_order = np.array(classes.group_of)[classes.order]
    ax.set_yticks([np.flatnonzero(in_order == g).mean() for g in range(len(groups))], groups, fontsize=9)
    ax.set(xticks=[], xlabel="classes, in the same order")


# ---- the picture -----------------------------------------------------------------------------------------------------


def draw_classes(path: Path, title: str, features: dict, labels, classes: list[str], groups: dict) -> None:
    """One column an encoder: the map of the class means above, the cosines of the classes below.

    features: name -> [n, d] of the images with labels [n]; groups: superclass -> those of its classes that are drawn.
    """
    plt = figures.pyplot()
    names, words = list(files.in_words(classes).values()), list(files.in_words(groups).values())
    group_of = rankings.superclass_labels(groups, classes, "superclasses").tolist()
    drawn = Drawn(names, sorted(range(len(classes)), key=lambda c: group_of[c]), group_of)
    means = [F.normalize(class_means(x, labels, len(classes)), dim=1).numpy() for x in features.values()]
    tables = [class_cosines(x, labels, len(classes)) for x in features.values()]
    points = maps_of(means)
    limits, side = limits_of(points), inches(len(classes))
    width, height = limits[1] - limits[0]
    inches_wide = side * len(features) + 1.5
    title = "\n".join(textwrap.fill(line, int(10 * inches_wide)) for line in title.splitlines())
    ncols = figures.columns(words, inches_wide, most=5)
    room = 1.1 + 0.2 * math.ceil(len(words) / ncols)  # for titles and legend
    heights = 0.3 + 0.2 * len(title.splitlines()), side * height / width + room, side + 0.9
    figure = plt.figure(figsize=(inches_wide, sum(heights)), layout="constrained")
    head, above, below = figure.subfigures(3, 1, height_ratios=heights)  # a suptitle would overlap the titles
    maps = above.subplots(1, len(features), squeeze=False)[0]
    matrices = below.subplots(1, len(features), squeeze=False)[0]
    for ax, name, z, at in zip(maps, features, means, points, strict=True):
        near, of = nearest_in_group(z, group_of)
        found = f"{name}: the nearest class is of the same superclass for {near} of {of}"
        draw_means(
            ax, at, drawn, limits, f"{found}\n(distances on the map are off by {100 * distance_error(z, at):.0f} %)"
        )
    low = float(min(table.min() for table in tables))
    for ax, name, table in zip(matrices, features, tables, strict=True):
        within, across = within_and_across(table, group_of)
        text = f"{name}: mean cosine of two classes\n{within:.2f} within superclasses, {across:.2f} across"
        image = draw_matrix(ax, table, drawn, text, "class, ordered by superclass", low)
        if len(classes) > FEW:
            name_groups(ax, words if ax is matrices[0] else [], drawn)
    below.colorbar(image, ax=matrices, label="mean cosine between the images of two classes", shrink=0.8)
    marks = [plt.Line2D([], [], ls="", ms=7, label=word, **style_of(g)) for g, word in enumerate(words)]
    above.legend(handles=marks, loc="outside lower center", ncols=ncols, frameon=False, title="superclass")
    head.text(0.5, 0.5, title, ha="center", va="center", fontsize=12)
    figure.savefig(path, dpi=100)
    plt.close(figure)


# ---- command line ----------------------------------------------------------------------------------------------------


def get_parser():
    p = encoders.comparison_parser(__doc__)
    g = p.add_argument_group("picture")
    g.add_argument("--out", type=util.user_path, default=Path("classes.png"), help="file to draw")
    return p


def main():
    args = config.parse(get_parser(), options.SMALL_DATA)
    figures.check_picture(args.out, "--out")
    train, test = datasets.build_pair(args.dataset, **options.chosen_images(args))
    distributed.say(datasets.left_out(train, test))
    groups = encoders.compared_superclasses(args.superclasses, args.dataset, train.classes)
    lacking = [c for n, c in enumerate(train.classes) if not (test.labels == n).any()]
    if lacking:
        raise InputError(f"--data_folder {args.data_folder}: class {lacking[0]} has no validation image")
    loading, cache = options.loading(args, torch.device("cpu")), options.features_cache(args)
    nets = encoders.load(options.all_wanted(args), args.names, train)
    features = encoders.features(nets, test, "the maps", loading, cache)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    data = datasets.title(args.dataset, args.data_folder)
    title = f"{len(train.classes)} classes of {data}, {len(test):,} test images"
    draw_classes(args.out, f"{title}\n{CAPTION}", features, test.labels, train.classes, groups)
    print(f"drew {args.out}")


if __name__ == "__main__":
    util.run_command(main)

"""Draw how encoders place the classes: maps of the class means by superclass, and cosines of the classes.

python -m figures.classes --ckpt SCL_RUN RINCE_RUN --names SCL RINCE --out classes.png
python -m figures.classes --dataset cifar100 --data_folder ./data --ckpt A B --names SCL RINCE --out classes.png

There is one column per checkpoint. Maps have one point per class, the mean feature of its test images; all maps have
one scale. Matrices show the mean cosine of the test images of two classes, with superclasses framed.
"""

import math
import textwrap
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
import numpy as np
import torch
import torch.nn.functional as F

import evaluation
import figures
from datasets.rankings import files
from figures import encoders
from figures.encoders import COLORS, MARKERS
from figures.ranking import Classes, draw_matrix
from util import InputError

FEW = 30  # classes that are drawn large, and that a matrix names one by one; of more, it names the superclasses
MANY = 120  # from here on no name of a class could be read: small panels, without these

CAPTION = """Above: the mean feature of each class, scaled to length 1; lines lead to the middle of its superclass.
MDS keeps distances as well as two dimensions can; the maps have one scale, and the others are turned onto the first."""


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


def distance_error(z: np.ndarray, points: np.ndarray) -> float:
    """Root mean square error of the distances on a map [n, 2] of vectors [n, d], divided by that of the true ones."""
    from scipy.spatial.distance import pdist

    true = pdist(z)
    return float(np.linalg.norm(pdist(points) - true) / np.linalg.norm(true))


def align_map(points: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """[n, 2] a map moved, turned and mirrored, not scaled, onto another by least squares (orthogonal Procrustes)."""
    from scipy.linalg import orthogonal_procrustes

    middle, target = points.mean(0), onto.mean(0)
    turn, _ = orthogonal_procrustes(points - middle, onto - target)
    return (points - middle) @ turn + target


def make_maps(means: list[np.ndarray]) -> list[np.ndarray]:
    """Make an MDS map [C, 2] of each list of unit vectors [C, d], about the origin, others turned onto the first."""
    first, *others = [encoders.mds(z) for z in means]
    first = first - first.mean(0)
    return [first, *(align_map(other, first) for other in others)]


def find_limits(points: list[np.ndarray]) -> np.ndarray:
    """[2, 2] the box, low and high corner, that holds all maps with some room, no side below 0.6 of the other."""
    every = np.concatenate(points)
    low, high = every.min(0), every.max(0)
    half = (high - low) / 2
    half = 1.12 * np.maximum(half, 0.6 * half.max())
    return np.stack([(low + high) / 2 - half, (low + high) / 2 + half])


def choose_style(group: int) -> dict:
    """Color and marker of a superclass: both change, so that many can be told apart."""
    return {"color": COLORS[group % len(COLORS)], "marker": MARKERS[group // len(COLORS) % len(MARKERS)]}


def draw_means(ax, points: np.ndarray, classes: Classes, limits: np.ndarray, inches: float) -> None:
    """Draw a point per class, its name below it unless there are many, and a line to the middle of its superclass.

    limits: low and high corner of the axes; inches: how wide they are.
    """
    group_of, colors = np.array(classes.group_of), [choose_style(group)["color"] for group in classes.group_of]
    font, area = (10, 60) if len(points) <= FEW else (6.5, 28)  # in points, and their squares
    for group in np.unique(group_of):
        members, style = points[group_of == group], choose_style(group)
        for point in members:
            ax.plot(*np.stack([members.mean(0), point]).T, color=style["color"], lw=0.8, alpha=0.5, zorder=1)
        ax.scatter(*members.T, s=area, linewidths=0, zorder=2, **style)
    if len(points) < MANY:
        em = font / 72 / inches * (limits[1] - limits[0])[0]
        encoders.write_names(ax, points - [0, 1.1 * em], classes.names, colors, em, font)
    ax.set(xlabel="MDS 1", ylabel="MDS 2", xlim=limits[:, 0], ylim=limits[:, 1], aspect="equal")


def draw_classes(path: Path, title: str, features: dict, labels, classes: list[str], groups: dict) -> None:
    """One column an encoder: the map of the class means above, the cosines of the classes below.

    features: name -> [n, d] of the images with labels [n]; groups: superclass -> those of its classes that are drawn.
    """
    plt, few = figures.pyplot(), len(classes) <= FEW
    words, group_of = list(files.name_classes(groups).values()), encoders.group_numbers(groups, classes)
    order = sorted(range(len(classes)), key=lambda c: group_of[c])
    drawn = Classes(list(files.name_classes(classes).values()), order, group_of)
    means = [F.normalize(encoders.class_means(x, labels, len(classes)), dim=1).numpy() for x in features.values()]
    tables = [encoders.class_cosines(x, labels, len(classes)) for x in features.values()]
    points = make_maps(means)
    limits, side = find_limits(points), 5.5 if few else 8.5 if len(classes) < MANY else 4.2
    width, height = limits[1] - limits[0]
    inches_wide = side * len(features) + 1.5
    title = "\n".join(textwrap.fill(line, int(10 * inches_wide)) for line in title.splitlines())
    ncols = figures.columns(words, inches_wide, most=5)
    room = 1.1 + 0.2 * math.ceil(len(words) / ncols)  # for titles and legend
    heights = 0.3 + 0.2 * len(title.splitlines()), side * height / width + room, side + 0.9
    figure = plt.figure(figsize=(inches_wide, sum(heights)), layout="constrained")
    head, above, below = figure.subfigures(3, 1, height_ratios=heights)  # a suptitle would overlap the titles
    head.text(0.5, 0.5, title, ha="center", va="center", fontsize=12)
    maps, matrices = (row.subplots(1, len(features), squeeze=False)[0] for row in (above, below))
    for ax, name, z, at in zip(maps, features, means, points, strict=True):
        near, possible = nearest_in_group(z, group_of)
        draw_means(ax, at, drawn, limits, side)
        found = f"{name}: nearest class in the superclass for {near} of {possible}"
        off = f"distances on the map are off by {100 * distance_error(z, at):.0f} %"
        ax.set_title(f"{found}\n{off}", **({} if len(classes) < MANY else {"fontsize": 10}))
    marks = [plt.Line2D([], [], ls="", ms=7, label=word, **choose_style(g)) for g, word in enumerate(words)]
    above.legend(handles=marks, loc="outside lower center", ncols=ncols, frameon=False, title="superclass")
    for ax, name, table in zip(matrices, features, tables, strict=True):
        within, across = within_and_across(table, group_of)
        image = draw_matrix(ax, table, drawn, low=min(table.min() for table in tables))
        ax.set_title(f"{name}: mean cosine of two classes\n{within:.2f} within superclasses, {across:.2f} across")
        ax.set_xlabel("class, ordered by superclass" if few else "classes, in the same order")
        if not few:
            ax.set(xticks=[], yticks=[])
    if not few:  # the names of the superclasses, beside the rows, each amid its own
        middles = [np.flatnonzero(np.array(group_of)[order] == g).mean() for g in range(len(groups))]
        matrices[0].set_yticks(middles, words, fontsize=9)
    below.colorbar(image, ax=matrices, label="mean cosine between the images of two classes", shrink=0.8)
    figures.save(figure, path, dpi=100)


def get_parser():
    return encoders.parser(__doc__, "classes.png")


def main():
    comparison = encoders.Comparison(get_parser())
    args, classes, test = comparison.args, comparison.train.classes, comparison.test
    comparison.check_superclasses()
    lacking = [c for n, c in enumerate(classes) if not (test.labels == n).any()]
    if lacking:
        raise InputError(f"--data_folder {args.data_folder}: class {lacking[0]} has no validation image")
    features = comparison.features(test, "the maps")
    items = "rows" if test.are_features else "images"
    title = f"{len(classes)} classes of {comparison.data}, {len(test):,} test {items}\n{CAPTION}"
    draw_classes(args.out, title, features, test.labels, classes, comparison.superclasses)
    print(f"drew {args.out}")


if __name__ == "__main__":
    util.run_command(main)

"""Draws what encoders find: test images, and the training images nearest to each, one strip an encoder.

python -m figures.strips --ckpt SCL_RUN RINCE_RUN --names SCL RINCE --out strips.png
python -m figures.strips --dataset cifar100 --data_folder ./data --ckpt A B --names SCL RINCE --queries 8 --nearest 10

No query is chosen by hand: with n queries of C classes it is the first test image of every (C // n)-th class.
"""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
import numpy as np
import torch
from PIL import Image, ImageOps

import datasets
import evaluation
import figures
from datasets import rankings
from datasets.rankings import files
from engine import config, distributed, options
from figures import encoders
from figures.cosines import pair_kinds
from util import InputError

# of a neighbour, by pair_kinds; told apart by colour-blind readers, and dark, middle and light in grey
KINDS = ("own class", "same superclass", "other superclass")
FRAMES = ("#0072B2", "#E69F00", "#C8C8C8")
CELL = 0.8  # inches of an image


# ---- what is drawn ---------------------------------------------------------------------------------------------------


def queries_of(labels: np.ndarray, n: int) -> tuple[list[int], int]:
    """The first image of every k-th class, by labels [m], k the largest with n of them; the images, and k.

    Only classes with an image count. Raises InputError where they are fewer than n.
    """
    present, first = np.unique(labels, return_index=True)
    if n > len(present):
        raise InputError(f"--queries {n}: there are {len(present)} classes with test images; give at most so many")
    step = len(present) // n
    return first[::step][:n].tolist(), step


def shares(kinds: np.ndarray) -> list[float]:
    """How large a part of the neighbours is of each of KINDS."""
    return [float((kinds == kind).mean()) for kind in range(len(KINDS))]


def square(image: Image.Image, most: int = 160) -> np.ndarray:
    """[s, s, 3] the middle of an image, no larger than it will be seen."""
    side = min(*image.size, most)
    return np.asarray(ImageOps.fit(image, (side, side)))


# ---- the picture -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strip:
    """The neighbours of one query under one encoder, the nearest first: images, their classes and of which of KINDS."""

    images: list[np.ndarray]
    names: list[str]
    kinds: list[int]


@dataclass(frozen=True)
class Query:
    """An image, its class and superclass, and its strip under each encoder."""

    image: np.ndarray
    name: str
    group: str
    strips: dict[str, Strip]


# in images: from one to the next in a strip, from strip to strip, what is more from query to query; where strips begin
PITCH, ROW, GAP, START = 1.14, 1.34, 0.3, 2.0


def draw_strips(path: Path, queries: list[Query], title: str, found: dict[str, list[float]]) -> None:
    """A block a query, in it a strip an encoder; frames say of which kind a neighbour is.

    found: encoder -> share of each kind among the neighbours of all test images, for the title.
    """
    plt = figures.pyplot()
    first = next(iter(queries[0].strips.values()))
    width, height = START + PITCH * len(first.images), len(queries) * (ROW * len(queries[0].strips) + GAP)
    size = max(8, CELL * (width + 2)), CELL * (height + 0.5) + 1 + 0.2 * len(found)
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    for rank in range(len(first.images)):
        ax.text(START + PITCH * rank + 0.5, -0.15, f"{rank + 1}", ha="center", va="bottom", fontsize=8)
    top = 0.0
    for query in queries:
        _draw_query(ax, query, top)
        top += ROW * len(query.strips) + GAP
    ax.text(START - 0.12, -0.15, "nearest", ha="right", va="bottom", fontsize=8)
    ax.set(xlim=(-2, width), ylim=(height, -0.5), aspect="equal")
    ax.axis("off")
    marks = [plt.Rectangle((0, 0), 1, 1, fill=False, lw=3, ec=colour) for colour in FRAMES]
    ax.legend(marks, KINDS, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    figure.suptitle("\n".join([title, *_in_words(found)]), fontsize=11)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _in_words(found: dict[str, list[float]]) -> list[str]:
    """The shares of the kinds, a line an encoder."""
    lines = []
    for name, parts in found.items():
        each = ", ".join(f"{100 * x:.1f} % {kind}" for x, kind in zip(parts, KINDS, strict=True))
        lines.append(f"{name}, of these neighbours of all test images: {each}")
    return lines


def _draw_query(ax, query: Query, top: float) -> None:
    """One block, from the height `top` downward: its class, its image, its strips."""
    middle = top + (ROW * (len(query.strips) - 1) + 1) / 2
    words = textwrap.fill(query.name, 14), textwrap.fill(query.group, 16)
    ax.text(-0.1, middle, words[0], ha="right", va="bottom", fontsize=9, weight="bold")
    ax.text(-0.1, middle + 0.08, words[1], ha="right", va="top", fontsize=7.5, color="#555555")
    _draw_image(ax, query.image, (0, middle - 0.5))
    for row, (encoder, strip) in enumerate(query.strips.items()):
        y = top + ROW * row
        ax.text(START - 0.12, y + 0.5, textwrap.fill(encoder, 9), ha="right", va="center", fontsize=8)
        for rank, (image, name, kind) in enumerate(zip(strip.images, strip.names, strip.kinds, strict=True)):
            x = START + PITCH * rank
            _draw_image(ax, image, (x, y), FRAMES[kind])
            ax.text(x + 0.5, y + 1.06, textwrap.shorten(name, 15, placeholder="…"), ha="center", va="top", fontsize=6)


def _draw_image(ax, image: np.ndarray, corner: tuple[float, float], frame: str | None = None) -> None:
    """An image of side 1 with its upper left corner there, in a frame if one is given."""
    from matplotlib.patches import Rectangle

    x, y = corner
    ax.imshow(image, extent=(x, x + 1, y + 1, y), interpolation="nearest" if len(image) < 100 else "antialiased")
    if frame:
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, lw=3, ec=frame))


# ---- command line ----------------------------------------------------------------------------------------------------


def get_parser():
    p = encoders.comparison_parser(__doc__)
    g = p.add_argument_group("picture")
    g.add_argument("--queries", type=options.positive_int, default=8, help="test images, each of another class")
    g.add_argument("--nearest", type=options.positive_int, default=10, help="training images shown for each")
    g.add_argument("--out", type=util.user_path, default=Path("strips.png"), help="file to draw")
    return p


def strip_of(train: datasets.ImageData, neighbours: np.ndarray, kinds: np.ndarray) -> Strip:
    """The neighbours [k] of a query, which are of these kinds [k], as they are drawn."""
    words = files.in_words(train.classes)
    names = [words[train.classes[train.labels[i]]] for i in neighbours]
    return Strip([square(train.image(i)) for i in neighbours.tolist()], names, kinds.tolist())


def main():
    args = config.parse(get_parser(), options.SMALL_DATA)
    figures.check_picture(args.out, "--out")
    train, test = datasets.build_pair(args.dataset, **options.chosen_images(args))
    distributed.say(datasets.left_out(train, test))
    groups = encoders.compared_superclasses(args.superclasses, args.dataset, train.classes)
    chosen, step = queries_of(test.labels.numpy(), args.queries)
    if args.nearest > len(train):
        raise InputError(f"--nearest {args.nearest}: there are {len(train)} training images; give at most so many")
    loading, cache = options.loading(args, torch.device("cpu")), options.features_cache(args)
    nets = encoders.load(options.all_wanted(args), args.names, train)
    gallery = encoders.features(nets, train, "gallery", loading, cache)
    features = encoders.features(nets, test, "queries", loading, cache)
    group_of = rankings.superclass_labels(groups, train.classes, "superclasses").tolist()
    neighbours = {n: evaluation.nearest(features[n], gallery[n], args.nearest)[1].numpy() for n in nets}
    own, labels = test.labels.numpy()[:, None], train.labels.numpy()
    kinds = {name: pair_kinds(own, labels[found], group_of) for name, found in neighbours.items()}
    words, in_groups, queries = files.in_words(train.classes), list(files.in_words(groups).values()), []
    for i in chosen:
        label = int(test.labels[i])
        strips = {name: strip_of(train, neighbours[name][i], kinds[name][i]) for name in nets}
        name, group = words[train.classes[label]], in_groups[group_of[label]]
        queries.append(Query(square(test.image(i)), name, group, strips))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    data = datasets.title(args.dataset, args.data_folder)
    title = f"{data}: test images, and the {args.nearest} training images nearest to each by cosine"
    title += (
        f"\nTest images chosen by rule: the first one of {'every class' if step == 1 else f'one class in every {step}'}"
    )
    draw_strips(args.out, queries, title, {name: shares(k) for name, k in kinds.items()})
    print(f"drew {args.out}")


if __name__ == "__main__":
    util.run_command(main)

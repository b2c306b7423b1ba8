"""Draw retrieved images: test images and the nearest training images of each, one strip per encoder.

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
from PIL import Image, ImageOps

import evaluation
import figures
from datasets.rankings import files
from engine.cli import options
from figures import encoders
from util import InputError

# of a neighbor, by pair_kinds; told apart by color-blind readers, and dark, middle and light in gray
KINDS = ("own class", "same superclass", "other superclass")
FRAMES = ("#0072B2", "#E69F00", "#C8C8C8")
CELL = 0.8  # inches of an image


def choose_queries(labels: np.ndarray, n: int) -> tuple[list[int], int]:
    """Choose the first image of every k-th class, by labels [m], k the largest with n of them; the images, and k.

    Only classes with an image count. Raises InputError where they are fewer than n.
    """
    present, first = np.unique(labels, return_index=True)
    if n > len(present):
        raise InputError(f"--queries {n}: only {len(present)} classes have test images; give at most {len(present)}")
    step = len(present) // n
    return first[::step][:n].tolist(), step


def square(image: Image.Image, most: int = 160) -> np.ndarray:
    """[s, s, 3] the middle of an image, no larger than it will be seen."""
    side = min(*image.size, most)
    return np.asarray(ImageOps.fit(image, (side, side)))


@dataclass(frozen=True)
class Neighbor:
    """An image found for a query, its class, and of which of KINDS it is."""

    image: np.ndarray
    name: str
    kind: int


@dataclass(frozen=True)
class Query:
    """An image, its class and superclass, and its strip under each encoder: its neighbors, the nearest first."""

    image: np.ndarray
    name: str
    group: str
    strips: dict[str, list[Neighbor]]


# in images: from one to the next in a strip, from strip to strip, what is more from query to query; where strips begin
PITCH, ROW, GAP, START = 1.14, 1.34, 0.3, 2.0


def draw_strips(path: Path, queries: list[Query], title: str, kinds: dict[str, np.ndarray]) -> None:
    """Draw a block per query, in it a strip per encoder; frames say of which kind a neighbor is.

    kinds: encoder -> the kinds of the neighbors of all test images, whose shares the title says.
    """
    plt = figures.pyplot()
    count = len(next(iter(queries[0].strips.values())))
    width, height = START + PITCH * count, len(queries) * (ROW * len(queries[0].strips) + GAP)
    size = max(8, CELL * (width + 2)), CELL * (height + 0.5) + 1 + 0.2 * len(kinds)
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    ax.text(START - 0.12, -0.15, "nearest", ha="right", va="bottom", fontsize=8)
    for rank in range(count):
        ax.text(START + PITCH * rank + 0.5, -0.15, f"{rank + 1}", ha="center", va="bottom", fontsize=8)
    top = 0.0
    for query in queries:
        _draw_query(ax, query, top)
        top += ROW * len(query.strips) + GAP
    ax.set(xlim=(-2, width), ylim=(height, -0.5), aspect="equal")
    ax.axis("off")
    marks = [plt.Rectangle((0, 0), 1, 1, fill=False, lw=3, ec=color) for color in FRAMES]
    ax.legend(marks, KINDS, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    for name, found in kinds.items():
        each = ", ".join(f"{100 * (found == number).mean():.1f} % {kind}" for number, kind in enumerate(KINDS))
        title += f"\n{name}, for all test images: {each}"
    figures.save(figure, path, title, dpi=120)


def _draw_query(ax, query: Query, top: float) -> None:
    """One block, from the height `top` downward: its class, its image, its strips."""
    middle = top + (ROW * (len(query.strips) - 1) + 1) / 2
    words = textwrap.fill(query.name, 14), textwrap.fill(query.group, 16)
    ax.text(-0.1, middle, words[0], ha="right", va="bottom", fontsize=9, weight="bold")
    ax.text(-0.1, middle + 0.08, words[1], ha="right", va="top", fontsize=7.5, color="#555555")
    _draw_image(ax, query.image, 0, middle - 0.5)
    for row, (encoder, strip) in enumerate(query.strips.items()):
        y = top + ROW * row
        ax.text(START - 0.12, y + 0.5, textwrap.fill(encoder, 9), ha="right", va="center", fontsize=8)
        for rank, found in enumerate(strip):
            x, name = START + PITCH * rank, textwrap.shorten(found.name, 15, placeholder="…")
            _draw_image(ax, found.image, x, y, FRAMES[found.kind])
            ax.text(x + 0.5, y + 1.06, name, ha="center", va="top", fontsize=6)


def _draw_image(ax, image: np.ndarray, x: float, y: float, frame: str | None = None) -> None:
    """Draw an image of side 1 with its upper left corner at (x, y), in a frame if one is given."""
    from matplotlib.patches import Rectangle

    ax.imshow(image, extent=(x, x + 1, y + 1, y), interpolation="nearest" if len(image) < 100 else "antialiased")
    if frame:
        ax.add_patch(Rectangle((x, y), 1, 1, fill=False, lw=3, ec=frame))


def get_parser():
    p = encoders.parser(__doc__, "strips.png")
    g = p.add_argument_group("strips")
    g.add_argument(
        "--queries", type=options.positive_int, default=8, help="number of test images, each of another class"
    )
    g.add_argument(
        "--nearest", type=options.positive_int, default=10, help="number of training images to show for each"
    )
    return p


def main():
    comparison = encoders.Comparison(get_parser())
    args, train, test = comparison.args, comparison.train, comparison.test
    if train.are_features:
        raise InputError("--features: features have no images to draw; give a data set of images")
    comparison.check_superclasses()
    chosen, step = choose_queries(test.labels.numpy(), args.queries)
    if args.nearest > len(train):
        raise InputError(f"--nearest {args.nearest}: give at most {len(train)}, the number of training images")
    gallery, features = comparison.features(train, "gallery"), comparison.features(test, "queries")
    group_of = encoders.group_numbers(comparison.superclasses, train.classes)
    nearest = {name: evaluation.nearest(features[name], gallery[name], args.nearest)[1].numpy() for name in features}
    labels = train.labels.numpy()
    kinds = {n: encoders.pair_kinds(test.labels.numpy()[:, None], labels[i], group_of) for n, i in nearest.items()}
    words, groups = (list(files.name_classes(names).values()) for names in (train.classes, comparison.superclasses))

    def strip(encoder: str, query: int) -> list[Neighbor]:
        found = zip(nearest[encoder][query].tolist(), kinds[encoder][query].tolist(), strict=True)
        return [Neighbor(square(train.image(i)), words[labels[i]], kind) for i, kind in found]

    queries = []
    for i in chosen:
        label, strips = int(test.labels[i]), {name: strip(name, i) for name in features}
        queries.append(Query(square(test.image(i)), words[label], groups[group_of[label]], strips))
    title = f"{comparison.data}: test images, and the {args.nearest} training images nearest to each by cosine\n"
    of_each = "every class" if step == 1 else f"one class in every {step}"
    title += f"Test images chosen by rule: the first one of {of_each}"
    draw_strips(args.out, queries, title, kinds)
    print(f"drew {args.out}")


if __name__ == "__main__":
    util.run_command(main)

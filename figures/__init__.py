"""Pictures, from records and tensors; `python -m figures.NAME` draws some of them from the command line."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import util

FORMATS = (".png", ".pdf", ".svg", ".jpg")


def pyplot() -> ModuleType:
    """Import matplotlib.pyplot without a screen, where something is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def columns(words: list[str], inches: float, most: int | None = None) -> int:
    """In how many columns, of at most so many, a legend of these words has room."""
    return min(len(words), most or len(words), max(1, int(11 * inches / (max(map(len, words)) + 8))))


def panels(count: int, size: Callable, share_y: bool = False):
    """Make a figure and so many panels, three in a row. size(across, down): of the figure, in inches."""
    across = min(3, count)
    down = -(-count // across)
    how = dict(figsize=size(across, down), layout="constrained", squeeze=False, sharey=share_y)
    figure, axes = pyplot().subplots(down, across, **how)
    for ax in axes.flat[count:]:
        ax.axis("off")
    return figure, axes.flat[:count]


def save(figure, path: Path, title: str = "", dpi: int = 110) -> None:
    """Write and close a figure, under a title if one is given, whose lines are broken where the figure ends."""
    if title:
        wide = int(11 * figure.get_figwidth())
        figure.suptitle("\n".join(textwrap.fill(line, wide) for line in title.splitlines()), fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    pyplot().close(figure)


def check_picture(path: Path, flag: str) -> None:
    """Raise InputError, before any work, where no picture could be written to `path`."""
    util.check_folder(path.absolute().parent, flag)
    if path.suffix.lower() not in FORMATS:
        raise util.InputError(f"{flag} {path}: a picture's name ends in {', '.join(FORMATS)}")


def try_to_draw(draw: Callable, path: Path, values: Sequence) -> str:
    """Draw a record's values, draw(path, *values); returns what to say of it: a fault in drawing ends no evaluation."""
    try:
        draw(path, *values)
    except Exception as error:  # of a disk, of a font, of matplotlib
        return f"; {path.name} cannot be drawn ({util.reason(error)})"
    return f" and {path.name}"

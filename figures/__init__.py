"""Pictures, from records and tensors; `python -m figures.NAME` draws some of them from the command line."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import util


def pyplot() -> ModuleType:
    """matplotlib.pyplot without a screen, imported where something is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def columns(words: list[str], inches: float, most: int | None = None) -> int:
    """In how many columns, of at most so many, a legend of these words has room."""
    return min(len(words), most or len(words), max(1, int(11 * inches / (max(map(len, words)) + 8))))


FORMATS = (".png", ".pdf", ".svg", ".jpg")


def check_picture(path: Path, flag: str) -> None:
    """Raise InputError, before any work, where no picture could be written to `path`."""
    util.check_folder(path.absolute().parent, flag)
    if path.suffix.lower() not in FORMATS:
        raise util.InputError(f"{flag} {path}: a picture's name ends in {', '.join(FORMATS)}")


def shown(draw: Callable, path: Path, *what) -> str:
    """draw(path, *what) a picture of figures that are on the disk already; returns what to say of it: a picture that
    cannot be drawn ends no evaluation.
    """
    try:
        draw(path, *what)
    except Exception as error:  # of a disk, of a font, of matplotlib
        return f"; {path.name} cannot be drawn ({util.reason(error)})"
    return f" and {path.name}"

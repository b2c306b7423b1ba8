"""Draws figures of a recipe's table over an axis of its grid: a panel a column, a line a method.

python -m figures.grid save/tables/TABLE.json --axis memorybank_size --columns "coarse mAP" "fine mAP" --out curve.png
"""

import argparse
import itertools
import math
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np

import figures
import util
from engine.results import read_table
from figures.curves import COLOURS
from util import InputError

MARKERS = ("o", "s", "^", "D", "v", "P")
WIDE = 8  # from this ratio of its largest value to its smallest on, an axis is logarithmic


def lines(content: dict, axis: str) -> dict[str, dict[str | None, list[dict]]]:
    """Line -> label on the axis -> values by column, a mapping a seed; label None of a method without this axis.

    A line is a method with one value on each other axis. Raises InputError where two methods have one title.
    """
    found, method_of = {}, {}
    for name, runs in content["results"].items():
        method = content["recipe"]["methods"][name]
        cell = method.get("cell") or {"title": method.get("title", name), "axes": {}}
        others = [f"{other} {label}" for other, label in cell["axes"].items() if other != axis]
        title, of = ", ".join([cell["title"], *others]), cell.get("method", name)
        if method_of.setdefault(title, of) != of:
            both = f"the methods {method_of[title]} and {of}"
            raise InputError(
                f"{content['recipe']['title']}: {both} are both called {title}; give them titles that differ"
            )
        line = found.setdefault(title, {})
        line[cell["axes"].get(axis)] = [run["values"] for run in runs]
    return found


def places(labels: list[str]) -> tuple[dict[str, float], bool]:
    """Where labels lie on the axis, numbers at their value, others side by side; and whether it is logarithmic."""
    try:
        at = {label: float(label) for label in labels}
    except ValueError:
        at = {}
    if not at or not all(map(math.isfinite, at.values())):
        return {label: float(place) for place, label in enumerate(labels)}, False
    low, high = min(at.values()), max(at.values())
    return at, low > 0 and high / low > WIDE


def known(content: dict) -> tuple[list[str], list[str]]:
    """The axes and the columns of a table."""
    recipe = content["recipe"]
    axes = dict.fromkeys(a for method in recipe["methods"].values() for a in method.get("cell", {}).get("axes", {}))
    columns = dict.fromkeys(column for entry in recipe["evaluations"].values() for column in entry["columns"])
    return list(axes), [*columns, "seconds"]


def seeds_of(counts: set[int]) -> str:
    """How many seeds what is drawn has, in words."""
    return f"{'up to ' if len(counts) > 1 else ''}{max(counts)} seeds"


def scaled(content: dict) -> str:
    """What to say of a table whose trainings were shortened."""
    return f", SCALED: {100 * content['scale']:g} % of the epochs" if content["scale"] != 1 else ""


def panels(count: int, size: Callable, **how):
    """A figure and so many panels, three in a row. size(across, down): of the figure, in inches."""
    across = min(3, count)
    down = -(-count // across)
    figure, axes = figures.pyplot().subplots(
        down, across, figsize=size(across, down), layout="constrained", squeeze=False, **how
    )
    for ax in axes.flat[count:]:
        ax.axis("off")
    return figure, axes.flat[:count]


def finish(figure, path: Path, title: list[str]) -> None:
    """Write a figure under lines of a title, which are broken where it ends."""
    wide = int(11 * figure.get_figwidth())
    figure.suptitle("\n".join(textwrap.fill(line, wide) for line in title), fontsize=11)
    figure.savefig(path, dpi=110)
    figures.pyplot().close(figure)


def draw_panel(ax, column: str, drawn: dict, at: dict[str, float]) -> None:
    """One column: a line with bars of a standard deviation (n - 1) where there are several seeds, and across the panel
    the mean of a method without the axis.
    """
    styles = zip(itertools.cycle(COLOURS), itertools.cycle(MARKERS), strict=False)
    for (title, line), (colour, marker) in zip(drawn.items(), styles, strict=False):
        of = {label: [values[column] for values in seeds if column in values] for label, seeds in line.items()}
        of = {label: values for label, values in of.items() if values}
        if None in of:
            ax.axhline(np.mean(of.pop(None)), color=colour, ls="--", lw=1.5, label=title)
        if of:
            labels = sorted(of, key=at.get)
            means = [np.mean(of[label]) for label in labels]
            spread = [np.std(of[label], ddof=1) if len(of[label]) > 1 else 0 for label in labels]
            how = dict(color=colour, marker=marker, ms=5, lw=1.8, elinewidth=1.2, capsize=3, label=title)
            ax.errorbar([at[label] for label in labels], means, yerr=spread if any(spread) else None, **how)


def draw_grid(path: Path, content: dict, axis: str, columns: list[str]) -> None:
    """Draw columns of a table, content of its JSON, over an axis of its grid."""
    drawn = lines(content, axis)
    at, wide = places(list(dict.fromkeys(label for line in drawn.values() for label in line if label is not None)))
    figure, axes = panels(len(columns), lambda across, down: (3.8 * across, 3.1 * down + 0.6))
    slanted = sum(map(len, at)) > 24  # letters that lie below a panel
    for ax, column in zip(axes, columns, strict=True):
        draw_panel(ax, column, drawn, at)
        if wide:
            ax.set_xscale("log")
        ax.minorticks_off()
        ax.set_xticks(list(at.values()), list(at), **(dict(rotation=25, ha="right") if slanted else {}))
        ax.set(title=column, xlabel=axis, ylabel="seconds" if column == "seconds" else "%")
        ax.grid(alpha=0.3)
    draw_legend(figure, list(drawn))
    counts = {sum(bool(run["values"]) for run in runs) for runs in content["results"].values()} - {0}
    spread = f"mean ± standard deviation of {seeds_of(counts)}" if max(counts) > 1 else "one seed"
    finish(figure, path, [content["recipe"]["title"], spread + scaled(content)])


def draw_legend(figure, titles: list[str]) -> None:
    """One legend of all panels below them, in the order of the table, in as many columns as there is room for."""
    entries = {}
    for ax in figure.axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    shown = [title for title in titles if title in entries]
    how = dict(loc="outside lower center", ncols=figures.columns(shown, figure.get_figwidth()), frameon=False)
    figure.legend([entries[title] for title in shown], shown, **how)


# ---- command line ----------------------------------------------------------------------------------------------------


def get_parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("table", type=util.user_path, help="JSON that reproduce.py wrote")
    p.add_argument("--axis", required=True, help="option that the recipe's grid varies")
    p.add_argument("--columns", nargs="+", metavar="COLUMN", help="(default: all that have figures, without seconds)")
    p.add_argument("--out", type=util.user_path, default=Path("grid.png"), help="file to draw (default: grid.png)")
    return p


def main():
    args = get_parser().parse_args()
    figures.check_picture(args.out, "--out")
    content = read_table(args.table)
    axes, columns = known(content)
    if args.axis not in axes:
        there = f"its grid has {', '.join(axes)}" if axes else "its recipe has no grid"
        raise InputError(f"--axis {args.axis}: no axis of {args.table}{util.nearest(args.axis, axes)}; {there}")
    filled = {column for runs in content["results"].values() for run in runs for column in run["values"]}
    chosen = args.columns or [column for column in columns[:-1] if column in filled] or columns[:1]
    for column in chosen:
        if column not in columns:
            raise InputError(f"--columns {column}: no column of {args.table}{util.nearest(column, columns)}")
        if column not in filled:
            raise InputError(f"--columns {column}: {args.table} has no figure of it yet")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw_grid(args.out, content, args.axis, chosen)
    print(f"drew {args.out}")


if __name__ == "__main__":
    util.run_command(main)

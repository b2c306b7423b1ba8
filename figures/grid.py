"""Draw results of a recipe's table over an axis of its grid: one panel per column, one line per method.

python -m figures.grid save/tables/TABLE.json --axis memorybank_size --columns "coarse mAP" "fine mAP" --out curve.png
"""

import itertools
import math
from pathlib import Path

import numpy as np

import figures
import util
from engine.cli.parsing import Parser
from engine.encoder.records import read_table
from figures.curves import COLORS
from util import InputError

MARKERS = ("o", "s", "^", "D", "v", "P")
WIDE = 8  # from this ratio of its largest value to its smallest on, an axis is logarithmic


def group_lines(content: dict, axis: str) -> dict[str, dict[str | None, list[dict]]]:
    """Line -> label on the axis -> values by column, a mapping a seed; label None of a method without this axis.

    A line is a method with one value on each other axis. Raises InputError where two methods have one title.
    """
    found, method_of = {}, {}
    for name, runs in content["results"].items():
        method = content["recipe"]["methods"][name]
        cell = method.get("cell") or {"title": method.get("title", name), "axes": {}}
        others = [f"{other} {label}" for other, label in cell["axes"].items() if other != axis]
        title, own = ", ".join([cell["title"], *others]), cell.get("method", name)
        if method_of.setdefault(title, own) != own:
            both = f"the methods {method_of[title]} and {own} are both called {title}; give them titles that differ"
            raise InputError(f"{content['recipe']['title']}: {both}")
        line = found.setdefault(title, {})
        line[cell["axes"].get(axis)] = [run["values"] for run in runs]
    return found


def take_methods(content: dict, only: list[str], source: str) -> dict:
    """Take these methods of the table alone; a name stands for a method's cells. InputError where one is missing."""
    own = {name: content["recipe"]["methods"][name].get("cell", {}).get("method", name) for name in content["results"]}
    for name in only:
        if name not in own and name not in own.values():
            raise InputError(f"--only {name}: no method of {source}{util.nearest(name, [*own, *own.values()])}")
    taken = {name: runs for name, runs in content["results"].items() if name in only or own[name] in only}
    return {**content, "results": taken}


def place_labels(labels: list[str]) -> tuple[dict[str, float], bool]:
    """Where labels lie on the axis, numbers at their value, others side by side; and whether it is logarithmic."""
    try:
        at = {label: float(label) for label in labels}
    except ValueError:
        at = {}
    if not at or not all(map(math.isfinite, at.values())):
        return {label: float(place) for place, label in enumerate(labels)}, False
    low, high = min(at.values()), max(at.values())
    return at, low > 0 and high / low > WIDE


def count_seeds(counts: set[int]) -> str:
    """How many seeds what is drawn has, in words."""
    return f"{'up to ' if len(counts) > 1 else ''}{max(counts)} {'seed' if counts == {1} else 'seeds'}"


def tell_scale(content: dict) -> str:
    """Return what to say of a table whose trainings were shortened."""
    return f", SCALED: {100 * content['scale']:g} % of the epochs" if content["scale"] != 1 else ""


def draw_panel(ax, column: str, drawn: dict, at: dict[str, float]) -> None:
    """One column: a line a method with bars of a standard deviation, across the panel a method without the axis."""
    styles = zip(itertools.cycle(COLORS), itertools.cycle(MARKERS), strict=False)
    for (title, line), (color, marker) in zip(drawn.items(), styles, strict=False):
        found = {label: [values[column] for values in seeds if column in values] for label, seeds in line.items()}
        found = {label: values for label, values in found.items() if values}
        if None in found:
            ax.axhline(np.mean(found.pop(None)), color=color, ls="--", lw=1.5, label=title)
        if found:
            labels = sorted(found, key=at.get)
            means = [np.mean(found[label]) for label in labels]
            spread = [np.std(found[label], ddof=1) if len(found[label]) > 1 else 0 for label in labels]
            how = dict(color=color, marker=marker, ms=5, lw=1.8, elinewidth=1.2, capsize=3, label=title)
            ax.errorbar([at[label] for label in labels], means, yerr=spread if any(spread) else None, **how)


def draw_grid(path: Path, content: dict, axis: str, columns: list[str]) -> None:
    """Draw columns of a table, content of its JSON, over an axis of its grid."""
    drawn = group_lines(content, axis)
    labels = dict.fromkeys(label for line in drawn.values() for label in line if label is not None)
    at, wide = place_labels(list(labels))
    rows = -(-len(drawn) // figures.columns(list(drawn), 3.8 * min(3, len(columns))))  # of the legend
    figure, axes = figures.panels(len(columns), lambda across, down: (3.8 * across, 3.1 * down + 0.4 + 0.22 * rows))
    slanted = sum(map(len, at)) > 20  # letters that lie below a panel
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
    spread = f"mean ± standard deviation of {count_seeds(counts)}" if max(counts) > 1 else "one seed"
    figures.save(figure, path, f"{content['recipe']['title']}\n{spread}{tell_scale(content)}")


def draw_legend(figure, titles: list[str]) -> None:
    """One legend of all panels below them, in the order of the table, in as many columns as there is room for."""
    found = (zip(*reversed(ax.get_legend_handles_labels()), strict=True) for ax in figure.axes)
    entries = {label: handle for pairs in found for label, handle in pairs}
    shown = [title for title in titles if title in entries]
    how = dict(loc="outside lower center", ncols=figures.columns(shown, figure.get_figwidth()), frameon=False)
    figure.legend([entries[title] for title in shown], shown, **how)


def table_parser(description: str, out: str):
    """Make the options of a picture of a recipe's table."""
    p = Parser(description=description)
    p.add_argument("table", type=util.user_path, help="JSON file of reproduce.py")
    p.add_argument("--columns", nargs="+", metavar="COLUMN", help="columns to draw (default: all but seconds)")
    p.add_argument("--out", type=util.user_path, metavar="FILE", default=Path(out), help="picture to write")
    return p


def check_columns(columns: list[str], there: list[str], source: str) -> None:
    """Raise InputError, beginning with --columns, where one is not there. source: "TABLE has no figure"."""
    for column in columns:
        if column not in there:
            near = util.nearest(column, there)
            raise InputError(f"--columns {column}: {source} of it{near}; it has {', '.join(there)}")


def get_parser():
    p = table_parser(__doc__, "grid.png")
    p.add_argument("--axis", required=True, help="option that the grid of the recipe varies")
    p.add_argument("--only", nargs="+", metavar="METHOD", help="methods to draw (default: all)")
    return p


def main():
    args = get_parser().parse_args()
    figures.check_picture(args.out, "--out")
    content = read_table(args.table)
    cells = [method["cell"] for method in content["recipe"]["methods"].values() if "cell" in method]
    axes = list(dict.fromkeys(axis for cell in cells for axis in cell["axes"]))
    if args.axis not in axes:
        there = f"its grid has {', '.join(axes)}" if axes else "its recipe has no grid"
        raise InputError(f"--axis {args.axis}: no axis of {args.table}{util.nearest(args.axis, axes)}; {there}")
    if args.only:
        content = take_methods(content, args.only, str(args.table))
    filled = list(dict.fromkeys(c for runs in content["results"].values() for run in runs for c in run["values"]))
    chosen = args.columns or [column for column in filled if column != "seconds"]
    if not chosen:
        raise InputError(f"{args.table}: has no results yet")
    check_columns(chosen, filled, f"{args.table} has no result")
    draw_grid(args.out, content, args.axis, chosen)
    print(f"drew {args.out}")


if __name__ == "__main__":
    util.run_command(main)

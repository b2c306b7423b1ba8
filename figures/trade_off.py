"""Draw the methods of a recipe's table over two of its columns, as a trade-off.

python -m figures.trade_off save/tables/TABLE.json --columns "fine mAP" "coarse mAP" --highlight RINCE --out front.png
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

import figures
import util
from engine.encoder.records import are_small, read_table, spreads
from figures.curves import GRAY, INLIER
from figures.grid import check_columns, count_seeds, table_parser, tell_scale
from util import InputError


def interval(values: list[float]) -> float:
    """Half of the two-sided 95 % interval of the mean by Student's t; 0 of a single value."""
    return spreads(len(values)) * statistics.stdev(values) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Method:
    """One method: its number and title, whether it is filled, and its values of both columns, one a seed."""

    number: int
    title: str
    filled: bool
    x: list[float]
    y: list[float]

    @property
    def mean(self) -> tuple[float, float]:
        """Where it lies."""
        return statistics.mean(self.x), statistics.mean(self.y)


def find_methods(content: dict, columns: list[str], highlight: str | None) -> list[Method]:
    """Find the methods of a table's JSON that have both columns; highlight: how the title of a filled one begins."""
    found: list[Method] = []
    for name, runs in content["results"].items():
        values = [[run["values"][c] for c in columns] for run in runs if all(c in run["values"] for c in columns)]
        if values:
            title = content["recipe"]["methods"][name].get("title", name)
            filled = highlight is not None and title.startswith(highlight)
            found.append(Method(len(found) + 1, title, filled, *map(list, zip(*values, strict=True))))
    return found


def draw_methods(ax, methods: list[Method]) -> None:
    """Draw a numbered disc per method, with intervals and seeds."""
    for method in methods:
        color, above = (INLIER, 4) if method.filled else (GRAY, 3)
        ax.plot(method.x, method.y, ".", color=color, ms=3, alpha=0.7)
        how = dict(xerr=interval(method.x), yerr=interval(method.y), color=color, lw=1, capsize=2)
        ax.errorbar(*method.mean, **how)
        face, text = (INLIER, "white") if method.filled else ("white", "black")
        ax.plot(*method.mean, "o", ms=13, mfc=face, mec=color, mew=1.4, zorder=above)
        how = dict(ha="center", va="center_baseline", fontsize=8, color=text, zorder=above)
        ax.annotate(str(method.number), method.mean, **how)
    ax.grid(alpha=0.3)


def draw_trade_off(path: Path, content: dict, columns: list[str], highlight: str | None, zoom: list[float]) -> None:
    """Draw two columns of a table, `content` being its JSON; zoom: from where on a second panel shows them, or []."""
    methods = find_methods(content, columns, highlight)
    panels = [methods]
    if zoom:
        panels.append([m for m in methods if m.mean[0] >= zoom[0] and m.mean[1] >= zoom[1]])
    wide = 5.4 * len(panels)
    figure, axes = figures.pyplot().subplots(1, len(panels), figsize=(wide + 2.2, 5.4), layout="constrained")
    axes = axes if zoom else [axes]
    for ax, shown in zip(axes, panels, strict=True):
        draw_methods(ax, shown)
    units = ["" if are_small(content["results"], c) else " (%)" for c in columns]
    for ax in axes:
        ax.set_xlabel(f"{columns[0]}{units[0]}, right is better")
    axes[0].set_ylabel(f"{columns[1]}{units[1]}, up is better")
    if zoom:
        (left, right), (low, high) = axes[1].get_xlim(), axes[1].get_ylim()
        axes[0].add_patch(figures.pyplot().Rectangle((left, low), right - left, high - low, fill=False, ls="--"))
        axes[1].set_title(f"enlarged: from {zoom[0]:g} and {zoom[1]:g} on", fontsize=9)
    names = "\n".join(f"{m.number:>2}  {m.title}" for m in methods)
    figure.text(1.03, 0.5, names, va="center", fontsize=8.5, linespacing=1.35, transform=axes[-1].transAxes)
    figure.get_layout_engine().set(rect=(0, 0, wide / (wide + 2.2), 1))
    how = f"small dots: {count_seeds({len(m.x) for m in methods})}; bars: 95 % interval of the mean"
    figures.save(figure, path, f"{content['recipe']['title']}\n{how}{tell_scale(content)}")


def get_parser():
    p = table_parser(__doc__, "trade_off.png")
    p.add_argument("--highlight", metavar="TEXT", help="beginning of the titles of methods to draw filled")
    p.add_argument(
        "--zoom", nargs=2, type=float, metavar="X", default=[], help="smallest values of a second panel, right and up"
    )
    return p


def main():
    args = get_parser().parse_args()
    figures.check_picture(args.out, "--out")
    content = read_table(args.table)
    there = list(dict.fromkeys(c for runs in content["results"].values() for run in runs for c in run["values"]))
    if len(args.columns or []) != 2:
        raise InputError(f"--columns: give two of {', '.join(there)}: the horizontal one, then the vertical one")
    check_columns(args.columns, there, f"{args.table} has no column")
    draw_trade_off(args.out, content, args.columns, args.highlight, args.zoom)
    print(f"drew {args.out}")


if __name__ == "__main__":
    util.run_command(main)

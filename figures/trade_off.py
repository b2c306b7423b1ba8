"""Draws the methods of a recipe's table over two of its columns: what one gains in the first, and pays in the other.

python -m figures.trade_off save/tables/TABLE.json --columns "fine mAP" "coarse mAP" --highlight RINCE --out front.png
"""

import statistics
from pathlib import Path

import figures
import util
from engine.encoder.records import are_small, read_table
from figures.curves import GRAY, INLIER
from figures.grid import check_columns, count_seeds, table_parser, tell_scale
from util import InputError


def interval(values: list[float]) -> float:
    """Half of the two-sided 95 % interval of the mean by Student's t; 0 of a single value."""
    from scipy import stats

    if len(values) < 2:
        return 0.0
    return float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def draw_trade_off(path: Path, content: dict, columns: list[str], highlight: str | None) -> None:
    """Draw two columns of a table, `content` being its JSON: a numbered disc a method, with intervals and seeds."""
    titles, methods = [], content["recipe"]["methods"]
    figure, ax = figures.pyplot().subplots(figsize=(7.6, 5.4), layout="constrained")
    counts = set()
    for name, runs in content["results"].items():
        found = [[run["values"][c] for c in columns] for run in runs if all(c in run["values"] for c in columns)]
        if not found:
            continue
        x, y = (list(column) for column in zip(*found, strict=True))
        title = methods[name].get("title", name)
        own = highlight is not None and title.startswith(highlight)
        titles.append(title)
        counts.add(len(found))
        color, at = INLIER if own else GRAY, (statistics.mean(x), statistics.mean(y))
        above = 4 if own else 3
        ax.plot(x, y, ".", color=color, ms=3, alpha=0.7)
        ax.errorbar(*at, yerr=interval(y), xerr=interval(x), color=color, lw=1, capsize=2)
        ax.plot(*at, "o", ms=13, mfc=INLIER if own else "white", mec=color, mew=1.4, zorder=above)
        how = dict(ha="center", va="center_baseline", fontsize=8, color="white" if own else "black", zorder=above)
        ax.annotate(str(len(titles)), at, **how)
    units = ["" if are_small(content["results"], c) else " (%)" for c in columns]
    ax.set(xlabel=f"{columns[0]}{units[0]}, right is better", ylabel=f"{columns[1]}{units[1]}, up is better")
    ax.grid(alpha=0.3)
    names = "\n".join(f"{number:>2}  {title}" for number, title in enumerate(titles, 1))
    figure.text(1.01, 0.5, names, va="center", fontsize=8.5, linespacing=1.35, transform=ax.transAxes)
    figure.get_layout_engine().set(rect=(0, 0, 0.7, 1))
    how = f"small dots: {count_seeds(counts)}; bars: 95 % interval of the mean"
    figures.save(figure, path, f"{content['recipe']['title']}\n{how}{tell_scale(content)}")


def get_parser():
    p = table_parser(__doc__, "trade_off.png")
    p.add_argument("--highlight", metavar="TEXT", help="fill the methods whose title begins so")
    return p


def main():
    args = get_parser().parse_args()
    figures.check_picture(args.out, "--out")
    content = read_table(args.table)
    there = list(dict.fromkeys(c for runs in content["results"].values() for run in runs for c in run["values"]))
    if len(args.columns or []) != 2:
        raise InputError(f"--columns: give two of {', '.join(there)}: the one to the right, then the one up")
    check_columns(args.columns, there, f"{args.table} has no column")
    draw_trade_off(args.out, content, args.columns, args.highlight)
    print(f"drew {args.out}")


if __name__ == "__main__":
    util.run_command(main)

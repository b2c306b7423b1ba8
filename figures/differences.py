"""Draw differences to the baseline of a recipe's table: one panel per column, every seed and the 95 % interval.

python -m figures.differences save/tables/TABLE.json --columns "coarse mAP" "fine mAP" --out differences.png
"""

from pathlib import Path

import figures
import util
from engine.encoder.records import are_small, read_table
from figures.curves import GRAY, INLIER, OUTLIER
from figures.grid import check_columns, count_seeds, table_parser, tell_scale
from util import InputError


def draw_panel(ax, column: str, methods: list[dict], unit: str) -> None:
    """One column, a row a method: seeds as rings, the interval in blue above 0, orange below, gray if it may be 0."""
    ax.axvline(0, color="black", lw=1)
    for place, found in enumerate(method["columns"][column] for method in methods):
        seeds = list(found["seeds"].values())
        ax.plot(seeds, [place + 0.22] * len(seeds), "o", ms=4, mfc="none", mec=GRAY, mew=0.9)
        if "mean" in found:
            mean, half = found["mean"], found["half"]
            holds = found.get("p_holm", 0) < 0.05 and abs(mean) > half
            color = GRAY if not holds else INLIER if mean > 0 else OUTLIER
            ax.errorbar(mean, place, xerr=half, color=color, marker="D", ms=5, lw=2, elinewidth=2, capsize=4)
    ax.set(title=column, xlabel=unit, ylim=(len(methods) - 0.5, -0.6))
    ax.set_yticks(range(len(methods)), [method["title"] for method in methods])
    ax.grid(axis="x", alpha=0.3)


def draw_differences(path: Path, content: dict, columns: list[str]) -> None:
    """Draw columns of a table's differences, `content` being its JSON."""
    methods = content["differences"]["methods"].values()
    methods = [method for method in methods if any("mean" in method["columns"][c] for c in columns)]
    high = 0.9 + 0.5 * len(methods)
    figure, axes = figures.panels(
        len(columns), lambda across, down: (1.2 + 3.2 * across, 1 + high * down), share_y=True
    )
    for ax, column in zip(axes, columns, strict=True):
        draw_panel(ax, column, methods, "" if are_small(content["results"], column) else "points")
    counts = {len(method["columns"][column]["seeds"]) for method in methods for column in columns} - {0}
    what = f"difference to {content['differences']['to']}, paired by seed"
    corrected = ", after Holm's correction" if content["recipe"].get("correction") else ""
    how = f"rings: {count_seeds(counts)}; bar: 95 % interval of the mean, in color where it excludes 0{corrected}"
    figures.save(figure, path, f"{content['recipe']['title']}: {what}\n{how}{tell_scale(content)}")


def get_parser():
    return table_parser(__doc__, "differences.png")


def main():
    args = get_parser().parse_args()
    figures.check_picture(args.out, "--out")
    content = read_table(args.table)
    methods = (content.get("differences") or {"methods": {}})["methods"].values()
    there = list(dict.fromkeys(c for method in methods for c, found in method["columns"].items() if "mean" in found))
    if not there:
        raise InputError(
            f"{args.table}: has no differences; its recipe needs a baseline, and two seeds of it and of one "
            "more method. Run reproduce.py again to add them to a table of an older version"
        )
    check_columns(args.columns or [], there, f"{args.table} has no difference")
    draw_differences(args.out, content, args.columns or there)
    print(f"drew {args.out}")


if __name__ == "__main__":
    util.run_command(main)

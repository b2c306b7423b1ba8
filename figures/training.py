"""Draws a training from its log: loss, loss of each rank, validation, alignment and uniformity, learning rate.

python -m figures.training save/SupCon/digits_models/A save/SupCon/digits_models/B --out training.png
"""

import argparse
import itertools
from pathlib import Path

import figures
import util
from engine.run import run_log
from figures.curves import COLORS
from util import InputError

DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 4)))
# panel -> what it shows of a log's records, each drawn in a style of its own
PANELS = {
    "loss": ("loss",),
    "loss of each rank": tuple(f"loss_rank_{r}" for r in range(126)),
    "on validation images, in %": ("val_top1", "val_knn"),
    "alignment, and minus uniformity": ("alignment", "uniformity"),
    "share of the time waiting for data, in %": ("waiting_for_data",),
    "learning rate": ("learning_rate",),
}
WORDS = {"val_top1": "top-1", "val_knn": "kNN accuracy", **{f"loss_rank_{r}": f"rank {r}" for r in range(126)}}
SIGN = {"uniformity": -1, "waiting_for_data": 100}


def read_log(folder: Path) -> list[dict]:
    """Read the epochs of a run, in order; of an epoch that was trained twice, the last. Raises InputError."""
    path = folder / "log.jsonl" if folder.is_dir() else folder
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a run's folder, which holds log.jsonl")
    try:
        records = run_log.read_json_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as a run's log ({error})") from None
    epochs = {record["epoch"]: record for record in records if isinstance(record, dict) and "epoch" in record}
    if not epochs:
        raise InputError(f"{path}: holds no epoch yet")
    return [epochs[epoch] for epoch in sorted(epochs)]


def draw_training(path: Path, runs: dict[str, list[dict]]) -> None:
    """One panel for each of PANELS that some run has records of; a color a run, a dash a quantity."""
    seen = {key for records in runs.values() for record in records for key in record}
    shown = {title: [k for k in keys if k in seen] for title, keys in PANELS.items() if seen & set(keys)}
    if not shown:
        raise InputError(f"{', '.join(runs)}: the logs hold nothing to draw")
    figure, axes = figures.panels(len(shown), lambda across, down: (4.4 * across, 3.4 * down))
    for ax, (title, keys) in zip(axes, shown.items(), strict=True):
        for (name, records), color in zip(runs.items(), COLORS * len(runs), strict=False):
            for key, dash in zip(keys, itertools.cycle(DASHES), strict=False):
                points = [(r["epoch"], SIGN.get(key, 1) * r[key]) for r in records if r.get(key) is not None]
                label = name if len(PANELS[title]) == 1 else f"{name}, {WORDS.get(key, key)}"
                marker = "." if len(points) < 30 else None
                if points:
                    ax.plot(*zip(*points, strict=True), ls=dash, color=color, lw=1.8, marker=marker, label=label)
        ax.set(xlabel="epoch", ylabel=title)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
        ax.legend(frameon=False, fontsize=8, handlelength=3)
    figures.save(figure, path, dpi=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, or their log.jsonl")
    parser.add_argument(
        "--out", type=util.user_path, default=Path("training.png"), help="file to draw (default: training.png)"
    )
    args = parser.parse_args()
    figures.check_picture(args.out, "--out")
    # a log that is not its folder's own is told from that by its name
    names = [(run.parent if run.name == "log.jsonl" else run).resolve().name for run in args.runs]
    names = names if util.twice(names) is None else map(str, args.runs)
    runs = {name: read_log(run) for name, run in zip(names, args.runs, strict=True)}
    draw_training(args.out, runs)
    print(f"drew {args.out}")


if __name__ == "__main__":
    util.run_command(main)

"""How time and memory of the loss and of retrieval grow, from the records of benchmarks.loss and benchmarks.evaluation.

python -m figures.growth [--json docs/speed.json] [--out figures/growth.png]
"""

import argparse
import json
from pathlib import Path

import figures
import util
from util import InputError

PANELS = {"growth_bank": "keys in the bank", "growth_gallery": "images in the gallery"}  # record -> what grows
MAKERS = {"growth_bank": "loss", "growth_gallery": "evaluation"}  # record -> the benchmark that measures it
UNITS = {"ms": "time, ms", "MB": "memory above the inputs, MB"}


def draw(path: Path, records: dict) -> None:
    """Time and memory of both, on log axes."""
    plt = figures.pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained", sharex="col")
    for column, (name, grows) in enumerate(PANELS.items()):
        rows = records[name]["rows"]
        forms = [key.removesuffix(", ms") for key in rows[0] if key.endswith(", ms")]
        for ax, (unit, what) in zip(axes[:, column], UNITS.items(), strict=True):
            for form, style in zip(forms, ("o-", "s--"), strict=True):
                ax.loglog([r["size"] for r in rows], [r[f"{form}, {unit}"] for r in rows], style, label=form)
            ax.set_ylabel(what)
            ax.grid(alpha=0.3)
            ax.legend()
        axes[0, column].set_title(records[name]["title"], fontsize=10)
        axes[1, column].set_xlabel(grows)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=util.user_path, default=Path("docs/speed.json"), help="of the benchmarks")
    parser.add_argument("--out", type=util.user_path, default=Path("figures/growth.png"), help="picture to draw")
    args = parser.parse_args()
    figures.check_picture(args.out, "--out")
    try:
        records = json.loads(args.json.read_text())
        missing = [name for name in PANELS if name not in records]
    except (OSError, ValueError) as error:
        raise InputError(f"--json {args.json}: {util.reason(error)}") from None
    if missing:
        command = f"python -m benchmarks.{MAKERS[missing[0]]} --growth --json {args.json}"
        raise InputError(f"--json {args.json}: no record {missing[0]}; {command}")
    draw(args.out, records)
    print(f"saved {args.out}")


if __name__ == "__main__":
    util.run_command(main)

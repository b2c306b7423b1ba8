"""What an evaluation leaves behind: a JSON record in save/results, and a short table on the screen."""

import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy
import sklearn
import torch
import torchvision

import options


def write(
    args, script: str, detail: str, *, name, checkpoint, metrics, images, data_folders, seconds, more=None
) -> Path:
    """Write the record of a result, whole or not at all; returns its path.

    The file's name holds script, data set, run, detail, and eight digits of the checkpoint's hash: another checkpoint
    never overwrites it. checkpoint: path, sha256, ...; images: counts by split; data_folders: by split.
    """
    folder = Path(args.save_folder) / "results"
    folder.mkdir(parents=True, exist_ok=True)
    dataset = args.dataset + ("_without_" + "-".join(args.hold_out)[:40] if args.hold_out else "")
    parts = [script, dataset, name, detail, checkpoint["sha256"][:8]]
    path = folder / ("_".join(part for part in parts if part) + ".json")
    record = {
        "metrics": metrics,
        "checkpoint": checkpoint,
        "options": options.plain(args),
        "command": sys.argv,
        "data_folders": {split: str(Path(where).resolve()) for split, where in data_folders.items()},
        "images": images,
        "seconds": round(seconds, 2),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": numpy.__version__,
            "scikit-learn": sklearn.__version__,
        },
        **(more or {}),
    }
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(record, indent=1))
    os.replace(temporary, path)
    return path


def _cell(value) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def show(title: str, rows: dict[str, dict[str, float]]) -> None:
    """A table of percentages: one row a name, one column a metric."""
    columns = list(next(iter(rows.values())))
    width = max(map(len, (title, *rows))) + 2
    print(f"{title:<{width}}" + "".join(f"{c:>10}" for c in columns))
    for row, metrics in rows.items():
        print(f"{row:<{width}}" + "".join(f"{_cell(metrics[c]):>10}" for c in columns), flush=True)

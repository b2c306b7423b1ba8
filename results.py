"""What an evaluation leaves behind: a JSON record in save/results, and a short table on the screen."""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import torch

import config
import options
import util

# options that change where and how fast a result is made, not what it is
NO_MEANING = (
    "ckpt", "data_folder", "data_folder_outliers", "save_folder", "features_cache", "num_workers", "nproc_per_node",
    "world_size", "rank", "dist_url", "dist_backend", "print_freq", "save_freq", "resume", "overwrite", "exp_name",
)  # fmt: skip


def write(
    args, script: str, detail: str, *, name, checkpoint, metrics, images, data_folders, seconds, more=None
) -> Path:
    """Write the record of a result, whole or not at all; returns its path.

    The file's name holds script, data set, run, detail, and eight digits of a hash of checkpoint and options: only the
    same command on the same checkpoint replaces it. metrics: in percent; checkpoint: path, sha256, ...; images: counts
    by split; data_folders: by split.
    """
    folder = Path(args.save_folder) / "results"
    folder.mkdir(parents=True, exist_ok=True)
    dataset = args.dataset + ("_without_" + "-".join(args.hold_out)[:40] if args.hold_out else "")
    meaning = {k: v for k, v in options.plain(args).items() if k not in NO_MEANING}
    meaning |= {"checkpoint": checkpoint["sha256"], **{k: str(Path(v).resolve()) for k, v in data_folders.items()}}
    key = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:8]
    parts = [script, dataset, name, detail, key]
    path = folder / ("_".join(part for part in parts if part) + ".json")
    record = {
        "metrics": metrics,
        "unit": "percent",
        "checkpoint": checkpoint,
        "options": options.plain(args),
        "command": sys.argv,
        "data_folders": {split: str(Path(where).resolve()) for split, where in data_folders.items()},
        "images": images,
        "seconds": round(seconds, 2),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores",
        "commit": config.commit(),
        "versions": config.versions(),
        **(more or {}),
    }
    util.write_file(path, json.dumps(record, indent=1).encode())
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

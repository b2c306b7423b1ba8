"""What an evaluation leaves behind: a JSON record in save/results, and a short table on the screen."""

import hashlib
import json
import math
import os
import re
import sys
import time
from pathlib import Path

import torch

import util
from engine.cli import config, options
from engine.run import run_log
from util import InputError


def write(
    recorded: options.RecordedOptions,
    script: str,
    name: str,
    detail: str,
    metrics: dict,
    checkpoint: dict,
    data_folders: dict,
    about: dict,
) -> Path:
    """Write the record of a result, whole or not at all; returns its path.

    name: of the run; detail: of the evaluation; metrics: in percent; checkpoint: path, sha256, ...; data_folders: by
    split; about: further entries, such as images (counts by split) and seconds.
    The file's name holds script, data set, run, detail, and eight digits of a hash of checkpoint and options, those
    left out that a result does not depend on: only the same evaluation of the same checkpoint replaces it.
    """
    given = recorded.plain
    folder = Path(given["save_folder"]) / "results"
    folder.mkdir(parents=True, exist_ok=True)
    held_out = fit_file_name("-".join(given["hold_out"]), 40)
    dataset = given["dataset"] + (f"_without_{held_out}" if held_out else "")
    dataset += options.images_in_name(given["images_per_class"])
    made_of = {"checkpoint": checkpoint["sha256"], **{k: str(Path(v).resolve()) for k, v in data_folders.items()}}
    key = hashlib.sha256(json.dumps(recorded.hashed | made_of, sort_keys=True).encode()).hexdigest()[:8]
    parts = [script, dataset, fit_file_name(name), fit_file_name(detail), key]
    path = folder / ("_".join(part for part in parts if part) + ".json")
    device = f"{config.processor()} ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else device
    record = {
        "metrics": metrics,
        "unit": "percent",
        "checkpoint": checkpoint,
        "options": given,
        "command": sys.argv,
        "files": recorded.files,
        "protocol": config.protocol(Path(sys.argv[0]).name),
        "data_folders": {split: str(Path(where).resolve()) for split, where in data_folders.items()},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": device,
        "commit": config.commit(),
        "versions": config.versions(),
        **about,
    }
    util.write_file(path, run_log.to_json(record, indent=1).encode())
    return path


def fit_file_name(text: str, most: int = 60) -> str:
    """Return a user's name as part of a file's: no folder, and at most so many bytes; a disk takes 255 in all."""
    return os.fsencode(re.sub(r"[/\0]", "_", text))[:most].decode(errors="ignore")


def show(title: str, rows: dict[str, dict[str, float]]) -> None:
    """Print a table of percentages: one row per name, one column per metric, which not every row may have."""
    columns = list(dict.fromkeys(c for of in rows.values() for c in of))
    width = max(map(len, (title, *rows))) + 2
    wide = {c: max(10, len(c) + 2) for c in columns}
    rows = {row: {c: f"{x:.2f}" if isinstance(x, float) else str(x) for c, x in of.items()} for row, of in rows.items()}
    print(f"{title:<{width}}" + "".join(f"{c:>{wide[c]}}" for c in columns))
    for row, metrics in rows.items():
        print(f"{row:<{width}}" + "".join(f"{metrics.get(c, '-'):>{wide[c]}}" for c in columns), flush=True)


def spreads(n: int) -> float:
    """Half the width of the two-sided 95 % interval of a mean of n >= 2 figures, in standard deviations (n - 1)."""
    from scipy.stats import t

    return float(t.ppf(0.975, n - 1) / math.sqrt(n))


def are_small(results: dict, column: str) -> bool:
    """Whether all figures of a column lie in [-1, 1], as those of a correlation."""
    values = [run["values"][column] for runs in results.values() for run in runs if column in run["values"]]
    return bool(values) and max(map(abs, values)) <= 1


def read_table(path: Path) -> dict:
    """Read the JSON of a recipe's table, as reproduce.py writes it. Raises InputError where it is none."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the JSON of a table, which reproduce.py writes to save/tables")
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(content, dict) or not content.keys() >= {"recipe", "seeds", "scale", "results", "failures"}:
        raise InputError(
            f"{path}: is not a table of reproduce.py: it must have recipe, seeds, scale, results and failures"
        )
    return content

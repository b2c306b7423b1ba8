"""Scripts that measure what the docs quote, each against a plain reference in the same run."""

import json
import os
import platform
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
import torch
import torchvision


def report(title: str, rows: list[dict], path: Path | None = None, device: str = "cpu") -> None:
    """Print a table of figures, with versions and cores, and write it as JSON if a path is given."""
    machine = (
        torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    )
    versions = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
    print(f"{title}; {machine}, " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    print("\n".join(table(rows)))
    if path:
        record = {"title": title, "machine": machine, "versions": versions, "rows": rows}
        util.write_file(path, json.dumps(record, indent=1).encode())


def table(rows: list[dict]) -> list[str]:
    """The lines of a table, the names of its columns first."""
    cells = [list(rows[0]), *([_cell(x) for x in row.values()] for row in rows)]
    width = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(f"{x:<{w}}" if i == 0 else f"{x:>{w}}" for i, (x, w) in enumerate(zip(line, width, strict=True)))
        for line in cells
    ]


def _cell(x) -> str:
    return f"{x:.4g}" if isinstance(x, float) and abs(x) < 1000 else f"{x:,.0f}" if isinstance(x, float) else str(x)

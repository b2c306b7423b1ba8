"""Scripts that measure what the docs quote, each against a plain reference in the same run."""

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # torch's profiler would tell of each start and stop

import util

# isort: split
import torch

from engine.optimisation import cpu_capabilities

LIBRARIES = ("torch", "torchvision", "numpy")


class Work(NamedTuple):
    """What is measured in several forms, the first of which is ours: name -> what computes it. images: that one call
    makes, where these are counted; rounds, threads: None: as the command says; keep: what the forms need to live.
    """

    title: str
    forms: dict[str, Callable[[], object]]
    images: int | None = None
    rounds: int | None = None
    threads: int | None = None
    keep: object = None


def in_turn(forms: dict[str, Callable[[], object]], rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """Name -> seconds of each round, the forms in turn, so that a drift of the machine meets all; the first `warm`
    rounds do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(warm + rounds):
        for name, run in forms.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: spent[warm:] for name, spent in seconds.items()}


def ratio(seconds: list[float], to: list[float]) -> float:
    """The median, over the rounds, of seconds over those of the other form in the same round."""
    return statistics.median(a / b for a, b in zip(seconds, to, strict=True))


def must_equal(what: str, found, wanted, within: float) -> None:
    """End the benchmark where two numbers or tensors are further apart: times of unequal results say nothing."""
    found, wanted = (torch.as_tensor(x, dtype=torch.float64) for x in (found, wanted))
    apart = float((found - wanted).abs().max())
    if not apart <= within:
        raise SystemExit(f"{what}: results are {apart:.3g} apart, more than {within:g}: nothing is timed")


def machine(device: str = "cpu") -> str:
    """The device that figures are of."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    instructions = torch.backends.cpu.get_cpu_capability()
    if cpu_capabilities().get("amx_bf16"):
        instructions += ", AMX"
    threads, cores = torch.get_num_threads(), os.cpu_count()
    return f"{_processor()} ({instructions}), {threads} of {cores} cores"


def _processor() -> str:
    with open("/proc/cpuinfo") if Path("/proc/cpuinfo").exists() else open(os.devnull) as file:
        named = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def report(
    title: str,
    rows: list[dict],
    path: Path | None = None,
    device: str = "cpu",
    name: str | None = None,
    libraries: Iterable[str] = (),
) -> None:
    """Print a table of figures, with machine and versions, and add it to the records of a JSON file if one is given:
    under `name`, which without one is the script's, beside what the file holds of others.
    """
    versions = {"python": platform.python_version()}
    versions |= {library: importlib.metadata.version(library) for library in (*LIBRARIES, *libraries)}
    print(f"{title}; {machine(device)}, " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    print("\n".join(table(rows)), flush=True)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        records = json.loads(path.read_text()) if path.exists() else {}
        main = sys.modules["__main__"].__spec__
        script = main.name if main else Path(sys.argv[0]).stem
        record = {"title": title, "command": " ".join(["python -m", script, *_options(sys.argv[1:])])}
        record |= {"machine": machine(device), "versions": versions, "date": str(datetime.date.today()), "rows": rows}
        records[name or script.removeprefix("benchmarks.")] = record
        util.write_file(path, (json.dumps(records, indent=1) + "\n").encode())


def _options(words: list[str]) -> list[str]:
    """The command line without the file that it writes."""
    kept = list(words)
    if "--json" in kept:
        del kept[kept.index("--json") : kept.index("--json") + 2]
    return kept


def table(rows: list[dict]) -> list[str]:
    """The lines of a table, the names of its columns first; a row without one of them leaves it empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, *([cell(row.get(column, "")) for column in columns] for row in rows)]
    width = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(f"{x:<{w}}" if i == 0 else f"{x:>{w}}" for i, (x, w) in enumerate(zip(line, width, strict=True)))
        for line in lines
    ]


def cell(x) -> str:
    """A figure as tables show it."""
    return f"{x:.4g}" if isinstance(x, float) and abs(x) < 1000 else f"{x:,.0f}" if isinstance(x, float) else str(x)

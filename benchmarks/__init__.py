"""Scripts that measure the numbers of docs/speed.md, each next to a plain reference in the same run."""

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

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # torch's profiler would tell of each start and stop

import util

# isort: split
import torch
from torch.profiler import ProfilerActivity, profile

from engine.cli import config
from engine.cli.parsing import Parser
from engine.train.optimization import cpu_capabilities

ROUNDS = "rounds of measurement"
LIBRARIES = ("torch", "torchvision", "numpy")


def parser(doc: str) -> Parser:
    """Make the parser of a benchmark, which measures under the settings of the scripts."""
    config.huge_pages()
    p = Parser(description=doc)
    p.add_argument("--json", type=Path, metavar="FILE", help="file to add the results to")
    return p


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
    """Compute the median, over the rounds, of seconds over those of the other form in the same round."""
    return statistics.median(a / b for a, b in zip(seconds, to, strict=True))


def must_equal(what: str, found, wanted, within: float) -> None:
    """End the benchmark where two numbers or tensors are further apart: times of unequal results say nothing."""
    found, wanted = (torch.as_tensor(x, dtype=torch.float64) for x in (found, wanted))
    apart = float((found - wanted).abs().max())
    if not apart <= within:
        raise SystemExit(f"{what}: results are {apart:.3g} apart, more than {within:g}: nothing is timed")


def peak_bytes(run: Callable[[], object], device: str = "cpu") -> int:
    """Largest sum of live tensor bytes above the start."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    live = peak = 0
    for event in sorted(trace.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def growth_row(size: int, forms: dict[str, Callable[[], object]], per: int, rounds: int) -> dict:
    """Time and memory of each form at one size, and time per similarity of the first form.

    per: anchors or queries, each of which meets `size` entries.
    """
    row: dict = {"size": size}
    for name, seconds in in_turn(forms, rounds).items():
        row[f"{name}, ms"] = 1000 * statistics.median(seconds)
        row[f"{name}, MB"] = peak_bytes(forms[name]) / 1e6
    return row | {"ns per similarity": 1e6 * row[f"{next(iter(forms))}, ms"] / (per * size)}


def machine(device: str = "cpu") -> str:
    """Return the device that was measured."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    instructions = torch.backends.cpu.get_cpu_capability()
    if cpu_capabilities().get("amx_bf16"):
        instructions += ", AMX"
    threads, cores = torch.get_num_threads(), os.cpu_count()
    return f"{config.processor()} ({instructions}), {threads} of {cores} cores"


def report(
    title: str,
    rows: list[dict],
    path: Path | None = None,
    device: str = "cpu",
    name: str | None = None,
    libraries: Iterable[str] = (),
) -> None:
    """Print a table of results, with machine and versions, and add it to the records of a JSON file if one is given:
    under `name`, which without one is the script's, next to what the file holds of others.
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
        words = " ".join(sys.argv[1:]).replace(f"--json {path}", "").split()  # where it is written to is left out
        record = {"title": title, "command": " ".join(["python -m", script, *words]), "machine": machine(device)}
        record |= {"versions": versions, "date": str(datetime.date.today()), "rows": rows}
        records[name or script.removeprefix("benchmarks.")] = record
        util.write_file(path, (json.dumps(records, indent=1) + "\n").encode())


def table(rows: list[dict]) -> list[str]:
    """Return the lines of a table, the names of its columns first; a row without one of them leaves it empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, *([cell(row.get(column, "")) for column in columns] for row in rows)]
    width = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(f"{x:<{w}}" if i == 0 else f"{x:>{w}}" for i, (x, w) in enumerate(zip(line, width, strict=True)))
        for line in lines
    ]


def cell(x) -> str:
    """Format a number as tables show it."""
    return f"{x:.4g}" if isinstance(x, float) and abs(x) < 1000 else f"{x:,.0f}" if isinstance(x, float) else str(x)

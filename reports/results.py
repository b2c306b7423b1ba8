"""The table of a recipe, as reproduce.py wrote it, for a page."""

from pathlib import Path

from engine.encoder.records import read_table
from recipes import table
from reports.page import Table


def _split(line: str) -> list[str]:
    return [cell.strip().replace("**", "").replace("\\|", "|") for cell in line.strip(" |").split(" | ")]


def read_tables(path: Path) -> list[Table]:
    """Read the results of a table's JSON, and the differences to its baseline where it has seeds, with their notes."""
    content = read_table(path)
    found, title = [], "Results"
    for part in table.markdown(content).strip().split("\n\n"):
        if part.startswith("| "):
            head, _, *rows = map(_split, part.splitlines())
            found.append(Table(title, head, rows, []))
        elif part.endswith(":"):
            title = part.removesuffix(":")
        elif found:
            found[-1].notes.append(part.replace("**", ""))
    return found

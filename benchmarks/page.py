"""docs/speed.md from what the benchmarks found: benchmarks/speed.md.in with its figures filled in.

python -m benchmarks.page [--json docs/speed.json] [--out docs/speed.md]

In the template, {{table NAME}} is the table of a record of the JSON file, {{table NAME: column; column}} some columns
of it, {{NAME / row / column}} one figure, of the row whose first cell begins so, {{title NAME}} and {{machine NAME}}
what they say ({{Title NAME}} where a sentence begins), and {{about NAME}} command, machine, versions and date. The docs
hold no figure of a benchmark but these.
"""

import argparse
import json
import re
from pathlib import Path

import util
from util import InputError

HERE = Path(__file__).parent
TEMPLATE = HERE / "speed.md.in"
DOCS = HERE.parent / "docs"


def figure(x) -> str:
    """Three digits that count, or thousands."""
    if not isinstance(x, (int, float)) or isinstance(x, bool):
        return str(x)
    return f"{x:,.0f}" if isinstance(x, int) or abs(x) >= 100 else f"{x:.3g}"


def filled(template: str, records: dict) -> str:
    """The template with all its figures. Raises InputError naming what the records lack."""

    def replace(match: re.Match) -> str:
        wanted = match[1].strip()
        try:
            return _filled(wanted, records)
        except (KeyError, StopIteration):
            raise InputError(f"{{{{{wanted}}}}}: the records hold no such figure") from None

    return re.sub(r"\{\{(.+?)\}\}", replace, template)


def _filled(wanted: str, records: dict) -> str:
    kind, _, rest = wanted.partition(" ")
    if kind == "about":
        return about(records[rest])
    if kind in ("title", "machine"):
        return records[rest][kind]
    if kind == "Title":  # where a sentence begins
        return records[rest]["title"][:1].upper() + records[rest]["title"][1:]
    if kind == "table":
        name, _, columns = rest.partition(":")
        rows = records[name.strip()]["rows"]
        known = list(dict.fromkeys(column for row in rows for column in row))
        return markdown(rows, [c.strip() for c in columns.split(";")] if columns else known)
    name, row, column = (part.strip() for part in wanted.split("/", 2))
    rows = records[name]["rows"]
    return figure(next(r for r in rows if str(next(iter(r.values()))).startswith(row))[column])


def markdown(rows: list[dict], columns: list[str]) -> str:
    """A table of some columns."""
    lines = [columns, ["---"] * len(columns), *([figure(row[c]) if c in row else "" for c in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def about(record: dict) -> str:
    """Command, machine, versions and date of a record."""
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items() if name != "python")
    return f"`{record['command']}`, {record['machine']}, {versions}, {record['date']}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=util.user_path, default=DOCS / "speed.json")
    parser.add_argument("--out", type=util.user_path, default=DOCS / "speed.md")
    args = parser.parse_args()
    try:
        records = json.loads(args.json.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"--json {args.json}: {util.reason(error)}; make it with: make bench") from None
    util.write_file(args.out, filled(TEMPLATE.read_text(), records).encode())
    print(f"saved {args.out}")


if __name__ == "__main__":
    util.run_command(main)

"""Write docs/speed.md: the template benchmarks/speed.md.in, filled with the results of the benchmarks.

python -m benchmarks.page [--json docs/speed.json] [--out docs/speed.md]

In the template, {{table NAME}} is the table of a record of the JSON file, {{cell NAME | FORM | COLUMN}} a number of it,
{{title NAME}} and {{machine NAME}} what it says ({{Title NAME}} where a sentence begins). The docs hold no result of a
benchmark but these.
"""

import json
import re
from pathlib import Path

import util
from engine.cli.parsing import Parser
from util import InputError

HERE = Path(__file__).parent
TEMPLATE = HERE / "speed.md.in"
DOCS = HERE.parent / "docs"
# column of a record -> its header, which says the direction that is better
HEADERS = {
    **{name: f"{name} ↓" for name in ("ms", "median ms", "ms per step", "seconds", "extra MB", "peak so far, GiB")},
    **{f"times {name}": "relative time ↓" for name in ("ours", "plain", "SupCon", "product and sort")},
    "images/s": "images/s ↑",
    "times as fast": "speed-up ↑",
}


def format_number(x) -> str:
    """Three digits that count, or thousands."""
    if not isinstance(x, (int, float)) or isinstance(x, bool):
        return str(x)
    return f"{x:,.0f}" if isinstance(x, int) or abs(x) >= 100 else f"{x:.3g}"


def fill(template: str, records: dict) -> str:
    """Fill the template with all its tables. Raises InputError naming what the records lack."""

    def replace(match: re.Match) -> str:
        wanted = match[1].strip()
        try:
            return _fill_one(wanted, records)
        except KeyError:
            raise InputError(f"template: {{{{{wanted}}}}}: not among the results; run the benchmark first") from None

    return re.sub(r"\{\{(.+?)\}\}", replace, template)


def _fill_one(wanted: str, records: dict) -> str:
    kind, _, name = wanted.partition(" ")
    if kind == "cell":
        name, form, column = name.split(" | ")
        return format_number({row["form"]: row for row in records[name]["rows"]}[form][column])
    record = records[name]
    if kind == "table":
        return markdown(record["rows"])
    text = record[kind.lower()]
    return text[:1].upper() + text[1:] if kind == "Title" else text


def markdown(rows: list[dict]) -> str:
    """Return a table; a row without one of the columns leaves it empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[format_number(row.get(column, "")) for column in columns] for row in rows]
    headers = [HEADERS.get(column, column) for column in columns]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headers, ["---"] * len(columns), *cells))


def get_parser():
    p = Parser(description=__doc__)
    records, page = "file of results (default: docs/speed.json)", "page to write (default: docs/speed.md)"
    p.add_argument("--json", type=util.user_path, metavar="FILE", default=DOCS / "speed.json", help=records)
    p.add_argument("--out", type=util.user_path, metavar="FILE", default=DOCS / "speed.md", help=page)
    return p


def main():
    args = get_parser().parse_args()
    try:
        records = json.loads(args.json.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"--json {args.json}: {util.reason(error)}; make it with: make bench") from None
    util.write_file(args.out, fill(TEMPLATE.read_text(), records).encode())
    print(f"saved {args.out}")


if __name__ == "__main__":
    util.run_command(main)

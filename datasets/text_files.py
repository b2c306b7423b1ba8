"""Text files as people make them, by hand or with a spreadsheet: tables, lists of paths, YAML. InputErrors begin with
`source`, the flag and the file, and name the line.
"""

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from util import InputError, reason, twice

OF_IMAGES = ("path", "image")  # the first column of a table whose rows are images; these may begin with #
DELIMITERS = ",;\t"
# byte-order mark -> encoding; the mark of UTF-32 begins with that of UTF-16
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
# what would break a list of one path a line, or its reading
UNSAFE = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]|^[\s#\"]|[\s,;]$")


def read_text(path: Path, source: str) -> str:
    """Read a text in UTF-8, or in UTF-16 with a byte-order mark."""
    try:
        content = path.read_bytes()
    except OSError as error:
        faults = {IsADirectoryError: "is a folder, not a file", FileNotFoundError: "no such file"}
        fault = faults.get(type(error), f"not readable ({error.strerror or error})")
        raise InputError(f"{source}: {fault}") from None
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{source}, line {line}: not readable as UTF-8 text; save it as UTF-8") from None
    if "\0" in text:
        raise InputError(f"{source}: not readable as text: it holds zero bytes; save it as UTF-8")
    return text


def read_rows(path: Path, source: str) -> list[tuple[int, list[str]]]:
    """Yield the number of the line and the cells, stripped, of the rows of a table.

    Cells are separated by commas, semicolons or tabs: by the first of these in the file, outside of quotes. They may be
    quoted. Empty cells at the end of a row, rows of them alone, and lines that begin with # do not count; below the
    header of a table of images, such a line is a row.
    """
    lines: list[str] = list(io.StringIO(read_text(path, source), newline=""))
    named = re.fullmatch(rf"sep=([{DELIMITERS}])\s*", lines[0]) if lines else None  # Excel's
    if named:
        lines[0] = "\n"
    rows: list[tuple[int, list[str]]] = []

    def uncommented() -> Iterator[str]:
        """Yield the lines, as they are asked for; comments are empty ones, so that the numbers of the others stay."""
        for line in lines:
            is_row = not line.lstrip().startswith("#") or (rows and rows[0][1][0] in OF_IMAGES)
            yield line if is_row else "\n"

    reader = csv.reader(uncommented(), delimiter=named[1] if named else _find_delimiter(lines), strict=True)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            while cells and not cells[-1]:
                del cells[-1]
            if cells:
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise InputError(f"{source}, line {reader.line_num}: not readable as CSV ({error})") from None
    return rows


def check_once(names: Iterable[str], source: str, what: str) -> None:
    """Raise InputError, beginning with `source` and `what`, where a name is there twice, in whatever Unicode form."""
    if (again := twice(names)) is not None:
        raise InputError(f"{source}: {what} {again} is there twice; name it once")


def check_widths(head: list[str], rows: list[tuple[int, list[str]]], source: str) -> None:
    """Raise InputError, naming the line, unless every row has an entry under each of the header's."""
    for line, row in rows:
        if len(row) != len(head) or not all(row):
            raise InputError(f"{source}, line {line}: must have {len(head)} entries, as the first line has")


def _find_delimiter(lines: list[str]) -> str:
    """Find the first delimiter outside of quotes and comments; a comma where there is none."""
    for line in lines:
        if line.lstrip().startswith("#"):
            continue
        found = re.search(rf"[{DELIMITERS}]", re.sub(r'"[^"]*"', "", line))
        if found:
            return found[0]
    return ","


def parse_number(cell: str) -> float:
    """Parse a number, also one with a decimal comma. Raises ValueError."""
    return float(cell.replace(",", "."))


# ---- lists of paths --------------------------------------------------------------------------------------------------


def quote_path(path: str) -> str:
    """Quote a path as a line of a list: as it is, or where that would not be read back, as a JSON string."""
    return json.dumps(path) if UNSAFE.search(path) else path


def parse_path(line: str) -> str:
    """Parse the path of a line of a list; "" for an empty one and a comment, which begins with # and is no file. What
    stands after a tab is another column.
    """
    line = line.strip().split("\t")[0].rstrip(" ,;")  # a spreadsheet ends rows with empty columns
    if line.startswith("#") and not os.path.lexists(line):
        return ""
    if len(line) > 1 and line[0] == line[-1] == '"':
        try:
            return str(json.loads(line))
        except ValueError:
            return line[1:-1].replace('""', '"')  # a spreadsheet's quotes
    return line


def format_csv(rows: Iterable[Iterable[str]]) -> bytes:
    """Return rows as a CSV in UTF-8."""
    made = io.StringIO(newline="")
    csv.writer(made, lineterminator="\n").writerows(rows)
    return made.getvalue().encode()


def read_paths(path: Path, source: str) -> list[str]:
    """Read the paths of a list, one a line."""
    return [found for line in read_text(path, source).split("\n") if (found := parse_path(line))]


# ---- YAML ------------------------------------------------------------------------------------------------------------


def read_yaml(path: Path, source: str, as_written: bool = False) -> Any:
    """Read the content of a YAML file, in which no mapping may have a key twice.

    as_written: scalars are the text that stands there (`no`, `001`, `1e3`), for names, and for options, which read
    their text themselves; a plain null is None. Else YAML's types.
    """
    import yaml

    text = read_text(path, source)
    try:
        return yaml.load(text, _make_loader(as_written))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{source}{where}: not readable as YAML ({error.problem or error.context})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a control character, an impossible date
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        where = f", line {line}" if hasattr(error, "position") else ""
        raise InputError(f"{source}{where}: not readable as YAML ({reason(error)})") from None


@cache
def _make_loader(as_written: bool) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe, and strict about keys."""

        def compose_mapping_node(self, anchor: Any) -> Any:
            node, seen = super().compose_mapping_node(anchor), set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                    fault = f"the key {key.value} is there twice"
                    raise yaml.composer.ComposerError(None, None, fault, key.start_mark)
                seen.add((key.tag, str(key.value)))
            return node

    if as_written:
        kept = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"
        Loader.yaml_implicit_resolvers = {
            first: [(tag, form) for tag, form in forms if tag in kept]
            for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }
    return Loader

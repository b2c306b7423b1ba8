"""Tables of texts: a CSV with the columns text, label and coarse, as people and pandas write them."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from datasets import text_files
from datasets.feature_files import COARSE, LABELS
from datasets.text_files import DELIMITERS
from util import InputError

TEXT = "text"


@dataclass(frozen=True)
class TextTable:
    """Texts, and of each its label and its superclass, None where the table has no such column."""

    texts: list[str]
    labels: list[str] | None = None
    coarse: list[str] | None = None


def read_texts(path: Path, flag: str) -> TextTable:
    """Read a table of texts. Its first line names the columns and chooses the delimiter: comma, semicolon or tab.

    All other lines are rows, also those that begin with #. Raises InputError, which names flag, file and line.
    """
    source = f"{flag} {path}"
    content = text_files.read_text(path, source)
    head = content.split("\n", 1)[0]
    delimiter = next((letter for letter in head if letter in DELIMITERS), ",")
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise InputError(f"{source}, line {reader.line_num}: not readable as CSV ({error})") from None
    if len(rows) < 2:
        raise InputError(f"{source}: holds no text; the first line names the columns text,label,coarse")
    (_, columns), *rows = rows
    text_files.check_once(columns, source, "column")
    if TEXT not in columns:
        raise InputError(f"{source}: has no column {TEXT}; it has {', '.join(columns)}")
    used = {name: columns.index(name) for name in (TEXT, *LABELS, *COARSE) if name in columns}
    for line, row in rows:
        if len(row) != len(columns):
            raise InputError(f"{source}, line {line}: must have {len(columns)} entries, as the first line has")
        if (empty := next((name for name, place in used.items() if not row[place]), None)) is not None:
            raise InputError(f"{source}, line {line}: has no {empty}")
    found = {name: [row[place] for _, row in rows] for name, place in used.items()}
    of = {kind: next((found[name] for name in names if name in found), None)
          for kind, names in (("labels", LABELS), ("coarse", COARSE))}  # fmt: skip
    return TextTable(found[TEXT], **of)

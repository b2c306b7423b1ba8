"""Write docs/command_line.md: the options of every script and module, from their parsers.

python -m engine.cli.reference
"""

import argparse
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import util

PAGE = Path(__file__).resolve().parents[2] / "docs" / "command_line.md"
SCRIPTS = (
    "main_supcon", "main_ce", "main_linear", "retrieval", "out_of_dist_detection", "report", "rankings", "reproduce",
)  # fmt: skip
MODULES = (
    "datasets.prepare", "engine.extract", "engine.export", "recipes.table", "figures.classes",
    "figures.strips", "figures.grid", "figures.trade_off", "figures.differences",
    "benchmarks.train_step", "benchmarks.loss", "benchmarks.data", "benchmarks.features", "benchmarks.evaluation",
    "benchmarks.peers", "benchmarks.hours", "benchmarks.gpu", "benchmarks.page",
)  # fmt: skip
HEAD = """# Command line

This reference lists the options of every script and module, as `--help` does. The page is made from their parsers by
`python -m engine.cli.reference`.

* N is a whole number, X a number, P a number from 0 to 1. Brackets hold what may be left out.
* BOOL is `True` or `False`. The option alone means `True`.
* Options of a run can come from a file: `--config FILE`. See [runs](runs.md).
* [Exit codes](runs.md#exit-codes) are the same for all.
"""


def find_parsers(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield (name, parser) of a command, then of its sub-commands; an alias is left out."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            named = {id(below): (kind, below) for kind, below in reversed(action.choices.items())}
            yield from ((f"{name} {kind}", below) for kind, below in reversed(named.values()))


def mark(text: str) -> str:
    """Mark the options of a text as code, and what looks like HTML as text."""
    return re.sub(r"(?<![\w-])--[a-zA-Z][\w-]*(=\"[^\"]*\")?", r"`\g<0>`", text.replace("<", r"\<"))


def list_rows(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup) -> list[str]:
    """List the rows of a group's table: option, meaning, default."""
    formatter, rows = parser._get_formatter(), []
    for action in group._group_actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue
        meaning, _, default = formatter._expand_help(action).partition(" (default: ")
        default = default.removesuffix(")") or ("required" if action.required else "")
        rows.append(f"| `{formatter._format_action_invocation(action)}` | {mark(meaning)} | {mark(default)} |")
    return rows


def write_page() -> str:
    """Write the page as Markdown; a group that is the same as an earlier command's is a link to that."""
    parts, places = [HEAD], {}
    names = {f"{name}.py": name for name in SCRIPTS} | {name: name for name in MODULES}
    for title, module in names.items():
        for name, parser in find_parsers(title, importlib.import_module(module).get_parser()):
            level, same = "##" if name == title else "###", []
            parts.append(f"{level} {name}\n\n{parser.description.partition(chr(10))[0]}\n")
            for group in parser._action_groups:
                if not (rows := list_rows(parser, group)):
                    continue
                if (place := places.setdefault((group.title, *rows), name)) != name:
                    anchor = re.sub(r"[^\w -]", "", place).replace(" ", "-")
                    same.append(f"[{group.title.partition(' (')[0]}](#{anchor})")
                else:
                    heading = f"{group.title[0].upper()}{group.title[1:]}:"
                    parts.append("\n".join([heading, "", "| option | meaning | default |", "|---|---|---|", *rows, ""]))
            parts += [f"Options as in the linked tables: {', '.join(same)}.\n"] if same else []
    return "\n".join(parts)


if __name__ == "__main__":
    util.write_file(PAGE, write_page().encode())
    print(f"saved {PAGE}")

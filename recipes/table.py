"""Write the table of a recipe as Markdown, from the JSON file of reproduce.py alone.

python -m recipes.table save/tables/digits.json --out save/tables/digits.md
"""

import dataclasses
import re
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
import numpy as np

from engine.cli.parsing import Parser
from engine.encoder.records import are_small, read_table, spreads
from engine.run import run_log
from recipes import ROOT, Scope, columns, given, grid, seeds
from util import InputError


def portable(value, folder: Path):
    """Return a JSON value in whose texts paths below `folder` are relative to it: other machines may read a table."""
    if isinstance(value, dict):
        return {key: portable(item, folder) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item, folder) for item in value]
    if not isinstance(value, str) or folder == Path(folder.root):
        return value
    path = rf"(?<![\w./~-]){re.escape(str(folder))}"
    return re.sub(rf"{path}(?![\w.-])", ".", re.sub(rf"{path}/+(?=[^\s/])", "", value))


def write(place: Path, recipe: dict, results: dict, scope: Scope, about: dict) -> str:
    """Write PLACE.json, and PLACE.md, which is drawn from it; returns the Markdown.

    results: method -> what its runs gave, by seed; about: further entries, "failures" and "unfinished" among them.
    """
    found = {"results": results, "differences": find_differences(recipe, results)}
    content = portable({"recipe": recipe, **dataclasses.asdict(scope), **about, **found}, Path.cwd())
    content = portable(content, ROOT)  # a recipe that was named from elsewhere
    util.write_file(Path(f"{place}.json"), run_log.to_json(content, indent=1).encode())
    text = markdown(content)
    util.write_file(Path(f"{place}.md"), text.encode())
    return text


def difference(a: dict[int, float], b: dict[int, float]) -> dict:
    """Compute what a has over b by the "seeds" of both, of two or more its "mean", "half" the width of its 95 %
    interval, and "p" of the paired t-test: below 0.05 where the interval excludes 0; 1 where all seeds agree, as coarse
    figures may.
    """
    from scipy.stats import ttest_1samp

    # what is less than a billionth of a point is rounding
    of_seeds = {str(seed): round(a[seed] - b[seed], 9) for seed in sorted(a.keys() & b.keys())}
    values = list(of_seeds.values())
    if len(values) < 2:
        return {"seeds": of_seeds}
    half = spreads(len(values)) * float(np.std(values, ddof=1))
    p = float(ttest_1samp(values, 0).pvalue) if half else 1.0
    return {"seeds": of_seeds, "mean": float(np.mean(values)), "half": half, "p": p}


def holm(p: dict[str, float]) -> dict[str, float]:
    """p-values by name, adjusted by Holm (1979): that any of those below 0.05 is by chance has probability 0.05."""
    adjusted, least = {}, 0.0
    for left, name in zip(range(len(p), 0, -1), sorted(p, key=p.__getitem__), strict=True):
        adjusted[name] = least = max(least, min(1.0, left * p[name]))
    return adjusted


def pair(runs: list[dict], others: list[dict], column: str) -> dict:
    """Compute the difference of two methods in a column, by the seeds that both ran on machines of one kind."""
    machines = {run["seed"]: run.get("machine") for run in others}
    alike = [run for run in runs if run.get("machine") == machines.get(run["seed"])]
    return difference(by_seed(alike, column), by_seed(others, column))


def find_differences(recipe: dict, results: dict, names: list[str] | None = None) -> dict:
    """Find what methods have over the baseline: {"to": its title, "methods": {method: {"title", "columns": {column: its
    difference}}}}; {} without a baseline. names: the columns, by default all; with Holm's correction over them, each
    has "p_holm".
    """
    if not recipe.get("baseline"):
        return {}
    found = {"to": grid.find_title(recipe, recipe["baseline"]), "methods": {}}
    for name in results:
        other = grid.find_baseline(recipe, name)
        if other is not None:
            of_columns = {c: pair(results[name], results[other], c) for c in names or columns(recipe)}
            if recipe.get("correction"):
                for c, p in holm({c: of["p"] for c, of in of_columns.items() if "p" in of}).items():
                    of_columns[c]["p_holm"] = p
            found["methods"][name] = {"title": grid.find_title(recipe, name), "columns": of_columns}
    return found


def by_seed(runs: list[dict], column: str) -> dict[int, float]:
    """Return a method's values in a column, of the seeds that have one."""
    return {run["seed"]: run["values"][column] for run in runs if column in run["values"]}


def markdown(content: dict, chosen: list[str] | None = None) -> str:
    """Write the table of the chosen columns, by default all, the differences and the notes; `content` is the JSON's."""
    recipe, results = content["recipe"], content["results"]
    scope = Scope(content["seeds"], content["scale"], content.get("options", ""))
    names = chosen or columns(recipe)
    parts = [f"## {recipe['title']}", draw_figures(recipe, results, scope, names)]
    if scope.seeds > 1:
        parts += differences(recipe, results, scope, names)
    return "\n\n".join([*parts, *notes(content, scope)]) + "\n"


def rows(head: list[str], body: list[list[str]]) -> str:
    """Write a table in Markdown."""
    # a title may hold what ends a cell, or a line
    cells = [[" ".join(cell.split()).replace("|", r"\|") for cell in row] for row in (head, *body)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def cell(values: list[float], wanted: int, digits: int = 1) -> str:
    """Mean and standard deviation (n - 1) over seeds; how many there are, where some are missing."""
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}{count_missing(len(values), wanted)}"


def count_missing(there: int, wanted: int) -> str:
    """How many seeds there are, where some are missing."""
    return f" ({there} of {wanted})" if wanted > there else ""


def draw_figures(recipe: dict, results: dict, scope: Scope, names: list[str]) -> str:
    """Write the table of all methods and these columns."""
    published, body = recipe["published"], []
    digits = {c: 2 if are_small(results, c) else 1 for c in names}
    for name, runs in results.items():
        wanted, seconds = len(seeds(recipe, name, scope)), list(by_seed(runs, "seconds").values())
        row = [grid.find_title(recipe, name)]
        row += [cell(list(by_seed(runs, c).values()), wanted, digits[c]) for c in names]
        row.append(f"{np.mean(seconds):.0f}" if seconds else "-")
        if published is not None:
            row.append(", ".join(f"{column} {figure}" for column, figure in published.get(name, {}).items()))
        body.append(row)
    return rows(["method", *names, "seconds", *(["published"] if published is not None else [])], body)


def difference_cell(difference: dict, wanted: int) -> str:
    """Format a difference with its 95 % interval, bold where p, corrected if the recipe says so, is below 0.05.

    An interval has as many digits as it takes to see on which side of 0 its ends lie.
    """
    if "mean" not in difference:
        return "-"
    mean, half = difference["mean"], difference["half"]
    ends = (mean - half, mean + half)
    digits = next((d for d in range(1, 12) if all(end == 0 or float(f"{end:.{d}f}") for end in ends)), 12)
    text = f"{mean:+.{digits}f} [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"
    text = f"**{text}**" if difference.get("p_holm", difference["p"]) < 0.05 else text
    return text + count_missing(len(difference["seeds"]), wanted)


def differences(recipe: dict, results: dict, scope: Scope, names: list[str]) -> list[str]:
    """Return the second table: what each method has over the baseline, before it its title, after it how it is made."""
    found = find_differences(recipe, results, names)
    body = []
    for name, method in found.get("methods", {}).items():
        wanted = len(seeds(recipe, name, scope))
        body.append([method["title"], *(difference_cell(method["columns"][c], wanted) for c in names)])
    if all(cell == "-" for row in body for cell in row[1:]):
        return []  # not two seeds yet of both
    head = f"Difference to {found['to']}, paired by seed, with 95 % interval:"
    how = (
        f"Interval: the mean ± t(0.975, n - 1) / √n standard deviations of the paired difference, Student's; with "
        f"{scope.seeds} seeds {spreads(scope.seeds):.2f} of them. Bold: "
    )
    if recipe.get("correction"):
        how += "p < 0.05 after Holm's correction over the columns of a row; the intervals are not corrected."
    else:
        how += "it excludes 0. Without a difference, 1 in 20 does, if differences are normal."
    if len({run.get("machine") for runs in results.values() for run in runs if run["values"]}) > 1:
        how += " Runs come from several kinds of machines; those of one kind are paired."
    return [head, rows(["method", *names], body), how]


def notes(content: dict, scope: Scope) -> list[str]:
    """Return what the table is made of, and what failed."""
    recipe, results = content["recipe"], content["results"]
    files = [name for name in recipe["methods"] if given(recipe, name)]
    of_seeds = "seed 0" if scope.seeds == 1 else f"seeds 0 to {scope.seeds - 1}, mean ± standard deviation"
    of_runs = f", {of_seeds}; seconds of training" if len(files) < len(recipe["methods"]) else ""
    found = [f"In percent{of_runs}. {recipe['about']}".strip()]
    if files and scope.seeds > 1:
        found.append("Given checkpoints are evaluated once: seeds are those of trainings.")
    if scope.scale != 1:
        found.append(
            f"SCALED: {100 * scope.scale:g} % of the epochs. This shows that the recipe runs. It is not a result."
        )
    if scope.options:
        found.append(f"With {scope.options} added to every command.")
    if recipe["published"]:
        found.append(f"Published: {recipe['published']['source']}")
    if content.get("unfinished"):
        found.append(f"UNFINISHED: runs still to come when this was written: {content['unfinished']}.")
    found += [f"WARNING: {run['warning']}" for runs in results.values() for run in runs if run.get("warning")]
    return found + [f"FAILED: {f['what']} ({f['why']})" for f in content["failures"]]


def get_parser():
    p = Parser(description=__doc__)
    p.add_argument("table", type=util.user_path, help="JSON file of reproduce.py")
    p.add_argument("--columns", nargs="+", metavar="COLUMN", help="columns to write (default: all)")
    p.add_argument(
        "--out", type=util.user_path, metavar="FILE", help="Markdown file to write (default: print the table)"
    )
    return p


def main():
    args = get_parser().parse_args()
    if args.out and args.out.resolve() == args.table.resolve():
        raise InputError(f"--out {args.out}: is the table itself; give another file, such as {args.out.stem}.md")
    content = read_table(args.table)
    known = columns(content["recipe"])
    for column in args.columns or ():
        if column not in known:
            raise InputError(f"--columns {column}: no column of {args.table}{util.nearest(column, known)}")
    text = markdown(content, args.columns)
    if args.out is None:
        print(text, end="")
    else:
        util.write_file(args.out, text.encode())
        print(f"wrote {args.out}")


if __name__ == "__main__":
    util.run_command(main)

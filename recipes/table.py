"""The table of a recipe, in Markdown."""

import numpy as np

from recipes import Scope, columns, given, seeds


def cell(values: list[float], wanted: int, digits: int = 1) -> str:
    """Mean and standard deviation (n - 1) over seeds; how many there are, where some are missing."""
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}" + (f" ({len(values)} of {wanted})" if wanted > len(values) else "")


def markdown(recipe: dict, results: dict, scope: Scope, failures: list[dict]) -> str:
    """The table, what it is made of, and what failed."""
    names, published = columns(recipe), recipe["published"]
    head = ["method", *names, "seconds", *(["published"] if published is not None else [])]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, runs in results.items():
        of = {c: [run["values"][c] for run in runs if c in run["values"]] for c in (*names, "seconds")}
        row = [recipe["methods"][name].get("title", name)]
        row += [cell(of[c], len(seeds(recipe, name, scope))) for c in names]
        row.append(f"{np.mean(of['seconds']):.0f}" if of["seconds"] else "-")
        if published is not None:
            row.append(", ".join(f"{column} {figure}" for column, figure in published.get(name, {}).items()))
        lines.append(f"| {' | '.join(row)} |")
    files = [name for name in recipe["methods"] if given(recipe, name)]
    of_seeds = "seed 0" if scope.seeds == 1 else f"seeds 0 to {scope.seeds - 1}, mean ± standard deviation"
    of_runs = f", {of_seeds}; seconds of training" if len(files) < len(recipe["methods"]) else ""
    notes = [f"In percent{of_runs}. {recipe['about']}".strip()]
    if files and scope.seeds > 1:
        notes.append("Given checkpoints are evaluated once: seeds are those of trainings.")
    if scope.scale != 1:
        notes.append(
            f"SCALED: {100 * scope.scale:g} % of the epochs. This shows that the recipe runs; it is no result."
        )
    if scope.options:
        notes.append(f"With {scope.options} added to every command.")
    if published:
        notes.append(f"Published: {published['source']}")
    notes += [f"WARNING: {run['warning']}" for runs in results.values() for run in runs if run.get("warning")]
    notes += [f"FAILED: {f['what']} ({f['why']})" for f in failures]
    return "\n\n".join([f"## {recipe['title']}", "\n".join(lines), *notes]) + "\n"

"""Runs a recipe: trains and evaluates the methods of a table through the scripts, as a user would, and tables them.

python reproduce.py recipes/digits.yaml
python reproduce.py recipes/cifar100.yaml --seeds 3 --only rince_out_in
python reproduce.py recipes/imagenet100.yaml --dry-run

What is done is skipped: a training whose folder has the same command and all its epochs, an evaluation with a record of
the same command on the same checkpoint. A training that was cut off goes on. A failure is reported at the end, and the
rest goes on. The table (Markdown, and JSON with the records behind each figure) lies in save/tables.
"""

import argparse
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
import recipes
from engine.cli import config
from recipes import completed, grid, table
from recipes.running import Finder, Runner, say
from recipes.schema import words
from util import InputError


def get_parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("recipe", type=util.user_path, help="YAML file, one of recipes/")
    p.add_argument("--seeds", type=int, default=1, help="seeds 0, 1, ... of each method (default: 1)")
    p.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="run these methods or cells; show the rest if done"
    )
    p.add_argument("--scale", type=float, default=1.0, help="share of the epochs, to try a recipe out (default: 1)")
    p.add_argument("--options", default="", help='for every script, as --options="--num_workers 4"; one that all have')
    p.add_argument(
        "--jobs", type=int, help="models at a time, one core each; 0: one a core (default: the recipe's, or 1)"
    )
    p.add_argument(
        "--out", type=util.user_path, default=Path("save/tables"), help="folder of the table (default: save/tables)"
    )
    p.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    return p


def run_method(recipe: dict, name: str, seed: int, scope: recipes.Scope, runner: Runner) -> dict:
    """One method with one seed: {"seed", "values" by column, "records": file by evaluation}, and its checkpoint."""
    title, file = recipes.title(recipe, name, seed), recipes.given(recipe, name)
    wanted = recipes.commands(recipe, name, seed, scope)
    scripts = {words(command)[1] for command in wanted.values()}
    values, records, seconds, about = {}, {}, None, {}
    if file:
        source = {"folder": str(file.parent), **completed.check_given(file)}
        if "warning" in source:
            runner.say(f"== {title}: warning: {source['warning']}")
    else:
        training = wanted.pop("training")
        folder = runner.train(f"{title}: training", training)
        if folder is None:
            return {"seed": seed, "values": values, "records": records}
        source = {"folder": str(folder), "sha256": util.sha256(folder / "last.pth"), "training": training}
        seconds = completed.seconds(folder)
    for step, command in wanted.items():
        command = command.replace("$path2chkpt", shlex.quote(source["folder"]))
        found = runner.evaluate(f"{title}: {step}", command, source["sha256"])
        if found is None:
            continue
        records[step], measured = found["file"], completed.figures(found["metrics"])
        about |= {"machine": f"{found['machine']}, torch {found['versions']['torch']}"}
        for column, path in recipe["evaluations"][step]["columns"].items():
            if path in measured:
                values[column] = measured[path]
            else:
                near, there = util.nearest(path, measured), ", ".join(measured)
                why = f"no figure {path} for column {column}{near}; there are {there}, in {found['file']}"
                runner.fail(f"{title}: {step}", command, why)
    values = recipes.add_means(recipe, values) | ({} if seconds is None else {"seconds": seconds})
    about["protocols"] = {script: config.protocol(script) for script in scripts}
    return {"seed": seed, "values": values, "records": records, **source, **about}


def attempt(recipe: dict, name: str, seed: int, scope: recipes.Scope, runner: Runner) -> dict:
    """run_method; whatever goes wrong is a failure of this method alone."""
    try:
        return run_method(recipe, name, seed, scope, runner)
    except Exception as error:
        why = util.fault(error)
        if why is None:
            runner.say(traceback.format_exc())
            why = f"{type(error).__name__}: {error}"
        title = recipes.title(recipe, name, seed)
        runner.say(f"== {title}: FAILED: {why}")
        runner.fail(title, recipes.commands(recipe, name, seed, scope).get("training", ""), why)
        return {"seed": seed, "values": {}, "records": {}}


def run_methods(
    recipe: dict, names, scope: recipes.Scope, runner: Runner, save: Callable, earlier: dict | None = None
) -> dict[str, list[dict]]:
    """The results of every method, by seed: `names` are run, of the others what is done is taken, and of all what is
    among the `earlier` ones (completed.take_up).

    save(results, number of runs still to come) is called after each of them.
    """
    seeds, earlier = {name: recipes.seeds(recipe, name, scope) for name in recipe["methods"]}, earlier or {}
    finder, found = Finder(runner.logs, runner.jobs), {}
    for name, own in seeds.items():
        found[name] = [earlier.get((name, seed)) or attempt(recipe, name, seed, scope, finder) for seed in own]
    to_come, lock = {(name, seed) for name in names for seed in seeds[name]} - earlier.keys(), threading.Lock()

    def run(name, seed):
        result = attempt(recipe, name, seed, scope, runner)
        if runner.stopped.is_set():  # what comes after Ctrl-C was not run
            return
        with lock:
            found[name][seed] = result
            to_come.discard((name, seed))
            save(found, len(to_come))

    with ThreadPoolExecutor(runner.jobs) as pool:
        # seed by seed: a table that is broken off has pairs to compare
        order = [(name, seed) for seed in range(scope.seeds) for name in names]
        tasks = [pool.submit(run, *both) for both in order if both in to_come]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            runner.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return found


def run_recipe(recipe: dict, names, scope: recipes.Scope, args) -> list[dict]:
    """Runs what is not done, writes and prints the table; returns what failed."""
    util.check_folder(args.out, "--out")
    stem = args.recipe.stem + (f"_scale{args.scale:g}" if args.scale != 1 else "")
    jobs = recipe["jobs"] if args.jobs is None else args.jobs
    runner, place = Runner(args.out / "logs" / stem, jobs or util.cores()), args.out / stem
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]

    def save(results, to_come=0):
        about = {"command": command, "failures": list(runner.failures), "unfinished": to_come}
        return table.write(place, recipe, results, scope, about)

    def save_meanwhile(results, to_come):
        try:
            save(results, to_come)
        except InputError as error:  # the trainings go on: the last table is the one that counts
            say(f"== {error}")

    def call(when, entry):
        """A command that belongs to no method, before or after them."""
        line = recipes.in_one_line(entry["command"]).replace("$table", shlex.quote(f"{place}.json"))
        runner.call(f"{when}: {' '.join(line.split()[1:4])}", line, show=True)

    earlier = completed.take_up(recipe, scope)
    for name, seed in earlier:
        say(f"== {recipes.title(recipe, name, seed)}: is done, {recipe['results']}")
    to_run = any((name, seed) not in earlier for name in names for seed in recipes.seeds(recipe, name, scope))
    for entry in recipe["before"] if to_run else ():
        if "makes" not in entry or not Path(entry["makes"]).exists():
            call("before", entry)
    results = run_methods(recipe, names, scope, runner, save_meanwhile, earlier)
    text = save(results)
    for entry in recipe["after"] if not args.only and args.scale == 1 else ():
        if not runner.failures:
            call("after", entry)
            text = save(results)
    say(f"\n{text}\nsaved {place}.md and .json")
    return runner.failures


def main():
    args = get_parser().parse_args()
    recipe = recipes.read(args.recipe)
    if args.seeds < 1 or not 0 < args.scale <= 1 or (args.jobs or 0) < 0:
        given = f"--seeds {args.seeds} --scale {args.scale} --jobs {args.jobs}"
        raise InputError(f"{given}: seeds start at 1, jobs at 0, the scale lies in (0, 1]")
    only = [method for name in args.only for method in grid.find_methods(recipe, name, f"{args.recipe}: --only")]
    names = list(dict.fromkeys(only)) or list(recipe["methods"])
    scope = recipes.Scope(args.seeds, args.scale, args.options)
    recipes.check_commands(recipe, names, scope, str(args.recipe))
    if args.dry_run:
        return recipes.print_commands(recipe, names, scope)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        failures = run_recipe(recipe, names, scope, args)
    except KeyboardInterrupt:
        print("reproduce.py: stopped; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before)
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    util.run_command(main)

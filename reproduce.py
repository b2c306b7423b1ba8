"""Run a recipe: train and evaluate the methods of a table, then write the table.

python reproduce.py recipes/digits.yaml
python reproduce.py recipes/cifar100.yaml --seeds 3 --only rince_out_in
python reproduce.py recipes/imagenet100.yaml --dry-run
python reproduce.py recipes/imagenet100.yaml --submit slurm --slurm="--partition=gpu --gres=gpu:8 --time=12:00:00"
python reproduce.py recipes/imagenet100.yaml --status

Finished steps are skipped: a training whose folder has the same command and all its epochs, an evaluation with a record
of the same command on the same checkpoint. A stopped training resumes. After a failure the other steps run, and the
failure is reported at the end. The table is stored in save/tables, as Markdown and as JSON with all records.
"""

import argparse
import contextlib
import itertools
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
import recipes
from engine.processes.distributed import EXIT_STOPPED
from recipes import completed, grid, submitting, table
from recipes.running import Finder, Runner, attempt, say
from util import InputError


def get_parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("recipe", type=util.user_path, help="YAML file of a recipe, such as recipes/digits.yaml")
    p.add_argument("--seeds", type=int, metavar="N", default=1, help="seeds per method, from 0 (default: 1)")
    only = "methods or grid cells to run; others are shown if they are done (default: all)"
    p.add_argument("--only", nargs="+", default=[], metavar="NAME", help=only)
    scale = "share of the epochs, to try a recipe (default: 1)"
    p.add_argument("--scale", type=float, metavar="P", default=1.0, help=scale)
    added = 'options that all scripts have, added to every command, such as --options="--num_workers 4"'
    p.add_argument("--options", default="", help=added)
    jobs = "models at a time, one core each; 0: one per core (default: from the recipe, or 1)"
    p.add_argument("--jobs", type=int, metavar="N", help=jobs)
    tables, folder = Path("save/tables"), "folder of the table (default: save/tables)"
    p.add_argument("--out", type=util.user_path, metavar="FOLDER", default=tables, help=folder)
    p.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    submit = "run as jobs of SLURM, or as processes of this machine"
    p.add_argument("--submit", choices=("slurm", "local"), help=submit)
    sbatch = 'options of sbatch, such as --slurm="--gres=gpu:8 --time=12:00:00"'
    p.add_argument("--slurm", default="", metavar="OPTIONS", help=sbatch)
    p.add_argument("--status", action="store_true", help="show the jobs of the last --submit and their state")
    p.add_argument("--task", nargs="+", help=argparse.SUPPRESS)  # what a job calls
    return p


def run_methods(
    recipe: dict, names, scope: recipes.Scope, runner: Runner, save: Callable, earlier: dict | None = None
) -> dict[str, list[dict]]:
    """Return the results of every method, by seed: `names` are run, of the others what is done is taken, and of all
    what is among the `earlier` ones (completed.take_up).

    save(results, number of runs still to come) is called after each of them.
    """
    seeds, earlier = {name: recipes.seeds(recipe, name, scope) for name in recipe["methods"]}, earlier or {}
    finder, found = Finder(runner.logs, runner.jobs), {}
    for name, own in seeds.items():
        found[name] = [earlier.get((name, seed)) or attempt(recipe, name, seed, scope, finder) for seed in own]
    order = [both for both in recipes.list_runs(recipe, names, scope) if both not in earlier]
    to_come, lock = {*order}, threading.Lock()

    def run(name, seed):
        result = attempt(recipe, name, seed, scope, runner)
        if runner.stopped.is_set():  # what comes after Ctrl-C was not run
            return
        with lock:
            found[name][seed] = result
            to_come.discard((name, seed))
            save(found, len(to_come))

    with ThreadPoolExecutor(runner.jobs) as pool:
        tasks = [pool.submit(run, *both) for both in order]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            runner.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return found


def name_table(args) -> str:
    """Return the name of a table's files: that of the recipe, with its scale."""
    return args.recipe.stem + (f"_scale{args.scale:g}" if args.scale != 1 else "")


def make_runner(recipe: dict, args) -> Runner:
    """Return what runs the commands, as many models at a time as is asked for."""
    jobs = recipe["jobs"] if args.jobs is None else args.jobs
    return Runner(args.out / "logs" / name_table(args), jobs or util.cores())


def call(when: str, entry: dict, place: Path, runner: Runner, gone=()) -> None:
    """Run a command that belongs to no method, before or after them, unless it names a folder that is `gone`."""
    line = recipes.in_one_line(entry["command"]).replace("$table", shlex.quote(f"{place}.json"))
    title = f"{when}: {' '.join(line.split()[1:4])}"
    if folder := next((word for word in recipes.words(line) if word in gone), None):
        return say(f"== {title}: is left out, {folder} is not there")
    runner.call(title, line, show=True)


def find_gone(recipe: dict, earlier: dict, scope: recipes.Scope) -> set[str]:
    """Return the folders of runs that were taken from a table, where they are not there."""
    steps = [recipes.commands(recipe, name, seed, scope) for name, seed in earlier]
    folders = {str(recipes.run_folder(step["training"])) for step in steps if "training" in step}
    return {folder for folder in folders if not Path(folder).is_dir()}


def find_before(recipe: dict) -> list[dict]:
    """Return the commands that come before the methods, but for those whose file is there."""
    return [entry for entry in recipe["before"] if "makes" not in entry or not Path(entry["makes"]).exists()]


def run_recipe(recipe: dict, names, scope: recipes.Scope, args, failures=()) -> list[dict]:
    """Run what is not done, write and print the table; return what failed, after `failures` of before."""
    util.check_folder(args.out, "--out")
    runner, place = make_runner(recipe, args), args.out / name_table(args)
    runner.failures += failures
    command = [Path(sys.argv[0]).name, *itertools.takewhile("--task".__ne__, sys.argv[1:])]

    def save(results, to_come=0):
        about = {"command": command, "failures": list(runner.failures), "unfinished": to_come}
        return table.write(place, recipe, results, scope, about)

    def save_meanwhile(results, to_come):
        try:
            save(results, to_come)
        except InputError as error:  # the trainings go on: the last table is the one that counts
            say(f"== {error}")

    earlier = completed.take_up(recipe, scope)
    for name, seed in earlier:
        say(f"== {recipes.title(recipe, name, seed)}: is taken from {recipe['results']}, not trained")
    if not earlier.keys() >= {*recipes.list_runs(recipe, names, scope)}:
        for entry in find_before(recipe):
            call("before", entry, place, runner)
    results = run_methods(recipe, names, scope, runner, save_meanwhile, earlier)
    text, gone = save(results), find_gone(recipe, earlier, scope)
    for entry in recipe["after"] if not args.only and args.scale == 1 else ():
        if not runner.failures:
            call("after", entry, place, runner, gone)
            text = save(results)
    say(f"\n{text}\nsaved {place}.md and .json")
    return runner.failures


# ---- as jobs ---------------------------------------------------------------------------------------------------------


def locate_jobs(args) -> Path:
    """Return the folder of a submission."""
    return args.out / "jobs" / name_table(args)


def submit(recipe: dict, names, scope: recipes.Scope, args) -> list[dict]:
    """Hand over as jobs what is not done: what comes before, each method with each seed, the table. Of jobs on this
    machine, which it waits for, return what failed.
    """
    options = submitting.read_options(args.slurm) if args.submit == "slurm" else {}
    util.check_folder(args.out, "--out")
    runner, place = make_runner(recipe, args), locate_jobs(args)
    limit = runner.jobs if args.submit == "local" else args.jobs
    words = [sys.executable, str(recipes.ROOT / "reproduce.py"), str(args.recipe), "--out", str(args.out)]
    words += ["--scale", str(args.scale), f"--options={args.options}"]
    words += ["--jobs", str(limit if args.submit == "local" else 1)]
    finder, earlier, runs = Finder(runner.logs, runner.jobs), completed.take_up(recipe, scope), []
    for name, seed in recipes.list_runs(recipe, names, scope):
        title, steps = recipes.title(recipe, name, seed), recipes.commands(recipe, name, seed, scope)
        found = earlier.get((name, seed)) or attempt(recipe, name, seed, scope, finder)
        whole = "sha256" in found and found["records"].keys() == steps.keys() - {"training"}
        if (name, seed) in earlier or whole:
            say(f"== {title}: is done")
        else:
            runs.append(submitting.Task(title, [*words, "--task", "run", name, str(seed)]))
    only = ["--only", *args.only] if args.only else []
    makes = [submitting.Task(submitting.BEFORE, [*words, "--task", "before"])]
    shows = [submitting.Task(submitting.TABLE, [*words, "--seeds", str(args.seeds), *only, "--task", "table"])]
    stages = [stage for stage in (makes if runs and find_before(recipe) else [], runs, shows) if stage]
    with submitting.locked(place):
        if args.submit == "slurm":
            submitting.submit_to_slurm(stages, place, options, limit)
            return []
        submitting.run_here(stages, place, limit)
    failures, table_file = submitting.collect_failures(place, of_table=True), args.out / f"{name_table(args)}.md"
    if table_file.is_file():  # its job may have been killed
        say(table_file.read_text())
    return failures


def run_task(recipe: dict, scope: recipes.Scope, args) -> list[dict]:
    """Do what one job does, and leave its outcome; exit with 75 where a script saved, to be started again."""
    kind, place, runner = args.task[0], locate_jobs(args), make_runner(recipe, args)
    if kind == "before":
        title = submitting.BEFORE
        for entry in find_before(recipe):
            call("before", entry, args.out / name_table(args), runner)
    elif kind == "table":
        title, others = submitting.TABLE, submitting.collect_failures(place)
        runner.failures += run_recipe(recipe, [], scope, args, others)[len(others) :]
    else:
        name, seed = args.task[1], int(args.task[2])
        title = recipes.title(recipe, name, seed)
        attempt(recipe, name, seed, scope, runner)
    if runner.cut_off:
        sys.exit(EXIT_STOPPED)
    submitting.write_failures(place, title, runner.failures)
    return runner.failures


@contextlib.contextmanager
def ended_by_signals():
    """As a context: what a scheduler ends a job with ends this process, once the script that it runs has saved."""

    def end(number, frame):
        for other in before:  # a second one would not wait for the script
            signal.signal(other, signal.SIG_IGN)
        sys.exit(143)

    before = {n: signal.signal(n, end) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main():
    args = get_parser().parse_args()
    recipe = recipes.read(args.recipe)
    if args.seeds < 1 or not 0 < args.scale <= 1 or (args.jobs or 0) < 0:
        given = f"--seeds {args.seeds} --scale {args.scale} --jobs {args.jobs}"
        raise InputError(f"{given}: --seeds must be >= 1, --jobs >= 0, --scale in (0, 1]")
    if args.slurm and args.submit != "slurm":
        raise InputError("--slurm: has no use without --submit slurm")
    if args.status:
        return submitting.show_status(locate_jobs(args), args.recipe)
    only = [method for name in args.only for method in grid.find_methods(recipe, name, f"{args.recipe}: --only")]
    names = list(dict.fromkeys(only)) or list(recipe["methods"])
    scope = recipes.Scope(args.seeds, args.scale, args.options)
    recipes.check_commands(recipe, names, scope, str(args.recipe))
    if args.dry_run:
        return recipes.print_commands(recipe, names, scope)
    try:
        with ended_by_signals():
            if args.task:
                failures = run_task(recipe, scope, args)
            else:
                failures = (submit if args.submit else run_recipe)(recipe, names, scope, args)
    except KeyboardInterrupt:
        print("reproduce.py: stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    util.run_command(main)

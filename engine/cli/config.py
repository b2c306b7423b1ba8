"""--config FILE.yaml: options from a file, and the file that a run leaves: options, command, commit, versions.

The file holds `option: value` with the names of the command line. What stands under `about` is no option; it says how
a run was started.
"""

import argparse
import contextlib
import glob
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import yaml

import util
from datasets.shards import IMAGES_IN
from datasets.text_files import read_yaml
from engine.cli import options
from engine.cli.parsing import Means, Options
from engine.processes import cpu_threads
from networks import cards
from util import InputError

NAME = "config.yaml"
# script -> a number that grows where the same command comes to give other figures, or more: a table takes no older ones
PROTOCOL = {"main_linear": 2, "retrieval": 4, "out_of_dist_detection": 3}


def huge_pages() -> None:
    """Let torch ask Linux for pages of 2 MB for large tensors on the CPU: the first touch of a batch costs a quarter.

    A setting of torch's own (THP_MEM_ALLOC_ENABLE), looked at when the first tensor is made; the user's stands.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def one_compiler() -> None:
    """Let torch.compile, which makes a handful of kernels for datasets.color_on_device, make them in this process:
    torch would start up to 32 others, in each process of a run.

    A setting of torch's own (TORCHINDUCTOR_COMPILE_THREADS), looked at when it first compiles; the user's stands.
    """
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


def parse(parser: argparse.ArgumentParser, recipes: dict) -> Options:
    """Parse --config files and the command line, with the defaults of the data set that they name."""
    huge_pages()
    args = parse_words(parser, recipes, sys.argv[1:], Path(sys.argv[0]).stem)
    if not getattr(args, "compile", False):  # encoders are many kernels
        one_compiler()
    return args


def parse_words(parser, recipes: dict, own: list[str], script: str) -> Options:
    """Return what `parse` reads from these words for a script, whichever runs."""
    words = command_line(parser, own, script)
    known, _ = parser.parse_known_args(words)
    if "num_workers" in known:
        parser.set_defaults(num_workers=cpu_threads.loaders(getattr(known, "nproc_per_node", None)))
    if getattr(known, "features", None):
        parser.set_defaults(dataset="features")
        known.dataset = "features" if known.dataset == known.defaults["dataset"] else known.dataset
    if getattr(known, "features_outliers", None):
        parser.set_defaults(dataset_outliers="features")
    recipe, optimizer = recipes.get(known.dataset, {}), getattr(known, "optimizer", None)
    parser.set_defaults(**recipe)
    if optimizer != recipe.get("optimizer"):
        parser.set_defaults(**options.OPTIMIZERS.get(optimizer, {}))
    args = parser.parse_args(words)
    if "features" in args:
        check_kind(args)
    args.files = files_of(args, own)
    return args


def check_kind(args: Options) -> None:
    """Raise InputError for an option of images that is given with features, and the other way round."""
    if (args.dataset == "features") != bool(args.features):
        hint = "give --features FILE, or another data set"
        raise InputError(f"--dataset {args.dataset}: features and --features go together; {hint}")
    wrong = Means.PIXELS if args.features else Means.VECTORS
    for name, value in vars(args).items():
        if wrong in args.means[name] and value != args.defaults[name]:
            why = "has no use with --features" if args.features else "has no use without --features"
            raise InputError(f"{args.spelling[name]}: {why}")


def files_of(args: Options, words: list[str]) -> dict[str, str]:
    """Check sums (SHA-256) of the files that the options of a command name, its `words`' --config among them, by option
    and path; of a folder, that of its checkpoint. What cannot be read is for its reader to refuse; files of images,
    which may be large, have none.
    """
    named = [("config", path) for path in _config_files(words)[0]]
    for name, value in vars(args).items():
        if Means.FILE in args.means.get(name, Means.RESULT):
            paths = [path for path in (value if isinstance(value, list) else [value]) if path]
            paths = [path for path in paths if not (name.startswith("data_folder") and path.endswith(IMAGES_IN))]
            if Means.VECTORS in args.means[name]:  # may be patterns
                paths = [file for path in paths for file in (sorted(glob.glob(path)) or [path])]
            named += [(name, path) for path in paths]
    found = {}
    for name, path in named:
        places = path, os.path.join(path, "last.pth"), os.path.join(path, cards.WEIGHTS)
        with contextlib.suppress(OSError, StopIteration):
            file = next(filter(os.path.isfile, places))
            found[f"--{name} {path}"] = util.sha256(file)
    return found


def _config_files(words: list[str]) -> tuple[list[Path], list[str]]:
    """Return the --config files of a command line, and its other words."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", action="append", default=[], type=util.user_path)
    known, own = finder.parse_known_args(words)
    return known.config, own


def command_line(parser: argparse.ArgumentParser, words: list[str], script: str) -> list[str]:
    """Return the command line of a script with the options of its --config files put before its own, which so win.

    Of a file that a run of another script left, only options that mean IMAGES count. Raises InputError naming file and
    key, where a key is no option of the parser, or its value none of the option's.
    """
    files, own = _config_files(words)
    found = {}  # option -> its words, of the last file that names it
    for path in files:
        found |= _options(parser, path, script)
    return [word for of_option in found.values() for word in of_option] + own


def _options(parser, path: Path, script: str) -> dict[str, list[str]]:
    """Option -> the words that give it the file's value; none for `null` and an empty list, which mean the default."""
    content = read_yaml(path, f"--config {path}", as_written=True)
    if not isinstance(content, dict):
        raise InputError(f"--config {path}: must be lines of `option: value`")
    actions = {name.lstrip("-"): action for action in parser._actions for name in (*action.option_strings, action.dest)}
    if _left_by(content.pop("about", None)) not in (None, script):
        means = parser.meanings()
        content = {key: value for key, value in content.items() if Means.IMAGES in means.get(key, Means.RESULT)}
    found = {}
    for key, value in content.items():
        if key not in actions or key in ("help", "config"):
            raise InputError(f"--config {path}: unknown option {key}{util.nearest(key, actions)}")
        given = value is not None and value != []
        found[actions[key].dest] = _option(actions[key], key, value, path) if given else []
    return found


def _left_by(about) -> str | None:
    """Return the script that left a file with this entry `about`; None where nobody says."""
    command = about.get("command") if isinstance(about, dict) else None
    return Path(str(command[0])).stem if isinstance(command, list) and command else None


def _option(action, key: str, value, path: Path) -> list[str]:
    """Return the words that give an option its value; of a list one word each, or with commas where one is wanted."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(v, str) for v in values):
        raise InputError(f"--config {path}: {key}: {value} must be a value or a list of values")
    if isinstance(value, list) and action.nargs != "+":
        values = [",".join(values)]
    for text in values:
        try:
            read = action.type(text) if action.type else text
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise InputError(f"--config {path}: {key}: {error}") from None
        if action.choices is not None and read not in action.choices:
            raise InputError(
                f"--config {path}: {key}: {text} is unknown; choose one of {', '.join(map(str, action.choices))}"
            )
    name = action.option_strings[0]
    return [name, *values] if action.nargs == "+" else [f"{name}={values[0]}"]


# ---- what a run and a result say of themselves -----------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Versions of what figures depend on."""
    libraries = ("torch", "torchvision", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in libraries}}


def processor() -> str:
    """Return what the CPU is called."""
    with open("/proc/cpuinfo") if Path("/proc/cpuinfo").exists() else open(os.devnull) as file:
        named = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def commit() -> str | None:
    """Return the git commit of this code, with "+ changes" where files differ from it; None where there is no git."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        where = ["git", "-C", str(Path(__file__).resolve().parent)]
        found = [
            subprocess.run([*where, *words], capture_output=True, text=True, check=True, timeout=20).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
        return found[0] + (" + changes" if found[1] else "")
    return None


def protocol(script: str) -> int:
    """Return the number of what a script's figures mean: see PROTOCOL."""
    return PROTOCOL.get(script.removesuffix(".py"), 1)


def write(folder: Path, args, numbers: dict) -> None:
    """Write a run's options, and under `about` its command, commit, versions and numbers (describe_precision), for
    --config to take back.
    """
    content = {key: value for key, value in options.plain(args).items() if Means.START not in args.means[key]}
    about = {"command": list(sys.argv), "commit": commit(), "versions": versions(), **numbers}
    about["protocol"] = protocol(Path(sys.argv[0]).name)
    text = yaml.safe_dump({"about": about, **content}, sort_keys=False, allow_unicode=True, width=120)
    util.write_file(folder / NAME, text.encode())

"""--config: options from a file for every script, and the file that a run leaves of itself."""

import importlib
import re
import sys

import pytest
import yaml
from commands import error_of, run

from engine.cli import config, options, parsing

SCRIPTS = ("main_supcon", "main_ce", "main_linear", "retrieval", "out_of_dist_detection")
REQUIRED = {
    "main_linear": {"ckpt": "somewhere"},
    "retrieval": {"ckpt": "somewhere"},
    "out_of_dist_detection": {"ckpt": "somewhere", "dataset_outliers": "cifar10"},
}


def parsed(monkeypatch, script, *words):
    module = importlib.import_module(script)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, words)])
    return config.parse(module.get_parser(), getattr(module, "RECIPES", options.SMALL_DATA))


def written(path, content):
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_takes_options_from_a_file_and_the_command_line_wins(monkeypatch, tmp_path, script):
    content = {"dataset": "cifar100", "batch_size": 17, "hold_out": ["apple", "bear"], "mean": [0.1, 0.2, 0.3]}
    path = written(tmp_path / "own.yaml", content | REQUIRED.get(script, {}))
    args = parsed(monkeypatch, script, "--config", path, "--batch_size", 9)
    assert (args.dataset, args.batch_size, args.hold_out) == ("cifar100", 9, ["apple", "bear"])
    assert args.mean == (0.1, 0.2, 0.3)
    assert not hasattr(args, "config")


def test_the_file_wins_over_the_data_sets_recipe_and_that_over_the_defaults(monkeypatch, tmp_path):
    path = written(tmp_path / "own.yaml", {"dataset": "digits", "epochs": 3, "cosine": False, "dist-backend": "gloo"})
    args = parsed(monkeypatch, "main_supcon", "--config", path)
    assert (args.epochs, args.cosine, args.feat_dim, args.m) == (3, False, 64, 0.99)
    assert args.dist_backend == "gloo"


def test_of_two_files_the_later_one_wins(monkeypatch, tmp_path):
    first = written(tmp_path / "a.yaml", {"epochs": 3, "seed": 5, "hold_out": ["4"], "size": 9})
    second = written(tmp_path / "b.yaml", {"epochs": 4, "hold_out": [], "size": None})
    args = parsed(monkeypatch, "main_ce", "--config", first, "--config", second)
    assert (args.epochs, args.seed, args.hold_out, args.size) == (4, 5, [], None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"epoch": 3}, "own.yaml: unknown option epoch; did you mean epochs?"),
        ({"memory_bank": 3}, "unknown option memory_bank; did you mean memorybank_size?"),
        ({"help": True}, "unknown option help"),
        ({"epochs": 0}, "own.yaml: epochs: 0 is below 1"),
        ({"min_tau": "warm"}, "own.yaml: min_tau: could not convert"),
        ({"cosine": "perhaps"}, "own.yaml: cosine: 'perhaps' is neither True nor False"),
        ({"dataset": "digitz"}, "own.yaml: dataset: digitz is unknown; choose one of digits, "),
        ({"exp_name": {"a": 1}}, "own.yaml: exp_name: {'a': '1'} must be a value or a list of values"),
        ({"hold_out": ["4", None]}, "own.yaml: hold_out: ['4', None] must be"),
        (["epochs"], "own.yaml: must be lines of `option: value`"),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_names_the_file(monkeypatch, capsys, tmp_path, content, reason):
    written(tmp_path / "own.yaml", content)
    assert reason in error_of(monkeypatch, capsys, tmp_path, "--config own.yaml")
    assert not (tmp_path / "save").exists()


def test_a_file_that_is_none_is_named(monkeypatch, capsys, tmp_path):
    assert "--config none.yaml: no such file" in error_of(monkeypatch, capsys, tmp_path, "--config none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    assert "--config bad.yaml, line 1: not readable" in error_of(monkeypatch, capsys, tmp_path, "--config bad.yaml")


def test_a_run_saves_what_it_was_and_its_file_gives_the_same_options_again(monkeypatch, tmp_path):
    words = "--epochs 1 --model resnet8 --batch_size 256 --hold_out 4 8 --thresholds 0.7 0.5 --exp_name a --overwrite"
    run(monkeypatch, tmp_path, words)
    path = tmp_path / "save/SupCon/digits_models/a/config.yaml"
    content = yaml.safe_load(path.read_text())
    assert content["about"]["command"] == ["main_supcon.py", *words.split()]
    assert set(content["about"]["versions"]) == {"python", "torch", "torchvision", "numpy", "scikit-learn"}
    assert content["about"]["commit"] == config.commit()
    again = vars(parsed(monkeypatch, "main_supcon", "--config", path))
    straight = vars(parsed(monkeypatch, "main_supcon", *words.split()))
    assert again == straight | {"overwrite": False}  # a new run never takes over that the old one was overwritten


def test_the_commit_is_none_where_there_is_no_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert config.commit() is None


@pytest.mark.parametrize(("text", "value"), [("t", True), ("y", True), ("True", True), ("F", False), ("n", False)])
def test_booleans_are_match_spelling_the_published_parser_takes_them(text, value):
    assert parsing.boolean(text) is value


def test_the_help_names_the_defaults_that_are_not_the_published_ones_as_they_are():
    parser = importlib.import_module("main_supcon").get_parser()
    named = dict(re.findall(r"--(\w+) ([\w.]+) \((?:published: )?[\d.]+\)", parser.epilog))
    assert set(named) == {"max_tau", "similarity_threshold", "n_sim_classes", "hierarchy_k"}
    defaults = {name: parser.get_default(name) for name in named}
    assert {name: "all" if value is None else parsing.as_typed(value) for name, value in defaults.items()} == named


TRAINED = {"dataset": "cifar100", "hold_out": ["apple"], "size": 24, "skip_images": "bad.txt", "data_folder": "mine"}
TRAINING = {"epochs": 7, "batch_size": 17, "model": "resnet8", "num_workers": 5, "learning_rate": 3.0, "ranking": "a"}


@pytest.mark.parametrize("script", SCRIPTS[2:])
def test_an_evaluation_takes_images_and_views_from_a_trainings_file_and_nothing_else(monkeypatch, tmp_path, script):
    about = {"command": ["/somewhere/main_supcon.py", "--x"]}
    path = written(tmp_path / "config.yaml", {"about": about, **TRAINED, **TRAINING, "mean": [0.1, 0.2, 0.3]})
    needed = [word for name, value in REQUIRED[script].items() for word in (f"--{name}", value)]
    args = parsed(monkeypatch, script, "--config", path, *needed, "--size", 28)
    without = parsed(monkeypatch, script, "--dataset", "cifar100", *needed)
    assert {k: getattr(args, k) for k in TRAINED} == TRAINED | {"size": 28}
    assert args.mean == (0.1, 0.2, 0.3)
    same = vars(args).keys() - {*TRAINED, "mean"}
    assert {k: getattr(args, k) for k in same} == {k: getattr(without, k) for k in same}


def test_a_file_that_a_run_of_the_same_script_left_must_hold_its_options_alone(monkeypatch, capsys, tmp_path):
    written(tmp_path / "c.yaml", {"about": {"command": ["retrieval.py"]}, "epochs": 3})
    assert "unknown option epochs" in error_of(monkeypatch, capsys, tmp_path, "--config c.yaml --ckpt x", "retrieval")

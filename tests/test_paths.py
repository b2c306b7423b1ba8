"""Paths of the command line: `~`, a file in the place of a folder, the spellings of a folder, --dataset forgotten."""

import importlib
import os
import re
from pathlib import Path

import pytest
from commands import error_of
from made_data import make_image_folders

import datasets
import recipes
import util
from datasets import packing, prepare, sources
from datasets.rankings import instances, make, text_encoders
from engine.cli import config
from util import InputError

SCRIPTS = ("main_supcon", "main_ce", "main_linear", "retrieval", "out_of_dist_detection", "rankings", "reproduce")
PATHS = {
    "data_folder", "data_folder_outliers", "skip_images", "save_folder", "features_cache", "ckpt", "resume", "ranking",
    "similarity_ranking_imagenet", "instance_ranks", "superclasses", "names", "is_a", "source", "out", "recipe",
}  # fmt: skip


def actions(parser):
    """Options of a parser and of its kinds."""
    for action in parser._actions:
        if isinstance(action.choices, dict) and action.dest in ("kind", "name"):
            for kind in action.choices.values():
                yield from actions(kind)
        yield action


@pytest.mark.parametrize("script", [*SCRIPTS, "datasets.prepare", "report"])
def test_every_option_that_is_a_path_expands_the_home_folder(monkeypatch, script):
    monkeypatch.setenv("HOME", "/home/somebody")
    paths = PATHS - {"names"} if script == "report" else PATHS  # there, what checkpoints are called
    found = {a.dest: a for a in actions(importlib.import_module(script).get_parser()) if a.dest in paths}
    assert found
    for name, action in found.items():
        assert action.type, f"--{name} takes its text as it is"
        assert str(action.type("~/x")) == "/home/somebody/x", name
        assert str(action.type("roberta~x")) == "roberta~x"
    other = [a.dest for a in actions(importlib.import_module(script).get_parser()) if a.dest not in PATHS]
    assert not {n for n in other if "folder" in n or n.endswith(("_file", "_path"))}


def test_so_do_config_files_with_their_paths_and_recipes(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("data_folder: ~/mine\n")
    parser = importlib.import_module("main_ce").get_parser()
    args = parser.parse_args(config.command_line(parser, ["--config=~/c.yaml"], "main_ce"))
    assert args.data_folder == f"{tmp_path}/mine"
    folder = recipes.run_folder("python main_ce.py --save_folder=~/runs --exp_name a")
    assert folder == tmp_path / "runs/SupCon/digits_models/a"
    assert recipes.given({"methods": {"a": {"checkpoint": "~/a.pth"}}}, "a") == tmp_path / "a.pth"


# ---- a file in the place of a folder ---------------------------------------------------------------------------------


@pytest.fixture
def a_file(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("file", "train.pack"):
        (tmp_path / name).write_bytes(b"no folder")
    return Path("file")


@pytest.mark.parametrize("name", [n for n in datasets.NAMES if n not in ("digits", "features")])
def test_a_file_in_the_place_of_a_data_folder_is_called_one(a_file, name):
    for split in ("train", "test"):
        with pytest.raises(InputError, match=r"^--data_folder file: is a file, not a folder$"):
            datasets.build(name, a_file, split)
        with pytest.raises(InputError, match=r"^--data_folder_outliers file: is a file, not a folder$"):
            datasets.build_outliers(name, a_file, split)


@pytest.mark.parametrize(
    "call",
    [
        lambda f: util.check_folder(f, "--save_folder"),
        lambda f: util.check_folder(f / "below", "--features_cache"),
        lambda f: packing.pack(f, Path("out"), 20, "raw", None, False),
        lambda f: prepare.plan_tiny_imagenet(f),
        lambda f: prepare.plan_awa2(f),
        lambda f: prepare.plan_imagenet100(f),
        lambda f: make.read_classes(None, f),
        lambda f: text_encoders.load_encoder("./file"),
        lambda f: datasets.build("path", "train.pack"),  # "; give the folder that holds it"
    ],
)
def test_so_it_is_wherever_else_a_folder_is_wanted(a_file, call):
    with pytest.raises(InputError, match=r"^--\w+ [./]*(file|train\.pack)[^:]*: (\S*file )?is a file, not a folder"):
        call(a_file)


# ---- spellings of a folder -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "spelling"),
    [("..", "mine"), (".", "."), ("..", "mine/train"), ("..", "mine/train/"), (".", "train"), ("..", "mine/val"),
     ("train", "."), ("train", "./"), ("..", "mine/images"), ("train/cat", "..")],
)  # fmt: skip
def test_train_and_val_are_found_by_every_spelling_of_their_folder(monkeypatch, tmp_path, place, spelling):
    make_image_folders(tmp_path / "mine" / "train", ["cat", "dog"], each=2)
    make_image_folders(tmp_path / "mine" / "val", ["cat", "dog"], each=1)
    monkeypatch.chdir(tmp_path / "mine" / place)
    train, test = datasets.build_pair("path", spelling)
    assert (train.classes, len(train), len(test)) == (["cat", "dog"], 4, 2)
    assert {os.path.basename(os.path.dirname(os.path.dirname(os.path.abspath(f)))) for f in test.images} == {"val"}


def test_a_table_of_instances_inside_train_names_its_images(monkeypatch, tmp_path):
    make_image_folders(tmp_path / "train", ["a"], each=2)
    monkeypatch.chdir(tmp_path / "train")
    Path("groups.csv").write_text("image,group\na/a_0.JPEG,x\n")
    data = instances.build(".", "groups.csv")[0]
    assert instances.count_unlisted(data, ".")[0] == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.pack").touch()
    assert instances.count_unlisted(data, tmp_path / "other")[0] == 0


# ---- --dataset forgotten ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", ["", "train"])
def test_a_folder_of_classes_without_its_data_set_is_named_and_others_leave_the_digits_alone(
    monkeypatch, capsys, tmp_path, train
):
    make_image_folders(tmp_path / "mine" / train, ["cat", "dog"], each=1)
    (tmp_path / "mine.yaml").write_text("animals: [cat, dog]\n")
    line = error_of(monkeypatch, capsys, tmp_path, "--data_folder mine --ranking mine.yaml")
    reason = "mine: holds images, and the data set digits reads none: give --dataset path, or for OOD images "
    reason += "--dataset_outliers path"
    assert line.endswith(f"error: --data_folder {reason}")
    with pytest.raises(InputError, match=re.escape(f"--data_folder_outliers {reason}")):
        datasets.build_outliers("digits", "mine")
    make_image_folders(tmp_path / "data", ["cat", "dog"], each=1)  # the default folder
    make_image_folders(tmp_path / "other", ["figures"], each=1)  # one folder of pictures is no data set
    for folder in ("./data", "data", "other", "nowhere"):
        assert len(sources.read_digits(Path(folder), "train")[0]) == 1442

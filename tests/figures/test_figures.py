"""The pictures: maps that keep what they should, logs read as they were written, files where they were asked for."""

import json
import shutil
from functools import partial

import commands
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import run
from made_data import clouds
from matplotlib.axes import Axes
from PIL import Image

import figures
from figures import demo, embedding, training
from figures.curves import draw_precision_recall

error_of = partial(commands.error_of, script="figures.embedding")


def opened(path) -> Image.Image:
    """A picture, read whole, its file closed."""
    with Image.open(path) as picture:
        picture.load()
    return picture


@pytest.mark.parametrize(("superclasses", "ranked"), [(True, True), (False, False)])
def test_a_run_is_drawn_with_and_without_superclasses_and_a_ranking(tmp_path, superclasses, ranked):
    z, labels = clouds()
    groups = {"one": ["a", "b"], "two": ["c"]} if superclasses else None
    table = np.array([[1, 0.75, 0], [0.75, 1, 0], [0, 0, 1]]) if ranked else None
    e = {"features": z, "labels": labels, "classes": ["a", "b", "c"]}
    embedding.draw_run(tmp_path / "e.png", "title", e, groups, table)
    picture = opened(tmp_path / "e.png")
    assert picture.height == 80 * 5 * (3 if superclasses else 2)
    assert np.asarray(picture.convert("L")).std() > 10


def test_more_classes_than_colours_are_drawn(tmp_path):
    z = F.normalize(torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    classes = [f"class_{i}" for i in range(15)]
    e = {"features": z, "labels": torch.arange(60) % 15, "classes": classes}
    embedding.draw_run(tmp_path / "e.png", "title", e, None, np.eye(15))
    assert (tmp_path / "e.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        run(patch, root, "--epochs 2 --model resnet8 --batch_size 256 --exp_name a --knn_freq 1")
    return root


CKPT = "--ckpt save/SupCon/digits_models/a"


def test_a_checkpoint_is_drawn_from_the_command_line(monkeypatch, capsys, trained):
    run(monkeypatch, trained, f"{CKPT} --ranking superclass --images 100 --out pictures/e.png", "figures.embedding")
    assert capsys.readouterr().out.endswith("drew pictures/e.png\n")
    assert opened(trained / "pictures/e.png").height == 1200


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--ckpt none.pth", "--ckpt none.pth: no such file"),
        (f"{CKPT} --images 3", "--images 3: leaves some class without an image"),
        (f"{CKPT} --ranking none.csv", "--ranking none.csv"),
        (f"{CKPT} --superclasses none.yaml", "--superclasses none.yaml: no such file"),
        (f"{CKPT} --superclasses cats.yaml", "--superclasses cats.yaml: lacks the class 0"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(monkeypatch, capsys, trained, words, reason):
    (trained / "cats.yaml").write_text("cats: [lion, tiger]\n")
    assert reason in error_of(monkeypatch, capsys, trained, words)


def test_a_training_is_drawn_from_its_log(monkeypatch, trained):
    run(monkeypatch, trained, "save/SupCon/digits_models/a --out t.png", "figures.training")
    assert np.asarray(opened(trained / "t.png").convert("L")).std() > 10


def test_of_an_epoch_that_was_trained_twice_the_last_counts(tmp_path):
    lines = [{"options": {}}, {"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.0}, {"options": {}}]
    lines += [{"epoch": 2, "loss": 1.5}, {"epoch": 3, "loss": 1.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [r["loss"] for r in training.read_log(tmp_path)] == [3.0, 1.5, 1.0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "holds no epoch yet"),
        ('[3]\n{"options": 1}', "holds no epoch yet"),
        ('{"epoch": 1}', "the logs hold nothing"),
    ],
)
def test_a_log_that_is_none_is_named(monkeypatch, capsys, tmp_path, content, reason):
    (tmp_path / "log.jsonl").write_text(content)
    assert reason in commands.error_of(monkeypatch, capsys, tmp_path, "log.jsonl", "figures.training")
    assert "none: no such file" in commands.error_of(monkeypatch, capsys, tmp_path, "none", "figures.training")


def test_every_rank_and_every_run_is_drawn_runs_of_one_name_too(monkeypatch, tmp_path):
    for folder in ("one/a", "two/a", "two/b"):
        (tmp_path / folder).mkdir(parents=True)
        record = {"epoch": 1, "loss": 2.0, **{f"loss_rank_{r}": 1.0 + r for r in range(7)}}
        (tmp_path / folder / "log.jsonl").write_text(json.dumps(record) + "\n" + '{"epoch": 2, "lo')
    drawn, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda ax, x, y, **how: drawn.append((how["label"], y)) or plot(ax, x, y, **how))
    run(monkeypatch, tmp_path, "one/a two/a/log.jsonl two/b --out t.png", "figures.training")
    assert [label for label, _ in drawn[:3]] == ["one/a", "two/a", "two/b"]
    assert dict(drawn[3:])["two/a, rank 6"] == (7.0,)
    assert len(drawn) == 3 + 3 * 7
    (tmp_path / "two/a/old.jsonl").write_text('{"epoch": 1, "loss": 9.0}')
    drawn.clear()
    run(monkeypatch, tmp_path, "two/a two/a/old.jsonl --out t.png", "figures.training")
    assert [(label, y) for label, y in drawn if y in ((2.0,), (9.0,))][:2] == [("a", (2.0,)), ("old.jsonl", (9.0,))]


def test_every_curve_of_precision_and_recall_is_drawn_in_a_style_of_its_own(monkeypatch, tmp_path):
    drawn, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda ax, *of, **how: drawn.append(how) or plot(ax, *of, **how))
    curves = {f"level {i}": (np.ones(3), np.linspace(0, 1, 3), 0.5) for i in range(7)}
    draw_precision_recall(tmp_path / "p.png", curves, "seven levels")
    assert [how["label"].split(":")[0] for how in drawn] == list(curves)
    assert len({(how["color"], how["ls"]) for how in drawn}) == 7


def test_patches_of_photographs_are_grey_squares_and_made_whole(tmp_path):
    (tmp_path / "patches.unfinished").mkdir()
    (tmp_path / "patches.unfinished" / "left_over").touch()
    count = demo.photograph_patches(tmp_path / "patches", side=100)
    files = list((tmp_path / "patches").iterdir())
    assert count == len(files) == 2 * 6 * 4
    assert {(f.suffix, opened(f).size, opened(f).mode) for f in files} == {(".png", (100, 100), "L")}
    assert not (tmp_path / "patches.unfinished").exists()


def test_the_readmes_pictures_are_drawn_from_the_table(tmp_path):
    z, labels = clouds()
    classes = ["0", "6", "1"]
    results, methods = {}, {}
    for name in demo.DRAWN:
        features, record = tmp_path / f"{name}.pt", tmp_path / f"{name}.json"
        torch.save({"features": z, "labels": labels, "classes": classes}, features)
        record.write_text(json.dumps({"features": {"queries": {"file": str(features)}}}))
        results[name] = [{"records": {"retrieval": str(record), "near": str(tmp_path / "near.json")}}]
        methods[name] = {"title": name}
    shutil.copy(commands.ROOT / "figures/digits_ood.png", tmp_path / "near.png")
    (tmp_path / "table.json").write_text(json.dumps({"results": results, "recipe": {"methods": methods}}))
    demo.draw_pictures(tmp_path / "table.json", tmp_path / "drawn")
    assert opened(tmp_path / "drawn/digits.png").width == 3 * 4 * 80
    assert (tmp_path / "drawn/digits_ood.png").read_bytes() == (tmp_path / "near.png").read_bytes()


def test_a_picture_that_cannot_be_drawn_is_said_and_ends_nothing(tmp_path):
    def faulty(path, colour):
        raise ValueError(f"{colour} is no colour\nat all")

    assert figures.shown(faulty, tmp_path / "p.png", "loud") == "; p.png cannot be drawn (loud is no colour)"
    assert figures.shown(lambda path: path.touch(), tmp_path / "p.png") == " and p.png"


@pytest.mark.parametrize("command", ["figures.grid table.json --axis a", "figures.training run"])
def test_a_picture_of_an_unknown_kind_is_refused_before_any_work(monkeypatch, capsys, tmp_path, command):
    script, *words = command.split()
    line = commands.error_of(monkeypatch, capsys, tmp_path, " ".join([*words, "--out x.xyz"]), script)
    assert "--out x.xyz: a picture's name ends in .png, .pdf, .svg, .jpg" in line

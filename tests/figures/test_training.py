"""Curves of trainings and of evaluations: logs read as they were written, each curve in a style of its own."""

import json

import numpy as np
import pytest
from commands import error_of, run
from matplotlib.axes import Axes

import figures
from figures import training
from figures.curves import draw_precision_recall


@pytest.fixture
def plotted(monkeypatch):
    """What is drawn as lines: (their values, how)."""
    found, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda ax, *of, **how: found.append((of[1], how)) or plot(ax, *of, **how))
    return found


def test_of_an_epoch_that_was_trained_twice_the_last_counts(tmp_path):
    lines = [{"options": {}}, {"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.0}, {"options": {}}]
    lines += [{"epoch": 2, "loss": 1.5}, {"epoch": 3, "loss": 1.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [r["loss"] for r in training.read_log(tmp_path)] == [3.0, 1.5, 1.0]


@pytest.mark.parametrize(
    ("content", "words", "reason"),
    [
        ('[3]\n{"options": 1}\n{', "log.jsonl", "holds no epoch yet"),
        ('{"epoch": 1}', "log.jsonl", "the logs hold nothing"),
        ('{"epoch": 1}', "none", "none: no such file"),
        ('{"epoch": 1}', "log.jsonl --out x.xyz", "--out x.xyz: a picture's name ends in .png, .pdf, .svg, .jpg"),
    ],
)
def test_a_log_that_is_none_is_named(monkeypatch, capsys, tmp_path, content, words, reason):
    (tmp_path / "log.jsonl").write_text(content)
    assert reason in error_of(monkeypatch, capsys, tmp_path, words, "figures.training")


def test_every_rank_and_every_run_is_drawn_runs_of_one_name_too(monkeypatch, tmp_path, plotted):
    for folder in ("one/a", "two/a", "two/b"):
        (tmp_path / folder).mkdir(parents=True)
        record = {"epoch": 1, "loss": 2.0, **{f"loss_rank_{r}": 1.0 + r for r in range(7)}}
        (tmp_path / folder / "log.jsonl").write_text(json.dumps(record) + "\n" + '{"epoch": 2, "lo')
    run(monkeypatch, tmp_path, "one/a two/a/log.jsonl two/b --out t.png", "figures.training")
    drawn = [(how["label"], y) for y, how in plotted]
    assert drawn[:3] == [("one/a", (2.0,)), ("two/a/log.jsonl", (2.0,)), ("two/b", (2.0,))]
    assert dict(drawn[3:])["two/a/log.jsonl, rank 6"] == (7.0,)
    assert len(drawn) == 3 + 3 * 7
    (tmp_path / "two/a/old.jsonl").write_text('{"epoch": 1, "loss": 9.0}')
    plotted.clear()
    run(monkeypatch, tmp_path, "two/a two/a/old.jsonl --out new/t.png", "figures.training")
    assert [(how["label"], y) for y, how in plotted[:2]] == [("a", (2.0,)), ("old.jsonl", (9.0,))]
    assert (tmp_path / "new/t.png").stat().st_size > 10_000


def test_every_curve_of_precision_and_recall_is_drawn_in_a_style_of_its_own(tmp_path, plotted):
    curves = {f"level {i}": (np.ones(3), np.linspace(0, 1, 3), 0.5) for i in range(7)}
    draw_precision_recall(tmp_path / "p.png", curves, "seven levels")
    assert [how["label"].split(":")[0] for _, how in plotted] == list(curves)
    assert len({(how["color"], how["ls"]) for _, how in plotted}) == 7


def test_a_picture_that_cannot_be_drawn_is_said_and_ends_nothing(tmp_path):
    def faulty(path, color):
        raise ValueError(f"{color} is no color\nat all")

    assert figures.try_to_draw(faulty, tmp_path / "p.png", ["loud"]) == "; p.png cannot be drawn (loud is no color)"
    assert figures.try_to_draw(lambda path: path.touch(), tmp_path / "p.png", []) == " and p.png"

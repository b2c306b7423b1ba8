"""The picture of a table over an axis of its grid: lines, places, spreads, and what cannot be drawn."""

import json

import numpy as np
import pytest
from commands import error_of, run
from matplotlib.axes import Axes
from PIL import Image

from figures import grid

MADE = {"a": (10.0, 20.0), "b": (30.0,), "c": (), "alone": (5.0, 6.0)}
AXES = {"a": {"size": "8", "tau": "1"}, "b": {"size": "16", "tau": "1"}, "c": {"size": "8", "tau": "2"}}


def content(axes=AXES, made=MADE):
    methods = {name: {"cell": {"method": "m", "title": "M", "axes": of}} for name, of in axes.items()}
    recipe = {"title": "T", "methods": {**methods, "alone": {"title": "A"}}}
    recipe["evaluations"] = {"e": {"columns": {"fine mAP": "x", "later": "y"}}}
    results = {name: [{"seed": s, "values": {"fine mAP": x}} for s, x in enumerate(of)] for name, of in made.items()}
    return {"recipe": recipe, "seeds": 2, "scale": 1.0, "results": results, "failures": []}


def test_a_line_is_a_method_with_one_value_on_each_other_axis():
    found = grid.lines(content(), "size")
    assert {title: list(line) for title, line in found.items()} == {
        "M, tau 1": ["8", "16"], "M, tau 2": ["8"], "A": [None],
    }  # fmt: skip
    assert {title: list(line) for title, line in grid.lines(content(), "tau").items()} == {
        "M, size 8": ["1", "2"], "M, size 16": ["1"], "A": [None],
    }  # fmt: skip


@pytest.mark.parametrize("alone", ["M, tau 1", "A"])
def test_two_methods_of_one_title_are_one_line_of_an_error_and_none_is_lost(monkeypatch, capsys, tmp_path, alone):
    table = content(made={**MADE, "other": (7.0,)})
    table["recipe"]["methods"] |= {"alone": {"title": alone}, "other": {"title": "A"}}
    (tmp_path / "t.json").write_text(json.dumps(table))
    error = error_of(monkeypatch, capsys, tmp_path, "t.json --axis size", "figures.grid")
    title, first = (alone, "m" if alone != "A" else "alone")
    assert f"T: the methods {first} and " in error and f"are both called {title}; give them titles that differ" in error


@pytest.mark.parametrize(
    ("labels", "want"),
    [
        (["50", "100", "500"], ([50, 100, 500], True)),
        (["0.3", "0.6", "2.4"], ([0.3, 0.6, 2.4], False)),
        (["0", "1", "100"], ([0, 1, 100], False)),
        (["50", "all"], ([0, 1], False)),
        (["1", "inf"], ([0, 1], False)),
    ],
)
def test_numbers_lie_at_their_value_and_labels_side_by_side(labels, want):
    at, wide = grid.places(labels)
    assert (list(at), list(at.values()), wide) == (labels, *want)


def test_a_point_is_the_mean_over_seeds_its_bar_their_standard_deviation(monkeypatch, tmp_path):
    drawn, levels = [], []
    errorbar, axhline = Axes.errorbar, Axes.axhline
    monkeypatch.setattr(Axes, "errorbar", lambda ax, *of, **how: drawn.append((*of, how)) or errorbar(ax, *of, **how))
    monkeypatch.setattr(Axes, "axhline", lambda ax, y, **how: levels.append((y, how["label"])) or axhline(ax, y, **how))
    (tmp_path / "t.json").write_text(json.dumps(content()))
    run(monkeypatch, tmp_path, "t.json --axis size --columns 'fine mAP' --out new/g.png", "figures.grid")
    run(monkeypatch, tmp_path, "t.json --axis size --out new/h.png", "figures.grid")
    assert (tmp_path / "new/h.png").read_bytes() == (
        tmp_path / "new/g.png"
    ).read_bytes()  # the only column with figures
    (x, means, how), _ = drawn
    assert (x, means, how["label"]) == ([8, 16], [15, 30], "M, tau 1")
    assert how["yerr"] == pytest.approx([np.std([10, 20], ddof=1), 0])
    assert levels == 2 * [(5.5, "A")]
    with Image.open(tmp_path / "new/g.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def test_many_columns_long_labels_and_many_methods_are_drawn_whole(tmp_path):
    names = [f"a label of some length, {n}" for n in range(3)]
    axes = {f"{m}{n}": {"size": label, "tau": str(m)} for m in range(9) for n, label in enumerate(names)}
    table = content(axes, {name: (1.0, 2.0) for name in axes})
    columns = [f"column {n}" for n in range(4)]
    for runs in table["results"].values():
        for of_seed in runs:
            of_seed["values"] = dict.fromkeys(columns, of_seed["seed"])
    grid.draw_grid(tmp_path / "g.png", table, "size", columns)
    with Image.open(tmp_path / "g.png") as picture:
        assert (np.asarray(picture.convert("L"))[[0, -1]] == 255).all()
        assert (np.asarray(picture.convert("L"))[:, [0, -1]] == 255).all()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("none.json --axis size", "none.json: no such file"),
        ("t.json --axis sise", "--axis sise: no axis of t.json; did you mean size?; its grid has size, tau"),
        ("plain.json --axis size", "--axis size: no axis of plain.json; its recipe has no grid"),
        ("t.json --axis size --columns 'fine map'", "--columns fine map: no column of t.json; did you mean fine mAP?"),
        ("empty.json --axis size", "--columns fine mAP: empty.json has no figure of it yet"),
        ("t.json --axis size --columns later", "--columns later: t.json has no figure of it yet"),
        ("t.json --axis size --columns 'fine mAP' --out t.json/g.png", "--out "),
    ],
)
def test_what_cannot_be_drawn_is_one_line(monkeypatch, capsys, tmp_path, words, reason):
    (tmp_path / "t.json").write_text(json.dumps(content()))
    (tmp_path / "empty.json").write_text(json.dumps(content(made=dict.fromkeys(MADE, ()))))
    (tmp_path / "plain.json").write_text(json.dumps(content(axes={}, made={"alone": (5.0,)})))
    assert reason in error_of(monkeypatch, capsys, tmp_path, words, "figures.grid")

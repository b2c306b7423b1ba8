"""Pictures of a recipe's table, over an axis of its grid and of its differences: lines, places, spreads, intervals."""

import json

import numpy as np
import pytest
from commands import error_of, run
from PIL import Image

from figures import grid
from figures.curves import GRAY, INLIER, OUTLIER
from recipes import Scope, table

MADE = {"a": (10.0, 20.0), "b": (30.0,), "c": (), "alone": (5.0, 6.0)}
AXES = {"a": {"size": "8", "tau": "1"}, "b": {"size": "16", "tau": "1"}, "c": {"size": "8", "tau": "2"}}


def content(axes=AXES, made=MADE, titles=()):
    methods = {name: {"cell": {"method": "m", "title": "M", "axes": of}} for name, of in axes.items()}
    methods |= {name: {"title": "A"} for name in made if name not in axes} | dict(titles)
    results = {name: [{"seed": s, "values": {"fine mAP": x}} for s, x in enumerate(of)] for name, of in made.items()}
    recipe = {"title": "T", "methods": methods}
    return {"recipe": recipe, "seeds": 2, "scale": 1.0, "results": results, "failures": []}


def test_a_line_is_a_method_with_one_value_on_each_other_axis():
    found = {
        axis: {title: list(x) for title, x in grid.group_lines(content(), axis).items()} for axis in ("size", "tau")
    }
    assert found["size"] == {"M, tau 1": ["8", "16"], "M, tau 2": ["8"], "A": [None]}
    assert found["tau"] == {"M, size 8": ["1", "2"], "M, size 16": ["1"], "A": [None]}


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
    at, wide = grid.place_labels(labels)
    assert (list(at), list(at.values()), wide) == (labels, *want)


def test_a_point_is_the_mean_over_seeds_its_bar_their_standard_deviation(monkeypatch, kept, tmp_path):
    (tmp_path / "t.json").write_text(json.dumps(content()))
    for columns in ("--columns 'fine mAP'", ""):  # the only one with figures
        run(monkeypatch, tmp_path, f"t.json --axis size {columns}", "figures.grid")
        (ax,) = kept.pop().axes
        (points,), (level,) = ax.containers, [line for line in ax.lines if line.get_linestyle() == "--"]
        line, _, (bars,) = points.lines
        assert (*line.get_data(), points.get_label()) == (pytest.approx([8, 16]), pytest.approx([15, 30]), "M, tau 1")
        spread = [(top - bottom) / 2 for (_, bottom), (_, top) in bars.get_segments()]
        assert spread == pytest.approx([np.std([10, 20], ddof=1), 0])
        assert (level.get_ydata()[0], level.get_label()) == (5.5, "A")


@pytest.mark.parametrize(("only", "lines"), [("m", 2), ("alone", 0), ("m alone", 2), ("a b", 1)])
def test_methods_or_cells_can_be_drawn_alone(monkeypatch, kept, tmp_path, only, lines):
    (tmp_path / "t.json").write_text(json.dumps(content(made={**MADE, "c": (7.0,)})))
    run(monkeypatch, tmp_path, f"t.json --axis size --only {only}", "figures.grid")
    (ax,) = kept.pop().axes
    assert len(ax.containers) == lines
    assert sum(line.get_linestyle() == "--" for line in ax.lines) == ("alone" in only)


def test_many_columns_long_labels_and_many_methods_are_drawn_whole(monkeypatch, tmp_path):
    names = [f"a label of some length, {n}" for n in range(3)]
    axes = {f"{m}{n}": {"size": label, "tau": str(m)} for m in range(9) for n, label in enumerate(names)}
    made, columns = content(axes, {name: (1.0, 2.0) for name in axes}), [f"column {n}" for n in range(4)]
    for runs in made["results"].values():
        for of_seed in runs:
            of_seed["values"] = dict.fromkeys(columns, of_seed["seed"])
    grid.draw_grid(tmp_path / "new/g.png", made, "size", columns)
    write(tmp_path)
    run(monkeypatch, tmp_path, "t.json --out new/d.png", "figures.differences")
    for name in ("g", "d"):
        with Image.open(tmp_path / f"new/{name}.png") as picture:
            gray = np.asarray(picture.convert("L"))
        assert gray.std() > 10 and (gray[[0, -1]] == 255).all() and (gray[:, [0, -1]] == 255).all()


METHOD = {"command": "python main_ce.py --exp_name a"}
RECIPE = {
    "title": "T", "about": "", "published": None, "baseline": "scl",
    "methods": {"scl": {**METHOD, "title": "SCL in"}, "rince": METHOD, "out": METHOD, "once": METHOD},
    "evaluations": {"e": {"columns": {"R@1": "x", "mAP": "y", "AUROC": "z"}}},
}  # fmt: skip
PAIRED = {
    "scl": ({"R@1": 50, "mAP": 40}, {"R@1": 52, "mAP": 41}),
    "rince": ({"R@1": 60, "mAP": 20}, {"R@1": 62.5, "mAP": 21.5}),
    "out": ({"R@1": 50, "mAP": 41}, {"R@1": 53}),
    "once": ({"R@1": 40, "mAP": 40},),  # has no interval, and no row
}


def write(folder, name="t", made=PAIRED, recipe=RECIPE, seeds=2):
    results = {m: [{"seed": s, "values": v, "records": {}} for s, v in enumerate(of)] for m, of in made.items()}
    table.write(folder / name, recipe, results, Scope(seeds, 1.0, ""), {"failures": []})


def test_a_panel_has_each_seeds_difference_and_the_interval_in_color_where_it_excludes_0(monkeypatch, kept, tmp_path):
    write(tmp_path)
    run(monkeypatch, tmp_path, "t.json", "figures.differences")
    half = 12.7062 * np.std([0, 0.5], ddof=1) / np.sqrt(2)
    want = [
        [((10, 10.5), 10.25, half, INLIER), ((0, 1), 0.5, 2 * half, GRAY)],
        [((-20, -19.5), -19.75, half, OUTLIER), ((1,), None, None, None)],
    ]
    for ax, rows in zip(kept[0].axes, want, strict=True):
        rings = [line.get_xdata() for line in ax.lines if line.get_markerfacecolor() == "none"]
        assert [tuple(x) for x in rings] == [seeds for seeds, *_ in rows]
        for bar, (_, mean, width, color) in zip(ax.containers, rows, strict=False):
            ((low, _), (high, _)), *_ = bar.lines[2][0].get_segments()
            assert ((low + high) / 2, (high - low) / 2) == pytest.approx((mean, width), rel=1e-4)
            assert bar.lines[0].get_color() == color
        assert len(ax.containers) == sum(row[1] is not None for row in rows)


@pytest.mark.parametrize(("correction", "color"), [(None, INLIER), ("Holm", GRAY)])
def test_a_bar_is_in_color_where_holms_correction_leaves_it_certain(monkeypatch, kept, tmp_path, correction, color):
    made = {"scl": ({"R@1": 50, "mAP": 50},) * 2, "rince": ({"R@1": 57, "mAP": 57}, {"R@1": 58, "mAP": 58})}  # p 0.04
    write(tmp_path, made=made, recipe=RECIPE | {"correction": correction})
    run(monkeypatch, tmp_path, "t.json", "figures.differences")
    assert {bar.lines[0].get_color() for ax in kept[0].axes for bar in ax.containers} == {color}


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("grid none.json --axis size", "none.json: no such file"),
        ("grid g.json --axis sise", "--axis sise: no axis of g.json; did you mean size?; its grid has size, tau"),
        ("grid plain.json --axis size", "--axis size: no axis of plain.json; its recipe has no grid"),
        (
            "grid g.json --axis size --columns 'fine map'",
            "--columns fine map: g.json has no result of it; did you mean",
        ),
        ("grid g.json --axis size --only alon", "--only alon: no method of g.json; did you mean alone?"),
        ("grid empty.json --axis size", "empty.json: has no results yet"),
        ("grid g.json --axis size --out g.json/g.png", "--out "),
        ("grid g.json --axis a --out x.xyz", "--out x.xyz: a picture's name ends in .png, .pdf, .svg, .jpg"),
        ("grid same.json --axis size", "T: the methods m and x are both called M, tau 1; give them titles that differ"),
        ("grid twice.json --axis size", "T: the methods alone and x are both called A; give them titles that differ"),
        ("differences one.json", "one.json: has no differences; its recipe needs a baseline, and two"),
        ("differences plain.json", "plain.json: has no differences"),
        ("differences g.json", "g.json: has no differences"),  # as of an older version
        (
            "differences t.json --columns 'R@2'",
            "--columns R@2: t.json has no difference of it; did you mean R@1?; it h",
        ),
        ("differences t.json --columns AUROC", "--columns AUROC: t.json has no difference of it"),
        ("differences t.json --out d.txt", "--out d.txt: a picture's name ends in .png, .pdf, .svg, .jpg"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(monkeypatch, capsys, tmp_path, command, reason):
    write(tmp_path)
    write(tmp_path, "one", {name: runs[:1] for name, runs in PAIRED.items()}, seeds=1)
    write(tmp_path, "plain", recipe=RECIPE | {"baseline": None})
    more = {**MADE, "x": (7.0,)}
    tables = {
        "g": content(), "empty": content(made=dict.fromkeys(MADE, ())), "twice": content(made=more),
        "same": content(made=more, titles={"x": {"title": "M, tau 1"}}),
    }  # fmt: skip
    for name, table_of in tables.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(table_of))
    script, words = command.split(maxsplit=1)
    assert reason in error_of(monkeypatch, capsys, tmp_path, words, f"figures.{script}")
    assert not list(tmp_path.glob("*.png"))


def test_a_method_lies_at_the_means_of_two_columns_with_student_intervals(monkeypatch, capsys, kept, tmp_path):
    seeds = {"a": [(10.0, 3.0), (20.0, 5.0)], "b": [(30.0, 1.0)], "c": []}
    made = content({}, dict.fromkeys(seeds, ()), {"b": {"title": "B"}})
    made["results"] = {
        name: [{"seed": s, "values": {"x": x, "y": y}} for s, (x, y) in enumerate(of)] for name, of in seeds.items()
    }
    (tmp_path / "t.json").write_text(json.dumps(made))
    run(monkeypatch, tmp_path, "t.json --columns x y --highlight B", "figures.trade_off")
    (ax,) = kept.pop().axes
    assert [(text.get_text(), text.xy) for text in ax.texts] == [("1", (15.0, 4.0)), ("2", (30.0, 1.0))]
    discs = [line for line in ax.lines if line.get_markersize() == 13]
    assert [disc.get_markerfacecolor() for disc in discs] == ["white", INLIER]
    across = ax.containers[0].lines[2][0].get_segments()[0]
    assert across[1][0] - across[0][0] == pytest.approx(2 * 12.706 * np.std([10, 20], ddof=1) / 2**0.5, rel=1e-4)
    line = error_of(monkeypatch, capsys, tmp_path, "t.json --columns x", "figures.trade_off")
    assert "--columns: give two of x, y" in line

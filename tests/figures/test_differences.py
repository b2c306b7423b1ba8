"""The picture of the differences to a baseline: seeds, intervals, their colours, and what cannot be drawn."""

import json

import numpy as np
import pytest
from commands import error_of, run
from matplotlib.axes import Axes
from PIL import Image

from figures.curves import GREY, INLIER, OUTLIER
from recipes import Scope, table

METHOD = {"command": "python main_ce.py --exp_name a"}
RECIPE = {
    "title": "T", "about": "", "published": None, "baseline": "scl",
    "methods": {"scl": {**METHOD, "title": "SCL in"}, "rince": METHOD, "out": METHOD, "once": METHOD},
    "evaluations": {"e": {"columns": {"R@1": "x", "mAP": "y", "AUROC": "z"}}},
}  # fmt: skip
MADE = {
    "scl": ({"R@1": 50, "mAP": 40}, {"R@1": 52, "mAP": 41}),
    "rince": ({"R@1": 60, "mAP": 20}, {"R@1": 62.5, "mAP": 21.5}),
    "out": ({"R@1": 50, "mAP": 41}, {"R@1": 53}),
    "once": ({"R@1": 40, "mAP": 40},),  # has no interval, and no row
}


def write(folder, name="t", made=MADE, recipe=RECIPE, seeds=2):
    results = {m: [{"seed": s, "values": v, "records": {}} for s, v in enumerate(of)] for m, of in made.items()}
    table.write(folder / name, recipe, results, Scope(seeds, 1.0, ""), {"failures": []})


def test_a_panel_has_each_seeds_difference_and_the_interval_in_colour_where_it_excludes_0(monkeypatch, tmp_path):
    rings, bars = [], []
    plot, errorbar = Axes.plot, Axes.errorbar
    monkeypatch.setattr(Axes, "plot", lambda ax, *of, **how: rings.append(of[0]) or plot(ax, *of, **how))
    monkeypatch.setattr(Axes, "errorbar", lambda ax, *of, **how: bars.append((*of, how)) or errorbar(ax, *of, **how))
    write(tmp_path)
    run(monkeypatch, tmp_path, "t.json --out new/d.png", "figures.differences")
    seeds = [of for of in rings if len(of) and not isinstance(of, tuple)]
    assert [10.0, 10.5] in seeds and [0, 1] in seeds and [-20, -19.5] in seeds and [1] in seeds
    half = 12.7062 * np.std([0, 0.5], ddof=1) / np.sqrt(2)
    want = [(10.25, 0, half, INLIER), (0.5, 1, 2 * half, GREY), (-19.75, 0, half, OUTLIER)]
    assert [(x, y, how["xerr"], how["color"]) for x, y, how in bars] == [
        (x, y, pytest.approx(half, rel=1e-4), colour) for x, y, half, colour in want
    ]
    with Image.open(tmp_path / "new/d.png") as picture:
        grey = np.asarray(picture.convert("L"))
        assert grey.std() > 10 and (grey[[0, -1]] == 255).all() and (grey[:, [0, -1]] == 255).all()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("none.json", "none.json: no such file"),
        ("one.json", "one.json: has no differences to draw, which want a recipe with a baseline, and two seeds"),
        ("plain.json", "plain.json: has no differences to draw"),
        ("old.json", "old.json: has no differences to draw"),
        ("t.json --columns 'R@2'", "--columns R@2: t.json has no difference of it; did you mean R@1?; it has R@1, mAP"),
        ("t.json --columns AUROC", "--columns AUROC: t.json has no difference of it"),
        ("t.json --out d.txt", "--out d.txt: a picture's name ends in .png, .pdf, .svg, .jpg"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(monkeypatch, tmp_path, capsys, words, reason):
    write(tmp_path)
    write(tmp_path, "one", {name: of[:1] for name, of in MADE.items()}, seeds=1)
    write(tmp_path, "plain", recipe=RECIPE | {"baseline": None})
    old = json.loads((tmp_path / "t.json").read_text())
    old.pop("differences")
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert reason in error_of(monkeypatch, capsys, tmp_path, words, "figures.differences")
    assert not (tmp_path / "differences.png").exists()

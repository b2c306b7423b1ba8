"""Curves of evaluations, each in a style of its own, and pictures that cannot be drawn."""

import numpy as np
import pytest
from matplotlib.axes import Axes

import figures
from figures.curves import draw_precision_recall


@pytest.fixture
def plotted(monkeypatch):
    """What is drawn as lines: (their values, how)."""
    found, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda ax, *of, **how: found.append((of[1], how)) or plot(ax, *of, **how))
    return found


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

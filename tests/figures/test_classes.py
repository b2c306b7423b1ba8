"""Encoders side by side: what is drawn of their classes."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from figures import classes, maps
from figures.cosines import class_cosines, within_and_across

NAMES = ["ant", "bee", "car", "bus", "oak"]
GROUPS = {"small_insects": ["ant", "bee"], "vehicles": ["bus", "car"], "trees": ["oak"]}


def made(seed, count=5, dim=8, each=4):
    """Features of a cloud a class, and labels."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count).repeat(each)
    return torch.randn(count, dim, generator=g)[labels] + 0.1 * torch.randn(count * each, dim, generator=g), labels


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws, and gives the figure in the place of a file."""
    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: kept.append(figure))

    def draw(features, labels, names, groups):
        classes.draw_classes(tmp_path / "c.png", "title", features, labels, names, groups)
        return kept.pop()

    return draw


def test_maps_lie_on_the_first_one_and_keep_their_own_distances():
    means = [torch.nn.functional.normalize(made(seed)[0][:5], dim=1).numpy() for seed in range(3)]
    found = classes.maps_of(means)
    assert found[0].mean(0) == pytest.approx(np.zeros(2), abs=1e-6)
    for z, points in zip(means, found, strict=True):
        assert points == pytest.approx(maps.aligned(points, found[0]), abs=1e-5)  # no turn brings it nearer
        assert maps.distance_error(z, points) == pytest.approx(maps.distance_error(z, maps.mds(z)), abs=1e-5)


def test_axes_hold_every_map_and_are_no_narrow_strip():
    points = [np.array([[0.0, 0], [10, 1]]), np.array([[-4.0, 0.5], [2, 0.2]])]
    low, high = classes.limits_of(points)
    assert low[0] < -4 and high[0] > 10 and low[1] < 0 and high[1] > 1
    assert (high - low)[1] == pytest.approx(0.6 * (high - low)[0])


def test_each_class_is_a_named_point_in_the_colour_of_its_superclass_on_the_same_axes(drawn):
    labels = made(0)[1]
    figure = drawn({"SCL": made(0)[0], "RINCE": made(1)[0]}, labels, NAMES, GROUPS)
    left, right = figure.subfigs[1].axes
    assert (left.get_xlim(), left.get_ylim()) == (right.get_xlim(), right.get_ylim())
    assert [ax.get_title().split(":")[0] for ax in (left, right)] == ["SCL", "RINCE"]
    for ax in (left, right):
        assert {t.get_text(): to_hex(t.get_color()).upper() for t in ax.texts} == {
            name: maps.COLOURS[group] for name, group in zip(NAMES, (0, 0, 1, 1, 2), strict=True)
        }
        assert [len(dots.get_offsets()) for dots in ax.collections] == [2, 2, 1]  # superclass by superclass
        ends = np.concatenate([dots.get_offsets() for dots in ax.collections])
        assert np.array([line.get_xydata()[1] for line in ax.lines]) == pytest.approx(ends)
    (legend,) = figure.subfigs[1].legends
    assert [t.get_text() for t in legend.get_texts()] == ["small insects", "vehicles", "trees"]


def test_matrices_have_one_scale_and_say_the_means_within_and_across(drawn):
    features, labels = {"SCL": made(0)[0], "RINCE": made(1)[0]}, made(0)[1]
    figure = drawn(features, labels, NAMES, GROUPS)
    *matrices, _ = figure.subfigs[2].axes  # the last one is the colour bar
    assert len(matrices) == 2
    tables = [class_cosines(x, labels, 5) for x in features.values()]
    order = [0, 1, 2, 3, 4]
    for ax, table in zip(matrices, tables, strict=True):
        (image,) = ax.images
        assert np.asarray(image.get_array()) == pytest.approx(table[np.ix_(order, order)])
        assert image.get_clim() == pytest.approx((min(t.min() for t in tables), 1))
        within, across = within_and_across(table, [0, 0, 1, 1, 2])
        assert ax.get_title().endswith(f"\n{within:.2f} within superclasses, {across:.2f} across")
        assert [t.get_text() for t in ax.get_yticklabels()] == NAMES


def test_of_many_classes_the_superclasses_are_named_and_none_looks_like_another(drawn):
    names = [f"c{i}" for i in range(48)]
    groups = {f"g{i}": names[i::16] for i in range(16)}
    features, labels = made(0, count=48, each=1)
    figure = drawn({"A": features}, labels, names, groups)
    matrix = figure.subfigs[2].axes[0]
    assert [t.get_text() for t in matrix.get_yticklabels()] == list(groups)
    assert matrix.get_yticks().tolist() == [3 * g + 1 for g in range(16)]
    looks = {tuple(classes.style_of(g).values()) for g in range(70)}
    assert len(looks) == 70

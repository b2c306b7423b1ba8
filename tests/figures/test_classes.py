"""Encoders side by side: what is drawn of their classes."""

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from matplotlib.colors import to_hex
from scipy.spatial.distance import pdist

from figures import classes, encoders

NAMES = ["ant", "bee", "car", "bus", "oak"]
GROUPS = {"small_insects": ["ant", "bee"], "vehicles": ["bus", "car"], "trees": ["oak"]}


def make_features(seed, count=5, dim=8, each=4):
    """Features of a cloud a class, and labels."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count).repeat(each)
    return torch.randn(count, dim, generator=g)[labels] + 0.1 * torch.randn(count * each, dim, generator=g), labels


@pytest.mark.parametrize("seed", range(3))
def test_numbers_over_classes_are_as_loops_have_them(seed):
    rng, group_of = np.random.default_rng(seed), [0, 0, 0, 1, 1, 1, 1, 2]  # the last has no companion
    table, z, points = (rng.normal(size=(8, columns)) for columns in (8, 4, 2))
    assert classes.within_and_across(table, group_of) == pytest.approx(reference.within_and_across(table, group_of))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    assert classes.nearest_in_group(z, group_of) == reference.nearest_in_group(z.tolist(), group_of)
    assert classes.distance_error(z, points) == pytest.approx(reference.distance_error(z.tolist(), points.tolist()))
    assert classes.distance_error(np.c_[points, np.zeros(8)], points[:, ::-1]) == pytest.approx(0, abs=1e-9)


def test_a_map_is_laid_onto_another_as_near_as_any_turn_brings_it_and_keeps_its_distances():
    rng, c, s = np.random.default_rng(1), np.cos(0.7), np.sin(0.7)
    onto, points = rng.normal(size=(9, 2)), 3 * rng.normal(size=(9, 2))
    for mirrored in (1, -1):
        moved = [3, -5] + (points * [1, mirrored]) @ np.array([[c, s], [-s, c]])
        assert classes.align_map(moved, points) == pytest.approx(points, abs=1e-9)
    found = classes.align_map(points, onto)
    assert np.square(found - onto).sum() == pytest.approx(reference.least_distance(points, onto), rel=1e-4)
    assert pdist(found) == pytest.approx(pdist(points))


def test_maps_lie_on_the_first_one_and_keep_their_own_distances():
    means = [F.normalize(make_features(seed)[0][:5], dim=1).numpy() for seed in range(3)]
    found = classes.make_maps(means)
    assert found[0].mean(0) == pytest.approx(np.zeros(2), abs=1e-6)
    for z, points in zip(means, found, strict=True):
        assert points == pytest.approx(classes.align_map(points, found[0]), abs=1e-5)  # no turn brings it nearer
        assert pdist(points) == pytest.approx(pdist(encoders.mds(z)), abs=1e-5)


def test_axes_hold_every_map_and_are_no_narrow_strip():
    points = [np.array([[0.0, 0], [10, 1]]), np.array([[-4.0, 0.5], [2, 0.2]])]
    low, high = classes.find_limits(points)
    assert low[0] < -4 and high[0] > 10 and low[1] < 0 and high[1] > 1
    assert (high - low)[1] == pytest.approx(0.6 * (high - low)[0])


def test_each_class_is_a_named_point_in_the_color_of_its_superclass_and_all_panels_have_one_scale(kept, tmp_path):
    features, labels = {"SCL": make_features(0)[0], "RINCE": make_features(1)[0]}, make_features(0)[1]
    classes.draw_classes(tmp_path / "c.png", "title", features, labels, NAMES, GROUPS)
    _, above, below = kept[0].subfigs
    left, right = above.axes
    assert (left.get_xlim(), left.get_ylim()) == (right.get_xlim(), right.get_ylim())
    assert [ax.get_title().split(":")[0] for ax in (left, right)] == ["SCL", "RINCE"]
    colors = {name: encoders.COLORS[group] for name, group in zip(NAMES, (0, 0, 1, 1, 2), strict=True)}
    for ax in (left, right):
        assert {t.get_text(): to_hex(t.get_color()).upper() for t in ax.texts} == colors
        assert [len(dots.get_offsets()) for dots in ax.collections] == [2, 2, 1]  # superclass by superclass
        ends = np.concatenate([dots.get_offsets() for dots in ax.collections])
        assert np.array([line.get_xydata()[1] for line in ax.lines]) == pytest.approx(ends)
    (legend,) = above.legends
    assert [t.get_text() for t in legend.get_texts()] == ["small insects", "vehicles", "trees"]
    *matrices, _ = below.axes  # the last one is the color bar
    tables = [encoders.class_cosines(x, labels, 5) for x in features.values()]
    for ax, table in zip(matrices, tables, strict=True):
        (image,) = ax.images
        assert np.asarray(image.get_array()) == pytest.approx(table)
        assert image.get_clim() == pytest.approx((min(t.min() for t in tables), 1))
        within, across = classes.within_and_across(table, [0, 0, 1, 1, 2])
        assert ax.get_title().endswith(f"\n{within:.2f} within superclasses, {across:.2f} across")
        assert [t.get_text() for t in ax.get_yticklabels()] == NAMES


def test_of_many_classes_the_superclasses_are_named_and_none_looks_like_another(kept, tmp_path):
    names = [f"c{i}" for i in range(48)]
    groups = {f"g{i}": names[i::16] for i in range(16)}
    features, labels = make_features(0, count=48, each=1)
    classes.draw_classes(tmp_path / "c.png", "title", {"A": features}, labels, names, groups)
    matrix = kept[0].subfigs[2].axes[0]
    assert [t.get_text() for t in matrix.get_yticklabels()] == list(groups)
    assert matrix.get_yticks().tolist() == [3 * g + 1 for g in range(16)]
    assert len({tuple(classes.choose_style(g).values()) for g in range(70)}) == 70

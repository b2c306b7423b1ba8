"""Maps: they keep what they should, lie on one another, and their panels reach as far as what is on them."""

import numpy as np
import pytest
import reference
from made_data import clouds

import figures
from figures import maps


@pytest.mark.parametrize("make", [maps.tsne, maps.mds])
def test_a_map_keeps_the_classes_apart_and_is_the_same_every_time(make):
    z, labels = clouds(each=60)
    points = make(z.numpy())
    assert points.shape == (180, 2)
    assert np.array_equal(points, make(z.numpy()))
    middle = np.stack([points[labels == c].mean(0) for c in range(3)])
    spread = max(points[labels == c].std(0).max() for c in range(3))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(middle[a] - middle[b]) > 3 * spread


def test_mds_keeps_near_classes_near():
    z, labels = clouds()
    points = maps.mds(z.numpy())
    a, b, c = (points[labels == k].mean(0) for k in range(3))
    assert np.linalg.norm(a - b) < 0.8 * min(np.linalg.norm(a - c), np.linalg.norm(b - c))


def test_names_are_moved_apart_by_no_more_than_they_overlap():
    places = np.array([[0, 0], [0.5, 0.1], [0.2, 0], [5, 0], [5, 3]], dtype=float)
    moved = maps.spread_apart(places, np.ones(5), 0.4)
    assert np.array_equal(moved[:, 0], places[:, 0])
    assert np.array_equal(moved[3:], places[3:])
    heights = np.sort(moved[:3, 1])
    assert np.diff(heights) == pytest.approx([0.4, 0.4], abs=0.02)
    assert np.abs(moved - places).max() < 0.5


def test_axes_reach_as_far_as_dots_and_names_and_no_farther(caplog):
    points = np.random.default_rng(0).normal(size=(40, 2)) * [3, 1] + [100, 50]  # far from the origin
    figure, ax = figures.pyplot().subplots(figsize=(4, 4))
    maps.draw_map(ax, points, np.arange(40) % 2, maps.Drawn(["a", "b"], [0, 1], [0, 0]), "t")
    figure.canvas.draw()
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert left < points[:, 0].min() and points[:, 0].max() < right
    assert bottom < points[:, 1].min() and points[:, 1].max() < top
    assert right - left < 1.5 * np.ptp(points[:, 0])
    assert caplog.records == []  # matplotlib says so where it sets limits aside


def turned(points, angle, mirrored=False):
    """A map turned about the origin, and mirrored before if asked."""
    points = points * [1, -1] if mirrored else points
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_map_that_was_moved_turned_and_mirrored_comes_back(mirrored):
    points = np.random.default_rng(0).normal(size=(9, 2))
    found = maps.aligned(np.array([3, -5]) + turned(points, 0.7, mirrored), onto=points)
    assert found == pytest.approx(points, abs=1e-9)


def test_no_other_turn_brings_a_map_nearer_and_its_distances_stay():
    rng = np.random.default_rng(1)
    onto, points = rng.normal(size=(9, 2)), 3 * rng.normal(size=(9, 2))
    found = maps.aligned(points, onto)
    assert np.square(found - onto).sum() == pytest.approx(reference.least_distance(points, onto), rel=1e-4)
    assert np.linalg.norm(found[:, None] - found, axis=2) == pytest.approx(
        np.linalg.norm(points[:, None] - points, axis=2)
    )


def test_how_far_the_distances_of_a_map_are_off_is_as_loops_have_it():
    rng = np.random.default_rng(2)
    z, points = rng.normal(size=(7, 5)), rng.normal(size=(7, 2))
    assert maps.distance_error(z, points) == pytest.approx(reference.distance_error(z.tolist(), points.tolist()))
    assert maps.distance_error(np.c_[points, np.zeros(7)], turned(points, 1.0)) == pytest.approx(0, abs=1e-9)

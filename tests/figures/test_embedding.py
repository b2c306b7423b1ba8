"""The picture of embeddings: its maps and matrices, and axes that reach as far as what is on them."""

import numpy as np
import pytest
import torch
from made_data import clouds

import figures
from figures import embedding
from figures.ranking import Classes, draw_matrix

GROUPS, TABLE = {"one": ["a", "b"], "two": ["c"]}, np.array([[1, 0.75, 0], [0.75, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("groups", "table", "names", "maps", "below"),
    [
        (GROUPS, TABLE, "x", ["t-SNE, by class", "MDS, by class"], ["in the embedding", "the ranking"]),
        (None, None, "x", ["t-SNE, by class", "MDS, by class"], ["in the embedding", "two images of ..."]),
        (GROUPS, None, "xyz", [f"{name}, by class" for name in "xyz"], ["x", "y", "z"]),
    ],
)
def test_maps_and_matrices_are_those_that_there_are(monkeypatch, kept, tmp_path, groups, table, names, maps, below):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # umap
    z, labels = clouds()
    embedding.draw_embedding(tmp_path / "e.png", "title", dict.fromkeys(names, z), labels, list("abc"), groups, table)
    *above, last = kept[0].subfigs
    assert [ax.get_title() for ax in above[0].axes] == maps
    assert [[ax.get_title() for ax in row.axes] for row in above[1:]] == (
        [[title.replace("class", "superclass") for title in maps]] if groups else []
    )
    assert [ax.get_title() for ax in last.axes if ax.get_title()] == below


def test_more_classes_than_colors_are_drawn_each_in_its_own(kept, tmp_path):
    z, names = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), [f"class_{i}" for i in range(15)]
    embedding.draw_embedding(tmp_path / "e.png", "t", {"a": z}, torch.arange(60) % 15, names, None, np.eye(15))
    colors = {tuple(dots.get_facecolor()[0]) for dots in kept[0].subfigs[0].axes[0].collections}
    assert len(colors) == 15


def test_axes_reach_as_far_as_dots_and_names_and_no_farther(caplog):
    points = np.random.default_rng(0).normal(size=(40, 2)) * [3, 1] + [100, 50]  # far from the origin
    figure, ax = figures.pyplot().subplots(figsize=(4, 4))
    embedding.draw_map(ax, points, np.arange(40) % 2, Classes(["a", "b"], [0, 1], [0, 0]))
    figure.canvas.draw()
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert left < points[:, 0].min() and points[:, 0].max() < right
    assert bottom < points[:, 1].min() and points[:, 1].max() < top
    assert right - left < 1.5 * np.ptp(points[:, 0])
    assert caplog.records == []  # matplotlib says so where it sets limits aside


def test_a_matrix_is_ordered_and_framed_by_group():
    table, (figure, ax) = np.arange(16).reshape(4, 4) / 16, figures.pyplot().subplots()
    image = draw_matrix(ax, table, Classes(list("abcd"), [2, 0, 1, 3], [0, 1, 0, 1]))
    assert [t.get_text() for t in ax.get_yticklabels()] == [t.get_text() for t in ax.get_xticklabels()] == list("cabd")
    assert np.asarray(image.get_array())[0].tolist() == table[2, [2, 0, 1, 3]].tolist()
    assert [line.get_ydata()[0] for line in ax.lines[::2]] == [1.5]
    assert image.get_clim() == (0, 1)
    figures.pyplot().close(figure)

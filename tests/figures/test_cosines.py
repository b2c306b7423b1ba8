"""Cosines of classes: as loops have them, ordered and framed by superclass."""

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from made_data import clouds

from figures import cosines, maps


def test_cosines_of_classes_are_means_over_pairs_of_images():
    z, labels = clouds(each=3)
    x = z * torch.arange(1, 10)[:, None]  # of any length
    want = reference.class_cosines(x.tolist(), labels.tolist(), 3)
    assert cosines.class_cosines(x, labels, 3) == pytest.approx(np.array(want), abs=1e-6)


def test_means_within_superclasses_leave_the_own_class_out():
    table, group_of = np.random.default_rng(0).normal(size=(6, 6)), [0, 1, 0, 2, 1, 1]
    assert cosines.within_and_across(table, group_of) == pytest.approx(reference.within_and_across(table, group_of))


def test_the_nearest_class_is_sought_among_the_others_and_counts_where_it_could_be_of_the_superclass():
    for seed in range(3):
        z = F.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)), dim=1).numpy()
        group_of = [0, 0, 0, 1, 1, 1, 1, 2]  # the last has no companion
        assert cosines.nearest_in_group(z, group_of) == reference.nearest_in_group(z.tolist(), group_of)


def test_pairs_of_images_are_told_apart_by_class_and_superclass():
    labels = np.array([0, 0, 1, 2])
    kinds = cosines.pair_kinds(labels[:, None], labels, [0, 0, 1])
    assert kinds.tolist() == [[0, 0, 1, 2], [0, 0, 1, 2], [1, 1, 0, 2], [2, 2, 2, 0]]


class Drawn:
    """Stands for the axes: remembers what a matrix panel shows."""

    def imshow(self, table, vmin, vmax, **_):
        self.table, self.low, self.high = table, vmin, vmax

    def set(self, **_):
        pass

    def set_xticklabels(self, names, **_):
        self.names = names

    set_yticklabels = set_xticklabels

    def axhline(self, place, **_):
        self.lines = [*getattr(self, "lines", []), place]

    def axvline(self, *_, **__):
        pass


def test_a_matrix_is_ordered_and_framed_by_group():
    table, ax = np.arange(16).reshape(4, 4) / 16, Drawn()
    cosines.draw_matrix(ax, table, maps.Drawn(list("abcd"), [2, 0, 1, 3], [0, 1, 0, 1]), "t", "l")
    assert ax.names == ["c", "a", "b", "d"]
    assert ax.table[0].tolist() == [table[2, 2], table[2, 0], table[2, 1], table[2, 3]]
    assert ax.lines == [1.5]
    assert ax.low == 0


def test_several_matrices_have_one_scale_of_colours():
    ax = Drawn()
    cosines.draw_matrix(ax, np.eye(2), maps.Drawn(["a", "b"], [0, 1], [0, 1]), "t", "l", low=-0.3)
    assert (ax.low, ax.high) == (-0.3, 1)

"""Strips: queries by rule, and frames that say what a neighbor is."""

import numpy as np
from matplotlib.colors import to_hex
from PIL import Image

from figures import strips


def test_queries_are_the_first_images_of_every_kth_class_that_has_images():
    labels = np.array([6, 2, 5, 0, 2, 3, 1, 4, 0, 5])  # the first of 0 is image 3, of 2 image 1, ...
    assert strips.choose_queries(labels, 3) == ([3, 1, 7], 2)  # of the classes 0, 2, 4
    assert strips.choose_queries(labels, 7) == ([3, 6, 1, 5, 7, 2, 0], 1)
    assert strips.choose_queries(labels, 1) == ([3], 7)
    assert strips.choose_queries(np.array([7, 3, 3, 9]), 3) == ([1, 0, 3], 1)


def test_an_image_is_cut_to_its_middle_square_and_large_ones_are_made_smaller():
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    assert (strips.square(Image.fromarray(pixels)) == 200).all()
    assert strips.square(Image.new("RGB", (900, 500))).shape == (160, 160, 3)


def test_a_strip_an_encoder_is_drawn_for_each_query_in_frames_of_their_kinds(kept, tmp_path):
    image, kinds = np.zeros((4, 4, 3), np.uint8), [[[0, 1, 2], [0, 0, 0]], [[2, 2, 1], [1, 0, 2]]]
    queries = []
    for name, pair in zip(("q0", "q1"), kinds, strict=True):
        found = [[strips.Neighbor(image, "x", kind) for kind in of] for of in pair]
        queries.append(strips.Query(image, name, "group", dict(zip(("SCL", "RINCE"), found, strict=True))))
    strips.draw_strips(tmp_path / "s.png", queries, "title", {"SCL": np.array([[0, 2], [1, 0]]), "RINCE": np.zeros(3)})
    (ax,) = kept[0].axes
    assert len(ax.images) == 2 * (1 + 2 * 3)
    want = [strips.FRAMES[kind] for pair in kinds for strip in pair for kind in strip]
    assert [to_hex(frame.get_edgecolor()).upper() for frame in ax.patches] == want
    heights = [frame.get_y() for frame in ax.patches]
    assert heights == sorted(heights) and len(set(heights)) == 4  # SCL above RINCE, query by query
    written = [t.get_text() for t in ax.texts]
    assert [t for t in written if t in ("q0", "q1", "SCL", "RINCE")] == ["q0", "SCL", "RINCE", "q1", "SCL", "RINCE"]
    legend = ax.get_legend()
    assert [t.get_text() for t in legend.get_texts()] == list(strips.KINDS)
    assert [to_hex(mark.get_edgecolor()).upper() for mark in legend.get_patches()] == list(strips.FRAMES)
    assert "SCL, for all test images: 50.0 % own class, 25.0 % same superclass, 25.0 % other" in kept[0].get_suptitle()

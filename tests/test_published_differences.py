"""The sizes of the differences that docs/differences.md names: ours next to the published way."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import functional as pil

import evaluation
from datasets.augmentation import DRAWS, ORDERS, Augmentation, crop, finish

PHOTOGRAPHS = [Image.fromarray(x) for x in load_sample_images().images]
ADJUST = (pil.adjust_brightness, pil.adjust_contrast, pil.adjust_saturation, pil.adjust_hue)


def publish_view(image, box, row, size, color):
    """[3, size, size] of one view by torchvision's functions of PIL images."""
    flip, jitter, *factors, order, gray = row.tolist()
    image = pil.resized_crop(image, *box, [size, size])
    if color:
        image = pil.hflip(image) if flip else image
        for i in ORDERS[int(order)] if jitter else ():
            image = ADJUST[i](image, factors[i])
        image = pil.to_grayscale(image, 3) if gray else image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def view_differences(size, side, color, count=60):
    """Differences of pixels, in 1/255, of views of photographs of that side."""
    recipe, rng, found = Augmentation(size, (0.0,) * 3, (1.0,) * 3), np.random.default_rng(0), []
    for n in range(count):
        left, top = rng.integers(0, 640 - side + 1), rng.integers(0, 427 - side + 1)
        image = PHOTOGRAPHS[n % 2].crop((left, top, left + side, top + side))
        uniform = rng.random((1, DRAWS))
        box, look = recipe.box(uniform[0], side, side), recipe.look(uniform)
        cut = torch.empty(1, 3, size, size, dtype=torch.uint8)
        crop(torch.from_numpy(np.array(image)), box, cut)
        ours = 255 * finish(cut, look, recipe.mean, recipe.std) if color else cut.float()
        found.append((ours[0] - publish_view(image, box, look[0], size, color)).abs().flatten())
    return torch.cat(found)


@pytest.mark.parametrize(
    ("size", "side", "color", "mean", "most"),
    [(32, 32, False, 0, 0), (224, 375, False, 0.03, 2), (32, 32, True, 1.2, 20), (224, 375, True, 1.2, 20)],
)
def test_views_differ_from_the_published_ones_by_as_much_as_the_page_says(size, side, color, mean, most):
    found = view_differences(size, side, color)
    assert float(found.mean()) == pytest.approx(mean, rel=0.2)
    assert float(found.max()) <= most


def make_clusters(each, seed):
    """Features in 100 Gaussian clusters, five to a superclass, and their classes."""
    means = torch.randn(100, 64, generator=torch.Generator().manual_seed(0))
    means += torch.randn(20, 64, generator=torch.Generator().manual_seed(1)).repeat_interleave(5, 0)
    labels = torch.arange(100).repeat_interleave(each)
    noise = torch.randn(len(labels), 64, generator=torch.Generator().manual_seed(seed))
    return means[labels] + 2 * noise, labels


@pytest.mark.parametrize(("each", "group", "points"), [(500, 1, 0.19), (500, 5, 0.05), (20, 1, 4)])
def test_the_published_area_is_lower_by_as_many_points_as_the_page_says(each, group, points):
    gallery, known = make_clusters(each, seed=2)
    queries, labels = make_clusters(2, seed=3)
    found = evaluation.retrieval_metrics(queries, labels // group, gallery, known // group)
    assert 100 * (found["AP"] - found["AP-published"]) == pytest.approx(points, rel=0.1)

"""Crops, color and what is drawn for them, against torchvision; views by (seed, epoch, sample) alone."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from sklearn.datasets import load_sample_images
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

import datasets
from datasets import augmentation
from datasets.augmentation import DRAWS, LOOK, ORDERS, Augmentation
from datasets.views import (
    SMALL_BLOCK,
    SMALL_SIDE,
    Views,
    crop_small,
    is_small,
    keyed_generator,
    keyed_numbers,
    resize_weights,
)  # fmt: skip

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PHOTOGRAPH = load_sample_images().images[0].copy()


def recipe(**changes):
    return Augmentation(**{"size": 32, "mean": MEAN, "std": STD, **changes})


def uniforms(count, seed=0):
    return np.random.default_rng(seed).random((count, DRAWS))


def some_views(count, size=24, seed=0):
    """Crops of a photograph, [n, 3, size, size] uint8, and extreme colors."""
    rng, x = np.random.default_rng(seed), torch.from_numpy(PHOTOGRAPH).permute(2, 0, 1)
    places = rng.integers(0, 400, (count, 2)).tolist()
    views = torch.stack([x[:, a : a + size, b : b + size] for a, b in places])
    views[0, :, :4] = torch.tensor([[0], [255], [0]], dtype=torch.uint8)[..., None]
    views[0, :, 4:8] = 128
    views[0, :, 8:12] = 0
    return views


def look_of(**columns):
    """[n, 8] parameters; what is not given does nothing."""
    idle = {"brightness": 1, "contrast": 1, "saturation": 1}
    n = max(len(v) for v in columns.values())
    rows = [torch.as_tensor(columns.get(c, [idle.get(c, 0)] * n), dtype=torch.float32) for c in LOOK]
    return torch.stack(rows, 1)


# ---- the same operations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("brightness", (0.6, 1.0, 1.4, 0.0)),
        ("contrast", (0.6, 1.0, 1.4, 0.0)),
        ("saturation", (0.6, 1.0, 1.4, 0.0)),
        ("hue", (-0.1, 0.0, 0.1, 0.5)),
    ],
)
def test_each_color_operation_is_torchvisions(name, factors):
    x = some_views(len(factors)).float() / 255
    operation = dict(zip(("brightness", "contrast", "saturation", "hue"), augmentation.OPERATIONS, strict=True))[name]
    got = operation(x.clone(), torch.tensor(factors)[:, None, None, None])
    want = torch.stack([getattr(tv, f"adjust_{name}")(v, f) for v, f in zip(x, factors, strict=True)])
    assert (got - want).abs().max() < 1e-5


def by_torchvision(view, row):
    """One view with one row of parameters, by torchvision's functions."""
    flip, jitter, *factors, order, gray = row.tolist()
    x = tv.to_dtype(tv.horizontal_flip(view) if flip else view, torch.float32, scale=True)
    names = ("brightness", "contrast", "saturation", "hue")
    for i in ORDERS[int(order)] if jitter else ():
        x = getattr(tv, f"adjust_{names[i]}")(x, factors[i])
    x = tv.rgb_to_grayscale(x, 3) if gray else x
    return tv.normalize(x, MEAN, STD)


@pytest.mark.parametrize("block", [1, 2000, 10**9])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_finished_views_are_torchvisions_in_every_order_of_operations(block, memory_format, monkeypatch):
    monkeypatch.setattr(augmentation, "BLOCK", block)
    look = recipe().look(uniforms(60))
    look[:24, 6] = torch.arange(24)
    assert {int(o) for o in look[look[:, 1] > 0, 6]} >= set(range(0, 24, 5))
    views = some_views(60)
    got = augmentation.finish(views, look, MEAN, STD, memory_format)
    want = torch.stack([by_torchvision(v, row) for v, row in zip(views, look, strict=True)])
    assert (got - want).abs().max() < 0.1 / 255 / min(STD)
    assert got.is_contiguous(memory_format=memory_format)


def test_views_do_not_change_one_another_and_inputs_stay():
    views, look = some_views(30), recipe().look(uniforms(30))
    before = views.clone()
    together = augmentation.finish(views, look, MEAN, STD)
    assert torch.equal(views, before)
    for i in range(30):
        torch.testing.assert_close(augmentation.finish(views[i : i + 1], look[i : i + 1], MEAN, STD)[0], together[i])


def test_finished_views_may_be_what_a_gradient_needs():
    x = augmentation.finish(some_views(2), recipe().look(uniforms(2)), MEAN, STD)
    weight = torch.ones(3, 3, 1, 1, requires_grad=True)
    torch.nn.functional.conv2d(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad[0, :, 0, 0], x.sum((0, 2, 3)))


def test_a_crop_is_the_same_wherever_its_pixels_lie():
    """Part of a larger tensor, turned on its side, or one channel seen as three."""
    image, box = torch.from_numpy(PHOTOGRAPH), (3, 5, 100, 80)
    for pixels in (image[20:, 30:], image.transpose(0, 1), image[..., 1:2].expand(-1, -1, 3)):
        got, want = torch.empty(2, 1, 3, 32, 32, dtype=torch.uint8)
        augmentation.crop(pixels, box, out=got)
        augmentation.crop(pixels[3:103, 5:85].clone(memory_format=torch.contiguous_format), (0, 0, 100, 80), out=want)
        assert torch.equal(got, want)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (28, 28, 32), (32, 20, 9), (8, 8, 8), (1, 3, 32)])
def test_crops_of_small_images_at_once_are_those_of_each_to_the_bit(height, width, size, layout):
    count = SMALL_BLOCK + 3
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    images[:5] = 255
    draws = uniforms(2 * count).reshape(2, count, DRAWS)
    boxes = [[recipe(crop_scale=(0.01, 1.0)).box(u, height, width) for u in view] for view in draws]
    got = torch.empty(2 * count, 3, size, size, dtype=torch.uint8, memory_format=layout).unflatten(0, (2, count))
    with torch.autocast("cpu", torch.bfloat16):
        crop_small(images, torch.tensor(boxes), got)
    want = torch.empty(1, 3, size, size, dtype=torch.uint8)
    for v, i in np.ndindex(2, count):
        augmentation.crop(torch.from_numpy(images[i]), boxes[v][i], want)
        assert torch.equal(got[v, i], want[0])


def test_sums_of_small_crops_are_below_two_to_the_24():
    for size in range(8, SMALL_SIDE + 1):
        assert is_small(np.zeros((1, 32, 32, 3)), size)
        for length in range(1, SMALL_SIDE + 1):
            parts = resize_weights(length, size) * 2**16  # a row sums to about 1, pixels are below 256
            assert (parts == parts.round()).all()
            assert (255 * parts.sum(1)).max() + 2**15 < 2**24


@pytest.mark.parametrize("shape", [(40, 12, 9), (40, 12, 9, 3)])
def test_views_of_small_images_in_memory_are_those_of_one_image_after_another(shape, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    views = Views(datasets.ImageData(images, torch.arange(40), ["0"]), recipe(size=16), 0, finished=False)
    keys = [(2, i) for i in (7, 3, 39, 7)]
    (at_once, _), labels = views.__getitems__(keys)
    monkeypatch.setattr("datasets.views.is_small", lambda *_: False)
    (one_by_one, _), also = views.__getitems__(keys)
    assert torch.equal(at_once, one_by_one)
    assert labels.tolist() == also.tolist() == [7, 3, 39, 7]


def test_only_small_images_in_memory_are_cut_at_once():
    assert is_small(np.zeros((1, 32, 32, 3)), 32)
    assert not is_small(np.zeros((1, 32, 33, 3)), 32)
    assert not is_small(np.zeros((1, 32, 32, 3)), 64)
    assert not is_small(np.zeros((1, 32, 32, 3)), 7)  # sums would have more than 24 bits
    assert not is_small(["a.jpg"], 32)


# ---- the same law ----------------------------------------------------------------------------------------------------

HEIGHT, WIDTH, COUNT = 375, 500, 4000


@pytest.fixture(scope="module")
def theirs():
    """torchvision's own draws: crop boxes and jitter parameters."""
    torch.manual_seed(0)
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    crop = v2.RandomResizedCrop(32, scale=(0.2, 1.0))
    jitter = v2.ColorJitter(0.4, 0.4, 0.4, 0.1)
    boxes = [crop.make_params([image]) for _ in range(COUNT)]
    return (
        np.array([[b["top"], b["left"], b["height"], b["width"]] for b in boxes]),
        [jitter.make_params([image]) for _ in range(COUNT)],
    )


@pytest.mark.parametrize("what", ["area", "ratio", "top", "left", "height", "width"])
def test_crops_follow_torchvisions_law(theirs, what):
    ours = np.array([recipe().box(u, HEIGHT, WIDTH) for u in uniforms(COUNT)])
    measures = {
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 3] / b[:, 2],
        "top": lambda b: b[:, 0] / np.maximum(1, HEIGHT - b[:, 2]),
        "left": lambda b: b[:, 1] / np.maximum(1, WIDTH - b[:, 3]),
        "height": lambda b: b[:, 2],
        "width": lambda b: b[:, 3],
    }
    assert kstest(measures[what](ours), measures[what](theirs[0])).pvalue > 1e-3
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= HEIGHT).all()
    assert (ours[:, 1] + ours[:, 3] <= WIDTH).all()


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_jitter_factors_follow_torchvisions_law(theirs, name):
    ours = recipe().look(uniforms(COUNT))[:, LOOK.index(name)].numpy()
    drawn = np.array([float(p[f"{name}_factor"]) for p in theirs[1]])
    assert kstest(ours, drawn).pvalue > 1e-3
    assert ours.min() >= np.float32(drawn.min() - 0.01)


def test_orders_flips_jitter_and_grey_have_their_probabilities():
    look = recipe().look(uniforms(24_000))
    counts = np.bincount(look[:, 6].long().numpy(), minlength=24)
    assert (np.abs(counts - 1000) < 5 * np.sqrt(1000)).all()
    for column, p in (("flip", 0.5), ("jitter", 0.8), ("gray", 0.2)):
        assert look[:, LOOK.index(column)].mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / 24_000) ** 0.5)


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (1, 1), (7, 8)])
def test_where_no_crop_fits_the_middle_is_taken_as_in_torchvision(height, width):
    uniform = np.full(DRAWS, 0.999)  # the whole area at an aspect ratio of 4/3
    box = recipe().box(uniform, height, width)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    if height in (10, 1000):
        want = v2.RandomResizedCrop(32, scale=(0.999, 1.0)).make_params([image])
        assert box == tuple(want[k] for k in ("top", "left", "height", "width"))
    assert 0 < box[2] <= height
    assert 0 < box[3] <= width


# ---- by key ----------------------------------------------------------------------------------------------------------


def views_of(keys, seed=0, finished=True, **changes):
    return Views(datasets.build("digits"), recipe(size=8, **changes), seed, finished).__getitems__(keys)


def test_what_is_drawn_for_a_sample_depends_on_seed_epoch_and_sample_alone():
    (first, second, other), _ = ((x := views_of([(1, 7), (2, 7), (1, 8)]))[0].unbind(1)), x[1]
    assert torch.equal(views_of([(1, 9), (1, 7)])[0][:, 1], first)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(views_of([(1, 7)], seed=1)[0][:, 0], first)


def test_a_batch_is_views_by_sample_with_their_labels():
    images, labels = views_of([(1, i) for i in range(5)])
    assert images.shape == (2, 5, 3, 8, 8)
    assert labels.tolist() == datasets.build("digits").labels[:5].tolist()
    assert views_of([(1, 3)], views=1)[0].shape == (1, 3, 8, 8)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("blur", [0.0, 0.5])
def test_device_and_worker_make_the_same_views(views, blur):
    keys, recipes = [(3, i) for i in range(20)], dict(views=views, blur=blur)
    there, _ = views_of(keys, **recipes)
    (crops, look), _ = views_of(keys, **recipes, finished=False)
    assert crops.dtype == torch.uint8
    assert crops.shape == (views, 20, 8, 8, 3)
    here = Views(None, recipe(size=8, **recipes), 0, finished=False).finish(crops, look)
    torch.testing.assert_close(here, there)
    assert torch.equal(there, views_of(keys, views=views)[0]) == (not blur)


# ---- chosen on the command line --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [24, 32, 64])
def test_blur_is_torchvisions_of_the_views_that_have_a_sigma(size, channels_last):
    views = some_views(5, size).float() / 255
    views = views.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    sigma = torch.tensor([0.1, 0.0, 0.7, 2.0, 0.0])
    kernel = max(3, size // 10 // 2 * 2 + 1)
    want = [tv.gaussian_blur(x, [kernel, kernel], [float(s)]) if s else x for x, s in zip(views, sigma, strict=True)]
    torch.testing.assert_close(augmentation.blur(views.clone(), sigma), torch.stack(want))
    assert torch.equal(augmentation.blur(views.clone(), torch.zeros(5)), views)
    pixel = views[:, :, :1, :1]
    assert torch.equal(augmentation.blur(pixel.clone(), sigma), pixel)


def test_blur_leaves_all_else_that_is_drawn_as_it_is():
    keys = [(1, i) for i in range(40)]
    (plain, look), _ = views_of(keys, finished=False)
    (blurred, also), _ = views_of(keys, finished=False, blur=0.5)
    assert torch.equal(plain, blurred)
    assert torch.equal(look, also[..., :8])
    sigma = also[..., 8]
    assert 25 < (sigma > 0).sum() < 55  # of 80
    assert sigma[sigma > 0].min() >= 0.1
    assert sigma.max() <= 2


def test_twice_the_strength_is_twice_as_far_from_nothing_and_none_draws_nothing():
    one, two, none = (recipe(colour=s).look(uniforms(500)) for s in (1.0, 2.0, 0.0))
    for column in ("brightness", "contrast", "saturation"):
        i = LOOK.index(column)
        torch.testing.assert_close(two[:, i] - 1, 2 * (one[:, i] - 1))
    torch.testing.assert_close(two[:, LOOK.index("hue")], 2 * one[:, LOOK.index("hue")])
    assert torch.equal(one[:, [0, 1, 6, 7]], two[:, [0, 1, 6, 7]])
    assert none[:, [1, 7]].sum() == 0
    assert recipe(flip=False).look(uniforms(500))[:, 0].sum() == 0


def test_without_a_crop_a_view_is_the_whole_image():
    assert recipe(crop_scale=None).box(uniforms(1)[0], 30, 50) == (0, 0, 30, 50)
    data = datasets.build("digits")
    got = Views(data, recipe(size=8, crop_scale=None, flip=False, colour=0.0), 0, True).__getitems__([(1, 3)])[0]
    want = torch.from_numpy(data.images[3]).float() / 255
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    torch.testing.assert_close(got[0, 0], (want.expand(3, 8, 8) - mean) / std)


def test_every_key_has_random_numbers_of_its_own_drawn_alone_or_with_others():
    keys = [(0, 1, "views", 0), (0, 1, "views", 1), (0, 1, "views", 2), (0, 2, "views", 0), (1, 1, "views", 0)]
    keys += [(0, 1, "order", 0), (-1, 1, "views", 0)]
    drawn = [set(keyed_generator(*key).random(500).tolist()) for key in keys]
    assert len(set().union(*drawn)) == 500 * len(keys)
    keys = [(3, 7), (3, 2**40), (1, 7), (3, 7)]  # in any order, again and again
    got = keyed_numbers(-5, keys, "views", 61)
    for (epoch, sample), numbers in zip(keys, got, strict=True):
        assert numbers.tolist() == keyed_generator(-5, epoch, "views", sample).random(61).tolist()

"""Training images as augmented views, a whole batch at a time: what is drawn for each, and its crops."""

import functools

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets import ImageData, augmentation
from datasets.augmentation import BLUR_DRAWS, DRAWS, Augmentation, blur, crop

SMALL_SIDE = 32  # of small images and views at most: tables of weights grow with its fourth power, to 4 MiB here
SMALL_BLOCK = 64  # small images at a time, for a CPU's caches


class Views(Dataset):
    """Batches of augmented views: item (epoch, index) of `data`, drawn from (seed, epoch, index) alone.

    A batch is (images, labels [n]). Where `finished`, images are float32 [V, n, 3, S, S], ready for an encoder; else a
    pair that `finish` makes so: crops uint8 [V, n, S, S, 3] and their parameters [V, n, 8], 9 with blur. A single view
    is [n, ...].
    """

    def __init__(self, data: ImageData, augmentation: Augmentation, seed: int, finished: bool):
        self.data, self.augmentation, self.seed, self.finished = data, augmentation, seed, finished

    def __len__(self) -> int:
        return len(self.data)

    @property
    def bad(self) -> Tensor | None:
        """As of `data`: which images turned out damaged."""
        return self.data.bad

    def __getitems__(self, keys: list[tuple[int, int]]):
        a = self.augmentation
        uniform = _drawn(self.seed, keys, a)
        shape = (3, a.size, a.size) if self.finished else (a.size, a.size, 3)
        crops = torch.empty(a.views, len(keys), *shape, dtype=torch.uint8)
        planes = crops if self.finished else crops.permute(0, 1, 4, 2, 3)
        cut = self._cut_small if is_small(self.data.images, a.size) else self._cut
        labels = self.data.labels[cut([index for _, index in keys], uniform, planes)]
        images = crops, a.look(uniform.swapaxes(0, 1))
        return self.finish(*images) if self.finished else images, labels

    def _cut(self, indices, uniform, planes) -> list[int]:
        """Random crops of images into planes [V, n, 3, S, S]; which images they are of."""
        places, found = zip(*(view.split(1) for view in planes), strict=True), []  # of an image's crops
        for index, numbers, outs in zip(indices, uniform, places, strict=True):
            index, pixels = self.data.readable(index, self.data.pixels)
            for of_view, out in zip(numbers, outs, strict=True):
                crop(pixels, self.augmentation.box(of_view, *pixels.shape[:2]), out)
            found.append(index)
        return found

    def _cut_small(self, indices, uniform, planes) -> list[int]:
        """As `_cut`, of small images in memory: all of them at once."""
        images, views = self.data.images[indices], uniform.swapaxes(0, 1)
        size = images.shape[1:3]
        boxes = [[self.augmentation.box(of_view, *size) for of_view in view] for view in views]
        crop_small(images, torch.tensor(boxes), planes)
        return indices

    def finish(self, crops, look, memory_format=torch.contiguous_format, finish=augmentation.finish) -> Tensor:
        """[V, n, 3, S, S] float32 views, or [n, 3, S, S] of a single one, from crops and their parameters.

        finish: as `augmentation.finish`.
        """
        flat = crops.flatten(0, 1) if self.finished else crops.flatten(0, 1).permute(0, 3, 1, 2)
        views = finish(flat, look.flatten(0, 1), self.augmentation.mean, self.augmentation.std, memory_format)
        if self.augmentation.blur:
            views = blur(views, look.flatten(0, 1)[:, -1])
        return views.unflatten(0, crops.shape[:2]) if len(crops) > 1 else views


def _drawn(seed: int, keys: list[tuple[int, int]], a: Augmentation) -> np.ndarray:
    """[n, V, numbers] of images: those of blur come last, so that the others are the same with and without."""
    numbers = keyed_numbers(seed, keys, "views", a.views * (DRAWS + (BLUR_DRAWS if a.blur else 0)))
    parts = np.split(numbers, [a.views * DRAWS], 1)
    return np.concatenate([part.reshape(len(keys), a.views, -1) for part in parts], 2)


def as_it_is(batch):
    """For a DataLoader: Views collates itself."""
    return batch


def keyed_generator(seed: int, epoch: int, purpose: str, sample: int = 0) -> np.random.Generator:
    """Random numbers that depend on these alone: not on workers, processes, or where a run was resumed.

    purpose: "order" of an epoch, "views" of a sample. Philox, a counter-based generator (Salmon et al. 2011), has a
    stream for every key and for every value of the counter's upper words.
    """
    upper = [sample, ("order", "views").index(purpose), 0]
    key, counter = (np.array(words, dtype=np.uint64) for words in ([seed % 2**64, epoch], [0, *upper]))
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def keyed_numbers(seed: int, keys: list[tuple[int, int]], purpose: str, count: int) -> np.ndarray:
    """[n, count] in [0, 1): for each key (epoch, sample) the first numbers of its `keyed_generator`.

    One generator is set to each in turn: to make one takes longer than to draw its numbers.
    """
    generator = keyed_generator(seed, 0, purpose)
    start = generator.bit_generator.state
    words, drawn = start["state"], np.empty((len(keys), count))
    for (epoch, sample), numbers in zip(keys, drawn, strict=True):
        words["key"][1], words["counter"][1] = epoch, sample
        generator.bit_generator.state = start
        generator.random(out=numbers)
    return drawn


# ---- crops of small images -------------------------------------------------------------------------------------------
# The same to the bit as `augmentation.crop` of each. torch resizes bytes by whole numbers: weights of at most 15 bits,
# a rounding after the rows, another after the columns. Each pass is a product of matrices whose sums, in units of the
# weights' last bit, are below 2^24, and so exact in float32, where nothing shrinks to less than a quarter: from there
# on weights have 17 bits. For an image of 32 pixels, a product takes a third of the time of torch's call for each crop.


def resize_weights(length: int, size: int) -> np.ndarray:
    """[size, length] how torch makes `size` pixels of `length`: bilinear, antialiased, as fractions of 15 bits."""
    scale = length / size
    reach = max(scale, 1.0)
    center = scale * (np.arange(size)[:, None] + 0.5)
    place = np.arange(length)
    first = np.maximum((center - reach + 0.5).astype(int), 0)
    last = np.minimum((center + reach + 0.5).astype(int), length)
    weight = np.maximum(0, 1 - np.abs((place - center + 0.5) / reach)) * (first <= place) * (place < last)
    weight /= weight.sum(1, keepdims=True)
    bits = next(b for b in range(22) if int(0.5 + weight.max() * 2 ** (b + 1)) >= 2**15)  # the largest fits 16 bits
    return np.floor(weight * 2**bits + 0.5) / 2**bits


@functools.lru_cache(8)
def weight_table(side: int, size: int) -> Tensor:
    """[(side + 1) side, size, side]: the weights of a crop's length and its first pixel, among all `side` pixels."""
    made = torch.zeros(side + 1, side, size, side)
    for length in range(1, side + 1):
        of_length = torch.from_numpy(resize_weights(length, size)).float()
        for first in range(side - length + 1):
            made[length, first, :, first : first + length] = of_length
    return made.flatten(0, 1)


def is_small(images, size: int) -> bool:
    """Whether `crop_small` is for these images, an array or files, and views of this size."""
    return isinstance(images, np.ndarray) and max(*images.shape[1:3], size) <= SMALL_SIDE and size >= SMALL_SIDE // 4


@torch.autocast("cpu", enabled=False)  # its sums would not be exact
def crop_small(images: np.ndarray, boxes: Tensor, out: Tensor) -> None:
    """Resize boxes [V, n, 4] (top, left, height, width) of images [n, H, W] or [n, H, W, 3] to `out` [V, n, 3, S, S],
    of either layout; uint8.
    """
    (height, width), size = images.shape[1:3], out.shape[-1]
    images = torch.from_numpy(images if images.ndim == 4 else images[..., None].repeat(3, 3))
    for first in range(0, len(images), SMALL_BLOCK):
        block = slice(first, first + SMALL_BLOCK)
        x = images[block].transpose(2, 3).float().flatten(1, 2)  # [n, H 3, W]
        for (top, left, high, wide), views in zip(boxes[:, block].mT, out[:, block], strict=True):
            across = weight_table(width, size)[wide * width + left]
            down = weight_table(height, size)[high * height + top]
            rows = torch.bmm(x, across.mT).add_(0.5).floor_().view(len(x), height, -1)
            made = torch.bmm(down, rows).add_(0.5)
            made = made.to(torch.uint8)  # their fraction is cut off
            views.copy_(made.unflatten(2, (3, size)).transpose(1, 2))

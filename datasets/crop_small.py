"""Crops of many small images at once, the same to the bit as `augmentation.crop` of each.

torch resizes bytes by whole numbers: weights of at most 15 bits, a rounding after the rows, another after the columns.
Each pass is a product of matrices whose sums, in units of the weights' last bit, are below 2^24, and so exact in
float32, where nothing shrinks to less than a quarter: from there on weights have 17 bits. Of an image of 32 pixels,
these products take a third of the time of a call of torch's for each crop.
"""

import functools

import numpy as np
import torch
from torch import Tensor

SIDE = 32  # of images and views at most: tables of weights grow with its fourth power, to 4 MiB here
BLOCK = 64  # images at a time, for a CPU's caches


def weights(length: int, size: int) -> np.ndarray:
    """[size, length] how torch makes `size` pixels of `length`: bilinear, antialiased, as fractions of 15 bits."""
    scale = length / size
    reach = max(scale, 1.0)
    centre = scale * (np.arange(size)[:, None] + 0.5)
    place = np.arange(length)
    first = np.maximum((centre - reach + 0.5).astype(int), 0)
    last = np.minimum((centre + reach + 0.5).astype(int), length)
    weight = np.maximum(0, 1 - np.abs((place - centre + 0.5) / reach)) * (first <= place) * (place < last)
    weight /= weight.sum(1, keepdims=True)
    bits = next(b for b in range(22) if int(0.5 + weight.max() * 2 ** (b + 1)) >= 2**15)  # the largest fits 16 bits
    return np.floor(weight * 2**bits + 0.5) / 2**bits


@functools.lru_cache(8)
def table(side: int, size: int) -> Tensor:
    """[(side + 1) side, size, side]: the weights of a crop's length and its first pixel, among all `side` pixels."""
    made = torch.zeros(side + 1, side, size, side)
    for length in range(1, side + 1):
        of_length = torch.from_numpy(weights(length, size)).float()
        for first in range(side - length + 1):
            made[length, first, :, first : first + length] = of_length
    return made.flatten(0, 1)


def fits(images, size: int) -> bool:
    """Whether `crop` is for these images, an array or files, and views of this size."""
    return isinstance(images, np.ndarray) and max(*images.shape[1:3], size) <= SIDE and size >= SIDE // 4


@torch.autocast("cpu", enabled=False)  # its sums would not be exact
def crop(images: np.ndarray, boxes: Tensor, out: Tensor) -> None:
    """Resize boxes [V, n, 4] (top, left, height, width) of images [n, H, W] or [n, H, W, 3] to `out` [V, n, 3, S, S],
    of either layout; uint8.
    """
    (height, width), size = images.shape[1:3], out.shape[-1]
    images = torch.from_numpy(images if images.ndim == 4 else images[..., None].repeat(3, 3))
    for first in range(0, len(images), BLOCK):
        block = slice(first, first + BLOCK)
        x = images[block].transpose(2, 3).float().flatten(1, 2)  # [n, H 3, W]
        for (top, left, high, wide), views in zip(boxes[:, block].mT, out[:, block], strict=True):
            across, down = table(width, size)[wide * width + left], table(height, size)[high * height + top]
            rows = torch.bmm(x, across.mT).add_(0.5).floor_().view(len(x), height, -1)
            made = torch.bmm(down, rows).add_(0.5)
            made = made.to(torch.uint8)  # their fraction is cut off
            views.copy_(made.unflatten(2, (3, size)).transpose(1, 2))

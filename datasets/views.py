"""Training images as augmented views, a whole batch at a time."""

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets import ImageData, augmentation, crop_small
from datasets.augmentation import BLUR_DRAWS, DRAWS, Augmentation, blur, crop
from util import keyed_numbers


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
    def bad(self) -> torch.Tensor | None:
        """As of `data`: which images turned out damaged."""
        return self.data.bad

    def __getitems__(self, keys: list[tuple[int, int]]):
        a = self.augmentation
        uniform = _drawn(self.seed, keys, a)
        shape = (3, a.size, a.size) if self.finished else (a.size, a.size, 3)
        crops = torch.empty(a.views, len(keys), *shape, dtype=torch.uint8)
        planes = crops if self.finished else crops.permute(0, 1, 4, 2, 3)
        cut = self._cut_small if crop_small.fits(self.data.images, a.size) else self._cut
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
        crop_small.crop(images, torch.tensor(boxes), planes)
        return indices

    def finish(self, crops, look, memory_format=torch.contiguous_format, finish=augmentation.finish) -> torch.Tensor:
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

"""Data sets by name: `build(...)` is the one way in; `sources.SOURCES` is the registry."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from datasets import sources
from util import InputError

NAMES = tuple(sources.SOURCES)


@dataclass
class ImageData(Dataset):
    """Images with class labels; item i is (transform(PIL image in RGB), label).

    images: paths, or uint8 arrays [H, W] or [H, W, 3]; labels: [n] long; classes: the name of each label.
    """

    images: list | np.ndarray
    labels: torch.Tensor
    classes: list[str]
    transform: object = None

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        """The image as RGB."""
        item = self.images[index]
        if isinstance(item, np.ndarray):
            return Image.fromarray(item).convert("RGB")
        with Image.open(item) as file:
            return file.convert("RGB")

    def __getitem__(self, index: int):
        image = self.image(index)
        return self.transform(image) if self.transform else image, int(self.labels[index])


def build(name: str, folder: str | Path = "./data", split: str = "train", hold_out: tuple[str, ...] = ()) -> ImageData:
    """A data set of the registry.

    name: one of NAMES; folder: where its files lie; split: "train" or "test" (the validation set);
    hold_out: names of classes to leave out. Raises InputError where a file, folder or class is missing.
    """
    if name not in sources.SOURCES:
        raise InputError(f"--dataset {name} is unknown; choose one of {', '.join(NAMES)}")
    images, labels, classes = sources.SOURCES[name].read(Path(folder), split)
    labels = np.asarray(labels)
    unknown = [c for c in hold_out if c not in classes]
    if unknown:
        raise InputError(f"--hold_out {unknown[0]}: {name} has no such class; it has {', '.join(classes[:10])}")
    if hold_out:
        kept = [i for i, c in enumerate(classes) if c not in hold_out]
        chosen = np.flatnonzero(np.isin(labels, kept))
        images = images[chosen] if isinstance(images, np.ndarray) else [images[i] for i in chosen]
        labels = np.searchsorted(kept, labels[chosen])
        classes = [classes[i] for i in kept]
    return ImageData(images, torch.as_tensor(labels, dtype=torch.long), classes)


def spec(name: str) -> sources.Source:
    """What is known of a data set: image size, mean, std, superclasses, whether its images are small."""
    return sources.SOURCES[name]


def mean_and_std(data: ImageData, most: int = 2000) -> tuple[list[float], list[float]]:
    """Per-channel mean and standard deviation in [0, 1] of at most `most` images, spread evenly over the set."""
    chosen = np.linspace(0, len(data) - 1, min(most, len(data))).astype(int)
    moments = np.zeros((2, 3))
    for i in chosen:
        x = np.asarray(data.image(i), dtype=np.float64) / 255
        moments += (x.mean((0, 1)), (x**2).mean((0, 1)))
    mean, square = moments / len(chosen)
    return mean.tolist(), np.sqrt(np.maximum(square - mean**2, 1e-6)).tolist()

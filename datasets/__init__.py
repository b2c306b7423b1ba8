"""Data sets by name: `build(...)` is the one way in; `sources.SOURCES` is the registry."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from datasets import sources
from datasets.decoding import read_rgb
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
        return read_rgb(item)

    def __getitem__(self, index: int):
        image = self.image(index)
        return self.transform(image) if self.transform else image, int(self.labels[index])


def build(
    name: str,
    folder: str | Path = "./data",
    split: str = "train",
    hold_out: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
) -> ImageData:
    """A data set of the registry.

    name: one of NAMES; folder: where its files lie; split: "train" or "test" (the validation set);
    hold_out: names of classes to leave out; only: names of the classes to keep, if any.
    Raises InputError where a file, folder or class is missing.
    """
    if name not in sources.SOURCES:
        raise InputError(f"--dataset {name} is unknown; choose one of {', '.join(NAMES)}")
    data = _read(sources.SOURCES[name].read, folder, split, "--data_folder")
    _check_known(hold_out, data.classes, "--hold_out", name)
    _check_known(only, data.classes, "--imagenet100: class", f"--data_folder {folder}")
    kept = [c for c in data.classes if c not in hold_out and (not only or c in only)]
    if not kept:
        raise InputError(f"--hold_out: leaves no class of {name}")
    return _keep(data, kept)


def build_pair(name, folder="./data", hold_out=(), only=()) -> tuple[ImageData, ImageData]:
    """Training and validation set with the same numbers for the same classes; validation may lack some of them."""
    train, test = build(name, folder, "train", hold_out, only), build(name, folder, "test")
    known = (*train.classes, *hold_out)
    lacking = [c for c in test.classes if c not in known and (not only or c in only)]
    if lacking:
        raise InputError(f"--data_folder {folder}: class {lacking[0]} is in validation, but training lacks it")
    test = _keep(test, [c for c in test.classes if c in train.classes])
    number = torch.tensor([train.classes.index(c) for c in test.classes], dtype=torch.long)
    return train, ImageData(test.images, number[test.labels], train.classes)


def build_outliers(name, folder="./data", split: str = "test", classes: tuple[str, ...] = ()) -> ImageData:
    """Images that are no inliers: split "test", "train" or "all"; of these classes only, where some are named.

    A folder with val/ gives that for "test"; one without, as AwA2's JPEGImages, is taken whole.
    """
    source, flag = sources.SOURCES[name], "--data_folder_outliers"
    if source.read_outliers:
        data = _read(source.read_outliers, folder, split, flag)
    elif split == "all":
        data = _joined(*(_read(source.read, folder, part, flag) for part in ("train", "test")))
    else:
        data = _read(source.read, folder, split, flag)
    _check_known(classes, data.classes, "--outlier_classes", name)
    return _keep(data, list(classes)) if classes else data


def _read(read, folder, split, flag) -> ImageData:
    try:
        images, labels, classes = read(Path(folder), split)
    except InputError as error:
        raise InputError(f"{flag} {error}") from None
    return ImageData(images, torch.as_tensor(np.asarray(labels), dtype=torch.long), list(classes))


def _check_known(names, classes, flag, source) -> None:
    unknown = [c for c in names if c not in classes]
    if unknown:
        raise InputError(f"{flag} {unknown[0]}: {source} has no such class; it has {', '.join(classes[:10])}")


def _keep(data: ImageData, classes: list[str]) -> ImageData:
    """The images of these classes, numbered anew."""
    if classes == data.classes:
        return data
    number = torch.full((len(data.classes),), -1)
    number[[data.classes.index(c) for c in classes]] = torch.arange(len(classes))
    labels = number[data.labels]
    chosen = (labels >= 0).nonzero()[:, 0].tolist()
    array = isinstance(data.images, np.ndarray)
    images = data.images[chosen] if array else [data.images[i] for i in chosen]
    return ImageData(images, labels[chosen], classes)


def _joined(a: ImageData, b: ImageData) -> ImageData:
    classes = sorted({*a.classes, *b.classes})
    labels = [torch.tensor([classes.index(c) for c in x.classes])[x.labels] for x in (a, b)]
    array = isinstance(a.images, np.ndarray)
    return ImageData(np.concatenate([a.images, b.images]) if array else a.images + b.images, torch.cat(labels), classes)


def spec(name: str) -> sources.Source:
    """What is known of a data set: image size, mean, std, superclasses, whether its images are small."""
    return sources.SOURCES[name]


def class_list(name: str) -> tuple[str, ...]:
    """The wnids of a list in this folder, sorted: ImageNet-100, imagenet_outliers_split1, tiny_imagenet_inliers, ..."""
    return tuple((Path(__file__).parent / f"{name}.txt").read_text().split())


def mean_and_std(data: ImageData, most: int = 2000) -> tuple[list[float], list[float]]:
    """Per-channel mean and standard deviation in [0, 1] of at most `most` images, spread evenly over the set."""
    chosen = np.linspace(0, len(data) - 1, min(most, len(data))).astype(int)
    moments = np.zeros((2, 3))
    for i in chosen:
        x = np.asarray(data.image(i), dtype=np.float64) / 255
        moments += (x.mean((0, 1)), (x**2).mean((0, 1)))
    mean, square = moments / len(chosen)
    return mean.tolist(), np.sqrt(np.maximum(square - mean**2, 1e-6)).tolist()

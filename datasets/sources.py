"""Where images come from: one reader a data set, (folder, split) -> images, labels, class names."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torchvision
from torchvision.datasets.folder import IMG_EXTENSIONS

from util import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Source:
    """A data set: its reader and what its images are like. mean None = to be given or estimated."""

    read: Callable
    size: int = 224
    small: bool = False  # small images get the 3x3 stem, and are not resized for evaluation
    mean: tuple | None = IMAGENET_MEAN
    std: tuple | None = IMAGENET_STD
    crop_scale: tuple = (0.2, 1.0)
    flip: bool = True  # False where a mirrored image is another thing
    colour: bool = True  # False for grey images
    superclasses: str | None = None  # file in datasets/superclasses


def digits(folder: Path, split: str):
    """scikit-learn's 1,797 handwritten digits, 8 x 8, 17 grey levels; every fifth of a class is a test image."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.rint(data.images * 255 / 16).astype(np.uint8)
    order = np.zeros(len(data.target), int)
    for c in range(10):
        order[data.target == c] = np.arange((data.target == c).sum())
    chosen = (order % 5 == 4) == (split == "test")
    return images[chosen], data.target[chosen], [str(c) for c in range(10)]


def fashion_mnist(folder: Path, split: str):
    """Fashion-MNIST's four IDX files, gzipped or not, in `folder` or where torchvision puts them."""
    part = "train" if split == "train" else "t10k"
    images = _idx(_find(folder, f"{part}-images-idx3-ubyte"))
    labels = _idx(_find(folder, f"{part}-labels-idx1-ubyte"))
    return images, labels.astype(np.int64), list(torchvision.datasets.FashionMNIST.classes)


def _find(folder: Path, name: str) -> Path:
    places = [folder / sub / (name + end) for sub in ("", "FashionMNIST/raw") for end in ("", ".gz")]
    for place in places:
        if place.is_file():
            return place
    raise InputError(f"--data_folder {folder}: {name}[.gz] is neither there nor in FashionMNIST/raw")


def _idx(path: Path) -> np.ndarray:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def _cifar(kind):
    class Readable(kind):
        # torchvision compares MD5 sums; files in the same format, subsets for example, are welcome here
        train_list = tuple((name, None) for name, _ in kind.train_list)
        test_list = tuple((name, None) for name, _ in kind.test_list)
        meta = {**kind.meta, "md5": None}  # noqa: RUF012

    def read(folder: Path, split: str):
        try:
            data = Readable(folder, train=split == "train")
        except RuntimeError:
            try:
                data = kind(folder, train=split == "train", download=True)
            except Exception as error:  # no network, a full disk, a damaged archive: each its own exception
                reason = str(error).split("\n")[0]
                raise InputError(
                    f"--data_folder {folder}: holds no {kind.base_folder}, and the download failed ({reason})"
                ) from None
        except Exception as error:  # a damaged pickle
            raise InputError(f"--data_folder {folder}: {kind.base_folder} is damaged ({error})") from None
        return data.data, data.targets, list(data.classes)

    read.__doc__ = f"{kind.__name__} in its own format ({kind.base_folder}); downloaded where it is missing."
    return read


def split_folder(folder: Path, split: str) -> Path:
    """The folder of a split: X/train and X/val; or X/train with its sibling X/val; or X itself for training."""
    if not folder.is_dir():
        raise InputError(f"--data_folder {folder}: no such folder")
    names = ("train",) if split == "train" else ("val", "test")
    for parent in (folder, folder.parent) if folder.name in ("train", "val") else (folder,):
        for name in names:
            if (parent / name).is_dir():
                return parent / name
    if split == "train":
        return folder
    raise InputError(f"--data_folder {folder}: neither it nor its parent holds a folder val; evaluation needs one")


def image_folder(folder: Path, split: str):
    """A folder of class folders, with or without train/ and val/; classes in sorted order, images at any depth."""
    folder = split_folder(folder, split)
    classes = sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not classes:
        raise InputError(f"--data_folder {folder}: empty; it must hold one folder a class")
    images, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(f for f in (folder / name).rglob("*") if f.suffix.lower() in IMG_EXTENSIONS)
        if not found:
            raise InputError(f"--data_folder {folder}: the class folder {name} holds no image")
        images += [str(f) for f in found]
        labels += [label] * len(found)
    return images, labels, classes


SOURCES = {
    "digits": Source(
        digits,
        size=8,
        small=True,
        mean=(0.3053,) * 3,
        std=(0.3760,) * 3,
        crop_scale=(0.5, 1.0),
        flip=False,
        colour=False,
        superclasses="digits",
    ),
    "fashion_mnist": Source(
        fashion_mnist,
        size=28,
        small=True,
        mean=(0.2860,) * 3,
        std=(0.3530,) * 3,
        colour=False,
        superclasses="fashion_mnist",
    ),
    "cifar10": Source(
        _cifar(torchvision.datasets.CIFAR10),
        size=32,
        small=True,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
    ),
    "cifar100": Source(
        _cifar(torchvision.datasets.CIFAR100),
        size=32,
        small=True,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        superclasses="cifar100",
    ),
    "imagenet": Source(image_folder),
    "imagenet_100": Source(image_folder),
    "path": Source(image_folder, mean=None, std=None),
}

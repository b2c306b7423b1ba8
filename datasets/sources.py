"""Where images come from: one reader a data set, (folder, split) -> images, labels, class names.

A reader of folders adds what it left out.
"""

import contextlib
import gzip
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets import lists, packed, text_files
from datasets.folders import SPLITS, LeftOut, existing_folder, holds_classes, images_below, subfolders
from util import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


DEFAULT = Path("data")  # of --data_folder: nobody need have given it


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
    read_outliers: Callable | None = None  # likewise for outliers, which need no classes; None = `read`


def digits(folder: Path, split: str):
    """scikit-learn's 1,797 handwritten digits, 8 x 8, 17 grey levels; every fifth of a class is a test image.

    They lie in no folder: InputError where class folders or an image list were given, since --dataset path must have
    been meant.
    """
    if folder != DEFAULT and (lists.is_list(folder) or holds_classes(folder)):
        hint = "give --dataset path, or for outliers --dataset_outliers path"
        what = "is an image list" if lists.is_list(folder) else "holds folders of images"
        raise InputError(f"{folder}: {what}, and the data set digits reads none: {hint}")
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
    from torchvision.datasets import FashionMNIST

    part = "train" if split == "train" else "t10k"
    images = _idx(_find(folder, f"{part}-images-idx3-ubyte"))
    labels = _idx(_find(folder, f"{part}-labels-idx1-ubyte"))
    return images, labels.astype(np.int64), list(FashionMNIST.classes)


def _find(folder: Path, name: str) -> Path:
    places = [folder / sub / (name + end) for sub in ("", "FashionMNIST/raw") for end in ("", ".gz")]
    for place in places:
        if place.is_file():
            return place
    existing_folder(folder, str(folder))
    raise InputError(f"{folder}: {name}[.gz] is neither there nor in FashionMNIST/raw")


def _idx(path: Path) -> np.ndarray:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def _cifar(name: str):
    def read(folder: Path, split: str):
        from torchvision import datasets

        kind = getattr(datasets, name)
        if folder.exists():
            existing_folder(folder, str(folder))

        class Readable(kind):
            # torchvision compares MD5 sums; files in the same format, subsets for example, are welcome here, and one
            # split without the other
            train_list = tuple((file, None) for file, _ in kind.train_list if split == "train")
            test_list = tuple((file, None) for file, _ in kind.test_list if split != "train")
            meta = {**kind.meta, "md5": None}  # noqa: RUF012

        try:
            data = Readable(folder, train=split == "train")
        except RuntimeError:
            existed = folder.exists()
            try:
                data = kind(folder, train=split == "train", download=True)
            except Exception as error:  # no network, a full disk, a damaged archive: each its own exception
                if not existed:
                    with contextlib.suppress(OSError):
                        folder.rmdir()  # torchvision made it
                reason = str(error).split("\n")[0]
                raise InputError(f"{folder}: holds no {kind.base_folder}, and the download failed ({reason})") from None
        except Exception as error:  # a damaged pickle
            raise InputError(f"{folder}: {kind.base_folder} is damaged ({error})") from None
        return data.data, data.targets, list(data.classes)

    read.__doc__ = f"{name} in its own format; downloaded where it is missing."
    return read


def split_folder(folder: Path, split: str) -> Path:
    """The folder of a split: X/train and X/val; or X/train with its sibling X/val; or X itself for training.

    X/images may stand for X: the documented evaluation commands say so. A pack X/train.pack, X/val.pack is as good.
    """
    if folder.name in ("", "..") and split == "test":  # ".", say, from inside X/train
        folder = Path(os.path.abspath(folder))
    if folder.name == "images" and not folder.exists() and any(_parts(folder.parent, "train")):
        folder = folder.parent
    for parent in (folder, folder.parent) if folder.name in ("train", "val") else (folder,):
        if found := next(_parts(parent, split), None):
            return found
    existing_folder(folder, str(folder))
    if split == "train":
        return folder
    raise InputError(f"{folder}: neither it nor its parent holds a folder val; evaluation needs one")


def _parts(folder: Path, split: str) -> Iterator[Path]:
    """The folders of a split in a folder, and the packs that stand for one."""
    for name in SPLITS[split]:
        if (folder / name).is_dir():
            yield folder / name
        elif (folder / f"{name}.pack").is_file():
            yield folder / f"{name}.pack"


def image_folder(folder: Path, split: str):
    """A folder of class folders, with or without train/ and val/; classes in sorted order, images at any depth. Or an
    image list.

    Beside images, labels and classes: what was left out.
    """
    if lists.is_list(folder):
        return lists.read_list(folder, split)
    folder = split_folder(folder, split)
    if folder.suffix == ".pack":
        return packed.read_pack(folder)
    left_out = LeftOut()
    classes = subfolders(folder, left_out)
    if not classes:
        if list(folder.glob("*.pack.unfinished")):
            raise InputError(f"{folder}: holds a pack that is not finished; give the command that packs again")
        raise InputError(_with(left_out, f"{folder}: empty; it must hold one folder a class"))
    images, labels = [], []
    for label, name in enumerate(classes):
        found = images_below(folder / name, left_out)
        if not found:
            raise InputError(_with(left_out, f"{folder}: the class folder {name} holds no image"))
        images += [str(f) for f in found]
        labels += [label] * len(found)
    return images, labels, classes, left_out


def _with(left_out: LeftOut, text: str) -> str:
    return "; ".join(filter(None, (text, left_out.text())))


def any_images(folder: Path, split: str):
    """The images of a folder's train/ or val/ where it has one, else (and for "all") of the whole folder, at any depth.
    Or those of an image list.

    An image's class is, as in training, the folder in this folder, or in its train/ or val/, that it lies below; of
    those in the folder itself, the folder. Beside images, labels and classes: what was left out.
    """
    if lists.is_list(folder):
        return lists.read_list(folder, split, outliers=True)
    existing_folder(folder, str(folder))
    there = list(_parts(folder, split))
    packs = [part for part in there if part.suffix == ".pack"]
    if packs and split == "all":
        raise InputError(f"{folder}: {packs[0].name} is a pack, of one split; give --outlier_split train or test")
    if packs:
        return packed.read_pack(packs[0])
    whole = split == "all" or not there
    folder = folder if whole else there[0]
    left_out = LeftOut()
    found = images_below(folder, left_out)
    if not found:
        raise InputError(_with(left_out, f"{folder}: holds no image, at any depth"))
    of_image = []
    for image in found:
        above = image.relative_to(folder).parts[:-1]
        above = above[1:] if whole and len(above) > 1 and above[0] in SPLITS["all"] else above
        of_image.append(above[0] if above else folder.absolute().name)
    return [str(f) for f in found], *lists.number_labels(of_image), left_out


def tiny_imagenet(folder: Path, split: str):
    """Tiny-ImageNet as downloaded, or with its validation images sorted into class folders; below `folder` or in it."""
    places = [folder / sub for sub in ("", "tiny-imagenet-200", "tiny_imagenet") if (folder / sub / "val").is_dir()]
    if not places:
        existing_folder(folder, str(folder))
        raise InputError(f"{folder}: neither it nor tiny-imagenet-200 in it holds the folders train and val")
    annotations = places[0] / "val" / "val_annotations.txt"
    if split == "train" or not annotations.is_file():
        return image_folder(places[0], split)
    rows = [row[:2] for _, row in text_files.read_rows(annotations, str(annotations))]
    if any(len(row) < 2 for row in rows):
        raise InputError(f"{annotations}: must be lines of an image, its class and more, with tabs between")
    images = [annotations.parent / "images" / name for name, _ in rows]
    missing = next((f for f in images if not f.is_file()), None)
    if missing:
        raise InputError(f"{annotations}: names {missing.name}, which is not in {missing.parent}")
    return [str(f) for f in images], *lists.number_labels([wnid for _, wnid in rows])


GREY = dict(small=True, colour=False)

SOURCES = {
    "digits": Source(
        digits,
        8,
        **GREY,
        mean=(0.3053,) * 3,
        std=(0.376,) * 3,
        crop_scale=(0.5, 1.0),
        flip=False,
        superclasses="digits",
    ),
    "fashion_mnist": Source(
        fashion_mnist, 28, **GREY, mean=(0.2860,) * 3, std=(0.353,) * 3, superclasses="fashion_mnist"
    ),
    "cifar10": Source(_cifar("CIFAR10"), 32, small=True, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    "cifar100": Source(
        _cifar("CIFAR100"),
        size=32,
        small=True,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        superclasses="cifar100",
    ),
    "tiny_imagenet": Source(tiny_imagenet, 64, small=True),
    "imagenet": Source(image_folder, read_outliers=any_images),
    "imagenet_100": Source(image_folder, read_outliers=any_images),
    "AwA2": Source(image_folder, read_outliers=any_images),
    "path": Source(image_folder, mean=None, std=None, read_outliers=any_images),
}

"""Where images come from: one reader per data set, (folder, split) -> images, labels, class names.

A reader of folders adds what it left out.
"""

import contextlib
import gzip
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import numpy as np

import util
from datasets import lists, packed, shards, text_files
from datasets.features import read_features
from datasets.folders import SPLITS, LeftOut, check_folder, find_images_below, holds_classes, list_subfolders
from util import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEFAULT = Path("data")  # of --data_folder: nobody need have given it


@dataclass(frozen=True)
class ViewSettings:
    """Side of a view in pixels, mean and std of its normalization; None: not known. Of features, size is the number of
    dimensions, and normalize how rows are scaled (feature_views.NORMALIZATIONS), by mean and std where that needs them.
    """

    size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    normalize: str | None = None

    def fill_from(self, other: "ViewSettings") -> "ViewSettings":
        """Return these settings, and what is None here from the other."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return ViewSettings(*(theirs if ours is None else ours for ours, theirs in pairs))

    def to_dict(self) -> dict:
        """For checkpoints, records and cards; all is known."""
        if self.normalize is None:
            return {"size": self.size, "mean": list(self.mean), "std": list(self.std)}
        scale = {"mean": list(self.mean), "std": list(self.std)} if self.mean is not None else {}
        return {"size": self.size, **scale, "normalize": self.normalize}


UNKNOWN = ViewSettings()


@dataclass(frozen=True)
class Source:
    """A data set: its reader and what its images are like. mean None = to be given or estimated."""

    read: Callable
    size: int | None = 224
    small: bool = False  # small images get the 3x3 stem, and are not resized for evaluation
    mean: tuple | None = IMAGENET_MEAN
    std: tuple | None = IMAGENET_STD
    crop_scale: tuple = (0.2, 1.0)
    flip: bool = True  # False where a mirrored image is another thing
    color: bool = True  # False for gray images
    superclasses: str | None = None  # file in datasets/rankings/superclasses
    read_outliers: Callable | None = None  # the same for outliers, which need no classes; None = `read`
    vectors: bool = False  # rows of features, and no images

    @property
    def views(self) -> ViewSettings:
        return ViewSettings(self.size, self.mean, self.std)


def read_digits(folder: Path, split: str):
    """scikit-learn's 1,797 handwritten digits, 8 x 8, 17 gray levels; every fifth of a class is a test image.

    They lie in no folder: InputError where class folders or an image list were given, since --dataset path must have
    been meant.
    """
    if folder != DEFAULT and (lists.is_list(folder) or holds_classes(folder) or shards.find(folder)):
        hint = "give --dataset path, or for OOD images --dataset_outliers path"
        what = "is an image list" if lists.is_list(folder) else "holds images"
        raise InputError(f"{folder}: {what}, and the data set digits reads none: {hint}")
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.rint(data.images * 255 / 16).astype(np.uint8)
    order = np.zeros(len(data.target), int)
    for c in range(10):
        order[data.target == c] = np.arange((data.target == c).sum())
    chosen = (order % 5 == 4) == (split == "test")
    return images[chosen], data.target[chosen], [str(c) for c in range(10)]


def read_fashion_mnist(folder: Path, split: str):
    """Fashion-MNIST's four IDX files, gzipped or not, in `folder` or where torchvision puts them."""
    from torchvision.datasets import FashionMNIST

    part = "train" if split == "train" else "t10k"
    images, labels = (_read_idx(_find_idx(folder, f"{part}-{what}-ubyte")) for what in ("images-idx3", "labels-idx1"))
    return images, labels.astype(np.int64), list(FashionMNIST.classes)


def _find_idx(folder: Path, name: str) -> Path:
    places = [folder / sub / (name + end) for sub in ("", "FashionMNIST/raw") for end in ("", ".gz")]
    for place in places:
        if place.is_file():
            return place
    check_folder(folder)
    raise InputError(f"{folder}: has no {name}[.gz], nor has its folder FashionMNIST/raw")


def _read_idx(path: Path) -> np.ndarray:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def _read_cifar(name: str, folder: Path, split: str):
    """CIFAR10 or CIFAR100 in its own format; downloaded where it is missing."""
    from torchvision import datasets

    kind, train = getattr(datasets, name), split == "train"
    if folder.exists():
        check_folder(folder)

    class Readable(kind):
        # torchvision compares MD5 sums; files in the same format, subsets for example, are welcome here, and one
        # split without the other
        train_list = tuple((file, None) for file, _ in kind.train_list if train)
        test_list = tuple((file, None) for file, _ in kind.test_list if not train)
        meta = {**kind.meta, "md5": None}  # noqa: RUF012

    try:
        data = Readable(folder, train)
    except RuntimeError:
        existed = folder.exists()
        try:
            data = kind(folder, train, download=True)
        except Exception as error:  # no network, a full disk, a damaged archive: each its own exception
            if not existed:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # torchvision made it
            failed = f"the download failed ({util.reason(error)})"
            raise InputError(f"{folder}: holds no {kind.base_folder}, and {failed}") from None
    except Exception as error:  # a damaged pickle
        raise InputError(f"{folder}: {kind.base_folder} is corrupt ({error}); remove it to download it again") from None
    return data.data, data.targets, list(data.classes)


def find_split_folder(folder: Path, split: str) -> Path:
    """Find the folder of a split: X/train and X/val; or X/train with its sibling X/val; or X itself for training.

    X/images may stand for X: the documented evaluation commands say so. A pack X/train.pack, X/val.pack is as good.
    """
    if folder.name in ("", "..") and split == "test":  # ".", say, from inside X/train
        folder = Path(os.path.abspath(folder))
    if folder.name == "images" and not folder.exists() and any(_find_parts(folder.parent, "train")):
        folder = folder.parent
    for parent in (folder, folder.parent) if folder.name in ("train", "val") else (folder,):
        if found := next(_find_parts(parent, split), None):
            return found
    check_folder(folder)
    if split == "train":
        return folder
    raise InputError(f"{folder}: has no folder val, nor has its parent; evaluation needs one")


def _find_parts(folder: Path, split: str) -> Iterator[Path]:
    """Yield the folders of a split in a folder, and the packs that stand for one."""
    for name in SPLITS[split]:
        if (folder / name).is_dir():
            yield folder / name
        elif (folder / f"{name}.pack").is_file():
            yield folder / f"{name}.pack"


def read_image_folder(folder: Path, split: str, labels: shards.Labels = shards.USUAL):
    """Read a folder of class folders, with or without train/ and val/; classes in sorted order, images at any depth.

    Or an image list, or what `shards.find` knows, of which `labels` count.
    """
    if lists.is_list(folder):
        return lists.read_list(folder, split)
    if found := shards.find(folder):
        return shards.read(found, split, labels)
    folder = find_split_folder(folder, split)
    if folder.suffix == ".pack":
        return packed.read_pack(folder)
    left_out = LeftOut()
    classes = list_subfolders(folder, left_out)
    if not classes:
        if list(folder.glob("*.pack.unfinished")):
            raise InputError(f"{folder}: the packed data set is incomplete; run the command that packs again")
        raise _build_error(f"{folder}: empty; it must hold one folder a class", left_out)
    images, labels = [], []
    for label, name in enumerate(classes):
        found = find_images_below(folder / name, left_out)
        if not found:
            raise _build_error(f"{folder}: the class folder {name} holds no image", left_out)
        images += [str(f) for f in found]
        labels += [label] * len(found)
    return images, labels, classes, left_out


def _build_error(text: str, left_out: LeftOut) -> InputError:
    return InputError("; ".join(filter(None, (text, left_out.describe()))))


def read_any_images(folder: Path, split: str):
    """Read the images of a folder's train/ or val/ where it has one, else (and for "all") of all of the folder.

    Or those of an image list, or of what `shards.find` knows.

    An image's class is, as in training, the folder in this folder, or in its train/ or val/, that it lies below; of
    those in the folder itself, the folder.
    """
    if lists.is_list(folder):
        return lists.read_list(folder, split, outliers=True)
    if found := shards.find(folder):
        return shards.read(found, split, shards.Labels(optional=True))
    check_folder(folder)
    there = list(_find_parts(folder, split))
    if packs := [part for part in there if part.suffix == ".pack"]:
        if split == "all":
            raise InputError(f"{folder}: {packs[0].name} is a packed split; give --outlier_split train or test")
        return packed.read_pack(packs[0])
    whole = split == "all" or not there
    folder = folder if whole else there[0]
    left_out = LeftOut()
    found = find_images_below(folder, left_out)
    if not found:
        raise _build_error(f"{folder}: holds no image, at any depth", left_out)
    labels = []
    for image in found:
        above = image.relative_to(folder).parts[:-1]
        above = above[1:] if whole and len(above) > 1 and above[0] in SPLITS["all"] else above
        labels.append(above[0] if above else folder.absolute().name)
    return [str(f) for f in found], *lists.number_labels(labels), left_out


def read_tiny_imagenet(folder: Path, split: str):
    """Tiny-ImageNet as downloaded, or with its validation images sorted into class folders; below `folder` or in it."""
    places = [folder / sub for sub in ("", "tiny-imagenet-200", "tiny_imagenet") if (folder / sub / "val").is_dir()]
    if not places:
        check_folder(folder)
        raise InputError(f"{folder}: has no folders train and val, nor has its folder tiny-imagenet-200")
    annotations = places[0] / "val" / "val_annotations.txt"
    if split == "train" or not annotations.is_file():
        return read_image_folder(places[0], split)
    rows = [row[:2] for _, row in text_files.read_rows(annotations, str(annotations))]
    if any(len(row) < 2 for row in rows):
        raise InputError(f"{annotations}: must be lines of an image, its class and more, with tabs between")
    images = [annotations.parent / "images" / name for name, _ in rows]
    missing = next((f for f in images if not f.is_file()), None)
    if missing:
        raise InputError(f"{annotations}: names {missing.name}, which is not in {missing.parent}")
    return [str(f) for f in images], *lists.number_labels([wnid for _, wnid in rows])


GRAY = dict(small=True, color=False)

SOURCES = {
    "digits": Source(
        read_digits, 8, **GRAY, mean=(0.3053,) * 3, std=(0.376,) * 3, crop_scale=(0.5, 1.0), flip=False,
        superclasses="digits",
    ),
    "fashion_mnist": Source(
        read_fashion_mnist, 28, **GRAY, mean=(0.2860,) * 3, std=(0.353,) * 3, superclasses="fashion_mnist"
    ),
    "cifar10": Source(
        partial(_read_cifar, "CIFAR10"), 32, small=True, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)
    ),
    "cifar100": Source(
        partial(_read_cifar, "CIFAR100"), 32, small=True, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761),
        superclasses="cifar100",
    ),
    "tiny_imagenet": Source(read_tiny_imagenet, 64, small=True),
    "imagenet": Source(read_image_folder, read_outliers=read_any_images),
    "imagenet_100": Source(read_image_folder, read_outliers=read_any_images),
    "AwA2": Source(read_image_folder, read_outliers=read_any_images),
    "features": Source(
        read_features, size=None, mean=None, std=None, read_outliers=partial(read_features, whole=True), vectors=True
    ),
    "path": Source(read_image_folder, mean=None, std=None, read_outliers=read_any_images),
}  # fmt: skip

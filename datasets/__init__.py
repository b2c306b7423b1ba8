"""Data sets by name: `build(...)` is the one way in; `sources.SOURCES` is the registry."""

import itertools
import os
import re
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from datasets import feature_views, lists, shards, sources, text_files
from datasets.decoding import WAY_ROUND, read_pixels, read_rgb
from datasets.features import FeatureFiles, FeatureRows
from datasets.folders import LeftOut, find_real_paths
from datasets.lists import Taxonomy
from datasets.members import Member
from datasets.packed import Pack, PackedImage, PackInputError
from datasets.sources import ViewSettings
from util import InputError

NAMES = tuple(sources.SOURCES)


@dataclass(frozen=True)
class Selection:
    """Which images of a data set, and whether their labels are classes.

    exclude: names of classes to leave out; only: names of the classes to keep, if any; skip: file that lists images to
    leave out, one path per line; per_class: how many training images per class, if not all; flag: what names `only`,
    for errors; values: the column of a list or of features that holds a number for each image, "label" for its label:
    labels count the distinct numbers; label_columns, class_names: as of shards.Labels, where there are such columns.
    """

    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    skip: str | Path | None = None
    per_class: int | None = None
    flag: str = "--imagenet100"
    values: str | None = None
    label_columns: tuple[str, ...] = ()
    class_names: str | None = None


ALL = Selection()


@dataclass
class ImageData(Dataset):
    """Images with class labels; item i is (transform(PIL image in RGB), label).

    images: paths, PackedImages, Members, uint8 arrays [H, W] or [H, W, 3], or rows of features; labels: [n] long;
    classes: the name of each label; superclasses: the name of those that ship with it, or its own taxonomy; None: none.
    bad: [n] bool, shared with DataLoader workers: an image that cannot be read is marked in it, and the next readable
    one, with its label, takes its place; None (as built): it is an InputError.
    left_out: what of the folder is no image of the set; groups: the classes are groups without names, or numbers,
    which may lose all their images.
    """

    images: list | np.ndarray | FeatureRows
    labels: torch.Tensor
    classes: list[str]
    transform: object = None
    bad: torch.Tensor | None = None
    left_out: LeftOut = field(default_factory=LeftOut)
    groups: bool = False
    superclasses: str | Taxonomy | None = None

    def tolerate_damage(self) -> None:
        """From now on, let other images take the place of those that cannot be read; not so rows of features."""
        if self.are_features:
            return
        self.bad = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        """Return the image as RGB."""
        item = self.images[index]
        return read_rgb(item) if isinstance(item, str | Member) else Image.fromarray(self.pixels(index).numpy())

    def pixels(self, index: int) -> torch.Tensor:
        """Return the image as [H, W, 3] uint8; not a copy where it lies in memory."""
        item = self.images[index]
        if isinstance(item, np.ndarray):
            return torch.from_numpy(item if item.ndim == 3 else np.repeat(item[..., None], 3, 2))
        return item.pixels() if isinstance(item, PackedImage) else read_pixels(item)

    def __getitem__(self, index: int):
        index, image = self.readable(index, self.image)
        return self.transform(image) if self.transform else image, int(self.labels[index])

    def __getitems__(self, indices: list[int]) -> list[tuple]:
        """Return the items of these indices; where images in memory have the transform's size, all at once."""
        if not self.in_memory or getattr(self.transform, "whole", None) != self.images.shape[1:3]:
            return [self[i] for i in indices]
        pixels = torch.from_numpy(self.images[indices])
        pixels = pixels[:, None].expand(-1, 3, -1, -1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        return list(zip(self.transform(pixels), self.labels[indices].tolist(), strict=True))

    def readable(self, index: int, read):
        """index and read(index); or of the next image that can be read, where damage is tolerated.

        A pack that cannot be read any more is an error all the same.
        """
        for i in itertools.chain(range(index, len(self)), range(index)):
            if self.bad is not None and self.bad[i]:
                continue
            try:
                return i, read(i)
            except PackInputError:
                raise
            except InputError as error:
                if self.bad is None:
                    raise InputError(f"{error}; {WAY_ROUND}") from None
                self.bad[i] = True
                print(f"warning: {error}; another image takes its place", file=sys.stderr, flush=True)
        raise InputError(f"--data_folder: none of the {len(self)} training images can be read")

    @property
    def in_memory(self) -> bool:
        """Whether the images are arrays, or rows of features, and no files."""
        return not isinstance(self.images, list)

    @property
    def are_features(self) -> bool:
        """Whether the items are rows of features, and no images."""
        return isinstance(self.images, FeatureRows)

    @property
    def values(self) -> torch.Tensor:
        """[C] float64: the numbers that the classes' names are."""
        return torch.tensor([float(name) for name in self.classes], dtype=torch.float64)

    def names(self) -> list[str]:
        """Return the real path of each image file; of features, that of the file, a colon and the row; else []."""
        if self.are_features:
            return self.images.names()
        return [] if self.in_memory else find_real_paths(self.images)

    def select(self, indices: list[int]) -> "ImageData":
        """Select these images of the set, with the same classes."""
        images = self.images[indices] if self.in_memory else [self.images[i] for i in indices]
        return replace(self, images=images, labels=self.labels[indices], bad=None)

    def select_classes(self, classes: list[str]) -> "ImageData":
        """Select the images of these classes, numbered in their order."""
        if classes == self.classes:
            return self
        number = torch.full((len(self.classes),), -1)
        number[[self.classes.index(c) for c in classes]] = torch.arange(len(classes))
        data = replace(self, labels=number[self.labels], classes=classes)
        return data.select((data.labels >= 0).nonzero()[:, 0].tolist())

    def reduce_to(self, indices: list[int], option: str, part: str) -> "ImageData":
        """Reduce a part, "training" say, to these images, as `option` asks. InputError where a class loses its last."""
        data = self.select(indices)
        if not indices:
            first = self.images.name(0) if self.are_features else self.images[0]
            raise InputError(f"{option}: leaves no {part} image of {first} and its like")
        before, after = (torch.bincount(x.labels, minlength=len(self.classes)) for x in (self, data))
        lost = ((before > 0) & (after == 0)).nonzero()[:, 0].tolist()
        if lost and not self.groups:
            outlier = part == "outlier"
            hint = "name the others in --outlier_classes" if outlier else "leave it out with --exclude_classes"
            raise InputError(f"{option}: leaves no {part} image of the class {self.classes[lost[0]]}; {hint}")
        return data


def build(name: str, folder: str | Path = "./data", split: str = "train", which: Selection = ALL) -> ImageData:
    """Build a data set of the registry.

    name: one of NAMES; folder: where its files lie; split: "train", or "test" (the validation set), which is whole
    whatever `per_class`. Raises InputError where a file, folder or class is missing.
    """
    if name not in sources.SOURCES:
        raise InputError(f"--dataset {name} is unknown; choose one of {', '.join(NAMES)}")
    part = "training" if split == "train" else "validation"
    if which.values is not None:
        data = _read_values(name, folder, split, which.values, part)
        return leave_out_images(which.skip, {part: data})[0]
    data = _read(_choose_reader(name, folder, which), folder, split, "--data_folder")
    data.superclasses = data.superclasses or sources.SOURCES[name].superclasses
    exclude = _find_classes(which.exclude, data.classes, "--exclude_classes", title(name, folder))
    only = _find_classes(which.only, data.classes, f"{which.flag}: class", title(name, folder))
    kept = [c for c in data.classes if c not in exclude and (not only or c in only)]
    if not kept:
        raise InputError(f"--exclude_classes: leaves no class of {name}")
    (data,) = leave_out_images(which.skip, {part: data.select_classes(kept)})
    return select_per_class(data, which.per_class) if split == "train" else data


def build_pair(name, folder="./data", which: Selection = ALL) -> tuple[ImageData, ImageData]:
    """Training and validation set with the same numbers for the same classes; validation may lack some of them. With
    `which.values` each has its own.
    """
    whole = replace(which, skip=None, per_class=None)
    of_test = replace(whole, exclude=(), only=())
    train, test = build(name, folder, "train", whole), build(name, folder, "test", of_test)
    if train.are_features:
        train.images.check_width(test.images)
    if which.values is None:
        test = _number_as(train, test, which, folder)
    train, test = leave_out_images(which.skip, {"training": train, "validation": test})
    return select_per_class(train, which.per_class), test


def _number_as(train: ImageData, test: ImageData, which: Selection, folder) -> ImageData:
    """Give the validation set the training set's numbers of the classes."""
    known = (*train.classes, *which.exclude)
    test.classes = util.match_spelling(test.classes, known)
    flag = f"{test.images.flag} {test.images.files[0]}" if test.are_features else f"--data_folder {folder}"
    lacking = [c for c in test.classes if c not in known and (not which.only or c in which.only)]
    if lacking:
        raise InputError(f"{flag}: class {lacking[0]} is in validation, but training lacks it")
    test = test.select_classes([c for c in test.classes if c in train.classes])
    if not len(test):
        raise InputError(f"{flag}: no validation image is of the classes that --exclude_classes leaves")
    number = torch.tensor([train.classes.index(c) for c in test.classes], dtype=torch.long)
    return replace(test, labels=number[test.labels], classes=train.classes)


def check_several_classes(data: ImageData, folder) -> None:
    """InputError, naming the folder, where a data set has a single class."""
    if len(data.classes) < 2:
        raise InputError(f"--data_folder {folder}: holds a single class; there is nothing to tell apart")


def build_outliers(name, folder="./data", split: str = "test", classes: tuple[str, ...] = ()) -> ImageData:
    """Images that are no inliers: split "test", "train" or "all"; of these classes only, where some are named.

    A folder with val/ gives that for "test"; one without, as AwA2's JPEGImages, is taken whole.
    """
    source, flag = sources.SOURCES[name], "--data_folder_outliers"
    if split == "all" and not source.read_outliers:
        data = _join(*(_read(source.read, folder, part, flag) for part in ("train", "test")))
    else:
        data = _read(source.read_outliers or source.read, folder, split, flag)
    classes = _find_classes(classes, data.classes, "--outlier_classes", name)
    return data.select_classes(classes) if classes else data


def check_outliers(train: ImageData, test: ImageData, outliers: ImageData, same: bool, folder) -> str:
    """Return a line where some outliers are training images, or where that cannot be known; "" elsewhere.

    same: whether they are of the data set of the other two; folder: theirs. Raises InputError where a class of them is
    one of training, an image is an inlier, or all are training images: equal real paths are one image.
    """
    if outliers.are_features:
        train.images.check_width(outliers.images)
    shared = [c for c in util.match_spelling(outliers.classes, train.classes) if c in train.classes]
    wnids = [c for c in shared if re.fullmatch(r"n\d{8}", c)]  # the same in every folder
    if (same and shared and outliers.in_memory and not outliers.are_features) or wnids:
        hint = "leave it out of one with --exclude_classes"
        raise InputError(f"--outlier_classes: class {shared[0]} is also a class of --dataset; {hint}")
    if (train.in_memory or outliers.in_memory) and not outliers.are_features:
        return ""
    inliers, trained, real = set(test.names()), set(train.names()), outliers.names()
    flag = "--features_outliers" if outliers.are_features else f"--data_folder_outliers {folder}"
    if found := [f for f in real if f in inliers]:
        raise InputError(f"{flag}: {len(found)} of {len(real)} OOD images are validation images, such as {found[0]}")
    if found := [f for f in real if f in trained]:
        line = f"{len(found)} of the {len(real)} OOD images are training images, such as {found[0]}"
        if len(found) == len(real):
            raise InputError(f"{flag}: {line}; leave their classes out with --exclude_classes, or give other images")
        return f"warning: {line}"
    if moved := _find_moved_pack([train, test, outliers]):
        missing = f"{moved.path}: its folder of images {moved.root} is missing"
        return f"{missing}; its images are compared with OOD images by path alone"
    return ""


def _find_moved_pack(parts: list[ImageData]) -> Pack | None:
    """Find a pack of the parts whose images' folder is gone, if any: paths of today are not those that it knows."""
    packs = [x.images[0].pack for x in parts if isinstance(x.images[0], PackedImage)]
    return next((pack for pack in packs if not os.path.isdir(pack.root)), None)


def leave_out_images(skip: str | Path | None, parts: dict[str, ImageData]) -> list[ImageData]:
    """Leave out of the parts the images that the file `skip` lists, by their real paths; images without files stay.

    parts: by what their images are called, as "training". Raises InputError where no line can mean an image of theirs,
    or a class loses its last image.
    """
    files = {name: data for name, data in parts.items() if not data.in_memory or data.are_features}
    if skip is None or not files:
        return [*parts.values()]
    flag = f"--skip_images {skip}"
    listed = text_files.read_paths(Path(skip), flag)
    left_out, kept = set(find_real_paths(listed)), {}
    for name, data in files.items():
        kept[name] = [i for i, real in enumerate(data.names()) if real not in left_out]
    if listed and all(len(kept[name]) == len(data) for name, data in files.items()):
        if moved := _find_moved_pack(list(files.values())):
            know = f"{moved.path}, whose images' folder was {moved.root} and is gone; give their paths of then"
            raise InputError(f"{flag}: no line, such as {listed[0]}, is an image of {know}")
        if not any(map(_exists, listed)):
            hint = "give paths from the root, or relative to the folder that the command is run in"
            raise InputError(f"{flag}: no line, such as {listed[0]}, is a file; {hint}")
    return [data.reduce_to(kept[name], flag, name) if name in kept else data for name, data in parts.items()]


def _exists(line: str) -> bool:
    """Tell whether a line of a list is a file, or names something in one of many images, as FILE:NAME."""
    names = itertools.accumulate(line.split(":"), "{}:{}".format)
    return os.path.lexists(line) or any(os.path.lexists(x) for x in names if x.endswith(shards.IMAGES_IN))


def select_per_class(data: ImageData, per_class: int | None) -> ImageData:
    """n images of each class, evenly spread over them in their order: without randomness, and the same at every call.
    None: all. Raises InputError where a class has fewer.
    """
    if per_class is None:
        return data
    chosen = torch.zeros(len(data), dtype=torch.bool)
    for label, name in enumerate(data.classes):
        places = (data.labels == label).nonzero()[:, 0]
        if len(places) < per_class:
            raise InputError(f"--images_per_class {per_class}: class {name} has only {len(places)} images")
        chosen[places[torch.arange(per_class) * len(places) // per_class]] = True
    return data.select(chosen.nonzero()[:, 0].tolist())


def _choose_reader(name: str, folder, which: Selection):
    """Return the reader of a data set, of the labels that were asked for. InputError where it has no such choice."""
    read = sources.SOURCES[name].read
    if isinstance(folder, FeatureFiles) or not (which.label_columns or which.class_names):
        return read
    if read is not sources.read_image_folder or not _holds_shards(folder):
        option = "--label_columns" if which.label_columns else "--class_names"
        raise InputError(f"{option}: {title(name, folder)} has no columns of labels; leave it out")
    return partial(read, labels=shards.Labels(which.label_columns, which.class_names))


def _holds_shards(folder) -> bool:
    try:
        return shards.find(Path(folder)) is not None
    except InputError as error:
        raise InputError(f"--data_folder {error}") from None


def _read(read, folder, split, flag) -> ImageData:
    if isinstance(folder, FeatureFiles):
        rows, labels, classes, superclasses = read(folder, split)
        return ImageData(rows, torch.as_tensor(labels, dtype=torch.long), classes, superclasses=superclasses)
    try:
        images, labels, classes, *rest = read(Path(folder), split)
    except InputError as error:
        raise InputError(f"{flag} {error}") from None
    if (again := util.twice(classes)) is not None:
        raise InputError(f"{flag} {folder}: two classes are called {again}, in two Unicode forms (NFC, NFD); join them")
    labels = torch.as_tensor(np.asarray(labels), dtype=torch.long)
    left_out, superclasses = [*rest, None, None][:2]
    return ImageData(images, labels, list(classes), left_out=left_out or LeftOut(), superclasses=superclasses)


def _read_values(name: str, folder, split: str, column: str, part: str) -> ImageData:
    """Read a split whose labels are numbers, of a column: `classes` are the distinct ones, rising.

    part: what its images are called. Raises InputError where there is no such column, or a label is no finite number.
    """
    read = sources.SOURCES[name].read
    if isinstance(folder, FeatureFiles):
        own = () if column == "label" else (column,)
        folder = replace(folder, label_columns=(*own, *folder.label_columns), numeric=True)
    elif read is sources.read_image_folder and lists.is_list(Path(folder)):
        read = partial(lists.read_list, values=column)
    elif read is sources.read_image_folder and _holds_shards(folder):
        read = partial(read, labels=shards.Labels(() if column == "label" else (column,), numeric=True))
    elif column != "label":
        hint = "give --values label where the classes' names are numbers, or an image list"
        raise InputError(f"--values {column}: {title(name, folder)} has no columns; {hint}")
    data = _read(read, folder, split, "--data_folder")
    numbers = []
    for label in data.classes:
        try:
            numbers.append(text_files.parse_number(label))
        except ValueError:
            numbers.append(np.nan)
        if not np.isfinite(numbers[-1]):
            raise InputError(f"--values {column}: the {part} data have {label}; it must be a finite number")
    values, place = np.unique(np.array(numbers), return_inverse=True)
    if len(values) < 2:
        raise InputError(f"--values {column}: the {part} data have a single value, {data.classes[0]}")
    names = [repr(value).removesuffix(".0") for value in values.tolist()]
    labels = torch.as_tensor(place)[data.labels]
    return replace(data, labels=labels, classes=names, groups=True, superclasses=None)


def _find_classes(names, classes, flag, source) -> list[str]:
    """Find the names as they are spelled among the classes. Raises InputError for one that is none of them."""
    names = util.match_spelling(names, classes)
    unknown = [c for c in names if c not in classes]
    if unknown:
        raise InputError(f"{flag} {unknown[0]}: {source} has no such class; it has {', '.join(classes[:10])}")
    return names


def _join(a: ImageData, b: ImageData) -> ImageData:
    classes = sorted({*a.classes, *b.classes})
    labels = [torch.tensor([classes.index(c) for c in x.classes])[x.labels] for x in (a, b)]
    images = np.concatenate([a.images, b.images]) if a.in_memory else a.images + b.images
    return ImageData(images, torch.cat(labels), classes)


def spec(name: str) -> sources.Source:
    """Return what is known of a data set: image size, mean, std, superclasses, whether its images are small."""
    return sources.SOURCES[name]


def title(name: str, folder: str | Path) -> str:
    """Return what a data set is called in tables and pictures: its name, or its folder's, or its first file's, where
    that can be any.
    """
    if isinstance(folder, FeatureFiles):
        return re.sub(r"[*?\[\]]+", "", Path(folder.train[0]).resolve().stem).strip("-_") or "features"
    return Path(folder).resolve().name if name == "path" else name


def class_list(name: str) -> tuple[str, ...]:
    """Return the sorted wnids of a list: ImageNet-100, imagenet_outliers_split1, tiny_imagenet_inliers, ..."""
    return tuple((Path(__file__).parent / f"{name}.txt").read_text().split())


def complete_views(name: str, given: ViewSettings, data: ImageData) -> ViewSettings:
    """Return a data set's views as `given`, as known of it, or estimated from its images."""
    if data.are_features:
        return feature_views.complete(given, data.images)
    views = given.fill_from(spec(name).views)
    return views if views.mean is not None else views.fill_from(estimate_normalization(data))


def estimate_normalization(data: ImageData, most: int = 2000) -> ViewSettings:
    """Per-channel mean and standard deviation in [0, 1] of at most `most` images, spread evenly over the set.

    Those that cannot be read do not count; whether they are an error is for the run to say.
    """
    moments, count, fault = np.zeros((2, 3)), 0, None
    for i in np.linspace(0, len(data) - 1, min(most, len(data))).astype(int):
        try:
            x = np.asarray(data.image(i), dtype=np.float64) / 255
        except InputError as error:
            fault = error
            continue
        moments += (x.mean((0, 1)), (x**2).mean((0, 1)))
        count += 1
    if not count:
        raise fault or InputError("--data_folder: holds no image")
    mean, square = moments / count
    return ViewSettings(mean=mean.tolist(), std=np.sqrt(np.maximum(square - mean**2, 1e-6)).tolist())

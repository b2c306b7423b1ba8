"""CIFAR as sheets: a lossless image a class, whose tiles of 32 x 32 pixels, row by row, are the images of that class.

DIR/cifar100/train/CLASS.webp, DIR/cifar100/test/CLASS.webp, DIR/cifar10/test/CLASS.webp (or .png) become the files that
every reader of CIFAR knows: cifar-100-python whole, of CIFAR-10 the test images, which is what serves as outliers.
"""

import pickle
from pathlib import Path

import numpy as np

import util
from datasets import folders, texts
from datasets.decoding import read_pixels
from util import InputError

SIDE = 32
SUPERCLASSES = Path(__file__).parent / "rankings/superclasses/cifar100.yaml"
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# images a class, and the mean of each channel in [0, 1], of the published files
PARTS = {
    "cifar100/train": (500, (0.5071, 0.4865, 0.4409)),
    "cifar100/test": (100, (0.5088, 0.4874, 0.4419)),
    "cifar10/test": (1000, (0.4942, 0.4851, 0.4504)),
}


def convert(source: Path, out: Path) -> list[str]:
    """Write the published files from the sheets in `source` below `out`; returns a line for each part.

    All is read and checked before anything is written; InputError names the sheet that is missing, damaged or of
    another size, and a file that is there already with another content.
    """
    superclasses = texts.read_yaml(SUPERCLASSES, str(SUPERCLASSES))
    coarse = {name: group for group, names in superclasses.items() for name in names}
    found, lines = {}, []
    for part, (each, mean) in PARTS.items():
        names = CIFAR10 if part.startswith("cifar10/") else sorted(coarse)
        found[part] = images = read(source / part, names, each)
        seen = images.mean((0, 1, 2, 3)) / 255
        if abs(seen - mean).max() > 1e-3:
            raise InputError(f"--from_sheets {source / part}: the mean of its channels is {seen.round(4)}, not {mean}")
        lines.append(f"{part}: {each * len(names):,} images of {len(names)} classes, mean {seen.round(4)}")
    files = {}
    for split in ("train", "test"):
        files[f"cifar-100-python/{split}"] = batch(found[f"cifar100/{split}"], sorted(coarse), coarse)
    files["cifar-100-python/meta"] = {"fine_label_names": sorted(coarse), "coarse_label_names": sorted(superclasses)}
    files["cifar-10-batches-py/test_batch"] = batch(found["cifar10/test"], CIFAR10)
    files["cifar-10-batches-py/batches.meta"] = {"label_names": list(CIFAR10)}
    contents = {out / name: pickle.dumps(content, protocol=4) for name, content in files.items()}
    for path, content in contents.items():
        if path.exists() and path.read_bytes() != content:
            raise InputError(f"--out: {path} is there already and is another file; remove it first")
    for path, content in contents.items():
        if not path.exists():
            util.write_file(path, content)
    return lines


def read(folder: Path, names, each: int) -> np.ndarray:
    """[C, each, 32, 32, 3] uint8: the tiles of the sheets of these classes in a folder."""
    folders.existing_folder(folder, f"--from_sheets {folder}")
    images = np.empty((len(names), each, SIDE, SIDE, 3), np.uint8)
    for place, name in zip(images, names, strict=True):
        path = next((p for p in (folder / f"{name}.webp", folder / f"{name}.png") if p.is_file()), None)
        if path is None:
            raise InputError(f"--from_sheets {folder}: the sheet {name}.webp is missing")
        try:
            sheet = read_pixels(str(path)).numpy()
        except InputError as error:
            raise InputError(f"--from_sheets {error}") from None
        rows, columns = sheet.shape[0] // SIDE, sheet.shape[1] // SIDE
        if sheet.shape[:2] != (rows * SIDE, columns * SIDE) or rows * columns != each:
            size = f"{sheet.shape[1]} x {sheet.shape[0]} pixels"
            raise InputError(f"--from_sheets {path}: {size} are not {each} tiles of {SIDE} x {SIDE}")
        place[:] = sheet.reshape(rows, SIDE, columns, SIDE, 3).swapaxes(1, 2).reshape(each, SIDE, SIDE, 3)
    return images


def batch(images: np.ndarray, names, coarse: dict[str, str] | None = None) -> dict:
    """A file of CIFAR's: rows of 3072 bytes, a channel after the other. Not in the published order, which sheets have
    lost: the first image of each class in turn, then the second.
    """
    each = images.shape[1]
    labels = list(range(len(names))) * each
    content = {
        "data": images.transpose(1, 0, 4, 2, 3).reshape(each * len(names), -1),
        "filenames": [f"{names[label]}_{i // len(names):04d}.png" for i, label in enumerate(labels)],
    }
    if coarse is None:
        return content | {"labels": labels}
    groups = sorted(set(coarse.values()))
    number = [groups.index(coarse[name]) for name in names]
    return content | {"fine_labels": labels, "coarse_labels": [number[label] for label in labels]}

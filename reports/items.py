"""The test items of a page: which are shown, as what, and how large that makes the page."""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from datasets import ImageData, text_tables
from util import InputError

SIDE = 64  # pixels of a thumbnail, at most
LOSSLESS = 16  # up to this side a lossless thumbnail is the smaller one
MOST_BYTES = 9_000_000  # of all thumbnails, as text: leaves room for the rest of a page
MOST_LETTERS = 300  # of a text


@dataclass(frozen=True)
class Looks:
    """What items look like: by their number the thumbnail, webp in base64, or the text; left_out: those for whose
    thumbnails the page has no room; pixelated: whether the images are smaller than they are seen.
    """

    thumbnails: dict[int, str] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    left_out: int = 0
    pixelated: bool = False


def sample_items(labels: np.ndarray, most: int) -> np.ndarray:
    """Choose at most so many items by labels [n], as many of each class as can be, in order; the same every time."""
    if len(labels) <= most:
        return np.arange(len(labels))
    mixed = np.random.default_rng(0).permutation(len(labels))
    by_class = mixed[np.argsort(labels[mixed], kind="stable")]
    counts = np.bincount(labels)
    place = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[by_class]]  # of each item in its class
    return np.sort(by_class[np.argsort(place, kind="stable")[:most]])


def make_thumbnail(image: Image.Image) -> str:
    """Make a small webp of the middle of an image, in base64."""
    side = min(*image.size, SIDE)
    content = io.BytesIO()
    ImageOps.fit(image, (side, side)).save(content, "WEBP", quality=70, method=4, lossless=side <= LOSSLESS)
    return base64.b64encode(content.getvalue()).decode()


def make_thumbnails(data: ImageData, wanted: list[int], most_bytes: int = MOST_BYTES) -> Looks:
    """Make thumbnails of the items, the first ones first, while there is room. Raises InputError for a corrupt one."""
    found, room = {}, most_bytes
    small = min(data.readable(wanted[0], data.image)[1].size) <= SIDE // 2
    for i in wanted:
        thumbnail = make_thumbnail(data.readable(i, data.image)[1])
        if len(thumbnail) > room:
            break
        found[i] = thumbnail
        room -= len(thumbnail)
    return Looks(found, left_out=len(wanted) - len(found), pixelated=small)


def read_texts(files: list[str], data: ImageData, flag: str) -> list[str]:
    """Read the text of each row of features. Raises InputError where their number or their labels differ."""
    tables = [text_tables.read_texts(Path(path), flag) for path in files]
    texts = [text for table in tables for text in table.texts]
    if len(texts) != len(data):
        raise InputError(f"{flag} {files[0]}: has {len(texts)} texts for {len(data)} rows of features")
    labels = [label for table in tables for label in table.labels or ()]
    own = [data.classes[label] for label in data.labels.tolist()]
    if len(labels) == len(own) and set(labels) == set(own) and labels != own:
        row = next(i for i, (a, b) in enumerate(zip(labels, own, strict=True)) if a != b)
        raise InputError(f"{flag} {files[0]}: row {row} is of {labels[row]}, in the features it is of {own[row]}")
    return texts


def show_items(data: ImageData, wanted: list[int], texts: list[str] | None) -> Looks:
    """Make what is shown of the items: images, else texts, else nothing but their numbers."""
    if texts is not None:
        return Looks(texts={i: texts[i][:MOST_LETTERS] for i in wanted})
    return Looks() if data.are_features else make_thumbnails(data, wanted)

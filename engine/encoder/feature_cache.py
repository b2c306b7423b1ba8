"""Features kept in a folder (--features_cache): what is found there is held against what is asked for.

A file is named by a hash, its key, of all that features depend on: the checkpoint's content, the model, the decoders,
the transform, classes and labels, and the images: by their bytes where they lie in memory, by the check sums of a pack,
and by path, size, and times of last change of files, of which no program sets the second (ctime).
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import util
from datasets import ImageData, decoding
from datasets.packed import PackedImage
from engine.run import checkpoint


def key(about: tuple, data: ImageData) -> str:
    """The hash of what features of a data set depend on. about: checkpoint, model and transform, as they print."""
    digest = hashlib.sha256()
    digest.update(repr((*about, decoding.version(), data.classes)).encode())
    digest.update(data.labels.numpy().tobytes())
    if isinstance(data.images, np.ndarray):
        digest.update(repr(data.images.shape).encode() + np.ascontiguousarray(data.images).tobytes())
        return digest.hexdigest()
    for image in data.images:
        digest.update(f"{image}\0{_state(image)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _state(image) -> tuple:
    """What changes when an image file does."""
    if isinstance(image, PackedImage):
        return (int(image.pack.crc[image.row]),)
    stat = os.stat(image)
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def file(folder: Path, name: str, images: int, key: str) -> Path:
    """Where features of so many images are kept, by a run of this name."""
    return folder / f"{util.in_file_name(name)}_{images}_{key[:24]}.pt"


def read(path: Path, key: str, labels: Tensor, dim: int) -> tuple[Tensor | None, str]:
    """The features [n, dim] of a file, and ""; or None and why the file cannot serve, "" where there is none.

    labels: [n] of the images.
    """
    if not path.is_file():
        return None, ""
    try:
        checkpoint.check_sums(path)
        kept = torch.load(path, weights_only=True)
        found = kept["features"], kept["labels"], kept["key"]
    except Exception as error:  # torch.load meets damage in many ways
        return None, f"damaged, or of an older version ({type(error).__name__})"
    x, y, made_for = found
    if made_for != key:
        return None, "holds features of other images, or of another encoder"
    if not isinstance(x, Tensor) or x.dtype != torch.float32 or x.shape != (len(labels), dim):
        return None, f"does not hold {len(labels)} features of {dim} dimensions"
    if not isinstance(y, Tensor) or not torch.equal(y, labels) or not x.isfinite().all():
        return None, "holds other labels, or features that are no numbers"
    return x, ""


def write(path: Path, key: str, features: Tensor, labels: Tensor, about: dict) -> str:
    """Keep features, whole or not at all; returns why they could not be, or "". about: further plain entries."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_whole(path, {"features": features, "labels": labels, "key": key, **about})
    except OSError as error:
        return f"cannot be written ({error.strerror or error})"
    return ""

"""A split of an image folder in one memory-mapped file, decoded faster, or not at all: made by datasets.packing.

The file: MAGIC; the images' bytes, one after another; the index as npz; where it begins, its length and its CRC-32.
"""

import io
import json
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets import decoding
from util import InputError

MAGIC = b"RINCEPK1"
TAIL = struct.Struct("<QQI8s")
FORMATS = ("jpeg", "raw")


class Pack:
    """An open pack: index arrays, and the file's bytes, mapped into memory by each process when it first reads."""

    def __init__(self, path: Path):
        self.path, self._bytes = Path(path), None
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            file.seek(max(0, size - TAIL.size))
            tail = file.read(TAIL.size)
            if size < len(MAGIC) + TAIL.size or tail[-8:] != MAGIC:
                raise InputError(f"{path}: not a whole pack; make it anew with python -m datasets.prepare pack")
            begin, length, crc, _ = TAIL.unpack(tail)
            file.seek(begin)
            content = file.read(length)
        if len(content) != length or zlib.crc32(content) != crc:
            raise InputError(f"{path}: its index is damaged; make it anew with python -m datasets.prepare pack")
        with np.load(io.BytesIO(content), allow_pickle=False) as index:
            self.begin, self.length, self.crc, self.shape = (index[k] for k in ("begin", "length", "crc", "shape"))
            self.labels, self.names, self.classes = index["labels"], index["names"], index["classes"].tolist()
            about = json.loads(str(index["about"]))
        self.root, self.format, self.side = about["root"], about["format"], about["side"]

    def __getstate__(self):
        return {**self.__dict__, "_bytes": None}  # another process maps the file for itself

    def bytes(self, row: int) -> np.ndarray:
        """[length] uint8 of an image, not copied."""
        if self._bytes is None:
            self._bytes = np.memmap(self.path, np.uint8, mode="c")  # private: nothing is ever written to the file
        return self._bytes[self.begin[row] : self.begin[row] + self.length[row]]

    def images(self) -> list["PackedImage"]:
        return [PackedImage(self, row) for row in range(len(self.labels))]


@dataclass(frozen=True, slots=True)
class PackedImage:
    """One image of a pack; as a path, it is that of the file that it was made of."""

    pack: Pack
    row: int

    def __fspath__(self) -> str:
        return os.path.join(self.pack.root, str(self.pack.names[self.row]))

    def __str__(self) -> str:
        return f"{self.pack.path}: {self.pack.names[self.row]}"

    @property
    def file(self) -> Path:
        return self.pack.path

    def pixels(self) -> Tensor:
        """[H, W, 3] uint8; raw ones lie in the mapped file."""
        content = self.pack.bytes(self.row)
        if self.pack.format == "raw":
            return torch.from_numpy(content.reshape(*self.pack.shape[self.row], 3))
        return decoding.decode_plain_jpeg(content, self)

    def damage(self) -> str | None:
        """What is wrong, in words."""
        if zlib.crc32(self.pack.bytes(self.row)) != self.pack.crc[self.row]:
            return f"{self}: its bytes are not those that were written"
        return None


def read(path: Path):
    """images, labels, classes of a pack, as of a folder."""
    pack = Pack(path)
    return pack.images(), pack.labels, pack.classes

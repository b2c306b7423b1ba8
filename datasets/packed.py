"""A split of an image folder in one file, decoded faster, or not at all: made by datasets.packing.

The file: MAGIC; the images' bytes, one after another; the index as npz; where it begins, its length and its CRC-32.
"""

import io
import json
import os
import struct
import weakref
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
MAKE_AGAIN = "make it anew with python -m datasets.prepare pack"


class PackInputError(InputError):
    """A pack that cannot be read any more: no image takes the place of another."""


class Pack:
    """An open pack: index arrays, and the file, opened by each process when it first reads.

    The file is read, not mapped into memory: where it is cut short, or its disk goes away, a read is an error, and a
    mapping ends the process. A read costs no more than a mapping's (benchmarks/data.py).
    """

    def __init__(self, path: Path):
        self.path, self._descriptor = Path(path), None
        self.size = size = self.path.stat().st_size
        with self.path.open("rb") as file:
            file.seek(max(0, size - TAIL.size))
            tail = file.read(TAIL.size)
            if size < len(MAGIC) + TAIL.size or tail[-8:] != MAGIC:
                raise InputError(f"{path}: not a whole pack; {MAKE_AGAIN}")
            begin, length, crc, _ = TAIL.unpack(tail)
            file.seek(begin)
            content = file.read(length)
        if len(content) != length or zlib.crc32(content) != crc:
            raise InputError(f"{path}: its index is damaged; {MAKE_AGAIN}")
        with np.load(io.BytesIO(content), allow_pickle=False) as index:
            self.begin, self.length, self.crc, self.shape = (index[k] for k in ("begin", "length", "crc", "shape"))
            self.labels, self.names, self.classes = index["labels"], index["names"], index["classes"].tolist()
            about = json.loads(str(index["about"]))
        self.root, self.format, self.side = about["root"], about["format"], about["side"]
        self.verified = np.zeros(len(self.labels), dtype=bool)  # raw images that this process has verified

    def __getstate__(self):
        return {**self.__dict__, "_descriptor": None}  # another process opens the file for itself

    def bytes(self, row: int, verify: bool = False) -> np.ndarray:
        """[length] uint8 of an image. Raises InputError where they are not those that were written.

        A JPEG is verified at each reading, beside whose decoding that costs little; a raw image at its first reading by
        a process, or with `verify`.
        """
        content = self._read(int(self.begin[row]), int(self.length[row]))
        if verify or self.format == "jpeg" or not self.verified[row]:
            if zlib.crc32(content) != self.crc[row]:
                raise InputError(f"{self.path}: {self.names[row]}: its bytes are not those that were written")
            self.verified[row] = True
        return content

    def _read(self, begin: int, length: int) -> np.ndarray:
        content = np.empty(length, np.uint8)
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY)
                weakref.finalize(self, os.close, self._descriptor)
            count = os.preadv(self._descriptor, [content], begin)
        except OSError as error:
            raise PackInputError(f"{self.path}: cannot be read any more ({error.strerror})") from None
        if count < length:
            now = f"{os.fstat(self._descriptor).st_size:,} bytes now"
            raise PackInputError(f"{self.path}: has {now}, {self.size:,} when it was opened; {MAKE_AGAIN}")
        return content

    def images(self) -> list["PackedImage"]:
        return [PackedImage(self, row) for row in range(len(self.labels))]


@dataclass(frozen=True, slots=True)
class PackedImage:
    """One image of a pack; as a path, it is that of the file that it was made of."""

    pack: Pack
    row: int

    def __fspath__(self) -> str:
        return os.path.normpath(os.path.join(self.pack.root, str(self.pack.names[self.row])))

    def __str__(self) -> str:
        return f"{self.pack.path}: {self.pack.names[self.row]}"

    def pixels(self) -> Tensor:
        """[H, W, 3] uint8."""
        content = self.pack.bytes(self.row)
        if self.pack.format == "raw":
            return torch.from_numpy(content.reshape(*self.pack.shape[self.row], 3))
        return decoding.decode_plain_jpeg(content, self)

    def describe_damage(self) -> str | None:
        """What is wrong, in words. Raises PackInputError."""
        try:
            self.pack.bytes(self.row, verify=True)
        except PackInputError:
            raise
        except InputError as error:
            return str(error).removeprefix(f"{self}: ")
        return None


def read_pack(path: Path):
    """images, labels, classes of a pack, as of a folder."""
    pack = Pack(path)
    return pack.images(), pack.labels, pack.classes

"""A split of an image folder in one file, decoded faster, or not at all: made by datasets.packing.

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
from datasets.stored_files import PackInputError, StoredFile
from util import InputError

MAGIC = b"RINCEPK1"
TAIL = struct.Struct("<QQI8s")
FORMATS = ("jpeg", "raw")
MAKE_AGAIN = "make it again with python -m datasets.prepare pack"


class Pack:
    """An open pack: index arrays, and the file."""

    def __init__(self, path: Path):
        self.path, self._file = Path(path), StoredFile(path, MAKE_AGAIN)
        size = self._file.size
        with self.path.open("rb") as file:
            file.seek(max(0, size - TAIL.size))
            tail = file.read(TAIL.size)
            if size < len(MAGIC) + TAIL.size or tail[-8:] != MAGIC:
                raise InputError(f"{path}: not a whole pack; {MAKE_AGAIN}")
            begin, length, crc, _ = TAIL.unpack(tail)
            file.seek(begin)
            content = file.read(length)
        if len(content) != length or zlib.crc32(content) != crc:
            raise InputError(f"{path}: its index is corrupt; {MAKE_AGAIN}")
        with np.load(io.BytesIO(content), allow_pickle=False) as index:
            self.begin, self.length, self.crc, self.shape = (index[k] for k in ("begin", "length", "crc", "shape"))
            self.labels, self.names, self.classes = index["labels"], index["names"], index["classes"].tolist()
            about = json.loads(str(index["about"]))
        self.root, self.format, self.side = about["root"], about["format"], about["side"]
        self.verified = np.zeros(len(self.labels), dtype=bool)  # raw images that this process has verified

    def bytes(self, row: int, verify: bool = False) -> np.ndarray:
        """[length] uint8 of an image. Raises InputError where they are not those that were written.

        A JPEG is verified at each reading, beside whose decoding that costs little; a raw image at its first reading by
        a process, or with `verify`.
        """
        content = self._file.read(int(self.begin[row]), int(self.length[row]))
        if verify or self.format == "jpeg" or not self.verified[row]:
            if zlib.crc32(content) != self.crc[row]:
                raise InputError(f"{self.path}: {self.names[row]}: its bytes are not those that were written")
            self.verified[row] = True
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

    @property
    def state(self) -> tuple[int]:
        """What changes when its bytes do."""
        return (int(self.pack.crc[self.row]),)

    def pixels(self) -> Tensor:
        """[H, W, 3] uint8."""
        content = self.pack.bytes(self.row)
        if self.pack.format == "raw":
            return torch.from_numpy(content.reshape(*self.pack.shape[self.row], 3))
        return decoding.decode_plain_jpeg(content, self)

    def describe_damage(self) -> str | None:
        """Return what is wrong, in words. Raises PackInputError."""
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

"""A split of an image folder in one memory-mapped file, decoded faster, or not at all: made by datasets.prepare pack.

The file: MAGIC; the images' bytes, one after another; the index as npz; where it begins, its length and its CRC-32.
"""

import io
import json
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import util
from datasets import decoding
from util import InputError

MAGIC = b"RINCEPK1"
TAIL = struct.Struct("<QQI8s")
FORMATS = ("jpeg", "raw")
QUALITY = 90  # of the JPEGs that are made


class DamagedImage(InputError):
    """An image that cannot be packed, since it cannot be read."""


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
        return decoding.decode_plain_jpeg(torch.from_numpy(content), self)

    def damage(self) -> str | None:
        """What is wrong, in words."""
        if zlib.crc32(self.pack.bytes(self.row)) != self.pack.crc[self.row]:
            return f"{self}: its bytes are not those that were written"
        return None


def read(path: Path):
    """images, labels, classes of a pack, as of a folder."""
    pack = Pack(path)
    return pack.images(), pack.labels, pack.classes


# ---- writing ---------------------------------------------------------------------------------------------------------


def write(images: list[str], labels, classes: list[str], root: Path, out: Path, side: int, format: str) -> int:
    """Write a pack of images whose shorter side is at most `side`; returns how many images it had to make.

    Written under another name with a journal beside it: a call that is cut off is gone on with by the next one, and
    `out` is there only when it is whole. Raises DamagedImage for an image, InputError where the disk is full.
    """
    unfinished, journal = (out.with_name(out.name + end) for end in (".unfinished", ".journal"))
    about = {"root": os.path.abspath(root), "format": format, "side": side}
    names = [os.path.relpath(f, root) for f in images]
    plan = zlib.crc32(json.dumps([about, names, classes]).encode())
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        done = _journal(journal, unfinished, plan)
        with unfinished.open("r+b" if done else "wb") as file, journal.open("a") as notes:
            if not done:
                file.write(MAGIC)
                notes.write(json.dumps({"plan": plan}) + "\n")
            file.seek(done[-1][0] + done[-1][1] if done else len(MAGIC))
            file.truncate()
            rows = done + _append(file, notes, images[len(done) :], side, format, out.name)
            _close(file, rows, labels, names, classes, about)
        os.replace(unfinished, out)
        journal.unlink()
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror or error}; the same command goes on where it stopped") from None
    return len(images) - len(done)


def _journal(journal: Path, unfinished: Path, plan: int) -> list[tuple]:
    """begin, length, crc, height, width of the images that lie in an unfinished pack of the same plan."""
    if not journal.is_file() or not unfinished.is_file():
        journal.unlink(missing_ok=True)
        return []
    head, *lines = journal.read_text().splitlines(keepends=True) or [""]
    if head.strip() != json.dumps({"plan": plan}):
        journal.unlink()
        return []
    rows = [tuple(json.loads(line)) for line in lines if line.endswith("\n")]
    size = unfinished.stat().st_size
    whole = [r for r in rows if r[0] + r[1] <= size]
    journal.write_text(head + "".join(json.dumps(r) + "\n" for r in whole))
    return whole


def _append(file, notes, images, side, format, name) -> list[tuple]:
    rows, progress = [], util.Progress(f"packing {name}", len(images), 5000)
    with ThreadPoolExecutor() as pool:  # decoding and resizing let other threads run
        for start in range(0, len(images), 64):
            batch = images[start : start + 64]
            for content, (height, width) in pool.map(lambda f: _made(f, side, format), batch):
                rows.append((file.tell(), len(content), zlib.crc32(content), height, width))
                file.write(content)
            file.flush()  # the journal never names what is not there
            notes.write("".join(json.dumps(r) + "\n" for r in rows[start:]))
            notes.flush()
            progress.tick(len(rows), f"{file.tell() / 1e9:.2f} GB")
    progress.close()
    return rows


def _made(path: str, side: int, format: str) -> tuple[bytes, tuple[int, int]]:
    """An image's bytes in a pack, and its height and width."""
    try:
        image = decoding.read_rgb(path)
    except InputError as error:
        raise DamagedImage(str(error)) from None
    shorter = min(image.size)
    if shorter > side:
        width, height = (max(side, round(x * side / shorter)) for x in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    elif format == "jpeg" and decoding.is_plain_jpeg(path):
        return Path(path).read_bytes(), (image.height, image.width)  # as it is: every compression costs
    if format == "raw":
        return image.tobytes(), (image.height, image.width)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue(), (image.height, image.width)


def _close(file, rows, labels, names, classes, about) -> None:
    begin, length, crc, height, width = np.array(rows, dtype=np.int64).T
    index = io.BytesIO()
    np.savez(
        index, begin=begin, length=length, crc=crc, shape=np.stack([height, width], 1), labels=np.asarray(labels),
        names=np.array(names), classes=np.array(classes), about=np.array(json.dumps(about)),
    )  # fmt: skip
    content = index.getvalue()
    place = file.tell()
    file.write(content)
    file.write(TAIL.pack(place, len(content), zlib.crc32(content), MAGIC))
    file.flush()
    os.fsync(file.fileno())

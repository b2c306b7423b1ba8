"""Writes packs: a folder of images in one file a split (`python -m datasets.prepare pack`)."""

import contextlib
import io
import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

import datasets
import util
from datasets import decoding, lists, packed, shards, sources, text_files
from datasets.decoding import find_damage, write_list
from datasets.folders import SPLITS
from datasets.members import Member
from datasets.packed import MAGIC, TAIL
from util import InputError

QUALITY = 90  # of the JPEGs that are made


class DamagedImage(InputError):
    """An image that cannot be packed, since it cannot be read."""


def pack(folder: Path, out: Path, side: int, format: str, skip: str | None, check: bool) -> None:
    """train.pack, and val.pack where there are validation images, in the folder `out`, of what training takes as
    --data_folder.

    side, format: as `write` takes them; skip: file that lists images to leave out; check: verify every image of the
    packs.
    """
    found = _find_roots(folder)
    paths = {split: out / f"{SPLITS[split][0]}.pack" for split in found}
    for split, root in found.items():
        if root.suffix == ".pack":
            raise InputError(f"--data_folder {folder}: {root} is already packed; give the folder of the images")
        if out.resolve() == root.resolve() or out.resolve() == folder.resolve():
            raise InputError(f"--out {out}: is the source; nothing is ever written there")
        data, path = datasets.build("path", folder, split, datasets.Selection(skip=skip)), paths[split]
        if line := data.left_out.describe():
            print(line)
        if path.exists():
            _check_same(path, data, side, format)
            print(f"{path}: exists already, with the same {len(data):,} images")
            continue
        try:
            made = write(data, root, path, side, format)
        except DamagedImage as error:
            raise _list_damage(error, folder, found, out, skip) from None
        print(f"{path}: {len(data):,} images, {made:,} made now, {path.stat().st_size / 1e9:.2f} GB")
    if check:
        for path in paths.values():
            images = packed.Pack(path).images()
            damaged = find_damage(images)
            if damaged:
                first, reason = min(damaged.items())
                count = f"{len(damaged)} of {len(images)} images"
                raise InputError(f"--check: {count} are corrupt, such as {images[first]}: {reason}")
        print("checked: every image is as it was written")


def _find_roots(folder: Path) -> dict[str, Path]:
    """By split, "train" and where there is one "test": the folder that its images lie in."""

    def find(split: str) -> Path:
        found = shards.find(folder)
        if not found and not lists.is_list(folder):
            return sources.find_split_folder(folder, split)
        sources.read_image_folder(folder, split)
        return found.root if found else folder.parent

    try:
        found = {"train": find("train")}
    except InputError as error:
        raise InputError(f"--data_folder {error}") from None
    with contextlib.suppress(InputError):
        found["test"] = find("test")
    return found


def _list_damage(first: InputError, folder: Path, splits, out: Path, skip: str | None) -> InputError:
    """Return the error about the first damaged image of a folder; list all in a file that --skip_images takes."""
    print(f"{first}; looking for others", flush=True)
    which = datasets.Selection(skip=skip)
    images = [f for split in splits for f in datasets.build("path", folder, split, which).images]
    before = text_files.read_paths(Path(skip), f"--skip_images {skip}") if skip else ()
    damaged, listed = [images[i] for i in find_damage(images)], out / "damaged_images.txt"
    if not damaged:
        return first  # it could not be read just then
    write_list(listed, [*before, *damaged])
    count = f"{len(damaged)} of {len(images)} images"
    return InputError(f"--data_folder {folder}: {count} are corrupt, listed in {listed}; give --skip_images {listed}")


def _check_same(path: Path, data, side: int, format: str) -> None:
    there = packed.Pack(path)
    same = there.side == side and there.format == format and there.classes == data.classes
    if not same or [os.fspath(f) for f in there.images()] != [os.path.abspath(f) for f in data.images]:
        raise InputError(f"--out {path}: exists, made of other images or with other options; remove it first")


def write(data: datasets.ImageData, root: Path, out: Path, side: int, format: str) -> int:
    """Write a pack of a folder's images, their shorter side at most `side`; returns how many it had to make.

    Written under another name with a journal beside it: a call that is cut off is gone on with by the next one, and
    `out` is there only when it is whole. Raises DamagedImage for an image, InputError where the disk is full.
    """
    unfinished, journal = (out.with_name(out.name + end) for end in (".unfinished", ".journal"))
    about = {"root": os.path.abspath(root), "format": format, "side": side}
    images, names = data.images, [os.path.relpath(f, root) for f in data.images]
    plan = zlib.crc32(json.dumps([about, names, data.classes]).encode())
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        done = _read_journal(journal, unfinished, plan)
        with unfinished.open("r+b" if done else "wb") as file, journal.open("a") as notes:
            if not done:
                file.write(MAGIC)
                notes.write(json.dumps({"plan": plan}) + "\n")
            file.seek(done[-1][0] + done[-1][1] if done else len(MAGIC))
            file.truncate()
            encode = partial(_encode_image, side=side, format=format)
            rows = done + _append_images(file, notes, images[len(done) :], encode, out.name)
            _write_index(file, rows, data, names, about)
        os.replace(unfinished, out)
        journal.unlink()
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror or error}; the same command continues") from None
    return len(images) - len(done)


def _read_journal(journal: Path, unfinished: Path, plan: int) -> list[tuple]:
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


def _append_images(file, notes, images, encode, name) -> list[tuple]:
    rows, progress = [], util.Progress(f"packing {name}", len(images), 5000)
    with ThreadPoolExecutor() as pool:  # decoding and resizing let other threads run
        for start in range(0, len(images), 64):
            batch = images[start : start + 64]
            for content, (height, width) in pool.map(encode, batch):
                rows.append((file.tell(), len(content), zlib.crc32(content), height, width))
                file.write(content)
            file.flush()  # the journal never names what is not there
            notes.write("".join(json.dumps(r) + "\n" for r in rows[start:]))
            notes.flush()
            progress.tick(len(rows), f"{file.tell() / 1e9:.2f} GB")
    progress.close()
    return rows


def _encode_image(path: str | Member, side: int, format: str) -> tuple[bytes, tuple[int, int]]:
    """Return an image's bytes in a pack, and its height and width."""
    try:
        image = decoding.read_rgb(path)
    except InputError as error:
        raise DamagedImage(str(error)) from None
    shorter = min(image.size)
    if shorter > side:
        width, height = (max(side, round(x * side / shorter)) for x in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    elif format == "jpeg" and decoding.is_plain_jpeg(path):
        return decoding.read_bytes(path), (image.height, image.width)  # as it is: every compression costs
    if format == "raw":
        return image.tobytes(), (image.height, image.width)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue(), (image.height, image.width)


def _write_index(file, rows, data, names, about) -> None:
    begin, length, crc, height, width = np.array(rows, dtype=np.int64).T
    index = io.BytesIO()
    np.savez(
        index, begin=begin, length=length, crc=crc, shape=np.stack([height, width], 1), labels=data.labels.numpy(),
        names=np.array(names), classes=np.array(data.classes), about=np.array(json.dumps(about)),
    )  # fmt: skip
    content = index.getvalue()
    place = file.tell()
    file.write(content)
    file.write(TAIL.pack(place, len(content), zlib.crc32(content), MAGIC))
    file.flush()
    os.fsync(file.fileno())

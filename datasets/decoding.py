"""Image files of every kind as RGB, as a person would see them."""

import contextlib
import importlib.metadata
import io
import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

import util
from datasets import text_files
from datasets.stored_files import PackInputError
from util import InputError

ORIENTATION = 0x0112  # in EXIF
# simplejpeg is strict: what libjpeg warns of is an error, as truncated files and broken codes must be. One of these
# warnings is harmless as a rule, stray bytes of a camera: PIL decides about such files.
HARMLESS = "extraneous bytes before marker"
# what to do about a damaged file
WAY_ROUND = "leave it out with --skip_images LIST, such as damaged_images.txt in the folder of a run on these images"
# What PIL warns of, odd tags of an EXIF for example, changes no pixel; its lines name no image, but site-packages
warnings.filterwarnings("ignore", module=r"PIL\.")
MOST_PIXELS = 500_000_000  # of an image that is read: 2 GB in PIL
# how PIL unpacks a PNG -> its transparent color as PIL has the pixels
PNG_SCALE = {
    "L;2": lambda gray: gray * 85, "L;4": lambda gray: gray * 17, "RGB;16B": lambda color: tuple(x >> 8 for x in color)
}  # fmt: skip
# value of the orientation -> what turns the image upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def describe_version() -> str:
    """Names and versions of what decodes plain JPEGs, and the rest, and ours: features are kept under them."""
    return "rules 2 " + " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("simplejpeg", "pillow"))


def read_bytes(path) -> bytes:
    """Read the bytes of an image file, or of what has a file's bytes (members.Member)."""
    with _name_damage(path):
        return Path(path).read_bytes() if isinstance(path, str | Path) else path.read()


def read_rgb(path) -> Image.Image:
    """Read an image file as 8-bit RGB: turned as its EXIF says, transparency over white, more bits scaled to 8.

    path: as of `read_bytes`. Raises InputError naming it where it is damaged, truncated, too large, or no image.
    """
    with _open_image(_find_source(path), path) as file:
        return _load_image(file)


def read_pixels(path) -> Tensor:
    """[H, W, 3] uint8: the pixels of `read_rgb`, by the fastest way that there is."""
    return decode(read_bytes(path), path)


def decode(content: bytes, name) -> Tensor:
    """[H, W, 3] uint8 of an image file's bytes; errors call it `name`."""
    with _open_image(io.BytesIO(content), name) as file:
        if not _is_plain_jpeg(file):
            return torch.from_numpy(np.array(_load_image(file)))
    return decode_plain_jpeg(content, name)


def decode_plain_jpeg(content: bytes | np.ndarray, name) -> Tensor:
    """[H, W, 3] uint8 of the bytes, or [n] uint8, of a JPEG in RGB or gray that is not turned: the pixels of PIL."""
    with _name_damage(name):
        try:
            return torch.from_numpy(simplejpeg.decode_jpeg(content, "RGB"))
        except ValueError as error:
            if HARMLESS not in str(error):
                raise
        with _open_image(io.BytesIO(content), name) as file:
            return torch.from_numpy(np.array(file.convert("RGB")))


def is_plain_jpeg(path) -> bool:
    """Whether a file is a JPEG in RGB or gray that is not turned."""
    with _open_image(_find_source(path), path) as file:
        return _is_plain_jpeg(file)


def _find_source(path):
    """Return what PIL opens: the path of a file, so that it reads no more than it needs, else the bytes."""
    return path if isinstance(path, str | Path) else io.BytesIO(read_bytes(path))


def _is_plain_jpeg(file: Image.Image) -> bool:
    upright = "exif" not in file.info or file.getexif().get(ORIENTATION, 1) == 1
    return file.format == "JPEG" and file.mode in ("RGB", "L") and upright


@contextlib.contextmanager
def _open_image(source, name):
    """PIL's image of a path or a file, not decoded yet, whose faults are damage of the image `name`."""
    Image.MAX_IMAGE_PIXELS = None  # PIL's own limit, a warning or an error that takes large photographs for an attack
    with _name_damage(name), Image.open(source) as file:
        if file.width * file.height > MOST_PIXELS:
            limit = f"the {MOST_PIXELS:,} that are read (MOST_PIXELS in datasets/decoding.py); make the image smaller"
            raise InputError(f"{name}: has {file.width:,} x {file.height:,} pixels, more than {limit}")
        yield file


def _load_image(file: Image.Image) -> Image.Image:
    """Load an image, turned by its orientation alone.

    PIL's exif_transpose writes the whole EXIF again, and stumbles over odd tags.
    """
    if file.format == "PNG" and "transparency" in file.info:  # in samples of the file's depth, which PIL's are not
        scale = PNG_SCALE.get(file.tile[0][3])
        if scale:
            file.info["transparency"] = scale(file.info["transparency"])
    file.load()
    turn = UPRIGHT.get(file.getexif().get(ORIENTATION))
    image = to_rgb(file)
    return image if turn is None else image.transpose(turn)


@contextlib.contextmanager
def _name_damage(name):
    """Whatever a decoder raises is damage of the image `name`, an InputError; want of memory stays what it is."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # a damaged file meets each decoder in its own way
        reason = re.sub(r" <_io\..*", "", util.reason(error))  # the memory address that PIL names
        raise InputError(f"{name}: not a readable image ({reason})") from None


def describe_damage(path) -> str | None:
    """Return what is wrong with an image file, or one of a pack or shard, in words; None where it decodes. Raises
    PackInputError.
    """
    if hasattr(path, "describe_damage"):
        return path.describe_damage()
    try:
        read_pixels(path)
    except PackInputError:
        raise
    except InputError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def find_damage(paths: list, show: bool = True) -> dict[int, str]:
    """Index -> what is wrong, of the image files that do not decode; with progress where `show`."""
    found, progress = {}, util.Progress("decoding", len(paths), 5000, show)
    with ThreadPoolExecutor() as pool:  # decoding lets other threads run
        for i, reason in enumerate(pool.map(describe_damage, paths)):
            if reason:
                found[i] = reason
            progress.tick(i + 1, f"{len(found)} corrupt")
    progress.close()
    return found


def write_list(path: Path, images: list) -> None:
    """Write a list of images that --skip_images takes: whole paths, each once, one a line."""
    lines = dict.fromkeys(text_files.quote_path(os.path.abspath(image)) for image in images)
    util.write_file(path, "".join(f"{line}\n" for line in lines).encode())


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of PIL's as RGB. Raises ValueError for pixels that no rule makes 8 bits of."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # of 16 bits
        bits = image.tag_v2[258][0] if image.format == "TIFF" else 16  # 12 in some
        pixels = np.asarray(image)
        gray = _scale_to_bytes(pixels, (2**bits - 1,))
        if "transparency" in image.info:
            gray[pixels == image.info["transparency"]] = 255
        return Image.fromarray(gray).convert("RGB")
    if image.mode in ("I", "F"):  # 32 bits, with nothing that says what white is
        whites = (255, 65535) if image.mode == "I" else (1, 255, 65535)
        return Image.fromarray(_scale_to_bytes(np.asarray(image), whites)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        over = Image.new("RGBA", image.size, "white")
        over.alpha_composite(image.convert("RGBA"))
        return over.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _scale_to_bytes(pixels: np.ndarray, whites: tuple[int, ...]) -> np.ndarray:
    """Bytes of pixels, by the first of some values of white that no pixel exceeds.

    Raises ValueError where none is, a pixel is negative, or all are near black by a white that is not the first.
    """
    if not np.isfinite(pixels).all():
        raise ValueError("a pixel is NaN or infinite")
    low, high = pixels.min(initial=0), pixels.max(initial=0)
    white = next((white for white in whites if np.rint(high * (255 / white)) <= 255), 0)
    if not white or np.rint(low * (255 / white)) < 0 or (white != whites[0] and high < white / 16):
        pixels_are = f"pixels of 32 bits from {low:,.6g} to {high:,.6g}"
        raise ValueError(f"{pixels_are}, which does not tell what white is; save 8 or 16 bits")
    return np.rint(pixels * (255 / white)).astype(np.uint8)

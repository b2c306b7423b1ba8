"""Image files of every kind as RGB, as a person would see them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

import util
from util import InputError


def read_rgb(path: str | Path) -> Image.Image:
    """An image file as 8-bit RGB: turned as its EXIF says, transparency over white, 16 bits scaled to 8.

    Raises InputError naming the file where it is damaged, truncated, or no image.
    """
    try:
        with Image.open(path) as file:
            file.load()
            return to_rgb(ImageOps.exif_transpose(file))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what PIL raises on damage
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not a readable image ({reason})") from None


def damage(path: str | Path) -> str | None:
    """What is wrong with an image file, in words; None where it decodes."""
    try:
        read_rgb(path)
    except InputError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def find_damage(paths: list, show: bool = True) -> dict[int, str]:
    """Index -> what is wrong, of the image files that do not decode; with progress where `show`."""
    found, progress = {}, util.Progress("decoding", len(paths), 5000, show)
    with ThreadPoolExecutor() as pool:  # decoding lets other threads run
        for i, reason in enumerate(pool.map(damage, paths)):
            if reason:
                found[i] = reason
            progress.tick(i + 1, f"{len(found)} damaged")
    progress.close()
    return found


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of PIL's as RGB."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits; PIL would cut off all above 255
        return Image.fromarray(_eight_bits(np.asarray(image) / 257)).convert("RGB")
    if image.mode == "F":  # fractions of 1, or of 255
        pixels = np.asarray(image)
        return Image.fromarray(_eight_bits(pixels * 255 if pixels.max(initial=0) <= 1 else pixels)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        over = Image.new("RGBA", image.size, "white")
        over.alpha_composite(image.convert("RGBA"))
        return over.convert("RGB")
    return image.convert("RGB")


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    return np.rint(pixels.clip(0, 255)).astype(np.uint8)

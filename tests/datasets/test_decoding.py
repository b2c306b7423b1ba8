"""Image files of every kind become the RGB image that a person sees."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from commands import ROOT
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from datasets import decoding
from datasets.decoding import read_rgb
from util import InputError

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [90, 90, 90]]], dtype=np.uint8)


def read(tmp_path, image, name="a.png", **options):
    image.save(tmp_path / name, **options)
    result = read_rgb(tmp_path / name)
    assert result.mode == "RGB"
    return np.asarray(result).astype(int)


GRAY = np.array([[0, 100], [200, 255]], dtype=np.uint8)


@pytest.mark.parametrize(
    ("image", "name", "wanted"),
    [
        (Image.fromarray(COLOURS), "a.png", COLOURS),
        (Image.fromarray(COLOURS).quantize(4), "a.png", COLOURS),
        (Image.fromarray(GRAY), "a.png", GRAY[..., None]),
        (Image.fromarray(GRAY > 150), "a.png", 255 * (GRAY > 150)[..., None]),
        (Image.fromarray(GRAY.astype(np.uint16) * 257), "a.png", GRAY[..., None]),
        (Image.fromarray(GRAY.astype(np.uint16) * 257), "a.tiff", GRAY[..., None]),
    ],
    ids=["RGB", "palette", "gray", "black and white", "16 bits", "16 bits of a TIFF"],
)
def test_an_image_of_any_mode_has_the_colors_of_its_pixels(tmp_path, image, name, wanted):
    assert (read(tmp_path, image, name) == wanted).all()


@pytest.mark.parametrize(
    ("pixels", "wanted"),
    [
        (np.float32([0, 0.2, 1]), [0, 51, 255]),
        (np.float32([0, 51, 255]), [0, 51, 255]),
        (np.float32([0, 0.2 * 65535, 65535]), [0, 51, 255]),
        (np.float32([-0.001, 0.2, 1.001]), [0, 51, 255]),  # less than half a step of 8 bits
        (np.float32([0, 0.01, 0.02]), [0, 3, 5]),
        (np.int32([0, 51, 255]), [0, 51, 255]),
        (np.int32([0, 1, 2]), [0, 1, 2]),
        (np.int32([0, 257 * 51, 65535]), [0, 51, 255]),
        (np.int32([0, 0, 0]), [0, 0, 0]),
        (np.float32([0, 1.2]), "0 to 1.2"),  # would be black
        (np.float32([-0.4, 0.5]), "-0.4 to 0.5"),
        (np.float32([0, 70000]), "0 to 70,000"),
        (np.int32([0, 4095]), "0 to 4,095"),
        (np.int32([-5, 100]), "-5 to 100"),
        (np.int32([0, 100000]), "0 to 100,000"),
        (np.float32([0, np.nan]), "NaN"),
        (np.float32([0, -np.inf]), "NaN"),
    ],
    ids=str,
)
def test_32_bits_are_scaled_by_the_largest_pixel_or_refused_in_a_line(tmp_path, pixels, wanted):
    image = Image.fromarray(pixels[None])
    if isinstance(wanted, list):
        assert read(tmp_path, image, "a.tiff")[0, :, 0].tolist() == wanted
        return
    reason = "a pixel is NaN or infinite" if wanted == "NaN" else f"pixels of 32 bits from {wanted}, which"
    with pytest.raises(InputError, match=rf"a\.tiff: not a readable image \({reason}"):
        read(tmp_path, image, "a.tiff")


def make_tiff_of_12_bits():
    tags = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 6}  # 4 x 1 pixels after the head
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items())
    pixels = bytes.fromhex("000fff800001")
    return struct.pack("<2sHI", b"II", 42, 16) + pixels + bytes(2) + struct.pack("<H", 9) + entries + bytes(4)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (make_tiff_of_12_bits(), [0, 255, 128, 0]),
        (b"P5 2 1 255\n\0\x33", [0, 51]),
        (b"P5 2 1 1023\n\0\0\0\xcc", [0, 51]),
        (b"P5 2 1 65535\n\0\0\x33\x33", [0, 51]),
    ],
    ids=["TIFF of 12 bits", "PGM up to 255", "up to 1023", "up to 65535"],
)
def test_gray_is_scaled_by_the_largest_value_that_the_file_allows(content, wanted):
    assert decoding.decode(content, "a")[0, :, 0].tolist() == wanted


def test_transparency_lies_over_white_also_in_a_palette_and_in_grey(tmp_path):
    alpha = np.array([[255, 0], [128, 255]], dtype=np.uint8)
    found = read(tmp_path, Image.fromarray(np.dstack([COLOURS, alpha])))
    assert (found[0, 0] == [255, 0, 0]).all()
    assert (found[0, 1] == 255).all()  # nothing of the hidden green
    assert abs(found[1, 0] - [127, 127, 255]).max() <= 1
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert read(tmp_path, palette, transparency=0).tolist() == [[[255] * 3, [40, 50, 60]]]
    gray = Image.fromarray(np.dstack([alpha, np.zeros_like(alpha)]), mode="LA")
    assert (read(tmp_path, gray) == 255).all()


def png(depth, color, row, transparent):
    """A PNG of one row of two pixels and a transparent color."""
    head = struct.pack(">IIBBBBB", 2, 1, depth, color, 0, 0, 0)
    parts = {b"IHDR": head, b"tRNS": struct.pack(">H" if color == 0 else ">HHH", *transparent)}
    chunks = {**parts, b"IDAT": zlib.compress(b"\0" + row), b"IEND": b""}.items()
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(x)) + name + x + struct.pack(">I", zlib.crc32(name + x)) for name, x in chunks
    )


@pytest.mark.parametrize(
    ("content", "second"),
    [
        (png(1, 0, b"\x40", [0]), 255),
        (png(1, 0, b"\x80", [1]), 0),
        (png(2, 0, b"\x60", [1]), 170),
        (png(4, 0, b"\x36", [3]), 102),
        (png(8, 0, b"\x36\x40", [0x36]), 0x40),
        (png(16, 0, b"\x36\x40\x36\x41", [0x3640]), 0x36),
        (png(8, 2, b"\1\2\3\1\2\4", [1, 2, 3]), [1, 2, 4]),
        (png(16, 2, b"\1\0\2\0\3\0\4\0\5\0\6\0", [0x100, 0x200, 0x300]), [4, 5, 6]),
    ],
    ids=["1 bit, black", "1 bit, white", "2 bits", "4 bits", "8 bits", "16 bits", "RGB", "RGB of 16 bits"],
)
def test_the_transparent_color_of_a_png_of_any_depth_is_white(content, second):
    first, found = decoding.decode(content, "a.png")[0].tolist()
    assert first == [255, 255, 255]
    assert found == (second if isinstance(second, list) else [second] * 3)


def test_cmyk_has_the_colors_that_it_prints(tmp_path):
    image = Image.fromarray(np.kron(COLOURS, np.ones((16, 16, 1), dtype=np.uint8))).convert("CMYK")
    found = read(tmp_path, image, "a.jpg", quality=95)
    assert abs(found[8, 8] - [255, 0, 0]).max() < 12
    assert abs(found[24, 24] - [90, 90, 90]).max() < 12


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_named(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png: not a readable image \("):
        read_rgb(tmp_path / "a.png")


def photograph(path, mode="RGB", **how):
    Image.fromarray(load_sample_images().images[1][:90, :120]).convert(mode).save(path, **how)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("plain", "how"),
    [
        (True, {"quality": 95}),
        (True, {"quality": 50, "progressive": True}),
        (True, {"subsampling": 0}),
        (True, {"mode": "L"}),
        (False, {"mode": "CMYK"}),
        (False, {"turned": True}),
    ],
    ids=str,
)
def test_jpegs_have_the_pixels_of_pil_and_those_of_other_colors_or_turned_are_left_to_it(tmp_path, plain, how):
    how = {"exif": exif(SIDEWAYS)} if "turned" in how else how
    photograph(tmp_path / "a.jpg", **how)
    assert decoding.is_plain_jpeg(tmp_path / "a.jpg") == plain
    assert (decoding.read_pixels(tmp_path / "a.jpg").numpy() == np.asarray(read_rgb(tmp_path / "a.jpg"))).all()


CUTS = [(kept, progressive, False) for kept in (0.1, 0.5, 0.9, 0.99) for progressive in (False, True)]


@pytest.mark.parametrize(("kept", "progressive", "filled"), [*CUTS, (0.5, False, True)])
def test_a_jpeg_cut_off_anywhere_is_damage_and_never_gray(tmp_path, kept, progressive, filled):
    content = photograph(tmp_path / "a.jpg", progressive=progressive)
    first = int(kept * len(content))
    (tmp_path / "a.jpg").write_bytes(content[:first] + bytes(filled * (len(content) - first)))
    for way in (read_rgb, decoding.read_pixels):
        with pytest.raises(InputError, match=r"a\.jpg: not a readable image \("):
            way(tmp_path / "a.jpg")
    assert decoding.describe_damage(tmp_path / "a.jpg")


def test_stray_bytes_before_the_end_of_a_jpeg_are_no_damage(tmp_path):
    content = photograph(tmp_path / "a.jpg")
    want = decoding.read_pixels(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(content[:-2] + b"abc" + content[-2:])
    assert torch.equal(decoding.read_pixels(tmp_path / "a.jpg"), want)
    assert decoding.describe_damage(tmp_path / "a.jpg") is None


def exif(*entries):
    """EXIF of these (tag, type, count, four bytes), in Intel's order of bytes."""
    body = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


SIDEWAYS = (decoding.ORIENTATION, 3, 1, b"\6\0\0\0")


@pytest.mark.parametrize(
    "odd", [(0x0100, 2, 4, b"abc\0"), (0x0102, 4, 1, b"\xff" * 4), (0x010E, 11, 1, bytes(4))], ids=str
)
def test_an_odd_tag_beside_the_orientation_leaves_the_photograph_readable(tmp_path, odd):
    path = tmp_path / "a.jpg"
    image = Image.fromarray(load_sample_images().images[0][:40, :60])
    image.save(path, exif=exif(SIDEWAYS, odd))
    plain = tmp_path / "plain.jpg"
    image.save(plain)
    turned = np.rot90(np.asarray(Image.open(plain)), -1)
    assert (np.asarray(read_rgb(path)) == turned).all()
    assert (decoding.read_pixels(path).numpy() == turned).all()


@pytest.mark.parametrize("value", range(1, 10))
def test_every_orientation_is_turned_as_pil_turns_it(tmp_path, value):
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=exif((decoding.ORIENTATION, 3, 1, bytes([value, 0, 0, 0]))))
    with Image.open(tmp_path / "a.png") as file:
        wanted = np.asarray(ImageOps.exif_transpose(file))
    assert (np.asarray(read_rgb(tmp_path / "a.png")) == wanted).all()


@pytest.mark.parametrize(
    "fault", [struct.error("odd"), TypeError("odd"), KeyError("odd"), AssertionError(), ZeroDivisionError("odd")]
)
@pytest.mark.parametrize("place", ["load", "getexif"])
def test_whatever_a_decoder_raises_is_damage_of_that_image(monkeypatch, tmp_path, fault, place):
    def fail(self):
        raise fault

    path = tmp_path / "a.png"
    Image.fromarray(COLOURS).save(path)
    monkeypatch.setattr(f"PIL.PngImagePlugin.PngImageFile.{place}", fail)
    for way in (read_rgb, decoding.read_pixels):
        with pytest.raises(InputError, match=r"a\.png: not a readable image \("):
            way(path)
    assert "not a readable image" in decoding.describe_damage(path)


def test_want_of_memory_is_no_damage(monkeypatch, tmp_path):
    def fail(*_):
        raise MemoryError

    Image.fromarray(COLOURS).save(tmp_path / "a.jpg")
    monkeypatch.setattr(decoding.simplejpeg, "decode_jpeg", fail)
    with pytest.raises(MemoryError):
        decoding.read_pixels(tmp_path / "a.jpg")


@pytest.mark.parametrize("most", [2000, 1500])  # Pillow warns from the one on, and refuses above twice it
@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".gif"])
def test_large_images_are_read_up_to_a_limit_of_ours_whatever_pillows_is(monkeypatch, tmp_path, ending, most):
    path = tmp_path / f"a{ending}"
    Image.new("L", (60, 60)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    assert decoding.read_pixels(path).shape == (60, 60, 3)
    assert read_rgb(path).size == (60, 60)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    assert decoding.is_plain_jpeg(path) == (ending == ".jpg")
    monkeypatch.setattr(decoding, "MOST_PIXELS", 3599)
    for way in (read_rgb, decoding.read_pixels):
        with pytest.raises(InputError, match=r"has 60 x 60 pixels, more than the 3,599 that are read .*make the image"):
            way(path)


def test_pillows_warnings_are_not_shown(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0" + struct.pack("<IH", 8, 9))
    code = "import sys; from datasets import decoding; decoding.read_rgb(sys.argv[1])"
    command = [sys.executable, "-W", "always", "-c", code, str(tmp_path / "a.jpg")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "PIL" not in done.stderr

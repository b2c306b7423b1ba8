"""Folders as they are found: hidden and companion files are no images, a file counts once, dangling links never."""

import contextlib
import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from made_data import make_image_folders
from PIL import Image, features
from torchvision.datasets.folder import IMG_EXTENSIONS

import datasets
from datasets import folders, prepare
from datasets.rankings import make, taxonomy
from util import InputError

CLUTTER_FOLDERS = (
    ".ipynb_checkpoints", "@eaDir", ".thumbnails", "__MACOSX", "lost+found", "PaxHeader", "cat.unfinished",
)  # fmt: skip
CLUTTER_FILES = (
    "._cat_0.JPEG", "Thumbs.db.jpg", "ehthumbs_vista.bmp", "SYNOPHOTO_THUMB_M.jpg", "Desktop.ini.png",
)  # fmt: skip


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no image")


def clutter(folder):
    """What desktops, network storage and archives leave, in a folder."""
    for name in CLUTTER_FILES:
        put(folder / name)
    for name in CLUTTER_FOLDERS:
        put(folder / name / "deep" / "cat_0.JPEG")


@pytest.fixture
def cluttered(tmp_path):
    """Two classes of two training images and one validation image, with clutter on every level."""
    for split, each in (("train", 2), ("val", 1)):
        make_image_folders(tmp_path / "mine" / split, ["cat", "dog"], each)
        for place in ("", "cat", "cat/deep"):
            clutter(tmp_path / "mine" / split / place)
    return tmp_path / "mine"


def names(images):
    return [os.path.basename(os.fspath(f)) for f in images]


OURS = ["cat_0.JPEG", "cat_1.JPEG", "dog_0.JPEG", "dog_1.JPEG"]


def test_what_others_leave_in_a_folder_is_no_image_and_no_class(cluttered):
    train, test = datasets.build_pair("path", cluttered)
    assert train.classes == ["cat", "dog"]
    assert names(train.images) == OURS
    assert names(test.images) == ["cat_0.JPEG", "dog_0.JPEG"]
    for split, count in (("train", 4), ("test", 2), ("all", 6)):
        outliers = datasets.build_outliers("AwA2", cluttered, split)
        assert (len(outliers), outliers.classes) == (count, ["cat", "dog"])
    assert list(make.read_classes(None, cluttered)) == ["cat", "dog"]
    shutil.rmtree(cluttered / "val")
    assert taxonomy.read_superclasses(str(cluttered)) == {"train": ["cat", "dog"]}


def test_what_was_left_out_is_one_line_with_its_number(cluttered):
    train, test = datasets.build_pair("path", cluttered)
    line = (train.left_out + test.left_out).describe()
    count = 2 * (3 * len(CLUTTER_FOLDERS) + 2 * len(CLUTTER_FILES))  # beside class folders, files do not matter
    assert line.startswith(f"left out: {count} hidden or companion files and folders (such as ")
    assert "\n" not in line
    kept = datasets.build("path", cluttered, which=datasets.Selection(exclude=("dog",)))
    assert kept.left_out.describe() == train.left_out.describe()


def test_preparing_copies_no_clutter(cluttered, tmp_path):
    plan = [(Path("copies/cat"), cluttered / "train/cat")]
    assert [prepare.carry_out(plan, tmp_path, copy=True) for _ in range(2)] == [1, 0]
    assert sorted(f.name for f in (tmp_path / "copies/cat").rglob("*")) == OURS[:2]


# ---- endings ---------------------------------------------------------------------------------------------------------

ORANGE = (255, 153, 51)  # also of the palette for the web
# formats that Pillow reads and does not write
NOT_WRITTEN = {"CUR", "DCX", "FITS", "FLI", "FTEX", "GBR", "IPTC", "PCD", "PIXAR", "PSD", "SUN", "XPM"}


def write_any(path, format):
    """An orange image in the first mode that a format takes; whether it is in color."""
    for mode in ("RGB", "P", "L", "1"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            Image.new("RGB", (32, 32), ORANGE).convert(mode).save(path, format)
            return mode in ("RGB", "P")
    raise AssertionError(f"{format} takes no mode")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:PIL")
def test_an_image_of_every_ending_that_pillow_reads_is_found_and_read(tmp_path):
    formats = Image.registered_extensions()
    read = folders.find_image_endings()
    assert read >= {*IMG_EXTENSIONS, *[".jfif", ".jpe", ".gif", ".tga", ".jp2", ".mpo", ".apng"]}
    assert ".avif" in read or not features.check("avif")
    assert not read & {*[".csv", ".txt", ".json", ".mat", ".h5", ".hdf", ".eps", ".pdf", ".mpg", ".xml"]}
    written = {e for e in read if formats[e] in Image.SAVE}
    assert {formats[e] for e in read - written} <= NOT_WRITTEN
    (tmp_path / "a").mkdir()
    in_color = {e for e in written if write_any(tmp_path / "a" / f"0{e}", formats[e])}
    os.rename(tmp_path / "a" / "0.png", tmp_path / "a" / "0.PNG")
    data = datasets.build("path", tmp_path)
    assert {os.path.splitext(f)[1].lower() for f in data.images} == written
    assert data.left_out.describe() == ""
    for i, image in enumerate(data.images):
        pixels = data.pixels(i).float()
        assert pixels.shape[0] == pixels.shape[1]
        if os.path.splitext(image)[1].lower() in in_color:
            assert (pixels[8, 8] - torch.tensor(ORANGE)).abs().max() < 12, image


def test_of_several_frames_the_first_is_read(tmp_path):
    (tmp_path / "a").mkdir()
    first, second = (Image.new("RGB", (16, 16), color) for color in ("red", "blue"))
    endings = [".gif", ".png", ".tiff", ".webp", *([".avif"] if features.check("avif") else [])]
    for ending in endings:
        first.save(tmp_path / "a" / f"0{ending}", save_all=True, append_images=[second])
    data = datasets.build("path", tmp_path)
    assert len(data) == len(endings)
    for i in range(len(data)):
        assert (data.pixels(i)[4, 4] - torch.tensor([255.0, 0, 0])).abs().max() < 5


@pytest.fixture
def mixed(tmp_path):
    """Two images a class, others that nothing here reads, and files that are no images."""
    make_image_folders(tmp_path / "mine" / "train", ["cat", "dog"], each=2)
    for name in ("1.HEIC", "2.heic", "a.csv", "a.txt", "a.json", "a.mat", "a"):
        put(tmp_path / "mine" / "train" / "cat" / name)
    put(tmp_path / "mine" / "train" / "dog" / "deep" / "3.jxl")
    return tmp_path / "mine"


def test_images_that_nothing_here_reads_are_counted_with_their_ending_wherever_folders_are_read(mixed):
    train = mixed / "train"
    line = f"left out: 2 unreadable images ending in .heic (such as {train}/cat/1.HEIC), "
    line += f"1 unreadable images ending in .jxl (such as {train}/dog/deep/3.jxl)"
    for data in (datasets.build("path", mixed), datasets.build_outliers("path", mixed, "train")):
        assert names(data.images) == OURS
        assert data.left_out.describe() == line
    put(train / "cat" / "._1.heic")
    assert "1 hidden or companion files" in datasets.build("path", mixed).left_out.describe()
    for f in (train / "dog").glob("*.JPEG"):
        f.unlink()
    with pytest.raises(InputError, match=r"the class folder dog holds no image; left out: .*1 .* ending in \.jxl"):
        datasets.build("path", mixed)


# ---- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [".", "..", "../..", "deep"])
def test_a_link_to_a_folder_above_or_to_one_that_counts_already_adds_no_image(tmp_path, target):
    make_image_folders(tmp_path / "mine", ["cat", "dog"], each=2)
    make_image_folders(tmp_path / "mine" / "cat", ["deep"], each=1)
    (tmp_path / "mine" / "cat" / "a_link").symlink_to(target)
    (tmp_path / "mine" / "cat" / "deep" / "up").symlink_to(os.path.join("..", target))
    data = datasets.build("path", tmp_path / "mine")
    assert names(data.images) == [*OURS[:2], "deep_0.JPEG", *OURS[2:]]
    assert data.left_out.describe().startswith("left out: 2 links to folders above or to what counts already (such as ")
    outliers = datasets.build_outliers("AwA2", tmp_path / "mine")
    assert len(outliers) == 5


def test_a_linked_file_counts_where_its_target_does_not_yet(tmp_path):
    make_image_folders(tmp_path / "mine", ["cat", "dog"], each=2)
    make_image_folders(tmp_path / "elsewhere", ["cats"], each=1)
    for name, target in (("0.JPEG", "cat_0.JPEG"), ("1.JPEG", "../../elsewhere/cats/cats_0.JPEG")):
        (tmp_path / "mine" / "cat" / name).symlink_to(target)
        (tmp_path / "mine" / "cat" / f"again_{name}").symlink_to(target)
    data = datasets.build("path", tmp_path / "mine")
    assert names(data.images) == ["1.JPEG", *OURS]
    assert data.left_out.describe().startswith("left out: 3 links to")


def test_a_linked_class_is_one_and_a_link_to_the_folder_of_classes_is_none(tmp_path):
    make_image_folders(tmp_path / "source", ["cats"], each=1)
    make_image_folders(tmp_path / "mine", ["dog"], each=2)
    (tmp_path / "mine" / "cat").symlink_to(tmp_path / "source" / "cats")
    (tmp_path / "source" / "cats" / "up").symlink_to(tmp_path / "source")  # above the place where the link leads
    for name, target in (("all", "."), ("above", "..")):
        (tmp_path / "mine" / name).symlink_to(target)
    data = datasets.build("path", tmp_path / "mine")
    assert data.classes == ["cat", "dog"]
    assert names(data.images) == ["cats_0.JPEG", *OURS[2:]]
    assert data.left_out.describe().startswith("left out: 3 links to folders above")


def test_a_file_of_two_classes_counts_in_both(tmp_path):
    make_image_folders(tmp_path / "mine", ["cat", "dog"], each=2)
    (tmp_path / "mine" / "cat" / "friend").symlink_to("../dog")
    data = datasets.build("path", tmp_path / "mine")
    assert data.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert data.left_out.describe() == ""


def test_dangling_links_are_left_out_and_counted_on_every_level(tmp_path):
    make_image_folders(tmp_path / "mine", ["cat", "dog"], each=2)
    for name in ("bird", "cat/1.JPEG", "cat/folder", "dog/itself.JPEG"):
        (tmp_path / "mine" / name).symlink_to("itself.JPEG" if "itself" in name else "nowhere")
    data = datasets.build("path", tmp_path / "mine")
    assert (data.classes, names(data.images)) == (["cat", "dog"], OURS)
    assert data.left_out.describe().startswith("left out: 4 dangling links (such as ")
    assert names(datasets.build_outliers("path", tmp_path / "mine").images) == OURS


def test_a_folder_or_pipe_with_an_images_name_is_no_image(tmp_path):
    make_image_folders(tmp_path / "mine", ["cat", "dog"], each=2)
    make_image_folders(tmp_path / "mine" / "cat", ["inner.jpg"], each=1)
    os.mkfifo(tmp_path / "mine" / "cat" / "pipe.jpg")  # to open it would wait for ever
    assert names(datasets.build("path", tmp_path / "mine").images) == [*OURS[:2], "inner.jpg_0.JPEG", *OURS[2:]]


@pytest.mark.parametrize("place", ["", "cat", "cat/deep"])
def test_a_folder_that_cannot_be_read_is_named_not_passed_over(monkeypatch, tmp_path, place):
    make_image_folders(tmp_path, ["cat", "dog"], each=1)
    make_image_folders(tmp_path / "cat", ["deep"], each=1)
    scan = os.scandir

    def locked(folder):
        if Path(folder) == tmp_path / place:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(InputError, match=rf"--data_folder {tmp_path / place}: cannot be read \(Permission denied\)"):
        datasets.build("path", tmp_path)

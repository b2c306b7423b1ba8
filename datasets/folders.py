"""What counts in a folder of images, wherever one is read, packed or copied: which files are images, which folders are
classes, and what is left out.
"""

import functools
import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from util import InputError, one_form

# what Pillow knows and does not decode itself: data that only other programs decode, film, pages
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# images that Pillow, or an older one, does not read: counted where they lie among images
UNREAD_ENDINGS = {
    ".arw", ".avif", ".cr2", ".cr3", ".crw", ".dcm", ".djvu", ".dng", ".emf", ".eps", ".exr", ".hdr", ".heic",
    ".heif", ".hif", ".jp2", ".jxl", ".jxr", ".nef", ".nrw", ".orf", ".pef", ".qoi", ".raf", ".rw2", ".srw", ".svg",
    ".svgz", ".webp", ".wmf", ".x3f", ".xcf",
}  # fmt: skip
# what desktops, network storage and archives leave beside images, in lower case; whatever begins with a dot is hidden
COMPANIONS = {
    "@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found",
    "__macosx",
}  # fmt: skip
COMPANION_BEGINNINGS = (".", "thumbs.db", "ehthumbs", "desktop.ini", "synophoto_thumb", "synofile_thumb", "paxheader")
UNFINISHED = ".unfinished"  # the end of a name that a copy has until it is whole

# split of a data set -> its folders or packs, the first one that is there, and how rows of an image list call it
SPLITS = {"train": ("train",), "test": ("val", "test"), "all": ("train", "val", "test")}

HIDDEN, DANGLING = "hidden or companion files and folders", "dangling links"
TWICE = "links to folders above or to what counts already"


def check_folder(path: str | Path, flag: str = "") -> None:
    """Raise InputError, beginning with the flag, where a path is no folder, but a file or nothing."""
    path, source = Path(path), f"{flag} {path}".lstrip()
    if path.is_dir():
        return
    if path.exists():
        more = "; give the folder that holds it" if path.suffix == ".pack" else ""
        raise InputError(f"{source}: is a file, not a folder{more}")
    raise InputError(f"{source}: no such folder")


@dataclass
class LeftOut:
    """What was not taken for an image or a class: HIDDEN, TWICE, DANGLING, or images of an ending that is not read ->
    how many, and the first path.
    """

    found: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, kind: str, path: str, count: int = 1) -> None:
        """So many more of a kind, such as `path`."""
        before, first = self.found.get(kind, (0, path))
        self.found[kind] = before + count, first

    def __add__(self, other: "LeftOut") -> "LeftOut":
        total = LeftOut(dict(self.found))
        for kind, (count, path) in other.found.items():
            total.add(kind, path, count)
        return total

    def describe(self) -> str:
        """In words, as "left out: 2 dangling links (such as a/1.jpg)"; "" where there is nothing."""
        parts = [f"{count} {kind} (such as {path})" for kind, (count, path) in self.found.items()]
        return f"left out: {', '.join(parts)}" if parts else ""


def is_companion(name: str) -> bool:
    """Whether a file or folder of this name is no part of a data set."""
    name = name.lower()
    return name.startswith(COMPANION_BEGINNINGS) or name in COMPANIONS or name.endswith(UNFINISHED)


@functools.cache
def find_image_endings() -> frozenset[str]:
    """List the endings, in lower case, of the image files that this Pillow reads."""
    known = Image.registered_extensions()  # first: it finds out what can be opened
    read = {*Image.OPEN, "MPO"} - NOT_DECODED  # JPEG's reader opens MPO
    return frozenset(ending for ending, format in known.items() if format in read)


def list_subfolders(folder: Path, left_out: LeftOut) -> list[str]:
    """Sorted names of the folders in a folder, the classes, say. A link to `folder`, or to one above it, is none."""
    found, home = [], os.path.realpath(folder)
    for entry in list_entries(folder):
        is_link = entry.is_symlink()
        if is_link and not os.path.exists(entry.path):
            left_out.add(HIDDEN if is_companion(entry.name) else DANGLING, entry.path)
        elif not _is_folder(entry):
            continue
        elif is_companion(entry.name):
            left_out.add(HIDDEN, entry.path)
        elif is_link and _lies_in(home, os.path.realpath(entry.path)):
            left_out.add(TWICE, entry.path)
        else:
            found.append(entry.name)
    return sorted(found, key=one_form)


def holds_classes(folder: Path) -> bool:
    """Whether a folder, or train in it, holds several folders with images directly in them."""
    for place in filter(Path.is_dir, (folder, folder / "train")):
        names = list_subfolders(place, LeftOut())
        if sum(any(_find_kind(entry) == "image" for entry in list_entries(place / name)) for name in names) > 1:
            return True
    return False


def find_images_below(folder: Path, left_out: LeftOut) -> list[Path]:
    """Sorted image files at any depth, each real file once: links are followed, after all that is there without them.

    A link to a folder above, or to what is there already, adds nothing; `left_out` grows by it.
    """
    home, seen, found, linked = os.path.realpath(folder), set(), [], []
    waiting = deque([str(folder)])
    while waiting:
        place = waiting.popleft()
        real = os.path.realpath(place)
        if real in seen or (real != home and _lies_in(home, real)):
            left_out.add(TWICE, place)
            continue
        seen.add(real)
        inner = []
        for entry in list_entries(place):
            kind = _find_kind(entry)
            if kind == "folder":
                if entry.is_symlink() and _lies_in(real, os.path.realpath(entry.path)):
                    left_out.add(TWICE, entry.path)
                else:
                    (waiting if entry.is_symlink() else inner).append(entry.path)
            elif kind == "image":
                (linked if entry.is_symlink() else found).append(entry.path)
            elif kind:
                left_out.add(kind, entry.path)
        waiting.extendleft(reversed(inner))  # before the links that wait
    seen = {os.path.realpath(f) for f in found} if linked else set()
    for path in linked:
        real = os.path.realpath(path)
        if real in seen:
            left_out.add(TWICE, path)
        else:
            seen.add(real)
            found.append(path)
    return sorted(map(Path, found))


def list_entries(folder) -> list[os.DirEntry]:
    """List what lies in a folder, by name. Raises InputError where it cannot be read, since images would be lost."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None


def _is_folder(entry: os.DirEntry) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _find_kind(entry: os.DirEntry) -> str:
    """ "folder", "image", a kind of LeftOut, or "" for what does not matter."""
    is_link = entry.is_symlink()
    if _is_folder(entry):
        return HIDDEN if is_companion(entry.name) else "folder"
    if is_link and not is_companion(entry.name) and not os.path.exists(entry.path):
        return DANGLING
    is_file = os.path.isfile(entry.path) if is_link else entry.is_file()
    return find_kind(entry.name) if is_file or is_companion(entry.name) else ""


def find_kind(name: str) -> str:
    """Of a file by its name, with the folders above it or without: "image", a kind of LeftOut, or ""."""
    ending = os.path.splitext(name)[1].lower()
    is_read = ending in find_image_endings()
    if not is_read and ending not in UNREAD_ENDINGS:
        return ""
    if any(map(is_companion, name.split("/"))):
        return HIDDEN
    return "image" if is_read else f"unreadable images ending in {ending}"


def find_real_paths(files) -> list[str]:
    """Find the real path of each file: the one rule of what is the same file, whatever links and dots lead to it. An
    image of a pack is the file that it was made of.
    """
    folder = functools.cache(os.path.realpath)
    found = [os.path.join(folder(os.path.dirname(f)), os.path.basename(f)) for f in map(os.fspath, files)]
    return [os.path.realpath(f) if os.path.islink(f) else f for f in found]


def _lies_in(path: str, folder: str) -> bool:
    """Whether a real path is a real folder, or below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")

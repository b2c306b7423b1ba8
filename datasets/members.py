"""Images as members of tar and zip archives: where each lies, and its bytes.

The members of a tar are listed once, since that takes a look at each; the index is kept beside it, or in the cache
folder. A zip ends with such a list.
"""

import contextlib
import json
import os
import re
import struct
import tarfile
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

import util
from datasets import folders, stored_files
from datasets.folders import LeftOut
from datasets.stored_files import StoredFile
from util import InputError

SIDECARS = ("cls", "json", "txt")  # beside KEY.jpg: KEY.cls with its class, KEY.json with columns, KEY.txt
MOST_VALUES, MOST_LETTERS = 2**16, 256  # of a column of labels: what has more is captions, addresses and the like
MOST_BYTES = 2**20  # of a sidecar
CUT = "shards that end too early"
FORM = 2  # of an index
UNREADABLE, NO_BYTES = -2, -1
FAULTS = {UNREADABLE: "its row group cannot be read", NO_BYTES: "the file holds its path at most, and no bytes"}
LIST_AGAIN = "give the same command again"
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a member of a zip: its mark, and the lengths of what precedes the data


class Archive:
    """A file of many images: names [n] in UTF-8, or None where they are the rows' numbers; begin, size: [n] int64 where
    their bytes lie in `file`, which is another one where `path` is compressed; in place of begin, one of FAULTS.
    """

    def __init__(self, path: str | Path, file: StoredFile, names, begin: np.ndarray, size: np.ndarray):
        self.path, self.file, self.names, self.begin, self.size = str(path), file, names, begin, size
        self.real, self.state = os.path.realpath(path), stored_files.find_state(path)

    def name(self, row: int) -> str:
        """Return a member's name, or its row's number."""
        return str(row) if self.names is None else self.names[row].decode(errors="surrogateescape")

    def read(self, row: int) -> bytes:
        """Read a member's bytes. Raises ValueError where they are missing, PackInputError if the file has changed."""
        begin, size = int(self.begin[row]), int(self.size[row])
        if begin in FAULTS:
            raise ValueError(FAULTS[begin])
        if begin + size > self.file.size:
            raise ValueError("the shard ends inside it")
        return self.file.read(begin, size).tobytes()

    def members(self) -> list["Member"]:
        return [Member(self, row) for row in range(len(self.begin))]


class ZipArchive(Archive):
    """As an Archive; begin: of members' headers. deflated: [n] bool."""

    def __init__(self, path: str | Path, names, begin: np.ndarray, size: np.ndarray, deflated: np.ndarray):
        super().__init__(path, StoredFile(path, LIST_AGAIN), names, begin, size)
        self.deflated = deflated

    def read(self, row: int) -> bytes:
        begin = int(self.begin[row])
        mark, name, extra = LOCAL_HEADER.unpack(self.file.read(begin, LOCAL_HEADER.size))
        if mark != b"PK\3\4":
            raise ValueError("its header in the archive is corrupt")
        content = self.file.read(begin + LOCAL_HEADER.size + name + extra, int(self.size[row])).tobytes()
        return zlib.decompress(content, -zlib.MAX_WBITS) if self.deflated[row] else content


@dataclass(frozen=True, slots=True)
class Member:
    """One image of an archive; as a path, the archive's real one, a colon and its name there."""

    archive: Archive
    row: int

    def __fspath__(self) -> str:
        return f"{self.archive.real}:{self.archive.name(self.row)}"

    def __str__(self) -> str:
        return f"{self.archive.path}:{self.archive.name(self.row)}"

    def read(self) -> bytes:
        """As `Archive.read`."""
        return self.archive.read(self.row)

    @property
    def state(self) -> tuple[int, int]:
        """What changes when its archive does."""
        return self.archive.state


class Coded(NamedTuple):
    """A column of labels: the distinct ones, and [n] int32 which of them each member has, -1: none."""

    values: list[str | int | float]
    codes: np.ndarray


class Index(NamedTuple):
    """What lies in a tar: names, begin, size as of Archive; labels by column; what is left out."""

    names: np.ndarray
    begin: np.ndarray
    size: np.ndarray
    columns: dict[str, Coded]
    left_out: LeftOut


# ---- tar -------------------------------------------------------------------------------------------------------------


def announce(files: list[Path]) -> None:
    """Say that the members of tars are about to be listed, where they are."""
    if new := [path for path in files if not any(place.exists() for place in _find_places(path))]:
        more = f" and {len(new) - 1} others" if new[1:] else ""
        print(f"{new[0]}{more}: the members are listed, once", flush=True)


def _find_places(path: Path) -> tuple[Path, Path]:
    """Where the index of a tar may be: next to it, and in the cache folder."""
    return path.with_name(f"{path.name}.index.npz"), Path(f"{stored_files.name_in_cache(path)}.index.npz")


def open_tar(path: Path) -> tuple[Archive, Index]:
    """Open the images of a tar. Raises InputError where it is none, is compressed, or has a key twice."""
    file = StoredFile(path, LIST_AGAIN)
    beside, cached = _find_places(path)
    index = _read_index(beside, file.state) or _read_index(cached, file.state)
    if index is None:
        with stored_files.wait_for_others(path):
            index = _read_index(beside, file.state) or _read_index(cached, file.state)
            if index is None:
                if beside.exists() or cached.exists():
                    print(f"{path}: is not what it was when its members were listed; they are listed again", flush=True)
                index = list_tar(path)
                _keep_index(index, file.state, (beside, cached))
    return Archive(path, file, index.names, index.begin, index.size), index


def _read_index(path: Path, state: tuple[int, int]) -> Index | None:
    """Read the index of a file; None where there is none of a tar in this state."""
    arrays = stored_files.read_arrays(path) if path.exists() else None
    about = json.loads(str(arrays["about"])) if arrays and "about" in arrays else {}
    if arrays is None or (about.get("form"), about.get("state")) != (FORM, list(state)):
        return None
    columns = {name: Coded(values, arrays[f"codes {i}"]) for i, (name, values) in enumerate(about["columns"].items())}
    left_out = LeftOut({kind: tuple(of) for kind, of in about["left_out"].items()})
    return Index(arrays["names"], arrays["begin"], arrays["size"], columns, left_out)


def _keep_index(index: Index, state: tuple[int, int], places: tuple[Path, Path]) -> None:
    """Write the index to the first of the places that can be written to."""
    about = {"form": FORM, "state": state, "left_out": index.left_out.found}
    about["columns"] = {name: column.values for name, column in index.columns.items()}
    arrays = {"names": index.names, "begin": index.begin, "size": index.size, "about": np.array(json.dumps(about))}
    arrays |= {f"codes {i}": column.codes for i, column in enumerate(index.columns.values())}
    for place in places:
        with contextlib.suppress(InputError):
            return stored_files.write_arrays(place, arrays)
    print(f"{places[0]} and {places[1]}: cannot be written; the archive is listed again at each start", flush=True)


def list_tar(path: Path) -> Index:
    """List the images of a tar and their labels, by its headers and sidecars alone, in the order of the images' keys.

    A key is a name up to the first dot after its folder, as WebDataset has it; an image with more dots is one of its
    own.
    """
    listing = _Listing(path)
    with path.open("rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise InputError(f"{path}: is compressed, so that no image is found without all before it; {UNZIP}")
        file.seek(0)
        try:
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (it holds nothing but the file)
        except tarfile.TarError as error:
            raise InputError(f"{path}: not readable as a tar file ({util.reason(error)})") from None
        end, last = os.fstat(file.fileno()).st_size, ""
        for member in _iterate(tar):
            last = member.name.removeprefix("./")
            if member.isreg():
                listing.add(last, member, file, end)
            elif not member.isdir() and folders.find_kind(last) == "image":
                listing.left_out.add(folders.TWICE, f"{path}:{last}")
        file.seek(min(tar.offset, end))
        if any(block := file.read(tarfile.BLOCKSIZE)) or len(block) < tarfile.BLOCKSIZE:  # where zeros must be
            listing.cut(last)
    return listing.close()


UNZIP = "unpack it with gunzip first (JPEGs hardly shrink by gzip)"


def _iterate(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members, none of which is kept; what ends too early just ends."""
    with contextlib.suppress(tarfile.TarError):
        while (member := tar.next()) is not None:
            tar.members = []
            yield member


class _Listing:
    """An Index while it is made. rows: by key."""

    def __init__(self, path: Path):
        self.path, self.left_out = path, LeftOut()
        self.rows: dict[str, int] = {}
        self.names: list[bytes] = []  # b"" until the key's image comes
        self.begin, self.size = array("q"), array("q")
        self.columns: dict[str, tuple[dict, array]] = {}  # value -> code; the code of each row
        self.fault = ""  # of a shard with labels

    def add(self, name: str, member: tarfile.TarInfo, file: BinaryIO, end: int) -> None:
        """Add a member that is an image, or tells of one. end: of the file."""
        folder, slash, base = name.rpartition("/")
        stem, _, field = base.partition(".")
        kind = folders.find_kind(name)
        if kind == "image":
            self._add_image(name if "." in field else f"{folder}{slash}{stem}", name, member)
        elif kind:
            self.left_out.add(kind, f"{self.path}:{name}")
        elif field.lower() in SIDECARS and member.size <= MOST_BYTES and member.offset_data + member.size <= end:
            file.seek(member.offset_data)
            row = self._find_row(f"{folder}{slash}{stem}")
            for column, value in self._read_sidecar(name, field.lower(), file.read(member.size)).items():
                self._put(column, row, value, column == field.lower())

    def _find_row(self, key: str) -> int:
        row = self.rows.setdefault(key, len(self.rows))
        if row == len(self.names):
            self.names.append(b"")
            self.begin.append(-1)
            self.size.append(0)
        return row

    def _add_image(self, key: str, name: str, member: tarfile.TarInfo) -> None:
        row = self._find_row(key)
        if self.names[row]:
            first = self.names[row].decode(errors="surrogateescape")
            fault = (
                f"{self.path}:{name}: the key {key} is there twice, first as {first}; give each image a key of its own"
            )
            row = self._find_row(name)  # class folders may hold 1.jpg and 1.png
            if name == first or self.names[row]:
                raise InputError(fault)
            self.fault = self.fault or fault
        self.names[row] = name.encode(errors="surrogateescape")
        self.begin[row], self.size[row] = member.offset_data, member.size

    def _read_sidecar(self, name: str, field: str, content: bytes) -> dict[str, str | int | float]:
        """Read the labels that a member holds, by column."""
        text = content.decode(errors="replace").strip()
        if field != "json":
            return {field: int(text) if re.fullmatch(r"-?\d{1,18}", text) else text}
        try:
            found = json.loads(text)
        except ValueError as error:
            raise InputError(f"{self.path}:{name}: not readable as JSON ({util.reason(error)})") from None
        return found if isinstance(found, dict) else {}

    def _put(self, column: str, row: int, value, is_file: bool) -> None:
        """Put a label of a row; is_file: of KEY.cls or KEY.txt, which count more than such entries in a JSON."""
        kept = isinstance(value, int | float | str) and not isinstance(value, bool)
        if not kept or (isinstance(value, str) and len(value) > MOST_LETTERS):
            return
        values, codes = self.columns.setdefault(column, ({}, array("i")))
        codes.extend([-1] * (row + 1 - len(codes)))
        if len(values) <= MOST_VALUES and (is_file or codes[row] < 0 or column not in SIDECARS):
            codes[row] = values.setdefault(value, len(values))

    def cut(self, last: str) -> None:
        """Note that the shard ends too early, in `last` or after it; leave out an image whose label comes later."""
        self.left_out.add(CUT, f"{self.path}:{last}")
        row = len(self.names) - 1
        if row >= 0 and self.columns and all(len(codes) <= row or codes[row] < 0 for _, codes in self.columns.values()):
            self.names[row] = b""

    def close(self) -> Index:
        rows = np.flatnonzero([bool(name) for name in self.names])
        columns = {}
        for name, (values, codes) in self.columns.items():
            if len(values) <= MOST_VALUES:
                of_row = np.full(len(self.names), -1, np.int32)
                of_row[: len(codes)] = codes
                if (of_row[rows] >= 0).any():  # not of README.txt alone
                    columns[name] = Coded([*values], of_row[rows])
        if columns and self.fault:
            raise InputError(self.fault)
        names = np.array([name for name in self.names if name], dtype=np.bytes_)
        begin, size = (np.array(x, dtype=np.int64)[rows] for x in (self.begin, self.size))
        return Index(names, begin, size, columns, self.left_out)


# ---- zip -------------------------------------------------------------------------------------------------------------


def _decode_name(info: zipfile.ZipInfo) -> str:
    """Return a member's name, which macOS and Info-ZIP write in UTF-8 without saying so."""
    with contextlib.suppress(UnicodeError):
        return info.filename.encode("cp437").decode()
    return info.filename


def open_zip(path: Path) -> tuple[ZipArchive, LeftOut]:
    """Open the images of a zip, and what is left out. Raises InputError where it is none, or is not readable."""
    left_out, names, rows = LeftOut(), {}, []
    try:
        with zipfile.ZipFile(path) as file:
            found = file.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: not readable as a zip file ({util.reason(error)})") from None
    for info in found:
        name = _decode_name(info).replace("\\", "/").removeprefix("./")
        kind = "" if info.is_dir() else folders.find_kind(name)
        if kind != "image":
            if kind:
                left_out.add(kind, f"{path}:{name}")
            continue
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            how = "is encrypted" if info.flag_bits & 1 else f"is compressed by method {info.compress_type}"
            raise InputError(f"{path}:{name}: {how}; pack the zip again, without that")
        if name in names:
            raise InputError(f"{path}:{name}: is in the zip twice; give each image a name of its own")
        names[name] = len(rows)
        rows.append((info.header_offset, info.compress_size, info.compress_type))
    begin, size, method = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    listed = np.array([name.encode(errors="surrogateescape") for name in names], dtype=np.bytes_)
    return ZipArchive(path, listed, begin, size, method == zipfile.ZIP_DEFLATED), left_out

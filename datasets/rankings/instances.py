"""Rankings without classes: a table that says to which photograph, place and city, or frame, shot and video, an image
belongs.
"""

from pathlib import Path

import torch

from datasets import ImageData, lists, sources, text_files
from datasets.folders import LeftOut, find_images_below, find_real_paths
from datasets.rankings import taxonomy
from util import InputError


def build(folder: str | Path, table: str | Path) -> tuple[ImageData, torch.Tensor, list[str]]:
    """Return the images that a CSV names, labeled by their finest group; groups [G, L] of the labels; names of the
    levels.

    folder: the images' paths in the table are relative to it, or to an image list's own folder. table: a header
    `image,<finest>,...,<coarsest>`, then a row an image with the name of its group at each level. A group lies in one
    group of the next level.
    Raises InputError, naming --instance_ranks and the line.
    """
    flag, folder = f"--instance_ranks {table}", Path(folder)
    levels, rows = _read_rows(Path(table), flag)
    named = [(line, name) for line, name, _ in rows]
    root, listed = (folder.parent, _list_images(folder, "all")) if lists.is_list(folder) else (folder, None)
    images = lists.find_images(named, root, flag, "--data_folder" if listed is None else "the image list's folder")
    for (line, name), real in zip(named, find_real_paths(images), strict=True):
        if listed is not None and real not in listed:
            raise InputError(f"{flag}, line {line}: the image {name} is not in the list --data_folder {folder}")
    columns = [lists.number_labels(column, key=None) for column in zip(*(of for _, _, of in rows), strict=True)]
    numbers, classes = torch.tensor([of_level for of_level, _ in columns]), columns[0][1]  # [L, n]
    groups = torch.zeros(len(classes), len(levels), dtype=torch.long)
    groups[numbers[0]] = numbers.T
    return ImageData(images, numbers[0], classes, groups=True), groups, levels


def _list_images(path: Path, split: str) -> set[str]:
    """List the real paths of the images of an image list. Raises InputError."""
    try:
        return set(find_real_paths(lists.read_list(path, split)[0]))
    except InputError as error:
        raise InputError(f"--data_folder {error}") from None


def _read_rows(path: Path, flag: str) -> tuple[list[str], list[tuple[int, str, list[str]]]]:
    """Names of the levels, and of each row its line, the image, and its groups."""
    found = text_files.read_rows(path, flag)
    if not found:
        raise InputError(f"{flag}: not readable as CSV (it is empty)")
    if found[0][1][0] != "image":
        raise InputError(f"{flag}: the first line must be `image,<finest level>,...,<coarsest>`")
    if len(found) < 2:
        raise InputError(f"{flag}: names no image")
    return taxonomy.parse_levels(found, "image", flag)


def count_unlisted(data: ImageData, folder: str | Path) -> tuple[int, LeftOut]:
    """How many training images of the folder or list the table does not name, and what of the folder is no image."""
    left_out = LeftOut()
    if lists.is_list(Path(folder)):
        found = _list_images(Path(folder), "train")
    else:
        root = sources.find_split_folder(Path(folder), "train")
        # a pack beside the listed images has none of its own
        found = set(find_real_paths(find_images_below(root, left_out) if root.is_dir() else ()))
    return len(found - {*find_real_paths(data.images)}), left_out


def summarize_groups(groups: torch.Tensor, levels: list[str], taus, labels: torch.Tensor) -> list[str]:
    """Return the lines of a run: ranks, their temperatures, and how many images an image has at each."""
    lines, closer = [], torch.zeros(len(labels), dtype=torch.long)
    for rank, (level, tau) in enumerate(zip(levels, taus, strict=True)):
        of_image = groups[labels, rank]
        shared = torch.bincount(of_image)[of_image]  # images of the same group, itself included
        lines.append(describe_rank(rank, f"same {level}, {len(of_image.unique())} of them", tau, shared - closer))
        closer = shared
    return lines


def describe_rank(rank: int, what: str, tau: float, counts: torch.Tensor) -> str:
    """Return the line of a rank. counts: [n] how many images each training image has at it."""
    counts = counts.double().sort().values
    few, middle, many = counts[0], (counts[(len(counts) - 1) // 2] + counts[len(counts) // 2]) / 2, counts[-1]
    line = f"rank {rank}: {what}, tau {tau:.3g}; an image has {few:g}/{middle:g}/{many:g} images (min/median/max)"
    return line + (", itself counted" if rank == 0 else "")

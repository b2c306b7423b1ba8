"""Rankings without classes: a table that says to which photograph, place and city, or frame, shot and video, an image
belongs.
"""

from pathlib import Path

import torch

from datasets import ImageData, sources, texts
from datasets.folders import LeftOut, images_below
from datasets.rankings import taxonomy
from util import InputError


def build(folder: str | Path, table: str | Path) -> tuple[ImageData, torch.Tensor, list[str]]:
    """The images that a CSV names, labelled by their finest group; groups [G, L] of the labels; names of the levels.

    folder: the images' paths in the table are relative to it. table: a header `image,<finest>,...,<coarsest>`, then a
    row an image with the name of its group at each level. A group lies in one group of the next level.
    Raises InputError, naming --instance_ranks and the line.
    """
    flag, folder = f"--instance_ranks {table}", Path(folder)
    levels, rows = _read(Path(table), flag)
    names = [sorted({row[level] for _, row in rows}) for level in range(1, len(levels) + 1)]
    number = [{name: i for i, name in enumerate(of_level)} for of_level in names]
    groups = torch.zeros(len(names[0]), len(levels), dtype=torch.long)
    images, labels, parents, seen = [], [], {}, set()
    for line, row in rows:
        where = f"{flag}, line {line}"
        image = folder / row[0]
        if row[0] in seen:
            raise InputError(f"{where}: the image {row[0]} stands in it twice")
        if not image.is_file():
            raise InputError(f"{where}: there is no image {image}; paths are relative to --data_folder")
        seen.add(row[0])
        taxonomy.check_nested(row[1:], levels, parents, where)
        label = number[0][row[1]]
        groups[label] = torch.tensor([number[level][name] for level, name in enumerate(row[1:])])
        images.append(str(image))
        labels.append(label)
    return ImageData(images, torch.tensor(labels), names[0]), groups, levels


def _read(path: Path, flag: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Names of the levels, and the rows, with their lines: image, its groups."""
    found = texts.read_rows(path, flag)
    if not found:
        raise InputError(f"{flag}: not readable as CSV (it is empty)")
    (_, head), *rows = found
    if len(head) < 2 or head[0] != "image":
        raise InputError(f"{flag}: the first line must be `image,<finest group>,...,<coarsest group>`")
    if not rows:
        raise InputError(f"{flag}: names no image")
    texts.check_widths(head, rows, flag)
    return head[1:], rows


def unlisted(data: ImageData, folder: str | Path) -> tuple[int, LeftOut]:
    """How many images of the folder's training split the table does not name, and what there is no image."""
    listed, left_out = set(data.images), LeftOut()
    root = sources.split_folder(Path(folder), "train")
    found = images_below(root, left_out) if root.is_dir() else ()  # a pack beside the listed images
    return sum(str(f) not in listed for f in found), left_out


def summary(groups: torch.Tensor, levels: list[str], taus, labels: torch.Tensor) -> list[str]:
    """The lines of a run: ranks, their temperatures, and how many images an image has at each."""
    lines, closer = [], torch.zeros(len(labels), dtype=torch.long)
    for rank, (level, tau) in enumerate(zip(levels, taus, strict=True)):
        of_image = groups[labels, rank]
        shared = torch.bincount(of_image)[of_image]  # images of the same group, itself included
        now = shared - closer
        few, middle, many = int(now.min()), float(now.double().quantile(0.5)), int(now.max())
        lines.append(
            f"rank {rank}: same {level}, {len(of_image.unique())} of them, tau {tau:.3g}; an image has "
            f"{few}/{middle:g}/{many} images (min/median/max)" + (", itself counted" if rank == 0 else "")
        )
        closer = shared
    return lines

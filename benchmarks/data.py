"""Measure images per second that one core makes into two augmented views, on every path.

python -m benchmarks.data [--images DIR] [--takes IMAGES_PER_SECOND] [--rounds 5] [--json FILE]

The published pipeline is PIL and torchvision's transforms, image by image. Without --images, 200 JPEGs of 500 x 375 are
cut from scikit-learn's two sample photographs; DIR is a folder of class folders of your own. With --takes, the last
column has the cores that each path needs to feed a device that takes so many (benchmarks.train_step measures yours).
"""

import math
import os
import statistics
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

import datasets
from benchmarks import ROUNDS, in_turn, parser, ratio, report
from datasets import augmentation, packed, packing
from datasets.augmentation import Augmentation
from datasets.views import Views

MEAN, STD, JITTER = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (0.4, 0.4, 0.4, 0.1)
DISTINCT = 200  # photographs; more are links to these


def make_photographs(folder: Path, count: int = DISTINCT, classes: int = 2, width: int = 500, height: int = 375):
    """Write JPEGs, cut at random from scikit-learn's two photographs of 640 x 427, into folders "class 0" to ..."""
    from sklearn.datasets import load_sample_images

    images, rng, files = load_sample_images().images, np.random.default_rng(0), []
    for i in range(count):
        file = folder / f"class {i % classes}" / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        if i < DISTINCT:
            top, left = rng.integers(0, 427 - height + 1), rng.integers(0, 640 - width + 1)
            Image.fromarray(images[i % 2][top : top + height, left : left + width]).save(file, quality=95)
            files.append(file)
        else:
            os.link(files[i % DISTINCT], file)


def make_small_images(count: int) -> datasets.ImageData:
    """Images of 32 x 32 in memory."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return datasets.ImageData(pixels, torch.zeros(count, dtype=torch.long), ["0"])


def pack(data: datasets.ImageData, root: Path, folder: Path, form: str) -> datasets.ImageData:
    """Pack the images below `root` as a data set of side 256, "raw" or "jpeg", in `folder`."""
    path = folder / f"{form}.pack"
    packing.write(data, root, path, 256, form)
    images, labels, classes = packed.read_pack(path)
    return datasets.ImageData(images, torch.as_tensor(labels), classes)


def put_in_shards(data: datasets.ImageData, root: Path, folder: Path) -> dict[str, datasets.ImageData]:
    """Write the images below `root` as a tar, a zip and a Parquet file in `folder`, which is the cache folder too."""
    import pyarrow
    from pyarrow import parquet

    os.environ["RINCE_CACHE"] = str(folder)
    with tarfile.open(folder / "images.tar", "w", dereference=True) as tar:  # a link is a copy
        tar.add(root, ".")
    with zipfile.ZipFile(folder / "images.zip", "w") as file:
        for f in data.images:
            file.write(f, Path(f).relative_to(root))
    images = [{"bytes": Path(f).read_bytes(), "path": f} for f in data.images]
    parquet.write_table(pyarrow.table({"image": images, "label": data.labels.tolist()}), folder / "images.parquet")
    return {form: datasets.build("path", folder / f"images.{form.lower()}") for form in ("tar", "zip", "Parquet")}


def build_published_view(size: int, kit=transforms):
    """One view by torchvision's transforms of a PIL image, or, with kit v2, of a tensor of bytes."""
    as_float = transforms.ToTensor() if kit is transforms else kit.ToDtype(torch.float32, scale=True)
    return kit.Compose(
        [
            kit.RandomResizedCrop(size, scale=(0.2, 1.0)),
            kit.RandomHorizontalFlip(),
            kit.RandomApply([kit.ColorJitter(*JITTER)], p=0.8),
            kit.RandomGrayscale(p=0.2),
            as_float,
            kit.Normalize(MEAN, STD),
        ]
    )


def one_by_one(data, size: int, batch: int):
    """Return the published pipeline over a data set, collated: what is timed."""
    view = build_published_view(size)

    def item(i):
        image = data.image(i)
        return torch.stack([view(image), view(image)]), int(data.labels[i])

    def run():
        for part in torch.arange(len(data)).split(batch):
            torch.utils.data.default_collate([item(i) for i in part.tolist()])

    return run


def by_batch(data, size: int, batch: int, finished: bool):
    """Our pipeline over a data set: what is timed. finished: with colors, else as for a device that adds them."""
    views, keys = Views(data, Augmentation(size, MEAN, STD), 0, finished), [(0, i) for i in range(len(data))]

    def run():
        for start in range(0, len(keys), batch):
            views.__getitems__(keys[start : start + batch])

    return run


def measure(paths: dict, count: int, rounds: int, takes: float | None = None) -> list[dict]:
    """Rows of images/s and the ratio to the first path. takes: images/s of a device, for the cores that feed it."""
    seconds, rows = in_turn(paths, rounds), []
    first = next(iter(seconds.values()))
    for name, spent in seconds.items():
        rate = count / statistics.median(spent)
        row = {"path": name, "images/s": rate, "times as fast": ratio(first, spent)}
        rows.append(row | ({"cores wanted": math.ceil(takes / rate)} if takes else {}))
    return rows


def report_photographs(args) -> None:
    """JPEGs and packed data sets, to two views of 224 pixels."""
    with tempfile.TemporaryDirectory() as scratch:
        root = args.images or Path(scratch, "photographs")
        if not args.images:
            make_photographs(root)
        data = datasets.build("path", root)
        raw, jpeg = (pack(data, root, Path(scratch), form) for form in ("raw", "jpeg"))
        paths = {
            "published, JPEG folder": one_by_one(data, 224, 64),
            "JPEG folder, color on the device": by_batch(data, 224, 64, finished=False),
            "JPEG folder, everything on the CPU": by_batch(data, 224, 64, finished=True),
            "packed JPEG 256, color on the device": by_batch(jpeg, 224, 64, finished=False),
            "packed raw 256, color on the device, batches of 256": by_batch(raw, 224, 256, finished=False),
            "packed raw 256, everything on the CPU": by_batch(raw, 224, 64, finished=True),
        }
        size = sum(Path(f).stat().st_size for f in data.images) / len(data) / 1000
        rows = measure(paths, len(data), args.rounds, args.takes)
        report(f"{len(data)} images of {size:.0f} kB, two views of 224", rows, args.json, name="photographs_paths")
        paths = {"JPEG folder": paths["JPEG folder, color on the device"]}
        for form, same in put_in_shards(data, root, Path(scratch)).items():
            paths[f"the same, {form}"] = by_batch(same, 224, 64, finished=False)
        rows = measure(paths, len(data), 3 * args.rounds)
        report("the same images as they lie in one file, color on the device", rows, args.json, name="shards")


def report_small_images(args) -> None:
    """Images of 32 x 32 in memory, as training and as evaluation see them."""
    data = make_small_images(2048)
    paths = {
        "published": one_by_one(data, 32, 512),
        "everything on the CPU, batches of 512": by_batch(data, 32, 512, finished=True),
        "color on the device, batches of 512": by_batch(data, 32, 512, finished=False),
    }
    rows = measure(paths, len(data), args.rounds, args.takes)
    report("2,048 images of 32 x 32 in memory, two views of 32", rows, args.json, name="small_paths")
    data.transform = augmentation.evaluation(32, MEAN, STD, small=True)
    batches = torch.arange(len(data)).split(256)
    paths = {
        "evaluation, one by one": lambda: [data[i] for i in range(len(data))],
        "evaluation, batches of 256": lambda: [data.__getitems__(batch.tolist()) for batch in batches],
    }
    rows = measure(paths, len(data), args.rounds)
    report("the same images as evaluation sees them", rows, args.json, name="evaluation_views")


def get_parser():
    p = parser(__doc__)
    p.add_argument(
        "--images", type=Path, metavar="FOLDER", help="folder of class folders (default: crops of two photographs)"
    )
    p.add_argument(
        "--takes", type=float, metavar="X", help="images per second of a device, to compute the cores that it needs"
    )
    p.add_argument("--rounds", type=int, default=5, help=ROUNDS)
    return p


def main():
    args = get_parser().parse_args()
    torch.set_num_threads(1)
    report_photographs(args)
    report_small_images(args)


if __name__ == "__main__":
    main()

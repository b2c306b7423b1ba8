"""Images a second that one core makes into two augmented views, by every path, against the published pipeline.

python -m benchmarks.data_pipeline [--images DIR] [--rounds 5] [--json FILE]

The published pipeline is PIL and torchvision's transforms, image by image. Without --images, 200 JPEGs of 500 x 375 are
cut from scikit-learn's two sample photographs; DIR is a folder of class folders of your own.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

import datasets
from benchmarks import in_turn, ratio, report
from datasets import augmentation, decoding, packed, packing
from datasets.augmentation import Augmentation
from datasets.views import Views
from engine import config

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photographs(folder: Path, count: int = 200) -> None:
    """JPEGs of 500 x 375, cut at random from scikit-learn's two photographs of 640 x 427."""
    from sklearn.datasets import load_sample_images

    images, rng = load_sample_images().images, np.random.default_rng(0)
    for i in range(count):
        top, left = rng.integers(0, 427 - 375 + 1), rng.integers(0, 640 - 500 + 1)
        (folder / str(i % 2)).mkdir(parents=True, exist_ok=True)
        cut = images[i % 2][top : top + 375, left : left + 500]
        Image.fromarray(cut).save(folder / str(i % 2) / f"{i}.jpg", quality=95)


def published(size: int):
    """Two views by torchvision's transforms of a PIL image."""
    one = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.2, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return lambda image: torch.stack([one(image), one(image)])


def one_by_one(data, size: int, batch: int):
    """The published pipeline over a data set, collated: a function of the round."""
    views = published(size)

    def run(epoch):
        for start in range(0, len(data), batch):
            torch.utils.data.default_collate(
                [(views(data.image(i)), int(data.labels[i])) for i in range(start, min(start + batch, len(data)))]
            )

    return run


def by_batch(data, size: int, batch: int, finished: bool):
    """Our pipeline over a data set: a function of the round."""
    views = Views(data, Augmentation(size, MEAN, STD), 0, finished)

    def run(epoch):
        keys = [(epoch, i) for i in range(len(data))]
        for start in range(0, len(keys), batch):
            views.__getitems__(keys[start : start + batch])

    return run


def first_time(raw, size: int, batch: int):
    """`by_batch`, colour on the device, of a raw pack none of whose images was read before."""
    run = by_batch(raw, size, batch, finished=False)

    def anew(epoch):
        raw.images[0].pack.verified[:] = False
        run(epoch)

    return anew


def decoders(data):
    """Ways to decode a JPEG: functions of the round."""
    files = [Path(f).read_bytes() for f in data.images]

    def half(content):
        with Image.open(decoding.io.BytesIO(content)) as image:
            image.draft("RGB", (image.width // 2, image.height // 2))
            np.asarray(image)

    def pil(content):
        np.asarray(Image.open(decoding.io.BytesIO(content)).convert("RGB"))

    def ours(content):
        decoding.decode(content, "file")

    ways = {"PIL": pil, "PIL, scaled to a half": half, "ours (simplejpeg)": ours}
    return {f"decode alone: {k}": (lambda epoch, f=f: [f(c) for c in files]) for k, f in ways.items()}


def measure(paths: dict, count: int, rounds: int) -> list[dict]:
    """Rows of images/s and the ratio to the first path."""
    seconds = in_turn({name: partial(run, 0) for name, run in paths.items()}, rounds)
    first = next(iter(seconds.values()))
    return [
        {"path": name, "images/s": count / statistics.median(s), "times as fast": ratio(first, s)}
        for name, s in seconds.items()
    ]


def pack(data, folder: Path, format: str, root: Path):
    """The data set as a pack of side 256, and its bytes an image."""
    path = folder / f"{format}.pack"
    packing.write(data, root, path, 256, format)
    images, labels, classes = packed.read(path)
    return datasets.ImageData(images, torch.as_tensor(labels), classes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of class folders")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config.huge_pages()  # as training does; the published pipeline has them, too
    with tempfile.TemporaryDirectory() as scratch:
        root = args.images or Path(scratch, "photographs")
        if not args.images:
            photographs(root)
        data = datasets.build("path", root)
        raw, jpeg = (pack(data, Path(scratch), f, root) for f in ("raw", "jpeg"))
        paths = {
            "published, JPEG folder": one_by_one(data, 224, 64),
            "JPEG folder, colour on the device": by_batch(data, 224, 64, finished=False),
            "JPEG folder, everything on the CPU": by_batch(data, 224, 64, finished=True),
            "packed JPEG 256, colour on the device": by_batch(jpeg, 224, 64, finished=False),
            "packed raw 256, colour on the device, batches of 256": by_batch(raw, 224, 256, finished=False),
            "the same, each image verified as at its first reading": first_time(raw, 224, 256),
            "packed raw 256, everything on the CPU": by_batch(raw, 224, 64, finished=True),
            **decoders(data),
        }
        size = sum(Path(f).stat().st_size for f in data.images) / len(data) / 1000
        title = f"{len(data)} images of {size:.0f} kB, two views of 224"
        rows = measure(paths, len(data), args.rounds)
        report(title, rows, args.json, name="photographs_paths")
    small = np.random.default_rng(0).integers(0, 256, (2048, 32, 32, 3), dtype=np.uint8)
    data = datasets.ImageData(small, torch.zeros(len(small), dtype=torch.long), ["0"])
    paths = {
        "published": one_by_one(data, 32, 512),
        "everything on the CPU, batches of 512": by_batch(data, 32, 512, finished=True),
        "colour on the device, batches of 512": by_batch(data, 32, 512, finished=False),
    }
    print()
    more = measure(paths, len(data), args.rounds)
    report("2,048 images of 32 x 32 in memory, two views of 32", more, args.json, name="small_paths")
    data.transform = augmentation.evaluation(32, MEAN, STD, small=True)
    batches = [list(range(i, i + 256)) for i in range(0, len(data), 256)]
    paths = {
        "evaluation, one by one": lambda _: [data[i] for i in range(len(data))],
        "evaluation, batches of 256": lambda _: [data.__getitems__(batch) for batch in batches],
    }
    print()
    views = measure(paths, len(data), args.rounds)
    report("the same images as evaluation sees them", views, args.json, name="evaluation_views")


if __name__ == "__main__":
    main()

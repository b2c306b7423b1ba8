"""Two augmented views an image, beside torchvision's two pipelines, albumentations (cv2), kornia, DALI: of peers.

All draw crop, flip, jitter and grey as published, each by its own random numbers: that their results are alike is
checked by the mean and the spread of the views.
"""

import io
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

import datasets
import util
from benchmarks import Work, data_pipeline, must_equal, peers_dali
from benchmarks.data_pipeline import MEAN, STD, by_batch, one_by_one
from datasets import decoding

JITTER = (0.4, 0.4, 0.4, 0.1)


def by_v2(size: int):
    """An image [3, H, W] of bytes -> a view, by torchvision's transforms of tensors."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*JITTER)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def by_albumentations(size: int):
    """An image [H, W, 3] of bytes -> a view, by cv2."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks the network for a newer version
    import albumentations
    import cv2

    cv2.setNumThreads(0)
    one = albumentations.Compose(
        [
            albumentations.RandomResizedCrop(size=(size, size), scale=(0.2, 1.0)),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.ColorJitter(*JITTER, p=0.8),
            albumentations.ToGray(p=0.2),
            albumentations.Normalize(MEAN, STD),
        ]
    )
    return lambda pixels: torch.from_numpy(one(image=pixels)["image"]).permute(2, 0, 1)


def by_kornia(size: int):
    """Images [n, 3, H, W] in [0, 1] -> views, a batch at a time."""
    from kornia import augmentation

    return torch.nn.Sequential(
        augmentation.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.ColorJitter(*JITTER, p=0.8),
        augmentation.RandomGrayscale(p=0.2),
        augmentation.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )


def pairs(read, view, numbers):
    """Two views of each image, collated."""
    return torch.stack([torch.stack([view(x), view(x)]) for x in map(read, numbers)])


def _alike(forms: dict) -> None:
    """That all forms make views of about the same mean and spread. name -> [n, 2, 3, S, S] of the whole data.

    Each draws by itself: over a hundred images, means of normalised pixels differ by 0.05 or so.
    """
    util.seed_everything(0)
    published = next(iter(forms))
    wanted = forms[published]().float()
    for name, run in forms.items():
        views = run().float()
        must_equal(f"{name}: mean of the views", views.mean(), wanted.mean(), 0.25)
        must_equal(f"{name}: their spread", views.std(), wanted.std(), 0.25)


def _peers(read, pixels, count: int, size: int, batch: int) -> dict:
    """Forms of the packages over images that `read` gives as PIL's and `pixels` as arrays; each returns its views."""

    def planes(i):
        return torch.from_numpy(pixels(i)).permute(2, 0, 1)

    published, kornia = data_pipeline.published(size), by_kornia(size)
    numbers = range(count)

    def of_kornia():
        blocks = [torch.stack([planes(i) for i in numbers[b : b + batch]]).float().div_(255) for b in numbers[::batch]]
        return torch.cat([torch.stack([kornia(x), kornia(x)], 1) for x in blocks])

    return {
        "published: PIL, torchvision's transforms": lambda: torch.stack([published(read(i)) for i in numbers]),
        "torchvision v2, tensors": lambda: pairs(planes, by_v2(size), numbers),
        "albumentations (cv2)": lambda: pairs(pixels, by_albumentations(size), numbers),
        "kornia, by batches": of_kornia,
    }


def photographs() -> Work:
    """JPEGs of 500 x 375 to 224 pixels, on one core."""
    scratch = tempfile.TemporaryDirectory()
    root = Path(scratch.name, "photographs")
    data_pipeline.photographs(root, 100)
    data = datasets.build("path", root)
    raw, jpeg = (data_pipeline.pack(data, Path(scratch.name), f, root) for f in ("raw", "jpeg"))

    def by_cv2(i):
        import cv2

        return cv2.cvtColor(cv2.imread(data.images[i]), cv2.COLOR_BGR2RGB)

    peers = _peers(lambda i: Image.open(data.images[i]).convert("RGB"), by_cv2, len(data), 224, 50)
    if peers_dali.installed():
        peers["DALI on the CPU"] = peers_dali.views_of_files(list(map(str, data.images)), 224, 50)
    _alike(peers)
    ours = {
        "JPEG folder, everything on the CPU": by_batch(data, 224, 64, finished=True),
        "JPEG folder, colour on the device (the worker's part)": by_batch(data, 224, 64, finished=False),
        "packed JPEG 256, colour on the device": by_batch(jpeg, 224, 64, finished=False),
        "packed raw 256, colour on the device": by_batch(raw, 224, 100, finished=False),
    }
    forms = {name: (lambda run=run: run(0)) for name, run in ours.items()} | peers
    return Work("JPEGs of 500 x 375 to two views of 224, one core", forms, len(data), 5, threads=1, keep=scratch)


def small() -> Work:
    """Images of 32 x 32 in memory, on one core."""
    pixels = np.random.default_rng(0).integers(0, 256, (1024, 32, 32, 3), dtype=np.uint8)
    data = datasets.ImageData(pixels, torch.zeros(len(pixels), dtype=torch.long), ["0"])
    peers = _peers(lambda i: Image.fromarray(pixels[i]), lambda i: pixels[i], len(pixels), 32, 512)
    if peers_dali.installed():
        peers["DALI on the CPU"] = peers_dali.views_of_pixels(pixels, 32, 512)
    _alike(peers)
    whole, part = (by_batch(data, 32, 512, finished) for finished in (True, False))
    published = one_by_one(data, 32, 512)
    forms = {
        "everything on the CPU (default without a GPU)": lambda: whole(0),
        "colour on the device (the worker's part)": lambda: part(0),
        "published, collated": lambda: published(0),
    } | peers
    return Work("images of 32 x 32 in memory to two views, one core", forms, len(data), 3, threads=1)


def decoders() -> Work:
    """A JPEG of 500 x 375 to pixels, on one core."""
    import cv2
    from torchvision.io import ImageReadMode, decode_jpeg

    with tempfile.TemporaryDirectory() as scratch:
        data_pipeline.photographs(Path(scratch), 50)
        files = [f.read_bytes() for f in sorted(Path(scratch).rglob("*.jpg"))]

    def pillow(content):
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))

    def of_torchvision(content):
        return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)

    ways = {
        "ours: simplejpeg, else Pillow": lambda content: decoding.decode(content, "file"),
        "Pillow": pillow,
        "cv2": lambda content: cv2.cvtColor(cv2.imdecode(np.frombuffer(content, np.uint8), 1), cv2.COLOR_BGR2RGB),
        "torchvision.io": lambda content: of_torchvision(content).permute(1, 2, 0).numpy(),
    }
    for name, way in ways.items():
        must_equal(name, np.asarray(way(files[0])).mean(), pillow(files[0]).mean(), 0.5)
    must_equal("ours, each pixel", decoding.decode(files[0], "file"), np.array(pillow(files[0])), 0)
    forms = {name: (lambda way=way: [way(content) for content in files]) for name, way in ways.items()}
    return Work("JPEGs of 500 x 375 to pixels, one core", forms, len(files), threads=1)

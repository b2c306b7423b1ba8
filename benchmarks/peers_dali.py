"""NVIDIA's DALI on the CPU, where it is installed (`pip install ".[dali]"`, a gigabyte): of peers."""

import importlib.util

import numpy as np
import torch
from torch import Tensor

from benchmarks.data_pipeline import MEAN, STD

PACKAGE = "nvidia-dali-cuda120"


def installed() -> bool:
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def views_of_files(files: list[str], size: int, batch: int):
    """JPEG files -> [n, 2, 3, size, size], read, decoded and augmented by DALI's own operators; n: whole batches."""
    from nvidia.dali import fn

    return _in_batches(lambda: fn.decoders.image(fn.readers.file(files=files)[0]), len(files) // batch, size, batch)


def views_of_pixels(pixels: np.ndarray, size: int, batch: int):
    """Images [n, H, W, 3] of bytes in memory -> [n, 2, 3, size, size]; n: whole batches."""
    from nvidia.dali import fn

    batches = [pixels[start : start + batch] for start in range(0, len(pixels) - batch + 1, batch)]
    return _in_batches(
        lambda: fn.external_source(lambda i: batches[i % len(batches)], layout="HWC"), len(batches), size, batch
    )


def _in_batches(images, batches: int, size: int, batch: int):
    """What computes the views of that many batches; on one thread, and nothing ahead of time, so that it is counted."""
    from nvidia.dali import Pipeline

    pipeline = Pipeline(
        batch_size=batch, num_threads=1, device_id=None, seed=0,
        prefetch_queue_depth=1, exec_async=False, exec_pipelined=False,
    )  # fmt: skip
    with pipeline:
        source = images()
        pipeline.set_outputs(_view(source, size), _view(source, size))
    pipeline.build()

    def run() -> Tensor:
        pairs = (pipeline.run() for _ in range(batches))
        return torch.cat([torch.stack([torch.from_numpy(np.array(x.as_array())) for x in pair], 1) for pair in pairs])

    return run


def _view(images, size: int):
    """Crop, flip, jitter and grey as published; DALI's jitter has one order of its operations, not a random one."""
    from nvidia.dali import fn, types

    def jittered(chance, spread: float):
        return 1 + chance * fn.random.uniform(range=[-spread, spread])

    jitter, colour = fn.random.coin_flip(probability=0.8), fn.random.coin_flip(probability=0.8)
    x = fn.random_resized_crop(images, size=size, random_area=[0.2, 1.0], antialias=True)
    x = fn.color_twist(
        x,
        brightness=jittered(jitter, 0.4),
        contrast=jittered(jitter, 0.4),
        saturation=colour * jittered(jitter, 0.4),  # none: grey
        hue=jitter * fn.random.uniform(range=[-36.0, 36.0]),  # degrees
    )
    flip, mean, std = fn.random.coin_flip(), [255 * m for m in MEAN], [255 * s for s in STD]
    return fn.crop_mirror_normalize(x, dtype=types.FLOAT, output_layout="CHW", mirror=flip, mean=mean, std=std)

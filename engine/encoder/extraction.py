"""Features of images and of texts, shard by shard, into files: what `python -m engine.extract` does."""

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

import evaluation
import util
from datasets import ImageData, feature_shards
from datasets.augmentation import Augmentation
from datasets.feature_shards import FeatureSet, Shard
from datasets.rankings.text_encoders import TextEncoder, embed_texts
from datasets.views import as_it_is
from engine.batches.epoch_batches import Loader, Prefetcher, choose_colors
from engine.batches.loading import Loading, build_views, ordered_loader
from engine.encoder import trained_encoder
from engine.encoder.trained_encoder import FrozenEncoder
from engine.processes import distributed
from util import InputError

TEXT_BATCH = 64  # texts of about one length


class Encoding(Protocol):
    """What makes the features of a set. source: flag and name of the encoder, for errors."""

    source: str

    def steps(self, shard: Shard) -> int:
        """How many batches a shard is to this process."""

    def encode(self, shard: Shard, tick: Callable[[], None]) -> Tensor:
        """Features of a shard's rows in float32, on the CPU; `tick` is called after each batch."""


# ---- images ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageEncoding:
    """Features of images: the plain view, then those of an `augmented` one, None for none, drawn from `seed` and an
    image's place in `data` alone. Or of features, by a head on them. All processes share the work.
    """

    source: str
    net: FrozenEncoder
    data: ImageData
    loading: Loading
    augmented: Augmentation | None = None
    seed: int = 0

    def _loaders(self, shard: Shard) -> list:
        """Return this process's batches: of plain images, and where there are augmented views of these."""
        own = range(shard.begin, shard.end)[distributed.rank() :: distributed.world_size()]
        self.data.transform = self.net.transform
        plain = ordered_loader(self.data, own, self.loading)
        return [plain, self._load_views(own, self.augmented)] if self.augmented else [plain]

    def _load_views(self, own: range, augmented: Augmentation) -> Prefetcher:
        each = self._images_per_batch(augmented.views)
        batches = [[(0, i) for i in own[start : start + each]] for start in range(0, len(own), each)]
        data = build_views(self.data, augmented, self.seed, None, self.loading.device)
        loader = Loader(data, batch_sampler=batches, collate_fn=as_it_is, **self.loading.of_loader())
        return Prefetcher(loader, self.loading.device, self.loading.memory_format, self._colors)

    @cached_property
    def _colors(self):
        return choose_colors(self.loading.device)

    def steps(self, shard: Shard) -> int:
        own = len(range(shard.begin, shard.end)[distributed.rank() :: distributed.world_size()])
        views = (1, self.augmented.views) if self.augmented else (1,)
        return sum(-(-own // self._images_per_batch(v)) for v in views)

    def _images_per_batch(self, views: int) -> int:
        """How many images of so many views make a batch."""
        return max(1, self.loading.batch_size // views)

    def encode(self, shard: Shard, tick: Callable[[], None]) -> Tensor:
        encoder, device, total = self.net.encoder.to(self.loading.device), self.loading.device, shard.end - shard.begin
        own, loaders = len(range(total)[distributed.rank() :: distributed.world_size()]), self._loaders(shard)
        x = torch.zeros(0, 1)
        if own:  # an image's views lie next to one another
            batches = (_image_by_image(loader, tick) for loader in loaders)
            x = torch.cat([evaluation.extract(encoder, b, device)[0].view(own, -1) for b in batches], 1)
        if distributed.world_size() == 1:
            return x
        views = self.augmented.views if self.augmented else 0
        return trained_encoder.interleave(x, total, encoder.dim * (1 + views), device)


def _image_by_image(batches: Iterable, tick: Callable[[], None]) -> Iterable:
    """Batches of images [n, 3, S, S], or of views [v, n, 3, S, S], these as [n v, 3, S, S]; `tick` follows each."""
    for images, labels in batches:
        yield (images.transpose(0, 1).flatten(0, 1) if images.ndim == 5 else images), labels
        tick()


def hash_images(data: ImageData) -> str:
    """SHA-256 of classes, labels and images: of their pixels in memory; of files by their names and their folders'
    names, so that a copy of a folder is the same data set. Of features: their files' content, and which rows.
    """
    digest = hashlib.sha256(repr(data.classes).encode() + data.labels.numpy().tobytes())
    if data.are_features:
        digest.update("".join(map(util.sha256, data.images.files)).encode() + data.images.rows.numpy().tobytes())
    elif data.in_memory:
        digest.update(data.images.tobytes())
    else:
        for image in data.images:
            digest.update(("/".join(str(image).split("/")[-2:]) + "\n").encode(errors="surrogateescape"))
    return digest.hexdigest()


# ---- texts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextEncoding:
    """L2-normalized embeddings [n, width] of texts, by an encoder on a device. All processes share the work.

    Each distinct text of a process's share of a shard is embedded once, among texts of about its length.
    """

    source: str
    encoder: TextEncoder
    width: int
    texts: list[str]
    device: torch.device

    def _own(self, shard: Shard) -> list[str]:
        return self.texts[shard.begin : shard.end][distributed.rank() :: distributed.world_size()]

    def steps(self, shard: Shard) -> int:
        return -(-len({*self._own(shard)}) // TEXT_BATCH)

    def encode(self, shard: Shard, tick: Callable[[], None]) -> Tensor:
        own, x = self._own(shard), torch.zeros(0, 1)
        distinct, found = sorted({*own}, key=lambda text: (len(text), text)), []
        for start in range(0, len(distinct), TEXT_BATCH):
            found.append(embed_texts(distinct[start : start + TEXT_BATCH], self.encoder, TEXT_BATCH).float())
            tick()
        if own:
            row_of = {text: row for row, text in enumerate(distinct)}
            x = torch.cat(found)[[row_of[text] for text in own]]
        if distributed.world_size() == 1:
            return x
        return trained_encoder.interleave(x, shard.end - shard.begin, self.width, self.device)


def hash_texts(texts: list[str]) -> str:
    """SHA-256 of texts in their order."""
    return hashlib.sha256(repr(texts).encode(errors="surrogatepass")).hexdigest()


# ---- files -----------------------------------------------------------------------------------------------------------


def find_missing(sets: list[FeatureSet], out: Path, megabytes: float) -> list[list[Shard]]:
    """Of each set the shards that are not stored yet, as the main process finds them. Raises InputError there where
    other files are in the way, before any is written.
    """
    if not distributed.is_main():
        return [[] for _ in sets]
    found = []
    for of in sets:
        shards = feature_shards.plan_shards(of, out, megabytes)
        found.append(feature_shards.find_missing(of, shards, "--out"))
        if kept := len(shards) - len(found[-1]):
            distributed.say(f"{of.name}: keeps {kept} of {len(shards)} files, which are stored already")
    return found


def write_sets(sets: list[FeatureSet], encodings: list[Encoding], missing: list[list[Shard]], out: Path) -> None:
    """Write the missing shards of each set; all processes call it, and the main one writes and says what came of it."""
    missing = distributed.gather_objects(missing)[0]
    for of, encoding, shards in zip(sets, encodings, missing, strict=True):
        begin, rows = time.perf_counter(), sum(shard.end - shard.begin for shard in shards)
        steps = sum(map(encoding.steps, shards))
        progress = util.Progress(f"{of.name}: {rows} rows", steps, max(1, steps // 20), distributed.is_main())
        try:
            _write_shards(of, encoding, shards, progress)
        finally:
            progress.close()
        shape, seconds = " x ".join(map(str, (rows, *of.shape))), time.perf_counter() - begin
        if shards:
            distributed.say(f"saved {out / of.name}-*.safetensors: {shape}, {of.dtype}, in {seconds:.1f} s")


def _write_shards(of: FeatureSet, encoding: Encoding, shards: list[Shard], progress: util.Progress) -> None:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress.tick(done, "")

    for shard in shards:
        features = encoding.encode(shard, tick)
        if not features.isfinite().all():
            raise InputError(f"{encoding.source}: some features are NaN or infinite; give another encoder")
        if distributed.is_main():
            feature_shards.write_shard(of, shard, features, "--out")

"""What a contrastive run shows of itself: advice on waiting for data, how its embeddings lie, kNN accuracy, pictures.

Nothing here touches a training step: all is measured between epochs, in the main process, on the same few images every
time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import evaluation
from datasets import ImageData
from datasets.feature_views import FeatureViews
from datasets.views import Views
from engine.batches.loading import Loading, ordered_loader
from engine.processes import distributed

ADVISE_ABOVE, ADVISE_AFTER = 0.25, 60.0  # share of the time, seconds of training
PAIRS = 128  # training images whose two views are measured
PROJECTED = 512  # images in the projector
VOTES = 200  # of so many nearest training images the kNN accuracy is taken
NEIGHBORS = 5000  # images of each part that neighbors are looked for among


def advise_on_waiting(waiting: float, seconds: float, workers: int) -> str:
    """Return what to do about a large share of waiting for data, on a training that has some length; else ""."""
    if waiting < ADVISE_ABOVE or seconds < ADVISE_AFTER:
        return ""
    return (
        f"{100 * waiting:.0f} % of the time is spent waiting for data: give more --num_workers (now {workers}, a core "
        "each), or pack the images: python -m datasets.prepare pack"
    )


def describe_epoch(scalars: dict, images_per_second: float | None) -> str:
    """Return what a run's line shows of an epoch: loss, validation, learning rate, speed."""
    shown = "".join(f"  {k} {v:.2f}" for k, v in scalars.items() if k.startswith(("val_", "nn_")))
    speed = "no step was left"
    if images_per_second is not None:
        waiting = 100 * scalars["waiting_for_data"]
        speed = f"{images_per_second:.0f} img/s  data wait {waiting:.0f} %"
    return f"loss {scalars['loss']:.4f}{shown}  lr {scalars['learning_rate']:.4g}  {speed}"


def compare_with_chance(terms: list[float], chance: list[float]) -> str:
    """One line for a run's first epoch: its mean terms, rank by rank, and what random vectors would have."""
    shown = ", ".join(f"{x:.2f} (rank {r})" for r, x in enumerate(chance))
    return f"terms of random embeddings (chance level): {shown}; in this epoch: {', '.join(f'{x:.2f}' for x in terms)}"


def replace_undecodable(name: str) -> str:
    """Return a class's name as UTF-8 has it: bytes of a folder's name that are none become question marks."""
    return name.encode(errors="replace").decode()


# ---- a run's own -----------------------------------------------------------------------------------------------------


def spread_indices(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist()


@dataclass
class Neighbors:
    """Training and validation images as evaluation sees them, some of which are compared."""

    train: ImageData
    images: ImageData

    def features(self, features: Callable) -> list[Tensor]:
        """features(data, indices) -> features and labels of these images; here those of validation, then training."""
        parts = self.images, self.train
        return [x for data in parts for x in features(data, spread_indices(len(data), NEIGHBORS))]


class ClassNeighbors(Neighbors):
    """kNN accuracy in percent, by the classes."""

    def scalars(self, features: Callable) -> dict[str, float]:
        """features: as of `Neighbors.features`."""
        return {"val_knn": 100 * evaluation.knn_accuracy(*self.features(features), k=VOTES)}


class ValueNeighbors(Neighbors):
    """R2 of the kNN regression in percent, of real values."""

    def scalars(self, features: Callable) -> dict[str, float]:
        """features: as of `Neighbors.features`."""
        x, y, g, b = self.features(features)
        found = evaluation.knn_regression(x, g, self.train.values[b])
        return {"val_r2": 100 * evaluation.regression_scores(found, self.images.values[y])["R2"]}


@dataclass
class GroupNeighbors:
    """Training images as evaluation sees them, their labels in nested groups [C, L]: by level, the share of the images
    in percent whose nearest other one is of the same group. Groups of the finest level are taken whole.
    """

    images: ImageData
    groups: Tensor
    levels: list[str]

    def scalars(self, features: Callable) -> dict[str, float]:
        """As ClassNeighbors."""
        labels = self.images.labels
        share = min(1.0, NEIGHBORS / len(labels))
        kept = spread_indices(len(self.groups), max(1, int(share * len(self.groups))))
        chosen = torch.isin(labels, torch.tensor(kept)).nonzero()[:, 0].tolist()
        x, y = features(self.images, chosen)
        found = evaluation.neighbor_accuracy(x, self.groups[y])
        return {f"nn_{level}": 100 * a for level, a in zip(self.levels, found, strict=True) if a is not None}


class Watch:
    """Measures a contrastive model between epochs and draws for TensorBoard, in the main process.

    views: the training images as two views each; held_out: images whose neighbors are looked at every `knn_freq`
    epochs and after the last of `epochs`; None: they are not. autocast: the context that training's encoders run in,
    and here those of kNN.
    """

    def __init__(
        self,
        views: Views | FeatureViews,
        held_out: Neighbors | GroupNeighbors | None,
        knn_freq: int,
        epochs: int,
        loading: Loading,
        autocast,
    ):
        self.views, self.data, self.held_out, self.loading = views, views.data, held_out, loading
        self.knn_freq, self.epochs, self.autocast = knn_freq, epochs, autocast
        self.pairs = None  # drawn when first needed

    def _drawn(self, indices: list[int]) -> Tensor:
        """[2, n, 3, size, size], of features [2, n, d], drawn from (seed, epoch 0, image), which no training step
        uses.
        """
        keys = [(0, i) for i in indices]
        if isinstance(self.views, FeatureViews):
            return self.views[keys][0]
        return Views(self.data, self.views.augmentation, self.views.seed, finished=True).__getitems__(keys)[0]

    def _pairs(self) -> Tensor:
        if self.pairs is None:
            self.pairs = self._drawn(spread_indices(len(self.data), PAIRS))
        return self.pairs

    @torch.no_grad()
    def scalars(self, model, epoch: int) -> dict[str, float]:
        """Norm of the head's output, alignment, uniformity; kNN accuracy in percent in the epochs that it is due."""
        if not distributed.is_main():
            return {}
        was_training = model.training
        model.eval()
        x, y = (model.head(model.encoder(v.to(self.loading.device))).float() for v in self._pairs())
        found = {"embedding_norm": float(x.norm(dim=1).mean())}
        x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
        found["alignment"] = float(evaluation.alignment(x, y))
        if len(x) > 1:
            found["uniformity"] = float(evaluation.uniformity(x))
        if self.held_out and (epoch % self.knn_freq == 0 or epoch == self.epochs):
            found |= self.held_out.scalars(partial(self._features, model))
        model.train(was_training)
        return found

    def _features(self, model, data, indices: list[int]):
        loader = ordered_loader(data, indices, self.loading)
        with self.autocast():
            return evaluation.extract(model.encoder, loader, self.loading.device)

    def draw_pairs(self, writer) -> None:
        """Draw the grid of augmented pairs: what the loss is told are two views of one image."""
        if isinstance(self.views, FeatureViews):
            return
        from torchvision.utils import make_grid

        pairs = self._shown(self._pairs()[:, :16].transpose(0, 1).flatten(0, 1))
        writer.add_image("augmented_pairs", make_grid(pairs, nrow=8, padding=1, pad_value=1.0), 0)

    @torch.no_grad()
    def project(self, writer, model) -> None:
        """TensorBoard's embedding projector: features of held-out images, else of training images."""
        was_training = model.training
        model.eval()
        data = self.held_out.images if self.held_out else self.data
        chosen = spread_indices(len(data), PROJECTED)
        if self.held_out:
            views = torch.cat([images for images, _ in ordered_loader(data, chosen, self.loading)])
        else:
            views = self._drawn(chosen)[0]
        parts = [
            model.encoder(part.to(self.loading.device)).float().cpu() for part in views.split(self.loading.batch_size)
        ]
        names = [replace_undecodable(data.classes[int(data.labels[i])]) for i in chosen]
        small = None if isinstance(self.views, FeatureViews) else F.interpolate(self._shown(views), size=32)
        writer.add_embedding(F.normalize(torch.cat(parts), dim=1), names, small, self.epochs, "encoder")
        model.train(was_training)

    def _shown(self, views: Tensor) -> Tensor:
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (self.views.augmentation.mean, self.views.augmentation.std))
        return (views * std + mean).clamp(0, 1)

"""What a contrastive run shows of itself: time spent waiting for data, how its embeddings lie, kNN accuracy, pictures.

Nothing here touches a training step: the waiting is timed on the host, all else is measured between epochs, in the main
process, on the same few images every time.
"""

import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Subset

import datasets
import distributed
import evaluation
import options
from datasets import augmentation
from datasets.views import Views
from util import InputError

ADVISE_ABOVE, ADVISE_AFTER = 0.25, 60.0  # share of the time, seconds of training


class Timed:
    """A loader whose user's waiting is timed: `scalars` gives seconds and the share spent in the loader."""

    def __init__(self, loader):
        self.loader, self.begin, self.waited = loader, 0.0, 0.0

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def dataset(self):
        return self.loader.dataset

    def __iter__(self):
        self.begin, self.waited = time.perf_counter(), 0.0
        asked = self.begin
        for batch in self.loader:
            self.waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    def scalars(self) -> dict[str, float]:
        """Of the epoch that has just ended."""
        seconds = max(time.perf_counter() - self.begin, 1e-9)
        return {"seconds": seconds, "waiting_for_data": self.waited / seconds}


def advice(waiting: float, seconds: float, workers: int) -> str:
    """What to do about a large share of waiting for data, on a training that has some length; else ""."""
    if waiting < ADVISE_ABOVE or seconds < ADVISE_AFTER:
        return ""
    return (
        f"{100 * waiting:.0f} % of the time is spent waiting for data: give more --num_workers (now {workers}, a core "
        "each), or pack the images: python -m datasets.prepare pack"
    )


# ---- how embeddings lie ----------------------------------------------------------------------------------------------


def alignment(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance of unit vectors x, y [N, D], two views of an image a row (Wang and Isola 2020, alpha 2)."""
    return (x - y).square().sum(1).mean()


def uniformity(x: Tensor) -> Tensor:
    """Log of the mean Gaussian potential exp(-2 d^2) over the pairs of unit vectors [N, D], N > 1 (t = 2)."""
    return torch.pdist(x).square().mul(-2).exp().mean().log()


def knn_accuracy(
    features: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor, k: int = 200, tau: float = 0.07
) -> float:
    """Share of the queries [Q, d] whose class wins the vote of their k nearest of the gallery [G, d] by cosine.

    A vote weighs exp(cosine / tau) (Wu et al. 2018, sec. 3.4). k is at most G. Labels count from 0.
    """
    if not len(features) or not len(gallery):
        raise ValueError("kNN accuracy needs queries and a gallery")
    q, g = F.normalize(features.float(), dim=1), F.normalize(gallery.float(), dim=1)
    classes, right = int(gallery_labels.max()) + 1, 0
    for x, y in zip(q.split(256), labels.split(256), strict=True):
        cosine, nearest = (x @ g.T).topk(min(k, len(g)), dim=1)
        votes = torch.zeros(len(x), classes, device=x.device)
        votes.scatter_add_(1, gallery_labels[nearest], ((cosine - 1) / tau).exp())
        right += int((votes.argmax(1) == y).sum())
    return right / len(q)


# ---- a run's own -----------------------------------------------------------------------------------------------------


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist()


def add_options(p) -> None:
    """What is measured between epochs, beside what costs next to nothing."""
    g = p.add_argument_group("watching")
    g.add_argument(
        "--knn_freq", type=options.count, default=0, metavar="N",
        help="epochs between kNN accuracies on the validation images; 0: never",
    )  # fmt: skip


def held_out(args, size: int, mean, std):
    """Training and validation set as evaluation sees them, for --knn_freq; None without. Raises InputError."""
    if not args.knn_freq:
        return None
    if args.instance_ranks:
        raise InputError("--knn_freq: asks for classes, and --instance_ranks has none")
    try:
        pair = datasets.build_pair(args.dataset, args.data_folder, tuple(args.hold_out), skip=args.skip_images)
    except InputError as error:
        raise InputError(f"--knn_freq needs validation images: {error}") from None
    for part in pair:
        part.tolerate_damage()  # a picture of the run is not worth ending it
        part.transform = augmentation.evaluation(size, mean, std, datasets.spec(args.dataset).small)
    return pair


class Watch:
    """Measures a contrastive model between epochs and draws for TensorBoard, in the main process.

    views: the training images as two views each; held_out: as `held_out` gives it.
    """

    def __init__(self, args, views: Views, held_out, pairs: int = 128):
        self.args, self.data, self.held_out, self.count = args, views.data, held_out, pairs
        self.augmentation, self.pairs = views.augmentation, None  # drawn once, when they are needed first

    def _drawn(self, indices: list[int]) -> Tensor:
        """[2, n, 3, size, size] drawn from (seed, epoch 0, image), which no training step uses."""
        views = Views(self.data, self.augmentation, self.args.seed, finished=True)
        return views.__getitems__([(0, i) for i in indices])[0]

    def _pairs(self) -> Tensor:
        if self.pairs is None:
            self.pairs = self._drawn(spread(len(self.data), self.count))
        return self.pairs

    @torch.no_grad()
    def scalars(self, model, epoch: int, device) -> dict[str, float]:
        """Norm of the head's output, alignment, uniformity; kNN accuracy in percent every --knn_freq epochs."""
        if not distributed.is_main():
            return {}
        was_training = model.training
        model.eval()
        x, y = (model.head(model.encoder(views.to(device))).float() for views in self._pairs())
        found = {"embedding_norm": float(x.norm(dim=1).mean())}
        x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
        found["alignment"] = float(alignment(x, y))
        if len(x) > 1:
            found["uniformity"] = float(uniformity(x))
        if self.held_out and (epoch % self.args.knn_freq == 0 or epoch == self.args.epochs):
            (gallery, known), (features, labels) = (self._features(model, part, device) for part in self.held_out)
            found["val_knn"] = 100 * knn_accuracy(features, labels, gallery, known)
        model.train(was_training)
        return found

    def _features(self, model, data, device, most: int = 5000):
        chosen = Subset(data, spread(len(data), most))
        loader = DataLoader(chosen, self.args.batch_size, num_workers=self.args.num_workers)
        return evaluation.extract(model.encoder, loader, device)

    def draw_pairs(self, writer) -> None:
        """The grid of augmented pairs: what the loss is told are two views of one image. No writer: nothing."""
        if writer is None:
            return
        from torchvision.utils import make_grid

        pairs = self._shown(self._pairs()[:, :16].transpose(0, 1).flatten(0, 1))
        writer.add_image("augmented_pairs", make_grid(pairs, nrow=8, padding=1, pad_value=1.0), 0)

    @torch.no_grad()
    def project(self, writer, model, device, most: int = 512) -> None:
        """TensorBoard's embedding projector: features of held-out images, else of training images."""
        if writer is None:
            return
        was_training = model.training
        model.eval()
        data = self.held_out[1] if self.held_out else self.data
        chosen = spread(len(data), most)
        views = torch.stack([data[i][0] for i in chosen]) if self.held_out else self._drawn(chosen)[0]
        parts = [model.encoder(part.to(device)).float().cpu() for part in views.split(self.args.batch_size)]
        names = [data.classes[int(data.labels[i])] for i in chosen]
        small = F.interpolate(self._shown(views), size=32)
        writer.add_embedding(F.normalize(torch.cat(parts), dim=1), names, small, self.args.epochs, "encoder")
        model.train(was_training)

    def _shown(self, views: Tensor) -> Tensor:
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (self.augmentation.mean, self.augmentation.std))
        return (views * std + mean).clamp(0, 1)

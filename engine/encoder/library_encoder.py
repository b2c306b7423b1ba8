"""A frozen encoder from a library's weights or an --init file, of which no run of ours is needed."""

import hashlib

import torch

import datasets
import util
from datasets import ImageData, augmentation
from datasets.sources import UNKNOWN, ViewSettings
from engine.encoder import pretrained
from engine.encoder.trained_encoder import FrozenEncoder
from engine.train.optimization import allow_tf32


def load(
    model: str, init: str | None, train: ImageData, dataset: str = "digits", views: ViewSettings = UNKNOWN
) -> FrozenEncoder:
    """Load the encoder `model` with the weights of the file `init`, or where that is None with its library's own.

    views: of the images; what is None is as the weights want it, or as known of the data set. timm's weights get images
    resized as they want it, too. Raises InputError.
    """
    from networks import encoders  # and with it torchvision's models: not before a network is built

    allow_tf32(False)  # as trained_encoder.load
    trained = pretrained.choose_start(model, init, pretrained=init is None)
    views = datasets.complete_views(dataset, views.fill_from(trained.views), train)
    encoder = trained.build(False, views.size).eval().requires_grad_(False)
    interpolation = encoders.known_interpolation(model) if trained.for_timm else "bilinear"
    record = {
        "path": trained.path and str(trained.path.resolve()),
        "sha256": util.sha256(trained.path) if trained.path else hash_weights(encoder),
        "model": trained.model,
        "pretrained": trained.pretrained,
        "interpolation": interpolation,
    }
    transform = augmentation.evaluation(views.size, views.mean, views.std, datasets.spec(dataset).small, interpolation)
    return FrozenEncoder(encoder, record, util.plain_name(model), {}, transform, views)


def hash_weights(model) -> str:
    """SHA-256 of a model's weights and their names: of those that a library keeps, wherever it does."""
    digest = hashlib.sha256()
    for name, x in sorted(model.state_dict().items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if x.numel() else b"")
    return digest.hexdigest()

"""Encoders by name: this project's and torchvision's ResNets, and whatever timm has."""

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from . import resnet

TIMM = "timm:"
Weights = bool | tuple[str, int]


def is_timm(name: str) -> bool:
    """Whether timm makes this encoder."""
    return name.startswith(TIMM)


def encoder(name: str, small_images: bool = False, size: int | None = None, weights: Weights = False) -> nn.Module:
    """An encoder [N, 3, H, W] -> [N, d] without a classifier; its attribute `dim` is d.

    name: of `resnet.encoder`, or timm:NAME, features as timm pools them; small_images: as there, of no use to timm.
    size: side of the images, for timm's encoders that are made for one, such as ViT (None: that of timm's weights).
    weights: of timm's encoders, True: timm's own, downloaded where they are missing; a file in timm's format and the
        number of classes that it tells apart, 0 without a classifier: these; timm fits position embeddings to `size`.
        False: random ones.
    Raises ValueError on an unknown name, where timm is missing, or for an encoder that cannot take such images or does
    not pool; RuntimeError where the file is of another encoder.
    """
    return _build_timm(name, size, weights) if is_timm(name) else resnet.encoder(name, small_images)


def known_views(name: str) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Size, mean and std of the images that the library's own weights of an encoder were trained on.

    Raises ValueError for an encoder of which no library has weights.
    """
    if is_timm(name):
        known = _configuration(name)
        return known["input_size"][-1], tuple(known["mean"]), tuple(known["std"])
    views = resnet.torchvision_weights(name).transforms()
    return views.crop_size[0], tuple(views.mean), tuple(views.std)


def known_interpolation(name: str) -> str:
    """How images are resized for timm's weights of an encoder: bicubic, say."""
    return _configuration(name)["interpolation"]


def made_for_a_size(name: str) -> bool:
    """Whether timm makes an encoder for images of one size, as it does ViT."""
    return bool(_configuration(name).get("fixed_input_size"))


def pixels_left_out(net: nn.Module, size: int) -> int:
    """How many pixels of a side lie beyond the last whole patch, 0 where an encoder does not begin with patches."""
    conv = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    patches = conv is not None and conv.kernel_size == conv.stride and conv.padding in ((0, 0), "valid")
    return size % conv.stride[0] if conv and patches else 0


def _build_timm(name: str, size: int | None, weights: Weights) -> nn.Module:
    how: dict[str, Any] = {"img_size": size} if made_for_a_size(name) and size else {}  # first: is there such a name?
    if size:
        with torch.device("meta"):  # before anything is fetched
            _try_image(name, size, lambda: _create(name, **how))
    net = _create(name, pretrained=weights is True, **how)
    if size:  # once more, for an index out of bounds, which "meta" does not see
        net = _try_image(name, size, lambda: net).train()
    if not isinstance(weights, bool):
        file, classes = weights
        # with its classifier, since timm is not strict where that is left out, and takes a file of any other encoder
        overlay = {"file": file, "num_classes": classes}
        found = _create(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes, **how).state_dict()
        net.load_state_dict({key: found[key] for key in net.state_dict()})
    return net


def _create(name: str, **how: Any) -> Any:
    """timm's encoder, with `dim` as an attribute; of random weights and without a classifier if not said otherwise."""
    net = _timm(name).create_model(name.removeprefix(TIMM), **{"pretrained": False, "num_classes": 0, **how})
    net.dim = getattr(net, "head_hidden_size", None) or net.num_features
    return net


@torch.no_grad()
def _try_image(name: str, size: int, make: Callable[[], Any]) -> Any:
    """The encoder that is made, in eval mode, after one image: what attributes say of sizes differs among families."""
    try:
        net = make().eval()
        shape = tuple(net(torch.zeros(1, 3, size, size)).shape)
    except (RuntimeError, AssertionError, ValueError, ZeroDivisionError, IndexError) as error:  # each has its own
        line = " ".join(str(error).split())[:100] or "timm does not say why"
        raise ValueError(f"{name}: takes no images of {size} pixels ({line}); give another --size") from None
    if shape != (1, net.dim):
        raise ValueError(f"{name}: gives {list(shape)} for an image instead of {net.dim} features: it does not pool")
    return net


def classifier_names(name: str) -> list[str]:
    """What timm calls the classifier of an encoder of its own, of which some have two."""
    names = _configuration(name).get("classifier") or ()
    return [names] if isinstance(names, str) else list(names)


def _configuration(name: str) -> dict:
    """What timm knows of an encoder's weights: input_size, mean, std, ..."""
    try:
        with torch.device("meta"):
            return _create(name).pretrained_cfg
    except RuntimeError as error:
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from None


def _timm(name: str) -> Any:
    """The library, which knows the name."""
    try:
        import timm
    except ImportError:
        raise ValueError(f'{name}: timm is not installed; pip install ".[timm]"') from None
    known, wanted = timm.list_models(), name.removeprefix(TIMM)
    if not wanted.startswith("hf-hub:") and wanted.partition(".")[0] not in known:
        near = difflib.get_close_matches(wanted, known, n=1)
        raise ValueError(f"{name}: timm {timm.__version__} has no such model" + (f"; {TIMM}{near[0]}?" if near else ""))
    return timm

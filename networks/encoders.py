"""Encoders by name: this project's and torchvision's ResNets, and those of timm."""

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from . import resnet

TIMM = "timm:"
Weights = bool | tuple[str, int]


def is_timm(name: str) -> bool:
    """Return whether timm makes this encoder."""
    return name.startswith(TIMM)


def encoder(name: str, small_images: bool = False, size: int | None = None, weights: Weights = False) -> nn.Module:
    """Make an encoder without a classifier; its attribute ``dim`` is d.

    Args:
        name: A name of ``resnet.encoder``, or ``timm:NAME``, whose features are as timm pools them.
        small_images: Whether ResNets get a small stem, as in ``resnet.encoder``; without effect on timm's encoders.
        size: Side of the images in pixels, for encoders of timm that are made for one size, such as ViT. None is the
            size of timm's weights.
        weights: Weights of timm's encoders. True: timm's own, downloaded where they are missing. A tuple: a file in
            timm's format, and the number of classes of its classifier, 0 without one; timm fits position embeddings to
            ``size``. False: random ones.

    Returns:
        The encoder, (N, 3, H, W) to (N, d).

    Raises:
        ValueError: If the name is unknown, timm is missing, or the encoder cannot take such images or does not pool.
        RuntimeError: If the file is of another encoder.

    Examples:
        >>> net = encoder("resnet20")
        >>> net(torch.zeros(2, 3, 32, 32)).shape, net.dim
        (torch.Size([2, 64]), 64)
    """
    return _build_timm(name, size, weights) if is_timm(name) else resnet.encoder(name, small_images)


def known_views(name: str) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Look up the images that a library's own weights of an encoder were trained on.

    Args:
        name: Name of the encoder.

    Returns:
        Size in pixels, and mean and standard deviation of each channel, (3,).

    Raises:
        ValueError: If no library has weights of the encoder.

    Examples:
        >>> known_views("resnet18")
        (224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    """
    if is_timm(name):
        known = _configuration(name)
        return known["input_size"][-1], tuple(known["mean"]), tuple(known["std"])
    views = resnet.torchvision_weights(name).transforms()
    return views.crop_size[0], tuple(views.mean), tuple(views.std)


def known_interpolation(name: str) -> str:
    """Return how images are resized for timm's weights of an encoder, such as ``bicubic``."""
    return _configuration(name)["interpolation"]


def made_for_a_size(name: str) -> bool:
    """Return whether timm makes an encoder for images of one size, as it does ViT."""
    return bool(_configuration(name).get("fixed_input_size"))


def pixels_left_out(net: nn.Module, size: int) -> int:
    """Return how many pixels of a side lie beyond the last whole patch; 0 without patches."""
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
    """Create timm's encoder with ``dim``, by default random and without a classifier."""
    net = _timm(name).create_model(name.removeprefix(TIMM), **{"pretrained": False, "num_classes": 0, **how})
    net.dim = getattr(net, "head_hidden_size", None) or net.num_features
    return net


@torch.no_grad()
def _try_image(name: str, size: int, make: Callable[[], Any]) -> Any:
    """Return the encoder in eval mode after one image: its attributes differ among families."""
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
    """Return timm's names of the classifier of an encoder, of which some have two."""
    names = _configuration(name).get("classifier") or ()
    return [names] if isinstance(names, str) else list(names)


def _configuration(name: str) -> dict[str, Any]:
    """Return what timm knows of an encoder's weights: input_size, mean, std, ..."""
    try:
        with torch.device("meta"):
            return _create(name).pretrained_cfg
    except RuntimeError as error:
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from None


def _timm(name: str) -> Any:
    """Return the library, which has an encoder of the name."""
    try:
        import timm
    except ImportError:
        raise ValueError(f'{name}: timm is not installed; pip install ".[timm]"') from None
    known, wanted = timm.list_models(), name.removeprefix(TIMM)
    if not wanted.startswith("hf-hub:") and wanted.partition(".")[0] not in known:
        near = difflib.get_close_matches(wanted, known, n=1)
        raise ValueError(f"{name}: timm {timm.__version__} has no such model" + (f"; {TIMM}{near[0]}?" if near else ""))
    return timm

"""ResNet encoders by name: torchvision's, the same for small images, and He's narrow ones."""

import re
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

TORCHVISION = tuple(n for n in torchvision.models.list_models() if re.match(r"(wide_)?resnet|resnext", n))
NARROW = ("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56")
SUFFIXES = ("_standard", "_cifar")
NAMES = (*NARROW, *TORCHVISION)


def base_name(name: str) -> str:
    """Return the name without a suffix that forces a stem."""
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def has_small_stem(weights: dict[str, Tensor]) -> bool:
    """Return whether an encoder's weights have the 3x3 stem of small images."""
    stem = weights.get("conv1.weight")
    return stem is not None and stem.shape[-1] == 3


def torchvision_weights(name: str) -> Any:
    """Return torchvision's own weights of an encoder; raise ValueError if it has none."""
    if base_name(name) not in TORCHVISION:
        raise ValueError(f"{name}: no library has weights of it; torchvision has of {', '.join(TORCHVISION)}")
    return torchvision.models.get_model_weights(base_name(name)).DEFAULT


def encoder(name: str, small_images: bool = False) -> nn.Module:
    """Make a ResNet without a classifier; its attribute ``dim`` is d.

    Args:
        name: One of ``NAMES``. torchvision's ResNets have the 7x7 stem and max-pool, or the small stem. The suffixes
            ``_standard`` and ``_cifar`` force the one or the other. ``resnet8`` to ``resnet56`` are the narrow ResNets
            of He et al. 2016, sec. 4.2 (16, 32, 64 channels), for tiny images.
        small_images: Whether the stem is small: 3x3, of stride 1 and without max-pool.

    Returns:
        The encoder, (N, 3, H, W) to (N, d).

    Raises:
        ValueError: If the name is unknown.

    Examples:
        >>> encoder("resnet18", small_images=True).conv1
        Conv2d(3, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    base = base_name(name)
    small = small_images if base == name else name.endswith("_cifar")
    if base in NARROW:
        return NarrowResNet(depth=int(base.removeprefix("resnet")))
    if base not in TORCHVISION:
        raise ValueError(f"{name} is unknown; choose one of {', '.join(NAMES)}, or timm:NAME")
    net = torchvision.models.get_model(base, weights=None)
    net.dim, net.fc = net.fc.in_features, nn.Identity()
    if small:
        net.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
    return net


class NarrowResNet(nn.Sequential):
    """Encode tiny images by a narrow ResNet (He et al. 2016, sec. 4.2).

    Its 6n + 1 layers have 16, 32 and 64 channels. A 3x3 stem comes first, then n basic blocks for each number of
    channels.

    Args:
        depth: 6n + 2, which counts the linear layer that the encoder lacks.

    Shape:
        - x: (N, 3, H, W).
        - output: (N, 64).

    Examples:
        >>> sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in NarrowResNet(depth=20).modules())
        19
    """

    dim = 64

    def __init__(self, depth: int):
        super().__init__()
        n = (depth - 2) // 6
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.layer1 = self._stage(16, 16, n, stride=1)
        self.layer2 = self._stage(16, 32, n, stride=2)
        self.layer3 = self._stage(32, 64, n, stride=2)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(inplanes: int, planes: int, blocks: int, stride: int) -> nn.Module:
        shortcut = None
        if inplanes != planes:
            shortcut = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))
        first = BasicBlock(inplanes, planes, stride, shortcut)
        return nn.Sequential(first, *(BasicBlock(planes, planes) for _ in range(blocks - 1)))

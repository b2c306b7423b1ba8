"""ResNet encoders by name: torchvision's for ImageNet, a small stem for CIFAR, and He's narrow ones for tiny images."""

import re
from typing import Any

import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock

TORCHVISION = tuple(n for n in torchvision.models.list_models() if re.match(r"(wide_)?resnet|resnext", n))
NARROW = ("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56")
SUFFIXES = ("_standard", "_cifar")
NAMES = (*NARROW, *TORCHVISION)


def base_name(name: str) -> str:
    """The name without a suffix that forces a stem."""
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def has_small_stem(weights: dict) -> bool:
    """Whether an encoder's weights have the 3x3 stem of small images."""
    stem = weights.get("conv1.weight")
    return stem is not None and stem.shape[-1] == 3


def torchvision_weights(name: str) -> Any:
    """torchvision's own weights of an encoder. Raises ValueError where it has none."""
    if base_name(name) not in TORCHVISION:
        raise ValueError(f"{name}: no library has weights of it; torchvision has of {', '.join(TORCHVISION)}")
    return torchvision.models.get_model_weights(base_name(name)).DEFAULT


def encoder(name: str, small_images: bool = False) -> nn.Module:
    """An encoder [N, 3, H, W] -> [N, d] without a classifier; its attribute `dim` is d.

    name: one of NAMES. torchvision's ResNets have the 7x7 stem and max-pool, or, where `small_images` holds, a 3x3
        stem of stride 1 and no max-pool; the suffixes _standard and _cifar force the one or the other. resnet8 to
        resnet56 are the narrow ResNets of He et al. 2016, sec. 4.2 (16, 32, 64 channels), for tiny images.
    Raises ValueError on an unknown name.
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
    """6n + 2 layers: a 3x3 stem, then n basic blocks each of 16, 32 and 64 channels (He et al. 2016, sec. 4.2)."""

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

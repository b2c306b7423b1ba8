"""Transforms from a PIL image to normalised tensors [3, size, size]."""

import torch
from torchvision.transforms import v2


def _to_tensor(mean, std) -> list:
    return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]


class TwoViews:
    """Two independent draws of a transform: image -> [2, 3, size, size]."""

    def __init__(self, transform):
        self.transform = transform

    def __call__(self, image):
        return torch.stack([self.transform(image), self.transform(image)])


def contrastive(size: int, mean, std, crop_scale=(0.2, 1.0), flip=True, colour=True):
    """The published augmentation: random resized crop, flip, colour jitter (p 0.8), grayscale (p 0.2), normalise."""
    steps = [v2.RandomResizedCrop(size, scale=crop_scale, antialias=True)]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if colour:
        steps += [v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8), v2.RandomGrayscale(p=0.2)]
    return v2.Compose([*steps, *_to_tensor(mean, std)])


def evaluation(size: int, mean, std, small: bool):
    """No randomness: small images at `size` whole; others resized to 256 / 224 of `size`, then the centre crop."""
    steps = [v2.Resize((size, size))] if small else [v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)]
    return v2.Compose([*steps, *_to_tensor(mean, std)])

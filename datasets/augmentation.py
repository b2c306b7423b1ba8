"""The published augmentation in two parts, and evaluation's transform.

Random crops are cut, as bytes, by the process that reads an image. Flip, color and normalization run on whole batches,
with parameters of each view's own, on the device or in the loader's processes: `finish`. What is drawn follows
torchvision's RandomResizedCrop, RandomHorizontalFlip, RandomApply(ColorJitter, 0.8) and RandomGrayscale(0.2), and where
it is asked for RandomApply(GaussianBlur, p), as in SimCLR (Chen et al. 2020, appendix A).
"""

import itertools
import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ORDERS = tuple(itertools.permutations(range(4)))  # of brightness, contrast, saturation, hue
TRIES = 10  # of a crop that fits the image, as in torchvision
DRAWS = 2 * TRIES + 10  # numbers a view
BLUR_DRAWS = 2  # and for blur two more, drawn after all others, which so stay as they are
SIGMA = (0.1, 2.0)  # of the blur, in pixels
GRAY = (0.2989, 0.587, 0.114)  # weights of red, green and blue in luma, as in torchvision
LOOK = ("flip", "jitter", "brightness", "contrast", "saturation", "hue", "order", "gray")

# Pixels of a view that `finish` works on at a time on a CPU, for its caches.
BLOCK = 2**16


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for a view, and what it becomes: [3, size, size], normalized by mean and std.

    crop_scale: share of the image's area, of aspect ratio 3/4 to 4/3; None: the whole image. colour: strength of the
    jitter, 1: (0.4, 0.4, 0.4, 0.1) with p 0.8, as published, and with it grayscale with p 0.2; 0: neither. blur: the
    share of views that are blurred, by a kernel of a tenth of their side.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_scale: tuple[float, float] | None = (0.2, 1.0)
    flip: bool = True
    colour: float = 1.0  # spelled as in what engine.extract stored
    views: int = 2
    blur: float = 0.0

    def box(self, uniform: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
        """top, left, height, width of a crop from DRAWS numbers in [0, 1), or more."""
        if self.crop_scale is None:
            return 0, 0, height, width
        low, high = self.crop_scale
        for share, shape in uniform[: 2 * TRIES].reshape(TRIES, 2).tolist():
            area = height * width * (low + share * (high - low))
            ratio = math.exp((2 * shape - 1) * math.log(4 / 3))
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                top, left = uniform[2 * TRIES : 2 * TRIES + 2].tolist()
                return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
        h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))  # none fits: as much as may be
        return (height - h) // 2, (width - w) // 2, h, w

    def look(self, uniform: np.ndarray) -> Tensor:
        """[..., 8] float32 parameters of `finish`, the columns LOOK, from [..., DRAWS] numbers in [0, 1); with blur,
        from BLUR_DRAWS more, a ninth: the sigma of a view that is blurred, else 0.
        """
        columns = np.moveaxis(uniform[..., DRAWS - 8 : DRAWS], -1, 0)
        flip, jitter, brightness, contrast, saturation, hue, order, gray = columns
        strength, colored = self.colour, self.colour > 0
        columns = [
            (flip < 0.5) & self.flip,
            (jitter < 0.8) & colored,
            *((1 - 0.4 * strength) + 0.8 * strength * factor for factor in (brightness, contrast, saturation)),
            0.2 * strength * hue - 0.1 * strength,
            np.floor(order * len(ORDERS)),
            (gray < 0.2) & colored,
        ]
        if self.blur:
            blurred, sigma = np.moveaxis(uniform[..., DRAWS:], -1, 0)
            columns.append((blurred < self.blur) * (SIGMA[0] + sigma * (SIGMA[1] - SIGMA[0])))
        return torch.from_numpy(np.stack(columns, -1).astype(np.float32))


def crop(pixels: Tensor, box, out: Tensor) -> None:
    """Resize a box of an image [H, W, 3] to `out` [1, 3, S, S], of either layout; uint8; bilinear, antialiased.

    This is what torch.nn.functional.interpolate does, without a copy of its result.
    """
    top, left, height, width = box
    row, pixel, channel = pixels.stride()
    place = pixels.storage_offset() + top * row + left * pixel
    # one view of the box: of a small image, slicing step by step takes as long as resizing
    x = pixels.as_strided((1, 3, height, width), (0, channel, row, pixel), place)
    _resize(x, out.shape[2:], False, None, None, out=out)


_resize = torch.ops.aten._upsample_bilinear2d_aa.out


# ---- color -----------------------------------------------------------------------------------------------------------
# Each works in place on [n, 3, H, W] float32 in [0, 1] with factors [n, 1, 1, 1], in the meaning of
# torchvision.transforms.v2.functional.


def gray(x: Tensor) -> Tensor:
    """[n, 1, H, W] luma."""
    red, green, blue = GRAY
    return x[:, :1].mul(red).add_(x[:, 1:2], alpha=green).add_(x[:, 2:], alpha=blue)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    return x.mul_(factor).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    mean = gray(x).mean((1, 2, 3), keepdim=True)
    return x.mul_(factor).add_(mean.mul_(1 - factor)).clamp_(0, 1)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    luma = gray(x)
    return x.mul_(factor).add_(luma.mul_(1 - factor)).clamp_(0, 1)


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` of the circle, at the same saturation and value (HSV)."""
    r, g, b = x.unbind(1)
    value = torch.maximum(r, g)
    torch.maximum(value, b, out=value)
    low = torch.minimum(r, g)
    torch.minimum(low, b, out=low)
    chroma = torch.sub(value, low, out=low)
    # sixths of the circle from red on, where green is largest, else where blue is, and where red is; chosen by weights
    # of 1 or 0, since truth values are slow on a CPU
    sixths = (b - r).add_(chroma, alpha=2).lerp_((r - g).add_(chroma, alpha=4), (value - g).sign_())
    sixths = (g - b).lerp_(sixths, (value - r).sign_())
    sixths.div_(chroma.clamp(min=torch.finfo(x.dtype).tiny)).add_(shift[:, 0] * 6)
    sixths.sub_(sixths.div(6).floor_(), alpha=6)
    low = value.sub_(chroma)
    for channel, center in zip((r, g, b), (3, 2, 4), strict=True):
        torch.sub(sixths, center, out=channel)
    x.abs_()
    red, others = x[:, :1].sub_(1).clamp_(0, 1), x[:, 1:].sub_(2).clamp_(-1, 0)  # full from 2 on; up to 1
    low, chroma = low.unsqueeze(1), chroma.unsqueeze(1)
    torch.addcmul(low, red, chroma, out=red)
    torch.addcmul(low, others, chroma, value=-1, out=others)
    return x


OPERATIONS = (brightness, contrast, saturation, hue)


def finish(views: Tensor, look: Tensor, mean, std, memory_format=torch.contiguous_format) -> Tensor:
    """Flip, color jitter, grayscale and normalization, with each view's own parameters.

    views: [n, 3, H, W] uint8, of any strides, on any device; look: [n, 8] float32 on the CPU, the columns LOOK, so that
    what is to be done is known without waiting for the device -> [n, 3, H, W] float32.
    """
    out = torch.empty(views.shape, dtype=torch.float32, device=views.device, memory_format=memory_format)
    with torch.inference_mode():  # thousands of small operations, each dearer where a gradient could be asked for
        _finish_into(out, views, look, mean, std)
    return out


def _finish_into(out, views, look, mean, std):
    order = torch.where(look[:, 1] > 0, look[:, 6], -1)  # views of one order are worked on together
    flip, turned_gray = look[:, 0] > 0, look[:, 7] > 0
    # among them, first those that stay colored, then the gray; flipped ones last and first: each kind side by side
    by_order = (order * 4 + turned_gray * 2 + (flip != turned_gray)).argsort(stable=True)
    look = look[by_order]
    rows_there, look_there = (there(x, views.device) for x in (by_order, look))
    mean, std = (there(torch.tensor(x, dtype=torch.float32)[:, None, None], views.device) for x in (mean, std))
    most = max(1, BLOCK // views[0, 0].numel()) if views.device.type == "cpu" else len(views)
    first = 0
    for o, count in zip(*(x.tolist() for x in order.unique(return_counts=True)), strict=True):
        for start in range(first, first + count, most):
            block = slice(start, min(start + most, first + count))
            x = views.index_select(0, rows_there[block])
            x = _finish_block(x, look[block], look_there[block], ORDERS[int(o)] if o >= 0 else ())
            out.index_copy_(0, rows_there[block], x.sub_(mean).div_(std))
        first += count


def blur(views: Tensor, sigma: Tensor) -> Tensor:
    """Blur, in place, each of the views [n, 3, S, S] by a Gaussian of its own sigma [n] in pixels, on the CPU; 0: not.

    As torchvision's gaussian_blur with a kernel of a tenth of the side, an odd number of at least 3 (Chen et al. 2020),
    and reflected borders. Normalization before or after is the same, since the kernel's sum is 1.
    """
    rows = sigma.nonzero()[:, 0]
    side, channels = views.shape[-1], views.shape[1]
    radius = max(1, (side // 10) // 2)
    if not len(rows) or side <= radius:  # of one pixel
        return views
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma[rows, None]).square())
    kernel = there(kernel / kernel.sum(1, keepdim=True), views.device).repeat_interleave(channels, 0)  # [m * 3, k]
    rows = there(rows, views.device)
    x = F.pad(views[rows], [radius] * 4, mode="reflect").flatten(0, 1)[None]  # [1, m * 3, S + 2 r, S + 2 r]
    x = F.conv2d(x, kernel[:, None, :, None], groups=len(kernel))
    x = F.conv2d(x, kernel[:, None, None, :], groups=len(kernel))
    return views.index_copy_(0, rows, x[0].unflatten(0, (-1, channels)))


def there(x: Tensor, device: torch.device) -> Tensor:
    """Move a tensor of the CPU to a device; to a GPU from pinned memory, so that the host does not wait."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x


def _finish_block(x, look, look_there, order):
    flip, turned_gray = (_run(look[:, column] > 0) for column in (0, 7))
    if flip:
        x[flip] = x[flip].flip(3)
    x = x.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    for o in order:
        x = OPERATIONS[o](x, look_there[:, 2 + o, None, None, None])
    if turned_gray:
        x[turned_gray] = gray(x[turned_gray])
    return x


def _run(chosen: Tensor) -> slice | None:
    """Where the chosen rows are, which are side by side."""
    rows = chosen.nonzero()[:, 0].tolist()
    return slice(rows[0], rows[-1] + 1) if rows else None


# ---- evaluation ------------------------------------------------------------------------------------------------------


def evaluation(size: int, mean, std, small: bool, interpolation: str = "bilinear"):
    """No randomness: small images at `size` whole; others resized to 256 / 224 of `size`, then the center crop.

    interpolation: of the resizing, as torchvision's InterpolationMode calls it.
    """
    from torchvision.transforms import InterpolationMode, v2

    resize = partial(v2.Resize, interpolation=InterpolationMode(interpolation))
    steps = [resize((size, size))] if small else [resize(round(size * 256 / 224)), v2.CenterCrop(size)]
    made = v2.Compose([*steps, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    # of images of this height and width nothing is resized: a batch of their pixels becomes what each of them does
    made.whole = (size, size) if small else None
    return made

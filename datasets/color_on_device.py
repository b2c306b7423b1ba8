"""`augmentation.finish` as one pass over a batch, compiled: on a CUDA device a few launches instead of thousands.

A view's four operations in any order are six affine steps, clamped, three before the change of hue and three after it,
of which those that it has not got do nothing: so all views go through the same arithmetic, whatever their order.
Contrast wants a mean over the view, of what comes before it: that is a first pass, which keeps the mean alone.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from datasets import augmentation
from datasets.augmentation import GRAY, LOOK, ORDERS

CONTRAST, SATURATION, HUE = 1, 2, 3  # in augmentation.OPERATIONS
SLOTS = 6  # affine steps
WIDTH = 5 + 2 * SLOTS * 3  # numbers a view: flip, gray, shift, two switches of hue; two passes of SLOTS affine steps


class Finish:
    """`augmentation.finish` on a CUDA device: compiled when it is first called, which takes seconds to a minute.

    Where this machine cannot compile, the operations run one by one, and it is said. say: prints a line.
    """

    def __init__(self, say: Callable[[str], None]):
        self.say, self.compiled, self.ran, self.compiles = say, None, False, True

    def __call__(self, views: Tensor, look: Tensor, mean, std, memory_format=torch.contiguous_format) -> Tensor:
        if self.compiles:
            begin = time.perf_counter()
            try:
                if self.compiled is None:  # not before it is needed: where Python is too new for it, this alone fails
                    self.compiled = torch.compile(finish, dynamic=False)
                plans = augmentation.there(plan(look), views.device)
                out = self.compiled(views, plans, mean, std, memory_format == torch.channels_last)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of dynamo, inductor, triton, a C compiler
                if self.ran:
                    raise
                self.compiles = False
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                self.say(
                    f"warning: the augmentation cannot be compiled here ({reason}); it runs operation by operation, in "
                    "thousands of launches per step; --augment_on worker may be faster"
                )
            else:
                if not self.ran:
                    self.say(f"augmentation compiled for {views.device} in {time.perf_counter() - begin:.0f} s")
                self.ran = True
                return out
        return augmentation.finish(views, look, mean, std, memory_format)


def _place_operations() -> Tensor:
    """[24, SLOTS] the operation of each affine step, by number of the order; -1: none."""
    table = torch.full((len(ORDERS), SLOTS), -1)
    for number, order in enumerate(ORDERS):
        turn = order.index(HUE)
        for place, operation in enumerate(order):
            if place != turn:
                table[number, place if place < turn else place - turn + 2] = operation
    return table


def plan(look: Tensor) -> Tensor:
    """[n, WIDTH] what `finish` does to each view, from [n, 8] parameters, the columns LOOK of augmentation."""
    look = dict(zip(LOOK, look[:, : len(LOOK)].unbind(1), strict=True))
    operation = _place_operations()[look["order"].long()]  # [n, SLOTS]
    operation = torch.where(look["jitter"][:, None] > 0, operation, -1)
    factors = torch.stack([look["brightness"], look["contrast"], look["saturation"], torch.ones_like(look["hue"])], 1)
    scale = factors.gather(1, operation % 4)  # of no operation, -1, it is 1
    steps = torch.stack([scale, (1 - scale) * (operation == SATURATION), (1 - scale) * (operation == CONTRAST)], 2)
    # up to contrast; after it, none
    first = ((operation == CONTRAST).cumsum(1) == 0) & (operation >= 0)
    before = torch.where(first[..., None], steps, torch.tensor([1.0, 0.0, 0.0]))
    jitter = look["jitter"] > 0
    turns_first = jitter & (operation[:, :3] != CONTRAST).all(1)
    head = torch.stack([look["flip"], look["gray"], look["hue"], turns_first.float(), jitter.float()], 1)
    return torch.cat([head, before.flatten(1), steps.flatten(1)], 1)


def finish(views: Tensor, plan: Tensor, mean, std, channels_last: bool) -> Tensor:
    """Finish views (n, 3, H, W), uint8, of any strides, by a plan (n, WIDTH): (n, 3, H, W), float32, normalized."""
    flip, turned_gray, shift, turns_first, turns = (c[:, None, None] for c in plan[:, :5].unbind(1))
    before, steps = plan[:, 5:].unflatten(1, (2, SLOTS, 3, 1, 1)).unbind(1)  # [n, SLOTS, 3, 1, 1]
    x = views.to(torch.float32) / 255
    x = torch.where(flip[:, None] > 0, x.flip(3), x).unbind(1)
    contrast_mean = _compute_luma(_change_colors(x, before, shift, turns_first, 0.0)).mean((1, 2), keepdim=True)
    x = _change_colors(x, steps, shift, turns, contrast_mean)
    luma = _compute_luma(x)
    x = [(torch.where(turned_gray > 0, luma, c) - m) / s for c, m, s in zip(x, mean, std, strict=True)]
    return torch.stack(x, 3).permute(0, 3, 1, 2) if channels_last else torch.stack(x, 1)


def _compute_luma(x) -> Tensor:
    return sum(weight * c for weight, c in zip(GRAY, x, strict=True))


def _change_colors(x, steps, shift, turns, mean):
    """Planes of red, green and blue, [n, H, W] in [0, 1], after affine steps, the change of hue, affine steps."""
    for step in steps.unbind(1)[:3]:
        x = _apply_affine(x, step, mean)
    x = [torch.where(turns > 0, turned, c) for turned, c in zip(_turn_hue(*x, shift), x, strict=True)]
    for step in steps.unbind(1)[3:]:
        x = _apply_affine(x, step, mean)
    return x


def _apply_affine(x, step, mean):
    scale, of_luma, of_mean = step.unbind(1)
    added = of_luma * _compute_luma(x) + of_mean * mean
    return [(scale * c + added).clamp(0, 1) for c in x]


def _turn_hue(r, g, b, shift):
    """As augmentation.hue, for planes."""
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    sixths = torch.where(value == g, b - r + 2 * chroma, r - g + 4 * chroma)
    sixths = torch.where(value == r, g - b, sixths) / chroma.clamp(min=torch.finfo(r.dtype).tiny) + 6 * shift
    turned = []
    for full in (5, 3, 1):
        place = sixths + full
        place = place - (place / 6).floor() * 6
        turned.append(value - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    return turned

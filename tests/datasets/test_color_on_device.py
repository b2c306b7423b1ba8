"""The compiled pass of the augmentation does what `augmentation.finish` does; where nothing compiles, that is done."""

import logging

import pytest
import torch
from test_augmentation import MEAN, STD, look_of, recipe, some_views, uniforms

from datasets import augmentation, color_on_device
from datasets.augmentation import LOOK, ORDERS

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def every_order(repeats=3, seed=0):
    """[24 repeats, 8] parameters: each order of the operations, each with flips and gray views among them."""
    look = recipe().look(uniforms(len(ORDERS) * repeats, seed))
    look[:, LOOK.index("order")] = torch.arange(len(look)) % len(ORDERS)
    look[: len(ORDERS), LOOK.index("jitter")] = 1
    return look


@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_the_pass_gives_the_views_of_finish_in_every_order_of_operations(memory_format):
    look = every_order()
    views = some_views(len(look))
    got = color_on_device.finish(views, color_on_device.plan(look), MEAN, STD, memory_format == torch.channels_last)
    want = augmentation.finish(views, look, MEAN, STD, memory_format)
    assert (got - want).abs().max() < 1e-5
    assert got.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("order", range(0, len(ORDERS), 5))
def test_contrast_takes_the_mean_of_what_comes_before_it(order):
    """Extreme factors, at which another mean would show."""
    strong = {"brightness": [1.4] * 4, "contrast": [0.0, 0.1, 1.9, 0.6], "saturation": [0.0] * 4, "hue": [0.5] * 4}
    look, views = look_of(jitter=[1] * 4, order=[order] * 4, **strong), some_views(4)
    got = color_on_device.finish(views, color_on_device.plan(look), MEAN, STD, False)
    assert (got - augmentation.finish(views, look, MEAN, STD)).abs().max() < 1e-5


def test_where_nothing_compiles_the_operations_run_one_by_one_and_it_is_said_once(monkeypatch):
    def no_compiler(*_, **__):
        raise RuntimeError("Failed to find C compiler.\nSet CC.")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: no_compiler)
    said = []
    finish, look, views = color_on_device.Finish(said.append), every_order(1), some_views(24)
    for _ in range(2):
        assert torch.equal(finish(views, look, MEAN, STD), augmentation.finish(views, look, MEAN, STD))
    (line,) = said
    assert "RuntimeError: Failed to find C compiler. Set CC." in line
    assert "--augment_on worker" in line


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), RuntimeError("after the first batch")])
def test_neither_lack_of_memory_nor_a_later_error_is_taken_for_a_lack_of_a_compiler(monkeypatch, error):
    faults = [error] if isinstance(error, torch.OutOfMemoryError) else [None, error]

    def compiled(*arguments):
        if fault := faults.pop(0):
            raise fault
        return color_on_device.finish(*arguments)

    monkeypatch.setattr(torch, "compile", lambda *_, **__: compiled)
    finish, look, views = color_on_device.Finish([].append), every_order(1), some_views(24)
    with pytest.raises(type(error), match=str(error)):
        for _ in range(2):
            finish(views, look, MEAN, STD)


@pytest.mark.slow
@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_compiled_it_gives_the_same(memory_format):
    said, look = [], every_order()
    views = some_views(len(look)).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as loaders give them
    got = color_on_device.Finish(said.append)(views, look, MEAN, STD, memory_format)
    want = augmentation.finish(views, look, MEAN, STD, memory_format)
    assert (got - want).abs().max() < 1e-5
    assert got.is_contiguous(memory_format=memory_format)
    assert "augmentation compiled for cpu" in said[0]


@pytest.mark.slow
def test_compiled_it_takes_at_most_200_launches_and_8_times_the_outputs_traffic():
    from torch._inductor import metrics
    from torch._inductor.utils import fresh_cache

    look, views = recipe().look(uniforms(256)), some_views(256, 16)
    log = logging.getLogger("torch._inductor.compile_fx.__inductor_metrics")
    log.setLevel(logging.INFO)  # bytes are counted only where they would be logged
    log.propagate = False
    metrics.reset()
    with fresh_cache():
        out = color_on_device.Finish(print)(views, look, MEAN, STD)
    assert 1 <= metrics.generated_kernel_count <= 200
    assert 1 < metrics.num_bytes_accessed / out.nbytes <= 8

"""What a training takes of a GPU's memory: counted as by hand, in words that say what would fit."""

import contextlib
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import losses
from engine import distributed, memory
from engine.memory import Bank, Needs
from engine.training import build_encoder
from util import InputError

NEEDS = Needs(1e9, {"activations": 15e6, "passing": 5e6}, 768)
BLOCKS = Needs(1e9, {"activations": 15e6, "passing": 5e6}, 768, (8e6, 2e9))


def on_meta(build):
    with torch.device("meta"):
        return build()


def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))


@pytest.mark.parametrize(("precision", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_what_autograd_keeps_is_counted_as_by_hand(precision, width):
    """The convolution keeps its input, BatchNorm its own, ReLU its output, which the linear layer keeps too."""
    kept, largest = memory.activations(on_meta(small), 4, precision)
    assert kept == width * (3 * 4 * 4 + 8 * 4 * 4 + 8 * 4 * 4)
    assert largest == width * 8 * 4 * 4


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "small_images", "size"), [("resnet8", True, 16), ("resnet18", False, 64)])
def test_the_count_without_computing_is_that_of_a_real_step_under_autocast(name, small_images, size, precision):
    encoder, images = build_encoder(name, small_images), (2, 3)
    weights, totals = {x.data_ptr() for x in encoder.parameters()}, []
    for n in images:
        found = {}

        def keep(x, found=found):
            if x.data_ptr() not in weights:
                found[x.untyped_storage().data_ptr()] = x
            return x

        how = torch.autocast("cpu", torch.bfloat16) if precision == torch.bfloat16 else contextlib.nullcontext()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), how:
            out = encoder.train()(torch.randn(n, 3, size, size))
        totals.append(sum(x.untyped_storage().nbytes() for x in found.values()))
        del out
    kept, _ = memory.activations(build_encoder(name, small_images, "meta"), size, precision)
    assert kept == totals[1] - totals[0]


@pytest.mark.parametrize(
    ("name", "small_images", "size", "want"),
    [("resnet18", True, 32, 1.80), ("resnet18", False, 224, 9.13), ("resnet50", False, 224, 33.6)],
)
def test_the_published_batch_keeps_so_many_gigabytes(name, small_images, size, want):
    kept, _ = memory.activations(build_encoder(name, small_images, "meta"), size, torch.bfloat16)
    assert 768 * kept / 1e9 == pytest.approx(want, rel=0.005)


def test_a_bank_takes_a_second_view_the_keys_weights_and_the_losses_similarities():
    how = 4, torch.float32, 64
    one, two = (memory.of_training(on_meta(small), *how, bank) for bank in (None, Bank(1000, 16)))
    weights = sum(x.numel() for x in small().parameters())
    assert two.fixed - one.fixed == 4 * weights + 8 * 1000 * 16
    assert two.per_image["images"] == 2 * one.per_image["images"] == 2 * 5 * 3 * 4 * 4
    assert (one.loss[0], two.loss) == (0, (20_000, 20 * losses.BLOCK["cuda"]))


def test_a_loss_in_blocks_takes_no_more_than_a_block_whatever_bank_and_batch():
    needs = memory.of_training(on_meta(small), 4, torch.float32, 64, Bank(2**20, 16))
    most = 20 * losses.BLOCK["cuda"]
    assert needs.loss == (20 * 2**20, most)
    without = replace(needs, loss=(0.0, math.inf))
    for images in (1, 63, 64, 65, 10_000):
        assert needs.total(images) - without.total(images) == pytest.approx(1.05 * min(images * 20 * 2**20, most))


def test_what_passes_through_a_network_is_counted_as_by_hand():
    """The images, which the caller holds, and two tensors of eight channels: what a module takes, and what it makes."""
    found = memory.passing_through(on_meta(small), 4, torch.float32)
    assert found == 4 * (3 * 4 * 4 + 2 * 8 * 4 * 4)


def test_a_key_encoders_pass_counts_where_it_takes_more_than_gradients():
    encoder = build_encoder("resnet18", True, "meta")
    _, largest = memory.activations(encoder, 32, torch.bfloat16)
    passing = memory.passing_through(encoder, 32, torch.bfloat16)
    one, two = (memory.of_training(encoder, 32, torch.bfloat16, 64, bank) for bank in (None, Bank(64, 8)))
    assert (one.per_image["passing"], two.per_image["passing"]) == (2 * largest, passing)
    assert passing > 2 * largest


@pytest.mark.parametrize(
    ("precision", "processes", "bank", "bytes_a_weight"),
    [
        (torch.float32, 1, None, 4 + 4 + 4),  # weight, gradient, momentum
        (torch.bfloat16, 1, None, 4 + 4 + 4 + 2),  # autocast's copy
        (torch.float32, 2, None, 4 + 4 + 4 + 4),  # the buckets in which gradients are sent
        (torch.float16, 8, Bank(10, 3), 4 + 4 + 4 + 2 + 4 + 4),  # and the key encoder's
    ],
)
def test_a_weight_takes_so_many_bytes(monkeypatch, precision, processes, bank, bytes_a_weight):
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    needs = memory.of_training(on_meta(small), 4, precision, 64, bank)
    of_bank = 2 * 4 * 10 * 3 if bank else 0
    assert needs.fixed == bytes_a_weight * sum(x.numel() for x in small().parameters()) + of_bank


def test_an_images_gradients_are_those_of_the_largest_layers_input_and_output():
    needs = memory.of_training(on_meta(small), 4, torch.float32, 64)
    assert needs.per_image["passing"] == 2 * (4 * 8 * 4 * 4)
    assert needs.per_image["activations"] == memory.activations(on_meta(small), 4, torch.float32)[0]


@pytest.mark.parametrize("needs", [NEEDS, BLOCKS], ids=["plain", "a loss in blocks"])
def test_what_fits_is_the_most_that_does_in_whole_multiples(needs):
    for gigabytes in (3, 4, 8, 24, 80):
        images = needs.fits(gigabytes * 1e9)
        step = 64 if images > 128 else 8
        assert images % step == 0
        assert needs.total(images) <= gigabytes * 1e9 < needs.total(images + step)
    assert NEEDS.fits(2e9) == 0


def test_a_run_that_fits_says_its_parts_and_they_add_up():
    line = NEEDS.line(80e9)
    assert line.startswith("memory: about 18.2 GB of the 80.0 GB that each GPU has for this run, for 768 images (")
    assert line.endswith("(activations 11.5, passing 3.8, weights 1.0, CUDA's own 1.8)")


def test_one_that_does_not_says_which_batch_would_and_how_many_gpus_hold_this_one(monkeypatch):
    line = NEEDS.line(8e9)
    assert line.startswith("warning: memory: about 18.2 GB of the 8.0 GB")
    assert line.endswith("; about --batch_size 256 would fit, or 3 GPUs hold 768")
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert "for 384 images" in NEEDS.line(8e9)
    assert NEEDS.line(8e9).endswith("; about --batch_size 512 would fit, or 3 GPUs hold 768")
    assert "hold not even 8 images" in NEEDS.line(1e9)
    assert NEEDS.way_out(80e9).startswith("by the estimate it would fit")


def test_out_of_memory_is_the_users_line_and_other_errors_stay(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (6e9, 8e9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0.3e9)
    cuda, said = torch.device("cuda", 0), []
    monkeypatch.setattr(distributed, "say", said.append)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has")
    want = "--batch_size 768: CUDA out of memory. Tried to allocate 2 GiB.; about --batch_size 256 would fit"
    with pytest.raises(InputError, match=want), memory.within(cuda, lambda: NEEDS):
        raise error
    assert said == [NEEDS.line(6e9 + 0.3e9 + memory.CONTEXT)]  # what the run holds already is its own
    with pytest.raises(ZeroDivisionError), memory.within(cuda, lambda: NEEDS):
        raise ZeroDivisionError
    with memory.within(torch.device("cpu"), lambda: pytest.fail("worked out without a GPU")):
        pass

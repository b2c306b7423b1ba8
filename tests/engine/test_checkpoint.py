"""Checkpoints are whole or absent, hold no code, and fill an encoder strictly."""

import errno
import hashlib
import io
import os
import pickle
import random
import re
import zipfile

import numpy as np
import pytest
import torch
from made_data import original_checkpoint
from PIL import Image

import util
from engine.checkpoint import load_encoder
from engine.encoder import pretrained
from engine.run import checkpoint
from networks import resnet
from networks.contrastive import ContrastiveModel, projection_head
from networks.memory_bank import MemoryBank
from util import InputError

# ---- files -----------------------------------------------------------------------------------------------------------


def test_an_interrupted_save_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    checkpoint.save(path, {"model": {}, "epoch": 1})

    def crash(*args):
        raise OSError(errno.EIO, "lost the disk")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match=r"lost the disk: .*last\.pth"):
        checkpoint.save(path, {"model": {}, "epoch": 2}, before=tmp_path / "previous.pth")
    assert checkpoint.load(path)["epoch"] == 1
    assert [f.name for f in tmp_path.iterdir()] == ["last.pth"]


def test_the_file_before_takes_the_name_that_it_is_given(tmp_path):
    for epoch in (1, 2, 3):
        checkpoint.save(tmp_path / "last.pth", {"model": {}, "epoch": epoch}, before=tmp_path / "previous.pth")
    checkpoint.save(tmp_path / "ckpt_epoch_2.pth", {"model": {}, "epoch": 2})
    checkpoint.save(tmp_path / "ckpt_epoch_10.pth", {"model": {}, "epoch": 10})
    names = ["last.pth", "previous.pth", "ckpt_epoch_10.pth", "ckpt_epoch_2.pth"]
    assert [f.name for f in checkpoint.history(tmp_path)] == names
    assert [checkpoint.load(f)["epoch"] for f in checkpoint.history(tmp_path)] == [3, 2, 10, 2]


def damages(content: bytes, rng: random.Random):
    """Truncated, with bits turned, with a stretch of zeros or of noise."""
    for _ in range(100):
        yield content[: rng.randrange(len(content))]
    for bits in (1, 1, 1, 2, 5):
        for _ in range(50):
            flipped = bytearray(content)
            for _ in range(bits):
                flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            yield bytes(flipped)
    for fill in (bytes(512), rng.randbytes(512)):
        for _ in range(25):
            at = rng.randrange(len(content))
            yield (content[:at] + fill + content[at + 512 :])[: len(content)]


def test_hundreds_of_damages_are_errors_of_one_line_or_leave_every_number_as_it_was(tmp_path):
    torch.manual_seed(0)
    path, weights = tmp_path / "last.pth", torch.nn.Linear(4, 300).state_dict()
    own = {"random": checkpoint.random_state(), "means": [[torch.ones(2), 3]]}
    numbers = {"epoch": 3, "step": 5, "processes": [own]}
    checkpoint.save(path, {"model": weights, **numbers})
    content, refused, loaded_by_torch = path.read_bytes(), 0, 0
    damaged_ones = list(damages(content, random.Random(0)))
    for damaged in damaged_ones:
        path.write_bytes(damaged)
        try:
            state = checkpoint.load(path)
        except InputError as error:
            assert len(str(error).splitlines()) == 1
            refused += 1
            loaded_by_torch += "(corrupt in" in str(error)
            continue
        assert all(torch.equal(state["model"][k], v) for k, v in weights.items())
        assert repr({k: state[k] for k in numbers}) == repr(numbers)
    assert refused > 0.8 * len(damaged_ones)  # the rest is in the zip file's padding
    assert loaded_by_torch > 50  # bits of a weight, among others, which only the check sums tell


def zipped(*names):
    """A zip archive of small files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"3")
    return file.getvalue()


def saved(save, content):
    file = io.BytesIO()
    save(file, content)
    return file.getvalue()


def torch_saved(content):
    return saved(lambda file, x: torch.save(x, file), content)


SCRIPTED = zipped(*(f"last/{name}" for name in ("data.pkl", "code/__torch__.py", "constants.pkl", "version")))
PICTURE = saved(lambda file, image: image.save(file, "png"), Image.new("RGB", (4, 4)))
UNREADABLE = "not a readable checkpoint ("
BAD_FILES = {
    "empty": (b"", UNREADABLE + "it is empty"),
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid",
        UNREADABLE + "it is a text that begins: version ht",
    ),
    "not ASCII": ("na\u00efve".encode(), UNREADABLE + "it is a text that begins: na\u00efve"),
    "begins as a pickle": (b"class,cat,dog\ncat,1,0\n", UNREADABLE + "it is a text that begins: class,cat,dog"),
    "damaged pickle": (b"\x80\x02\x93 damaged", UNREADABLE + "no file of torch.save"),
    "damaged zip": (b"PK\x03\x04 damaged", UNREADABLE + "File is not a zip file"),
    "zip": (zipped("a.txt"), UNREADABLE + "a zip archive, but none of torch.save"),
    "NumPy's": (saved(np.savez, np.ones(3)), UNREADABLE + "a zip archive, but none of torch.save"),
    "picture": (PICTURE, UNREADABLE),
    "TorchScript": (SCRIPTED, "a TorchScript archive, whose code is not run; save its state dict: torch.save("),
    "pickle": (pickle.dumps({"model": {}}, protocol=2), "not a "),
    "list": (torch_saved([1]), "not a checkpoint"),
    "tensor": (torch_saved(torch.ones(2)), "not a checkpoint"),
    "no weights": (torch_saved({"model": None}), "not a checkpoint"),
    "weights alone": (torch_saved({"a": torch.ones(2)}), "holds weights alone"),
    "text as weight": (torch_saved({"model": {"a": "text"}}), "weight a is a str"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_checkpoint_is_one_line_that_names_it_and_what_it_is(tmp_path, name):
    (tmp_path / "last.pth").write_bytes(BAD_FILES[name][0])
    with pytest.raises(InputError) as error:
        checkpoint.load(tmp_path, "--resume")
    assert str(error.value).startswith(f"--resume {tmp_path / 'last.pth'}: ")
    assert BAD_FILES[name][1] in str(error.value) and len(str(error.value).splitlines()) == 1


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize(
    ("save", "reason"),
    [
        (lambda file, bomb: pickle.dump(bomb, file, 2), "refused unrun"),
        (lambda file, bomb: pickle.dump(bomb, file, 4), "not a readable checkpoint"),
        (lambda file, bomb: torch.save({"model": {}, "opt": bomb}, file), r"refused unrun, .* object \(posix.mkdir\)"),
    ],
)
def test_a_pickled_object_is_refused_without_running_it(tmp_path, monkeypatch, save, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "last.pth").write_bytes(saved(save, Bomb()))
    with pytest.raises(InputError, match=reason):
        checkpoint.load(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_random_numbers_go_on_where_they_were():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    state = checkpoint.random_state()
    first = draw()
    assert draw() != first
    checkpoint.set_random_state(state)
    assert draw() == first


def test_a_hash_is_that_of_the_whole_file(tmp_path):
    for content in (b"abc" * 1_000_000, b"other"):  # the second is not taken for the one that was read before
        (tmp_path / "a").write_bytes(content)
        assert util.sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


# ---- weights ---------------------------------------------------------------------------------------------------------

FORMS = {
    "ImageNet, contrastive": ("imagenet", False, None),
    "ImageNet, cross-entropy": ("imagenet", False, 100),
    "CIFAR, contrastive": ("cifar", True, None),
    "CIFAR, cross-entropy": ("cifar", True, 100),
}


def made(name="resnet18", small=False):
    """An encoder with running means and variances of its own."""
    encoder = resnet.encoder(name, small)
    for buffer in encoder.buffers():
        buffer.copy_(torch.rand_like(buffer.float()) + 0.5)
    return encoder


def assert_equal_features(one, other):
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(one.eval()(x), other.eval()(x))


def test_the_query_encoder_of_a_run_comes_back_exactly(tmp_path):
    encoder, fresh = made("resnet8"), resnet.encoder("resnet8")
    model = ContrastiveModel(encoder, projection_head(64, 8), MemoryBank(16, 8), torch.nn.Identity())
    checkpoint.save(tmp_path / "last.pth", {"model": model.state_dict(), "epoch": 3})
    assert load_encoder(tmp_path, fresh)["epoch"] == 3
    assert_equal_features(fresh, encoder)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("form", FORMS)
def test_each_official_form_gives_the_encoders_own_features_exactly(tmp_path, form, name):
    kind, small, classes = FORMS[form]
    known, fresh = made(name, small), resnet.encoder(name, small)
    original_checkpoint(tmp_path / "last.pth", known, kind, name, "cifar100", classes)
    state = load_encoder(tmp_path / "last.pth", fresh)
    assert (state["epoch"], checkpoint.trained_options(state)["model"]) == (100, name)
    assert_equal_features(fresh, known)
    _, classifier = pretrained.split_weights(state, "")
    assert set(classifier) == ({"weight", "bias"} if classes else set())


OUTER = ("", "module.", "backbone_q.", "module.backbone_q.", "backbone_q.module.", "model.", "module.model.")


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("blocks", [False, True])
def test_every_prefix_is_understood_before_and_behind_encoder_and_with_layer_blocks(tmp_path, outer, blocks):
    known, fresh = made("resnet18", small=True), resnet.encoder("resnet18", small_images=True)
    names = {k: re.sub(r"^layer(\d)", r"layer_blocks.\1", k) if blocks else k for k in known.state_dict()}
    for inner in ("", "encoder.", "encoder.module."):
        weights = {outer + inner + names[k]: v for k, v in known.state_dict().items()}
        torch.save({"model": weights}, tmp_path / "last.pth")
        load_encoder(tmp_path, fresh)
        assert all(torch.equal(v, known.state_dict()[k]) for k, v in fresh.state_dict().items())


def without(weights, name):
    return {k: v for k, v in weights.items() if k != name}


def in_blocks(weights):
    return {f"model.{k.replace('layer', 'layer_blocks.')}": v for k, v in weights.items()}


MISFITS = {
    "layer2.0.conv1.weight is missing": lambda w: without(w, "layer2.0.conv1.weight"),
    "layer2.1.bn1.weight is missing": lambda w: without(in_blocks(w), "model.layer_blocks.2.1.bn1.weight"),
    "holds layer2.1.bn1.weight twice": lambda w: in_blocks(w) | {"layer2.1.bn1.weight": torch.ones(128)},
    "holds bn1.weight twice": lambda w: {**w, "module.bn1.weight": torch.ones(64)},
    "layer9.weight is left over": lambda w: {**w, "layer9.weight": torch.ones(1)},
    "conv1.weight is missing": lambda w: {f"backbone_k.{k}": v for k, v in w.items()},  # the key encoder alone
    "bn1.bias has shape (3,) instead of (64,)": lambda w: {**w, "bn1.bias": torch.ones(3)},
    "bn1.bias has type torch.int64 instead of torch.float32": lambda w: {**w, "bn1.bias": torch.ones(64).long()},
    "its classifier fc has weight; it needs weight and bias": lambda w: {**w, "fc.weight": torch.ones(2, 512)},
    **{
        f"model.{part}.conv1.weight is unknown; layer_blocks are numbered from 1 to 4": (
            lambda w, part=part: {**w, f"model.{part}.conv1.weight": torch.ones(1)}
        )
        for part in ("layer_blocks.0.0", "layer_blocks.5.0", "layer_blocks.stem", "layer_blocks")
    },
}


@pytest.mark.parametrize("reason", MISFITS)
def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(tmp_path, reason):
    fresh = resnet.encoder("resnet18")
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    torch.save({"model": MISFITS[reason](made().state_dict())}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=re.escape(reason)) as error:
        load_encoder(tmp_path / "a.pth", fresh)
    assert str(error.value).startswith(f"--ckpt {tmp_path / 'a.pth'}: ")
    assert all(torch.equal(v, before[k]) for k, v in fresh.state_dict().items())


@pytest.mark.parametrize("form", FORMS)
def test_one_missing_layer_of_an_official_checkpoint_is_an_error_that_names_it(tmp_path, form):
    kind, small, classes = FORMS[form]
    content = original_checkpoint(tmp_path / "a.pth", made(small=small), kind, "x", "x", classes)
    (gone,) = [k for k in content["model"] if "backbone_k" not in k and "layer3.0" in k and k.endswith(".0.weight")]
    del content["model"][gone]
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"layer3\.0\.downsample\.0\.weight is missing"):
        load_encoder(tmp_path / "a.pth", resnet.encoder("resnet18", small))

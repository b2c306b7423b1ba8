"""Checkpoints are whole or absent, hold no code, and fill an encoder strictly."""

import errno
import hashlib
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


def model(name="resnet8"):
    encoder = resnet.encoder(name, small_images=True)
    return ContrastiveModel(encoder, projection_head(encoder.dim, 8), MemoryBank(16, 8), torch.nn.Identity())


def test_the_query_encoder_comes_back_exactly(tmp_path):
    trained, fresh = model(), resnet.encoder("resnet8")
    checkpoint.save(tmp_path / "last.pth", {"model": trained.state_dict(), "epoch": 3})
    assert load_encoder(tmp_path, fresh)["epoch"] == 3
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(fresh.eval()(x), trained.encoder.eval()(x))


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
    """Truncated, with bits turned, with a stretch of zeros or of noise, empty."""
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
    yield b""


def test_hundreds_of_damages_are_errors_of_one_line_or_leave_every_number_as_it_was(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 30), torch.nn.BatchNorm1d(30))
    path, weights = tmp_path / "last.pth", net.state_dict()
    numbers = {
        "epoch": 3,
        "step": 5,
        "processes": [{"random": checkpoint.random_state(), "means": [[torch.ones(2), 3]]}],
    }
    checkpoint.save(path, {"model": weights, **numbers})
    content, refused, tried = path.read_bytes(), 0, 0
    for damaged in damages(content, random.Random(0)):
        path.write_bytes(damaged)
        tried += 1
        try:
            state = checkpoint.load(path)
        except InputError as error:
            assert len(str(error).splitlines()) == 1
            refused += 1
            continue
        assert all(torch.equal(state["model"][k], v) for k, v in weights.items())
        assert repr({k: state[k] for k in numbers}) == repr(numbers)
    assert tried > 400
    assert refused > 0.8 * tried  # the rest lies in the zip file's padding


def test_a_flipped_bit_of_a_weight_is_found_though_torch_would_load_it(tmp_path):
    weight = torch.arange(1000.0)
    path = tmp_path / "last.pth"
    checkpoint.save(path, {"model": {"w": weight}})
    content = bytearray(path.read_bytes())
    content[bytes(content).find(weight[500:502].numpy().tobytes())] ^= 8
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["model"]["w"], weight)
    with pytest.raises(InputError, match=r"not a readable checkpoint \(damaged in archive/data/0\)"):
        checkpoint.load(path)


def foreign(folder):
    """Files of other programs, and torch files that are no checkpoints."""
    with zipfile.ZipFile(folder / "other.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    np.savez(folder / "numbers.npz", a=np.ones(3))
    Image.new("RGB", (4, 4)).save(folder / "image.png")
    (folder / "text.pth").write_text("epoch: 3\n")
    (folder / "plain.pth").write_bytes(pickle.dumps({"model": {}}, protocol=2))
    for name, content in {
        "list": [1],
        "tensor": torch.ones(2),
        "named": {"model": "text"},
        "none": {"model": None},
    }.items():
        torch.save(content, folder / f"{name}.pth")
    return sorted(folder.iterdir())


def test_foreign_files_are_errors_that_name_them(tmp_path):
    files = foreign(tmp_path)
    assert len(files) == 9
    for file in files:
        with pytest.raises(InputError, match=rf"--resume .*{file.name}: not a ") as error:
            checkpoint.load(file, "--resume")
        assert len(str(error.value).splitlines()) == 1


def test_random_numbers_go_on_where_they_were():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    state = checkpoint.random_state()
    first = draw()
    assert draw() != first
    checkpoint.set_random_state(state)
    assert draw() == first


def test_a_missing_layer_is_named_and_nothing_is_loaded(tmp_path):
    state = model().state_dict()
    del state["encoder.layer2.0.conv1.weight"]
    checkpoint.save(tmp_path / "last.pth", {"model": state})
    fresh = resnet.encoder("resnet8")
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    with pytest.raises(InputError, match=r"layer2\.0\.conv1\.weight is missing"):
        load_encoder(tmp_path, fresh)
    assert all(torch.equal(v, before[k]) for k, v in fresh.state_dict().items())


def test_another_architecture_is_an_error(tmp_path):
    checkpoint.save(tmp_path / "last.pth", {"model": model("resnet8").state_dict()})
    with pytest.raises(InputError, match="another architecture"):
        load_encoder(tmp_path, resnet.encoder("resnet20"))


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


NO_CHECKPOINTS = {
    "it is empty": b"",
    "it is a text that begins: version https://git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d",
    "it is a text that begins: na\u00efve": "na\u00efve".encode(),
    "it is a text that begins: class,cat,dog": b"class,cat,dog\ncat,1,0\n",
    "no file of torch.save": b"\x80\x02\x93 damaged",
    "File is not a zip file": b"PK\x03\x04 damaged",
}


@pytest.mark.parametrize(("reason", "content"), NO_CHECKPOINTS.items())
def test_a_file_that_is_no_checkpoint_is_refused_and_what_it_is_said(tmp_path, content, reason):
    (tmp_path / "last.pth").write_bytes(content)
    with pytest.raises(InputError) as error:
        checkpoint.load(tmp_path, "--resume")
    assert f"--resume {tmp_path / 'last.pth'}: not a readable checkpoint ({reason}" in str(error.value)


@pytest.mark.parametrize("flag", ["--ckpt", "--resume"])
def test_a_torchscript_archive_is_one_line_that_says_what_to_save_instead(tmp_path, flag):
    with zipfile.ZipFile(tmp_path / "last.pth", "w") as archive:  # torch.jit.save is deprecated, and warns
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl", "version"):
            archive.writestr(f"last/{name}", b"3")
    with pytest.raises(InputError, match=r"a TorchScript archive, .*; save its state dict: torch\.save\(") as error:
        checkpoint.load(tmp_path, flag)
    assert str(error.value).startswith(f"{flag} {tmp_path / 'last.pth'}: ")


def test_a_zip_archive_of_another_program_is_called_one(tmp_path):
    np.savez(tmp_path / "last.npz", a=np.ones(3))
    with pytest.raises(InputError, match=r"not a readable checkpoint \(a zip archive, but none of torch\.save\)"):
        checkpoint.load(tmp_path / "last.npz")


@pytest.mark.parametrize(("protocol", "reason"), [(2, "refused unrun"), (4, "not a readable checkpoint")])
def test_a_pickled_object_is_refused_without_running_it(tmp_path, monkeypatch, protocol, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "last.pth").write_bytes(pickle.dumps(Bomb(), protocol))
    with pytest.raises(InputError, match=reason) as error:
        checkpoint.load(tmp_path, "--resume")
    assert "--resume" in str(error.value)
    assert not (tmp_path / "exploded").exists()


def test_a_truncated_checkpoint_is_refused(tmp_path):
    checkpoint.save(tmp_path / "last.pth", {"model": model().state_dict()})
    content = (tmp_path / "last.pth").read_bytes()
    (tmp_path / "last.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not a readable checkpoint"):
        checkpoint.load(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        checkpoint.load(tmp_path)


FORMS = {
    "ImageNet, contrastive": ("imagenet", False, None),
    "ImageNet, cross-entropy": ("imagenet", False, 100),
    "CIFAR, contrastive": ("cifar", True, None),
    "CIFAR, cross-entropy": ("cifar", True, 100),
}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("form", FORMS)
def test_each_original_form_gives_the_encoders_own_features_exactly(tmp_path, form, name):
    kind, small, classes = FORMS[form]
    known = resnet.encoder(name, small)
    for buffer in known.buffers():  # running means and variances of their own too
        buffer.copy_(torch.rand_like(buffer.float()) + 0.5)
    original_checkpoint(tmp_path / "last.pth", known, kind, name, "cifar100", classes)
    fresh = resnet.encoder(name, small)
    state = load_encoder(tmp_path / "last.pth", fresh)
    assert state["epoch"] == 100
    assert checkpoint.trained_options(state)["model"] == name
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(fresh.eval()(x), known.eval()(x))
    _, classifier = pretrained.split_weights(state, "")
    assert set(classifier) == ({"weight", "bias"} if classes else set())


@pytest.mark.parametrize("prefix", ["", "module.", "backbone_q.", "module.backbone_q.", "backbone_q.module."])
def test_every_prefix_is_understood_before_and_behind_encoder(tmp_path, prefix):
    known, fresh = resnet.encoder("resnet18", True), resnet.encoder("resnet18", True)
    for inner in ("", "encoder.", "encoder.module."):
        torch.save({"model": {prefix + inner + k: v for k, v in known.state_dict().items()}}, tmp_path / "last.pth")
        load_encoder(tmp_path, fresh)
        assert all(torch.equal(v, known.state_dict()[k]) for k, v in fresh.state_dict().items())


@pytest.mark.parametrize(("name", "small"), [("resnet18", False), ("resnet18", True), ("resnet50", False)])
@pytest.mark.parametrize("prefix", ["model.", "module.model.", "model.encoder.", ""])
def test_keys_of_a_wrapped_model_and_of_layer_blocks_give_the_same_features(tmp_path, prefix, name, small):
    known, fresh = resnet.encoder(name, small), resnet.encoder(name, small)
    for buffer in known.buffers():
        buffer.copy_(torch.rand_like(buffer.float()) + 0.5)
    plain = {k: v.clone() for k, v in known.state_dict().items()}
    blocks = {prefix + re.sub(r"^layer(\d)", r"layer_blocks.\1", k): v for k, v in plain.items()}
    assert sum("layer_blocks.4.1" in key for key in blocks) > 10
    torch.save({"model": blocks}, tmp_path / "last.pth")
    load_encoder(tmp_path, fresh)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(fresh.eval()(x), known.eval()(x))
    weights, _ = pretrained.split_weights({"model": blocks}, "")
    assert resnet.has_small_stem(weights) == small


@pytest.mark.parametrize("part", ["layer_blocks.0.0", "layer_blocks.5.0", "layer_blocks.stem", "layer_blocks"])
def test_layer_blocks_of_another_number_are_an_error_that_names_the_key(part):
    weights = {f"model.{part}.conv1.weight": torch.ones(1)}
    with pytest.raises(InputError, match=rf"--ckpt a: model\.{part}\.conv1\.weight is unknown; .* from 1 to 4"):
        pretrained.split_weights({"model": weights}, "--ckpt a")


def test_layer_blocks_that_lack_one_are_an_error_that_names_it(tmp_path):
    encoder = resnet.encoder("resnet18")
    blocks = {f"model.{k.replace('layer', 'layer_blocks.')}": v for k, v in encoder.state_dict().items()}
    del blocks["model.layer_blocks.2.1.bn1.weight"]
    torch.save({"model": blocks}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"layer2\.1\.bn1\.weight is missing"):
        load_encoder(tmp_path / "a.pth", encoder)
    blocks["layer2.1.bn1.weight"] = blocks["model.layer2.1.bn1.weight"] = torch.ones(128)
    torch.save({"model": blocks}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"holds layer2\.1\.bn1\.weight twice"):
        load_encoder(tmp_path / "a.pth", encoder)


@pytest.mark.parametrize("form", FORMS)
def test_one_missing_layer_of_an_original_checkpoint_is_an_error_that_names_it(tmp_path, form):
    kind, small, classes = FORMS[form]
    content = original_checkpoint(tmp_path / "a.pth", resnet.encoder("resnet18", small), kind, "x", "x", classes)
    gone = [k for k in content["model"] if "backbone_k" not in k and "layer3.0" in k and k.endswith(".0.weight")]
    assert len(gone) == 1
    del content["model"][gone[0]]
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"layer3\.0\.downsample\.0\.weight is missing"):
        load_encoder(tmp_path / "a.pth", resnet.encoder("resnet18", small))


def test_a_layer_left_over_and_a_layer_held_twice_are_errors(tmp_path):
    encoder = resnet.encoder("resnet18")
    weights = encoder.state_dict()
    torch.save({"model": {**weights, "layer9.weight": torch.ones(1)}}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"layer9\.weight is left over"):
        load_encoder(tmp_path / "a.pth", encoder)
    torch.save({"model": {**weights, "module.bn1.weight": torch.ones(64)}}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"holds bn1\.weight twice"):
        load_encoder(tmp_path / "a.pth", encoder)


def test_a_key_encoder_alone_is_never_taken_for_the_query_encoder(tmp_path):
    weights = {f"backbone_k.{k}": v for k, v in resnet.encoder("resnet18").state_dict().items()}
    torch.save({"model": weights}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"conv1\.weight is missing"):
        load_encoder(tmp_path / "a.pth", resnet.encoder("resnet18"))


def test_a_checkpoint_with_any_other_pickled_object_is_refused_without_running_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = resnet.encoder("resnet8").state_dict()
    torch.save({"model": weights, "opt": Bomb()}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"refused unrun, it holds a pickled object \(posix.mkdir\)"):
        load_encoder(tmp_path / "a.pth", resnet.encoder("resnet8"))
    assert not (tmp_path / "exploded").exists()


def test_a_hash_is_that_of_the_whole_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 1_000_000)
    assert util.sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()
    (tmp_path / "a").write_bytes(b"other")  # which is not the one that was read before
    assert util.sha256(tmp_path / "a") == hashlib.sha256(b"other").hexdigest()


def test_a_classifier_without_bias_and_a_weight_that_is_no_tensor_are_errors(tmp_path):
    with pytest.raises(InputError, match="its classifier fc has weight; it needs weight and bias"):
        pretrained.split_weights({"model": {"fc.weight": torch.ones(2, 2)}}, "--ckpt a")
    torch.save({"model": {"conv1.weight": "text"}, "options": None}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"weight conv1\.weight is a str"):
        checkpoint.load(tmp_path / "a.pth")
    assert checkpoint.trained_options({"options": None}) == {}

"""Checkpoints are whole or absent, hold no code, and fill an encoder strictly."""

import os
import pickle

import pytest
import torch

import checkpoint
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
    assert checkpoint.load_encoder(tmp_path, fresh)["epoch"] == 3
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(fresh.eval()(x), trained.encoder.eval()(x))


def test_an_interrupted_save_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    checkpoint.save(path, {"model": {}, "epoch": 1})

    def crash(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, {"model": {}, "epoch": 2})
    assert checkpoint.load(path)["epoch"] == 1


def test_a_missing_layer_is_named_and_nothing_is_loaded(tmp_path):
    state = model().state_dict()
    del state["encoder.layer2.0.conv1.weight"]
    checkpoint.save(tmp_path / "last.pth", {"model": state})
    fresh = resnet.encoder("resnet8")
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    with pytest.raises(InputError, match=r"layer2\.0\.conv1\.weight is missing"):
        checkpoint.load_encoder(tmp_path, fresh)
    assert all(torch.equal(v, before[k]) for k, v in fresh.state_dict().items())


def test_another_architecture_is_an_error(tmp_path):
    checkpoint.save(tmp_path / "last.pth", {"model": model("resnet8").state_dict()})
    with pytest.raises(InputError, match="another architecture"):
        checkpoint.load_encoder(tmp_path, resnet.encoder("resnet20"))


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("content", [b"", b"nonsense", pickle.dumps(Bomb()), b"PK\x03\x04 damaged"])
def test_a_file_that_is_no_checkpoint_is_refused_without_running_it(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "last.pth").write_bytes(content)
    with pytest.raises(InputError, match="not a readable checkpoint") as error:
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

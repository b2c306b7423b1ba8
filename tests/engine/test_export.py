"""Encoders taken away: what other libraries read back, the card, and what of this project takes them again."""

import json
import subprocess
import sys

import pytest
import torch
from commands import CE, ROOT, error_of, run

import hubconf
import util
from engine import export
from engine.encoder import pretrained
from engine.run import checkpoint
from networks import exported

SMALL = "--batch_size 128 --epochs 1 --images_per_class 20 --exp_name a"


def take(monkeypatch, folder, words):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["export.py", *words.split()])
    util.run_command(export.main)


ENCODERS = "resnet18_standard", "resnet18", "resnet8", "timm:test_vit", "timm:test_convnext"


@pytest.fixture(scope="module", params=ENCODERS)
def taken(request, tmp_path_factory):
    """A run of an encoder, and where it was exported."""
    folder = tmp_path_factory.mktemp("taken")
    with pytest.MonkeyPatch.context() as patch:
        run(patch, folder, f"--model {request.param} --size 32 {SMALL}")
        run(patch, folder, "--ckpt save/SupCon/digits_models/a", "retrieval")
        take(patch, folder, "--ckpt save/SupCon/digits_models/a --out taken --licence CC0-1.0")
    return request.param, folder


@torch.no_grad()
def test_the_lines_on_the_card_read_the_encoder_back_with_equal_outputs(monkeypatch, taken):
    name, folder = taken
    card = json.loads((folder / "taken/encoder.json").read_text())
    narrow = name in ("resnet18", "resnet8")  # 3x3 stem: no library has it
    assert card["library"] == ("rince" if narrow else "timm" if "timm" in name else "torchvision")
    names = {}
    monkeypatch.chdir(folder / "taken")
    code = card["how_to_load"].replace("from rince.networks", "from networks").replace("FOLDER", ".")
    exec(code, names)
    assert ("rince.networks" in card["how_to_load"]) == narrow
    images = torch.randn(2, 3, 32, 32)
    encoder = hubconf.encoder(folder / "save/SupCon/digits_models/a")
    torch.testing.assert_close(names["model"].eval()(images), encoder(images))
    torch.testing.assert_close(exported.load(".")[0](images), encoder(images))
    torch.testing.assert_close(hubconf.encoder(folder / "taken")(images), encoder(images))


def test_the_card_says_what_the_encoder_was_trained_on_and_what_it_was_found_to_do(taken):
    name, folder = taken
    card = json.loads((folder / "taken/encoder.json").read_text())
    assert (card["encoder"], card["size"], card["dataset"], card["licence"]) == (name, 32, "digits", "CC0-1.0")
    assert card["classes"] == [str(c) for c in range(10)]
    assert card["ranking"]["similar"]["1"] == {"4": 0.75, "7": 0.75}
    assert card["options"]["epochs"] == 1
    (record,) = card["metrics"]
    assert 0 < record["metrics"]["fine"]["mAP"] <= 100
    assert torch.__version__.startswith(card["versions"]["torch"]) and "safetensors" in card["versions"]
    assert card["options"]["optimizer"] == "sgd"


def test_an_exported_encoder_is_a_checkpoint_to_evaluate_and_to_start_from(monkeypatch, taken):
    name, folder = taken
    if name == "resnet8":
        run(monkeypatch, folder, "--ckpt taken --knn_k 5", "retrieval")
    own = pretrained.read_file(folder / "save/SupCon/digits_models/a", "--ckpt")
    start = pretrained.choose_start(name, str(folder / "taken"), False)
    assert start.views == own.views
    one, other = (net.build(False, 32).state_dict() for net in (start, own))
    assert all(torch.equal(x, other[key]) for key, x in one.items())


@pytest.mark.parametrize(
    "words, message",
    [
        (f"--ckpt {CE} --out {{0}}", "holds encoder.safetensors, which is not overwritten"),
        ("--ckpt nowhere --out other", "--ckpt nowhere: no such file"),
    ],
)
def test_what_cannot_be_exported_is_one_line(monkeypatch, capsys, tmp_path, digits, words, message):
    (tmp_path / "encoder.safetensors").write_text("x")
    with pytest.raises(SystemExit, match="2"):
        take(monkeypatch, digits, words.format(tmp_path))
    assert message in capsys.readouterr().err
    assert (tmp_path / "encoder.safetensors").read_text() == "x"


def test_a_card_that_is_none_is_one_line(monkeypatch, capsys, taken, tmp_path):
    _, folder = taken
    for name in ("encoder.safetensors", "encoder.json"):
        (tmp_path / name).write_bytes((folder / "taken" / name).read_bytes())
    card = json.loads((tmp_path / "encoder.json").read_text())
    newer = json.dumps(card | {"format": 9})
    for content, message in (("{", "is not a model card"), ("{}", "is not a model card"), (newer, "has format 9")):
        (tmp_path / "encoder.json").write_text(content)
        assert message in error_of(monkeypatch, capsys, tmp_path, "--ckpt .", "retrieval")


def test_the_module_runs_as_documented(digits, tmp_path):
    words = [sys.executable, "-m", "engine.export", "--ckpt", str(digits / CE), "--out", str(tmp_path / "x")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "the model card has no license" in done.stdout
    assert "exported.load" in done.stdout
    assert checkpoint.find(tmp_path / "x").name == "encoder.safetensors"


def test_weights_that_share_memory_are_written_each_by_itself(tmp_path):
    encoder = torch.nn.ModuleList([torch.nn.Linear(2, 2)] * 2)
    encoder.dim = 2
    exported.save(tmp_path / "x", encoder, {"encoder": "resnet8", "size": 8})
    assert len((tmp_path / "x" / "encoder.safetensors").read_bytes()) > 2 * 6 * 4
    with pytest.raises(FileExistsError):
        exported.save(tmp_path / "x", encoder, {"encoder": "resnet8", "size": 8})

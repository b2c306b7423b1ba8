"""Features kept in a folder serve what they were made of, and nothing else."""

import os
import random
import time
import types
from pathlib import Path

import pytest
import torch
from commands import CE
from made_data import make_image_folders

import datasets
from engine.batches.loading import Loading
from engine.encoder import trained_encoder
from engine.run import checkpoint

KEPT = {"features": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), "key": "k"}


def test_no_damage_of_any_byte_is_read_as_features(tmp_path):
    file, rng = tmp_path / "f.pt", random.Random(0)
    assert trained_encoder.read_features(file, "k") == (None, "")
    checkpoint.write_whole(file, KEPT)
    whole = file.read_bytes()
    for place in rng.sample(range(len(whole)), 200):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.randrange(8))]) + whole[place + 1 :])
        found, fault = trained_encoder.read_features(file, "k")
        assert found is None or torch.equal(found, KEPT["features"])  # a bit of the zip's times or padding
        assert (found is None) == bool(fault)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (KEPT | {"key": "other"}, "holds features of other images, or of another encoder"),
        ({"features": KEPT["features"]}, "corrupt, or of an older version (KeyError)"),
    ],
)
def test_a_whole_file_of_something_else_is_named(tmp_path, content, fault):
    checkpoint.write_whole(tmp_path / "f.pt", content)
    assert trained_encoder.read_features(tmp_path / "f.pt", "k") == (None, fault)


def test_an_image_that_was_replaced_at_equal_size_and_time_changes_the_key(tmp_path):
    make_image_folders(tmp_path, ["a", "b"], each=2)
    data = datasets.build("path", tmp_path)
    net = types.SimpleNamespace(record={"sha256": "", "model": ""}, transform=None)
    before, image = trained_encoder.make_key(net, data), Path(data.images[0])
    assert trained_encoder.make_key(net, datasets.build("path", tmp_path)) == before
    stat = image.stat()
    time.sleep(0.02)
    content = bytearray(image.read_bytes())
    content[-30] ^= 1
    image.write_bytes(content)
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (image.stat().st_size, image.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert trained_encoder.make_key(net, data) != before


def test_a_folder_that_cannot_be_written_to_is_named_and_no_error(capsys, tmp_path, digits):
    (tmp_path / "file").write_text("")
    data = datasets.build("digits", split="test")
    net = trained_encoder.load(str(digits / CE), data)
    loading = Loading(128, 0, torch.device("cpu"))
    x = trained_encoder.extract_features(net, data, "queries", loading, tmp_path / "file")
    assert len(x) == len(data)
    assert "cannot be written (" in capsys.readouterr().out

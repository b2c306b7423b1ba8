"""Kept features serve what they were made of, and nothing else."""

import os
import random
import time
from pathlib import Path

import pytest
import torch
from made_data import make_image_folders

import datasets
from engine.encoder import feature_cache
from engine.run import checkpoint

LABELS = torch.tensor([0, 1, 1])
FEATURES = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def kept(tmp_path):
    """A file that keeps three features under the key "k"."""
    assert feature_cache.write(tmp_path / "kept" / "f.pt", "k", FEATURES, LABELS, {"classes": ["a", "b"]}) == ""
    return tmp_path / "kept" / "f.pt"


def test_what_was_kept_is_read(kept, tmp_path):
    found, fault = feature_cache.read(kept, "k", LABELS, 4)
    assert torch.equal(found, FEATURES)
    assert fault == ""
    assert feature_cache.read(tmp_path / "none.pt", "k", LABELS, 4) == (None, "")


def test_no_damage_of_any_byte_is_read_as_features(kept):
    whole, rng = kept.read_bytes(), random.Random(0)
    for place in rng.sample(range(len(whole)), 200):
        kept.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.randrange(8))]) + whole[place + 1 :])
        found, fault = feature_cache.read(kept, "k", LABELS, 4)
        assert found is None or torch.equal(found, FEATURES)  # a bit of the zip's times or padding
        assert (found is None) == bool(fault)
    kept.write_bytes(whole[:-50])
    assert feature_cache.read(kept, "k", LABELS, 4)[1].startswith("damaged, or of an older version")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"key": "other"}, "holds features of other images, or of another encoder"),
        ({"key": None}, "holds features of other images"),
        ({"features": FEATURES[:2]}, "does not hold 3 features of 4 dimensions"),
        ({"features": FEATURES[:, :3]}, "does not hold 3 features of 4 dimensions"),
        ({"features": FEATURES.double()}, "does not hold 3 features of 4 dimensions"),
        ({"features": "none"}, "does not hold 3 features of 4 dimensions"),
        ({"labels": LABELS.flip(0)}, "holds other labels"),
        ({"labels": LABELS[:2]}, "holds other labels"),
        ({"features": FEATURES / 0}, "or features that are no numbers"),
    ],
)
def test_a_whole_file_of_something_else_is_named(kept, change, fault):
    checkpoint.write_whole(kept, {"features": FEATURES, "labels": LABELS, "key": "k"} | change)
    found, why = feature_cache.read(kept, "k", LABELS, 4)
    assert found is None
    assert fault in why


def test_a_file_without_a_key_is_of_an_older_version(kept):
    checkpoint.write_whole(kept, {"features": FEATURES, "labels": LABELS})
    assert feature_cache.read(kept, "k", LABELS, 4) == (None, "damaged, or of an older version (KeyError)")


def test_an_image_that_was_replaced_at_equal_size_and_time_changes_the_key(tmp_path):
    make_image_folders(tmp_path, ["a", "b"], each=2)
    data = datasets.build("path", tmp_path)
    before, image = feature_cache.key((), data), data.images[0]
    assert feature_cache.key((), datasets.build("path", tmp_path)) == before
    stat = os.stat(image)
    time.sleep(0.02)
    content = bytearray(Path(image).read_bytes())
    content[-30] ^= 1
    Path(image).write_bytes(content)
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert os.stat(image).st_size == stat.st_size
    assert os.stat(image).st_mtime_ns == stat.st_mtime_ns
    assert feature_cache.key((), data) != before


def test_a_folder_that_cannot_be_written_to_is_named_and_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert feature_cache.write(tmp_path / "file" / "f.pt", "k", FEATURES, LABELS, {}).startswith("cannot be written (")

"""Sets of features become files that are read back equal, are kept where they are whole, and never half written."""

import errno
import json
import os

import pytest
import torch
from safetensors import safe_open

from datasets import feature_shards
from datasets.feature_shards import FeatureSet, find_missing, plan_shards, read_about, write_shard
from datasets.features import FeatureFiles, read_features
from util import InputError

ROWS = torch.arange(40.0).view(10, 4) + 1
NAMES = list("abcabcabca")
GROUPS = ["x" if name == "a" else "yé" for name in NAMES]
MADE = {"encoder": "one", "views": {"size": 8}}


def made(dtype="float32", about=MADE, rows=ROWS, names=NAMES):
    return FeatureSet("train", len(rows), tuple(rows.shape[1:]), dtype, about, names, GROUPS)


def write(of, out, megabytes=64e-6, rows=ROWS):
    """All missing shards of a set, by default of four rows in float32."""
    missing = find_missing(of, plan_shards(of, out, megabytes), "--out")
    for shard in missing:
        write_shard(of, shard, rows[shard.begin : shard.end], "--out")
    return [shard.path.name for shard in missing]


@pytest.mark.parametrize("dtype", feature_shards.DTYPES)
@pytest.mark.parametrize("views", [1, 3])
def test_shards_are_read_back_equal_by_the_reader_of_features(tmp_path, dtype, views):
    rows = ROWS if views == 1 else torch.stack([ROWS, -ROWS, 2 * ROWS], 1)
    assert len(write(made(dtype, rows=rows), tmp_path, rows=rows)) > 1
    found, labels, classes, taxonomy = read_features(FeatureFiles([str(tmp_path / "train*")]), "train")
    assert found.views == views
    assert torch.equal(found.take(torch.arange(10), torch.full((10,), views - 1)), rows[:, -1] if views > 1 else rows)
    assert [classes[y] for y in labels] == NAMES
    assert taxonomy.groups == {"a": (("x",),), "b": (("yé",),), "c": (("yé",),)}


def test_a_shard_has_at_most_the_given_size_and_one_file_has_the_same_form_of_name(tmp_path):
    shards = plan_shards(made(), tmp_path, 64e-6)  # four rows of 16 bytes
    assert [(shard.begin, shard.end) for shard in shards] == [(0, 3), (3, 6), (6, 10)]
    assert [shard.path.name for shard in shards][1:] == [f"train-0000{i}-of-00003.safetensors" for i in (1, 2)]
    assert [shard.path.name for shard in plan_shards(made(), tmp_path, 1)] == ["train-00000-of-00001.safetensors"]
    assert len(plan_shards(made(), tmp_path, 1e-9)) == 10  # a row at least


def test_whole_shards_are_kept_and_missing_or_cut_ones_are_made_again(tmp_path):
    first = write(made(), tmp_path)
    kept = (tmp_path / first[1]).read_bytes()
    (tmp_path / first[0]).unlink()
    os.truncate(tmp_path / first[2], (tmp_path / first[2]).stat().st_size - 1)
    assert write(made(), tmp_path) == [first[0], first[2]]
    assert (tmp_path / first[1]).read_bytes() == kept
    assert torch.equal(read_features(FeatureFiles([f"{tmp_path}/train*"]), "train")[0].take(torch.arange(10)), ROWS)
    assert write(made(), tmp_path) == []


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (made(about={**MADE, "views": {"size": 9}}), "views.size: 8 there, 9 here"),
        (made(about={**MADE, "seed": 1}), "seed: null there, 1 here"),
        (made(names=list("bbcabcabca")), "labels_sha256"),
        (made("float16"), "of a set in other shards"),
    ],
)
def test_files_of_another_command_are_refused(tmp_path, other, difference):
    before = write(made(), tmp_path)
    with pytest.raises(InputError, match=rf"^--out .*train-0.*{difference}.*; remove it, or give another --out$"):
        write(other, tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == before


def test_a_full_disk_is_one_line_and_leaves_whole_files_alone(monkeypatch, tmp_path):
    real, calls = os.replace, []

    def full_at_the_second(old, new):
        calls.append(new)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(old, new)

    monkeypatch.setattr(os, "replace", full_at_the_second)
    with pytest.raises(InputError, match=r"--out .*00001-of.*No space left on device.*the same command resumes"):
        write(made(), tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["train-00000-of-00003.safetensors"]
    assert write(made(), tmp_path) == [f"train-0000{i}-of-00003.safetensors" for i in (1, 2)]


def test_a_number_that_a_type_cannot_hold_is_refused(tmp_path):
    with pytest.raises(InputError, match="--dtype float16: a number is too large for it; give --dtype bfloat16"):
        write(made("float16"), tmp_path, rows=ROWS * 1e5)
    assert not list(tmp_path.iterdir())


def test_the_metadata_says_how_the_features_were_made(tmp_path):
    (name, *_) = write(made(), tmp_path)
    with safe_open(tmp_path / name, "pt") as file:
        about = json.loads(file.metadata()["about"])
    assert about == read_about(tmp_path / name)
    assert about["encoder"] == "one" and about["rows"] == [0, 3] and about["of"] == 10

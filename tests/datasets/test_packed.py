"""Packs: the folder's images, classes and order in one file, whole or not there, and gone on with after a crash."""

import errno
import gc
import os
import pickle
import re
import shutil
from functools import partial
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from commands import run
from made_data import make_image_folders
from PIL import Image
from sklearn.datasets import load_sample_images
from torch._utils import ExceptionWrapper

import datasets
from datasets import decoding, packed, packing
from util import InputError, fault

pack = partial(run, script="datasets.prepare")
error_of = partial(commands.error_of, script="datasets.prepare")


def made(folder):
    """Six photographs of 320 x 240 as JPEGs, a PNG with alpha, and small noise, in two classes, train and val."""
    photographs = load_sample_images().images
    for split, count in (("train", 3), ("val", 1)):
        for c, name in enumerate(("a", "b")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(photographs[c][10 * i : 10 * i + 240, 20 * i : 20 * i + 320])
                image.save(folder / split / name / f"{i}.jpg", quality=95)
    Image.new("RGBA", (300, 200), (10, 200, 30, 128)).save(folder / "train" / "b" / "half.png")
    make_image_folders(folder / "train", ["a"], each=2, size=(40, 30))
    return folder


@pytest.mark.parametrize("format", packed.FORMATS)
def test_a_pack_has_the_folders_classes_order_labels_and_images(monkeypatch, capsys, tmp_path, format):
    made(tmp_path / "mine")
    pack(monkeypatch, tmp_path, f"pack --data_folder mine --out small --side 100 --format {format} --check")
    assert "9 images, 9 made now" in capsys.readouterr().out
    for split in ("train", "test"):
        ours, theirs = (datasets.build("path", tmp_path / f, split) for f in ("small", "mine"))
        assert ours.classes == theirs.classes
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert [os.fspath(f) for f in ours.images] == [str(f) for f in theirs.images]
        for i in range(len(ours)):
            image = theirs.image(i)
            if min(image.size) > 100:
                width, height = (max(100, round(x * 100 / min(image.size))) for x in image.size)
                image = image.resize((width, height), Image.Resampling.BICUBIC)
            error = np.abs(np.asarray(ours.image(i)).astype(int) - np.asarray(image))
            assert error.max() == 0 if format == "raw" else error.mean() < 4
    for spelling in ("small/train", "small/images"):
        assert len(datasets.build("imagenet", tmp_path / spelling)) == 9


def test_a_small_jpeg_goes_in_as_it_is(monkeypatch, tmp_path):
    made(tmp_path / "mine")
    pack(monkeypatch, tmp_path, "pack --data_folder mine --out small --side 256")
    image = datasets.build("path", tmp_path / "small").images[0]
    assert image.pack.bytes(0).tobytes() == (tmp_path / "mine/train/a/0.jpg").read_bytes()


def test_training_reads_a_pack_in_place_of_the_folder(monkeypatch, capsys, tmp_path):
    made(tmp_path / "mine")
    pack(monkeypatch, tmp_path, "pack --data_folder mine --out small --format raw")
    short = "--dataset path --loss_type supcon --model resnet8 --size 32 --epochs 1 --batch_size 4 --num_workers 1"
    weights = []
    for folder in ("mine", "small"):
        run(monkeypatch, tmp_path, f"{short} --data_folder {folder} --exp_name {folder}")
        state = torch.load(tmp_path / f"save/SupCon/path_models/{folder}/last.pth", weights_only=True)
        weights.append(state["model"]["encoder.stem.0.weight"])
    assert torch.equal(*weights)  # images of up to 256 pixels are the same in a raw pack
    evaluate = "--dataset path --data_folder small --num_workers 0 --ckpt save/SupCon/path_models/small"
    run(monkeypatch, tmp_path, f"{evaluate} --features_cache cache", "retrieval")
    assert "R@1" in capsys.readouterr().out


def test_a_second_call_makes_nothing_and_other_options_are_refused(monkeypatch, capsys, tmp_path):
    made(tmp_path / "mine")
    pack(monkeypatch, tmp_path, "pack --data_folder mine --out small --side 64")
    before = (tmp_path / "small/train.pack").stat().st_mtime_ns
    pack(monkeypatch, tmp_path, "pack --data_folder mine --out small --side 64")
    assert "exists already" in capsys.readouterr().out
    assert (tmp_path / "small/train.pack").stat().st_mtime_ns == before
    for other in ("--side 65", "--side 64 --format raw"):
        line = error_of(monkeypatch, capsys, tmp_path, f"pack --data_folder mine --out small {other}")
        assert "made of other images or with other options; remove it first" in line


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EACCES])
def test_a_call_that_is_cut_off_is_gone_on_with(monkeypatch, capsys, tmp_path, fault):
    make_image_folders(tmp_path / "mine", ["a", "b"], each=80, size=(40, 30))
    command = "pack --data_folder mine --out small --side 20 --format raw"
    real, calls = decoding.read_rgb, []

    def full(path):
        calls.append(path)
        if len(calls) > 70:
            raise OSError(fault, os.strerror(fault))
        return real(path)

    monkeypatch.setattr(decoding, "read_rgb", full)
    line = error_of(monkeypatch, capsys, tmp_path, command)
    assert f"train.pack: {os.strerror(fault)}; the same command continues" in line
    assert not (tmp_path / "small/train.pack").exists()
    with (tmp_path / "small/train.pack.unfinished").open("ab") as file:
        file.write(b"half an image")  # a crash in the middle of a write
    monkeypatch.setattr(decoding, "read_rgb", real)
    pack(monkeypatch, tmp_path, command)
    assert "160 images, 96 made now" in capsys.readouterr().out
    pack(monkeypatch, tmp_path, command.replace("small", "whole"))
    assert (tmp_path / "small/train.pack").read_bytes() == (tmp_path / "whole/train.pack").read_bytes()
    assert sorted(f.name for f in (tmp_path / "small").iterdir()) == ["train.pack"]


def test_other_images_start_an_unfinished_pack_anew(monkeypatch, tmp_path):
    make_image_folders(tmp_path / "mine", ["a", "b"], each=3, size=(40, 30))
    (tmp_path / "small").mkdir()
    (tmp_path / "small/train.pack.unfinished").write_bytes(packed.MAGIC + b"x" * 100)
    (tmp_path / "small/train.pack.journal").write_text('{"plan": 1}\n[8, 100, 0, 1, 1]\n')
    pack(monkeypatch, tmp_path, "pack --data_folder mine --out small")
    assert len(datasets.build("path", tmp_path / "small")) == 6


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_pack_that_is_not_whole_is_named(monkeypatch, tmp_path, cut):
    made(tmp_path / "mine")
    pack(monkeypatch, tmp_path, "pack --data_folder mine --out small")
    path = tmp_path / "small/train.pack"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"train\.pack: not a whole pack"):
        datasets.build("path", tmp_path / "small")


def flip_byte(path: Path, place: int):
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(bytes(content))


def test_a_flipped_byte_of_the_index_or_of_an_image_is_named(monkeypatch, capsys, tmp_path):
    made(tmp_path / "mine")
    pack(monkeypatch, tmp_path, "pack --data_folder mine --out small --format raw")
    path = tmp_path / "small/train.pack"
    flip_byte(path, 50)
    line = error_of(monkeypatch, capsys, tmp_path, "pack --data_folder mine --out small --format raw --check")
    assert "1 of 9 images are corrupt" in line
    assert "its bytes are not those that were written" in line
    flip_byte(path, path.stat().st_size - packed.TAIL.size - 10)
    with pytest.raises(InputError, match="its index is corrupt"):
        datasets.build("path", tmp_path / "small")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("pack --data_folder nowhere --out small", "--data_folder nowhere: no such folder"),
        ("pack --data_folder mine --out mine", "--out mine: is the source"),
        ("pack --data_folder mine/train --out mine/train", "is the source"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, tmp_path, command, reason):
    made(tmp_path / "mine")
    assert reason in error_of(monkeypatch, capsys, tmp_path, command)


def test_all_damaged_images_are_listed_at_once_and_the_list_leaves_them_out(monkeypatch, capsys, tmp_path):
    make_image_folders(tmp_path / "mine" / "train", ["a", "b"], each=3)
    make_image_folders(tmp_path / "mine" / "val", ["a"], each=2)
    (tmp_path / "known.txt").write_text("mine/train/a/a_0.JPEG")
    bad = [f"mine/{name}.JPEG" for name in ("train/a/a_0", "train/a/a_1", "train/b/b_2", "val/a/a_0")]
    for name in bad:
        (tmp_path / name).write_bytes(b"no image")
    command = "pack --data_folder mine --out small --skip_images"
    line = error_of(monkeypatch, capsys, tmp_path, f"{command} known.txt")
    assert "3 of 7 images are corrupt, listed in small/damaged_images.txt; give --skip_images" in line
    listed = (tmp_path / "small/damaged_images.txt").read_text().splitlines()
    assert [os.path.relpath(os.path.join(tmp_path, f), tmp_path) for f in listed] == bad
    pack(monkeypatch, tmp_path, f"{command} small/damaged_images.txt")
    assert [len(datasets.build("path", tmp_path / "small", split)) for split in ("train", "test")] == [3, 1]


def test_a_list_leaves_images_of_a_pack_out_by_the_paths_that_it_knows_or_is_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        make_image_folders(Path("mine") / split, ["a", "b"], each=2)
    packing.pack(Path("mine"), Path("packs"), 20, "raw", None, False)
    first, elsewhere = (f"{tmp_path}/mine/{name}\n" for name in ("train/a/a_0.JPEG", "elsewhere.JPEG"))
    (tmp_path / "mine").rename("new")
    which = datasets.Selection(skip="list.txt")
    for text in (first, first + elsewhere):  # the files are gone, and the pack has one
        Path("list.txt").write_text(text)
        assert [len(part) for part in datasets.build_pair("path", "packs", which)] == [3, 4]
    for text in (first.replace("mine", "new"), elsewhere):
        Path("list.txt").write_text(text)
        with pytest.raises(InputError, match=r"--skip_images list\.txt: no line, such as .* is an image of packs/"):
            datasets.build_pair("path", "packs", which)
    Path("list.txt").write_text(first.replace("mine", "new"))
    (tmp_path / "new").rename("mine")
    with pytest.raises(InputError, match="is a file"):
        datasets.build_pair("path", "packs", which)


# ---- what happens to a pack while it is read -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made_packs(tmp_path_factory):
    root = tmp_path_factory.mktemp("packs")
    make_image_folders(root / "mine", ["a", "b"], each=4, size=(40, 30))
    for format in packed.FORMATS:
        packing.pack(root / "mine", root / format, 20, format, None, False)
    return root


@pytest.fixture
def packs(made_packs, tmp_path):
    """Folders with a pack of eight images of noise: raw, jpeg."""
    for format in packed.FORMATS:
        shutil.copytree(made_packs / format, tmp_path / format)
    return tmp_path


def flip_image(folder, row):
    image = packed.Pack(folder / "train.pack")
    flip_byte(folder / "train.pack", int(image.begin[row] + image.length[row] // 2))


@pytest.mark.parametrize("format", packed.FORMATS)
def test_a_flipped_byte_is_damage_of_its_image_whenever_it_is_read(capsys, packs, format):
    data = datasets.build("path", packs / format)
    flip_image(packs / format, 2)
    reason = f"{packs}/{format}/train.pack: a/a_2.JPEG: its bytes are not those that were written"
    for read in (data.image, data.pixels):
        read(1)
        with pytest.raises(InputError, match=reason):
            read(2)
    with pytest.raises(InputError, match="leave it out with --skip_images"):
        data[2]
    data.tolerate_damage()
    assert data.readable(2, data.pixels)[0] == 3
    assert data.bad.tolist() == [i == 2 for i in range(8)]
    assert f"warning: {reason}; another image takes its place" in capsys.readouterr().err


def test_a_jpeg_is_verified_each_time_a_raw_image_the_first_time_in_a_process(packs):
    raw, jpeg = (datasets.build("path", packs / format) for format in ("raw", "jpeg"))
    for data, format in ((raw, "raw"), (jpeg, "jpeg")):
        data.pixels(0)
        flip_image(packs / format, 0)
    raw.pixels(0)
    with pytest.raises(InputError, match="not those that were written"):
        jpeg.pixels(0)
    assert "not those that were written" in raw.images[0].describe_damage()  # --check_data looks anew


@pytest.mark.parametrize("format", packed.FORMATS)
def test_a_pack_cut_short_while_it_is_read_ends_the_run_with_one_line(packs, format):
    data = datasets.build("path", packs / format)
    data.tolerate_damage()  # which a whole pack is not
    path = packs / format / "train.pack"
    whole = data.pixels(0).clone()
    os.truncate(path, int(data.images[4].pack.begin[4]))
    assert torch.equal(data.pixels(0), whole)
    with pytest.raises(packed.PackInputError) as error:
        data[4]
    line = rf"{path}: has [\d,]+ bytes now, [\d,]+ when it was opened; make it again .* pack"
    assert re.fullmatch(line, fault(error.value))
    with pytest.raises(packed.PackInputError):
        decoding.find_damage(data.images, show=False)
    assert not data.bad.any()
    try:
        data[4]
    except packed.PackInputError:
        of_worker = ExceptionWrapper(where="in DataLoader worker process 0")  # as a loader process hands it on
    with pytest.raises(packed.PackInputError) as error:
        of_worker.reraise()
    assert re.fullmatch(line, fault(error.value))


def test_a_disk_that_goes_away_ends_the_run_with_one_line(monkeypatch, packs):
    data = datasets.build("path", packs / "raw")

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(packed.PackInputError, match=r"train\.pack: cannot be read any more \(Input/output error\)"):
        data[0]


def test_a_copy_for_another_process_opens_the_pack_for_itself(packs):
    data = datasets.build("path", packs / "raw")
    image, content = data.pixels(7).clone(), pickle.dumps(data)
    del data
    gc.collect()  # closes the file
    assert torch.equal(pickle.loads(content).pixels(7), image)

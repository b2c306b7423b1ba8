"""Features as files: of images by any encoder, with stored views, and of texts; the same in whatever shards, however
many processes, and where it is resumed.
"""

import json
from functools import partial

import commands
import pytest
import torch
from commands import CE, run
from made_data import make_image_folders, make_text_encoder
from processes import call
from safetensors import safe_open
from safetensors.torch import save_file

import datasets
from datasets.features import FeatureFiles, read_features
from datasets.rankings import text_encoders
from engine.encoder import extraction, pretrained
from networks import encoders

extract = partial(run, script="engine.extract")
error_of = partial(commands.error_of, script="engine.extract")
FEW = "--images_per_class 3 --num_workers 0"


def read(folder, name="train", views=1):
    """Rows [n, d] of a set of files, or [v, n, d] of stored views; each row's class; superclasses of classes."""
    rows, labels, classes, taxonomy = read_features(FeatureFiles([f"{folder}/{name}*"], labeled=False), "train")
    superclasses = taxonomy and {name: path[0] for name, (path,) in taxonomy.groups.items()}
    every = torch.arange(len(rows))
    x = torch.stack([rows.take(every, torch.full((len(rows),), view)) for view in range(views)])
    return (x[0] if views == 1 else x), [classes[y] for y in labels], superclasses


@torch.no_grad()
def by_hand(encoder, data, views):
    """Features of images one at a time, each normalized by hand, in evaluation's size, which is that of the images."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (views.mean, views.std))
    images = [(data.pixels(i).permute(2, 0, 1) / 255 - mean) / std for i in range(len(data))]
    return torch.cat([encoder.eval()(image[None]) for image in images])


def test_features_labels_and_superclasses_of_both_splits_are_those_of_the_encoder(monkeypatch, capsys, digits):
    extract(monkeypatch, digits, f"--ckpt {CE} --out features {FEW}")
    assert "saved features/train-*.safetensors: 30 x " in capsys.readouterr().out
    trained = pretrained.read_file(digits / CE, "--ckpt")
    train, val = datasets.build_pair("digits", which=datasets.Selection(per_class=3))
    groups = {c: name for name, members in datasets.rankings.read_shipped("digits").items() for c in members}
    for name, data in (("train", train), ("val", val)):
        x, labels, superclasses = read(digits / "features", name)
        torch.testing.assert_close(x, by_hand(trained.build(False, 8), data, datasets.spec("digits").views))
        assert labels == [data.classes[y] for y in data.labels]
        assert superclasses == groups


@pytest.fixture(scope="module")
def stored(digits, tmp_path_factory):
    """Features of digits with three augmented views, in one file."""
    out = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        extract(patch, digits, f"--ckpt {CE} --views 3 --blur 0.5 --out {out} {FEW}")
    return out


def test_stored_views_begin_with_the_plain_one_and_differ(monkeypatch, tmp_path, digits, stored):
    x, *_ = read(stored, views=4)
    extract(monkeypatch, digits, f"--ckpt {CE} --out {tmp_path} {FEW}")
    torch.testing.assert_close(x[0], read(tmp_path)[0])
    apart = torch.cdist(x.transpose(0, 1), x.transpose(0, 1)) + torch.eye(4)
    assert (apart.amin((1, 2)) > 1e-3).float().mean() > 0.8  # a crop of 8 x 8 pixels may be the whole image
    val, *_ = read_features(FeatureFiles([f"{stored}/val*"]), "train")
    assert val.views == 1  # validation has the plain view alone
    nearest = torch.cdist(x[1:].mean(0), x[0]).argmin(1)
    assert (nearest == torch.arange(30)).float().mean() > 0.3  # views are of the image of their row; by chance 1 in 30


@pytest.mark.parametrize("words", ["--shard_size 0.004", "--batch_size 7", "--num_workers 2"])
def test_stored_views_do_not_depend_on_shards_batches_or_workers(monkeypatch, tmp_path, digits, stored, words):
    extract(monkeypatch, digits, f"--ckpt {CE} --views 3 --blur 0.5 --split train --out {tmp_path} {FEW} {words}")
    assert len(list(tmp_path.iterdir())) == (10 if "shard" in words else 1)
    torch.testing.assert_close(read(tmp_path, views=4)[0], read(stored, views=4)[0])
    assert not list(tmp_path.glob("val*"))


def test_two_processes_write_what_one_does(tmp_path, digits, stored):
    words = f"--ckpt {digits / CE} --views 3 --blur 0.5 --out out --nproc_per_node 2 --shard_size 0.011 {FEW}"
    code, output = call(tmp_path, words.split(), "engine.extract")
    assert code == 0, output
    assert output.count("saved out/train-*") == 1
    for name, views in (("train", 4), ("val", 1)):
        assert torch.allclose(read(tmp_path / "out", name, views)[0], read(stored, name, views)[0], atol=1e-5)
        assert read(tmp_path / "out", name)[1:] == read(stored, name)[1:]


def test_the_same_command_resumes_and_another_is_refused(monkeypatch, capsys, tmp_path, digits, stored):
    command = f"--ckpt {CE} --split train --out {tmp_path} --shard_size 0.001 {FEW}"
    extract(monkeypatch, digits, command)
    whole, times = read(tmp_path)[0], {f: f.stat().st_mtime_ns for f in tmp_path.iterdir()}
    gone = sorted(tmp_path.iterdir())[1]
    gone.unlink()
    capsys.readouterr()
    extract(monkeypatch, digits, command + " --batch_size 5")  # says how fast, not what
    assert f"train: keeps {len(times) - 1} of {len(times)} files" in capsys.readouterr().out
    torch.testing.assert_close(read(tmp_path)[0], whole)
    assert {f for f in tmp_path.iterdir() if f.stat().st_mtime_ns != times[f]} == {gone}
    extract(monkeypatch, digits, command)
    assert "saved" not in capsys.readouterr().out
    for more, difference in (
        ("--ckpt random --model resnet20", "weights_sha256: "),
        ("--exclude_classes 3", "in other shards"),
        ("--dtype bfloat16", "in other shards"),
        ("--size 9", "views.size: 8 there, 9 here"),
    ):
        line = error_of(monkeypatch, capsys, digits, f"{command} {more}")
        assert difference in line and line.endswith("remove it, or give another --out")


def test_a_copy_of_a_folder_is_the_same_data_set_and_other_images_are_another(tmp_path):
    make_image_folders(tmp_path / "a" / "images", ["ant", "bee"], each=2)
    make_image_folders(tmp_path / "b" / "images", ["ant", "bee"], each=2)
    one, copy = (extraction.hash_images(datasets.build("path", tmp_path / name / "images")) for name in "ab")
    (tmp_path / "b/images/ant/ant_0.JPEG").rename(tmp_path / "b/images/ant/ant_9.JPEG")
    renamed = extraction.hash_images(datasets.build("path", tmp_path / "b" / "images"))
    assert one == copy != renamed
    digits = datasets.build("digits")
    other = datasets.build("digits")
    other.images = other.images.copy()
    other.images[0, 0, 0] += 1
    assert extraction.hash_images(digits) != extraction.hash_images(other)


def test_a_librarys_weights_come_from_a_file(monkeypatch, tmp_path):
    torch.manual_seed(0)
    net = encoders.encoder("timm:test_vit", size=48)
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    make_image_folders(tmp_path / "images", ["ant", "bee"], each=3, size=(48, 48))
    views = '--size 48 --mean "(0.5, 0.5, 0.5)" --std "(0.25, 0.25, 0.25)"'
    words = f"--dataset path --data_folder images --split train --out out {views} --num_workers 0"
    extract(monkeypatch, tmp_path, f"--model timm:test_vit --init weights.safetensors {words} --dtype float16")
    x, labels, superclasses = read(tmp_path / "out")
    assert labels == ["ant"] * 3 + ["bee"] * 3 and superclasses is None
    with safe_open(tmp_path / "out/train-00000-of-00001.safetensors", "pt") as file:
        about = json.loads(file.metadata()["about"])
        assert file.get_tensor("features").dtype == torch.float16
    assert about["encoder"] == "timm:test_vit" and about["views"]["size"] == 48 and "timm" in about["versions"]
    assert about["interpolation"] == "bicubic"  # as timm says of these weights
    data = datasets.build("path", tmp_path / "images")
    crop = extraction_crop(data)
    with torch.no_grad():
        torch.testing.assert_close(x, net.eval()(crop), atol=2e-3, rtol=2e-3)


def extraction_crop(data):
    """A library's views of images of 48 x 48: resized to 55 by bicubic interpolation, of which the middle is taken."""
    images = torch.stack([data.pixels(i) for i in range(len(data))]).permute(0, 3, 1, 2)
    images = torch.nn.functional.interpolate(images, size=(55, 55), mode="bicubic", antialias=True).clamp(0, 255)
    return (images[:, :, 4:52, 4:52] / 255 - 0.5) / 0.25


def test_validation_images_are_written_where_there_are_none_to_train_on(monkeypatch, capsys, tmp_path, digits):
    make_image_folders(tmp_path / "outliers" / "val", ["ant", "bee"], each=2)
    words = f"--ckpt {digits / CE} --dataset path --data_folder outliers --size 16 --num_workers 0 --out out"
    assert "--split train or test extracts one of them" in error_of(monkeypatch, capsys, tmp_path, words)
    extract(monkeypatch, tmp_path, f"{words} --split test")
    assert [f.name for f in (tmp_path / "out").glob("*.safetensors")] == ["val-00000-of-00001.safetensors"]
    assert read(tmp_path / "out", "val")[1] == ["ant", "ant", "bee", "bee"]


def test_superclasses_of_a_file_are_stored_and_a_class_without_one_is_one_line(monkeypatch, capsys, tmp_path, digits):
    (tmp_path / "own.yaml").write_text("low: [0, 1, 2, 3, 4]\nhigh: [5, 6, 7, 8, 9]\n")
    extract(monkeypatch, digits, f"--ckpt {CE} --superclasses {tmp_path}/own.yaml --split test --out {tmp_path} {FEW}")
    assert read(tmp_path, "val")[2] == {str(c): "low" if c < 5 else "high" for c in range(10)}
    (tmp_path / "own.yaml").write_text("low: [0, 1, 2, 3, 4]\n")
    line = error_of(monkeypatch, capsys, digits, f"--ckpt {CE} --superclasses {tmp_path}/own.yaml --out x {FEW}")
    assert "own.yaml: lacks the class 5" in line


def test_features_that_are_not_finite_are_one_line(monkeypatch, capsys, digits):
    monkeypatch.setattr(extraction.evaluation, "extract", lambda *_: (torch.full((30, 2), torch.nan), None))
    line = error_of(monkeypatch, capsys, digits, f"--ckpt {CE} --split train --out nan {FEW}")
    assert f"--ckpt {CE}: some features are NaN or infinite" in line
    assert not (digits / "nan").exists()


def test_a_head_on_features_writes_its_embeddings(monkeypatch, capsys, tmp_path, digits):
    extract(monkeypatch, digits, f"--ckpt {CE} --out {tmp_path}/a {FEW}")
    files = "--features a/train-00000-of-00001.safetensors --features_val a/val-00000-of-00001.safetensors"
    run(monkeypatch, tmp_path, f"{files} --model mlp --epochs 1 --batch_size 16 --n_sim_classes 1 --exp_name h")
    head = "save/SupCon/features_models/h"
    for layer, width in (("output", 128), ("hidden", 64)):
        extract(monkeypatch, tmp_path, f"{files} --ckpt {head} --layer {layer} --shard_size 0.01 --out {layer}")
        x, labels, superclasses = read(tmp_path / layer)
        assert x.shape == (30, width)
        assert (labels, superclasses) == read(tmp_path / "a")[1:]
    extract(monkeypatch, tmp_path, f"{files} --ckpt {head} --layer hidden --out whole")
    torch.testing.assert_close(read(tmp_path / "whole")[0], x)
    assert "--views: has no use with --features" in error_of(
        monkeypatch, capsys, tmp_path, f"{files} --ckpt {head} --views 2 --out x"
    )


# ---- texts -----------------------------------------------------------------------------------------------------------

TEXTS = ["#1 robin", "a gila monster, asleep", "x", "robin", "x"]


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "encoder").mkdir()
    make_text_encoder(tmp_path / "encoder")
    rows = ['"' + text + f'",class {text[0]},{"bird" if "robin" in text else "other"}' for text in TEXTS]
    (tmp_path / "train.csv").write_text("\n".join(["text,label,coarse", *rows]))
    (tmp_path / "far.csv").write_text("text\nnone of these\n")
    return tmp_path


def test_texts_become_the_embeddings_of_rankings_text_one_set_for_each_table(monkeypatch, capsys, texts):
    command = "--texts train.csv far.csv --text_encoder ./encoder --out out"
    extract(monkeypatch, texts, f"{command} --shard_size 0.0002")
    x, labels, superclasses = read(texts / "out")
    encoder = text_encoders.load_encoder(str(texts / "encoder"))
    alone = torch.cat([text_encoders.embed_texts([text], encoder) for text in TEXTS])
    torch.testing.assert_close(x, alone.float(), atol=1e-5, rtol=1e-5)
    assert labels == ["class #", "class a", "class x", "class r", "class x"]
    assert superclasses == {"class #": "bird", "class r": "bird", "class a": "other", "class x": "other"}
    assert read(texts / "out", "far")[0].shape == (1, 16)
    assert sorted(f.name for f in (texts / "out").iterdir())[:2] == [
        "far-00000-of-00001.safetensors",
        "train-00000-of-00002.safetensors",
    ]
    (texts / "train.csv").write_text((texts / "train.csv").read_text().replace("class r", "class s"))
    line = error_of(monkeypatch, capsys, texts, f"{command} --shard_size 0.0002")
    assert "was made by another command (labels_sha256: " in line


def test_two_processes_embed_the_texts_that_one_does(monkeypatch, texts):
    words = "--texts train.csv far.csv --text_encoder ./encoder"
    extract(monkeypatch, texts, f"{words} --out one")
    code, output = call(texts, f"{words} --out two --nproc_per_node 2".split(), "engine.extract")
    assert code == 0, output
    for name in ("train", "far"):
        torch.testing.assert_close(read(texts / "one", name)[0], read(texts / "two", name)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "give one encoder: --ckpt FILE, --model NAME --pretrained, or --model NAME --init FILE"),
        (f"--ckpt {CE} --model resnet8 --pretrained", "give one encoder"),
        ("--pretrained", "--pretrained: needs the name of the encoder; give --model NAME"),
        ("--init x", "--init: needs the name of the encoder; give --model NAME"),
        ("--model resnet8 --pretrained", "--model resnet8"),
        ("--model resnet8 --init nowhere", "--init nowhere: no such file"),
        ("--ckpt nowhere", "--ckpt nowhere: no such file"),
        (f"--ckpt {CE} --text_encoder x", "--text_encoder x: has no use without --texts"),
        (f"--ckpt {CE} --dataset path --data_folder images", "--split train or test extracts one of them"),
        ("--texts nowhere.csv", "--texts nowhere.csv: no such file"),
        (f"--texts a.csv --ckpt {CE}", "--ckpt: has no use with --texts"),
        ("--texts a.csv --views 2", "--views: has no use with --texts"),
        ("--texts a.csv b/a.csv", "--texts: two files are called a"),
        ("--texts a.csv --text_encoder ./nowhere", "--text_encoder ./nowhere: no such folder"),
    ],
)
def test_what_cannot_be_extracted_is_one_line(monkeypatch, capsys, tmp_path, digits, words, message):
    make_image_folders(digits / "images", ["ant", "bee"], each=1)
    (digits / "a.csv").write_text("text,label\nhello,x\n")
    assert message in error_of(monkeypatch, capsys, digits, f"{words} --out {tmp_path}/out")
    assert not (tmp_path / "out").exists()

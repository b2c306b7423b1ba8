"""The pictures: maps that keep what they should, logs read as they were written, files where they were asked for."""

import json
import shutil
from functools import partial

import commands
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import run
from matplotlib.axes import Axes
from PIL import Image

import figures
from figures import demo, embedding, training

error_of = partial(commands.error_of, script="figures.embedding")


def opened(path) -> Image.Image:
    """A picture, read whole, its file closed."""
    with Image.open(path) as picture:
        picture.load()
    return picture


def clouds(each=20, dim=8):
    """Three clouds of unit vectors, the first two near one another."""
    g = torch.Generator().manual_seed(0)
    centres = torch.eye(3, dim)
    centres[1] = centres[0] + 0.8 * centres[1]
    labels = torch.arange(3).repeat_interleave(each)
    return F.normalize(centres[labels] + 0.05 * torch.randn(3 * each, dim, generator=g), dim=1), labels


@pytest.mark.parametrize("make", [embedding.tsne, embedding.mds])
def test_a_map_keeps_the_classes_apart_and_is_the_same_every_time(make):
    z, labels = clouds(each=60)
    points = make(z.numpy())
    assert points.shape == (180, 2)
    assert np.array_equal(points, make(z.numpy()))
    middle = np.stack([points[labels == c].mean(0) for c in range(3)])
    spread = max(points[labels == c].std(0).max() for c in range(3))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(middle[a] - middle[b]) > 3 * spread


def test_mds_keeps_near_classes_near():
    z, labels = clouds()
    points = embedding.mds(z.numpy())
    a, b, c = (points[labels == k].mean(0) for k in range(3))
    assert np.linalg.norm(a - b) < 0.8 * min(np.linalg.norm(a - c), np.linalg.norm(b - c))


def test_cosines_of_classes_are_means_over_pairs_of_images():
    z, labels = clouds(each=3)
    want = [[float((z[labels == a] @ z[labels == b].T).mean()) for b in range(3)] for a in range(3)]
    assert embedding.class_cosines(5 * z, labels, 3) == pytest.approx(np.array(want), abs=1e-6)


def test_names_are_moved_apart_by_no_more_than_they_overlap():
    places = np.array([[0, 0], [0.5, 0.1], [0.2, 0], [5, 0], [5, 3]], dtype=float)
    moved = embedding.spread_apart(places, np.ones(5), 0.4)
    assert np.array_equal(moved[:, 0], places[:, 0])
    assert np.array_equal(moved[3:], places[3:])
    heights = np.sort(moved[:3, 1])
    assert np.diff(heights) == pytest.approx([0.4, 0.4], abs=0.02)
    assert np.abs(moved - places).max() < 0.5


class Drawn:
    """Stands for the axes: remembers what a matrix panel shows."""

    def imshow(self, table, **_):
        self.table = table

    def set(self, **_):
        pass

    def set_xticklabels(self, names, **_):
        self.names = names

    set_yticklabels = set_xticklabels

    def axhline(self, place, **_):
        self.lines = [*getattr(self, "lines", []), place]

    def axvline(self, *_, **__):
        pass


def test_a_matrix_is_ordered_and_framed_by_group():
    table, ax = np.arange(16).reshape(4, 4) / 16, Drawn()
    embedding.draw_matrix(ax, table, embedding.Drawn(list("abcd"), [2, 0, 1, 3], [0, 1, 0, 1]), "t", "l")
    assert ax.names == ["c", "a", "b", "d"]
    assert ax.table[0].tolist() == [table[2, 2], table[2, 0], table[2, 1], table[2, 3]]
    assert ax.lines == [1.5]


@pytest.mark.parametrize(("superclasses", "ranked"), [(True, True), (False, False)])
def test_a_run_is_drawn_with_and_without_superclasses_and_a_ranking(tmp_path, superclasses, ranked):
    z, labels = clouds()
    groups = {"one": ["a", "b"], "two": ["c"]} if superclasses else None
    table = np.array([[1, 0.75, 0], [0.75, 1, 0], [0, 0, 1]]) if ranked else None
    e = {"features": z, "labels": labels, "classes": ["a", "b", "c"]}
    embedding.draw_run(tmp_path / "e.png", "title", e, groups, table)
    picture = opened(tmp_path / "e.png")
    assert picture.height == 80 * 5 * (3 if superclasses else 2)
    assert np.asarray(picture.convert("L")).std() > 10


def test_pairs_of_images_are_told_apart_by_class_and_superclass():
    kinds = embedding.pair_kinds(np.array([0, 0, 1, 2]), [0, 0, 1])
    assert kinds.tolist() == [[0, 0, 1, 2], [0, 0, 1, 2], [1, 1, 0, 2], [2, 2, 2, 0]]


def test_axes_reach_as_far_as_dots_and_names_and_no_farther(caplog):
    points = np.random.default_rng(0).normal(size=(40, 2)) * [3, 1] + [100, 50]  # far from the origin
    figure, ax = figures.pyplot().subplots(figsize=(4, 4))
    embedding.draw_map(ax, points, np.arange(40) % 2, embedding.Drawn(["a", "b"], [0, 1], [0, 0]), "t")
    figure.canvas.draw()
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert left < points[:, 0].min() and points[:, 0].max() < right
    assert bottom < points[:, 1].min() and points[:, 1].max() < top
    assert right - left < 1.5 * np.ptp(points[:, 0])
    assert caplog.records == []  # matplotlib says so where it sets limits aside


def test_more_classes_than_colours_are_drawn(tmp_path):
    z = F.normalize(torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    classes = [f"class_{i}" for i in range(15)]
    e = {"features": z, "labels": torch.arange(60) % 15, "classes": classes}
    embedding.draw_run(tmp_path / "e.png", "title", e, None, np.eye(15))
    assert (tmp_path / "e.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        run(patch, root, "--epochs 2 --model resnet8 --batch_size 256 --exp_name a --knn_freq 1")
    return root


CKPT = "--ckpt save/SupCon/digits_models/a"


def test_a_checkpoint_is_drawn_from_the_command_line(monkeypatch, capsys, trained):
    run(monkeypatch, trained, f"{CKPT} --ranking superclass --images 100 --out pictures/e.png", "figures.embedding")
    assert capsys.readouterr().out.endswith("drew pictures/e.png\n")
    assert opened(trained / "pictures/e.png").height == 1200


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--ckpt none.pth", "--ckpt none.pth: no such file"),
        (f"{CKPT} --images 3", "--images 3: leaves some class without an image"),
        (f"{CKPT} --ranking none.csv", "--ranking none.csv"),
        (f"{CKPT} --superclasses none.yaml", "--superclasses none.yaml: no such file"),
        (f"{CKPT} --superclasses cats.yaml", "--superclasses cats.yaml: lacks the class 0"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(monkeypatch, capsys, trained, words, reason):
    (trained / "cats.yaml").write_text("cats: [lion, tiger]\n")
    assert reason in error_of(monkeypatch, capsys, trained, words)


def test_a_training_is_drawn_from_its_log(monkeypatch, trained):
    run(monkeypatch, trained, "save/SupCon/digits_models/a --out t.png", "figures.training")
    assert np.asarray(opened(trained / "t.png").convert("L")).std() > 10


def test_of_an_epoch_that_was_trained_twice_the_last_counts(tmp_path):
    lines = [{"options": {}}, {"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.0}, {"options": {}}]
    lines += [{"epoch": 2, "loss": 1.5}, {"epoch": 3, "loss": 1.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [r["loss"] for r in training.read_log(tmp_path)] == [3.0, 1.5, 1.0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "holds no epoch yet"),
        ('[3]\n{"options": 1}', "holds no epoch yet"),
        ('{"epoch": 1}', "the logs hold nothing"),
    ],
)
def test_a_log_that_is_none_is_named(monkeypatch, capsys, tmp_path, content, reason):
    (tmp_path / "log.jsonl").write_text(content)
    assert reason in commands.error_of(monkeypatch, capsys, tmp_path, "log.jsonl", "figures.training")
    assert "none: no such file" in commands.error_of(monkeypatch, capsys, tmp_path, "none", "figures.training")


def test_every_rank_and_every_run_is_drawn_runs_of_one_name_too(monkeypatch, tmp_path):
    for folder in ("one/a", "two/a", "two/b"):
        (tmp_path / folder).mkdir(parents=True)
        record = {"epoch": 1, "loss": 2.0, **{f"loss_rank_{r}": 1.0 + r for r in range(7)}}
        (tmp_path / folder / "log.jsonl").write_text(json.dumps(record) + "\n" + '{"epoch": 2, "lo')
    drawn, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda ax, x, y, **how: drawn.append((how["label"], y)) or plot(ax, x, y, **how))
    run(monkeypatch, tmp_path, "one/a two/a/log.jsonl two/b --out t.png", "figures.training")
    assert [label for label, _ in drawn[:3]] == ["one/a", "two/a", "two/b"]
    assert dict(drawn[3:])["two/a, rank 6"] == (7.0,)
    assert len(drawn) == 3 + 3 * 7


def test_patches_of_photographs_are_grey_squares_and_made_whole(tmp_path):
    (tmp_path / "patches.unfinished").mkdir()
    (tmp_path / "patches.unfinished" / "left_over").touch()
    count = demo.photograph_patches(tmp_path / "patches", side=100)
    files = list((tmp_path / "patches").iterdir())
    assert count == len(files) == 2 * 6 * 4
    assert {(f.suffix, opened(f).size, opened(f).mode) for f in files} == {(".png", (100, 100), "L")}
    assert not (tmp_path / "patches.unfinished").exists()


def test_the_readmes_pictures_are_drawn_from_the_table(tmp_path):
    z, labels = clouds()
    classes = ["0", "6", "1"]
    results, methods = {}, {}
    for name in demo.DRAWN:
        features, record = tmp_path / f"{name}.pt", tmp_path / f"{name}.json"
        torch.save({"features": z, "labels": labels, "classes": classes}, features)
        record.write_text(json.dumps({"features": {"queries": {"file": str(features)}}}))
        results[name] = [{"records": {"retrieval": str(record), "near": str(tmp_path / "near.json")}}]
        methods[name] = {"title": name}
    shutil.copy(commands.ROOT / "figures/digits_ood.png", tmp_path / "near.png")
    (tmp_path / "table.json").write_text(json.dumps({"results": results, "recipe": {"methods": methods}}))
    demo.draw_pictures(tmp_path / "table.json", tmp_path / "drawn")
    assert opened(tmp_path / "drawn/digits.png").width == 3 * 4 * 80
    assert (tmp_path / "drawn/digits_ood.png").read_bytes() == (tmp_path / "near.png").read_bytes()


def test_a_picture_that_cannot_be_drawn_is_said_and_ends_nothing(tmp_path):
    def faulty(path, colour):
        raise ValueError(f"{colour} is no colour\nat all")

    assert figures.shown(faulty, tmp_path / "p.png", "loud") == "; p.png cannot be drawn (loud is no colour)"
    assert figures.shown(lambda path: path.touch(), tmp_path / "p.png") == " and p.png"

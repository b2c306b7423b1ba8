"""Ranking files: superclasses, what networks find similar or confuse, noise, the picture, and what cannot be made."""

import errno
import math
import os
from functools import partial

import commands
import numpy as np
import pytest
import reference
import torch
from commands import CE, run
from made_data import make_cifar100, make_image_folders

import datasets
from datasets import augmentation
from datasets.rankings import files, make
from engine.checkpoint import load_encoder
from figures.ranking import clustered
from networks import resnet

command = partial(run, script="rankings")
error_of = partial(commands.error_of, script="rankings")


def test_superclasses_come_from_yaml_or_a_tree_ship_with_data_sets_and_lie_in_cifar100s_own_files(tmp_path):
    make_image_folders(tmp_path / "tree" / "pets", ["cat", "dog"], each=1)
    make_image_folders(tmp_path / "tree" / "vehicles", ["car"], each=1)
    (tmp_path / "groups.yaml").write_text("pets: [dog, cat]\nvehicles: [car]\n")
    make_cifar100(tmp_path, train=100, test=10)
    for sources in (("tree", "groups.yaml"), ("cifar100", "", "cifar-100-python")):
        found = [make.read_groups(name if name == "cifar100" else f"{tmp_path}/{name}") for name in sources]
        for table, classes, _ in found:
            assert classes == sorted(classes) == found[0][1]
            assert ((table == 0.75) == ((table > 0) & (table < 1))).all() and (table == found[0][0]).all()
    assert ((table == 0.75).sum(1) == 4).all() and len(classes) == 100


@pytest.mark.parametrize(("flag", "center"), [("--center", True), ("--centre", False)])  # the old spelling, too
def test_features_are_cosines_of_the_class_means_of_a_checkpoint(monkeypatch, digits, flag, center):
    command(monkeypatch, digits, f"features --ckpt {CE} {flag} {center} --num_workers 0 --out {center}.csv")
    table, classes = files.read_matrix(digits / f"{center}.csv")
    assert classes == [str(c) for c in range(10)]
    data, spec = datasets.build("digits"), datasets.spec("digits")
    encoder = resnet.encoder("resnet20", small_images=True)
    load_encoder(digits / CE / "last.pth", encoder)
    transform = augmentation.evaluation(8, spec.mean, spec.std, small=True)
    with torch.no_grad():
        features = encoder.eval()(torch.stack([transform(data.image(i)) for i in range(len(data))])).double().numpy()
    unit = features / [[math.hypot(*row)] for row in features]
    means = [unit[(data.labels == c).numpy()].mean(0) for c in range(10)]
    means = [mean - sum(means) / 10 for mean in means] if center else means
    for a, b in np.ndindex(10, 10):
        cosine = means[a] @ means[b] / (math.hypot(*means[a]) * math.hypot(*means[b]))
        assert table[a, b] == pytest.approx(cosine, abs=1e-4)
    run(monkeypatch, digits, f"--ranking {center}.csv --thresholds 0.1 --epochs 1 --model resnet8 --exp_name {center}")


def test_a_cosine_between_two_sixth_places_is_the_same_in_any_order_of_summation():
    rng = np.random.default_rng(0)
    one = np.full(100, 0.1)
    across = rng.normal(size=100)
    across -= (across @ one) * one
    table, cosine = np.stack([one, across / np.linalg.norm(across), one]), 0.1234565
    table[1] = cosine * one + np.sqrt(1 - cosine**2) * table[1]
    orders = [rng.permutation(100) for _ in range(50)]
    found = [make.compute_cosines(table[:, order]) for order in orders]
    assert all(np.array_equal(of, found[0]) for of in found)
    assert found[0][0, 1] == found[0][1, 2] == pytest.approx(cosine, abs=1e-6) and found[0][0, 2] == 1


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("classes", [4, 17, 130])
def test_equal_classes_have_equal_similarities(threads, classes):
    g = torch.Generator().manual_seed(0)
    features, before = torch.randn(classes, 5, 67, generator=g), torch.get_num_threads()
    features[1], features[classes - 1] = features[0].clone(), features[0].flip(0)  # its images in another order
    labels = torch.arange(classes).repeat_interleave(5)
    try:
        torch.set_num_threads(threads)
        table = make.compute_cosines(make.average_features(features.flatten(0, 1), labels, classes, True))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(table, table.T) and table[0, 1] == table[0, -1] == 1
    for same in (1, classes - 1):
        assert np.array_equal(np.delete(table[0], [0, same]), np.delete(table[same], [0, same]))


@pytest.mark.parametrize("kind", ["features", "confusion"])
def test_a_class_without_an_image_is_one_line_and_no_ranking(monkeypatch, capsys, tmp_path, kind):
    for split in ("train", "val"):
        make_image_folders(tmp_path / "mine" / split, ["cat", "dog", "robin"], each=2)
    torch.manual_seed(0)
    state = {"options": {"model": "resnet8"}, "classes": ["cat", "dog", "robin"]}
    state["model"] = {f"encoder.{k}": v for k, v in resnet.encoder("resnet8").state_dict().items()}
    state["model"] |= {"fc.weight": torch.zeros(3, 64), "fc.bias": torch.zeros(3)}
    torch.save(state, tmp_path / "a.pth")
    listed = [f"mine/{split}/dog/dog_{i}.JPEG" for split in ("train", "val") for i in range(2)]
    (tmp_path / "skip.txt").write_text("\n".join(listed))
    common = "--dataset path --data_folder mine --size 32 --num_workers 0 --ckpt a.pth --skip_images skip.txt"
    error = error_of(monkeypatch, capsys, tmp_path, f"{kind} {common} --out new.csv")
    assert "dog" in error and not (tmp_path / "new.csv").exists()


# ---- what a classifier confuses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_confusions_equal_the_loop_reference(seed):
    counts = np.random.default_rng(seed).integers(0, 9, (5, 5)) + np.eye(5) * 30
    found = make.compute_confusions(counts)
    assert np.allclose(found, reference.confusion(counts.tolist()), atol=1e-6)
    assert (found == found.T).all() and (found.diagonal() == 1).all() and (found - np.eye(5)).max() < 0.5
    more_images = counts * np.array([[1], [7], [1], [2], [1]])  # of a class: its share of errors stays
    assert np.allclose(make.compute_confusions(more_images), found, atol=1e-6)


def test_classes_that_cannot_be_told_apart_have_a_half_and_a_stray_image_makes_none_alike():
    assert make.compute_confusions([[5, 5, 0], [5, 5, 0], [0, 0, 9]])[0].tolist() == [1, 0.5, 0]
    assert make.compute_confusions([[0, 9, 0], [9, 0, 0], [0, 0, 9]])[0].tolist() == [1, 0.75, 0]  # always swapped
    stray = make.compute_confusions([[0, 1, 99], [0, 0, 100], [0, 0, 100]])
    assert stray[0, 1] < 0.02 and stray[0, 2] == pytest.approx(0.99 / 1.99, abs=1e-6)


def test_a_classifiers_confusions_make_a_ranking_that_training_reads(monkeypatch, capsys, digits):
    command(monkeypatch, digits, f"confusion --ckpt {CE} --out confusion.csv")
    printed = capsys.readouterr().out
    table, classes = files.read_matrix(digits / "confusion.csv")
    assert classes == datasets.build("digits").classes and 0 < table[np.triu_indices(10, 1)].max() < 0.5
    assert "confusions of a classifier on 355 images" in printed
    command(monkeypatch, digits, "show confusion.csv --thresholds 0.05 0.01")
    command(monkeypatch, digits, "compare confusion.csv digits --thresholds 0.05")


def test_counts_of_a_file_are_confusions_too(monkeypatch, tmp_path):
    (tmp_path / "c.csv").write_text("class,a,b,c\na,8,2,0\nb,0,10,0\nc,1,0,9\n")
    command(monkeypatch, tmp_path, "confusion --from c.csv --out r.csv")
    table, classes = files.read_matrix(tmp_path / "r.csv")
    want = [[1, 0.2 / 2, 0.1 / 1.8], [0.2 / 2, 1, 0], [0.1 / 1.8, 0, 1]]  # of two classes, the wrong share
    assert np.allclose(table, want, atol=1e-6) and classes == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("words", "text", "reason"),
    [
        ("", "", "confusion: give --ckpt, a cross-entropy model, or --from, a CSV of counts"),
        ("--from c.csv --ckpt x", "", "confusion: give --ckpt, a cross-entropy model, or --from"),
        ("--from none.csv", "", "--from none.csv: no such file"),
        ("--from c.csv", "class,a,b\nb,1,2\na,3,4\n", "header and first column must name the same classes"),
        ("--from c.csv", "class,a,b\na,1,x\nb,3,4\n", "line 2: not readable as a CSV matrix"),
        ("--from c.csv", "class,a,b\na,1,2\nb,-3,4\n", "the row b holds counts below 0"),
        ("--from c.csv", "class,a,b\na,1,0\nb,0,4\n", "no image is taken for one of another class"),
        ("--from c.csv", "class,a,b\na,0,0\nb,0,4\n", "class 0 has no image"),
        ("--ckpt random", "", "is a contrastive model, which names no class"),
        (f"--ckpt {CE} --hold_out 3", "", "was trained on other classes than these images have"),
    ],
)
def test_what_gives_no_confusions_is_one_line(monkeypatch, capsys, digits, words, text, reason):
    (digits / "c.csv").write_text(text)
    assert reason in error_of(monkeypatch, capsys, digits, f"confusion {words} --out new.csv")
    assert not (digits / "new.csv").exists()


# ---- noise, pictures, faults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_noise_deals_a_share_of_the_pairs_anew_and_keeps_the_values(share):
    table = np.random.default_rng(0).random((30, 30)).round(6)
    table = np.triu(table, 1) + np.triu(table, 1).T + np.eye(30)
    noisy = make.shuffle_pairs(table, share, seed=1)
    assert (noisy == noisy.T).all()
    assert (noisy.diagonal() == 1).all()
    assert (np.sort(noisy, axis=None) == np.sort(table, axis=None)).all()
    moved = (np.triu(noisy != table, 1)).sum() / 435
    assert share - 0.02 <= moved <= share
    assert (noisy == make.shuffle_pairs(table, share, seed=1)).all()
    assert share == 0 or (noisy != make.shuffle_pairs(table, share, seed=2)).any()


def test_noise_is_put_on_a_ranking_of_any_form(monkeypatch, tmp_path):
    (tmp_path / "groups.yaml").write_text("a: [c1, c4, c5]\nb: [c2, c6]\nc: [c3]\n")
    (tmp_path / "levels.csv").write_text("class,kind\nc1,a\nc4,a\nc5,a\nc2,b\nc6,b\nc3,c\n")
    for name in ("groups.yaml", "levels.csv"):
        command(monkeypatch, tmp_path, f"noise --from {name} --share 0.5 --out {name}.npz")
        assert sorted(files.read_matrix(tmp_path / f"{name}.npz")[1]) == ["c1", "c2", "c3", "c4", "c5", "c6"]


def test_show_draws_similar_classes_side_by_side_and_names_the_closest(monkeypatch, capsys, tmp_path):
    (tmp_path / "groups.yaml").write_text("a: [c1, c4, c5]\nb: [c2, c6]\nc: [c3]\n")
    command(monkeypatch, tmp_path, "superclass --from groups.yaml --out r.csv")
    command(monkeypatch, tmp_path, "show r.csv --out r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert "c1 - c4: 0.75, in training 0.75" in capsys.readouterr().out
    table, classes = files.read_matrix(tmp_path / "r.csv")
    order = [classes[i] for i in clustered(table)]
    places = [order.index(c) for c in ("c1", "c4", "c5")]
    assert max(places) - min(places) == 2


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("roberta --names names.csv --model ./nowhere --out a.csv", "--model ./nowhere: no such folder"),
        ("roberta --names names.csv --model ./flat --out a.csv", "--model ./flat: cannot be loaded"),
        ("roberta --names twice.txt --out a.csv", "--names twice.txt: class cat is there twice; name it once"),
        ("roberta --names empty.txt --out a.csv", "--names empty.txt: is empty"),
        ("roberta --names names.csv --template photo --out a.csv", "--template 'photo'"),
        ("roberta --out a.csv", "--names or --data_folder is missing; give one or both"),
        ("roberta --names names.csv --data_folder tree --out a.csv", "--names names.csv: n1 is not a class of tree"),
        ("roberta --names few.csv --data_folder tree --out a.csv", "--names few.csv: lacks the class dog"),
        ("roberta --names wnid.txt --out a.csv", "--names: the wnid n99999999 has no name"),
        ("wordnet --names names.csv --is_a nowhere.txt --out a.csv", "--is_a nowhere.txt: no such file"),
        ("superclass --from twice --out a.csv", "--from twice: class cat is there twice; name it once"),
        ("superclass --from flat --out a.csv", "--from flat: it holds no folders"),
        ("noise --from nowhere.csv --out a.csv", "--from nowhere.csv: no such file or folder, and none of cifar100"),
        ("noise --from r.csv --share 2 --out a.csv", "--share 2.0: must lie in [0, 1]"),
        ("superclass --from r.csv --out a.csv", "--from r.csv: is a matrix, which is a ranking already; superclasses"),
        ("superclass --from few.csv --out a.csv", "--from few.csv: has 0 classes and 0 x 1 numbers; it must be a squ"),
        ("noise --from r.csv --out a.yaml", "--out a.yaml: a ranking's name ends in .csv or .npz"),
        ("noise --from r.csv --out r.csv", "--out r.csv: exists and is not overwritten"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(monkeypatch, capsys, tmp_path, command, reason):
    (tmp_path / "names.csv").write_text("class,name\nn1,robin\n")
    (tmp_path / "twice.txt").write_text("cat\ndog\ncat\n")
    (tmp_path / "empty.txt").write_text("")
    files.write_matrix(tmp_path / "r.csv", np.eye(2), ["a", "b"], "made")
    (tmp_path / "few.csv").write_text("cat,cat\n")
    (tmp_path / "wnid.txt").write_text("n99999999\n")
    (tmp_path / "flat").mkdir()
    make_image_folders(tmp_path / "tree", ["cat", "dog"], each=1)
    for group in "ab":
        make_image_folders(tmp_path / "twice" / group, ["cat"], each=1)
    before = sorted(tmp_path.iterdir())
    assert reason in error_of(monkeypatch, capsys, tmp_path, command)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_or_no_permission_is_one_line_and_leaves_nothing(monkeypatch, capsys, tmp_path, fault):
    def full(*_):
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    line = error_of(monkeypatch, capsys, tmp_path, "superclass --from digits --out r.csv")
    assert f"r.csv: cannot be written ({os.strerror(fault)})" in line
    assert list(tmp_path.iterdir()) == []

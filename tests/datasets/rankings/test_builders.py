"""Ranking files: cosines of names by a text encoder, superclasses, noise, and the picture."""

import errno
import json
import math
import os
import subprocess
import sys
from functools import partial

import commands
import numpy as np
import pytest
import torch
from commands import run
from made_data import make_cifar100, make_image_folders
from transformers import AutoModel, AutoTokenizer, RobertaConfig, RobertaModel

import datasets
from datasets import augmentation, rankings
from datasets.rankings import builders, files
from engine import checkpoint
from figures.ranking import clustered
from networks import resnet

NAMES = ["robin", "gila monster", "a very long name of a class with many words", "x"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A RoBERTa with random weights and a byte-level tokenizer, as a local folder."""
    folder = tmp_path_factory.mktemp("roberta")
    letters = [chr(c) for c in range(33, 127)] + ["Ġ"]
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=80, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(folder)
    return folder


make = partial(run, script="rankings")
error_of = partial(commands.error_of, script="rankings")


def by_hand(folder, text):
    """The mean of the last hidden states of one text alone, of unit length."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].tolist()
    mean = [math.fsum(token[d] for token in hidden) / len(hidden) for d in range(16)]
    return [x / math.hypot(*mean) for x in mean]


def test_embeddings_equal_mean_pooling_by_hand_and_padding_changes_none(encoder):
    tokenizer, model, _ = builders.text_encoder(str(encoder))
    together = builders.embed(NAMES, tokenizer, model)  # padded to the longest
    for text, row in zip(NAMES, together.tolist(), strict=True):
        assert row == pytest.approx(by_hand(encoder, text), abs=1e-5)
    small = builders.embed(NAMES, tokenizer, model, batch=1)
    assert torch.allclose(small, together, atol=1e-5)


def test_roberta_writes_a_ranking_that_training_reads(monkeypatch, tmp_path, encoder):
    (tmp_path / "names.csv").write_text("class,name\nn1,robin\nn2,gila monster\nn3,robin\n")
    make(monkeypatch, tmp_path, f"roberta --names names.csv --model {encoder} --out r.csv")
    table, classes = files.read_table(tmp_path / "r.csv")
    assert classes == ["n1", "n2", "n3"]
    assert table[0, 2] == pytest.approx(1)
    want = np.dot(by_hand(encoder, "robin"), by_hand(encoder, "gila monster"))
    assert table[0, 1] == pytest.approx(want, abs=1e-5)
    assert f"model {encoder}" in (tmp_path / "r.csv").read_text().splitlines()[0]
    similarity, _ = rankings.class_similarity(str(tmp_path / "r.csv"), classes, thresholds=[0.9999])
    assert similarity[0].tolist() == [1, 0.75 if table[0, 1] >= 0.9999 else 0, 0.75]


def test_names_come_from_folders_and_a_template_is_used(monkeypatch, tmp_path, encoder):
    make_image_folders(tmp_path / "mine", ["grey_wolf", "red+fox", "n01558993"], each=1)
    assert builders.read_classes(None, tmp_path / "mine") == {
        "grey_wolf": "grey wolf", "n01558993": "robin", "red+fox": "red fox",
    }  # fmt: skip
    for name, template in (("plain", "{}"), ("photo", "photo_{}")):
        make(monkeypatch, tmp_path, f"roberta --data_folder mine --model {encoder} --template {template} --out {name}")
    tables = [files.read_table(tmp_path / name)[0] for name in ("plain", "photo")]
    assert not np.allclose(*tables)


def test_superclasses_come_from_yaml_or_a_tree(monkeypatch, tmp_path):
    make_image_folders(tmp_path / "tree" / "pets", ["cat", "dog"], each=1)
    make_image_folders(tmp_path / "tree" / "vehicles", ["car"], each=1)
    (tmp_path / "groups.yaml").write_text("pets: [dog, cat]\nvehicles: [car]\n")
    for source in ("tree", "groups.yaml"):
        make(monkeypatch, tmp_path, f"superclass --from {source} --out {source}.csv")
        table, classes = files.read_table(tmp_path / f"{source}.csv")
        assert classes == ["car", "cat", "dog"]
        assert table.tolist() == [[1, 0, 0], [0, 1, 0.75], [0, 0.75, 1]]


def test_superclasses_ship_with_data_sets_and_lie_in_cifar100s_own_files(monkeypatch, tmp_path):
    make_cifar100(tmp_path, train=100, test=10)
    for source in ("cifar100", ".", "cifar-100-python"):
        make(monkeypatch, tmp_path, f"superclass --from {source} --out r{len(source)}.csv")
    tables = [files.read_table(tmp_path / f"r{n}.csv") for n in (8, 1, 16)]
    for table, classes in tables:
        assert classes == tables[0][1]
        assert (table == tables[0][0]).all()
    assert ((tables[0][0] == 0.75).sum(1) == 4).all()


def test_names_of_a_file_go_with_the_classes_of_a_folder(monkeypatch, tmp_path, encoder):
    make_image_folders(tmp_path / "mine", ["n1", "n2"], each=1)
    (tmp_path / "names.csv").write_text("class,name\nn2,gila monster\nn1,robin\n")
    make(monkeypatch, tmp_path, f"roberta --names names.csv --data_folder mine --model {encoder} --out r.csv")
    table, classes = files.read_table(tmp_path / "r.csv")
    assert classes == ["n1", "n2"]
    want = np.dot(by_hand(encoder, "robin"), by_hand(encoder, "gila monster"))
    assert table[0, 1] == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("centre", [True, False])
def test_features_are_cosines_of_the_class_means_of_a_checkpoint(monkeypatch, tmp_path, centre):
    run(monkeypatch, tmp_path, "--epochs 1 --model resnet8 --exp_name a", "main_ce")
    ckpt = "save/SupCon/digits_models/a"
    make(monkeypatch, tmp_path, f"features --ckpt {ckpt} --centre {centre} --num_workers 0 --out r.csv")
    table, classes = files.read_table(tmp_path / "r.csv")
    assert classes == [str(c) for c in range(10)]
    data = datasets.build("digits")
    encoder = resnet.encoder("resnet8", small_images=True)
    checkpoint.load_encoder(tmp_path / ckpt / "last.pth", encoder)
    spec = datasets.spec("digits")
    transform = augmentation.evaluation(8, spec.mean, spec.std, small=True)
    with torch.no_grad():
        features = encoder.eval()(torch.stack([transform(data.image(i)) for i in range(len(data))])).double()
    means = []
    for c in range(10):
        rows = [x / math.hypot(*x) for x in features[data.labels == c].numpy()]
        means.append(sum(rows) / len(rows))
    if centre:
        middle = sum(means) / 10
        means = [m - middle for m in means]
    for a in range(10):
        for b in range(10):
            cosine = means[a] @ means[b] / (math.hypot(*means[a]) * math.hypot(*means[b]))
            assert table[a, b] == pytest.approx(cosine, abs=1e-4)
    run(monkeypatch, tmp_path, "--ranking r.csv --thresholds 0.1 --epochs 1 --model resnet8 --exp_name b")
    with pytest.raises(SystemExit):
        make(monkeypatch, tmp_path, "features --ckpt nowhere --out s.csv")


def test_random_is_another_word_for_noise(monkeypatch, tmp_path):
    make(monkeypatch, tmp_path, "superclass --from digits --out r.csv")
    make(monkeypatch, tmp_path, "random --from r.csv --seed 3 --out a.csv")
    make(monkeypatch, tmp_path, "noise --from r.csv --seed 3 --share 1 --out b.csv")
    (a, _), (b, _), (r, _) = (files.read_table(tmp_path / f"{name}.csv") for name in "abr")
    assert (a == b).all()
    assert (a != r).any()


def test_hugging_faces_package_of_the_same_name_is_not_in_the_way(tmp_path, encoder):
    """As where `pip install datasets` was run: a package and its metadata in site-packages."""
    (tmp_path / "site" / "datasets").mkdir(parents=True)
    (tmp_path / "site" / "datasets" / "__init__.py").write_text("__version__ = '5.2.0'\nclass Dataset: pass\n")
    (tmp_path / "site" / "datasets-5.2.0.dist-info").mkdir()
    (tmp_path / "site" / "datasets-5.2.0.dist-info" / "METADATA").write_text("Name: datasets\nVersion: 5.2.0\n")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    world = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    for order in ("import datasets, transformers", "import transformers, datasets"):
        code = (
            f"{order}; from transformers import AutoModel, AutoTokenizer; from transformers.utils import import_utils"
        )
        code += "; assert import_utils.is_datasets_available(); assert datasets.build('digits')"
        subprocess.run([sys.executable, "-c", code], cwd=commands.ROOT, env=world, check=True)
    options = ["roberta", "--names", "names.txt", "--model", str(encoder), "--out", "r.csv"]
    options[2], options[-1] = str(tmp_path / "names.txt"), str(tmp_path / "r.csv")
    command = [sys.executable, "rankings.py", *options]
    subprocess.run(command, cwd=commands.ROOT, env=world, check=True, capture_output=True)
    assert files.read_table(tmp_path / "r.csv")[1] == ["cat", "dog"]


def test_a_real_sentence_encoder_finds_dogs_nearer_to_dogs_than_to_vehicles():
    tokenizer, model, _ = builders.text_encoder(str(commands.real("SENTENCE_ENCODER")))
    dogs = ["Chihuahua", "Shih-Tzu", "toy terrier", "Rottweiler", "Doberman", "standard poodle"]
    vehicles = ["ambulance", "moped", "pickup"]
    known = set(files.in_words(datasets.class_list("ImageNet-100")).values())
    assert known.issuperset({*dogs, *vehicles})
    z = builders.embed([*dogs, *vehicles], tokenizer, model)
    table = z @ z.T
    among = table[:6, :6][~torch.eye(6, dtype=torch.bool)]
    assert among.mean() > table[:6, 6:].mean() + 0.1
    for row in range(6):
        assert (table[row, :6].sum() - 1) / 5 > table[row, 6:].mean()


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_noise_deals_a_share_of_the_pairs_anew_and_keeps_the_values(share):
    table = np.random.default_rng(0).random((30, 30)).round(6)
    table = np.triu(table, 1) + np.triu(table, 1).T + np.eye(30)
    noisy = builders.with_noise(table, share, seed=1)
    assert (noisy == noisy.T).all()
    assert (noisy.diagonal() == 1).all()
    assert (np.sort(noisy, axis=None) == np.sort(table, axis=None)).all()
    moved = (np.triu(noisy != table, 1)).sum() / 435
    assert share - 0.02 <= moved <= share
    assert (noisy == builders.with_noise(table, share, seed=1)).all()
    assert share == 0 or (noisy != builders.with_noise(table, share, seed=2)).any()


def test_show_draws_similar_classes_side_by_side_and_names_the_closest(monkeypatch, capsys, tmp_path):
    (tmp_path / "groups.yaml").write_text("a: [c1, c4, c5]\nb: [c2, c6]\nc: [c3]\n")
    make(monkeypatch, tmp_path, "superclass --from groups.yaml --out r.csv")
    make(monkeypatch, tmp_path, "show r.csv --out r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert "c1 - c4: 0.75, in training 0.75" in capsys.readouterr().out
    table, classes = files.read_table(tmp_path / "r.csv")
    order = [classes[i] for i in clustered(table)]
    places = [order.index(c) for c in ("c1", "c4", "c5")]
    assert max(places) - min(places) == 2


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("roberta --names names.csv --model ./nowhere --out a.csv", "--model ./nowhere: no such folder"),
        ("roberta --names names.csv --model ./flat --out a.csv", "--model ./flat: cannot be loaded"),
        ("roberta --names nowhere.csv --out a.csv", "--names nowhere.csv: not readable"),
        ("roberta --names twice.txt --out a.csv", "--names twice.txt: class cat stands in it twice"),
        ("roberta --names empty.txt --out a.csv", "--names empty.txt: is empty"),
        ("roberta --names names.csv --template photo --out a.csv", "--template 'photo'"),
        ("roberta --data_folder nowhere --out a.csv", "--data_folder nowhere: no such folder"),
        ("roberta --out a.csv", "which classes? give --names, --data_folder, or both"),
        ("roberta --names names.csv --data_folder tree --out a.csv", "--names names.csv: n1 is no class of tree"),
        ("roberta --names few.csv --data_folder tree --out a.csv", "--names few.csv: lacks the class dog (1 in all)"),
        ("roberta --names wnid.txt --out a.csv", "the name of the wnid n99999999 is not known here"),
        ("wordnet --names names.csv --is_a nowhere.txt --out a.csv", "--is_a nowhere.txt: not readable"),
        ("superclass --from twice --out a.csv", "--from twice: the class cat lies in two superclasses"),
        ("features --ckpt nowhere --out a.csv", "--ckpt nowhere: no such file"),
        ("show rising.csv --thresholds 0.4 0.6", "--thresholds 0.4 0.6: must fall"),
        ("show r.csv --ranks --thresholds 0.4", "--ranks and --thresholds: give one of them"),
        ("superclass --from nowhere.yaml --out a.csv", "--from nowhere.yaml: no such file or folder"),
        ("superclass --from flat --out a.csv", "--from flat: it holds no folders"),
        ("noise --from nowhere.csv --out a.csv", "--from nowhere.csv: no such file"),
        ("noise --from r.csv --share 2 --out a.csv", "--share 2.0: must lie in [0, 1]"),
        ("show nowhere.csv", "nowhere.csv: no such file"),
        ("noise --from r.csv --out r.csv", "--out r.csv: is there already"),
        ("noise --from r.csv --out r.csv/a.csv", "--out "),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(monkeypatch, capsys, tmp_path, command, reason):
    (tmp_path / "names.csv").write_text("class,name\nn1,robin\n")
    (tmp_path / "twice.txt").write_text("cat\ndog\ncat\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "r.csv").write_text("class,a,b\na,1,0\nb,0,1\n")
    (tmp_path / "rising.csv").write_text("class,a,b\na,1,0\nb,0,1\n")
    (tmp_path / "few.csv").write_text("cat,cat\n")
    (tmp_path / "wnid.txt").write_text("n99999999\n")
    (tmp_path / "flat").mkdir()
    make_image_folders(tmp_path / "tree", ["cat", "dog"], each=1)
    make_image_folders(tmp_path / "twice" / "a", ["cat"], each=1)
    make_image_folders(tmp_path / "twice" / "b", ["cat"], each=1)
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


def test_a_picture_that_cannot_be_written_is_one_line(monkeypatch, capsys, tmp_path):
    make(monkeypatch, tmp_path, "superclass --from digits --out r.csv")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    assert "error: No space left on device" in error_of(monkeypatch, capsys, tmp_path, "show r.csv")

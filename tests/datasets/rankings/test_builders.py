"""Ranking files: cosines of names by a text encoder, superclasses, noise, and the picture."""

import dataclasses
import errno
import json
import math
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from commands import run
from made_data import make_cifar100, make_image_folders
from transformers import AutoModel, AutoTokenizer, RobertaConfig, RobertaModel

import datasets
from datasets import augmentation, rankings
from datasets.rankings import builders, files, text_encoders
from engine import checkpoint
from figures.ranking import clustered
from networks import resnet
from util import InputError

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


def pooled_by_hand(hidden, mode):
    """One vector of the lists `hidden`, a text's tokens."""
    n, columns = len(hidden), list(zip(*hidden, strict=True))
    if mode in ("cls", "lasttoken"):
        return hidden[0 if mode == "cls" else -1]
    if mode == "max":
        return [max(column) for column in columns]
    if mode == "weightedmean":
        return [sum((i + 1) * x for i, x in enumerate(column)) / (n * (n + 1) / 2) for column in columns]
    return [math.fsum(column) / (n if mode == "mean" else math.sqrt(n)) for column in columns]


def by_hand(folder, text, modes=("mean",)):
    """The last hidden states of one text alone, pooled, of unit length."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].tolist()
    pooled = [x for mode in modes for x in pooled_by_hand(hidden, mode)]
    return [x / math.hypot(*pooled) for x in pooled]


def test_embeddings_equal_mean_pooling_by_hand_and_padding_changes_none(encoder):
    found = text_encoders.text_encoder(str(encoder))
    assert found.about == "revision local folder, pooling mean, since the model names none"
    together = text_encoders.embed(NAMES, found)  # padded to the longest
    for text, row in zip(NAMES, together.tolist(), strict=True):
        assert row == pytest.approx(by_hand(encoder, text), abs=1e-5)
    small = text_encoders.embed(NAMES, found, batch=1)
    assert torch.allclose(small, together, atol=1e-5)


TRANSFORMER, POOLING = "sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"
NORMALIZE = "sentence_transformers.models.Normalize"
NEWER = "sentence_transformers.base.modules.transformer.Transformer", "sentence_transformers.x.modules.pooling.Pooling"


def configure(encoder, folder, pooling, kinds=(TRANSFORMER, POOLING, NORMALIZE), side="right"):
    """A copy of the encoder as sentence-transformers would leave it."""
    shutil.copytree(encoder, folder)
    modules = [{"idx": i, "path": f"{i}_{kind.rpartition('.')[2]}" if i else "", "type": kind}
               for i, kind in enumerate(kinds)]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    settings = {**json.loads((folder / "tokenizer_config.json").read_text()), "padding_side": side}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


def older(*names):
    known = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    return {"word_embedding_dimension": 16, **{f"pooling_mode_{name}": name in names for name in known}}


POOLED = {
    "cls": (older("cls_token"), ["cls"]),
    "mean": (older("mean_tokens"), ["mean"]),
    "max": (older("max_tokens"), ["max"]),
    "mean_sqrt": (older("mean_sqrt_len_tokens"), ["mean_sqrt_len_tokens"]),
    "weighted": (older("weightedmean_tokens"), ["weightedmean"]),
    "last": (older("lasttoken"), ["lasttoken"]),
    "two": (older("cls_token", "mean_sqrt_len_tokens"), ["cls", "mean_sqrt_len_tokens"]),
    "newer": ({"embedding_dimension": 16, "pooling_mode": "lasttoken", "include_prompt": True}, ["lasttoken"]),
    "newer, two": ({"embedding_dimension": 16, "pooling_mode": ["max", "cls"]}, ["max", "cls"]),
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", POOLED)
def test_a_models_own_pooling_is_followed_whatever_the_padding(tmp_path, encoder, name, side):
    config, modes = POOLED[name]
    kinds = NEWER if "newer" in name else (TRANSFORMER, POOLING, NORMALIZE)
    found = text_encoders.text_encoder(configure(encoder, tmp_path / "model", config, kinds, side))
    assert found.tokenize.func.padding_side == side
    assert found.about.endswith(f"pooling {' and '.join(modes)}")
    together = text_encoders.embed(NAMES, found)
    for text, row in zip(NAMES, together.tolist(), strict=True):
        alone = text_encoders.embed([text], found)[0]
        assert row == pytest.approx(alone.tolist(), abs=1e-5)
        assert row == pytest.approx(by_hand(tmp_path / "model", text, modes), abs=1e-5)
    plain = text_encoders.embed(
        NAMES, dataclasses.replace(found, vectors=partial(found.vectors.func, found.vectors.args[0], ("mean",)))
    )
    same = modes in (["mean"], ["mean_sqrt_len_tokens"])  # the length of a vector is no part of a cosine
    assert plain.shape != together.shape or torch.allclose(plain, together, atol=1e-3) == same


def test_the_file_that_is_written_names_the_pooling(monkeypatch, tmp_path, encoder):
    (tmp_path / "names.csv").write_text("class,name\nn1,robin\nn2,gila monster\n")
    for folder in (configure(encoder, tmp_path / "model", older("cls_token")), encoder):
        make(monkeypatch, tmp_path, f"roberta --names names.csv --model {folder} --out {Path(folder).name}.csv")
    table, _ = files.read_table(tmp_path / "model.csv")
    want = np.dot(*(by_hand(tmp_path / "model", text, ["cls"]) for text in ("robin", "gila monster")))
    assert table[0, 1] == pytest.approx(want, abs=1e-5)
    assert ", pooling cls, template" in (tmp_path / "model.csv").read_text().splitlines()[0]
    plain = (tmp_path / f"{encoder.name}.csv").read_text().splitlines()[0]
    assert ", pooling mean, since the model names none, template" in plain


def test_a_pooling_file_without_a_list_of_modules_counts_and_a_transformer_may_have_a_folder_of_its_own(
    tmp_path, encoder
):
    folder = Path(configure(encoder, tmp_path / "part", older("cls_token")))
    (folder / "modules.json").unlink()
    assert text_encoders.text_encoder(str(folder)).vectors.args[1] == ("cls",)
    whole = Path(configure(encoder, tmp_path / "whole", older("max_tokens")))
    modules = json.loads((whole / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (whole / "modules.json").write_text(json.dumps(modules))
    shutil.copytree(encoder, whole / "0_Transformer")
    for file in encoder.iterdir():
        (whole / file.name).unlink()
    found = text_encoders.text_encoder(str(whole))
    assert text_encoders.embed(["robin"], found)[0].tolist() == pytest.approx(
        by_hand(encoder, "robin", ["max"]), abs=1e-5
    )


@pytest.mark.parametrize(
    ("config", "kinds", "reason"),
    [
        ({"pooling_mode": "attention"}, NEWER, "1_Pooling/config.json: the pooling attention is not known; cls, max,"),
        ({"pooling_mode_new": True}, NEWER, "config.json: the pooling pooling_mode_new is not known"),
        (older(), NEWER, "1_Pooling/config.json names no pooling mode"),
        ({"pooling_mode": 3}, NEWER, "1_Pooling/config.json names no pooling mode"),
        ([], NEWER, "1_Pooling/config.json is a list, not a dict"),
        (older("cls_token"), (TRANSFORMER, POOLING, "sentence_transformers.models.Dense"), "has a module Dense; only"),
        (older("cls_token"), ("custom.Transformer", POOLING), "has a module custom.Transformer; only"),
        (older("cls_token"), (TRANSFORMER, NORMALIZE, POOLING), "has the modules Transformer, Normalize, Pooling;"),
        (older("cls_token"), (TRANSFORMER,), "has the modules Transformer; Transformer, Pooling must come first"),
        (
            older("cls_token"),
            (TRANSFORMER, "sentence_transformers.a.Pooling", POOLING),
            "Transformer, Pooling, Pooling",
        ),
    ],
)
def test_a_pooling_that_is_not_known_is_one_line(monkeypatch, capsys, tmp_path, encoder, config, kinds, reason):
    (tmp_path / "names.csv").write_text("class,name\nn1,robin\n")
    configure(encoder, tmp_path / "model", config, kinds)
    line = error_of(monkeypatch, capsys, tmp_path, "roberta --names names.csv --model ./model --out a.csv")
    assert "--model ./model: " in line
    assert reason in line
    assert not (tmp_path / "a.csv").exists()


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("modules.json", "[", "model/modules.json is not readable as JSON"),
        ("modules.json", "[3]", "model/modules.json is not a list of modules"),
        ("1_Pooling/config.json", None, "has no 1_Pooling/config.json, which model/modules.json names"),
    ],
)
def test_a_damaged_description_of_a_model_is_one_line(monkeypatch, capsys, tmp_path, encoder, file, text, reason):
    (tmp_path / "names.csv").write_text("class,name\nn1,robin\n")
    configure(encoder, tmp_path / "model", older("cls_token"))
    (tmp_path / "model" / file).write_text(text) if text else (tmp_path / "model" / file).unlink()
    line = error_of(monkeypatch, capsys, tmp_path, "roberta --names names.csv --model ./model --out a.csv")
    assert reason in line


def test_a_file_of_the_hub_that_is_not_there_is_told_from_one_that_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "0" * 40
    place = tmp_path / "models--some--model"
    for file, content in {
        "refs/main": commit, f"snapshots/{commit}/modules.json": "[]", f".no_exist/{commit}/1_Pooling/config.json": "",
    }.items():  # fmt: skip
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(content)
    assert text_encoders._model_file("some/model", "modules.json").read_text() == "[]"
    assert text_encoders._model_file("some/model", "1_Pooling/config.json") is None
    with pytest.raises(InputError, match=r"--model other/model: cannot be loaded .* `hf download other/model "):
        text_encoders.text_encoder("other/model")


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


def test_a_cosine_between_two_sixth_places_is_the_same_in_any_order_of_summation():
    rng = np.random.default_rng(0)
    one = np.full(100, 0.1)
    across = rng.normal(size=100)
    across -= (across @ one) * one
    table, cosine = np.stack([one, across / np.linalg.norm(across), one]), 0.1234565
    table[1] = cosine * one + np.sqrt(1 - cosine**2) * table[1]
    orders = [rng.permutation(100) for _ in range(50)]
    found = [builders.cosine_matrix(table[:, order]) for order in orders]
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
        table = builders.cosine_matrix(builders.class_means(features.flatten(0, 1), labels, classes, True))
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


def test_random_is_another_word_for_noise(monkeypatch, tmp_path):
    make(monkeypatch, tmp_path, "superclass --from digits --out r.csv")
    make(monkeypatch, tmp_path, "random --from r.csv --seed 3 --out a.csv")
    make(monkeypatch, tmp_path, "noise --from r.csv --seed 3 --share 1 --out b.csv")
    (a, _), (b, _), (r, _) = (files.read_table(tmp_path / f"{name}.csv") for name in "abr")
    assert (a == b).all()
    assert (a != r).any()


@pytest.mark.slow  # two commands that import transformers
@pytest.mark.parametrize("transformers_first", [False, True])
def test_hugging_faces_package_of_the_same_name_is_not_in_the_way(tmp_path, encoder, transformers_first):
    """As where `pip install datasets` was run: a package and its metadata in site-packages."""
    (tmp_path / "site" / "datasets").mkdir(parents=True)
    (tmp_path / "site" / "datasets" / "__init__.py").write_text("__version__ = '5.2.0'\nclass Dataset: pass\n")
    (tmp_path / "site" / "datasets-5.2.0.dist-info").mkdir()
    (tmp_path / "site" / "datasets-5.2.0.dist-info" / "METADATA").write_text("Name: datasets\nVersion: 5.2.0\n")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    world = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = "import sys; sys.argv[0] = 'rankings.py'; import rankings; rankings.main()"
    code += "; from transformers.utils import import_utils; assert import_utils.is_datasets_available()"
    code = "import transformers; " * transformers_first + code
    options = ["roberta", "--names", str(tmp_path / "names.txt"), "--model", str(encoder)]
    options += ["--out", str(tmp_path / "r.csv")]
    subprocess.run([sys.executable, "-c", code, *options], cwd=commands.ROOT, env=world, check=True)
    assert files.read_table(tmp_path / "r.csv")[1] == ["cat", "dog"]


def test_a_real_sentence_encoder_finds_dogs_nearer_to_dogs_than_to_vehicles():
    encoder = text_encoders.text_encoder(str(commands.real("SENTENCE_ENCODER")))
    dogs = ["Chihuahua", "Shih-Tzu", "toy terrier", "Rottweiler", "Doberman", "standard poodle"]
    vehicles = ["ambulance", "moped", "pickup"]
    known = set(files.in_words(datasets.class_list("ImageNet-100")).values())
    assert known.issuperset({*dogs, *vehicles})
    z = text_encoders.embed([*dogs, *vehicles], encoder)
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


def test_noise_is_put_on_a_ranking_of_any_form(monkeypatch, tmp_path):
    (tmp_path / "groups.yaml").write_text("a: [c1, c4, c5]\nb: [c2, c6]\nc: [c3]\n")
    (tmp_path / "levels.csv").write_text("class,kind\nc1,a\nc4,a\nc5,a\nc2,b\nc6,b\nc3,c\n")
    for name in ("groups.yaml", "levels.csv"):
        make(monkeypatch, tmp_path, f"noise --from {name} --share 0.5 --out {name}.npz")
        assert sorted(files.read_table(tmp_path / f"{name}.npz")[1]) == ["c1", "c2", "c3", "c4", "c5", "c6"]


@pytest.mark.parametrize("kind", ["text", "wordnet", "superclass", "features", "confusion", "noise", "show", "compare"])
def test_the_help_of_each_kind_says_what_it_writes(monkeypatch, capsys, tmp_path, kind):
    with pytest.raises(SystemExit):
        make(monkeypatch, tmp_path, f"{kind} --help")
    printed = " ".join(capsys.readouterr().out.split())
    assert ("picture to draw: .png, .pdf, .svg, .jpg" in printed) == (kind in ("show", "compare"))
    assert ("ranking file to write: .csv, .npz" in printed) == (kind not in ("show", "compare"))


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
        ("roberta --names nowhere.csv --out a.csv", "--names nowhere.csv: no such file"),
        ("roberta --names twice.txt --out a.csv", "--names twice.txt: class cat stands in it twice"),
        ("roberta --names empty.txt --out a.csv", "--names empty.txt: is empty"),
        ("roberta --names names.csv --template photo --out a.csv", "--template 'photo'"),
        ("roberta --data_folder nowhere --out a.csv", "--data_folder nowhere: no such folder"),
        ("roberta --out a.csv", "which classes? give --names, --data_folder, or both"),
        ("roberta --names names.csv --data_folder tree --out a.csv", "--names names.csv: n1 is no class of tree"),
        ("roberta --names few.csv --data_folder tree --out a.csv", "--names few.csv: lacks the class dog (1 in all)"),
        ("roberta --names wnid.txt --out a.csv", "the name of the wnid n99999999 is not known here"),
        ("wordnet --names names.csv --is_a nowhere.txt --out a.csv", "--is_a nowhere.txt: no such file"),
        ("superclass --from twice --out a.csv", "--from twice: the class cat lies in two superclasses"),
        ("features --ckpt nowhere --out a.csv", "--ckpt nowhere: no such file"),
        ("show rising.csv --thresholds 0.4 0.6", "--thresholds 0.4 0.6: must fall"),
        ("show r.csv --ranks --thresholds 0.4", "--ranks and --thresholds: give one of them"),
        ("superclass --from nowhere.yaml --out a.csv", "--from nowhere.yaml: no such file or folder"),
        ("superclass --from flat --out a.csv", "--from flat: it holds no folders"),
        ("noise --from nowhere.csv --out a.csv", "--from nowhere.csv: no such file"),
        ("noise --from r.csv --share 2 --out a.csv", "--share 2.0: must lie in [0, 1]"),
        ("show nowhere.csv", "nowhere.csv: no such file"),
        ("superclass --from r.csv --out a.csv", "--from r.csv: a CSV of superclasses is `class,<finest level>,..."),
        ("superclass --from few.csv --out a.csv", "or an image list `path,label,split,<finest level>,...`"),
        ("superclass --from r.npz --out a.csv", "--from r.npz: superclasses are a YAML file of lines"),
        (
            "noise --from twice.txt --out a.csv",
            "--from twice.txt: has 2 lines and 0 columns, 2 classes; it must be squ",
        ),
        ("noise --from r.csv --out a.yaml", "--out a.yaml: a ranking's name ends in .csv or .npz"),
        ("noise --from r.csv --out r.csv", "--out r.csv: is there already"),
        ("noise --from r.csv --out r.csv/a.csv", "--out "),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(monkeypatch, capsys, tmp_path, command, reason):
    (tmp_path / "names.csv").write_text("class,name\nn1,robin\n")
    (tmp_path / "twice.txt").write_text("cat\ndog\ncat\n")
    (tmp_path / "empty.txt").write_text("")
    for name in ("r.csv", "r.npz"):
        files.write_table(tmp_path / name, np.eye(2), ["a", "b"], "made")
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


def test_classes_of_a_data_set_that_ships_are_known_by_its_name(monkeypatch, capsys, tmp_path, encoder):
    assert files.read_names(Path("cifar100"))["aquarium_fish"] == "aquarium fish"
    make(monkeypatch, tmp_path, f"text --names digits --model {encoder} --out digits.csv")
    _, classes = files.read_table(tmp_path / "digits.csv")
    assert sorted(classes) == [str(digit) for digit in range(10)]
    assert "no such file" in error_of(monkeypatch, capsys, tmp_path, "text --names cifar101 --out x.csv")

"""Sentence encoders pool as their own files say, text towers give what their library gives; rankings come of both."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from commands import run
from made_data import make_image_folders, make_text_encoder
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from datasets import rankings
from datasets.rankings import files, make, text_encoders
from util import InputError

NAMES = ["robin", "gila monster", "a very long name of a class", "x"]
text = partial(run, script="rankings")
error_of = partial(commands.error_of, script="rankings")

# ---- sentence encoders -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A RoBERTa with random weights and a byte-level tokenizer, as a local folder."""
    return make_text_encoder(tmp_path_factory.mktemp("roberta"))


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
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].tolist()
    pooled = [x for mode in modes for x in pooled_by_hand(hidden, mode)]
    return [x / math.hypot(*pooled) for x in pooled]


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
    return folder


def older(*names):
    return {"word_embedding_dimension": 16, **{f"pooling_mode_{name}": name in names for name in text_encoders.MODES}}


POOLED = {
    "not named": ({}, ["mean"]),
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
    folder, words = configure(encoder, tmp_path / "model", config, kinds, side), " and ".join(modes)
    if name == "not named":
        (folder / "modules.json").unlink()
        (folder / "1_Pooling" / "config.json").unlink()
        words = "mean, since the model names none"
    found = text_encoders.load_encoder(str(folder))
    assert found.tokenizer.padding_side == side
    assert found.about == f"revision local folder, pooling {words}"
    together = text_encoders.embed_texts(NAMES, found)  # padded to the longest
    assert torch.allclose(text_encoders.embed_texts(NAMES, found, batch=1), together, atol=1e-5)
    for name, row in zip(NAMES, together.tolist(), strict=True):
        assert row == pytest.approx(by_hand(tmp_path / "model", name, modes), abs=1e-5)


def test_a_pooling_file_without_a_list_of_modules_counts_and_a_transformer_may_have_a_folder_of_its_own(
    tmp_path, encoder
):
    part = configure(encoder, tmp_path / "part", older("cls_token"))
    (part / "modules.json").unlink()
    assert text_encoders.load_encoder(str(part)).modes == ("cls",)
    whole = configure(encoder, tmp_path / "whole", older("max_tokens"))
    modules = json.loads((whole / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (whole / "modules.json").write_text(json.dumps(modules))
    shutil.copytree(encoder, whole / "0_Transformer")
    for file in encoder.iterdir():
        (whole / file.name).unlink()
    found = text_encoders.embed_texts(["robin"], text_encoders.load_encoder(str(whole)))[0]
    assert found.tolist() == pytest.approx(by_hand(encoder, "robin", ["max"]), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "limit", "most"),
    [({"max_seq_length": 7}, None, 7), ({"max_seq_length": 500}, 60, 60), (None, 60, 60), ({}, None, 78)],
    ids=["its settings", "its tokenizer", "no settings", "its position embeddings"],
)
def test_a_text_is_cut_to_the_length_that_the_model_reads(tmp_path, encoder, settings, limit, most):
    folder = configure(encoder, tmp_path / "model", older("mean_tokens"))
    if settings is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    if limit:
        words = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**words, "model_max_length": limit}))
    found = text_encoders.load_encoder(str(folder))
    assert found.most == most
    words, read = "a" * 200, "a" * (most - 2)  # a token a letter, and the two at the ends
    one, other = text_encoders.embed_texts([words], found), text_encoders.embed_texts([read], found)
    torch.testing.assert_close(one, other)
    assert not torch.allclose(text_encoders.embed_texts([read[:-1]], found), other)


@pytest.mark.parametrize(
    ("prompts", "prompt"),
    [
        ({"prompts": {"query": "find: ", "passage": "of: "}, "default_prompt_name": "query"}, "find: "),
        ({"prompts": {"query": "find: "}, "default_prompt_name": None}, ""),
        ({"__version__": {}}, ""),
    ],
)
def test_the_default_prompt_of_a_model_goes_before_each_text(tmp_path, encoder, prompts, prompt):
    folder = configure(encoder, tmp_path / "model", older("cls_token"))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    found = text_encoders.load_encoder(str(folder))
    assert ("prompt 'find: '" in found.about) == bool(prompt)
    for name, row in zip(NAMES, text_encoders.embed_texts(NAMES, found).tolist(), strict=True):
        assert row == pytest.approx(by_hand(folder, prompt + name, ["cls"]), abs=1e-5)
    if prompt:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(older("cls_token") | {"include_prompt": False}))
        with pytest.raises(InputError, match=r"1_Pooling/config.json: pools a text without its prompt"):
            text_encoders.load_encoder(str(folder))


DENSE = "sentence_transformers.models.Dense"


@pytest.mark.parametrize(
    ("config", "kinds", "reason"),
    [
        ({"pooling_mode": "attention"}, NEWER, "1_Pooling/config.json: the pooling ['attention'] is not known; cls,"),
        (older(), NEWER, "1_Pooling/config.json: the pooling [] is not known"),
        ({"pooling_mode": 3}, NEWER, "cannot be loaded"),
        (older("cls_token"), (TRANSFORMER, POOLING, DENSE), "modules.json must list Transformer, Pooling, Normalize"),
        (older("cls_token"), ("custom.Transformer", POOLING), "not ['custom.Transformer', 'Pooling']"),
        (older("cls_token"), (TRANSFORMER, POOLING, "sentence_transformers.Pooling"), "'Pooling', 'Pooling']"),
        ({}, "[", "cannot be loaded"),
        (None, NEWER, "has no 1_Pooling/config.json, which model/modules.json names"),
    ],
)
def test_a_pooling_that_is_not_known_is_one_line(monkeypatch, capsys, tmp_path, encoder, config, kinds, reason):
    (tmp_path / "names.csv").write_text("class,name\nn1,robin\n")
    folder = configure(encoder, tmp_path / "model", config, () if isinstance(kinds, str) else kinds)
    if isinstance(kinds, str):
        (folder / "modules.json").write_text(kinds)
    if config is None:
        (folder / "1_Pooling" / "config.json").unlink()
    line = error_of(monkeypatch, capsys, tmp_path, "text --names names.csv --model ./model --out a.csv")
    assert "--model ./model: " in line
    assert reason in line
    assert not (tmp_path / "a.csv").exists()


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
    assert text_encoders.find_file("some/model", "modules.json").read_text() == "[]"
    assert text_encoders.find_file("some/model", "1_Pooling/config.json") is None
    with pytest.raises(InputError, match=r"--model other/model: cannot be loaded .* `hf download other/model "):
        text_encoders.load_encoder("other/model")


def test_equal_texts_are_embedded_once_and_equal_whatever_their_place():
    seen = []

    def encoder(texts):
        seen.extend(texts)
        return torch.randn(len(texts), 8)  # as a place in a batch might have a say in the last bits

    texts = ["b", "a", "b", *(f"t{i}" for i in range(70)), "a"]
    found = text_encoders.embed_texts(texts, encoder)
    assert len(seen) == len(set(texts)) and found.shape == (74, 8)
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[-1]) and not torch.equal(found[0], found[1])


# ---- text towers -----------------------------------------------------------------------------------------------------

TOWERS = ["CLIP", "CLIPTextModelWithProjection", "CLIPTextModel", "Siglip", "SiglipTextModel", "Siglip2"]
SMALL = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
TEXT = dict(vocab_size=32, max_position_embeddings=40)
IMAGE = dict(image_size=8, patch_size=4)


def save_tokenizer(folder):
    """Letter by letter, an end token after each text."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<unk>", "<end>", *"abcdefghijklmnopqrstuvwxyz "])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing("$A <end>", None, [("<end>", 2)])
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", model_max_length=40
    )
    found.save_pretrained(folder)


def build_tower(name):
    """A pair of towers, or the one of texts, with random weights."""
    torch.manual_seed(0)
    family = re.match("CLIP|Siglip2?", name)[0]
    of_text, of_config = dict(projection_size=8), {}
    if family == "CLIP":
        of_config = dict(projection_dim=6)
        of_text = dict(**of_config, eos_token_id=2, bos_token_id=1, pad_token_id=0)
    text = getattr(transformers, f"{family}TextConfig")(**SMALL, **TEXT, **of_text)
    if name != family:
        return getattr(transformers, name)(text)
    image = getattr(transformers, f"{family}VisionConfig")(**SMALL, **IMAGE, **of_config)
    parts = {"text_config": text.to_dict(), "vision_config": image.to_dict()}
    return getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**parts, **of_config))


def features(model, inputs):
    """What the library itself gives for one text."""
    if hasattr(model, "get_text_features"):
        found = model.get_text_features(**inputs)
        return found if isinstance(found, torch.Tensor) else found.pooler_output
    found = model(**inputs)
    return found.text_embeds if hasattr(found, "text_embeds") else found.pooler_output


@pytest.fixture(scope="module", params=TOWERS)
def tower(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tower")
    model = build_tower(request.param).eval()
    model.save_pretrained(folder)
    save_tokenizer(folder)
    # as the library reads it: SigLIP 2 has a tokenizer of its own
    return folder, model, transformers.AutoTokenizer.from_pretrained(folder), "iglip" in request.param


def test_a_towers_embeddings_are_the_librarys_text_by_text_and_padding_changes_none(tower):
    folder, model, tokenizer, padded = tower
    encoder = text_encoders.load_encoder(str(folder))
    assert "text tower" in encoder.about
    together = text_encoders.embed_texts(NAMES, encoder)
    for name, row in zip(NAMES, together, strict=True):
        with torch.no_grad():
            if padded:
                inputs = tokenizer([name], padding="max_length", max_length=40, return_tensors="pt")
                inputs = {"input_ids": inputs["input_ids"]}
            else:
                inputs = tokenizer([name], return_tensors="pt")
                inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
            want = F.normalize(features(model, inputs).double(), dim=1)[0]
        assert row.tolist() == pytest.approx(want.tolist(), abs=1e-5)
        assert text_encoders.embed_texts([name], encoder)[0].tolist() == pytest.approx(want.tolist(), abs=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)
    assert text_encoders.embed_texts(["word " * 30], encoder).isfinite().all()  # too long, it is cut


def test_sentence_transformers_clip_is_read_where_its_list_of_modules_says(tmp_path):
    build_tower("CLIP").save_pretrained(tmp_path / "0_CLIPModel")
    save_tokenizer(tmp_path / "0_CLIPModel")
    kind = "sentence_transformers.models.CLIPModel"
    (tmp_path / "modules.json").write_text(json.dumps([{"type": kind, "path": "0_CLIPModel"}]))
    assert "text tower" in text_encoders.load_encoder(str(tmp_path)).about


# ---- rankings --------------------------------------------------------------------------------------------------------


def test_cosines_of_names_are_a_ranking_that_training_reads_and_say_how_they_were_made(monkeypatch, tmp_path, encoder):
    (tmp_path / "names.csv").write_text("class,name\nn1,robin\nn2,gila monster\nn3,robin\n")
    configure(encoder, tmp_path / "model", older("cls_token"))
    text(monkeypatch, tmp_path, "roberta --names names.csv --model ./model --out r.csv")
    table, classes = files.read_matrix(tmp_path / "r.csv")
    assert classes == ["n1", "n2", "n3"]
    want = np.dot(*(by_hand(tmp_path / "model", name, ["cls"]) for name in ("robin", "gila monster")))
    assert table[0, 1] == pytest.approx(want, abs=1e-5) and table[0, 2] == 1
    about = "# cosine of class names; model ./model, revision local folder, pooling cls, template '{}'"
    assert (tmp_path / "r.csv").read_text().splitlines()[0] == about
    similarity, _ = rankings.class_similarity(
        str(tmp_path / "r.csv"), classes, ranks=rankings.Ranks(thresholds=[0.9999])
    )
    assert similarity[0].tolist() == [1, 0.75 if table[0, 1] >= 0.9999 else 0, 0.75]


def test_names_come_from_folders_or_of_a_file_for_the_classes_of_a_folder(monkeypatch, tmp_path, encoder):
    make_image_folders(tmp_path / "mine", ["grey_wolf", "n01558993", "red+fox"], each=1)
    words = {"grey_wolf": "grey wolf", "n01558993": "robin", "red+fox": "red fox"}
    assert make.read_classes(None, tmp_path / "mine") == words
    (tmp_path / "names.csv").write_text("class,name\nred+fox,x\nn01558993,robin\ngrey_wolf,gila monster\n")
    text(monkeypatch, tmp_path, f"text --names names.csv --data_folder mine --model {encoder} --out r.csv")
    table, classes = files.read_matrix(tmp_path / "r.csv")
    assert classes == list(words)
    want = np.dot(by_hand(encoder, "robin"), by_hand(encoder, "gila monster"))
    assert table[0, 1] == pytest.approx(want, abs=1e-5)
    assert files.read_names(Path("cifar100"))["aquarium_fish"] == "aquarium fish"  # superclasses that ship name classes


def test_templates_are_averaged_as_unit_vectors(monkeypatch, tmp_path):
    build_tower("CLIP").save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    (tmp_path / "names.txt").write_text("robin\nlion\noak\n")
    templates = ["a photo of a {}", "the {}"]
    words = " ".join(f"'{t}'" for t in templates)
    text(monkeypatch, tmp_path, f"text --names names.txt --model ./model --template {words} --out r.csv")
    encoder = text_encoders.load_encoder(str(tmp_path / "model"))
    parts = [text_encoders.embed_texts([t.format(n) for n in ("robin", "lion", "oak")], encoder) for t in templates]
    mean = F.normalize(parts[0] + parts[1], dim=1)
    table, classes = files.read_matrix(tmp_path / "r.csv")
    assert np.allclose(table, (mean @ mean.T).numpy(), atol=1e-5) and classes == ["robin", "lion", "oak"]
    first = (tmp_path / "r.csv").read_text().splitlines()[0]
    assert first.endswith("text tower of CLIPModel, templates 'a photo of a {}', 'the {}'")


HUGGING_FACES = """
import sys
sys.argv[0] = "rankings.py"
import rankings
rankings.main()
from transformers.utils import import_utils
assert import_utils.is_datasets_available()
"""


@pytest.mark.parametrize("transformers_first", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_hugging_faces_package_of_the_same_name_is_not_in_the_way(tmp_path, encoder, transformers_first):
    """As where `pip install datasets` was run: a package and its metadata in site-packages."""
    (tmp_path / "site" / "datasets").mkdir(parents=True)
    (tmp_path / "site" / "datasets" / "__init__.py").write_text("__version__ = '5.2.0'\nclass Dataset: pass\n")
    (tmp_path / "site" / "datasets-5.2.0.dist-info").mkdir()
    (tmp_path / "site" / "datasets-5.2.0.dist-info" / "METADATA").write_text("Name: datasets\nVersion: 5.2.0\n")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    code = "import transformers\n" * transformers_first + HUGGING_FACES
    words = f"text --names {tmp_path}/names.txt --model {encoder} --out {tmp_path}/r.csv".split()
    world = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    subprocess.run([sys.executable, "-c", code, *words], cwd=commands.ROOT, env=world, check=True)
    assert files.read_matrix(tmp_path / "r.csv")[1] == ["cat", "dog"]

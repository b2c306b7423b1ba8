"""Text towers of models of images and texts, several templates, and rankings from a classifier's confusions."""

import json

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
import transformers
from commands import CE, error_of, run
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import datasets
from datasets.rankings import builders, files, text_encoders

NAMES = ["robin", "gila monster", "a very long name of a class"]
SMALL = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, projection_dim=6)
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


def clip():
    text = transformers.CLIPTextConfig(**SMALL, **TEXT, eos_token_id=2, bos_token_id=1, pad_token_id=0)
    return text, transformers.CLIPVisionConfig(**SMALL, **IMAGE)


def siglip(kind):
    of = dict(SMALL)
    of.pop("projection_dim")
    return (
        getattr(transformers, f"{kind}TextConfig")(**of, **TEXT, projection_size=8),
        getattr(transformers, f"{kind}VisionConfig")(**of, **IMAGE),
    )


def built(name):
    torch.manual_seed(0)
    if name.startswith("CLIP"):
        text, image = clip()
        if name == "CLIP":
            config = transformers.CLIPConfig(
                text_config=text.to_dict(), vision_config=image.to_dict(), projection_dim=6
            )
            return transformers.CLIPModel(config)
        return getattr(transformers, name)(text)
    if name.endswith("TextModel"):
        return getattr(transformers, name)(siglip(name.removesuffix("TextModel"))[0])
    text, image = siglip(name)
    config = getattr(transformers, f"{name}Config")(text_config=text.to_dict(), vision_config=image.to_dict())
    return getattr(transformers, f"{name}Model")(config)


def features(model, inputs):
    """What the library itself gives for one text."""
    if hasattr(model, "get_text_features"):
        found = model.get_text_features(**inputs)
        return found if isinstance(found, torch.Tensor) else found.pooler_output
    found = model(**inputs)
    return found.text_embeds if hasattr(found, "text_embeds") else found.pooler_output


TOWERS = ["CLIP", "CLIPTextModelWithProjection", "CLIPTextModel", "Siglip", "SiglipTextModel", "Siglip2"]


@pytest.fixture(scope="module", params=TOWERS)
def tower(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tower")
    model = built(request.param).eval()
    model.save_pretrained(folder)
    save_tokenizer(folder)
    # as the library reads it: SigLIP 2 has a tokenizer of its own
    return folder, model, transformers.AutoTokenizer.from_pretrained(folder), "iglip" in request.param


def test_a_towers_embeddings_are_the_librarys_text_by_text_and_padding_changes_none(tower):
    folder, model, tokenizer, padded = tower
    encoder = text_encoders.text_encoder(str(folder))
    assert "text tower" in encoder.about
    together = text_encoders.embed(NAMES, encoder)
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
        assert text_encoders.embed([name], encoder)[0].tolist() == pytest.approx(want.tolist(), abs=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_a_text_that_is_too_long_is_cut_as_the_tower_can_read_it(tower):
    encoder = text_encoders.text_encoder(str(tower[0]))
    assert text_encoders.embed(["word " * 30], encoder).isfinite().all()


def test_templates_are_averaged_as_unit_vectors(monkeypatch, tmp_path):
    built("CLIP").save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    (tmp_path / "names.txt").write_text("robin\nlion\noak\n")
    templates = ["a photo of a {}", "the {}"]
    words = " ".join(f"'{t}'" for t in templates)
    run(monkeypatch, tmp_path, f"text --names names.txt --model ./model --template {words} --out r.csv", "rankings")
    encoder = text_encoders.text_encoder(str(tmp_path / "model"))
    parts = [text_encoders.embed([t.format(n) for n in ("robin", "lion", "oak")], encoder) for t in templates]
    mean = F.normalize(parts[0] + parts[1], dim=1)
    table, classes = files.read_table(tmp_path / "r.csv")
    assert np.allclose(table, (mean @ mean.T).numpy(), atol=1e-5) and classes == ["robin", "lion", "oak"]
    first = (tmp_path / "r.csv").read_text().splitlines()[0]
    assert first.endswith("text tower, templates 'a photo of a {}', 'the {}'")


def test_sentence_transformers_clip_is_read_where_its_list_of_modules_says(tmp_path):
    built("CLIP").save_pretrained(tmp_path / "0_CLIPModel")
    save_tokenizer(tmp_path / "0_CLIPModel")
    kind = "sentence_transformers.models.CLIPModel"
    (tmp_path / "modules.json").write_text(json.dumps([{"type": kind, "path": "0_CLIPModel"}]))
    assert "text tower" in text_encoders.text_encoder(str(tmp_path)).about


# ---- what a classifier confuses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_confusions_equal_the_loop_reference(seed):
    counts = np.random.default_rng(seed).integers(0, 9, (5, 5)) + np.eye(5) * 30
    found = builders.confusion(counts)
    assert np.allclose(found, reference.confusion(counts.tolist()), atol=1e-6)
    assert (found == found.T).all() and (found.diagonal() == 1).all() and (found - np.eye(5)).max() < 0.5
    more_images = counts * np.array([[1], [7], [1], [2], [1]])  # of a class: its share of errors stays
    assert np.allclose(builders.confusion(more_images), found, atol=1e-6)


def test_classes_that_cannot_be_told_apart_have_a_half_and_a_stray_image_makes_none_alike():
    assert builders.confusion([[5, 5, 0], [5, 5, 0], [0, 0, 9]])[0].tolist() == [1, 0.5, 0]
    assert builders.confusion([[0, 9, 0], [9, 0, 0], [0, 0, 9]])[0].tolist() == [1, 0.75, 0]  # always swapped
    stray = builders.confusion([[0, 1, 99], [0, 0, 100], [0, 0, 100]])
    assert stray[0, 1] < 0.02 and stray[0, 2] == pytest.approx(0.99 / 1.99, abs=1e-6)


def test_a_classifiers_confusions_make_a_ranking_that_training_reads(monkeypatch, capsys, digits):
    run(monkeypatch, digits, f"confusion --ckpt {CE} --out confusion.csv", "rankings")
    printed = capsys.readouterr().out
    table, classes = files.read_table(digits / "confusion.csv")
    assert classes == datasets.build("digits").classes and 0 < table[np.triu_indices(10, 1)].max() < 0.5
    assert "confusions of a classifier on 355 images" in printed
    run(monkeypatch, digits, "show confusion.csv --thresholds 0.05 0.01", "rankings")
    run(monkeypatch, digits, "compare confusion.csv digits --thresholds 0.05", "rankings")


def test_counts_of_a_file_are_confusions_too(monkeypatch, tmp_path):
    (tmp_path / "c.csv").write_text("class,a,b,c\na,8,2,0\nb,0,10,0\nc,1,0,9\n")
    run(monkeypatch, tmp_path, "confusion --from c.csv --out r.csv", "rankings")
    table, classes = files.read_table(tmp_path / "r.csv")
    want = [[1, 0.2 / 2, 0.1 / 1.8], [0.2 / 2, 1, 0], [0.1 / 1.8, 0, 1]]  # of two classes, the wrong share
    assert np.allclose(table, want, atol=1e-6) and classes == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("words", "text", "reason"),
    [
        ("", "", "confusion: give --ckpt, a cross-entropy model, or --from, a CSV of counts"),
        ("--from c.csv --ckpt x", "", "confusion: give --ckpt, a cross-entropy model, or --from"),
        ("--from none.csv", "", "--from none.csv: no such file"),
        ("--from c.csv", "class,a,b\nb,1,2\na,3,4\n", "must be `class,a,b,...`, then a row for each of these"),
        ("--from c.csv", "class,a,b\na,1,x\nb,3,4\n", "line 2: must hold 2 numbers"),
        ("--from c.csv", "class,a,b\na,1,2\nb,-3,4\n", "line 3: holds counts below 0"),
        ("--from c.csv", "class,a,b\na,1,0\nb,0,4\n", "no image is taken for one of another class"),
        ("--from c.csv", "class,a,b\na,0,0\nb,0,4\n", "class 0 has no image"),
        ("--ckpt random", "", "is a contrastive model, which names no class"),
        (f"--ckpt {CE} --hold_out 3", "", "was trained on other classes than these images have"),
    ],
)
def test_what_gives_no_confusions_is_one_line(monkeypatch, capsys, digits, words, text, reason):
    (digits / "c.csv").write_text(text)
    assert reason in error_of(monkeypatch, capsys, digits, f"confusion {words} --out new.csv", "rankings")
    assert not (digits / "new.csv").exists()


def test_equal_texts_are_embedded_once_and_equal_whatever_their_place(monkeypatch):
    seen = []

    def vectors(texts):
        seen.extend(texts)
        return torch.randn(len(texts), 8)  # as a place in a batch might have a say in the last bits

    texts = ["b", "a", "b", *(f"t{i}" for i in range(70)), "a"]
    found = text_encoders.embed(texts, text_encoders.TextEncoder(lambda batch: batch, vectors, "made"))
    assert len(seen) == len(set(texts)) and found.shape == (74, 8)
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[-1]) and not torch.equal(found[0], found[1])

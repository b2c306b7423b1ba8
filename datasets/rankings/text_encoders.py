"""Similarity of classes from their names: sentence encoders, and the text towers of CLIP and SigLIP."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.folders import existing_folder
from datasets.rankings import pooling
from datasets.rankings.builders import cosine_matrix
from util import InputError, quiet, reason

ENCODER = "sentence-transformers/all-distilroberta-v1"


@dataclass(frozen=True)
class TextEncoder:
    """tokenize: texts -> the model's inputs; vectors: these -> [n, d], not normalised; about: revision and pooling, in
    words.
    """

    tokenize: Callable[[list[str]], Any]
    vectors: Callable[[Any], torch.Tensor]
    about: str


def embed(texts: list[str], encoder: TextEncoder, batch: int = 64) -> torch.Tensor:
    """[n, d] unit vectors of texts, in float64; equal texts are embedded once, for their place in a batch has a say."""
    found, number = [], {text: i for i, text in enumerate(dict.fromkeys(texts))}
    for start in range(0, len(number), batch):
        with torch.no_grad():
            found.append(encoder.vectors(encoder.tokenize([*number][start : start + batch])).double())
    return torch.nn.functional.normalize(torch.cat(found), dim=1)[[number[text] for text in texts]]


def text_encoder(name: str) -> TextEncoder:
    """The text encoder of a hub name or local folder: the text tower of a model of images and texts, or a sentence
    encoder with its own pooling, the mean of the tokens if it names none (Reimers and Gurevych 2019).

    Raises InputError if it cannot be had, or pools in a way that is not known.
    """
    local = name.startswith((".", "/", "~"))
    if local:  # no name of the hub: ask nobody
        existing_folder(Path(name).expanduser(), f"--model {name}")
    from transformers import AutoConfig, AutoTokenizer

    try:
        with quiet("huggingface_hub"):
            modes, part = pooling.configured(partial(_model_file, name), f"--model {name}")
            config = AutoConfig.from_pretrained(name, subfolder=part)
            tokenizer = AutoTokenizer.from_pretrained(name, subfolder=part)
            model = _model(name, part, config)
    except InputError:
        raise
    except Exception as error:  # no such folder, no network, a damaged file: transformers has an exception for each
        raise InputError(
            f"--model {name}: cannot be loaded ({reason(error)}); fetch it where there is a network, with "
            f"`hf download {ENCODER if local else name} --local-dir FOLDER`, and give --model FOLDER"
        ) from None
    revision = f"revision {getattr(model.config, '_commit_hash', None) or 'local folder'}"
    tower = _tower(model)
    if tower:
        words = "text tower" + ("" if hasattr(model, "get_text_features") else f", {type(model).__name__}")
        return TextEncoder(partial(_for_tower, tokenizer, config), tower, f"{revision}, {words}")
    words = f"pooling {' and '.join(modes)}" if modes else "pooling mean, since the model names none"
    vectors = partial(_pooled, model, modes or ("mean",))
    tokenize = partial(tokenizer, padding=True, truncation=True, return_tensors="pt")
    return TextEncoder(tokenize, vectors, f"{revision}, {words}")


def _model(name: str, part: str, config):
    """The model in evaluation, by the class that its file names where that is a tower of texts alone."""
    import transformers

    kind = (config.architectures or [""])[0]
    alone = kind.endswith(("TextModelWithProjection", "TextModel")) and hasattr(transformers, kind)
    return getattr(transformers, kind if alone else "AutoModel").from_pretrained(name, subfolder=part).eval()


def _tower(model) -> Callable | None:
    """Inputs -> [n, d] in the space that texts share with images; None of a model that knows no images."""
    if hasattr(model, "get_text_features"):  # a tensor, or since transformers 5 an output that holds it
        return lambda inputs: _tensor(model.get_text_features(**inputs), "pooler_output")
    if type(model).__name__.endswith("TextModelWithProjection"):
        return lambda inputs: _tensor(model(**inputs), "text_embeds")
    if re.fullmatch(r"(clip|siglip2?)_text_model", model.config.model_type):
        return lambda inputs: _tensor(model(**inputs), "pooler_output")
    return None


def _tensor(output, name: str) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else getattr(output, name)


def _for_tower(tokenizer, config, texts: list[str]):
    """SigLIP is trained on texts padded to one length, and sees the padding; CLIP on the end of a text."""
    of_text = getattr(config, "text_config", config)
    most = of_text.max_position_embeddings
    how = dict(padding="max_length") if "siglip" in config.model_type else dict(padding=True)
    inputs = tokenizer(texts, truncation=True, max_length=most, return_tensors="pt", **how)
    seen = ("input_ids",) if "siglip" in config.model_type else ("input_ids", "attention_mask")
    return {name: inputs[name] for name in seen}


def _pooled(model, modes: tuple[str, ...], inputs) -> torch.Tensor:
    """The last hidden states of a text's tokens, pooled."""
    return pooling.pool(model(**inputs).last_hidden_state.double(), inputs["attention_mask"], modes)


def _model_file(name: str, file: str) -> Path | None:
    """Where a file of a model lies, fetched from the hub where need be; None where the model has none such."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    import huggingface_hub as hub

    kept = hub.try_to_load_from_cache(name, file)
    if kept is hub._CACHED_NO_EXIST:
        return None
    try:
        return Path(kept or hub.hf_hub_download(name, file))
    except hub.errors.LocalEntryNotFoundError:  # no network: whether there is one cannot be known
        raise
    except hub.errors.EntryNotFoundError:
        return None


def of_names(names: dict[str, str], model: str, templates: list[str]) -> tuple[np.ndarray, list[str], str]:
    """Cosines [C, C] of the embeddings of class names, rounded to six places, the classes, and what they are, in words.

    names: class -> name; model: hub name or folder; templates: texts that hold {} once, for the name; of several, the
    unit vectors are averaged (Radford et al. 2021, sec. 3.1.4). Raises InputError.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(f"--template {template!r}: must hold {{}} once, for the name")
    nameless = [c for c, name in names.items() if re.fullmatch(r"n\d{8}", name)]
    if nameless:
        raise InputError(
            f"the name of the wnid {nameless[0]} is not known here ({len(nameless)} such); give --names with lines "
            "of wnid,name"
        )
    encoder = text_encoder(model)
    found = [embed([template.format(name) for name in names.values()], encoder) for template in templates]
    table = cosine_matrix(sum(found).numpy() if len(found) > 1 else found[0].numpy())
    several = "s" if len(templates) > 1 else ""
    words = f"template{several} {', '.join(map(repr, templates))}"
    return table, list(names), f"cosine of class names; model {model}, {encoder.about}, {words}"

"""Embeddings of texts: sentence encoders, and the text towers of CLIP and SigLIP.

How a sentence encoder pools a text's tokens stands beside it, as sentence-transformers writes it: `modules.json` lists
modules with `type` and `path`; the pooling module's `config.json` has `pooling_mode: cls`, a list of several, or in an
older form `pooling_mode_cls_token: true`.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.folders import check_folder
from util import InputError, quiet, reason

ENCODER = "sentence-transformers/all-distilroberta-v1"
SETTINGS = "sentence_bert_config.json"  # of the transformer module of sentence-transformers, of whatever kind
PROMPTS = "config_sentence_transformers.json"  # of the model: its prompts by name, and which is the default
UNLIMITED = 2**30  # tokens: a tokenizer that knows no limit names one above
# of pooling, as older files name them -> as newer ones
MODES = {
    "cls_token": "cls", "max_tokens": "max", "mean_tokens": "mean", "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean_tokens": "weightedmean", "lasttoken": "lasttoken",
}  # fmt: skip


def pool(hidden: Tensor, mask: Tensor, mode: str) -> Tensor:
    """[n, d] of the hidden states [n, t, d] of texts' tokens, by one of MODES; mask [n, t]: 1 for a token, 0 for
    padding, on either side. The weights of "weightedmean" are 1, 2, ... (SGPT, Muennighoff 2022).
    """
    if mode == "max":
        return hidden.masked_fill(mask[..., None] == 0, -torch.inf).amax(1)
    place = mask.cumsum(1) * mask  # 1, 2, ... of a text's tokens
    chosen = {"cls": place == 1, "weightedmean": place, "lasttoken": place == place.amax(1, keepdim=True)}
    weights = chosen.get(mode, mask).to(hidden)
    total = weights.sum(1, keepdim=True)
    return (hidden * weights[..., None]).sum(1) / (total.sqrt() if mode == "mean_sqrt_len_tokens" else total)


@dataclass(frozen=True)
class TextEncoder:
    """A model of transformers, with its tokenizer; modes: of pooling, () of a text tower; about: these, in words; most:
    tokens of a text that a sentence encoder reads, None: as many as its tokenizer says; prompt: before each text.
    """

    model: Any
    tokenizer: Any
    modes: tuple[str, ...]
    about: str
    most: int | None = None
    prompt: str = ""

    def __call__(self, texts: list[str]) -> Tensor:
        """[n, d] of texts, not normalized, on the model's device."""
        texts = [self.prompt + text for text in texts]
        if self.modes:
            inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=self.most, return_tensors="pt")
            inputs = inputs.to(self.model.device)
            hidden = self.model(**inputs).last_hidden_state.double()
            return torch.cat([pool(hidden, inputs["attention_mask"], mode) for mode in self.modes], 1)
        config = self.model.config
        siglip = "siglip" in config.model_type  # trained on texts padded to one length, it sees the padding
        how = dict(return_token_type_ids=False, return_attention_mask=not siglip, return_tensors="pt", truncation=True)
        most = getattr(config, "text_config", config).max_position_embeddings
        inputs = self.tokenizer(texts, padding="max_length" if siglip else True, max_length=most, **how)
        inputs = inputs.to(self.model.device)
        found = getattr(self.model, "get_text_features", self.model)(**inputs)
        if isinstance(found, Tensor):  # before transformers 5
            return found
        return found.text_embeds if "text_embeds" in found else found.pooler_output


def embed_texts(texts: list[str], encoder: Callable[[list[str]], Tensor], batch: int = 64) -> Tensor:
    """[n, d] unit vectors of texts, in float64; equal texts are embedded once, for their place in a batch has a say."""
    number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    with torch.no_grad():
        found = [encoder([*number][start : start + batch]).double().cpu() for start in range(0, len(number), batch)]
    return torch.nn.functional.normalize(torch.cat(found), dim=1)[[number[text] for text in texts]]


def load_encoder(name: str, flag: str = "--model") -> TextEncoder:
    """Load the text encoder of a hub name or local folder: the text tower of a model of images and texts, or a sentence
    encoder with its own pooling, the mean of the tokens if it names none (Reimers and Gurevych 2019).

    Raises InputError, naming `flag`, if it cannot be had, or pools in a way that is not known.
    """
    local = name.startswith((".", "/"))
    if local:  # no name of the hub: ask nobody
        check_folder(name, flag)
    import transformers

    try:
        with quiet("huggingface_hub"):
            modes, part = read_pooling(name, flag)
            config = transformers.AutoConfig.from_pretrained(name, subfolder=part)
            kind = (config.architectures or [""])[0]
            alone = kind.endswith(("TextModelWithProjection", "TextModel")) and hasattr(transformers, kind)
            model = getattr(transformers, kind if alone else "AutoModel").from_pretrained(name, subfolder=part).eval()
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, subfolder=part)
            settings = find_optional(name, f"{part}/{SETTINGS}" if part else SETTINGS) if modes else None
            prompt = read_prompt(name)
    except InputError:
        raise
    except Exception as error:  # no such folder, no network, a damaged file: transformers has an exception for each
        raise InputError(
            f"{flag} {name}: cannot be loaded ({reason(error)}); fetch it where there is a network, with "
            f"`hf download {ENCODER if local else name} --local-dir FOLDER`, and give {flag} FOLDER"
        ) from None
    revision = f"revision {getattr(model.config, '_commit_hash', None) or 'local folder'}"
    revision += f", prompt {prompt!r}" if prompt else ""
    if hasattr(model, "get_text_features") or re.fullmatch(r"(clip|siglip2?)_text_model", model.config.model_type):
        return TextEncoder(model, tokenizer, (), f"{revision}, text tower of {type(model).__name__}", prompt=prompt)
    words = f"pooling {' and '.join(modes)}" if modes else "pooling mean, since the model names none"
    most = find_length(model, tokenizer, settings)
    return TextEncoder(model, tokenizer, modes or ("mean",), f"{revision}, {words}", most, prompt)


def find_optional(name: str, file: str) -> Path | None:
    """As `find_file`; None also where the file cannot be had."""
    import huggingface_hub as hub

    try:
        return find_file(name, file)
    except hub.errors.LocalEntryNotFoundError:  # no network, and a cache of before this file was read
        return None


def read_prompt(name: str) -> str:
    """Return the default prompt of a model, as its PROMPTS say; "" without."""
    file = find_optional(name, PROMPTS)
    config = json.loads(file.read_text()) if file else {}
    default = config.get("default_prompt_name")
    return config["prompts"][default] if default else ""


def find_length(model, tokenizer, settings: Path | None) -> int | None:
    """How many tokens of a text a sentence encoder reads: as its SETTINGS say, and no more than its tokenizer and its
    position embeddings take; None where nothing says it.
    """
    given = json.loads(settings.read_text()).get("max_seq_length") if settings else None
    places, parts = getattr(model.config, "max_position_embeddings", None), dict(model.named_modules())
    padding = [
        x.padding_idx for name, x in parts.items() if name.endswith("position_embeddings") and hasattr(x, "padding_idx")
    ]
    if places and any(row is not None for row in padding):  # of RoBERTa, whose positions begin after that of padding
        places -= padding[0] + 1
    known = [length for length in (given, places, tokenizer.model_max_length) if length and length < UNLIMITED]
    return min(known, default=None)


def read_pooling(name: str, flag: str = "--model") -> tuple[tuple[str, ...], str]:
    """Return a model's pooling modes, () where its files name none, and the folder of its transformer in it ("":
    itself).

    Raises InputError for modes and modules that are not known here.
    """
    listed, pooling, part = find_file(name, "modules.json"), "1_Pooling", ""
    if listed:  # else maybe a copy of a part of the files
        modules = json.loads(listed.read_text())
        kinds = [re.sub(r"^sentence_transformers\.(.*\.)?", "", module["type"]) for module in modules]
        part = modules[0]["path"]
        if kinds == ["CLIPModel"]:  # pools by itself
            return (), part
        if kinds[:2] != ["Transformer", "Pooling"] or {*kinds[2:]} - {"Normalize"}:
            raise InputError(f"{flag} {name}: {listed} must list Transformer, Pooling, Normalize, not {kinds}")
        pooling = modules[1]["path"]
    place = find_file(name, f"{pooling}/config.json")
    if not place and listed:
        raise InputError(f"{flag} {name}: has no {pooling}/config.json, which {listed} names")
    if not place:
        return (), part
    config = json.loads(place.read_text())
    older = [key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on]
    found = config.get("pooling_mode", [MODES.get(mode, mode) for mode in older])
    found = [found] if isinstance(found, str) else found
    if not found or {*found} - {*MODES.values()}:
        raise InputError(f"{flag} {name}: {place}: the pooling {found} is not known; {', '.join(MODES.values())} are")
    if not config.get("include_prompt", True) and read_prompt(name):
        raise InputError(
            f"{flag} {name}: {place}: pools a text without its prompt, which this code cannot do; give another encoder"
        )
    return tuple(found), part


def find_file(name: str, file: str) -> Path | None:
    """Where a file of a model lies, fetched from the hub where need be; None where the model has none such."""
    if Path(name).is_dir():
        return Path(name, file) if Path(name, file).is_file() else None
    import huggingface_hub as hub

    kept = hub.try_to_load_from_cache(name, file)
    try:
        return None if kept is hub._CACHED_NO_EXIST else Path(kept or hub.hf_hub_download(name, file))
    except hub.errors.LocalEntryNotFoundError:  # no network: whether there is one cannot be known
        raise
    except hub.errors.EntryNotFoundError:
        return None

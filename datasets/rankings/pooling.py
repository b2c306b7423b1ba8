"""How a text encoder makes one vector of a text's tokens: what its own files say of it, and the arithmetic.

sentence-transformers leaves beside a model `modules.json`, a list of modules with `type` and `path`, and in the folder
of the pooling module a `config.json` that says `pooling_mode: cls`, a list of several, or in the older form one boolean
a mode, `pooling_mode_cls_token: true`.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from util import InputError

# ---- arithmetic: hidden [n, t, d], mask [n, t] of 0 and 1, padded on either side, -> [n, d] --------------------------


def _weighted(hidden: Tensor, weights: Tensor) -> Tensor:
    return (hidden * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)


def _cls(hidden, mask):
    return hidden[torch.arange(len(mask)), mask.argmax(1)]  # argmax: the first of equal ones


def _last(hidden, mask):
    return hidden[torch.arange(len(mask)), mask.shape[1] - 1 - mask.flip(1).argmax(1)]


def _max(hidden, mask):
    return hidden.masked_fill(mask[..., None] == 0, -torch.inf).amax(1)


def _mean(hidden, mask):
    return _weighted(hidden, mask)


def _mean_sqrt(hidden, mask):
    return _weighted(hidden, mask) * mask.sum(1, keepdim=True).sqrt()


def _by_position(hidden, mask):
    """Weights 1, 2, ... of a text's tokens (SGPT, Muennighoff 2022)."""
    return _weighted(hidden, mask * mask.cumsum(1))


MODES = {
    "cls": _cls, "max": _max, "mean": _mean, "mean_sqrt_len_tokens": _mean_sqrt, "weightedmean": _by_position,
    "lasttoken": _last,
}  # fmt: skip
OLDER = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip


def pool(hidden: Tensor, mask: Tensor, modes: tuple[str, ...]) -> Tensor:
    """[n, t, d] hidden states of the tokens, [n, t] which of them are of the text -> [n, d], d times as many modes."""
    return torch.cat([MODES[mode](hidden, mask.to(hidden)) for mode in modes], dim=1)


# ---- a model's own files ---------------------------------------------------------------------------------------------


def configured(fetch: Callable[[str], Path | None], source: str) -> tuple[tuple[str, ...] | None, str]:
    """A model's pooling modes, None where its files name none, and the folder of its transformer in it ("": itself).

    fetch: file name -> where the model's file is; None if it has none such. Raises InputError, beginning with `source`,
    for modes and modules that are not known here.
    """
    listed = fetch("modules.json")
    if listed is None:  # a copy of a part of the files
        place = fetch("1_Pooling/config.json")
        return place and _modes(place, source), ""
    modules = _read(listed, list, source)
    try:
        kinds = [(module["type"], module["path"]) for module in modules]
        names = [kind.rpartition(".")[2] if kind.startswith("sentence_transformers.") else kind for kind, _ in kinds]
    except (TypeError, KeyError, AttributeError):
        raise InputError(f"{source}: {listed} is not a list of modules with type and path") from None
    if names == ["CLIPModel"]:  # pools by itself
        return None, kinds[0][1]
    for name in names:
        if name not in ("Transformer", "Pooling", "Normalize"):
            raise InputError(f"{source}: {listed} has a module {name}; only Transformer, Pooling, Normalize are known")
    if names[:2] != ["Transformer", "Pooling"] or set(names[2:]) - {"Normalize"}:
        raise InputError(f"{source}: {listed} has the modules {', '.join(names)}; Transformer, Pooling must come first")
    file = f"{kinds[1][1]}/config.json"
    place = fetch(file)
    if place is None:
        raise InputError(f"{source}: has no {file}, which {listed} names")
    return _modes(place, source), kinds[0][1]


def _modes(place: Path, source: str) -> tuple[str, ...]:
    content = _read(place, dict, source)
    found = content.get("pooling_mode")
    if found is None:
        older = [key for key, value in content.items() if key.startswith("pooling_mode_") and value]
        found = [OLDER.get(key, key) for key in older]
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not found:
        raise InputError(f"{source}: {place} names no pooling mode")
    for mode in found:
        if mode not in MODES:
            raise InputError(f"{source}: {place}: the pooling {mode} is not known; {', '.join(MODES)} are")
    return tuple(found)


def _read(path: Path, kind: type, source: str):
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: {path} is not readable as JSON ({error})") from None
    if not isinstance(content, kind):
        raise InputError(f"{source}: {path} is a {type(content).__name__}, not a {kind.__name__}")
    return content

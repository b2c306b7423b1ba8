"""The card of an exported encoder: what is known of the weights beside it."""

import json
from pathlib import Path
from typing import Any

WEIGHTS, CARD = "encoder.safetensors", "encoder.json"
FORMAT = 1


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float)


def read_card(path: Path) -> dict[str, Any]:
    """A card of `save`. Raises ValueError, which names the path, where it is none."""
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: is no card of an encoder ({error})") from None
    if not isinstance(card, dict) or not card.keys() >= {"format", "encoder", "small_stem", "size"}:
        raise ValueError(f"{path}: is no card of an encoder, which has format, encoder, small_stem and size")
    three = {name: card.get(name) for name in ("mean", "std") if card.get(name) is not None}
    forms = {"encoder": str, "small_stem": bool, "size": int, "options": dict}
    wrong = [name for name, form in forms.items() if not isinstance(card.get(name, form()), form)]
    wide = card["size"] if "normalize" in card else 3  # of vectors, a number for each dimension
    wrong += [n for n, x in three.items() if not isinstance(x, list) or len(x) != wide or not all(map(_is_number, x))]
    if wrong or len(three) == 1:
        raise ValueError(f"{path}: is no card of an encoder: its {wrong[0] if wrong else 'mean or std'} is none")
    if card["format"] != FORMAT:
        raise ValueError(f"{path}: has format {card['format']}, this version reads {FORMAT}; update this code")
    return card

"""The card of an exported encoder: what is known of the weights beside it."""

import json
from pathlib import Path
from typing import Any

WEIGHTS, CARD = "encoder.safetensors", "encoder.json"
FORMAT = 1


def read_card(path: Path) -> dict[str, Any]:
    """A card of `save`. Raises ValueError, which names the path, where it is none."""
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: is no card of an encoder ({error})") from None
    if not isinstance(card, dict) or not card.keys() >= {"format", "encoder", "small_stem", "size"}:
        raise ValueError(f"{path}: is no card of an encoder, which has format, encoder, small_stem and size")
    if card["format"] != FORMAT:
        raise ValueError(f"{path}: has format {card['format']}, this version reads {FORMAT}; update this code")
    return card

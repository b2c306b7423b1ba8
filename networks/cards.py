"""The model card of an exported encoder: what is known of the weights next to it."""

import json
from pathlib import Path
from typing import Any

WEIGHTS, CARD = "encoder.safetensors", "encoder.json"
FORMAT = 1


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float)


def read_card(path: Path) -> dict[str, Any]:
    """Read a model card that ``exported.save`` wrote.

    Args:
        path: The file.

    Returns:
        What the card says, by key.

    Raises:
        ValueError: If the file is not a model card, or of a later version; the message names the path.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "encoder.json"
        ...     _ = path.write_text('{"format": 1, "encoder": "resnet18", "small_stem": false, "size": 224}')
        ...     print(read_card(path)["encoder"])
        resnet18
    """
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: is not a model card ({error})") from None
    if not isinstance(card, dict) or not card.keys() >= {"format", "encoder", "small_stem", "size"}:
        raise ValueError(f"{path}: is not a model card: it must have format, encoder, small_stem and size")
    three = {name: card.get(name) for name in ("mean", "std") if card.get(name) is not None}
    forms = {"encoder": str, "small_stem": bool, "size": int, "options": dict}
    wrong = [name for name, form in forms.items() if not isinstance(card.get(name, form()), form)]
    wide = card["size"] if "normalize" in card else 3  # of vectors, a number for each dimension
    wrong += [n for n, x in three.items() if not isinstance(x, list) or len(x) != wide or not all(map(_is_number, x))]
    if wrong or len(three) == 1:
        raise ValueError(f"{path}: is not a model card: its {wrong[0] if wrong else 'mean or std'} is invalid")
    if card["format"] != FORMAT:
        raise ValueError(f"{path}: has format {card['format']}, this version reads {FORMAT}; update this code")
    return card

"""An exported encoder: weights in safetensors under its library's names, and a model card."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from . import encoders, resnet, vectors
from .cards import CARD, FORMAT, WEIGHTS, read_card


def find_library(name: str, small_stem: bool) -> str:
    """Return which library makes an encoder of the same weights.

    Args:
        name: Name of the encoder.
        small_stem: Whether it has the 3x3 stem of small images.

    Returns:
        ``timm``, ``torchvision``, or ``rince`` for the 3x3 stem and the narrow ResNets, which only this project has.

    Examples:
        >>> find_library("resnet18", small_stem=False)
        'torchvision'
    """
    if encoders.is_timm(name):
        return "timm"
    return "rince" if small_stem or resnet.base_name(name) in resnet.NARROW else "torchvision"


def write_recipe(name: str, library: str, size: int) -> str:
    """Write lines of Python that read the weights back with a library.

    Args:
        name: Name of the encoder.
        library: ``timm``, ``torchvision`` or ``rince``.
        size: Side of the images in pixels.

    Returns:
        The lines.

    Examples:
        >>> print(write_recipe("resnet20", "rince", size=32))
        from rince.networks import exported
        model, card = exported.load("FOLDER")
    """
    read = f'load_file("{WEIGHTS}")'
    begin = "from safetensors.torch import load_file\n"
    if library == "timm":
        model = f'model = timm.create_model("{name.removeprefix(encoders.TIMM)}", num_classes=0'
        fixed = ", img_size=" + str(size) if encoders.made_for_a_size(name) else ""
        return f"import timm\n{begin}{model}{fixed})\nmodel.load_state_dict({read})"
    if library == "torchvision":
        model = f"model = torchvision.models.{resnet.base_name(name)}()\nmodel.fc = torch.nn.Identity()\n"
        return f"import torch, torchvision\n{begin}{model}model.load_state_dict({read})"
    return 'from rince.networks import exported\nmodel, card = exported.load("FOLDER")'


def save(folder: str | Path, encoder: nn.Module, card: dict[str, Any]) -> dict[str, Any]:
    """Write an encoder and its model card into a folder, which must hold neither.

    Args:
        folder: The folder, made where it is missing.
        encoder: The encoder.
        card: What is known of it, of plain types; ``encoder``, its name, and ``size`` are required.

    Returns:
        The whole card: format, library, small_stem, dim and how_to_load are added.

    Raises:
        FileExistsError: If the folder holds an encoder or a card.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     card = save(folder, encoders.encoder("resnet8"), {"encoder": "resnet8", "size": 32})
        >>> card["library"], card["dim"]
        ('rince', 64)
    """
    from safetensors.torch import save_file

    weights = {name: x.detach().cpu().contiguous().clone() for name, x in encoder.state_dict().items()}
    small = resnet.has_small_stem(weights)
    library = "rince" if card["encoder"] in vectors.NAMES else find_library(card["encoder"], small)
    own = {"format": FORMAT, "library": library, "small_stem": small, "dim": encoder.dim}
    own["how_to_load"] = write_recipe(card["encoder"], library, card["size"])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / WEIGHTS).exists() or (folder / CARD).exists():
        raise FileExistsError(f"{folder} holds an encoder already")
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CARD).write_text(json.dumps(card | own, indent=1) + "\n")
    return card | own


def load(folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load the encoder of a folder that ``save`` wrote, in eval mode, and its model card.

    Args:
        folder: The folder.

    Returns:
        The encoder, (N, 3, size, size) to (N, dim), and the card. An encoder of features takes (N, size), which it
        normalizes itself.

    Raises:
        ValueError: If the card is invalid or of a later version.
        RuntimeError: If the weights are not those of the card's encoder.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     card = save(folder, encoders.encoder("resnet8"), {"encoder": "resnet8", "size": 32})
        ...     encoder, card = load(folder)
        >>> encoder.training, card["encoder"]
        (False, 'resnet8')
    """
    from safetensors.torch import load_file

    card = read_card(Path(folder) / CARD)
    weights = load_file(Path(folder) / WEIGHTS)
    if card["encoder"] in vectors.NAMES:
        return vectors.build_vector_model(card["encoder"], weights, card), card
    encoder = encoders.encoder(card["encoder"], card["small_stem"], card["size"])
    encoder.load_state_dict(weights)
    return encoder.eval(), card

"""An encoder to take away: weights as safetensors under its library's names, and a card beside them in JSON."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from . import encoders, resnet, vectors
from .cards import CARD, FORMAT, WEIGHTS, read_card


def find_library(name: str, small_stem: bool) -> str:
    """Which library makes an encoder of the same weights: "timm", "torchvision", or, of the 3x3 stem and the narrow
    ResNets, none but this one, "rince".
    """
    if encoders.is_timm(name):
        return "timm"
    return "rince" if small_stem or resnet.base_name(name) in resnet.NARROW else "torchvision"


def write_recipe(name: str, library: str, size: int) -> str:
    """Lines of Python that read the weights back with that library."""
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
    """Write an encoder and its card into a folder, which must hold neither; returns the whole card.

    card: of plain types; `encoder`, its name, and `size` are needed. What the card says of the weights themselves is
    added: format, library, small_stem, dim, how_to_load.
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
    """The encoder of a folder that `save` wrote, in eval mode: [N, 3, size, size] -> [N, dim], of vectors [N, size] ->
    [N, dim], which it normalizes itself; and its card.

    Raises ValueError where the card is none, or is of a version to come; RuntimeError where the weights are not its
    encoder's.
    """
    from safetensors.torch import load_file

    card = read_card(Path(folder) / CARD)
    weights = load_file(Path(folder) / WEIGHTS)
    if card["encoder"] in vectors.NAMES:
        return vectors.build_vector_model(card["encoder"], weights, card), card
    encoder = encoders.encoder(card["encoder"], card["small_stem"], card["size"])
    encoder.load_state_dict(weights)
    return encoder.eval(), card

"""Checkpoints: plain dictionaries of tensors and plain types, written whole or not at all, read without code."""

import os
from pathlib import Path

import torch
from torch import nn

from util import InputError

FORMAT = 1


def save(path: Path, state: dict) -> None:
    """Write to a temporary name, sync, rename: a crash leaves the file before it. Call on the main process only."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path, flag: str = "--ckpt") -> dict:
    """Read a checkpoint on the CPU with weights_only=True; a folder means its last.pth. `flag` is named in errors."""
    path = Path(path)
    path = path / "last.pth" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{flag} {path}: no such file; give a checkpoint, or a run's folder that holds last.pth")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load meets damage in many ways, each with an exception of its own
        raise InputError(f"{flag} {path}: not a readable checkpoint ({type(error).__name__})") from None
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise InputError(f"{flag} {path}: holds no model of this project")
    return state


def load_encoder(path, encoder: nn.Module) -> dict:
    """Fill `encoder` with the query encoder of a checkpoint, strictly; returns the whole checkpoint.

    Raises InputError naming the first keys that are missing, left over, or of another shape.
    """
    state = load(path)
    prefix = "encoder."
    weights = {k.removeprefix(prefix): v for k, v in state["model"].items() if k.startswith(prefix)}
    load_strictly(encoder, weights, f"--ckpt {path}")
    return state


def load_strictly(module: nn.Module, weights: dict, source: str) -> None:
    """load_state_dict that names what differs in one line, before anything is changed."""
    own = module.state_dict()
    differences = [f"{k} is missing" for k in own if k not in weights]
    differences += [f"{k} is left over" for k in weights if k not in own]
    differences += [
        f"{k} has shape {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise InputError(f"{source}: of another architecture: {'; '.join(differences[:3])}{more}; check --model")
    module.load_state_dict(weights)

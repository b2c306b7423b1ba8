"""Going on with a checkpoint: what would change what the run means is named or refused before any of it is used."""

import hashlib
import os

import numpy as np
import torch
from torch import Tensor, nn

import util
from datasets.features import FeatureRows
from engine.cli.parsing import Means, Options
from engine.train.optimization import MOMENTA
from util import InputError


def find_changed_options(before: dict, now: dict, about: Options, flag: str) -> dict[str, str]:
    """By name, in words: the options of a resumed run that are not as before and leave the mathematics another.
    InputError, beginning with `flag`, where weights would mean something else.
    """
    before = {"optimizer": "sgd", "targets": "hard", "heads": 1, **before}  # older runs had no other
    spelling = about.spelling
    changed = [n for n in now if n in before and before[n] != now[n]]
    for name in changed:
        if Means.FIXED in about.means[name]:
            raise InputError(f"{flag}: was trained with {spelling[name]} {before[name]}, not {now[name]}")
    return {n: f"{spelling[n]} {now[n]} (was {before[n]})" for n in changed if Means.FREE not in about.means[n]}


def find_changed_files(before: dict | None, now: dict, means: dict[str, Means]) -> dict[str, str]:
    """Likewise, the options whose files (config.files_of) have another content than before."""
    before = before if isinstance(before, dict) else {}  # of an older version
    changed = [f for f in now if before.get(f, now[f]) != now[f]]
    found = {f.removeprefix("--").partition(" ")[0]: f"{f} (its content was another)" for f in changed}
    return {name: text for name, text in found.items() if Means.FREE not in means[name]}


def describe_images(images) -> dict:
    """Return what a checkpoint keeps of the training images, paths, an array or rows of features: how many there are,
    and a check sum, of paths below the folder that holds all of them, which may be moved, or packed; of the numbers of
    rows.
    """
    if isinstance(images, FeatureRows):
        return {"count": len(images), "names": hashlib.sha256(images.rows.numpy().tobytes()).hexdigest()}
    if isinstance(images, np.ndarray):
        return {"count": len(images), "names": None}
    paths = [os.fspath(image) for image in images]
    root = len(os.path.dirname(os.path.commonprefix([min(paths), max(paths)])))  # noqa: RUF071 (a folder, by dirname)
    names = util.one_form("\0".join("/" + path[root:].lstrip("/") for path in paths)).encode(errors="surrogateescape")
    return {"count": len(images), "names": hashlib.sha256(names).hexdigest()}


def check_images(before: dict | None, now: dict, flag: str, folder: str) -> None:
    """Raise InputError, beginning with `flag`, where the training images (describe_images) were others before; of
    an older version, nobody knows.
    """
    if not isinstance(before, dict) or before == now:
        return
    fault = f"was trained on images of other names, or in another order, than --data_folder {folder} has"
    if before.get("count") != now["count"]:
        fault = f"was trained on {before.get('count')} images, --data_folder {folder} has {now['count']}"
    raise InputError(f"{flag}: {fault}; give the images that it was trained on, or start a new run")


def is_other_ranking(saved, now) -> bool:
    """Whether a checkpoint's ranking is another than the run's (objective.build_loss): other entries or numbers."""
    if not isinstance(saved, dict) or now is None or saved.keys() != now.keys():
        return True
    return any(not _equal(saved[k], now[k]) if isinstance(now[k], Tensor) else saved[k] != now[k] for k in now)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tables hold the same, but for how the last digits were read."""
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=0, atol=1e-7)


def check_state(state: dict, model: nn.Module, optimizer: torch.optim.Optimizer, classes: int, flag: str) -> None:
    """Raise InputError, one line that begins with `flag`, where a checkpoint is of other parameters than this model's,
    or of other labels than these classes'; nothing is changed. What else would not fit, loading itself notices.
    """
    momenta, parameters = _momenta(state["optimizer"], optimizer), _parameters(optimizer)
    if len(momenta) != len(parameters):
        raise InputError(f"{flag}: its optimizer is of {len(momenta)} parameters, the model has {len(parameters)}")
    for i, (of_parameter, p) in enumerate(zip(momenta, parameters, strict=True)):
        for name, momentum in of_parameter.items():
            shape = () if name == "step" else tuple(p.shape)
            if tuple(momentum.shape) != shape:
                fault = f"has shape {tuple(momentum.shape)} instead of {shape}"
                raise InputError(f"{flag}: its optimizer's {name} {i} {fault}; it is of another model")
    labels = state["model"].get("bank.labels")
    if hasattr(model, "bank") and labels is not None and not -1 <= int(labels.min()) <= int(labels.max()) < classes:
        found = f"from {int(labels.min())} to {int(labels.max())}"  # on a GPU, one beyond the table ends the process
        raise InputError(f"{flag}: its bank has labels {found}, of {classes} classes; it was changed")


def _momenta(saved: dict, optimizer: torch.optim.Optimizer) -> list[dict[str, Tensor]]:
    """By parameter: of what torch saves of an optimizer, the MOMENTA, which a run takes; all else are its options."""
    states = [saved["state"].get(i, {}) for group in saved["param_groups"] for i in group["params"]]
    names = MOMENTA[type(optimizer)]
    return [{name: state[name] for name in names if state.get(name) is not None} for state in states]


def _parameters(optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def take_momenta(saved: dict, optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer the momenta of a checked checkpoint, each in the layout in memory of its parameter.

    Fused steps go by memory order: a momentum in another layout would meet other weights than its own. The rate is the
    last step's, until the next one sets it; decay and momentum's share stay as the run's options say.
    """
    for group in optimizer.param_groups:
        group["lr"] = saved["param_groups"][0]["lr"]
    for momenta, p in zip(_momenta(saved, optimizer), _parameters(optimizer), strict=True):
        for name, momentum in momenta.items():
            place = torch.empty((), device=p.device) if name == "step" else torch.empty_like(p, requires_grad=False)
            optimizer.state[p][name] = place.copy_(momentum)

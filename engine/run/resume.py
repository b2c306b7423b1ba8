"""Going on with a checkpoint: all of its content is held against the run before any of it is used."""

import hashlib
import itertools
import os
import random
from collections.abc import Iterator
from numbers import Real

import numpy as np
import torch
from torch import Tensor, nn

import util
from engine.cli.parsing import Means
from engine.train.optimization import MOMENTA
from util import InputError

NAMES = {"momentum_buffer": "momentum"}


def changed_options(before: dict, now: dict, means: dict[str, Means], flag: str) -> dict[str, str]:
    """By name, in words: the options of a resumed run that are not as before and leave the mathematics another.
    InputError, beginning with `flag`, where weights would mean something else.
    """
    before = {"optimizer": "sgd", **before}  # older runs had no other
    changed = [n for n in now if n in before and before[n] != now[n]]
    for name in changed:
        if Means.FIXED in means[name]:
            raise InputError(f"{flag}: was trained with --{name} {before[name]}, not {now[name]}")
    return {n: f"--{n} {now[n]} (was {before[n]})" for n in changed if Means.FREE not in means[n]}


def changed_files(before: dict | None, now: dict, means: dict[str, Means]) -> dict[str, str]:
    """Likewise, the options whose files (config.files_of) have another content than before."""
    before = before if isinstance(before, dict) else {}  # of an older version
    changed = [f for f in now if before.get(f, now[f]) != now[f]]
    found = {f.removeprefix("--").partition(" ")[0]: f"{f} (its content was another)" for f in changed}
    return {name: text for name, text in found.items() if Means.FREE not in means[name]}


def seen_images(images) -> dict:
    """What a checkpoint keeps of the training images, paths or an array: how many there are, and, of paths, a check sum
    of those below the folder that holds all of them, which may be moved, or packed.
    """
    if isinstance(images, np.ndarray):
        return {"count": len(images), "names": None}
    paths = [os.fspath(image) for image in images]
    root = len(os.path.dirname(os.path.commonprefix([min(paths), max(paths)])))  # noqa: RUF071 (a folder, by dirname)
    names = util.one_form("\0".join("/" + path[root:].lstrip("/") for path in paths)).encode(errors="surrogateescape")
    return {"count": len(images), "names": hashlib.sha256(names).hexdigest()}


def check_images(before: dict | None, now: dict, flag: str, folder: str) -> None:
    """Raise InputError, beginning with `flag`, where the training images (seen_images) were others before; of an older
    version, nobody knows.
    """
    if not isinstance(before, dict) or before == now:
        return
    fault = f"was trained on images of other names, or in another order, than --data_folder {folder} has"
    if before.get("count") != now["count"]:
        fault = f"was trained on {before.get('count')} images, --data_folder {folder} has {now['count']}"
    raise InputError(f"{flag}: {fault}; give the images that it was trained on, or begin a run of its own")


def differs(saved, now) -> bool:
    """Whether a checkpoint's ranking is another than the run's (factory.build_loss): other entries or numbers."""
    if not isinstance(saved, dict) or now is None or saved.keys() != now.keys():
        return True
    return any(not _equal(saved[k], now[k]) if isinstance(now[k], Tensor) else saved[k] != now[k] for k in now)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tables hold the same, but for how the last digits were read."""
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=0, atol=1e-7)


def check(state: dict, model: nn.Module, optimizer: torch.optim.Optimizer, counts: tuple, flag: str) -> None:
    """Raise InputError, one line that begins with `flag`, where a checkpoint's content is not what a run of this model
    and optimiser saves; nothing is changed.

    counts: the run's classes, and steps an epoch (None: they are not the checkpoint's).
    """
    classes, steps = counts
    for fault in itertools.chain(
        _progress(state, steps),
        _optimizer(state["optimizer"], optimizer),
        _processes(state.get("processes") or []),
        _bank(state["model"], model, classes),
    ):
        raise InputError(f"{flag}: {fault}; it is no checkpoint of this code, or was changed")


def _is_count(value) -> bool:
    return type(value) is int and value >= 0


def _progress(state: dict, steps: int | None) -> Iterator[str]:
    for name in ("epoch", "step"):
        if not _is_count(state.get(name, 0)):
            yield f"its {name} is {state[name]!r}"
            return
    if steps is not None and state.get("step", 0) > steps:
        yield f"its step is {state['step']} of {steps}"
    for name in ("best", "latest", "scaler"):
        entry = state.get(name) or {}
        if not isinstance(entry, dict) or not all(isinstance(v, Real) for v in entry.values()):
            yield f"its entry {name} does not hold numbers by name"


def _optimizer(saved, optimizer: torch.optim.Optimizer) -> Iterator[str]:
    """Of what torch saves of an optimiser, a run takes the MOMENTA; all else are its options."""
    if not _has_optimizer_form(saved):
        yield "its optimiser has not the form that torch saves"
        return
    parameters, ids, names = _parameters(optimizer), _ids(saved), MOMENTA[type(optimizer)]
    if len(ids) != len(parameters) or len(set(ids)) != len(ids):
        yield f"its optimiser is of {len(ids)} parameters, the model has {len(parameters)}"
        return
    for i, p in zip(ids, parameters, strict=True):
        momenta = {name: x for name, x in saved["state"].get(i, {}).items() if name in names and x is not None}
        if momenta and momenta.keys() != set(names):
            yield f"its optimiser's state {i} has {', '.join(momenta)} alone"
        for name, momentum in momenta.items():
            shape, called = () if name == "step" else tuple(p.shape), f"its optimiser's {NAMES.get(name, name)} {i}"
            if not isinstance(momentum, Tensor) or not momentum.is_floating_point() or momentum.is_sparse:
                yield f"{called} is no tensor of fractions"
            elif momentum.shape != shape:
                yield f"{called} has shape {tuple(momentum.shape)} instead of {shape}"


def _has_optimizer_form(saved) -> bool:
    return (
        isinstance(saved, dict)
        and isinstance(saved.get("state"), dict)
        and all(isinstance(entry, dict) for entry in saved["state"].values())
        and isinstance(saved.get("param_groups"), list)
        and all(isinstance(g, dict) and isinstance(g.get("params"), list) for g in saved["param_groups"])
        and all(isinstance(g.get("lr"), Real) for g in saved["param_groups"])
        and bool(saved["param_groups"])
        and all(type(i) is int for i in _ids(saved))
    )


def _ids(saved: dict) -> list[int]:
    return [i for group in saved["param_groups"] for i in group["params"]]


def _parameters(optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _processes(processes) -> Iterator[str]:
    if not isinstance(processes, list) or not all(isinstance(p, dict) for p in processes):
        yield "its entry processes is no list of what each process had"
        return
    for process in processes:
        skipped, means = process.get("skipped"), process.get("means")
        if not isinstance(skipped, list) or not all(_is_count(i) for i in skipped):
            yield "its list of skipped images does not hold their numbers"
        if not isinstance(means, list) or not all(map(_is_mean, means)):
            yield "its running means are not pairs of a sum and a count"
        if not _can_be_set(process.get("random")):
            yield "its random numbers cannot be gone on with"


def _is_mean(mean) -> bool:
    if not isinstance(mean, list) or len(mean) != 2 or not _is_count(mean[1]):
        return False
    return isinstance(mean[0], Tensor) and mean[0].dtype == torch.float64 if mean[1] else True


def _can_be_set(state) -> bool:
    """Whether this is a `checkpoint.random_state`, tried on generators that nothing uses."""
    try:
        random.Random().setstate(state["python"])
        kind, keys, *rest = state["numpy"]
        np.random.RandomState().set_state((kind, np.array(keys, np.uint32), *rest))
        torch.Generator().set_state(state["torch"])
    except Exception:  # each has exceptions of its own for what it does not know
        return False
    cuda = state.get("cuda")
    return cuda is None or (isinstance(cuda, Tensor) and cuda.dtype == torch.uint8)


def _bank(saved: dict, model: nn.Module, classes: int) -> Iterator[str]:
    """Labels index a table of classes, and the pointer the bank: another number would end in an error of CUDA's."""
    if not hasattr(model, "bank"):
        return
    labels, pointer = saved.get("bank.labels"), saved.get("bank.pointer")
    if labels is not None and len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < classes:
        yield f"its bank has labels from {int(labels.min())} to {int(labels.max())}, of {classes} classes"
    if pointer is not None and pointer.numel() == 1 and not 0 <= int(pointer) < len(model.bank.labels):
        yield f"its bank's pointer is {int(pointer)}"


def take_momenta(saved: dict, optimizer: torch.optim.Optimizer) -> None:
    """Give the optimiser the momenta of a checked checkpoint, each in the layout in memory of its parameter.

    Fused steps go by memory order: a momentum in another layout would meet other weights than its own. The rate is the
    last step's, until the next one sets it; decay and momentum's share stay as the run's options say.
    """
    for group in optimizer.param_groups:
        group["lr"] = saved["param_groups"][0]["lr"]
    for i, p in zip(_ids(saved), _parameters(optimizer), strict=True):
        for name in MOMENTA[type(optimizer)]:
            momentum = saved["state"].get(i, {}).get(name)
            if momentum is not None:
                place = torch.empty((), device=p.device) if name == "step" else torch.empty_like(p, requires_grad=False)
                optimizer.state[p][name] = place.copy_(momentum)

"""The one road for trained weights: from a file, or a library's download, to an encoder.

Four forms of weights fill an encoder: this project's own, the two of the official implementation (torchvision's names,
and the CIFAR form with `encoder.`, `head.` and `shortcut.`), and a library's bare weights; see `split_weights`.
"""

import contextlib
import pickle
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import util
from datasets.sources import UNKNOWN, ViewSettings
from engine.processes import distributed
from engine.run import checkpoint
from networks import cards, vectors
from util import InputError

# what a key's path may hold besides the layer's own name, and what is stored next to the encoder
WRAPPERS = ("module", "model", "backbone_q")
KEY_ENCODER = ("backbone_k", "key_encoder", "key_head")
BESIDE = ("head", "fc", "bank", "criterion", "memorybank_InfoNCE", "memorybank_labels", "queue_ptr")
SECOND = "coarse_fc"  # a classifier's layer of superclasses, of this project's checkpoints alone
# where a library's file has its weights, as timm looks for them
PLACES = ("state_dict_ema", "model_ema", "state_dict", "model")
WITHOUT_NETWORK = "without a network, give --init a file"


@dataclass(frozen=True)
class TrainedWeights:
    """Weights of an encoder, and what goes with them.

    model: the encoder's name, None where the file does not say it; weights: by name; for_timm: what timm is to load
    itself (see networks.encoders.encoder); views: of the images that they were trained on;
    small_stem: whether they have the stem of small images; pretrained: whether they are a library's, or began with
    them; source: flag and file, for errors; path: the file; content: what it holds as a checkpoint, {} of timm's;
    classifier: its {weight [C, d], bias [C]}. All but the name are empty or None where an encoder starts at random.
    """

    model: str | None
    weights: dict[str, Tensor] = field(default_factory=dict)
    for_timm: bool | tuple[str, int] = False
    views: ViewSettings = UNKNOWN
    small_stem: bool | None = None
    pretrained: bool = False
    source: str = ""
    path: Path | None = None
    content: dict = field(default_factory=dict)
    classifier: dict[str, Tensor] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The encoder's name. Raises InputError where the file does not say it."""
        if self.model is None:
            raise InputError(f"{self.source} does not say which encoder it holds; give --model")
        return self.model

    def build(self, small_images: bool, size: int | None) -> nn.Module:
        """Build the encoder with these weights, for views of a size. small_images: the data set's, which the stem of
        the weights outweighs. Raises InputError where the file does not say which encoder it holds, or holds another.
        """
        from networks import encoders

        if self.name in vectors.NAMES:
            encoder = vectors.vector_encoder_like(self.name, self.weights, size or 1)
            checkpoint.load_strictly(encoder, self.weights, self.source)
            return encoder
        small = small_images if self.small_stem is None else self.small_stem
        encoder = build_encoder(self.name, small, size=size, weights=self.for_timm, source=self.source)
        if self.weights:
            checkpoint.load_strictly(encoder, self.weights, self.source)
        rest = encoders.pixels_left_out(encoder, size) if size else 0
        if rest:
            begins = f"{self.model} begins with whole patches"
            distributed.say(f"--size {size}: {begins}: the last {rest} pixels of both sides are not seen")
        return encoder


def choose_start(model: str, init: str | None, pretrained: bool, resumed: Path | None = None) -> TrainedWeights:
    """Return what --init, a file, or --pretrained means for an encoder. Raises InputError where it does not go with
    --model, or the network is missing.

    resumed: the checkpoint or folder that the run resumes: then its weights count, and its views.
    """
    from networks import encoders, resnet

    if resumed:
        state = checkpoint.newest(resumed)[1] if resumed.is_dir() else checkpoint.load(resumed, "--resume")
        views = ViewSettings(*map(state.get, ("size", "mean", "std", "normalize")))
        stem = "encoder.conv1.weight"
        small = resnet.has_small_stem({"conv1.weight": state["model"][stem]}) if stem in state["model"] else None
        return TrainedWeights(model, views=views, small_stem=small, pretrained=bool(state.get("pretrained")))

    if init and pretrained:
        raise InputError(
            "--init and --pretrained: give one; --init starts from a file, --pretrained from the library's weights"
        )
    if init:
        return read_file(init, "--init", model)
    if not pretrained:
        return TrainedWeights(model)
    build_encoder(model, False, "meta")  # else InputError: there is none such, or it cannot be fetched
    source = f"--pretrained {model}"
    with _as_input_errors(source):
        views = ViewSettings(*encoders.known_views(model))
        if encoders.is_timm(model):
            return TrainedWeights(model, for_timm=True, views=views, pretrained=True, source=source)
        weights = resnet.torchvision_weights(model).get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
    weights = {name: x for name, x in weights.items() if not name.startswith("fc.")}
    return TrainedWeights(model, weights, views=views, small_stem=False, pretrained=True, source=source)


def read_file(path, flag: str, model: str | None = None) -> TrainedWeights:
    """Read what a file, or a run's folder, holds of an encoder: a checkpoint, ours or official, an exported encoder, or
    a library's weights.

    model: the encoder (None: as the file says). Raises InputError, with `flag`, where the file holds none, or another.
    """
    from networks import encoders, resnet

    if model:
        build_encoder(model, False, "meta")  # else InputError, as above
    path = checkpoint.find(path, flag)
    source, exported = f"{flag} {path}", path.name == cards.WEIGHTS and path.with_name(cards.CARD).exists()
    state = checkpoint.read_content(path, flag)
    if exported:
        state = _add_card(state, path.with_name(cards.CARD), flag)
    if model and encoders.is_timm(model) and not (isinstance(state, dict) and "format" in state):
        return _leave_to_timm(model, state, path, source)
    bare = checkpoint.holds_weights_alone(state)
    state = checkpoint.check_form({"model": state} if bare else state, source)
    if state.get("script") == "main_linear":
        raise InputError(f"{source}: is a linear probe; give the encoder that it was trained on")
    library = bare or _is_of_torchvision(state)
    weights, classifier = split_weights(state, source, library)
    trained = checkpoint.trained_options(state)
    holds = trained.get("model")
    if model and holds and resnet.base_name(model) != resnet.base_name(holds):
        raise InputError(f"--model {model}: {path} holds a {holds}; give --model {holds}")
    model, small = model or holds, resnet.has_small_stem(weights)
    size = state.get("size") or trained.get("size")
    views = ViewSettings(size, state.get("mean"), state.get("std"), state.get("normalize"))
    library = library and "conv1.weight" in weights and not small  # else of a code unknown
    if library:
        _say_what_is_taken(state, "model", source)
        with _as_input_errors(source):
            views = ViewSettings(*encoders.known_views(model)) if model else views
    pretrained = bool(library or state.get("pretrained"))
    return TrainedWeights(model, weights, False, views, small, pretrained, source, path, state, classifier)


def load_encoder(path, encoder: nn.Module) -> dict:
    """Fill `encoder` with the query encoder of a checkpoint, ours or official, strictly; returns the checkpoint.

    Raises InputError naming the first keys that are missing, left over, or of another shape.
    """
    found = read_file(path, "--ckpt")
    checkpoint.load_strictly(encoder, found.weights, found.source)
    return found.content


def build_encoder(
    name: str, small_images: bool, device: str = "cpu", size: int | None = None, weights=False, source: str = ""
) -> nn.Module:
    """networks.encoders.encoder, whose error is the user's. device: "meta" for its shapes alone; source: of the
    weights, for errors.
    """
    from networks import encoders  # and with it torchvision's models: not before a network is built

    if name in vectors.NAMES:
        return vectors.vector_encoder(name, size or 1)
    of_hub = name.partition("hf-hub:")[2]
    hint = f"`hf download {of_hub}` fetches it where there is a network" if of_hub else WITHOUT_NETWORK
    with _as_input_errors(source or f"--model {name}", hint), torch.device(device):
        return encoders.encoder(name, small_images, size, weights)


@contextlib.contextmanager
def _as_input_errors(source: str, hint: str = WITHOUT_NETWORK):
    """As a context: where the network is missing, or a library has no such encoder or does not take a file, that is one
    line.
    """
    try:
        with util.quiet("huggingface_hub"):
            yield
    except OSError as error:  # of a missing network, which some libraries call a ValueError as well
        raise InputError(f"{source}: the weights cannot be fetched ({util.reason(error)}); {hint}") from None
    except ValueError as error:
        raise InputError(f"--model {error}") from None
    except (RuntimeError, KeyError, pickle.UnpicklingError) as error:
        line = " ".join(str(error).split())
        line = line if len(line) < 200 else f"{line[:200]}..."
        raise InputError(f"{source}: of another architecture, or no weights ({line}); check --model") from None


# ---- what a file holds -----------------------------------------------------------------------------------------------


def _add_card(weights: dict[str, Tensor], path: Path, flag: str) -> dict:
    """Return the checkpoint that an exported encoder came from, as far as its card tells it."""
    try:
        card = cards.read_card(path)
    except ValueError as error:
        raise InputError(f"{flag} {error}") from None
    kept = {name: card.get(name) for name in ("size", "mean", "std", "normalize", "classes", "epoch", "pretrained")}
    options = {**card.get("options", {}), "model": card["encoder"], "dataset": card.get("dataset")}
    of_vectors = card["encoder"] in vectors.NAMES  # with a head
    model = weights if of_vectors else {f"encoder.{name}": x for name, x in weights.items()}
    return {"model": model, "format": checkpoint.FORMAT, "options": options, **kept}


def _leave_to_timm(model: str, content, path: Path, source: str) -> TrainedWeights:
    """Return a file that timm is to load itself, with how many classes its classifier tells apart, 0 without one."""
    from networks import encoders

    places = [name for name in PLACES if isinstance(content, dict) and isinstance(content.get(name), dict)]
    weights = content[places[0]] if places else content
    if not checkpoint.holds_weights_alone(weights):
        raise InputError(f"{source}: holds no weights by name")
    names = [f"{part}.weight" for part in encoders.classifier_names(model)]
    found = [x for key, x in weights.items() if re.sub(r"^(_orig_mod\.|module\.)+", "", key) in names]
    if places:
        _say_what_is_taken(content, places[0], source)
    for_timm = str(path), len(found[0]) if found else 0
    views = ViewSettings(*encoders.known_views(model))
    return TrainedWeights(model, for_timm=for_timm, views=views, pretrained=True, source=source, path=path)


def _say_what_is_taken(content: dict, name: str, source: str) -> None:
    """Where a library's file holds several weights, say that those under `name` are taken."""
    others = [other for other in PLACES if other != name and isinstance(content.get(other), dict)]
    if others:
        distributed.say(f"{source}: holds {name} and {' and '.join(others)}; {name} is taken")


def _is_of_torchvision(state: dict) -> bool:
    """Whether a file is of torchvision's training: no options that we know, no official name, and a 7x7 stem."""
    weights = state["model"]
    stem = weights.get("conv1.weight")
    known = "format" in state or checkpoint.trained_options(state) or stem is None or stem.shape[-1] != 7
    return not known and all(_split_library_key(key) == _split_official_key(key) for key in weights)


def split_weights(state: dict, source: str, library: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the query encoder's weights under its library's names, and a linear classifier's {weight, bias} ({} if
    none).

    Of this project's checkpoints, `encoder.` and `fc.`; of a library's file all, with `fc.` as the classifier: what
    follows is unchanged. Of official checkpoints keys may carry `module.`, `model.`, `backbone_q.` and `encoder.`,
    and say `shortcut` for `downsample` and `layer_blocks.N` for `layerN`, N from 1 to 4, as the official probe reads.
    Heads, the layer SECOND of this project's, bank and key encoder are left out; anything else stays, so that strict
    loading can name it. Raises InputError naming `source` if two keys mean the same weight, or N is another.
    """
    weights, classifier, second = {}, {}, {}
    split_key = _split_library_key if library else _split_own_key if "format" in state else _split_official_key
    for key, value in state["model"].items():
        place, name = split_key(key)
        if name is None:
            raise InputError(f"{source}: {key} is unknown; layer_blocks are numbered from 1 to 4")
        into = {"encoder": weights, "fc": classifier, SECOND: second}.get(place, {})
        if name in into:
            raise InputError(f"{source}: holds {name} twice, once as {key}")
        into[name] = value
    for name, layer in (("fc", classifier), (SECOND, second)):
        if layer and set(layer) != {"weight", "bias"}:
            raise InputError(f"{source}: its classifier {name} has {' and '.join(layer)}; it needs weight and bias")
    return weights, classifier


# Each takes a key apart: "encoder", "fc" or another place, and the name of the weight there.


def _split_library_key(key: str) -> tuple[str, str]:
    return ("fc", key.removeprefix("fc.")) if key.startswith("fc.") else ("encoder", key)


def _split_own_key(key: str) -> tuple[str, str]:
    place, _, name = key.partition(".")
    return (place, name) if place in ("encoder", SECOND, *KEY_ENCODER, *BESIDE) else ("encoder", key)


def _split_official_key(key: str) -> tuple[str, str | None]:
    """Split a key of an official checkpoint; the name is None for unknown layer_blocks."""
    parts = [part for part in key.split(".") if part not in WRAPPERS] or [key]
    beside = next((part for part in parts if part in KEY_ENCODER), None)
    if beside or (parts[0] in BESIDE and not (parts[0] == "fc" and len(parts) == 2)):
        return beside or "beside", key
    if parts[0] == "fc":
        return "fc", parts[1]
    parts = parts[1:] if parts[0] == "encoder" else parts
    if parts[0] == "layer_blocks":
        number = "".join(parts[1:2])
        if number not in ("1", "2", "3", "4"):
            return "encoder", None
        parts = [f"layer{number}", *parts[2:]]
    return "encoder", ".".join("downsample" if part == "shortcut" else part for part in parts)

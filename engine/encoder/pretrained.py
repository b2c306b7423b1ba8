"""Where an encoder's training starts: at random, at a library's own weights, or at a file's."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from engine.processes import distributed
from engine.run import checkpoint
from engine.train import training
from util import InputError


@dataclass(frozen=True)
class Initial:
    """Weights to start from, and what goes with them.

    model: the encoder's name; weights: by name; of_timm: what timm is to load itself (see networks.encoders.encoder);
    views: size, mean and std of the images that they were trained on; small_stem: whether they have the stem of small
    images; pretrained: whether they are a library's, or began with them; source: flag and file, for errors. All but
    the name are empty or None where it starts at random.
    """

    model: str
    weights: dict[str, Tensor] = field(default_factory=dict)
    of_timm: bool | tuple[str, int] = False
    views: tuple = (None, None, None)
    small_stem: bool | None = None
    pretrained: bool = False
    source: str = ""

    def views_of(self, given: tuple) -> tuple:
        """Size, mean and std as given, and where they are None, as these weights want them."""
        return tuple(known if chosen is None else chosen for chosen, known in zip(given, self.views, strict=True))

    def built_in_turn(self, small_images: bool, size: int) -> nn.Module:
        """As `build`, by the main process first, which may download weights."""
        with distributed.main_first():
            return self.build(small_images, size)

    def build(self, small_images: bool, size: int | None) -> nn.Module:
        """The encoder with these weights, for views of a size. small_images: the data set's, which the stem of the
        weights outweighs.
        """
        from networks import encoders

        small = small_images if self.small_stem is None else self.small_stem
        encoder = training.build_encoder(self.model, small, size=size, weights=self.of_timm, flag=self.source)
        if self.weights:
            checkpoint.load_strictly(encoder, self.weights, self.source)
        rest = encoders.pixels_left_out(encoder, size) if size else 0
        if rest:
            begins = f"{self.model} begins with whole patches"
            distributed.say(f"--size {size}: {begins}: the last {rest} pixels of both sides are not seen")
        return encoder


def read(model: str, init: str | None, pretrained: bool, resumed: Path | None = None) -> Initial:
    """What --init, a file, or --pretrained means for an encoder. Raises InputError where it does not go with --model,
    or the network is missing.

    resumed: the checkpoint or folder that the run goes on from: then its weights count, and its views.
    """
    from networks import encoders, resnet

    if resumed:
        state = checkpoint.newest(resumed)[1] if resumed.is_dir() else checkpoint.load(resumed, "--resume")
        views = state.get("size"), state.get("mean"), state.get("std")
        stem = {"conv1.weight": state["model"].get("encoder.conv1.weight")}
        small = resnet.has_small_stem(stem) if stem["conv1.weight"] is not None else None
        return Initial(model, views=views, small_stem=small, pretrained=bool(state.get("pretrained")))

    if init and pretrained:
        raise InputError("--init starts from a file, --pretrained from the library's weights: give one of them")
    if init:
        return of_file(model, init, "--init")[0]
    if not pretrained:
        return Initial(model)
    training.build_encoder(model, False, "meta")  # else InputError: there is none such, or it cannot be fetched
    views, source = _known_views(model, "--pretrained"), f"--pretrained {model}"
    if encoders.of_timm(model):
        return Initial(model, of_timm=True, views=views, pretrained=True, source=source)
    with training.told(source):
        weights = _torchvision_weights(model)
    return Initial(model, weights, views=views, small_stem=False, pretrained=True, source=source)


def of_file(model: str | None, path, flag: str) -> tuple[Initial, dict, dict[str, Tensor]]:
    """What a file holds: a checkpoint, ours or published, or a library's weights of an encoder; its content as
    `checkpoint.load` has it ({} of a file for timm); and its classifier {weight, bias} ({} if none).

    model: None: as the file says. Raises InputError where that is another, or it does not say.
    """
    from networks import encoders, resnet

    source = f"{flag} {path}"
    if model:
        training.build_encoder(model, False, "meta")  # else InputError, as above
    if model and encoders.of_timm(model) and (file := checkpoint.for_timm(model, path, flag)):
        of_timm, line = file
        distributed.say(line)
        views = _known_views(model, flag)
        return Initial(model, of_timm=of_timm, views=views, pretrained=True, source=source), {}, {}
    state = checkpoint.load(path, flag, bare=True)
    if state.get("script") == "main_linear":
        raise InputError(f"{source}: is a linear probe; give the encoder that it was trained on")
    weights, classifier = checkpoint.encoder_weights(state, source)
    trained = checkpoint.trained_options(state)
    holds = trained.get("model")
    if model is None and holds is None:
        raise InputError(f"{source} does not say which encoder it holds; give --model")
    if model and holds and resnet.base_name(model) != resnet.base_name(holds):
        raise InputError(f"--model {model}: {path} holds a {holds}; give --model {holds}")
    model = model or holds
    views = (state.get("size") or trained.get("size"), state.get("mean"), state.get("std"))
    small = resnet.has_small_stem(weights)
    library = bool(state.get("library")) and "conv1.weight" in weights and not small  # else of a code unknown
    if library:
        distributed.say(checkpoint.taken(state, "model", source))
        views = _known_views(model, flag)
    seen = bool(library or state.get("pretrained"))
    return Initial(model, weights, False, views, small, seen, source), state, classifier


def _known_views(model: str, flag: str) -> tuple:
    from networks import encoders

    try:
        return encoders.known_views(model)
    except ValueError as error:
        raise InputError(f"{flag}: --model {error}") from None


def _torchvision_weights(model: str) -> dict[str, Tensor]:
    from networks import resnet

    weights = resnet.torchvision_weights(model).get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
    return {name: x for name, x in weights.items() if not name.startswith("fc.")}

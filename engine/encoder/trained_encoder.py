"""A frozen encoder from a checkpoint, its classifier's outputs, and its features of a data set, kept in a folder and
reused: what evaluations start from.
"""

import hashlib
import os
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import datasets
import evaluation
import util
from datasets import ImageData, augmentation, decoding
from datasets.feature_views import Normalization
from datasets.members import Member
from datasets.packed import PackedImage
from datasets.sources import UNKNOWN, ViewSettings
from engine.batches.loading import Loading, share_loader
from engine.encoder import official_checkpoints, pretrained, records
from engine.processes import distributed
from engine.run import checkpoint
from engine.train.optimization import allow_tf32, describe_precision
from networks import vectors
from util import InputError

IMAGENET = ("imagenet", "imagenet_100")


@dataclass
class FrozenEncoder:
    """An encoder in eval mode and the views it wants.

    record: path, sha256, model, epoch, dataset and classes of the checkpoint, pretrained: whether it is, or began with,
    a library's weights, and published: the name of the official weights that it is, else None; name: of its run;
    classifier: {weight [C, d], bias [C]} of a cross-entropy model, else {}; transform: evaluation's, from a PIL image;
    ranking: what it was trained on, as objective.build_loss has it, None where the file has none; head: the projection
    head of an encoder of features; layer: "output" where the encoder ends with it; extracted: by title, the file that
    keeps features, if any, and whether they were read from it.
    """

    encoder: nn.Module
    record: dict
    name: str
    classifier: dict[str, Tensor]
    transform: object
    views: ViewSettings
    ranking: dict | None = None
    head: nn.Module | None = None
    layer: str = "hidden"
    extracted: dict = field(default_factory=dict)

    @property
    def layers(self) -> tuple[str, ...]:
        """What can be evaluated, the usual one first: of a head on features its output, and what goes into it."""
        return ("output", "hidden") if self.head is not None else ("hidden",)

    def take_layer(self, layer: str) -> "FrozenEncoder":
        """Return the encoder with its projection head where the layer is "output". Raises InputError without a head."""
        if layer == "hidden":
            return self
        if self.head is None:
            raise InputError(f"--layer {layer}: {self.record['path']} has no projection head; give --layer hidden")
        encoder = nn.Sequential(self.encoder, self.head)
        encoder.dim = self.head[-1].out_features
        return replace(self, encoder=encoder, layer=layer, extracted={})

    def about(self) -> dict:
        """Return what a result's record says of views and features."""
        return {"views": self.views.to_dict(), "features": self.extracted, **describe_precision(torch.float32)}


def load(
    ckpt: str,
    train: ImageData,
    dataset: str = "digits",
    views: ViewSettings = UNKNOWN,
    model: str | None = None,
    model_type: str | None = None,
) -> FrozenEncoder:
    """Load the encoder of a checkpoint, or of a run's folder, strictly, for the images of a data set.

    views: of these; model: the encoder's name; model_type: "contrastive" or "cross_entropy". What is None is as the
    checkpoint says, or as known of the data set. Raises InputError where the file contradicts it.
    """
    allow_tf32(False)  # figures to the last digit; loading is what takes the time
    trained = pretrained.read_file(ckpt, "--ckpt", model)
    path, state, classifier = trained.path, trained.content, trained.classifier
    if model_type == "cross_entropy" and not classifier:
        raise InputError(f"--model_type cross_entropy: {path} holds no linear classifier; it is a contrastive model")
    if model_type == "contrastive" and classifier:
        raise InputError(f"--model_type contrastive: {path} holds a linear classifier; it is a cross-entropy model")
    if (trained.model in vectors.NAMES) != train.are_features:
        of = "features" if trained.model in vectors.NAMES else "images"
        raise InputError(f"--ckpt {path}: is an encoder of {of}; give {of}")
    views = datasets.complete_views(dataset, views.fill_from(trained.views), train)
    encoder = trained.build(False, views.size).eval().requires_grad_(False)
    options, sha256 = checkpoint.trained_options(state), util.sha256(path)
    official = official_checkpoints.find(sha256)
    record = {
        "path": str(path.resolve()),
        "sha256": sha256,
        "model": trained.model,
        "epoch": state.get("epoch"),
        "dataset": options.get("dataset"),
        "classes": util.match_spelling(state.get("classes") or (), train.classes) or None,
        "pretrained": trained.pretrained,
        "objective": state.get("objective"),
        "instance_ranks": options.get("instance_ranks"),
        "published": official and official.name,
    }
    if official:
        distributed.say(f"{trained.source}: these are the official weights {official.name}")
    own, counts = record["classes"], not (record["instance_ranks"] or train.groups)
    differs = own and set(own) != set(train.classes) and not set(own).isdisjoint(train.classes)
    if distributed.is_main() and differs and counts and record["dataset"] == dataset:
        numbers = f"{len(own)} classes of {dataset}, this evaluates {len(train.classes)}"
        print(f"warning: {path.resolve()} was trained on {numbers}; see --exclude_classes", file=sys.stderr)
    name = path.resolve().parent.name + ("" if path.stem == "last" else f"_{path.stem}")
    ranking = state.get("ranking")
    if train.are_features:
        head = _load_head(state["model"], trained.source)
        return FrozenEncoder(encoder, record, name, classifier, Normalization(views), views, ranking, head)
    transform = augmentation.evaluation(views.size, views.mean, views.std, datasets.spec(dataset).small)
    return FrozenEncoder(encoder, record, name, classifier, transform, views, ranking)


def read_excluded(ckpt: str, flag: str) -> list[str]:
    """Read the classes that a checkpoint was trained without. Raises InputError, with `flag`, where it names none."""
    trained = pretrained.read_file(ckpt, "--ckpt")
    excluded = checkpoint.trained_options(trained.content).get("hold_out")
    if not excluded:
        without = "names no class that it was trained without, as --exclude_classes does"
        raise InputError(f"{flag}: {trained.path} {without}; give a file of class names")
    return list(excluded)


def _load_head(weights: dict[str, Tensor], source: str) -> nn.Module | None:
    """Load the projection head of an encoder of features, a linear layer; None of a cross-entropy model."""
    found = {key.removeprefix("head."): x for key, x in weights.items() if key.startswith("head.")}
    if not found:
        return None
    head = nn.Sequential(nn.Linear(*reversed(found["0.weight"].shape)))
    checkpoint.load_strictly(head, found, source)
    return head.eval().requires_grad_(False)


def take_raw(train: ImageData, views: ViewSettings) -> FrozenEncoder:
    """Return the features themselves, normalized, as if an encoder had made them."""
    views = datasets.complete_views("features", views, train)
    encoder = nn.Identity()
    encoder.dim = views.size
    path = str(Path(train.images.files[0]).resolve())
    record = {"path": path, "sha256": "raw", "model": None, "epoch": None, "dataset": None, "classes": None}
    record |= {"pretrained": False, "objective": None, "instance_ranks": None, "published": None}
    return FrozenEncoder(encoder, record, "raw", {}, Normalization(views), views)


def warn_of_seen(net: FrozenEncoder, dataset: str, classes: list[str]) -> None:
    """Warn where outliers, classes of a data set, were seen in training: by the checkpoint, or, if it began with a
    library's weights, most likely by these, which are of ImageNet.
    """
    record = net.record
    trained_on = record["classes"] or ()
    seen = [c for c in util.match_spelling(classes, trained_on) if c in trained_on]
    of_imagenet = [c for c in classes if re.fullmatch(r"n\d{8}", c)]
    if not distributed.is_main():
        return
    if seen and record["dataset"] == dataset and dataset != "path":
        print(f"warning: {record['path']} was trained on the OOD class {seen[0]}", file=sys.stderr)
    if record["pretrained"] and of_imagenet:
        text = f"is, or began with, a library's weights, which have most likely seen ImageNet's {of_imagenet[0]}"
        print(f"warning: {record['path']} {text}: it was trained on these OOD images", file=sys.stderr)


def count_outputs(net: FrozenEncoder, dataset: str, classes: list[str]) -> int:
    """How many of the classifier's outputs, the first ones, are its classes; warns where these are not all, or where it
    cannot be known.

    dataset, classes: what is evaluated. They are known of the published files and of a checkpoint with a class list; of
    one without, if it was trained on ImageNet-100 as published: 1000 outputs, and labels that number the 100 folders.
    Raises InputError where the outputs are fewer than the classes, or there is no classifier.
    """
    record, source = net.record, f"--ckpt {net.record['path']}"
    if not net.classifier:
        needed = "msp, energy and confusion need one of main_ce.py"
        raise InputError(f"{source}: is a contrastive model, which names no class; {needed}")
    outputs = len(net.classifier["bias"])
    known, own = official_checkpoints.find(record["sha256"]), len(record["classes"] or ())
    number = own or (known and known.classes)
    if not number and record["dataset"] == "imagenet_100" and dataset in IMAGENET and len(classes) == 100:
        number = 100
    kept = min(number or outputs, outputs)
    if kept < len(classes):
        raise InputError(f"{source}: its classifier knows {kept} classes, {dataset} has {len(classes)}")
    text = f"warning: {source}: its classifier has {outputs} outputs, "
    if kept < outputs:
        text += f"for {kept} classes: msp and energy look at the first {kept}"
    else:
        text += f"{dataset} {len(classes)} classes, and which are theirs is not known: msp and energy look at all"
    if distributed.is_main() and (kept < outputs or (not number and outputs > len(classes))):
        print(text, file=sys.stderr)
    return kept


def compute_logits(net: FrozenEncoder, outputs: int, parts: list[Tensor]) -> tuple[list[Tensor], dict]:
    """Of features [m, d] of inliers, then of others: [m, outputs] the classifier's first outputs in float64; and what a
    record says of them, where there are more: in percent, how many inliers have their largest output among these.

    Few would mean that the outputs are numbered otherwise; then it warns.
    """
    weight, bias = net.classifier["weight"].double(), net.classifier["bias"].double()
    rows, which = evaluation.distinct(torch.cat(parts))  # equal features have equal logits
    found = (rows.double() @ weight.T + bias)[which].split([len(x) for x in parts])
    said = {"of": len(bias), "used": outputs}
    if outputs < len(bias):
        said["largest_among_used"] = inside = 100 * float((found[0].argmax(1) < outputs).double().mean())
        if inside < 50:
            text = f"only {inside:.0f} % of the validation images have their largest output among the first {outputs}"
            print(f"warning: --ckpt {net.record['path']}: {text}: are these its classes?", file=sys.stderr)
    return [x[:, :outputs] for x in found], {"outputs": said}


# ---- features --------------------------------------------------------------------------------------------------------


def extract_features(
    net: FrozenEncoder, data: ImageData, title: str, loading: Loading, cache: Path | None = None
) -> Tensor:
    """Features [n, d] (float32, before the head, not normalized) of a data set, in order, on the CPU.

    The processes share the work. In a folder `cache` they are kept, and read from there the next time; a file that
    cannot serve is named, and made again.
    """
    data.transform = net.transform
    key = make_key(net, data) if cache else ""
    path = cache / f"{records.fit_file_name(net.name)}_{len(data)}_{key[:24]}.pt" if cache else None
    kept, fault = read_features(path, key) if path else (None, "")
    missing = distributed.all_reduce(torch.tensor(float(kept is None), device=loading.device), "max")
    net.extracted[title] = {"file": path and str(path), "reused": not missing}
    if not missing:  # on a disk that all processes see
        return kept
    distributed.say(f"--features_cache: {path} {fault}; it is made again" if fault else "")
    share, encoder = share_loader(data, loading), net.encoder.to(loading.device)
    batches = _show_progress(share, f"features of {len(data)} images, {title}")
    x, _ = evaluation.extract(encoder, batches, loading.device) if len(share) else (torch.zeros(0, 1), None)
    if distributed.world_size() > 1:
        x = interleave(x, len(data), net.encoder.dim, loading.device)
    if not x.isfinite().all():
        raise InputError(f"--ckpt {net.record['path']}: some features are NaN or infinite; its training went wrong")
    if path and distributed.is_main():
        content = {"features": x, "labels": data.labels, "key": key, "checkpoint": net.record}
        content |= {"transform": str(net.transform), "classes": data.classes}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.write_whole(path, content)
        except OSError as error:
            why = error.strerror or error
            print(f"--features_cache: {path} cannot be written ({why}); these features are not kept", flush=True)
    return x


def interleave(x: Tensor, total: int, dim: int, device) -> Tensor:
    """Process r holds rows r, r + world, ...: the rows of all, in order."""
    padded = torch.zeros(-(-total // distributed.world_size()), dim)
    padded[: len(x)] = x
    parts = distributed.gather(padded.to(device)).cpu().view(distributed.world_size(), len(padded), dim)
    return parts.transpose(0, 1).reshape(-1, dim)[:total].contiguous()


def make_key(net: FrozenEncoder, data: ImageData) -> str:
    """Compute a hash of all that features of a data set depend on: checkpoint, model, transform, decoders, classes,
    labels, and the images, by their bytes where they are in memory, by the check sums of a packed data set, and by
    path, size, and times of last change of files, of which no program sets the second (ctime).
    """
    digest, record = hashlib.sha256(), net.record
    about = record["sha256"], record["model"], net.transform, decoding.describe_version(), data.classes
    digest.update(repr(about).encode())
    digest.update(data.labels.numpy().tobytes())
    if data.are_features:
        digest.update(f"{net.layer} {net.encoder.dim} {[(f, _state(f)) for f in data.images.files]}".encode())
        digest.update(data.images.rows.numpy().tobytes())
        return digest.hexdigest()
    if data.in_memory:
        digest.update(repr(data.images.shape).encode() + np.ascontiguousarray(data.images).tobytes())
        return digest.hexdigest()
    for image in data.images:
        digest.update(f"{image}\0{_state(image)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _state(image) -> tuple:
    """Return what changes when an image file does."""
    if isinstance(image, PackedImage | Member):
        return image.state
    stat = os.stat(image)
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def read_features(path: Path, key: str) -> tuple[Tensor | None, str]:
    """Read the features [n, d] of a file, and ""; or None and why the file cannot serve, "" where there is none."""
    if not path.is_file():
        return None, ""
    try:
        checkpoint.check_sums(path)
        kept = torch.load(path, weights_only=True)
        features, made_for = kept["features"], kept["key"]
    except Exception as error:  # torch.load meets damage in many ways
        return None, f"corrupt, or of an older version ({type(error).__name__})"
    return (features, "") if made_for == key else (None, "holds features of other images, or of another encoder")


def _show_progress(batches, title: str):
    progress = util.Progress(title, len(batches), 50, distributed.is_main())
    for i, batch in enumerate(batches, 1):
        yield batch
        progress.tick(i, "")
    progress.close()

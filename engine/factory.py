"""Objects made of options: images, views, loaders, optimizer, processes; the loss is `engine.objective`'s."""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import datasets
import util
from datasets import augmentation, rankings
from datasets.augmentation import Augmentation
from datasets.feature_files import read_lines
from datasets.feature_views import FeatureViews, Normalization, Perturbation
from datasets.features import FeatureFiles
from datasets.rankings import instances
from engine.batches.loading import Balance, Loading, build_views
from engine.cli import options
from engine.encoder import trained_encoder
from engine.encoder.pretrained import TrainedWeights
from engine.encoder.trained_encoder import FrozenEncoder
from engine.processes import cpu_threads, distributed
from engine.processes.launch import Processes
from engine.train import monitor
from engine.train.optimization import adamw, advise_on_precision, allow_tf32, precision, sgd
from engine.train.training import Schedule, Stepper, warm_up_epochs
from networks import vectors
from util import InputError, check_folder


def select_images(args, only: tuple[str, ...] = ()) -> datasets.Selection:
    """Which images of --dataset; only: the classes to keep, if any."""
    which = datasets.Selection(tuple(args.hold_out), only, args.skip_images, args.images_per_class)
    names = {"label_columns": tuple(args.label_columns or ()), "class_names": args.class_names}
    return replace(which, values=getattr(args, "values", None), **names)


def choose_classes(args) -> datasets.Selection:
    """Return the images of --classes alone, in the place of --exclude_classes; without it, as select_images."""
    which, flag = select_images(args), f"--classes {args.classes}"
    if not args.classes:
        return which
    if args.classes != "excluded":
        names = read_lines(Path(args.classes), flag)
    elif args.ckpt:
        names = trained_encoder.read_excluded(args.ckpt, flag)
    else:
        why = "raw features have no checkpoint that lists these classes"
        raise InputError(f"{flag}: {why}; give --ckpt, or a file of class names")
    if not names:
        raise InputError(f"{flag}: holds no class name; write one per line")
    return replace(which, exclude=(), only=tuple(names), flag=flag)


def choose_superclasses(args, known, flag: str) -> tuple[dict[str, list[str]], str]:
    """superclass -> classes, of --superclasses or the data set's own, `known`; and what errors call them. flag: what
    needs them. Raises InputError where there are none.
    """
    groups, source = rankings.choose_superclasses(args.superclasses, known)
    if groups is None:
        raise InputError(f"{flag}: {args.dataset} has no superclasses of its own; give --superclasses FILE.yaml")
    return groups, source


def training_images(args) -> datasets.ImageData:
    """Return the training images of --dataset alone."""
    return datasets.build(args.dataset, find_data(args), which=select_images(args))


def find_data(args) -> str | FeatureFiles:
    """Where the data set is: --data_folder, or the files of --features."""
    if not args.features:
        return args.data_folder
    val, labels, labels_val = (given or () for given in (args.features_val, args.labels, args.labels_val))
    return FeatureFiles(args.features, val, labels, labels_val, args.class_names, args.label_columns or ())


def find_outliers(args) -> str | FeatureFiles:
    """Where the outliers are: --data_folder_outliers, or --features_outliers, whose labels are optional."""
    if not args.features_outliers:
        return args.data_folder_outliers
    columns = args.label_columns or ()
    return FeatureFiles(args.features_outliers, label_columns=columns, flag="--features_outliers", labeled=False)


def name_data(args) -> dict[str, str]:
    """Return what a record says of where the images, or the features, are."""
    if not args.features:
        return {"images": args.data_folder}
    files = {"features": args.features, "features_val": args.features_val or ()}
    return {f"{name} {i}" if i else name: file for name, of in files.items() for i, file in enumerate(of)}


def chosen_views(args) -> datasets.ViewSettings:
    """--size, --mean and --std, or --normalize, None where not given. Raises InputError for --mean or --std alone."""
    if (args.mean is None) != (args.std is None):
        raise InputError("--mean and --std go together: give both or neither")
    return datasets.ViewSettings(args.size, args.mean, args.std, args.normalize)


def make_transform(args, views: datasets.ViewSettings):
    """Return what evaluation does to an image, or to rows of features."""
    if args.features:
        return Normalization(views)
    return augmentation.evaluation(views.size, views.mean, views.std, datasets.spec(args.dataset).small)


def make_training_views(args, data, views: datasets.ViewSettings, device, color: bool = True, count: int = 2):
    """Make the training images, or features, as views that are drawn by --seed. The other arguments: of `augmented`."""
    if not args.features:
        of_image = augmented(args, datasets.spec(args.dataset), views, color, count)
        return build_views(data, of_image, args.seed, args.augment_on, device)
    dropout = (0.1 if data.images.views == 1 else 0.0) if args.dropout is None else args.dropout
    if dropout >= 1:
        raise InputError(f"--dropout {dropout:g}: must be below 1")
    return FeatureViews(data, Normalization(views), Perturbation(dropout, args.noise, count), args.seed)


def build_encoder(args, start: TrainedWeights, views: datasets.ViewSettings):
    """Build the encoder of --model at its start, for such views."""
    if not args.features:
        return start.build(datasets.spec(args.dataset).small, views.size)
    if args.model not in vectors.NAMES:
        raise InputError(f"--model {args.model}: is an encoder of images; of features: {', '.join(vectors.NAMES)}")
    distributed.say(f"features: {views.size} dimensions, normalized: {views.normalize}; encoder {args.model}")
    if start.weights:
        return start.build(False, views.size)
    return vectors.vector_encoder(args.model, views.size, args.hidden_dim, args.batch_norm)


def augmented(args, spec, views: datasets.ViewSettings, color: bool = True, count: int = 2) -> Augmentation:
    """Return the augmentation of training images: as given, else of the data set. color: whether it is jittered where
    --color is not given; count: views of an image.
    """
    scale = spec.crop_scale if args.crop_scale is None else args.crop_scale or None
    flip = spec.flip if args.flip is None else args.flip
    strength = float(color and spec.color) if args.colour is None else args.colour
    return Augmentation(views.size, views.mean, views.std, scale, flip, strength, count, args.blur)


def choose_balance(args, labels: Tensor, names: list[str]) -> Balance | None:
    """How --sampler balanced draws batches by labels [n] of the training images; None without. names: of labels, or []
    where they have none. Raises InputError where batches cannot be made so.
    """
    if args.sampler != "balanced":
        if args.batch_per_class:
            raise InputError("--batch_per_class: has no use without --sampler balanced")
        return None
    each, counts = args.batch_per_class or 4, torch.unique(labels, return_counts=True)
    classes, rest = divmod(args.batch_size, each)
    flag = f"--sampler balanced: {each} images of each class (--batch_per_class)"
    if rest:
        raise InputError(f"{flag} do not divide --batch_size {args.batch_size}")
    if classes > len(counts[0]):
        raise InputError(
            f"{flag} in --batch_size {args.batch_size} need {classes} classes; the data have {len(counts[0])}"
        )
    least = int(counts[1].argmin())
    if counts[1][least] < each:
        name = names[int(counts[0][least])] if names else f"group {int(counts[0][least])}"
        raise InputError(f"{flag}: {name} has {int(counts[1][least])}")
    return Balance(labels, each)


def load_encoder(args, train: datasets.ImageData, ckpt: str | None = None) -> FrozenEncoder:
    """Load the encoder of --ckpt, or of one of several, for the images of --dataset; without, or of `raw`, the features
    themselves.
    """
    views, ckpt = chosen_views(args), ckpt or args.ckpt
    if ckpt is None or (args.features and ckpt == options.RAW):
        return trained_encoder.take_raw(train, views)
    return trained_encoder.load(ckpt, train, args.dataset, views, args.model, args.model_type)


def load_layer(args, train: datasets.ImageData, ckpt: str | None = None) -> FrozenEncoder:
    """Return the same; of a head on features --layer, its output by default."""
    net = load_encoder(args, train, ckpt)
    return net.take_layer(args.layer or net.layers[0])


def choose_layers(args, net: FrozenEncoder) -> Iterator[tuple[argparse.Namespace, FrozenEncoder]]:
    """Options and encoder of each layer to evaluate: of a head on features --layer, or each, named by a line before."""
    if net.head is None:
        yield args, net.take_layer(args.layer or "hidden")
        return
    for layer in [args.layer] if args.layer else net.layers:
        taken = net.take_layer(layer)
        distributed.say(f"layer {layer}: {taken.encoder.dim} dimensions")
        yield options.with_layer(args, layer), taken


def features_cache(args) -> Path | None:
    """Return the folder of --features_cache, which can be written to; None without."""
    if not args.features_cache:
        return None
    check_folder(args.features_cache, "--features_cache")
    return Path(args.features_cache)


def skips_damage(args) -> bool:
    """Whether damaged images are left out: the default, unless all are checked before the run."""
    return (args.on_bad_image or ("error" if args.check_data else "skip")) == "skip"


def loading(args, device, channels_last: bool = False) -> Loading:
    """How batches come to the device, in which layout; says how the cores are shared out."""
    per_node, usable = getattr(args, "nproc_per_node", None), util.cores()
    workers = cpu_threads.loaders(per_node) if args.num_workers is None else args.num_workers
    distributed.say(cpu_threads.line(workers, per_node))
    if workers > usable:
        distributed.say(f"--num_workers {workers}: more DataLoader workers than the {usable} cores")
    minutes = getattr(args, "timeout_minutes", Loading.timeout_minutes)  # the pictures have no such option
    return Loading(args.batch_size, workers, device, channels_last, minutes)


def stepper(args, model, device, warm_for_batch: bool = True) -> Stepper:
    """Return the optimizer of the model's trained parameters, by the options' schedule, in their precision, which also
    settles whether float32 may be TF32 from now on.

    warm_for_batch: a large batch warms up by itself, as in published pre-training and cross-entropy; not in the probe.
    """
    warm = warm_up_epochs(args.warm, args.batch_size if warm_for_batch else 0, args.epochs)
    schedule = Schedule(args.learning_rate, args.epochs, args.cosine, args.lr_decay_rate, args.lr_decay_epochs, warm)
    allow_tf32(args.precision == "tf32")
    distributed.say(advise_on_precision(args.precision, device))
    if args.optimizer == "adamw":
        schedule = replace(schedule, warm_share=0.01)  # SGD's first rate, 0.01, would be ten times the last
        optimizer = adamw(model, args.learning_rate, args.weight_decay)
    else:
        optimizer = sgd(model, args.learning_rate, args.momentum, args.weight_decay)
    return Stepper(optimizer, schedule, precision(args.precision, device), device, args.detect_anomaly)


def processes(args) -> Processes:
    """How many processes, and how they find one another."""
    return Processes(
        args.nproc_per_node, args.world_size, args.rank, args.dist_url, args.dist_backend, args.timeout_minutes
    )


# ---- the data of main_supcon.py --------------------------------------------------------------------------------------

OF_CLASSES = ("hold_out", "images_per_class", "ranking", "similarity_ranking_imagenet", "use_supercategories", "ranks")


def refuse(args, names: tuple[str, ...], flag: str, why: str) -> None:
    """Raise InputError where one of these options is given that has no use with a flag; a script may lack some."""
    for name in names:
        value = getattr(args, name, None)
        if value and value != args.defaults[name]:
            raise InputError(f"{args.spelling[name]} has no use with {flag}, {why}")


def check_values(args, *others: str) -> None:
    """Raise InputError where an option has no use with --values; others: further ones that a script has."""
    names = (*OF_CLASSES, "n_sim_classes", "similarity_threshold", "instance_ranks", *others)
    refuse(args, names, "--values", "which has numbers instead of classes")


def load_data(args):
    """Load the training images, and with --instance_ranks the groups of their labels, and the names of the levels."""
    if args.values:
        check_values(args)
    if not args.instance_ranks:
        data = training_images(args)
        distributed.say(data.left_out.describe())
        return data, None
    if args.dataset != "path":
        raise InputError(f"--instance_ranks {args.instance_ranks}: needs --dataset path")
    refuse(args, (*OF_CLASSES, "thresholds"), "--instance_ranks", "which makes the ranks, and has no classes")
    data, groups, levels = instances.build(args.data_folder, args.instance_ranks)
    unlisted, left_out = instances.count_unlisted(data, args.data_folder)
    distributed.say(left_out.describe())
    if unlisted:
        distributed.say(f"--instance_ranks does not name {unlisted} images of {args.data_folder}: they are left out")
    (data,) = datasets.leave_out_images(args.skip_images, {"training": data})
    return data, (groups, levels)


def finest(data, nested=None) -> tuple[torch.Tensor, list[str]]:
    """[n] of the training images: their class, with the classes' names, or their finest group, without any."""
    return (nested[0][data.labels, 0], []) if nested else (data.labels, data.classes)


def held_out(args, transform, data, nested=None) -> monitor.Neighbors | monitor.GroupNeighbors | None:
    """Return the images whose neighbors --knn_freq looks at, as evaluation sees them; None without. Raises InputError.

    data, nested: what load_data has.
    """
    if not args.knn_freq:
        return None
    if nested:
        held = monitor.GroupNeighbors(datasets.ImageData(data.images, data.labels, data.classes), *nested)
        parts = [held.images]
    else:
        try:
            parts = datasets.build_pair(args.dataset, find_data(args), select_images(args))
        except InputError as error:
            raise InputError(f"--knn_freq needs validation images: {error}") from None
        distributed.say(parts[1].left_out.describe())
        if len(parts[0]) < monitor.VOTES and not args.values:
            few = f"there are {len(parts[0])} training images, fewer than its {monitor.VOTES} neighbors"
            distributed.say(f"--knn_freq: {few}; all of them are neighbors")
        held = (monitor.ValueNeighbors if args.values else monitor.ClassNeighbors)(*parts)
    for part in parts:
        part.tolerate_damage()  # a picture of the run is not worth ending it
        part.transform = transform
    return held

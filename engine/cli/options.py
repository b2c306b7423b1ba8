"""Argument groups that the scripts share, and what each option means. Booleans are written --flag=True, --flag True, or
--flag alone.
"""

import argparse
import copy
from dataclasses import dataclass

from datasets.feature_views import NORMALIZATIONS
from engine.cli.parsing import (
    Means,
    Parser,
    count,
    crop_scale,
    flag,
    fraction,
    integers,
    positive,
    positive_int,
    share,
    strength,
    three_numbers,
    three_positive,
)
from losses import POSITIVES, REDUCTIONS, VARIANTS
from util import user_text

# option -> its value where none is given, of optimizers that want others than SGD; the rate is Touvron et al.'s (2021)
# for a batch of a thousand, on the side of safety for fewer
OPTIMIZERS = {"sgd": {}, "adamw": {"learning_rate": 1e-3, "weight_decay": 0.05, "warm": True}}

# of add_objective, for the help of `parser`
OTHER_DEFAULTS = (
    " Also different:\n--max_tau 0.6 (published: 0.2), --similarity_threshold 0 (0.01), --n_sim_classes all (5), "
    "--hierarchy_k 3 (2)."
)

# small images are read faster than loader processes start
SMALL_DATA = {name: {"num_workers": 0} for name in ("digits", "fashion_mnist", "cifar10", "cifar100", "features")}

# a head on features: chosen on CLINC150's
HEAD = dict(
    model="mlp", epochs=10, optimizer="adamw", learning_rate=1e-3, weight_decay=1e-4, cosine=True, num_workers=0,
    save_freq=10,
)  # fmt: skip

LAYERS = ("output", "hidden")  # of a head on features
MOST_ENCODERS = 6  # that a page of report.py compares
RAW = "raw"  # in the place of a checkpoint: the features themselves


USAGE = "%(prog)s [--option VALUE ...]"


def parser(description: str, defaults: str = "") -> argparse.ArgumentParser:
    """Make a parser whose help shows defaults and whose options must be spelled in full.

    defaults: which of them are not the published ones, a sentence for the help's last lines.
    """
    p = Parser(
        description=description, allow_abbrev=False, usage=USAGE,
        epilog="A BOOL is True or False; the option alone means True.\n"
        f"Defaults are the official implementation's, except data set, size, seed and workers.{defaults}",
    )  # fmt: skip
    p.add_argument(
        "--config", metavar="FILE", default=argparse.SUPPRESS, means=Means.RUNNING | Means.FILE,
        help="YAML file of options, such as a run's config.yaml; the command line overrides it",
    )  # fmt: skip
    return p


LOSS_TYPES = (
    "rince", "supcon", "supcon_coarse", "two_losses", "two_losses_two_heads", "himulcon", "himulcone", "xclr", "yaware",
    "rnc", "triplet",
)  # fmt: skip
SYNC_BN = "compute BatchNorm of the trained encoder over the batch of all processes; slower, CUDA only"


def add_data(p, names) -> None:
    """Which images, and how they are read."""
    g = p.add_argument_group("data", means=Means.IMAGES)
    g.add_argument("--dataset", default="digits", choices=names, means=Means.IMAGES | Means.FIXED, help="data set")
    where = Means.IMAGES | Means.UNHASHED | Means.FILE  # the hash has the folder itself, wherever it is named from
    pixels = Means.IMAGES | Means.PIXELS
    folder = "folder of images, image list (CSV), or shards (Parquet, .tar, .zip)"
    images = {"type": user_text, "default": "./data", "metavar": "FOLDER", "means": where | Means.PIXELS}
    g.add_argument("--data_folder", help=folder, **images)
    side = "side of a view in pixels (default: the data set's own)"
    g.add_argument("--size", type=positive_int, means=pixels, help=side)
    own = "of the colors, in [0, 1] (default: the data set's own, or estimated)"
    g.add_argument("--mean", type=three_numbers, metavar="R,G,B", means=pixels, help=f"mean {own}")
    g.add_argument("--std", type=three_positive, metavar="R,G,B", means=pixels, help=f"standard deviation {own}")
    which = Means.IMAGES | Means.SUBSET
    told = which | Means.CARD
    g.add_argument(
        "--exclude_classes", "--hold_out", dest="hold_out", nargs="+", default=[], metavar="CLASS", means=told,
        help="classes to leave out",
    )  # fmt: skip
    listed = "list of images to leave out, one path per line"
    g.add_argument("--skip_images", type=user_text, metavar="FILE", means=which | Means.FILE, help=listed)
    few = "training images to keep per class (default: all)"
    g.add_argument("--images_per_class", type=positive_int, metavar="N", means=told, help=few)
    given = Means.IMAGES | Means.GIVEN
    names = "names of the integer labels of shards or features, one per line"
    g.add_argument("--class_names", type=user_text, metavar="FILE", means=given | Means.FILE, help=names)
    columns = "label columns of shards or features, the finest first (default: label, coarse and similar names)"
    g.add_argument("--label_columns", nargs="+", metavar="NAME", means=given, help=columns)
    of_all = "images per step, over all processes"
    g.add_argument("--batch_size", type=positive_int, default=256, means=Means.CARD, help=of_all)
    by_cores = "DataLoader workers per process (default: from the number of cores)"
    g.add_argument("--num_workers", type=count, means=Means.RUNNING, help=by_cores)
    g = p.add_argument_group("features instead of images", means=Means.IMAGES | Means.VECTORS)
    files = {"type": user_text, "nargs": "+", "metavar": "FILE", "means": where | Means.VECTORS}
    forms = "rows of features (.npy, .npz, .safetensors, .pt, Parquet, CSV); sets --dataset features"
    g.add_argument("--features", help=forms, **files)
    g.add_argument("--features_val", help="features to evaluate (default: chosen by a column split)", **files)
    files["means"] = Means.IMAGES | Means.FILE | Means.VECTORS
    g.add_argument("--labels", help="labels of --features, if its files have none", **files)
    g.add_argument("--labels_val", help="labels of --features_val, if its files have none", **files)
    scale = "scaling of features (default: from the checkpoint, or l2)"
    vectors = Means.IMAGES | Means.VECTORS | Means.FIXED
    g.add_argument("--normalize", choices=NORMALIZATIONS, means=vectors, help=scale)


def add_views(p) -> None:
    """How training images are augmented, and which of them meet in a batch."""
    g = p.add_argument_group("augmentation of images", means=Means.PIXELS)
    add_augmentation(g)
    g = p.add_argument_group("augmentation of features", means=Means.VECTORS)
    dropped = "share of dimensions to drop (default: 0.1, or 0 with several stored views)"
    g.add_argument("--dropout", type=share, metavar="P", help=dropped)
    g.add_argument(
        "--noise", type=strength, default=0.0, metavar="X", help="standard deviation of Gaussian noise to add"
    )
    g = p.add_argument_group("batches", means=Means.RESULT)
    g.add_argument(
        "--sampler",
        choices=["shuffled", "balanced"],
        default="shuffled",
        help="order of the images; balanced: as many of each class in a batch",
    )
    own = "images per class in a batch of --sampler balanced (default: 4)"
    g.add_argument("--batch_per_class", type=positive_int, metavar="N", help=own)


def add_augmentation(g) -> None:
    """How images are augmented."""
    crop = "range of a crop's share of the image, such as 0.2,1; or none (default: from the data set)"
    g.add_argument("--crop_scale", type=crop_scale, metavar="LOW,HIGH", help=crop)
    flag(g, "--flip", default=None, help="mirror half of the views (default: from the data set)")
    jitter = "strength of color jitter and grayscale, published: 1 (default: from the data set)"
    g.add_argument("--color", "--colour", dest="colour", type=strength, metavar="X", help=jitter)
    g.add_argument("--blur", type=share, default=0.0, metavar="P", help="share of the views to blur")


def add_encoder(g) -> None:
    """Which encoder is trained, and where it starts."""
    names = "encoder: a ResNet of torchvision, resnet8 to resnet56 or timm:NAME; for features linear, mlp or residual"
    g.add_argument("--model", default="resnet50", means=Means.FIXED, help=names)
    vectors, units = Means.VECTORS | Means.FIXED, "hidden units of mlp and residual (default: those of the features)"
    g.add_argument("--hidden_dim", type=positive_int, metavar="N", means=vectors, help=units)
    flag(g, "--batch_norm", means=vectors, help="use BatchNorm in that hidden layer")
    # a resume has weights already
    flag(g, "--pretrained", means=Means.FREE | Means.PIXELS, help="start from the library's pretrained weights")
    start = "checkpoint, or file of a library's weights, to start from"
    g.add_argument("--init", type=user_text, metavar="FILE", means=Means.FREE | Means.FILE, help=start)


def add_ranking(g) -> None:
    """Which classes are similar, in a training."""
    ranking = "ranking: CSV, .npz or YAML file; or superclass, roberta_threshold, identity"
    g.add_argument("--ranking", type=user_text, metavar="FILE", means=Means.FILE | Means.CARD, help=ranking)


def add_ranks(g) -> None:
    """How a ranking's values become ranks."""
    names = "--thresholds", "--roberta_float_threshold"
    limits = "smallest similarity of each rank, falling; with --values the largest difference, rising"
    g.add_argument(*names, type=float, nargs="+", means=Means.CARD, help=limits)
    every = "make every distinct value of the ranking a rank, without --thresholds"
    flag(g, "--ranks", means=Means.RESULT, help=every)


def add_training(p, warm: str = "warm up linearly over 10 epochs; always on above batch size 256") -> None:
    """Optimization and what a run leaves behind. warm: the help of --warm."""
    small = "Digits, Fashion-MNIST and features have their own: RECIPES in the script. A run's config.yaml lists all."
    p.epilog = f"{p.epilog or ''}\n{small}"
    g = p.add_argument_group("optimization", means=Means.RESULT)
    g.add_argument("--epochs", type=positive_int, default=1000, means=Means.CARD, help="epochs to train")
    own = "optimizer; adamw sets learning rate 0.001, weight decay 0.05 and --warm, unless they are given"
    g.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd", means=Means.FIXED | Means.CARD, help=own)
    g.add_argument("--learning_rate", type=positive, default=0.05, means=Means.CARD, help="base learning rate")
    flag(g, "--cosine", help="lower the learning rate along a cosine instead of in steps")
    steps = {"type": integers, "metavar": "N,N,...", "default": (700, 800, 900)}
    g.add_argument("--lr_decay_epochs", help="epochs after which the learning rate drops a step", **steps)
    drop = "factor of the learning rate per step; the cosine ends at its cube"
    g.add_argument("--lr_decay_rate", type=positive, default=0.1, help=drop)
    flag(g, "--warm", help=warm)
    g.add_argument("--momentum", type=fraction, default=0.9, help="momentum of SGD")
    g.add_argument("--weight_decay", type=float, default=1e-4, means=Means.CARD, help="weight decay")
    g.add_argument("--seed", type=int, default=0, means=Means.CARD, help="random seed")
    first = "name the operation whose gradient first turns NaN; slow"
    flag(g, "--detect_anomaly", means=Means.RUNNING_SINCE, help=first)
    g = p.add_argument_group("speed", means=Means.RESULT)  # to the last digits
    where = "where views are flipped, colored and normalized (default: device on CUDA, worker on a CPU)"
    free = Means.FREE | Means.PIXELS
    g.add_argument("--augment_on", choices=["device", "worker"], means=free, help=where)
    g.add_argument(
        "--precision", choices=["auto", "float32", "tf32", "bfloat16", "float16"], default="auto",
        help="number type of the encoders, auto: bfloat16 on CUDA",
    )  # fmt: skip
    flag(g, "--channels_last", default=True, help="lay out images and convolutions with the channels last")
    flag(g, "--compile", help="compile the encoders: slow start, faster steps; needs a C++ compiler")
    g = p.add_argument_group("corrupt images", means=Means.PIXELS)
    decode = "decode every training and validation image before the training starts"
    flag(g, "--check_data", means=free, help=decode)
    skipped = "what to do at a corrupt image: end, or skip and report it (default: error with --check_data, else skip)"
    g.add_argument("--on_bad_image", choices=["error", "skip"], help=skipped)
    g = p.add_argument_group("output", means=Means.RUNNING)
    g.add_argument("--exp_name", help="name of the run (default: made from the options)")
    _add_save_folder(g)
    g.add_argument("--save_freq", type=positive_int, default=50, help="epochs between checkpoints that are kept")
    few = "number of these checkpoints to keep, the last ones (default: all)"
    g.add_argument("--keep_checkpoints", type=positive_int, means=Means.RUNNING_SINCE, help=few)
    g.add_argument("--print_freq", type=positive_int, default=10, help="steps between progress lines")
    since, inside = Means.RUNNING_SINCE, "minutes between checkpoints within an epoch"
    g.add_argument("--save_minutes", type=positive, default=10, means=since, help=inside)
    limit = "hours after which the run saves and exits with code 75 (default: no limit)"
    g.add_argument("--max_hours", type=positive, means=since, help=limit)
    resume = "checkpoint or run folder to resume; auto: the run of this name, if it exists"
    start = Means.START | Means.RUNNING
    g.add_argument("--resume", type=user_text, metavar="FILE", means=start, help=resume)
    flag(g, "--overwrite", means=start, help="start again in a folder that holds a run, and replace its files")


def add_evaluation(p, several: bool = False, required: bool = True) -> None:
    """Whose features, and where results go. several: --ckpt takes any number."""
    g = p.add_argument_group("frozen encoders" if several else "frozen encoder", means=Means.RESULT)
    ckpt = "checkpoint (ours, official or exported), or run folder with last.pth; optional with --features"
    file = Means.UNHASHED | Means.FILE  # the hash has its content
    g.add_argument("--ckpt", type=user_text, nargs="+" if several else None, metavar="FILE", means=file, help=ckpt)
    if required:
        p.needed["ckpt"] = "features"
    g.add_argument("--model", means=Means.FIXED, help="name of the encoder (default: from the checkpoint)")
    trained = "how the encoder was trained (default: from the checkpoint)"
    g.add_argument("--model_type", choices=["contrastive", "cross_entropy"], help=trained)
    keep = "folder of cached features, stored there and used again"
    g.add_argument("--features_cache", type=user_text, metavar="FOLDER", means=Means.RUNNING, help=keep)
    parts = "features of a head: its output, or its hidden layer (default: both, one after the other)"
    g.add_argument("--layer", choices=LAYERS, means=Means.VECTORS, help=parts)


def add_outliers(p, names, detectors):
    """Which images are outliers, and what detects them; returns the group."""
    g = p.add_argument_group("out-of-distribution (OOD) images", means=Means.RESULT)
    g.add_argument("--dataset_outliers", choices=names, help="data set of the OOD images")
    where = Means.UNHASHED | Means.FILE  # the hash has the folder itself, wherever it is named from
    folder = {"type": user_text, "default": "./data", "metavar": "FOLDER", "means": where}
    g.add_argument("--data_folder_outliers", help="folder of the OOD images", **folder)
    rows = "features instead of OOD images; sets --dataset_outliers features"
    vectors = where | Means.VECTORS
    g.add_argument("--features_outliers", type=user_text, nargs="+", metavar="FILE", means=vectors, help=rows)
    g.add_argument(
        "--outlier_classes", nargs="+", default=[], metavar="CLASS", help="OOD classes to use (default: all)"
    )
    split = "split of the OOD images; a folder without splits is used whole"
    g.add_argument("--outlier_split", choices=["test", "train", "all"], default="test", help=split)
    score = "OOD score; msp and energy need a cross-entropy model"
    g.add_argument("--detector", choices=detectors, default="gaussian", help=score)
    neighbor = "k of --detector knn, which scores by the k-th nearest training image"
    g.add_argument("--knn_k", type=positive_int, default=50, help=neighbor)
    return g


def _add_save_folder(g) -> None:
    folder = "root folder of everything that is written"
    g.add_argument("--save_folder", type=user_text, default="./save", metavar="FOLDER", help=folder)


def add_output(p) -> None:
    """Where an evaluation writes."""
    _add_save_folder(p.add_argument_group("output", means=Means.RUNNING))


def add_distributed(p) -> None:
    """How many processes, and how they find one another."""
    g = p.add_argument_group("processes (torchrun and srun set these themselves)", means=Means.RUNNING)
    g.add_argument("--nproc_per_node", type=positive_int, help="processes on this node (default: one per GPU)")
    g.add_argument("--world-size", type=int, default=1, help="number of nodes")
    g.add_argument("--node_rank", "--rank", dest="rank", type=int, default=0, help="index of this node, from 0")
    g.add_argument("--dist-url", metavar="URL", help="tcp://HOST:PORT of node 0 (default: this machine)")
    backend = "communication between processes on CUDA"
    g.add_argument("--dist-backend", default="nccl", type=str.lower, choices=["nccl", "gloo"], help=backend)
    hangs = "minutes without progress after which a run is ended"
    g.add_argument("--timeout_minutes", type=positive, default=30, means=Means.RUNNING_SINCE, help=hangs)


def add_watching(p) -> None:
    """Add what is measured between epochs, beside what costs next to nothing."""
    g = p.add_argument_group("validation", means=Means.RUNNING)
    g.add_argument(
        "--knn_freq", type=count, default=0, metavar="N",
        help="epochs between k-NN accuracies on the validation images; 0: never",
    )  # fmt: skip


def add_objective(p) -> None:
    """Add the objective, and which classes are similar."""
    g, old = p.add_argument_group("loss", means=Means.RESULT), p.compatibility
    which = "loss, described in docs/losses.md (default: rince, or supcon with --n_sim_classes 1)"
    g.add_argument("--loss_type", choices=LOSS_TYPES, means=Means.CARD, help=which)
    g.add_argument("--variant", choices=VARIANTS, means=Means.CARD, help="loss variant (default: in)")
    own = "positives of a rank of rince (default: separate)"
    g.add_argument("--positives", choices=POSITIVES, means=Means.CARD, help=own)
    flag(old, "--mixed_out_in", "--mixed_out_in_log", help="published spelling of --variant out_in")
    in_or_out = "published spelling of --variant in; False: of --variant out"
    flag(old, "--do_sum_in_log", default=True, help=in_or_out)
    merged = "False: published spelling of --loss_type supcon_coarse"
    flag(old, "--one_loss_per_rank", default=True, help=merged)
    flag(old, "--use_same_and_similar_class", help="published spelling of --positives cumulative")
    g.add_argument("--min_tau", type=positive, default=0.1, help="temperature of rank 0")
    g.add_argument("--max_tau", type=positive, default=0.6, help="temperature at similarity 0")
    one_tau = "False: published spelling of --max_tau equal to --min_tau"
    flag(old, "--use_dynamic_tau", default=True, help=one_tau)
    least = "probability threshold: terms of at most this probability are left out; 0: none"
    g.add_argument("--min_probability", type=float, metavar="P", default=1e-7, help=least)
    mean = "mean of the terms of variant out: over all pairs, or first over the pairs of each anchor"
    g.add_argument("--reduction", choices=REDUCTIONS, default="pairs", help=mean)
    knob = {"type": positive, "means": Means.CARD}
    g.add_argument("--target_tau", help="temperature of the targets of xclr (default: 0.1)", **knob)
    width = "kernel width of yaware, with --values in their units (default: similarities are the weights)"
    g.add_argument("--sigma", help=width, **knob)
    g.add_argument("--margin", help="margin of triplet at similarity 0 (default: 0.2)", **knob)
    g = p.add_argument_group("ranking of classes", means=Means.RESULT)
    add_ranking(g)
    flag(old, "--use_supercategories", help="published spelling of --ranking superclass")
    ranking = {"type": user_text, "metavar": "FILE", "means": Means.FILE}
    old.add_argument("--similarity_ranking_imagenet", help="published spelling of --ranking", **ranking)
    add_ranks(g)
    g.add_argument("--hierarchy_k", type=int, default=3, help="largest number of ranks of related classes")
    least = "similarity below which classes count as unrelated"
    g.add_argument("--similarity_threshold", type=float, metavar="P", default=0.0, help=least)
    most = "most similar classes to keep per class, the class included (default: all)"
    g.add_argument("--n_sim_classes", type=positive_int, help=most)
    g.add_argument(
        "--instance_ranks", type=user_text, metavar="FILE", means=Means.FILE | Means.SUBSET | Means.PIXELS,
        help="nested groups instead of classes, CSV image,<finest group>,...,<coarsest>; with --dataset path",
    )  # fmt: skip
    add_values(g)


def add_values(g) -> None:
    """Numbers instead of classes."""
    column = "numbers instead of classes: a column of the image list or the features; label: the label or folder name"
    g.add_argument("--values", metavar="COLUMN", means=Means.IMAGES | Means.SUBSET | Means.CARD, help=column)


def add_cross_entropy(p) -> None:
    """Add the objective of a classifier, and the augmentation that it is compared by."""
    g = p.add_argument_group("loss", means=Means.RESULT | Means.CARD)
    as_published = "augment as the contrastive methods do, instead of crop and flip"
    flag(g, "--use_ssl_augmentations", means=Means.PIXELS | Means.CARD, help=as_published)
    spread = "targets: the class alone, soft by --ranking, or smooth over sibling classes"
    g.add_argument("--targets", choices=["hard", "soft", "smooth"], default="hard", help=spread)
    add_ranking(g)
    steep = "steepness of soft targets, by which they fall with distance (default: 10)"
    g.add_argument("--beta", type=positive, metavar="X", help=steep)
    g.add_argument(
        "--epsilon", type=fraction, metavar="P", help="share of the sibling classes in smooth targets (default: 0.1)"
    )
    second = "linear layers: of classes, or also of superclasses"
    g.add_argument("--heads", type=int, choices=(1, 2), default=1, means=Means.FIXED | Means.CARD, help=second)
    groups = "YAML file of superclasses, for smooth targets or two heads (default: the data set's own)"
    means = Means.FILE | Means.CARD
    g.add_argument("--superclasses", type=user_text, metavar="FILE", means=means, help=groups)


def images_in_name(per_class: int | None) -> str:
    """Return what the name of a run or a result says of --images_per_class; "" without."""
    return f"_{per_class}_per_class" if per_class else ""


def with_layer(args: argparse.Namespace, layer: str) -> argparse.Namespace:
    """Return the options with this --layer."""
    args = copy.copy(args)
    args.layer = layer
    return args


def plain(args: argparse.Namespace) -> dict:
    """Return the options as plain types, for a checkpoint."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(args).items()}


@dataclass(frozen=True)
class RecordedOptions:
    """What the record of a result has of its options: all; those that its name's hash is made of; the check sums of the
    files that they name.
    """

    plain: dict
    hashed: dict
    files: dict


def recorded(args) -> RecordedOptions:
    """Return the options of a result, for its record."""
    given, means = plain(args), args.means
    hashed = {
        k: args.defaults[k] if Means.AS_DEFAULT in means[k] else v
        for k, v in given.items()
        if Means.UNHASHED not in means[k] and not (means[k] & (Means.VECTORS | Means.GIVEN) and v == args.defaults[k])
    }
    return RecordedOptions(given, hashed, args.files)

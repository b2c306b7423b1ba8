"""Argument groups that the scripts share, and what each option means. Booleans are written --flag=True, --flag True, or
--flag alone.
"""

import argparse
import copy
from dataclasses import dataclass

from datasets.feature_views import NORMALIZATIONS
from engine.cli.parsing import (
    Help,
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
    ", max_tau 0.6 (published 0.2), similarity_threshold 0.0 (0.01), n_sim_classes None (5), hierarchy_k 3 (2)"
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


def parser(description: str, defaults: str = "") -> argparse.ArgumentParser:
    """Make a parser whose help shows defaults and whose options must be spelled in full.

    defaults: which of them are not the published ones, for the help's last lines.
    """
    p = Parser(
        description=description, formatter_class=Help, allow_abbrev=False, usage="%(prog)s [--option VALUE ...]",
        epilog=f"Defaults are the published ones, but for data set, size, seed, loader processes{defaults}. Small data "
        "sets (digits, Fashion-MNIST) have their own, in RECIPES at the head of the script; a run's config.yaml has "
        "all that it used.",
    )  # fmt: skip
    p.add_argument(
        "--config", metavar="FILE", default=argparse.SUPPRESS, means=Means.RUNNING | Means.FILE,
        help="YAML of options, such as a run's config.yaml; the command line wins",
    )  # fmt: skip
    return p


LOSS_TYPES = (
    "rince", "supcon", "supcon_coarse", "two_losses", "two_losses_two_heads", "himulcon", "himulcone", "xclr", "yaware",
    "rnc", "triplet",
)  # fmt: skip
SYNC_BN = "BatchNorm of the (query) encoder over the batch of all processes, not of each: slower, CUDA only"


def add_data(p, names) -> None:
    """Which images, and how they are read."""
    g = p.add_argument_group("data", means=Means.IMAGES)
    g.add_argument("--dataset", default="digits", choices=names, means=Means.IMAGES | Means.FIXED, help="data set")
    where = Means.IMAGES | Means.UNHASHED | Means.FILE  # the hash has the folder itself, wherever it is named from
    pixels = Means.IMAGES | Means.PIXELS
    folder = "folder, list in CSV, or shards: Parquet, .tar, .zip"
    g.add_argument("--data_folder", type=user_text, default="./data", means=where | Means.PIXELS, help=folder)
    g.add_argument("--size", type=positive_int, means=pixels, help="side of a view (None: the data set's own)")
    mean = '"(r, g, b)" in [0, 1] (None: the data set\'s, or estimated)'
    g.add_argument("--mean", type=three_numbers, means=pixels, help=mean)
    g.add_argument("--std", type=three_positive, means=pixels, help="likewise")
    which = Means.IMAGES | Means.SUBSET
    told = which | Means.CARD
    g.add_argument(
        "--exclude_classes", "--hold_out", dest="hold_out", nargs="+", default=[], metavar="CLASS", means=told,
        help="classes to leave out",
    )  # fmt: skip
    listed = "list of images to leave out, one path a line"
    g.add_argument("--skip_images", type=user_text, metavar="FILE", means=which | Means.FILE, help=listed)
    few = "train on so many of each class (None: all)"
    g.add_argument("--images_per_class", type=positive_int, metavar="N", means=told, help=few)
    given = Means.IMAGES | Means.GIVEN
    names = "of shards or features: names of integer labels, one per line"
    g.add_argument("--class_names", type=user_text, metavar="FILE", means=given | Means.FILE, help=names)
    columns = "of shards or features: columns of labels, the finest first (default: label, coarse and the like)"
    g.add_argument("--label_columns", nargs="+", metavar="NAME", means=given, help=columns)
    of_all = "images a step, all processes"
    g.add_argument("--batch_size", type=positive_int, default=256, means=Means.CARD, help=of_all)
    by_cores = "loader processes of each process (None: by the cores)"
    g.add_argument("--num_workers", type=count, means=Means.RUNNING, help=by_cores)
    g = p.add_argument_group("features instead of images", means=Means.IMAGES | Means.VECTORS)
    files = {"type": user_text, "nargs": "+", "metavar": "FILE", "means": where | Means.VECTORS}
    forms = "rows of features: .npy, .npz, .safetensors, .pt, Parquet, CSV; sets --dataset features"
    g.add_argument("--features", help=forms, **files)
    g.add_argument("--features_val", help="those to evaluate (default: by a column `split`)", **files)
    files["means"] = Means.IMAGES | Means.FILE | Means.VECTORS
    g.add_argument("--labels", help="labels of --features, where these have none", **files)
    g.add_argument("--labels_val", help="labels of --features_val", **files)
    scale = "scaling of rows (default: as the checkpoint was trained, else l2)"
    vectors = Means.IMAGES | Means.VECTORS | Means.FIXED
    g.add_argument("--normalize", choices=NORMALIZATIONS, means=vectors, help=scale)


def add_views(p) -> None:
    """How training images are augmented, and which of them meet in a batch."""
    usual = "augmentation and batches (None: as published, or as is usual for the data set)"
    g = p.add_argument_group(usual, means=Means.PIXELS)
    add_augmentation(g)
    g = p.add_argument_group("views of features", means=Means.VECTORS)
    dropped = "share of the numbers to drop (default: 0.1; of several stored views, 0)"
    g.add_argument("--dropout", type=share, metavar="P", help=dropped)
    g.add_argument("--noise", type=strength, default=0.0, metavar="X", help="std of Gaussian noise to add")
    g = p.add_argument_group("batches", means=Means.RESULT)
    g.add_argument("--sampler", choices=["shuffled", "balanced"], default="shuffled", help="balanced: equal classes")
    own = "with balanced: images of each class in a batch (None: 4)"
    g.add_argument("--batch_per_class", type=positive_int, metavar="N", help=own)


def add_augmentation(g) -> None:
    """How images are augmented."""
    g.add_argument("--crop_scale", type=crop_scale, metavar="LOW,HIGH", help="share of the area, as 0.2,1; or none")
    flag(g, "--flip", default=None, help="mirror half of the views")
    jitter = "strength of jitter and gray, 1: as published; or none"
    g.add_argument("--color", "--colour", dest="colour", type=strength, metavar="X", help=jitter)
    g.add_argument("--blur", type=share, default=0.0, metavar="P", help="share of the views to blur; or none")


def add_encoder(g) -> None:
    """Which encoder is trained, and where it starts."""
    names = "encoder: torchvision's ResNets, resnet8 to resnet56, timm:NAME; of features: linear, mlp, residual"
    g.add_argument("--model", default="resnet50", means=Means.FIXED, help=names)
    vectors, units = Means.VECTORS | Means.FIXED, "units of mlp's and residual's hidden layer (default: the dimensions)"
    g.add_argument("--hidden_dim", type=positive_int, metavar="N", means=vectors, help=units)
    flag(g, "--batch_norm", means=vectors, help="BatchNorm in that layer")
    # a resume has weights already
    flag(g, "--pretrained", means=Means.FREE | Means.PIXELS, help="start from the library's own weights")
    start = "start from a library's weights, or a checkpoint"
    g.add_argument("--init", type=user_text, metavar="FILE", means=Means.FREE | Means.FILE, help=start)


def add_ranking(g) -> None:
    """Which classes are similar, in a training."""
    ranking = "identity, superclass, roberta_threshold, or a CSV, npz or YAML file"
    g.add_argument("--ranking", type=user_text, means=Means.FILE | Means.CARD, help=ranking)


def add_ranks(g) -> None:
    """How a ranking's values become ranks."""
    names = "--thresholds", "--roberta_float_threshold"
    limits = "falling, one a rank; with --values rising distances"
    g.add_argument(*names, type=float, nargs="+", means=Means.CARD, help=limits)
    every = "a rank for every distinct value of the ranking, instead of --thresholds"
    flag(g, "--ranks", means=Means.RESULT, help=every)


def add_training(p, warm: str = "linear warm-up over 10 epochs; always above batch size 256") -> None:
    """Optimization and what a run leaves behind. warm: the help of --warm."""
    g = p.add_argument_group("optimisation", means=Means.RESULT)
    g.add_argument("--epochs", type=positive_int, default=1000, means=Means.CARD, help="epochs")
    own = "adamw: no decay of biases and norms, and, if not given, rate 0.001, weight decay 0.05, --warm"
    g.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd", means=Means.FIXED | Means.CARD, help=own)
    g.add_argument("--learning_rate", type=positive, default=0.05, means=Means.CARD, help="base learning rate")
    flag(g, "--cosine", help="cosine schedule; else steps")
    g.add_argument("--lr_decay_epochs", type=integers, default=(700, 800, 900), help="of the steps, as 700,800,900")
    g.add_argument("--lr_decay_rate", type=positive, default=0.1, help="factor a step; cosine ends at its cube")
    flag(g, "--warm", help=warm)
    g.add_argument("--momentum", type=fraction, default=0.9, help="of SGD")
    g.add_argument("--weight_decay", type=float, default=1e-4, means=Means.CARD, help="weight decay")
    g.add_argument("--seed", type=int, default=0, means=Means.CARD, help="random seed")
    first = "name the operation whose gradient turns NaN first; slow"
    flag(g, "--detect_anomaly", means=Means.RUNNING_SINCE, help=first)
    g = p.add_argument_group("speed", means=Means.RESULT)  # to the last digits
    where = "flip, color, normalize (None: device on CUDA)"
    free = Means.FREE | Means.PIXELS
    g.add_argument("--augment_on", choices=["device", "worker"], means=free, help=where)
    g.add_argument(
        "--precision", choices=["auto", "float32", "tf32", "bfloat16", "float16"], default="auto",
        help="of encoders; auto: bfloat16 on CUDA",
    )  # fmt: skip
    flag(g, "--channels_last", default=True, help="layout of images and convolutions; False: channels first")
    flag(g, "--compile", help="compile the encoders: slow start, faster steps; wants a C++ compiler")
    g = p.add_argument_group("damaged images", means=Means.PIXELS)
    decode = "decode every image that is trained or validated on before it starts"
    flag(g, "--check_data", means=free, help=decode)
    g.add_argument(
        "--on_bad_image", choices=["error", "skip"], help="(None: error with --check_data, else skip and report)"
    )
    g = p.add_argument_group("output", means=Means.RUNNING)
    g.add_argument("--exp_name", help="name of the run (None: made from the options)")
    g.add_argument("--save_folder", type=user_text, default="./save", help="root of everything written")
    g.add_argument("--save_freq", type=positive_int, default=50, help="epochs between checkpoints that stay")
    few = "of these, the last K only (None: all)"
    g.add_argument("--keep_checkpoints", type=positive_int, metavar="K", means=Means.RUNNING_SINCE, help=few)
    g.add_argument("--print_freq", type=positive_int, default=10, help="steps between progress lines")
    since, inside = Means.RUNNING_SINCE, "minutes between checkpoints inside an epoch"
    g.add_argument("--save_minutes", type=positive, default=10, means=since, help=inside)
    g.add_argument("--max_hours", type=positive, means=since, help="then save, exit with 75 (None: no limit)")
    resume = "checkpoint or run's folder to go on from; auto: this run's own, if it has begun"
    start = Means.START | Means.RUNNING
    g.add_argument("--resume", type=user_text, means=start, help=resume)
    flag(g, "--overwrite", means=start, help="start anew in a folder that holds a run; its files are replaced")


def add_evaluation(p, several: bool = False, required: bool = True) -> None:
    """Whose features, and where results go. several: --ckpt takes any number."""
    g = p.add_argument_group("frozen encoders" if several else "frozen encoder", means=Means.RESULT)
    ckpt = "checkpoint, ours or published, or a run's folder with last.pth" + ("; any number" if several else "")
    file = Means.UNHASHED | Means.FILE  # the hash has its content
    ckpt += "; with --features it may be left out"
    g.add_argument("--ckpt", type=user_text, nargs="+" if several else None, means=file, help=ckpt)
    if required:
        p.needed["ckpt"] = "features"
    g.add_argument("--model", means=Means.FIXED, help="encoder (None: as the checkpoint says)")
    g.add_argument("--model_type", choices=["contrastive", "cross_entropy"], help="its training (None: as in the file)")
    keep = "keep features here, and reuse them"
    g.add_argument("--features_cache", type=user_text, metavar="DIR", means=Means.RUNNING, help=keep)
    parts = "of a head on features: its output, or the hidden layer before it (default: each)"
    g.add_argument("--layer", choices=LAYERS, means=Means.VECTORS, help=parts)


def add_outliers(p, names, detectors):
    """Which images are outliers, and what detects them; returns the group."""
    g = p.add_argument_group("outliers", means=Means.RESULT)
    g.add_argument("--dataset_outliers", choices=names, help="data set of the outliers")
    where = Means.UNHASHED | Means.FILE  # the hash has the folder itself, wherever it is named from
    g.add_argument("--data_folder_outliers", type=user_text, default="./data", means=where, help="its folder")
    rows = "features of the outliers; sets --dataset_outliers features"
    vectors = where | Means.VECTORS
    g.add_argument("--features_outliers", type=user_text, nargs="+", metavar="FILE", means=vectors, help=rows)
    g.add_argument("--outlier_classes", nargs="+", default=[], metavar="CLASS", help="these of its classes only")
    g.add_argument("--outlier_split", choices=["test", "train", "all"], default="test", help="a folder without: whole")
    g.add_argument("--detector", choices=detectors, default="gaussian", help="msp, energy: cross-entropy models only")
    g.add_argument("--knn_k", type=positive_int, default=50, help="neighbour of --detector knn")
    return g


def add_output(p) -> None:
    """Where an evaluation writes."""
    g = p.add_argument_group("output", means=Means.RUNNING)
    g.add_argument("--save_folder", type=user_text, default="./save", help="root of everything written")


def add_distributed(p) -> None:
    """How many processes, and how they find one another."""
    g = p.add_argument_group("processes (torchrun and srun set these themselves)", means=Means.RUNNING)
    g.add_argument("--nproc_per_node", type=positive_int, help="processes of this node (None: one per GPU)")
    g.add_argument("--world-size", type=int, default=1, help="number of NODES")
    g.add_argument("--node_rank", "--rank", dest="rank", type=int, default=0, help="number of this node, from 0")
    g.add_argument("--dist-url", help="tcp://HOST:PORT of node 0 (None: this machine)")
    g.add_argument("--dist-backend", default="nccl", type=str.lower, choices=["nccl", "gloo"], help="on CUDA")
    hangs = "a run that hangs for so long is ended"
    g.add_argument("--timeout_minutes", type=positive, default=30, means=Means.RUNNING_SINCE, help=hangs)


def add_watching(p) -> None:
    """Add what is measured between epochs, beside what costs next to nothing."""
    g = p.add_argument_group("watching", means=Means.RUNNING)
    g.add_argument(
        "--knn_freq", type=count, default=0, metavar="N",
        help="epochs between kNN accuracies on the validation images; 0: never",
    )  # fmt: skip


def add_objective(p) -> None:
    """Add the objective, and which classes are similar."""
    g = p.add_argument_group("objective", means=Means.RESULT)
    which = "loss, see docs/losses.md (default: rince, or supcon if n_sim_classes is 1)"
    g.add_argument("--loss_type", choices=LOSS_TYPES, means=Means.CARD, help=which)
    form = "form of the terms (default: as the two published flags below say)"
    g.add_argument("--variant", choices=VARIANTS, means=Means.CARD, help=form)
    own = "of rince's ranks: each alone, two terms, or up to each (default: separate)"
    g.add_argument("--positives", choices=POSITIVES, means=Means.CARD, help=own)
    flag(g, "--mixed_out_in", "--mixed_out_in_log", help="RINCE out-in: rank 0 out, farther ranks in")
    flag(g, "--do_sum_in_log", default=True, help="else: positives summed in the logarithm (in), or not (out)")
    flag(g, "--one_loss_per_rank", default=True, help="False: all similar classes count as the own class")
    flag(g, "--use_same_and_similar_class", help="published spelling of --positives cumulative")
    g.add_argument("--min_tau", type=positive, default=0.1, help="temperature of rank 0")
    g.add_argument("--max_tau", type=positive, default=0.6, help="temperature at similarity 0")
    flag(g, "--use_dynamic_tau", default=True, help="temperature grows with distance; False: min_tau for all")
    g.add_argument("--min_probability", type=float, default=1e-7, help="harder terms are left out (published); 0: none")
    g.add_argument("--reduction", choices=REDUCTIONS, default="pairs", help="out: mean over pairs, or anchor by anchor")
    knob = {"type": positive, "means": Means.CARD}
    g.add_argument("--target_tau", help="of xclr: temperature of the targets (default: 0.1)", **knob)
    width = "of yaware: width of its kernel, of --values in their units (default: the similarity itself)"
    g.add_argument("--sigma", help=width, **knob)
    g.add_argument("--margin", help="of triplet: margin at similarity 0 (default: 0.2)", **knob)
    g = p.add_argument_group("ranking of classes", means=Means.RESULT)
    add_ranking(g)
    flag(g, "--use_supercategories", help="published spelling of --ranking superclass")
    published = "published spelling of --ranking for ImageNet-100"
    g.add_argument("--similarity_ranking_imagenet", type=user_text, means=Means.FILE, help=published)
    add_ranks(g)
    g.add_argument("--hierarchy_k", type=int, default=3, help="largest distance that counts as similar")
    g.add_argument("--similarity_threshold", type=float, default=0.0, help="smaller similarities become 0")
    g.add_argument("--n_sim_classes", type=positive_int, help="most similar classes to keep, the own included")
    g.add_argument(
        "--instance_ranks", type=user_text, metavar="FILE", means=Means.FILE | Means.SUBSET | Means.PIXELS,
        help="no classes: CSV image,<finest group>,...,<coarsest>; --dataset path",
    )  # fmt: skip
    add_values(g)


def add_values(g) -> None:
    """Numbers instead of classes."""
    column = "no classes: column of numbers in an image list or features; label: the label or folder is the number"
    g.add_argument("--values", metavar="COLUMN", means=Means.IMAGES | Means.SUBSET | Means.CARD, help=column)


def add_cross_entropy(p) -> None:
    """Add the objective of a classifier, and the augmentation that it is compared by."""
    g = p.add_argument_group("objective", means=Means.RESULT | Means.CARD)
    as_published = "augment as the contrastive methods do; else crop and flip"
    flag(g, "--use_ssl_augmentations", means=Means.PIXELS | Means.CARD, help=as_published)
    spread = "target of an image: its class; soft, by --ranking; or smooth, over siblings too"
    g.add_argument("--targets", choices=["hard", "soft", "smooth"], default="hard", help=spread)
    add_ranking(g)
    steep = "with soft: how steeply targets fall with distance (None: 10)"
    g.add_argument("--beta", type=positive, metavar="X", help=steep)
    g.add_argument("--epsilon", type=fraction, metavar="P", help="with smooth: share of the siblings (None: 0.1)")
    second = "2: a second linear layer, of superclasses"
    g.add_argument("--heads", type=int, choices=(1, 2), default=1, means=Means.FIXED | Means.CARD, help=second)
    groups = "with smooth, or two heads: YAML of superclasses (None: the data set's own)"
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

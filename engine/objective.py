"""What main_supcon.py trains on: the options of objective and ranking, the images, and the loss over their ranks."""

import numpy as np
import torch

import datasets
from datasets import rankings
from datasets.rankings import instances
from engine import distributed, options, watching
from engine.parsing import Means
from losses import REDUCTIONS, VARIANTS, NestedRINCELoss, RINCELoss
from util import InputError, user_text

# beside those that every script has
OTHER_DEFAULTS = (
    ", max_tau 0.6 (published 0.2), similarity_threshold 0.0 (0.01), n_sim_classes None (5), hierarchy_k 3 (2)"
)


def add_options(p) -> None:
    """The objective, and which classes are similar."""
    g = p.add_argument_group("objective", means=Means.RESULT)
    which = "None: rince, or supcon if n_sim_classes is 1"
    g.add_argument("--loss_type", choices=["rince", "supcon"], means=Means.CARD, help=which)
    form = "form of the terms (None: as the two published flags below say)"
    g.add_argument("--variant", choices=VARIANTS, means=Means.CARD, help=form)
    options.flag(g, "--mixed_out_in", "--mixed_out_in_log", help="RINCE out-in: rank 0 out, farther ranks in")
    options.flag(g, "--do_sum_in_log", default=True, help="else: positives summed in the logarithm (in), or not (out)")
    options.flag(g, "--one_loss_per_rank", default=True, help="False: all similar classes count as the own class")
    options.flag(g, "--use_same_and_similar_class", help="cumulative positives: the second rank includes the first")
    g.add_argument("--min_tau", type=options.positive, default=0.1, help="temperature of rank 0")
    g.add_argument("--max_tau", type=options.positive, default=0.6, help="temperature at similarity 0")
    options.flag(g, "--use_dynamic_tau", default=True, help="temperature grows with distance; False: min_tau for all")
    g.add_argument("--min_probability", type=float, default=1e-7, help="harder terms are left out (published); 0: none")
    g.add_argument("--reduction", choices=REDUCTIONS, default="pairs", help="out: mean over pairs, or anchor by anchor")
    g = p.add_argument_group("ranking of classes", means=Means.RESULT)
    ranking = "identity, superclass, roberta_threshold, or a CSV, npz or YAML file"
    g.add_argument("--ranking", type=user_text, means=Means.FILE | Means.CARD, help=ranking)
    options.flag(g, "--use_supercategories", help="published spelling of --ranking superclass")
    published = "published spelling of --ranking for ImageNet-100"
    g.add_argument("--similarity_ranking_imagenet", type=user_text, means=Means.FILE, help=published)
    options.add_ranks(g)
    g.add_argument("--hierarchy_k", type=int, default=3, help="largest distance that counts as similar")
    g.add_argument("--similarity_threshold", type=float, default=0.0, help="smaller similarities become 0")
    g.add_argument("--n_sim_classes", type=options.positive_int, help="most similar classes to keep, the own included")
    g.add_argument(
        "--instance_ranks", type=user_text, metavar="FILE", means=Means.FILE | Means.SUBSET,
        help="no classes: CSV image,<finest group>,...,<coarsest>; --dataset path",
    )  # fmt: skip


def variant(args) -> str:
    """--variant, or the published flags' meaning."""
    return args.variant or ("out_in" if args.mixed_out_in else "in" if args.do_sum_in_log else "out")


def load_data(args):
    """The training images, and with --instance_ranks the groups that their labels lie in, and the levels' names."""
    if not args.instance_ranks:
        data = options.training_images(args)
        distributed.say(datasets.left_out(data))
        return data, None
    if args.dataset != "path":
        raise InputError(f"--instance_ranks {args.instance_ranks}: needs --dataset path")
    of_classes = "hold_out", "images_per_class", "ranking", "similarity_ranking_imagenet", "use_supercategories"
    for name in (*of_classes, "thresholds", "ranks"):
        if getattr(args, name, None):  # an evaluation has some of them only
            raise InputError(f"--{name} has no use with --instance_ranks, which makes the ranks, and has no classes")
    data, groups, levels = instances.build(args.data_folder, args.instance_ranks)
    unlisted, left_out = instances.count_unlisted(data, args.data_folder)
    distributed.say(left_out.text())
    if unlisted:
        distributed.say(f"--instance_ranks does not name {unlisted} images of {args.data_folder}: they are left out")
    (data,) = datasets.without(args.skip_images, training=data)
    return data, (groups, levels)


def finest(data, nested=None) -> tuple[torch.Tensor, list[str]]:
    """[n] of the training images: their class, with the classes' names, or their finest group, without any."""
    return (nested[0][data.labels, 0], []) if nested else (data.labels, data.classes)


def held_out(args, transform, data, nested=None) -> watching.OfClasses | watching.OfGroups | None:
    """The images whose neighbours --knn_freq looks at, as evaluation sees them; None without. Raises InputError.

    data, nested: what load_data has.
    """
    if not args.knn_freq:
        return None
    if nested:
        held = watching.OfGroups(datasets.ImageData(data.images, data.labels, data.classes), *nested)
        parts = [held.images]
    else:
        try:
            parts = datasets.build_pair(args.dataset, **options.chosen_images(args))
        except InputError as error:
            raise InputError(f"--knn_freq needs validation images: {error}") from None
        distributed.say(datasets.left_out(parts[1]))
        if len(parts[0]) < watching.VOTES:
            few = f"there are {len(parts[0])} training images, fewer than its {watching.VOTES} neighbors"
            distributed.say(f"--knn_freq: {few}; all of them vote")
        held = watching.OfClasses(*parts)
    for part in parts:
        part.tolerate_damage()  # a picture of the run is not worth ending it
        part.transform = transform
    return held


def build(args, data, nested=None):
    """The loss over the ranking that the options name, the lines that say what a run trains on, and that ranking as its
    checkpoints keep it: tables of classes, names of levels and their groups, or None of SCL over classes.
    """
    max_tau = args.max_tau if args.use_dynamic_tau else args.min_tau
    supcon = args.loss_type == "supcon" or (args.loss_type is None and args.n_sim_classes == 1)
    cumulative = args.use_same_and_similar_class
    how = args.min_tau, max_tau, variant(args), cumulative, args.min_probability, args.reduction
    try:
        if nested:
            groups, levels = (nested[0][:, :1], nested[1][:1]) if supcon else nested
            criterion = NestedRINCELoss(groups, *how)
            lines = instances.summarize_groups(groups, levels, criterion.taus, data.labels)
            kept = {"groups": nested[0], "levels": nested[1]}
        else:
            raw, table = class_ranking(args, data.classes, supcon)
            criterion = RINCELoss(table, *how)
            images = torch.bincount(data.labels, minlength=len(data.classes))
            lines = rankings.summarize_ranking(table, criterion.taus, raw, data.classes, images)
            kept = None if supcon else {"similarity": table, "source": torch.as_tensor(raw)}
            if not supcon and len(criterion.taus) == 1:
                lines.append("warning: no class has a similar class in this ranking; one rank alone is SCL")
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"objective: {error}") from None
    if args.memorybank_size > 2 * len(data):
        lines.append(
            f"warning: --memorybank_size {args.memorybank_size} holds the keys of "
            f"{args.memorybank_size / len(data):.0f} epochs, most of them made by encoders long past; try "
            f"{max(args.batch_size, 2 ** (len(data).bit_length() - 1))}, and a small --batch_size"
        )
    kind = "groups" if nested else "classes"
    form = variant(args) + (", pairs averaged within anchors" if args.reduction == "anchors" else "")
    title = f"{'SCL' if supcon else 'RINCE'} {form}: {len(data)} images, {len(data.classes)} {kind}"
    return criterion, "\n".join([title, *lines]), kept


def class_ranking(args, classes, supcon: bool):
    """Similarities of the classes as their source has them, and as the loss takes them."""
    ranking = args.ranking or args.similarity_ranking_imagenet or ("superclass" if args.use_supercategories else None)
    if supcon:
        return np.eye(len(classes)), torch.eye(len(classes))
    if ranking is None:
        raise InputError("RINCE needs a ranking of classes: give --ranking, or --loss_type supcon for none")
    raw = rankings.find_similarities(ranking, classes, datasets.spec(args.dataset).superclasses)
    ranks = rankings.Ranks(args.thresholds, args.ranks, args.hierarchy_k, args.similarity_threshold, args.n_sim_classes)
    table = rankings.assign_ranks(raw, ranks, f"--ranking {ranking}")
    return raw, table if args.one_loss_per_rank else (table > 0).float()

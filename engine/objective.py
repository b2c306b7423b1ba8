"""The losses that the options of main_supcon.py and main_ce.py name, over the ranking that they name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

import datasets
from datasets import rankings
from datasets.rankings import instances
from engine import factory
from losses import (
    BankLoss,
    ClassRanks,
    CoarseSupConLoss,
    HiMulConLoss,
    NestedRanks,
    RankNContrastLoss,
    Ranks,
    RINCELoss,
    TripletLoss,
    TwoHeadLoss,
    ValueRanks,
    XCLRLoss,
    YAwareLoss,
)
from networks.classifier import Targets, smooth_targets, soft_targets
from util import InputError


class Graded(NamedTuple):
    """By what candidates are graded: own, ranks of which the first is the own label and no other is; ranks; and of
    classes, table [C, C], the similarities before they became ranks; or of numbers, values [V].
    """

    own: Ranks
    ranks: Ranks
    table: torch.Tensor | None = None
    values: torch.Tensor | None = None


@dataclass(frozen=True)
class LossKind:
    """A loss that --loss_type names. needs: "nothing", "ranks" or "table", of a ranking; options: that it reads;
    of_values: whether it takes numbers themselves as well, instead of ranks or a table.
    """

    title: str
    needs: str
    make: Callable[..., BankLoss]
    options: tuple[str, ...] = ()
    of_values: bool = False


def _shape(args):
    """Form, threshold and mean of the terms."""
    return variant(args), args.min_probability, args.reduction


def _rince(args, graded: Graded):
    max_tau = args.max_tau if args.use_dynamic_tau else args.min_tau
    form, least, reduction = _shape(args)
    return RINCELoss(graded.ranks, args.min_tau, max_tau, form, False, least, reduction, positives(args))


def _supcon(args, graded: Graded):
    form, least, reduction = _shape(args)
    return RINCELoss(graded.own, args.min_tau, args.min_tau, form, False, least, reduction)


def _coarse(args, graded: Graded, fine: bool = False):
    return CoarseSupConLoss(graded.ranks, args.min_tau, *_shape(args), fine=fine)


def _values_or(graded: Graded, other: str):
    return getattr(graded, other) if graded.values is None else graded.values


LOSSES = {
    "rince": LossKind("RINCE", "ranks", _rince, ("variant", "positives")),
    "supcon": LossKind("SCL", "nothing", _supcon, ("variant",)),
    "supcon_coarse": LossKind("SCL on the coarsest groups", "ranks", _coarse, ("variant",)),
    "two_losses": LossKind(
        "SCL on classes and on the coarsest groups", "ranks", lambda *x: _coarse(*x, fine=True), ("variant",)
    ),
    "two_losses_two_heads": LossKind(
        "SCL on classes and on the coarsest groups, a head each", "ranks",
        lambda *x: TwoHeadLoss(_supcon(*x), _coarse(*x)), ("variant",),
    ),
    "himulcon": LossKind("HiMulCon", "ranks", lambda args, graded: HiMulConLoss(graded.ranks, args.min_tau)),
    "himulcone": LossKind("HiMulConE", "ranks", lambda args, graded: HiMulConLoss(graded.ranks, args.min_tau, True)),
    "xclr": LossKind(
        "X-CLR", "table", lambda args, graded: XCLRLoss(graded.table, args.min_tau, args.target_tau or 0.1),
        ("target_tau",),
    ),
    "yaware": LossKind(
        "y-aware", "table", lambda args, graded: YAwareLoss(_values_or(graded, "table"), args.min_tau, args.sigma),
        ("sigma",), of_values=True,
    ),
    "rnc": LossKind(
        "rank-n-contrast", "ranks", lambda args, graded: RankNContrastLoss(_values_or(graded, "ranks"), args.min_tau),
        of_values=True,
    ),
    "triplet": LossKind(
        "triplet", "table",
        lambda args, graded: TripletLoss(graded.table, 0.2 if args.margin is None else args.margin), ("margin",),
    ),
}  # fmt: skip


def loss_type(args) -> str:
    """--loss_type, or the published flags' meaning."""
    return args.loss_type or ("supcon" if args.n_sim_classes == 1 else "rince")


def variant(args) -> str:
    """--variant, or the published flags' meaning."""
    return args.variant or ("out_in" if args.mixed_out_in else "in" if args.do_sum_in_log else "out")


def positives(args) -> str:
    """--positives, or the published flag's meaning."""
    if args.positives not in (None, "cumulative") and args.use_same_and_similar_class:
        raise InputError(f"--positives {args.positives}: --use_same_and_similar_class True is cumulative; give one")
    return args.positives or ("cumulative" if args.use_same_and_similar_class else "separate")


def count_heads(args) -> int:
    """Projection heads that the loss wants."""
    return 2 if loss_type(args) == "two_losses_two_heads" else 1


def name_loss(args) -> str:
    """Return what the name of a run says of its loss."""
    kind = loss_type(args)
    parts = [kind, *([positives(args)] if kind == "rince" and positives(args) != "separate" else [])]
    return "_".join([*parts, *([variant(args)] if "variant" in LOSSES[kind].options else [])])


def build_loss(args, data: datasets.ImageData, nested=None):
    """Build the loss over the ranking that the options name, the lines that say what a run trains on, and that ranking
    as its checkpoints keep it: tables of classes, names of levels and their groups, the values of labels, or None of a
    loss that has no ranking.
    """
    kind = LOSSES[loss_type(args)]
    for name in ("variant", "positives", "target_tau", "sigma", "margin"):
        if getattr(args, name) is not None and name not in kind.options:
            raise InputError(f"--{name}: has no use with --loss_type {loss_type(args)}")
    try:
        if nested:
            criterion, lines, kept = _over_groups(args, kind, data, *nested)
        elif args.values:
            criterion, lines, kept = _over_values(args, kind, data)
        else:
            criterion, lines, kept = _over_classes(args, kind, data)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"--loss_type {loss_type(args)}: {error}") from None
    if args.memorybank_size > 2 * len(data):
        lines.append(
            f"warning: --memorybank_size {args.memorybank_size} holds the keys of "
            f"{args.memorybank_size / len(data):.0f} epochs, most of them from much older encoders; try "
            f"{max(args.batch_size, 2 ** (len(data).bit_length() - 1))}, and a small --batch_size"
        )
    images = f"{len(data)} images, {len(data.classes)} {'groups' if nested else 'values' if args.values else 'classes'}"
    return criterion, "\n".join([f"{describe_loss(args)}: {images}", *lines]), kept


def describe_loss(args) -> str:
    """Return the loss in words, for the first line of a run."""
    kind, form = LOSSES[loss_type(args)], variant(args)
    if "variant" not in kind.options:
        return kind.title
    name, _, of = kind.title.partition(" ")
    title = " ".join(filter(None, ["SupCon" if name == "SCL" and form == "all" else f"{name} {form}", of]))
    if "positives" in kind.options and positives(args) != "separate":
        title += f", {positives(args)} positives"
    averaged = args.reduction == "anchors" and "out" in form
    return title + (", pairs averaged within anchors" if averaged else "")


def _over_groups(args, kind: LossKind, data: datasets.ImageData, groups, levels):
    """Loss, lines and what checkpoints keep, over the nested groups of --instance_ranks."""
    if kind.needs == "table":
        raise InputError(f"--loss_type {loss_type(args)}: needs similarities of classes, not --instance_ranks")
    own = groups[:, :1]
    criterion = kind.make(args, Graded(NestedRanks(own), NestedRanks(groups)))
    shown = (own, levels[:1]) if kind.needs == "nothing" else (groups, levels)
    lines = instances.summarize_groups(*shown, _tau_of_ranks(criterion, len(shown[1])), data.labels)
    return criterion, lines, {"groups": groups, "levels": levels}


def _over_values(args, kind: LossKind, data: datasets.ImageData):
    """Return the same over numbers of --values: rank 0 has equal ones, or those within the first of --thresholds."""
    values, limits, flag = data.values, args.thresholds or [], f"--loss_type {loss_type(args)}"
    by_rank = kind.needs == "ranks" and not kind.of_values
    if kind.needs == "table" and not kind.of_values:
        raise InputError(f"{flag}: needs similarities of classes, not --values; give yaware, rnc or rince")
    if kind.of_values and "sigma" in kind.options and args.sigma is None:
        raise InputError(f"{flag}: needs --sigma with --values, the width of its kernel in their units")
    if bool(limits) != by_rank:
        raise InputError(f"{flag}: {'needs' if by_rank else 'has no use for'} --thresholds with --values")
    if limits != sorted({*limits}) or min(limits, default=0) < 0:
        shown = " ".join(f"{x:g}" for x in limits)
        raise InputError(f"--thresholds {shown}: must rise from 0 or more with --values, of which they are distances")
    own = ValueRanks(values, limits[:1] or [0.0])
    graded = Graded(own, ValueRanks(values, limits) if by_rank else own, values=values)
    criterion = kind.make(args, graded)
    lines = [f"values from {data.classes[0]} to {data.classes[-1]}"]
    if not kind.of_values:
        counts = graded.ranks.entries_per_rank(data.labels, data.labels).T
        per_rank = zip(limits or [0.0], _tau_of_ranks(criterion, len(counts)), counts, strict=True)
        for rank, (limit, tau, of_image) in enumerate(per_rank):
            lines.append(instances.describe_rank(rank, f"values within {limit:g}", tau, of_image))
    return criterion, lines, {"values": values}


def _over_classes(args, kind: LossKind, data: datasets.ImageData):
    """Return the same over classes."""
    unrelated = torch.eye(len(data.classes))
    own = ClassRanks(unrelated)
    if kind.needs == "nothing":
        criterion = kind.make(args, Graded(own, own))
        return criterion, _describe_ranks(unrelated, criterion, unrelated.numpy(), data), None
    raw = read_ranking(args, data)
    source = torch.as_tensor(raw)
    if kind.needs == "table":
        for name in ("thresholds", "ranks", "n_sim_classes", "similarity_threshold"):
            if getattr(args, name):
                raise InputError(f"{args.spelling[name]}: has no use with --loss_type {loss_type(args)}, without ranks")
        table = _as_similarities(source)
        others = table[~torch.eye(len(table), dtype=torch.bool)]
        criterion = kind.make(args, Graded(own, own, table))
        lines = [f"similarities of two classes from {others.min():.3g} to {others.max():.3g}"] if len(others) else []
        return criterion, lines, {"similarity": table.clamp(min=0).float(), "source": source}
    ranks = rankings.Ranks(args.thresholds, args.ranks, args.hierarchy_k, args.similarity_threshold, args.n_sim_classes)
    table = rankings.assign_ranks(raw, ranks, f"--ranking {name_ranking(args, data)}")
    table = table if args.one_loss_per_rank else (table > 0).float()
    criterion = kind.make(args, Graded(own, ClassRanks(table)))
    lines = _describe_ranks(table, criterion, raw, data)
    if loss_type(args) == "rince" and len(table[table > 0].unique()) == 1:
        lines.append("warning: no class has a related class in this ranking; with one rank the loss is SCL")
    return criterion, lines, {"similarity": table, "source": source}


def _as_similarities(source: torch.Tensor) -> torch.Tensor:
    """[C, C] float64 in [-1, 1], 1 on the diagonal, as rounded cosines may not be."""
    return source.double().clamp(-1, 1).fill_diagonal_(1)


def _describe_ranks(table: torch.Tensor, criterion: BankLoss, raw: np.ndarray, data: datasets.ImageData) -> list[str]:
    images = torch.bincount(data.labels, minlength=len(data.classes))
    taus = _tau_of_ranks(criterion, len(table[table > 0].unique()))
    return rankings.summarize_ranking(table, taus, raw, data.classes, images)


def _tau_of_ranks(criterion: BankLoss, ranks: int) -> tuple[float, ...]:
    """Return the temperature of each rank: of the terms, of which there may be fewer; the last has the other ranks."""
    return (criterion.taus + criterion.taus[-1:] * ranks)[:ranks]


def name_ranking(args, data: datasets.ImageData) -> str:
    """--ranking, or what the published flags or the data set's superclasses stand for."""
    named = "superclass" if args.use_supercategories else None
    ranking = choose_ranking(args.ranking or args.similarity_ranking_imagenet or named, data)
    if ranking is None:
        name = LOSSES[loss_type(args)].title
        raise InputError(f"{name} needs a ranking of classes: give --ranking, or --loss_type supcon for none")
    return ranking


def choose_ranking(given: str | None, data: datasets.ImageData) -> str | None:
    """Return the given ranking, else the superclasses that labels carry in a column of their own; None without."""
    return given or ("superclass" if isinstance(data.superclasses, rankings.Taxonomy) else None)


def read_ranking(args, data: datasets.ImageData) -> np.ndarray:
    """Similarities [C, C] of the classes as their source has them."""
    return rankings.find_similarities(name_ranking(args, data), data.classes, data.superclasses)


# ---- the objective of main_ce.py -------------------------------------------------------------------------------------


def build_targets(args, data: datasets.ImageData, device) -> tuple[Targets, str]:
    """Return what a classifier of these images is to say of each class, and the objective in words.

    Raises InputError where an option has no use, or soft targets have no ranking.
    """
    soft, smooth, second = args.targets == "soft", args.targets == "smooth", args.heads == 2
    of_soft, of_smooth = (soft, "--targets soft"), (smooth, "--targets smooth")
    of_groups = smooth or second, "--targets smooth or --heads 2"
    uses = {"ranking": of_soft, "beta": of_soft, "epsilon": of_smooth, "superclasses": of_groups}
    for name, (used, flags) in uses.items():
        if getattr(args, name) is not None and not used:
            raise InputError(f"{args.spelling[name]} {getattr(args, name)}: has no use without {flags}")
    title, table = "cross-entropy", None
    groups = find_superclasses(args, data) if smooth or second else None
    if soft:
        ranking, beta = choose_ranking(args.ranking, data), 10.0 if args.beta is None else args.beta
        if ranking is None:
            raise InputError("--targets soft: needs a ranking of classes; give --ranking")
        raw = rankings.find_similarities(ranking, data.classes, data.superclasses)
        table = soft_targets(_as_similarities(torch.as_tensor(raw)), beta)
        title += f", soft targets of {ranking} (beta {beta:g})"
    if smooth:
        epsilon = 0.1 if args.epsilon is None else args.epsilon
        table = smooth_targets(groups, epsilon)
        title += f", targets smooth over siblings (epsilon {epsilon:g})"
    if second:
        title += f", a second head of {int(groups.max()) + 1} superclasses"
    if args.use_ssl_augmentations:
        title += ", contrastive augmentation"
    table = None if table is None else table.float().to(device)
    return Targets(table, groups.to(device) if second else None), title


def find_superclasses(args, data: datasets.ImageData) -> torch.Tensor:
    """[C] the number of each class's superclass, from 0 without gaps, of --superclasses or the data set's own."""
    flags = "--targets smooth" if args.targets == "smooth" else "--heads 2"
    found, source = factory.choose_superclasses(args, data.superclasses, flags)
    groups = rankings.number_superclasses(found, data.classes, source).unique(return_inverse=True)[1]
    if not 1 < int(groups.max()) + 1 < len(groups):
        count = f"{int(groups.max()) + 1} superclasses of {len(groups)} classes"
        raise InputError(f"{flags}: {source} has {count}; it needs several, and one with two classes")
    return groups

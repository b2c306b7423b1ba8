"""Retrieval: training images of the class, or superclass, of each test image, by the features of a trained encoder.

python retrieval.py --dataset cifar100 --data_folder ./data --labelset coarse --ckpt save/SupCon/cifar100_models/NAME
python retrieval.py --dataset cifar100 --data_folder ./data --ranking superclass --ckpt ...   # rank consistency
python retrieval.py --dataset path --data_folder my_images --instance_ranks my_groups.csv --ckpt ...   # no classes
python retrieval.py --dataset path --data_folder my_list.csv --values age --ckpt ...   # numbers instead of classes
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
import torch

import datasets
import evaluation
import figures
from datasets import rankings
from engine import factory
from engine.cli import config, options
from engine.cli.parsing import Means
from engine.encoder import rank_consistency, records, trained_encoder
from engine.encoder.rank_consistency import RetrievalTask
from engine.encoder.trained_encoder import FrozenEncoder
from engine.processes import distributed
from engine.processes.launch import launch
from figures.curves import draw_precision_recall
from util import InputError


def get_parser():
    p = options.parser(__doc__)
    options.add_data(p, datasets.NAMES)
    options.add_evaluation(p)
    g = p.add_argument_group("retrieval", means=Means.RESULT)
    gallery = "images to search for each test image: the training images, or the other test images"
    g.add_argument("--gallery", "--within", dest="within", choices=["train", "test"], default="train", help=gallery)
    vote = "neighbors of the k-NN accuracy, with --values of the regression (default: no accuracy, 10 with --values)"
    g.add_argument("--knn_vote", "--knn_k", dest="knn_k", type=options.positive_int, help=vote)
    labelsets = "labels to retrieve: classes, superclasses, both, or every level of a taxonomy"
    g.add_argument("--labelset", default="fine", choices=["fine", "coarse", "both", "levels"], help=labelsets)
    superclasses = "YAML file of superclasses, or a taxonomy or inaturalist for levels (default: the data set's own)"
    g.add_argument("--superclasses", type=util.user_text, metavar="FILE", means=Means.FILE, help=superclasses)
    only = "classes of queries and gallery: a file of names, or excluded, which are those left out of training"
    g.add_argument("--classes", type=util.user_text, metavar="FILE", means=Means.FILE, help=only)
    groups = "nested groups instead of classes, CSV as in training; each image retrieves the others"
    g.add_argument("--instance_ranks", type=util.user_text, metavar="FILE", means=Means.FILE, help=groups)
    options.add_values(g)
    g = p.add_argument_group("rank consistency", means=Means.RESULT)
    ranking = "ranking to compare with, as in training; checkpoint: the one that it was trained on"
    g.add_argument("--ranking", type=util.user_text, metavar="FILE", means=Means.FILE, help=ranking)
    options.add_ranks(g)
    options.add_output(p)
    options.add_distributed(p)
    return p


def label_sets(args, classes, known) -> dict[str, torch.Tensor]:
    """By name of the label set: [C] the label of each class, itself or its superclass. known: the data set's own."""
    sets = {}
    if args.labelset in ("fine", "both"):
        sets["fine"] = torch.arange(len(classes))
    if args.labelset in ("coarse", "both"):
        groups, source = factory.choose_superclasses(args, known, f"--labelset {args.labelset}")
        sets["coarse"] = rankings.number_superclasses(groups, classes, source)
    elif args.labelset == "levels":
        levels = rank_consistency.read_levels(args.superclasses, classes, known)
        sets = rank_consistency.add_levels({"class": torch.arange(len(classes))}, levels)
    elif args.superclasses:
        raise InputError(f"--superclasses {args.superclasses}: has no use with --labelset fine")
    for name, labels in sets.items():
        if len(labels.unique()) < 2 and args.labelset != "levels":  # a kingdom of its own is a level all the same
            raise InputError(
                f"--labelset {name}: there is one class only, so every image is relevant; give another one"
            )
    return sets


def choose_task(args, net, train) -> RetrievalTask:
    """Classes or superclasses, and with --ranking its order."""
    at_r = args.within == "test"
    classes, sets = train.classes, label_sets(args, train.classes, train.superclasses)
    apart = "coarse" if args.labelset in ("coarse", "both") else None  # a level may be called so, too
    task = RetrievalTask(sets, vote=args.knn_k, at_r=at_r, classes=list(classes), apart=apart)
    if not args.ranking:
        if args.thresholds or args.ranks:
            raise InputError("--thresholds and --ranks: have no use without --ranking")
        return task
    ranks = rankings.Ranks(args.thresholds, args.ranks)
    similarity = rank_consistency.find_similarity(args.ranking, ranks, net, train.superclasses, classes)
    levels = evaluation.Levels.of_table(similarity)
    if len(levels.values) < 2:
        raise InputError(f"--ranking {args.ranking}: has a single rank, so rank consistency is not defined")
    return replace(task, levels=levels, similarity=similarity)


def choose_group_task(args, groups, names) -> RetrievalTask:
    """Every level of nested groups, and their order."""
    if args.within != "train" or args.knn_k:
        raise InputError(
            "--gallery and --knn_vote: have no use with --instance_ranks, whose images retrieve each other"
        )
    if args.labelset != "fine" or args.superclasses or args.classes:
        others = "--labelset, --superclasses or --classes"
        raise InputError(f"--instance_ranks: has no classes for {others}; every level is measured")
    sets = rank_consistency.add_levels({}, dict(zip(names, groups.T, strict=True)))
    return RetrievalTask(sets, evaluation.Levels.of_groups(groups))


def choose_value_task(args, train: datasets.ImageData, test: datasets.ImageData) -> RetrievalTask:
    """Return the numbers of --values."""
    factory.check_values(args, "thresholds", "within", "labelset", "superclasses", "classes")
    return RetrievalTask({}, vote=args.knn_k, query_values=test.values, gallery_values=train.values)


def show(args, task: RetrievalTask, metrics: dict) -> None:
    """Print the tables of label sets and of the order of the ranks."""
    records.show("labels", {name: of for name, of in metrics.items() if name != rank_consistency.RANKS})
    if task.levels is not None:
        ranks = ", ".join(f"{r}: {value:.3g}" for r, value in enumerate(task.levels.values.tolist()))
        print(f"ranks by similarity: {ranks}")
        many = len(task.levels.values) > 5
        shown = {k: v for k, v in metrics[rank_consistency.RANKS].items() if not (many and k.startswith("AUROC "))}
        records.show("order of", {args.ranking or args.instance_ranks: shown})


def build_data(args) -> tuple[datasets.ImageData, datasets.ImageData]:
    """Gallery and queries; of features that look for one another the queries twice, of any classes."""
    which = factory.choose_classes(args)
    if args.features and args.within == "test":
        test = datasets.build(args.dataset, factory.find_data(args), "test", which)
        return test, test
    return datasets.build_pair(args.dataset, factory.find_data(args), which)


def evaluate(
    args, net: FrozenEncoder, task: RetrievalTask, data: list[datasets.ImageData], begin: float, device
) -> None:
    """Features, metrics and result of an encoder, or a layer of it. data: gallery, and queries; begin: when the seconds
    of the result began.
    """
    train, test = data
    with distributed.main_first():
        loading, cache = factory.loading(args, device), factory.features_cache(args)
    gallery = None  # then the queries look for one another
    if test is not train and args.within == "train":
        gallery = trained_encoder.extract_features(net, train, "gallery", loading, cache)
    queries = trained_encoder.extract_features(net, test, "queries", loading, cache)
    if not distributed.is_main():
        return
    metrics, curves, said = rank_consistency.measure(task, queries, test.labels, gallery, train.labels, device)
    seconds = round(time.perf_counter() - begin, 2)
    about = {"images": {"train": len(train), "test": len(test)}, "seconds": seconds} | said
    if task.levels is not None:
        about["similarity_of_ranks"] = task.levels.values.tolist()
    detail = "values" if args.values else args.labelset
    if args.classes:
        about["classes"], detail = train.classes, f"{detail}_{Path(args.classes).stem}"
    given, about, folders = options.recorded(args), about | net.about(), factory.name_data(args)
    path = records.write(given, "retrieval", net.name, detail, metrics, net.record, folders, about)
    title = datasets.title(args.dataset, factory.find_data(args))
    show(args, task, metrics)
    picture, values = path.with_suffix(".png"), (curves, f"retrieval on {title}, {net.name}")
    drawn = figures.try_to_draw(draw_precision_recall, picture, values) if curves else ""
    print(f"saved {path}{drawn}", flush=True)


def worker(args, device):
    """One process: data, encoder, and the result of each of its layers."""
    begin = time.perf_counter()
    with distributed.main_first():
        util.check_folder(args.save_folder, "--save_folder")
        if args.instance_ranks:
            train, (groups, names) = factory.load_data(args)
            test, net = train, factory.load_encoder(args, train)
            task = choose_group_task(args, groups, names)
        else:
            train, test = build_data(args)
            distributed.say((train.left_out + test.left_out).describe())
            net = factory.load_encoder(args, train)
            task = choose_value_task(args, train, test) if args.values else choose_task(args, net, train)
    for given, layer in factory.choose_layers(args, net):
        evaluate(given, layer, task, [train, test], begin, device)
        begin = time.perf_counter()


def main():
    args = config.parse(get_parser(), options.SMALL_DATA)
    launch(partial(worker, args), factory.processes(args))


if __name__ == "__main__":
    util.run_command(main)

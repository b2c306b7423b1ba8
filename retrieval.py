"""Retrieval with a trained encoder: test images look for their class, or superclass, among the training images.

python retrieval.py --dataset cifar100 --data_folder ./data --labelset coarse --ckpt save/SupCon/cifar100_models/NAME
"""

import time
from functools import partial

import util  # first: where packages are missing it says what to do

# isort: split
import torch

import datasets
import evaluation
import figures
from datasets import rankings
from datasets.rankings import files
from engine import config, distributed, frozen, options, results
from engine.launch import launch
from figures.curves import draw_precision_recall
from util import InputError


def get_parser():
    p = options.parser(__doc__)
    options.add_data(p, datasets.NAMES)
    options.add_evaluation(p)
    g = p.add_argument_group("labels")
    g.add_argument("--labelset", default="fine", choices=["fine", "coarse", "both"], help="classes or superclasses")
    superclasses = "YAML file for --labelset coarse (None: the data set's own)"
    g.add_argument("--superclasses", type=util.user_text, help=superclasses)
    options.add_output(p)
    options.add_distributed(p)
    return p


def label_sets(args, classes) -> dict[str, torch.Tensor]:
    """By name of the label set: [C] the label of each class, itself or its superclass."""
    sets = {}
    if args.labelset in ("fine", "both"):
        sets["fine"] = torch.arange(len(classes))
    if args.labelset in ("coarse", "both"):
        groups, source = files.chosen_superclasses(args.superclasses, datasets.spec(args.dataset).superclasses)
        if groups is None:
            hint = "has no superclasses of its own; give --superclasses FILE.yaml"
            raise InputError(f"--labelset {args.labelset}: {args.dataset} {hint}")
        sets["coarse"] = rankings.superclass_labels(groups, classes, source)
    elif args.superclasses:
        raise InputError(f"--superclasses {args.superclasses}: has no use with --labelset fine")
    for name, labels in sets.items():
        if len(labels.unique()) < 2:
            raise InputError(f"--labelset {name}: there is a single class, so that every image is a hit")
    return sets


def worker(args, device):
    """One process: data, features, metrics, result."""
    begin = time.perf_counter()
    with distributed.main_first():
        util.check_folder(args.save_folder, "--save_folder")
        train, test = datasets.build_pair(args.dataset, **options.chosen_images(args))
        distributed.say(datasets.left_out(train, test))
        loading, cache = options.loading(args, device), options.features_cache(args)
        net = frozen.load(options.wanted(args), train)
        groups = label_sets(args, train.classes)
    gallery, gallery_labels = frozen.features(net, train, "gallery", loading, cache)
    features, labels = frozen.features(net, test, "queries", loading, cache)
    if not distributed.is_main():
        return
    metrics, curves = {}, {}
    for labelset, group in groups.items():
        scores, precision, recall = evaluation.retrieval_curve(
            features.to(device), group[labels].to(device), gallery.to(device), group[gallery_labels].to(device)
        )
        metrics[labelset] = {k: 100 * v for k, v in scores.items()}
        curves[labelset] = (precision.cpu(), recall.cpu(), scores["AP"])
    title, folders = ("retrieval", net.name, args.labelset), {"images": args.data_folder}
    about = {"images": {"train": len(gallery), "test": len(features)}, "seconds": util.seconds_since(begin)}
    path = results.write(options.plain(args), title, metrics, net.record, folders, about | net.about())
    data = datasets.title(args.dataset, args.data_folder)
    results.show("labels", metrics)
    picture = path.with_suffix(".png"), curves, f"retrieval on {data}, {net.name}"
    print(f"saved {path}{figures.shown(draw_precision_recall, *picture)}", flush=True)


def main():
    args = config.parse(get_parser(), options.SMALL_DATA)
    launch(partial(worker, args), options.processes(args))


if __name__ == "__main__":
    util.run_command(main)

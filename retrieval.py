"""Retrieval with a trained encoder: test images look for their class, or superclass, among the training images.

python retrieval.py --dataset cifar100 --data_folder ./data --labelset coarse --ckpt save/SupCon/cifar100_models/NAME
"""

import time
from pathlib import Path

import torch

import datasets
import distributed
import evaluation
import frozen
import options
import results
import training
import util
from datasets import ranking_files, rankings
from figures.curves import draw_precision_recall
from util import InputError


def get_parser():
    p = options.parser(__doc__)
    options.add_data(p, datasets.NAMES)
    options.add_evaluation(p)
    g = p.add_argument_group("labels")
    g.add_argument("--labelset", default="fine", choices=["fine", "coarse", "both"], help="classes or superclasses")
    g.add_argument("--superclasses", help="YAML file for --labelset coarse (None: the data set's own)")
    options.add_output(p)
    options.add_distributed(p)
    return p


def coarse_labels(args, classes):
    """[C] the superclass of each class."""
    if args.superclasses:
        source = f"--superclasses {args.superclasses}"
        groups = ranking_files.read_superclasses(Path(args.superclasses), "--superclasses")
    elif datasets.spec(args.dataset).superclasses:
        source = datasets.spec(args.dataset).superclasses
        groups = ranking_files.known_superclasses(source)
    else:
        raise InputError(f"--labelset {args.labelset}: {args.dataset} has none; give --superclasses FILE.yaml")
    return rankings.superclass_labels(groups, classes, source)


def worker(args, device):
    """One process: data, features, metrics, result."""
    begin = time.perf_counter()
    with distributed.main_first():
        util.check_folder(args.save_folder, "--save_folder")
        train, test = datasets.build_pair(args.dataset, args.data_folder, tuple(args.hold_out), skip=args.skip_images)
        net = frozen.load(args, train)
        groups = {}
        if args.labelset in ("fine", "both"):
            groups["fine"] = torch.arange(len(train.classes))
        if args.labelset in ("coarse", "both"):
            groups["coarse"] = coarse_labels(args, train.classes)
        elif args.superclasses:
            raise InputError(f"--superclasses {args.superclasses}: has no use with --labelset fine")
        for labelset, group in groups.items():
            if len(group.unique()) < 2:
                raise InputError(f"--labelset {labelset}: there is a single class, so that every image is a hit")
    gallery, gallery_labels = frozen.features(net, train, args, device, "gallery")
    features, labels = frozen.features(net, test, args, device, "queries")
    if not distributed.is_main():
        return
    metrics, curves = {}, {}
    for labelset, group in groups.items():
        scores, precision, recall = evaluation.retrieval(
            features.to(device), group[labels].to(device), gallery.to(device), group[gallery_labels].to(device)
        )
        metrics[labelset] = {k: 100 * v for k, v in scores.items()}
        curves[labelset] = (precision.cpu(), recall.cpu(), scores["AP"])
    path = results.write(
        args, "retrieval", args.labelset, name=net.name, metrics=metrics, checkpoint=net.record,
        images={"train": len(gallery), "test": len(features)}, data_folders={"images": args.data_folder},
        seconds=time.perf_counter() - begin, more=net.about(),
    )  # fmt: skip
    data = datasets.title(args.dataset, args.data_folder)
    draw_precision_recall(path.with_suffix(".png"), curves, f"retrieval on {data}, {net.name}")
    results.show("labels", metrics)
    print(f"saved {path} and {path.with_suffix('.png').name}", flush=True)


def main():
    distributed.launch(worker, training.parse(get_parser(), training.SMALL_DATA))


if __name__ == "__main__":
    util.run_command(main)

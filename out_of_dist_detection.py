"""Out-of-distribution (OOD) detection: how well features tell images of the training classes from other images.

python out_of_dist_detection.py --exclude_classes 4 8 --dataset_outliers digits --outlier_classes 4 8
    --outlier_split all --ckpt save/SupCon/digits_models/NAME
python out_of_dist_detection.py --dataset cifar100 --data_folder ./data --dataset_outliers cifar10 --ckpt PATH
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
from torch import Tensor

import datasets
import evaluation
import figures
from datasets import rankings
from engine import factory
from engine.cli import config, options
from engine.cli.parsing import Means
from engine.encoder import detectors, records, trained_encoder
from engine.encoder.detectors import DETECTORS, ON_LOGITS
from engine.encoder.trained_encoder import FrozenEncoder
from engine.processes import distributed
from engine.processes.launch import launch
from figures.curves import draw_nearness, draw_ood
from util import InputError


def get_parser():
    p = options.parser(__doc__)
    options.add_data(p, datasets.NAMES)
    options.add_evaluation(p)
    g = options.add_outliers(p, datasets.NAMES, DETECTORS)
    nearness = "ranking of training and OOD classes, to report AUROC by similarity"
    g.add_argument("--ranking", type=util.user_text, metavar="FILE", means=Means.FILE, help=nearness)
    p.needed["dataset_outliers"] = "features_outliers"
    options.add_output(p)
    options.add_distributed(p)
    return p


def load_data(args):
    """Training set, inliers (validation set) and outliers."""
    whole = replace(factory.select_images(args), skip=None, per_class=None)
    train, test = datasets.build_pair(args.dataset, factory.find_data(args), whole)
    folder, only = factory.find_outliers(args), tuple(args.outlier_classes)
    outliers = datasets.build_outliers(args.dataset_outliers, folder, args.outlier_split, only)
    parts = {"training": train, "validation": test, "outlier": outliers}
    train, test, outliers = datasets.leave_out_images(args.skip_images, parts)
    same = args.dataset == args.dataset_outliers
    distributed.say(datasets.check_outliers(train, test, outliers, same, folder))
    return datasets.select_per_class(train, args.images_per_class), test, outliers


def find_nearness(args, train: datasets.ImageData, outliers: datasets.ImageData) -> Tensor | None:
    """[O] with --ranking, the largest similarity of each outlier class to a training class; else None."""
    if not args.ranking:
        return None
    known, others = train.superclasses, outliers.superclasses
    if isinstance(known, rankings.Taxonomy) and others and len(others.levels) == len(known.levels):
        known = rankings.Taxonomy(known.levels, others.groups | known.groups)
    return detectors.compute_nearness(args.ranking, known, train.classes, outliers.classes)


def evaluate(args, net: FrozenEncoder, data: list[datasets.ImageData], near: Tensor | None, begin: float, device):
    """Features, scores and result of an encoder, or a layer of it. data: training, validation, outliers; begin: when
    the seconds of the result began.
    """
    train, test, outliers = data
    with distributed.main_first():
        loading, cache = factory.loading(args, device), factory.features_cache(args)
        outputs = trained_encoder.count_outputs(net, args.dataset, train.classes) if args.detector in ON_LOGITS else 0
    wanted = {"inliers": test, "outliers": outliers}
    if args.detector not in ON_LOGITS:
        wanted = {"train": train, **wanted}
    found = {part: trained_encoder.extract_features(net, data, part, loading, cache) for part, data in wanted.items()}
    if not distributed.is_main():
        return
    parts, said = [found["inliers"], found["outliers"]], {}
    if args.detector in ON_LOGITS:
        parts, said = trained_encoder.compute_logits(net, outputs, parts)
    scores = detectors.compute_scores(args.detector, args.knn_k, device, parts, found.get("train"), train.labels)
    metrics = detectors.compute_metrics(scores, f"--dataset_outliers {args.dataset_outliers}")
    if near is not None:
        by_class = 100 * evaluation.auroc_by_class(*scores, outliers.labels, len(outliers.classes))
        said["nearness"] = detectors.correlate_nearness(near, by_class, outliers.classes)
        if said["nearness"]["Spearman"] is not None:
            metrics["nearness"] = said["nearness"]["Spearman"]
        else:
            print("nearness: no correlation; it needs three OOD classes, and two similarities")
    label, inliers = outliers_label(args, ", "), datasets.title(args.dataset, factory.find_data(args))
    detector = args.detector + (str(args.knn_k) if args.detector == "knn" else "")
    detail = f"{outliers_label(args, '-').replace(' ', '_')}_{detector}"
    images = {"train": len(train), "inliers": len(test), "outliers": len(outliers)}
    about = {"images": images, "seconds": round(time.perf_counter() - begin, 2), **said, **net.about()}
    given, folders = options.recorded(args), name_data(args)
    path = records.write(given, "ood", net.name, detail, metrics, net.record, folders, about)
    records.show(f"{inliers} against", {label: {k: v for k, v in metrics.items() if k != "AUPR"}})
    texts = f"{net.name}: {inliers} against {label}", f"{detector}: {DETECTORS[args.detector]}"
    drawn = figures.try_to_draw(draw_ood, path.with_suffix(".png"), (*scores, metrics, *texts))
    if near is not None:
        values = near, by_class, said["nearness"], args.ranking, texts[0]
        drawn += figures.try_to_draw(draw_nearness, path.with_name(f"{path.stem}_nearness.png"), values)
    print(f"saved {path}{drawn}", flush=True)


def worker(args, device):
    """One process: data, encoder, and the result of each of its layers."""
    begin = time.perf_counter()
    with distributed.main_first():
        util.check_folder(args.save_folder, "--save_folder")
        train, test, outliers = load_data(args)
        distributed.say((train.left_out + test.left_out + outliers.left_out).describe())
        net = factory.load_encoder(args, train)
        near = find_nearness(args, train, outliers)
        trained_encoder.warn_of_seen(net, args.dataset_outliers, outliers.classes)
    for given, layer in factory.choose_layers(args, net):
        evaluate(given, layer, [train, test, outliers], near, begin, device)
        begin = time.perf_counter()


def name_data(args) -> dict[str, str]:
    """Return what the record says of where the images are."""
    if not args.features:
        return {"inliers": args.data_folder, "outliers": args.data_folder_outliers}
    outliers = {f"outliers {i}" if i else "outliers": file for i, file in enumerate(args.features_outliers)}
    return factory.name_data(args) | outliers


def outliers_label(args, comma: str) -> str:
    """Return the outliers' name: data set, the folder's where any folder will do, classes and split where chosen."""
    parts = [datasets.title(args.dataset_outliers, factory.find_outliers(args))]
    if datasets.spec(args.dataset_outliers).read_outliers and args.dataset_outliers not in ("AwA2", "path", "features"):
        parts.append(Path(args.data_folder_outliers).resolve().name)
    if args.outlier_classes:
        names = args.outlier_classes
        if len(comma.join(names)) > 40:  # whole names, as many as are short
            few = [c for i, c in enumerate(names) if len(comma.join(names[: i + 1])) <= 30]
            names = [*few, f"{len(names) - len(few)} more"]
        parts.append(comma.join(names))
    if args.outlier_split != "test":
        parts.append(args.outlier_split)
    return " ".join(parts)


def main():
    args = config.parse(get_parser(), options.SMALL_DATA)
    if bool(args.features) != bool(args.features_outliers):
        raise InputError(f"--dataset_outliers {args.dataset_outliers}: --features and --features_outliers go together")
    launch(partial(worker, args), factory.processes(args))


if __name__ == "__main__":
    util.run_command(main)

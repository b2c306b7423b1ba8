"""Write one HTML page that compares encoders: maps, neighbors, classes and OOD scores.

python report.py --ckpt SCL_RUN RINCE_RUN --names SCL RINCE --out report.html
python report.py --features 'features/train-*' --features_val 'features/val-*' --texts val.csv --ckpt raw RINCE_RUN
"""

import sys
import time

import util  # first: where packages are missing it says what to do

# isort: split
import numpy as np
import torch
import torch.nn.functional as F

import datasets
from datasets import rankings
from datasets.rankings import files
from engine import factory
from engine.cli import options
from engine.cli.parsing import Means
from engine.encoder import detectors, rank_consistency, trained_encoder
from engine.processes import distributed
from figures import encoders
from reports import items, maps, measures, outliers, page, pairs, results, runs
from util import InputError

MEASURED = 20_000  # test items that look for one another: of more, so many
NEIGHBORS = 10


def get_parser():
    p = encoders.parser(__doc__, "report.html", "page")
    g = p.add_argument_group("contents", means=Means.RESULT)
    ranking = "ranking as in training, or checkpoint (default: superclass, if there are superclasses)"
    g.add_argument("--ranking", type=util.user_text, metavar="FILE", help=ranking)
    most = "test items on the maps, equally many per class"
    g.add_argument("--max_items", type=options.positive_int, default=2000, metavar="N", help=most)
    texts = "texts of --features_val, CSV with the same rows"
    rows = {"type": util.user_text, "nargs": "+", "metavar": "FILE", "means": Means.VECTORS}
    g.add_argument("--texts", help=texts, **rows)
    g.add_argument("--texts_outliers", help="texts of --features_outliers, CSV with the same rows", **rows)
    table = "JSON file of a recipe's table, whose results are shown"
    g.add_argument("--table", type=util.user_path, metavar="FILE", help=table)
    options.add_outliers(p, datasets.NAMES, detectors.DETECTORS)
    return p


def check_counts(args, test: datasets.ImageData) -> None:
    """Raise InputError for more encoders than a page has room for, or test items that cannot be compared."""
    if len(args.ckpt or ()) > options.MOST_ENCODERS:
        raise InputError(f"--ckpt: {len(args.ckpt)} encoders; a page compares at most {options.MOST_ENCODERS}")
    if len(test.labels.unique()) < 2:
        source = "--features_val" if args.features else f"--data_folder {args.data_folder}"
        raise InputError(f"{source}: all test items are of one class; a page needs two classes to compare")


def find_similarity(args, comparison: encoders.Comparison) -> np.ndarray | None:
    """[C, C] the ranking that the page compares with; None without one."""
    train, nets = comparison.train, [*comparison.encoders.values()]
    if args.ranking == "checkpoint":
        net = next((net for net in nets if net.ranking), nets[0])
        return rank_consistency.find_similarity(
            args.ranking, rankings.ALL, net, train.superclasses, train.classes
        ).numpy()
    ranking = args.ranking or args.superclasses or (comparison.superclasses and "superclass")
    return rankings.find_similarities(ranking, train.classes, train.superclasses) if ranking else None


def relate_classes(args, comparison: encoders.Comparison) -> pairs.Relations:
    """Collect what is known of the classes."""
    classes, groups = comparison.train.classes, comparison.superclasses
    words = list(files.name_classes(classes).values())
    names = list(files.name_classes(groups).values()) if groups else []
    numbers = encoders.group_numbers(groups, classes)
    return pairs.Relations(words, numbers, names, find_similarity(args, comparison))


def detect_outliers(args, comparison: encoders.Comparison, test: datasets.ImageData, features: dict):
    """Detect the outliers that --dataset_outliers asks for; None without."""
    if not args.dataset_outliers:
        return None
    train, folder = comparison.train, factory.find_outliers(args)
    others = datasets.build_outliers(args.dataset_outliers, folder, args.outlier_split, tuple(args.outlier_classes))
    (others,) = datasets.leave_out_images(args.skip_images, {"outlier": others})
    distributed.say(datasets.check_outliers(train, test, others, args.dataset == args.dataset_outliers, folder))
    ours, theirs = comparison.features(train, "training"), comparison.features(others, "outliers")
    found = {}
    for name, net in comparison.encoders.items():
        on_logits = args.detector in detectors.ON_LOGITS
        outputs = trained_encoder.count_outputs(net, args.dataset, train.classes) if on_logits else 0
        of = outliers.Features(ours[name], train.labels, features[name], theirs[name])
        found[name] = outliers.detect(net, of, outliers.Detector(args.detector, args.knn_k), outputs)
    texts = items.read_texts(args.texts_outliers, others, "--texts_outliers") if args.texts_outliers else None
    looks = items.show_items(others, sorted({i for of in found.values() for i in of.hardest}), texts)
    words = [list(files.name_classes(others.classes).values())[label] for label in others.labels.tolist()]
    title = f"{datasets.title(args.dataset_outliers, folder)} {', '.join(args.outlier_classes)}".strip()
    return page.Outliers(title, detectors.DETECTORS[args.detector], found, looks, words)


def describe(comparison: encoders.Comparison, word: str, measured: int, tables: list) -> page.About:
    """Make what the page says of itself. word: for an item; measured: how many of them are."""
    nets, total = comparison.encoders, len(comparison.test)
    title = f"Comparison of {', '.join(nets)} on {comparison.data}"
    data = f"{total:,} test {word}s of {len(comparison.train.classes)} classes"
    data += f", {measured:,} measured, the same number of each class" if measured < total else ""
    command, versions = runs.describe_command(sys.argv), runs.describe_page()
    return page.About(title, data, word, command, versions, runs.describe_encoders(nets), runs.read_logs(nets), tables)


def main():
    begin = time.perf_counter()
    comparison = encoders.Comparison(get_parser(), page.check_page)
    args, test = comparison.args, comparison.test
    check_counts(args, test)
    texts = items.read_texts(args.texts, test, "--texts") if args.texts else None
    tables = results.read_tables(args.table) if args.table else []
    relations, total = relate_classes(args, comparison), len(test)
    chosen = items.sample_items(test.labels.numpy(), MEASURED)
    if len(chosen) < total:
        test, texts = test.select(chosen.tolist()), texts and [texts[i] for i in chosen]
    features, labels = comparison.features(test, "test items"), test.labels
    shown = items.sample_items(labels.numpy(), args.max_items)
    measured = {name: measures.measure(x, labels, NEIGHBORS) for name, x in features.items()}
    kind = maps.choose_map(len(shown))
    points = maps.make_maps([F.normalize(x[torch.from_numpy(shown)], dim=1).numpy() for x in features.values()], kind)
    cosines = {name: encoders.class_cosines(x, labels, len(relations.names)) for name, x in features.items()}
    wanted = measures.list_needed(shown, [of.nearest for of in measured.values()])
    word = "text" if texts else "row" if test.are_features else "image"
    about = describe(comparison, word, len(test), tables)
    found = detect_outliers(args, comparison, test, features)
    looks = items.show_items(test, wanted, texts)
    compared = page.Compared(
        about, relations, labels.numpy(), shown, total, measured, cosines, points, kind, looks, found
    )
    content = page.render(compared).encode()
    util.write_file(args.out, content)
    print(f"wrote {args.out} ({len(content) / 1e6:.1f} MB, {time.perf_counter() - begin:.0f} s)")


if __name__ == "__main__":
    util.run_command(main)

"""Makes rankings of classes, and shows them.

python rankings.py roberta --names names.csv --out ranking.csv         # cosines of class-name embeddings
python rankings.py roberta --data_folder my_images --out ranking.csv   # the folders' names
python rankings.py wordnet --names names.csv --is_a wordnet.is_a.txt --out ranking.csv  # of wnids
python rankings.py superclass --from my_superclasses.yaml --out ranking.csv
python rankings.py features --dataset cifar100 --ckpt FOLDER --out ranking.csv  # what a network finds similar
python rankings.py noise --from ranking.csv --share 0.3 --seed 0 --out noisy.csv
python rankings.py show ranking.csv --thresholds 0.6 0.4 --out ranking.png
"""

import argparse
import itertools
import re

import util  # first: where packages are missing it says what to do

# isort: split
import numpy as np
import torch

import datasets
import figures
from datasets.rankings import Ranks, builders, files, to_similarity, wordnet
from engine import distributed, frozen, options
from figures.ranking import draw_ranking
from util import InputError


def get_parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = p.add_subparsers(dest="kind", required=True)
    k = kinds.add_parser("roberta", help="cosines of sentence embeddings of the class names")
    _add_classes(k)
    k.add_argument("--model", default=builders.ENCODER, help=f"hub name or local folder (default: {builders.ENCODER})")
    k.add_argument("--template", default="{}", help='such as "a photo of a {}" (default: the name alone)')
    k = kinds.add_parser("wordnet", help="nearness of wnids in WordNet's tree")
    _add_classes(k)
    k.add_argument(
        "--is_a", type=util.user_path, help="ImageNet's wordnet.is_a.txt or WordNet's data.noun (default: NLTK's)"
    )
    k.add_argument("--measure", choices=wordnet.MEASURES, default="path", help="path or Wu-Palmer (default: path)")
    k = kinds.add_parser("superclass", help="0.75 inside a superclass")
    known = ", ".join(files.shipped())
    k.add_argument(
        "--from", dest="source", required=True, type=util.user_text,
        help=f"YAML file, folder superclass/class/, folder cifar-100-python, or one of {known}",
    )  # fmt: skip
    k = kinds.add_parser(
        "features", formatter_class=options.Help, help="cosines of a checkpoint's mean features of the classes"
    )
    options.add_data(k, datasets.NAMES)
    options.add_evaluation(k)
    options.flag(k, "--centre", default=True, help="about the mean of all classes")
    k = kinds.add_parser("noise", aliases=["random"], help="a share of the pairs dealt anew at random")
    k.add_argument("--from", dest="source", type=util.user_path, required=True, help="ranking file")
    k.add_argument("--share", type=float, default=1.0, help="of the pairs, in [0, 1] (default: 1, a random ranking)")
    k.add_argument("--seed", type=options.count, default=0)
    k = kinds.add_parser("show", help="draw a ranking and the ranks that training takes from it")
    k.add_argument("ranking", type=util.user_path)
    k.add_argument("--thresholds", type=float, nargs="+", help="falling, one a rank")
    options.flag(k, "--ranks", help="one rank a distinct value")
    for name, k in {id(k): (name, k) for name, k in kinds.choices.items()}.values():  # an alias is the same parser
        k.add_argument("--out", type=util.user_path, required=name != "show", help="file to write: .csv or .npz")
    return p


def _add_classes(k) -> None:
    k.add_argument("--names", type=util.user_path, help="CSV class,name, or one class a line")
    k.add_argument(
        "--data_folder", type=util.user_path, help="folder of class folders; with --names, their names are there"
    )


def of_names(args) -> tuple[np.ndarray, list[str], str]:
    """Cosines of the embeddings of class names."""
    names = builders.read_classes(args.names, args.data_folder)
    if args.template.count("{}") != 1:
        raise InputError(f"--template {args.template!r}: must hold {{}} once, for the name")
    nameless = [c for c, name in names.items() if re.fullmatch(r"n\d{8}", name)]
    if nameless:
        raise InputError(
            f"the name of the wnid {nameless[0]} is not known here ({len(nameless)} such); give --names with lines "
            "of wnid,name"
        )
    table, about = builders.cosines(names, args.model, args.template)
    return table, list(names), about


def of_features(args) -> tuple[np.ndarray, list[str], str]:
    """Cosines of the class means of a checkpoint's unit features of training images, by default about their mean."""
    training_set = options.training_images(args)
    distributed.say(datasets.left_out(training_set))
    net = frozen.load(options.wanted(args), training_set)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loading, cache = options.loading(args, device), options.features_cache(args)
    x, y = frozen.features(net, training_set, "ranking", loading, cache)
    means = builders.class_means(x, y, len(training_set.classes), args.centre)
    about = f"class means of features; checkpoint {net.record['path']}, sha256 {net.record['sha256'][:16]}"
    centred = ", about their mean" if args.centre else ""
    return builders.cosine_matrix(means), training_set.classes, about + centred


def build(args) -> tuple[np.ndarray, list[str], str]:
    """Table, classes, and what they are, in words."""
    if args.kind == "roberta":
        return of_names(args)
    if args.kind == "wordnet":
        names = builders.read_classes(args.names, args.data_folder)
        table = wordnet.similarities(list(names), wordnet.read_parents(args.is_a), args.measure)
        return table, list(names), f"{args.measure} similarity of wnids, {args.is_a or 'WordNet of NLTK'}"
    if args.kind == "superclass":
        return *builders.superclass_table(builders.read_superclasses(args.source)), f"superclasses of {args.source}"
    if args.kind == "features":
        return of_features(args)
    if not 0 <= args.share <= 1:
        raise InputError(f"--share {args.share}: must lie in [0, 1]")
    table, classes = files.read_table(args.source, "--from")
    noisy, pairs = builders.with_noise(table, args.share, args.seed), np.triu_indices(len(table), k=1)
    changed = f"{int((noisy != table)[pairs].sum())} of {len(pairs[0])} pairs have another value"
    return noisy, classes, f"noise {args.share:g} on {args.source}, seed {args.seed}, {changed}"


def show(args) -> None:
    """Print a ranking's strongest pairs and the ranks of training, and draw both."""
    if args.ranking.suffix in (".yaml", ".yml"):
        table, classes = builders.superclass_table(files.read_superclasses(args.ranking, "show"))
    else:
        table, classes = files.read_table(args.ranking, "show")
    ranks = to_similarity(table, Ranks(args.thresholds, args.ranks), f"show {args.ranking}")
    pairs = sorted(itertools.combinations(range(len(classes)), 2), key=lambda p: -table[p])
    words = files.in_words(classes)
    for a, b in pairs[:10]:
        print(f"{words[classes[a]]} - {words[classes[b]]}: {table[a, b]:.4g}, in training {float(ranks[a, b]):g}")
    out = args.out or args.ranking.with_suffix(".png")
    draw_ranking(out, table, ranks.numpy(), list(words.values()), str(args.ranking))
    print(f"drew {out}")


def main():
    args = get_parser().parse_args()
    if args.out:
        util.check_folder(args.out.absolute().parent, "--out")
    if args.kind == "show":
        figures.check_picture(args.out or args.ranking.with_suffix(".png"), "--out")
        return show(args)
    if args.out.exists():
        raise InputError(f"--out {args.out}: is there already; nothing is overwritten")
    table, classes, about = build(args)
    files.write_table(args.out, table, classes, about)
    print(f"saved {args.out}: {len(classes)} classes, {about}")


if __name__ == "__main__":
    util.run_command(main)

"""Makes rankings of classes, and shows them.

python rankings.py roberta --names names.csv --out ranking.csv         # cosines of class-name embeddings
python rankings.py roberta --data_folder my_images --out ranking.csv   # the folders' names
python rankings.py wordnet --names names.csv --is_a wordnet.is_a.txt --out ranking.csv  # of wnids
python rankings.py superclass --from my_superclasses.yaml --out ranking.csv
python rankings.py features --dataset cifar100 --ckpt FOLDER --out ranking.csv  # what a network finds similar
python rankings.py noise --from ranking.csv --share 0.3 --seed 0 --out noisy.csv
python rankings.py show ranking.csv --thresholds 0.6 0.4 --out ranking.png
python rankings.py compare my_superclasses.yaml ranking.csv --thresholds 0.6 --bank 4096 --out compare.png
"""

import argparse
import itertools
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
import numpy as np
import torch

import datasets
import figures
from datasets.rankings import Ranks, builders, comparison, files, taxonomy, to_similarity, wordnet
from engine import distributed, frozen, options
from figures.comparison import draw_comparison
from figures.ranking import draw_ranking
from util import InputError

DRAWN = ("show", "compare")  # kinds whose --out is a picture


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
    k = kinds.add_parser("superclass", help="0.75 inside a superclass, or a step a level of a taxonomy")
    known = ", ".join(files.shipped())
    k.add_argument(
        "--from", dest="source", required=True, type=util.user_text,
        help=f"YAML file, CSV class,genus,family, folder superclass/class/, folder cifar-100-python, or one of {known}",
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
    k = kinds.add_parser("compare", help="what rankings share, and what training would find in each of them")
    k.add_argument("tables", nargs="+", type=util.user_text, help=f"ranking files, or superclasses of {known}")
    options.add_ranks(k)
    k.add_argument("--k", type=options.positive_int, default=5, help="most similar classes to compare (default: 5)")
    k.add_argument("--bank", type=options.positive_int, default=4096, help="keys in the bank (default: 4096)")
    k.add_argument("--permutations", type=options.positive_int, default=999, help="of the test (default: 999)")
    for name, k in {id(k): (name, k) for name, k in kinds.choices.items()}.values():  # an alias is the same parser
        k.add_argument("--out", type=util.user_path, required=name not in DRAWN, help="file to write: .csv, .npz")
    return p


def _add_classes(k) -> None:
    k.add_argument("--names", type=util.user_path, help="CSV class,name, or one class a line")
    k.add_argument(
        "--data_folder", type=util.user_path, help="folder of class folders; with --names, their names are there"
    )


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
        return builders.of_names(builders.read_classes(args.names, args.data_folder), args.model, args.template)
    if args.kind == "wordnet":
        names = builders.read_classes(args.names, args.data_folder)
        table = wordnet.similarities(list(names), wordnet.read_parents(args.is_a), args.measure)
        return table, list(names), f"{args.measure} similarity of wnids, {args.is_a or 'WordNet of NLTK'}"
    if args.kind == "superclass":
        return *builders.of_levels(args.source), f"superclasses of {args.source}"
    if args.kind == "features":
        return of_features(args)
    return builders.of_noise(args.source, args.share, args.seed)


def show(args, out: Path) -> None:
    """Print a ranking's strongest pairs and the ranks of training, and draw both."""
    if args.ranking.suffix in (".yaml", ".yml") or taxonomy.read(str(args.ranking), "show"):
        table, classes = builders.of_levels(str(args.ranking), "show")
    else:
        table, classes = files.read_table(args.ranking, "show")
    ranks = to_similarity(table, Ranks(args.thresholds, args.ranks), f"show {args.ranking}")
    pairs = sorted(itertools.combinations(range(len(classes)), 2), key=lambda p: -table[p])
    words = files.in_words(classes)
    for a, b in pairs[:10]:
        print(f"{words[classes[a]]} - {words[classes[b]]}: {table[a, b]:.4g}, in training {float(ranks[a, b]):g}")
    draw_ranking(out, table, ranks.numpy(), list(words.values()), str(args.ranking))
    print(f"drew {out}")


def compare(args, out: Path) -> None:
    """Print what rankings share and what training would find in each, and draw them."""
    found = comparison.diagnosis(args.tables, Ranks(args.thresholds, args.ranks), args.bank, args.k, args.permutations)
    print(*found.lines, sep="\n")
    draw_comparison(out, found.tables, found.classes, found.rho)
    print(f"drew {out}")


def main():
    args = get_parser().parse_args()
    if args.out:
        util.check_folder(args.out.absolute().parent, "--out")
    if args.kind in DRAWN:
        picture = args.out or (args.ranking.with_suffix(".png") if args.kind == "show" else Path("compare.png"))
        figures.check_picture(picture, "--out")
        picture.parent.mkdir(parents=True, exist_ok=True)
        return show(args, picture) if args.kind == "show" else compare(args, picture)
    if args.out.exists():
        raise InputError(f"--out {args.out}: is there already; nothing is overwritten")
    table, classes, about = build(args)
    files.write_table(args.out, table, classes, about)
    print(f"saved {args.out}: {len(classes)} classes, {about}")


if __name__ == "__main__":
    util.run_command(main)

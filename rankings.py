"""Make, show and compare rankings of classes.

python rankings.py text --names names.csv --out ranking.csv         # cosines of class-name embeddings
python rankings.py text --data_folder my_images --out ranking.csv   # of the folder names
python rankings.py wordnet --names names.csv --is_a wordnet.is_a.txt --out ranking.csv  # of wnids
python rankings.py superclass --from my_superclasses.yaml --out ranking.csv
python rankings.py features --dataset cifar100 --ckpt FOLDER --out ranking.csv  # cosines of class means
python rankings.py features --features FILE --out ranking.csv                   # the same, of stored features
python rankings.py confusion --dataset cifar100 --ckpt FOLDER --out ranking.csv  # confusions of a classifier
python rankings.py noise --from ranking.csv --share 0.3 --seed 0 --out noisy.csv
python rankings.py show ranking.csv --thresholds 0.6 0.4 --out ranking.png
python rankings.py compare my_superclasses.yaml ranking.csv --thresholds 0.6 --bank 4096 --out compare.png
"""

import itertools
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
import numpy as np
import torch

import datasets
import figures
from datasets import rankings
from datasets.rankings import Ranks, comparison, files, make, text_encoders, wordnet
from engine import factory
from engine.cli import options
from engine.encoder import encoder_ranking, records
from engine.processes import distributed
from figures.ranking import draw_comparison, draw_ranking
from util import InputError

DRAWN = {"show": "the ranking's name with .png", "compare": "compare.png"}  # kinds whose --out is a picture, by default


def get_parser():
    p = options.Parser(description=__doc__)
    kinds = p.add_subparsers(dest="kind", required=True)

    def add(name, about, **how):
        return kinds.add_parser(name, help=about, description=f"{about}.", **how)

    k = add("text", "cosines of text embeddings of the class names", aliases=["roberta"])
    _add_classes(k)
    encoder = "text encoder: name on the Hugging Face hub, or local folder"
    k.add_argument("--model", type=util.user_text, default=text_encoders.ENCODER, help=encoder)
    several = 'prompt, such as "a photo of a {}"; several are averaged (default: the name alone)'
    k.add_argument("--template", nargs="+", metavar="TEXT", default=["{}"], help=several)
    k = add("wordnet", "similarity of wnids in the tree of WordNet")
    _add_classes(k)
    is_a = "ImageNet's wordnet.is_a.txt or WordNet's data.noun (default: from NLTK)"
    k.add_argument("--is_a", type=util.user_path, metavar="FILE", help=is_a)
    similarity = "path similarity, or that of Wu and Palmer"
    k.add_argument("--measure", choices=wordnet.MEASURES, default="path", help=similarity)
    k = add("superclass", "0.75 inside a superclass, or one step per level of a taxonomy")
    groups = "YAML file, CSV class,genus,family, folder superclass/class/, folder cifar-100-python"
    known = f"or one of {', '.join(rankings.list_shipped())}"
    k.add_argument(
        "--from", dest="source", required=True, type=util.user_text, metavar="FILE", help=f"{groups}, {known}"
    )
    k = add("features", "cosines of the class means of a checkpoint's features", usage=options.USAGE)
    _add_network(k)
    options.flag(k, "--center", "--centre", default=True, help="subtract the mean of all classes first")
    k = add("confusion", "how often a classifier confuses two classes", usage=options.USAGE)
    _add_network(k, required=False)
    k.add_argument("--from", dest="source", type=util.user_path, metavar="FILE", help="CSV of counts instead of --ckpt")
    k = add("noise", "a ranking with a share of its pairs exchanged at random", aliases=["random"])
    ranking = f"ranking: matrix in CSV or .npz, {groups}, {known}, roberta_threshold"
    k.add_argument("--from", dest="source", type=util.user_text, required=True, metavar="FILE", help=ranking)
    share = "share of the pairs (default: 1, a random ranking)"
    k.add_argument("--share", type=float, metavar="P", default=1.0, help=share)
    k.add_argument("--seed", type=options.count, default=0, help="random seed")
    k = add("show", "picture of a ranking, and of the ranks that training takes from it")
    k.add_argument("ranking", type=util.user_text, help=ranking)
    options.add_ranks(k)
    k = add("compare", "agreement of rankings, and the ranks that training takes from each")
    k.add_argument("tables", nargs="+", type=util.user_text, help=ranking)
    options.add_ranks(k)
    k.add_argument("--k", type=options.positive_int, help="most similar classes to compare (default: 5, or all others)")
    k.add_argument("--bank", type=options.positive_int, default=4096, help="keys in the memory bank")
    k.add_argument("--permutations", type=options.positive_int, default=999, help="permutations of the test")
    for name, k in {id(k): (name, k) for name, k in kinds.choices.items()}.values():  # an alias is the same parser
        picture = f"picture to write: {', '.join(figures.FORMATS)} (default: {DRAWN.get(name)})"
        what = picture if name in DRAWN else "ranking file to write: .csv or .npz"
        k.add_argument("--out", type=util.user_path, required=name not in DRAWN, metavar="FILE", help=what)
    return p


def _add_classes(k) -> None:
    names = "CSV class,name with one class per line, or a data set, such as cifar100"
    k.add_argument("--names", type=util.user_path, metavar="FILE", help=names)
    folder = "folder of class folders; with --names, only to choose the classes"
    k.add_argument("--data_folder", type=util.user_path, metavar="FOLDER", help=folder)


def _add_network(k, required: bool = True) -> None:
    options.add_data(k, datasets.NAMES)
    options.add_evaluation(k, required=required)


def ask_network(args) -> tuple[np.ndarray, list[str], str]:
    """Return what a checkpoint's features of training images, or its outputs for validation images, find similar."""
    errors = args.kind == "confusion"
    pair = datasets.build_pair(args.dataset, factory.find_data(args), factory.select_images(args)) if errors else ()
    data = pair[1] if errors else factory.training_images(args)
    distributed.say(data.left_out.describe())
    net = factory.load_layer(args, data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loading, cache = factory.loading(args, device), factory.features_cache(args)
    if errors:
        table, about = encoder_ranking.compare_errors(net, data, loading, cache, args.dataset)
    else:
        table, about = encoder_ranking.compare_means(net, data, loading, cache, args.center)
    return table, data.classes, about


def build(args) -> tuple[np.ndarray, list[str], str]:
    """Table, classes, and what they are, in words."""
    if args.kind in ("text", "roberta"):
        return make.compare_names(make.read_classes(args.names, args.data_folder), args.model, args.template)
    if args.kind == "wordnet":
        return wordnet.compare_wnids([*make.read_classes(args.names, args.data_folder)], args.is_a, args.measure)
    if args.kind == "superclass":
        return make.read_groups(args.source)
    if args.kind in ("noise", "random"):
        return make.add_noise(args.source, args.share, args.seed)
    if args.kind == "confusion" and bool(args.ckpt) == bool(args.source):
        raise InputError("confusion: give --ckpt, a cross-entropy model, or --from, a CSV of counts")
    return ask_network(args) if args.kind == "features" or args.ckpt else make.read_confusions(args.source)


def show(args, out: Path) -> None:
    """Print a ranking's most similar pairs, and draw it with the ranks that training takes from it."""
    table, classes = rankings.load(args.ranking, "show")
    trained = rankings.assign_ranks(table, Ranks(args.thresholds, args.ranks), f"show {args.ranking}").numpy()
    words = list(files.name_classes(classes).values())
    for pair in sorted(itertools.combinations(range(len(words)), 2), key=lambda pair: -table[pair])[:10]:
        a, b = (words[c] for c in pair)
        print(f"{a} - {b}: {table[pair]:.6g}, in training {float(trained[pair]):g}")
    draw_ranking(out, table, trained, words, args.ranking)
    print(f"drew {out}")


def print_numbers(title: str, rows: dict[str, dict[str, float]]) -> None:
    """Print a table of numbers, to four digits and four decimal places; "-" for NaN."""
    cells = {n: {c: "-" if np.isnan(x) else f"{round(x, 4):.4g}" for c, x in row.items()} for n, row in rows.items()}
    records.show(title, cells)


def compare(args, out: Path) -> None:
    """Print what rankings share and what training would find in each, and draw them."""
    tables, classes, left_out = comparison.load_common(args.tables)
    k = args.k or min(5, len(classes) - 1)
    if not 1 <= k < len(classes):
        raise InputError(f"--k {k}: must be below the number of classes, {len(classes)}")
    distributed.say(left_out)
    pairs = comparison.compare_pairs(tables, k, args.permutations)
    if pairs:
        print_numbers("rankings", {f"{a}, {b}": row for (a, b), row in pairs.items()})
    for name, table in tables.items():
        try:
            similarity = rankings.assign_ranks(table, Ranks(args.thresholds, args.ranks), name)
        except InputError as error:
            print(f"{name}: training cannot use it as it is: {str(error).removeprefix(f'{name}: ')}")
        else:
            print_numbers(f"ranks of {name}", comparison.foresee_ranks(similarity, args.bank))
    rho = {b: None if np.isnan(row["rho"]) else row["rho"] for (a, b), row in pairs.items() if a == args.tables[0]}
    draw_comparison(out, tables, classes, rho)
    print(f"drew {out}")


def main():
    args = get_parser().parse_args()
    if getattr(args, "features", None):
        args.dataset = "features"
    if args.out:
        util.check_folder(args.out.absolute().parent, "--out")
    if args.kind in DRAWN:
        picture = args.out or (Path(args.ranking).with_suffix(".png") if args.kind == "show" else Path("compare.png"))
        figures.check_picture(picture, "--out")
        picture.parent.mkdir(parents=True, exist_ok=True)
        return show(args, picture) if args.kind == "show" else compare(args, picture)
    files.check_new(args.out, "--out")
    table, classes, about = build(args)
    files.write_matrix(args.out, table, classes, about)
    print(f"saved {args.out}: {len(classes)} classes, {about}")


if __name__ == "__main__":
    util.run_command(main)

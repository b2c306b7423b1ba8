"""Builds ranking files, and shows them; run as `python -m datasets.rankings`.

python -m datasets.rankings roberta --names names.csv --out ranking.csv         # cosines of class-name embeddings
python -m datasets.rankings roberta --data_folder my_images --out ranking.csv   # the folders' names
python -m datasets.rankings wordnet --names names.csv --is_a wordnet.is_a.txt --out ranking.csv  # of wnids
python -m datasets.rankings superclass --from my_superclasses.yaml --out ranking.csv
python -m datasets.rankings features --dataset cifar100 --ckpt FOLDER --out ranking.csv  # what a network finds similar
python -m datasets.rankings noise --from ranking.csv --share 0.3 --seed 0 --out noisy.csv
python -m datasets.rankings show ranking.csv --thresholds 0.6 0.4 --out ranking.png
"""

import argparse
import itertools
import pickle
import re
from pathlib import Path

import numpy as np
import torch

import datasets
import options
import util
from datasets import ranking_files, rankings, sources, wordnet
from figures.ranking import draw_ranking
from util import InputError

ENCODER = "sentence-transformers/all-distilroberta-v1"


# ---- tables ----------------------------------------------------------------------------------------------------------


def embed(texts: list[str], tokenizer, model, batch: int = 64) -> torch.Tensor:
    """[n, d] unit vectors: the mean of a text's last hidden states over its tokens (Reimers and Gurevych 2019)."""
    found = []
    for start in range(0, len(texts), batch):
        inputs = tokenizer(texts[start : start + batch], padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state.double()
        mask = inputs["attention_mask"][..., None].double()
        found.append((hidden * mask).sum(1) / mask.sum(1))
    return torch.nn.functional.normalize(torch.cat(found), dim=1)


def text_encoder(name: str):
    """Tokenizer and model of a hub name or local folder, and the revision; InputError if it cannot be had."""
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():  # no name of the hub: ask nobody
        raise InputError(f"--model {name}: no such folder")
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name)
    except Exception as error:  # no such folder, no network, a damaged file: transformers has an exception for each
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"--model {name}: cannot be loaded ({reason}); fetch it where there is a network, with "
            f"`hf download {ENCODER} --local-dir FOLDER`, and give --model FOLDER"
        ) from None
    return tokenizer, model.eval(), getattr(model.config, "_commit_hash", None) or "local folder"


def cosines(names: dict[str, str], model_name: str, template: str) -> tuple[np.ndarray, str]:
    """[C, C] cosines of the names' embeddings, rounded to six places, and what they were made of, in words."""
    tokenizer, model, revision = text_encoder(model_name)
    table = cosine_matrix(embed([template.format(name) for name in names.values()], tokenizer, model).numpy())
    return table, f"cosine of class names; model {model_name}, revision {revision}, template {template!r}"


def superclass_table(groups: dict[str, list[str]]) -> tuple[np.ndarray, list[str]]:
    """1 on the diagonal, 0.75 inside a superclass, 0 elsewhere, and the sorted classes that it is in."""
    classes = sorted(c for members in groups.values() for c in members)
    return rankings.superclass_table(groups, classes, "superclasses"), classes


def of_features(args) -> tuple[np.ndarray, list[str], str]:
    """Cosines of the class means of a checkpoint's unit features of training images, by default about their mean."""
    import frozen

    training_set = datasets.build(args.dataset, args.data_folder, "train", tuple(args.hold_out))
    net = frozen.load(args, training_set)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x, y = frozen.features(net, training_set, args, device, "ranking")
    means = class_means(x, y, len(training_set.classes), args.centre)
    about = f"class means of features; checkpoint {net.record['path']}, sha256 {net.record['sha256'][:16]}"
    return cosine_matrix(means), training_set.classes, about + (", about their mean" if args.centre else "")


def class_means(features: torch.Tensor, labels: torch.Tensor, classes: int, centre: bool) -> np.ndarray:
    """[C, d] the mean unit feature of each class; centre: minus the mean of these means.

    Features after a ReLU all point into one corner; about their mean, their cosines spread over [-1, 1].
    """
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    means = torch.stack([unit[labels == c].mean(0) for c in range(classes)])
    return (means - means.mean(0) if centre else means).numpy()


def cosine_matrix(x: np.ndarray) -> np.ndarray:
    """[C, C] cosines of rows, rounded to six places, symmetric, 1 on the diagonal."""
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    table = np.round(x @ x.T, 6).clip(-1, 1)
    table = (table + table.T) / 2
    np.fill_diagonal(table, 1.0)
    return table


def with_noise(table: np.ndarray, share: float, seed: int) -> np.ndarray:
    """The table with the values of a random share of its pairs of classes dealt anew among these pairs.

    It stays symmetric with the same values, so that the ranks keep their sizes; share 1 is a random ranking.
    """
    rng = np.random.default_rng(seed)
    a, b = np.triu_indices(len(table), k=1)
    chosen = rng.permutation(len(a))[: round(share * len(a))]
    result = table.copy()
    result[a[chosen], b[chosen]] = table[a[chosen], b[chosen]][rng.permutation(len(chosen))]
    result[b[chosen], a[chosen]] = result[a[chosen], b[chosen]]
    return result


# ---- classes and superclasses ----------------------------------------------------------------------------------------


def read_classes(args) -> dict[str, str]:
    """class -> name in words, of --names, --data_folder, or the folder's classes by the names of the file."""
    if not args.data_folder:
        return ranking_files.read_names(args.names)
    try:
        classes = sources.image_folder(args.data_folder, "train")[2]
    except InputError as error:
        raise InputError(f"--data_folder {error}") from None
    if not args.names:
        return ranking_files.in_words(classes)
    names = ranking_files.read_names(args.names)
    foreign = [c for c in names if c not in classes]
    if foreign:
        raise InputError(
            f"--names {args.names}: {foreign[0]} is no class of {args.data_folder} ({len(foreign)} in all); its "
            f"classes are {', '.join(classes[:5])}" + (", ..." if len(classes) > 5 else "")
        )
    missing = [c for c in classes if c not in names]
    if missing:
        raise InputError(f"--names {args.names}: lacks the class {missing[0]} ({len(missing)} in all)")
    return {c: names[c] for c in classes}


def read_superclasses(source: str) -> dict[str, list[str]]:
    """superclass -> classes: a data set's own by its name, a YAML file, a folder superclass/class/, or CIFAR-100's."""
    path = Path(source)
    if not path.exists() and source in ranking_files.SUPERCLASSES:
        return ranking_files.known_superclasses(source)
    if not path.exists():
        known = ", ".join(ranking_files.SUPERCLASSES)
        raise InputError(f"--from {source}: no such file or folder, and none of {known}")
    if path.is_file():
        return ranking_files.read_superclasses(path, "--from")
    for folder in (path, path / "cifar-100-python"):
        if (folder / "meta").is_file() and (folder / "train").is_file():
            return _coarse_labels(folder)
    return tree(path)


def _coarse_labels(folder: Path) -> dict[str, list[str]]:
    """CIFAR-100's own: the coarse label that its training images carry beside the fine one."""
    try:
        meta, train = (pickle.loads((folder / name).read_bytes(), encoding="latin1") for name in ("meta", "train"))
        pairs = sorted(set(zip(train["coarse_labels"], train["fine_labels"], strict=True)))
        coarse, fine = meta["coarse_label_names"], meta["fine_label_names"]
        groups = {name: [fine[f] for c, f in pairs if coarse[c] == name] for name in coarse}
    except Exception as error:  # a damaged pickle fails in many ways
        raise InputError(f"--from {folder}: CIFAR-100's files are damaged ({error!r})") from None
    if sorted(c for members in groups.values() for c in members) != sorted(fine):
        raise InputError(f"--from {folder}: its training images do not give every class one coarse label")
    return groups


def tree(folder: Path) -> dict[str, list[str]]:
    """superclass -> classes of a folder superclass/class/images."""
    groups = {f.name: sorted(g.name for g in f.iterdir() if g.is_dir()) for f in sorted(folder.iterdir()) if f.is_dir()}
    empty = [name for name, classes in groups.items() if not classes]
    if not groups or empty:
        raise InputError(
            f"--from {folder}: {empty[0] if empty else 'it'} holds no folders; it must be superclass/class/"
        )
    names = [c for classes in groups.values() for c in classes]
    twice = [c for c in names if names.count(c) > 1]
    if twice:
        raise InputError(f"--from {folder}: the class {twice[0]} lies in two superclasses")
    return groups


# ---- command line ----------------------------------------------------------------------------------------------------


def get_parser():
    p = argparse.ArgumentParser(
        prog="rankings.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = p.add_subparsers(dest="kind", required=True)
    k = kinds.add_parser("roberta", help="cosines of sentence embeddings of the class names")
    _add_classes(k)
    k.add_argument("--model", default=ENCODER, help=f"hub name or local folder (default: {ENCODER})")
    k.add_argument("--template", default="{}", help='such as "a photo of a {}" (default: the name alone)')
    k = kinds.add_parser("wordnet", help="nearness of wnids in WordNet's tree")
    _add_classes(k)
    k.add_argument("--is_a", type=Path, help="ImageNet's wordnet.is_a.txt or WordNet's data.noun (default: NLTK's)")
    k.add_argument("--measure", choices=wordnet.MEASURES, default="path", help="path or Wu-Palmer (default: path)")
    k = kinds.add_parser("superclass", help="0.75 inside a superclass")
    known = ", ".join(ranking_files.SUPERCLASSES)
    k.add_argument(
        "--from", dest="source", required=True,
        help=f"YAML file, folder superclass/class/, folder cifar-100-python, or one of {known}",
    )  # fmt: skip
    k = kinds.add_parser(
        "features", formatter_class=options.Help, help="cosines of a checkpoint's mean features of the classes"
    )
    options.add_data(k, datasets.NAMES)
    options.add_evaluation(k)
    options.flag(k, "--centre", default=True, help="about the mean of all classes")
    k = kinds.add_parser("noise", aliases=["random"], help="a share of the pairs dealt anew at random")
    k.add_argument("--from", dest="source", type=Path, required=True, help="ranking file")
    k.add_argument("--share", type=float, default=1.0, help="of the pairs, in [0, 1] (default: 1, a random ranking)")
    k.add_argument("--seed", type=options.count, default=0)
    k = kinds.add_parser("show", help="draw a ranking and the ranks that training takes from it")
    k.add_argument("ranking", type=Path)
    k.add_argument("--thresholds", type=float, nargs="+", help="falling, one a rank")
    options.flag(k, "--ranks", help="one rank a distinct value")
    for name, k in {id(k): (name, k) for name, k in kinds.choices.items()}.values():  # an alias is the same parser
        k.add_argument("--out", type=Path, required=name != "show", help="file to write: .csv or .npz")
    return p


def _add_classes(k) -> None:
    k.add_argument("--names", type=Path, help="CSV class,name, or one class a line")
    k.add_argument("--data_folder", type=Path, help="folder of class folders; with --names, their names are there")


def build(args) -> tuple[np.ndarray, list[str], str]:
    """Table, classes, and what they are, in words."""
    if args.kind in ("roberta", "wordnet"):
        if not args.names and not args.data_folder:
            raise InputError("which classes? give --names, --data_folder, or both")
        names = read_classes(args)
    if args.kind == "roberta":
        if args.template.count("{}") != 1:
            raise InputError(f"--template {args.template!r}: must hold {{}} once, for the name")
        nameless = [c for c, name in names.items() if re.fullmatch(r"n\d{8}", name)]
        if nameless:
            raise InputError(
                f"the name of the wnid {nameless[0]} is not known here ({len(nameless)} such); give --names with lines "
                "of wnid,name"
            )
        table, about = cosines(names, args.model, args.template)
        return table, list(names), about
    if args.kind == "wordnet":
        table = wordnet.similarities(list(names), wordnet.read_parents(args.is_a), args.measure)
        return table, list(names), f"{args.measure} similarity of wnids, {args.is_a or 'WordNet of NLTK'}"
    if args.kind == "superclass":
        return *superclass_table(read_superclasses(args.source)), f"superclasses of {args.source}"
    if args.kind == "features":
        return of_features(args)
    if not 0 <= args.share <= 1:
        raise InputError(f"--share {args.share}: must lie in [0, 1]")
    table, classes = ranking_files.read_table(args.source, "--from")
    noisy, pairs = with_noise(table, args.share, args.seed), np.triu_indices(len(table), k=1)
    changed = f"{int((noisy != table)[pairs].sum())} of {len(pairs[0])} pairs have another value"
    return noisy, classes, f"noise {args.share:g} on {args.source}, seed {args.seed}, {changed}"


def show(args) -> None:
    """Print a ranking's strongest pairs and the ranks of training, and draw both."""
    if args.ranking.suffix in (".yaml", ".yml"):
        table, classes = superclass_table(ranking_files.read_superclasses(args.ranking, "show"))
    else:
        table, classes = ranking_files.read_table(args.ranking, "show")
    ranks = rankings.to_similarity(
        table, source=f"show {args.ranking}", thresholds=args.thresholds, every_value=args.ranks
    )
    pairs = sorted(itertools.combinations(range(len(classes)), 2), key=lambda p: -table[p])
    words = ranking_files.in_words(classes)
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
        return show(args)
    if args.out.exists():
        raise InputError(f"--out {args.out}: is there already; nothing is overwritten")
    table, classes, about = build(args)
    ranking_files.write_table(args.out, table, classes, about)
    print(f"saved {args.out}: {len(classes)} classes, {about}")

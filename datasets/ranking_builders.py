"""Builds ranking files, and shows them; run as `python -m datasets.rankings`.

python -m datasets.rankings roberta --names names.csv --out ranking.csv         # cosines of class-name embeddings
python -m datasets.rankings roberta --data_folder my_images --out ranking.csv   # the folders' names
python -m datasets.rankings superclass --from my_superclasses.yaml --out ranking.csv
python -m datasets.rankings noise --from ranking.csv --share 0.3 --seed 0 --out noisy.csv
python -m datasets.rankings show ranking.csv --thresholds 0.6 0.4 --out ranking.png
"""

import argparse
import csv
import io
import itertools
from pathlib import Path

import numpy as np
import torch

import util
from datasets import rankings, sources
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
    z = embed([template.format(name) for name in names.values()], tokenizer, model).numpy()
    table = np.round(z @ z.T, 6)
    table = (table + table.T) / 2
    np.fill_diagonal(table, 1.0)
    return table, f"cosine of class names; model {model_name}, revision {revision}, template {template!r}"


def superclass_table(groups: dict[str, list[str]]) -> tuple[np.ndarray, list[str]]:
    """1 on the diagonal, 0.75 inside a superclass, 0 elsewhere, and the sorted classes that it is in."""
    classes = sorted(c for members in groups.values() for c in members)
    table = rankings.superclass_table(groups, classes, "superclasses")
    np.fill_diagonal(table, 1.0)
    return table, classes


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


# ---- names and files -------------------------------------------------------------------------------------------------


def read_names(path: Path) -> dict[str, str]:
    """class -> name in words: a CSV of two columns, or one class a line, its underscores as blanks."""
    try:
        rows = [row for row in csv.reader(path.read_text().splitlines()) if row]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--names {path}: not readable ({error})") from None
    rows = rows[1:] if rows and rows[0][0].lower() in ("class", "wnid") else rows
    names = [row[0].strip() for row in rows]
    twice = [name for name in names if names.count(name) > 1]
    if not rows or twice:
        raise InputError(f"--names {path}: " + (f"class {twice[0]} stands in it twice" if twice else "is empty"))
    return {row[0].strip(): row[1].strip() if len(row) > 1 else in_words(row[0].strip()) for row in rows}


def folder_names(folder: Path) -> dict[str, str]:
    """class -> name in words of a folder of class folders; ImageNet-100's wnids by their published names."""
    classes = sources.image_folder(folder, "train")[2]
    known = read_names(Path(__file__).parent / "imagenet100_names.csv")
    return {c: known.get(c, in_words(c)) for c in classes}


def in_words(name: str) -> str:
    return name.replace("_", " ").replace("+", " ")


def tree(folder: Path) -> dict[str, list[str]]:
    """superclass -> classes of a folder superclass/class/images."""
    groups = {f.name: sorted(g.name for g in f.iterdir() if g.is_dir()) for f in sorted(folder.iterdir()) if f.is_dir()}
    empty = [name for name, classes in groups.items() if not classes]
    if not groups or empty:
        raise InputError(
            f"--from {folder}: {empty[0] if empty else 'it'} holds no folders; it must be superclass/class/"
        )
    return groups


def write_table(path: Path, table: np.ndarray, classes: list[str], about: str) -> None:
    """A ranking file: a line of comment, then the CSV matrix that rankings.read_table reads."""
    text = io.StringIO()
    text.write(f"# {about}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", *classes])
    for name, row in zip(classes, table, strict=True):
        writer.writerow([name, *(f"{x:.6g}" for x in row)])
    util.write_text(path, text.getvalue())


# ---- the picture -----------------------------------------------------------------------------------------------------


def clustered(table: np.ndarray) -> np.ndarray:
    """[C] an order in which similar classes are neighbours: average linkage, leaves in the best order."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(table) < 3:
        return np.arange(len(table))
    return leaves_list(linkage(squareform(1 - table, checks=False), "average", optimal_ordering=True))


def draw(path: Path, table: np.ndarray, ranks: np.ndarray, classes: list[str], title: str) -> None:
    """Similarities on the left, the ranks that training takes from them on the right, similar classes side by side."""
    plt = util.pyplot()

    order = clustered(table)
    side = max(4.0, min(12.0, 0.14 * len(classes)))
    figure, axes = plt.subplots(1, 2, figsize=(2 * side + 2, side + 0.8), layout="constrained")
    for ax, values, name in ((axes[0], table, "similarity"), (axes[1], ranks, "ranks: similarity in training")):
        image = ax.imshow(values[np.ix_(order, order)], cmap="viridis", vmin=min(0, values.min()), vmax=1)
        ax.set(title=name, xticks=range(len(order)), yticks=range(len(order)))
        size = max(3, min(10, 60 * side / len(order) / 1.4))
        ax.set_xticklabels([classes[c] for c in order], rotation=90, fontsize=size)
        ax.set_yticklabels([classes[c] for c in order], fontsize=size)
        figure.colorbar(image, ax=ax, shrink=0.8)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# ---- command line ----------------------------------------------------------------------------------------------------


def get_parser():
    p = argparse.ArgumentParser(
        prog="rankings.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = p.add_subparsers(dest="kind", required=True)
    k = kinds.add_parser("roberta", help="cosines of sentence embeddings of the class names")
    which = k.add_mutually_exclusive_group(required=True)
    which.add_argument("--names", type=Path, help="CSV class,name, or one class a line")
    which.add_argument("--data_folder", type=Path, help="folder of class folders")
    k.add_argument("--model", default=ENCODER, help=f"hub name or local folder (default: {ENCODER})")
    k.add_argument("--template", default="{}", help='such as "a photo of a {}" (default: the name alone)')
    k = kinds.add_parser("superclass", help="0.75 inside a superclass")
    k.add_argument("--from", dest="source", type=Path, required=True, help="YAML file, or folder superclass/class/")
    k = kinds.add_parser("noise", help="a share of the pairs dealt anew at random")
    k.add_argument("--from", dest="source", type=Path, required=True, help="ranking file")
    k.add_argument("--share", type=float, default=1.0, help="of the pairs, in [0, 1] (default: 1, a random ranking)")
    k.add_argument("--seed", type=int, default=0)
    k = kinds.add_parser("show", help="draw a ranking and the ranks that training takes from it")
    k.add_argument("ranking", type=Path)
    k.add_argument("--thresholds", type=float, nargs="+", help="falling, one a rank")
    for name, k in kinds.choices.items():
        k.add_argument("--out", type=Path, required=name != "show", help="file to write")
    return p


def build(args) -> tuple[np.ndarray, list[str], str]:
    """Table, classes, and what they are, in words."""
    if args.kind == "roberta":
        if args.template.count("{}") != 1:
            raise InputError(f"--template {args.template!r}: must hold {{}} once, for the name")
        names = read_names(args.names) if args.names else folder_names(args.data_folder)
        table, about = cosines(names, args.model, args.template)
        return table, list(names), about
    if args.kind == "superclass":
        if not args.source.exists():
            raise InputError(f"--from {args.source}: no such file or folder")
        groups = tree(args.source) if args.source.is_dir() else rankings.read_superclasses(args.source, "--from")
        return *superclass_table(groups), f"superclasses of {args.source}"
    if not 0 <= args.share <= 1:
        raise InputError(f"--share {args.share}: must lie in [0, 1]")
    table, classes = rankings.read_table(args.source, "--from")
    return with_noise(table, args.share, args.seed), classes, f"noise {args.share:g} on {args.source}, seed {args.seed}"


def show(args) -> None:
    table, classes = rankings.read_table(args.ranking, "show")
    ranks, _ = rankings.class_similarity(str(args.ranking), classes, thresholds=args.thresholds)
    pairs = sorted(itertools.combinations(range(len(classes)), 2), key=lambda p: -table[p])
    for a, b in pairs[:10]:
        print(f"{classes[a]} - {classes[b]}: {table[a, b]:.4g}, in training {float(ranks[a, b]):g}")
    out = args.out or args.ranking.with_suffix(".png")
    draw(out, table, ranks.numpy(), classes, str(args.ranking))
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
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_table(args.out, table, classes, about)
    print(f"saved {args.out}: {len(classes)} classes, {about}")

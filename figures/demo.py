"""What the recipe of the digits draws with: its far outliers, and from its table the pictures that the README has too.

python -m figures.demo patches --out FOLDER     grey patches of scikit-learn's two sample photographs
python -m figures.demo draw --table save/tables/digits.json --out save/demo    (--out figures: the README's own)
"""

import argparse
import json
import shutil
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
import numpy as np
import torch
from PIL import Image

from datasets import rankings
from datasets.rankings import files
from figures.embedding import class_cosines, draw

DRAWN = ("scl_in", "rince_in", "rince_out_in")
OOD = "rince_in"


def photograph_patches(folder: Path, side: int = 32) -> int:
    """Grey patches of scikit-learn's two sample photographs, side x side pixels, edge to edge; returns their number."""
    from sklearn.datasets import load_sample_images

    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for n, photograph in enumerate(load_sample_images().images):
        grey = Image.fromarray(photograph).convert("L")
        for x in range(0, grey.width - side + 1, side):
            for y in range(0, grey.height - side + 1, side):
                grey.crop((x, y, x + side, y + side)).save(unfinished / f"{n}_{x}_{y}.png")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return len(list(folder.iterdir()))


def draw_pictures(table: Path, folder: Path) -> None:
    """digits.png, the embeddings of DRAWN, and digits_ood.png, the scores of OOD; seed 0 of the recipe's table."""
    content = json.loads(table.read_text())
    first = {name: content["results"][name][0]["records"] for name in DRAWN}
    embeddings = {}
    for name, records in first.items():
        features = json.loads(Path(records["retrieval"]).read_text())["features"]["queries"]["file"]
        embeddings[content["recipe"]["methods"][name]["title"]] = torch.load(features, weights_only=True)
    folder.mkdir(parents=True, exist_ok=True)
    draw(embeddings, "digits", folder / "digits.png")
    shutil.copy(Path(first[OOD]["near"]).with_suffix(".png"), folder / "digits_ood.png")
    print(f"drew {folder / 'digits.png'} and {folder / 'digits_ood.png'}")
    for title, e in embeddings.items():
        near, far = mean_cosines(e["features"], e["labels"], e["classes"])
        print(f"{title}: mean cosine of two digits of one superclass {near:.2f}, of two superclasses {far:.2f}")


def mean_cosines(features, labels, classes: list[str]) -> tuple[float, float]:
    """Mean cosine of two classes within a superclass of the digits, and across superclasses."""
    cosines = class_cosines(features, labels, len(classes))
    group = rankings.superclass_labels(files.known_superclasses("digits"), classes, "digits").numpy()
    other = ~np.eye(len(classes), dtype=bool)
    same = group[:, None] == group
    return float(cosines[same & other].mean()), float(cosines[~same].mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    patches = kinds.add_parser("patches", help="the far outliers")
    patches.add_argument("--out", type=util.user_path, required=True, help="folder to make")
    pictures = kinds.add_parser("draw", help="the pictures")
    pictures.add_argument("--table", type=Path, required=True, help="JSON table of recipes/digits.yaml")
    pictures.add_argument("--out", type=util.user_path, required=True, help="folder of the pictures")
    args = parser.parse_args()
    if args.kind == "patches":
        print(f"made {photograph_patches(args.out)} patches in {args.out}")
    else:
        draw_pictures(args.table, args.out)


if __name__ == "__main__":
    util.run_command(main)

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
import torch
import torch.nn.functional as F
from PIL import Image

import figures
from datasets import rankings
from datasets.rankings import files
from figures.cosines import class_cosines, draw_matrix, within_and_across
from figures.maps import Drawn, draw_map, mds

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
    draw_embeddings(folder / "digits.png", embeddings)
    shutil.copy(Path(first[OOD]["near"]).with_suffix(".png"), folder / "digits_ood.png")
    print(f"drew {folder / 'digits.png'} and {folder / 'digits_ood.png'}")
    for title, e in embeddings.items():
        cosines = class_cosines(e["features"], e["labels"], len(e["classes"]))
        group_of = rankings.superclass_labels(files.known_superclasses("digits"), e["classes"], "digits").tolist()
        near, far = within_and_across(cosines, group_of)
        print(f"{title}: mean cosine of two digits of one superclass {near:.2f}, of two superclasses {far:.2f}")


def draw_embeddings(path: Path, embeddings: dict) -> None:
    """One column a method: MDS map of the test images above, mean cosine of each pair of classes below.

    embeddings: method -> {"features" [n, d], "labels" [n], "classes"}; classes are ordered and shaped by superclass.
    """
    plt = figures.pyplot()
    groups = files.known_superclasses("digits")
    classes = next(iter(embeddings.values()))["classes"]
    group_of = rankings.superclass_labels(groups, classes, "digits").tolist()
    drawn = Drawn(classes, sorted(range(len(classes)), key=lambda c: group_of[c]), group_of)
    figure, axes = plt.subplots(
        2, len(embeddings), figsize=(4 * len(embeddings), 8.2), layout="constrained", squeeze=False
    )
    for column, (method, e) in enumerate(embeddings.items()):
        points = mds(F.normalize(e["features"], dim=1).numpy())
        draw_map(axes[0, column], points, e["labels"].numpy(), drawn, method)
        axes[0, column].set(xlabel="MDS 1", ylabel="MDS 2")
        cosines = class_cosines(e["features"], e["labels"], len(classes))
        image = draw_matrix(axes[1, column], cosines, drawn, "", "class, ordered by superclass")
    figure.colorbar(image, ax=axes[1, :], label="mean cosine of two classes", shrink=0.8)
    shapes = "    ".join(f"{'●▲■◆▼✚★✖'[i % 8]} {g}" for i, g in enumerate(groups))
    figure.suptitle(shapes, fontsize=13, family="DejaVu Sans")
    figure.savefig(path, dpi=80)
    plt.close(figure)


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

"""Makes the far outliers of recipes/digits.yaml: gray patches of scikit-learn's two sample photographs.

python -m recipes.patches FOLDER
"""

import shutil
import sys
from pathlib import Path

import util  # first: where packages are missing it says what to do

# isort: split
from PIL import Image


def cut_patches(folder: Path, side: int = 32) -> int:
    """Cut both photographs into patches of side x side pixels, edge to edge, in gray; returns their number."""
    from sklearn.datasets import load_sample_images

    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for n, photograph in enumerate(load_sample_images().images):
        gray = Image.fromarray(photograph).convert("L")
        for x in range(0, gray.width - side + 1, side):
            for y in range(0, gray.height - side + 1, side):
                gray.crop((x, y, x + side, y + side)).save(unfinished / f"{n}_{x}_{y}.png")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return len(list(folder.iterdir()))


def main():
    if len(sys.argv) != 2:
        raise util.InputError("folder: give one, in which the patches are stored")
    print(f"made {cut_patches(Path(sys.argv[1]))} patches in {sys.argv[1]}")


if __name__ == "__main__":
    util.run_command(main)

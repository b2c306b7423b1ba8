"""The whole method on real data that ships with scikit-learn: what ranked positives do to an embedding of digits.

Trains SCL in, RINCE in and RINCE out_in through main_supcon.py and cross-entropy through main_ce.py, digits 4 and 8
held out; evaluates each with retrieval.py, main_linear.py and out_of_dist_detection.py (near outliers: the held-out
digits; far ones: grey patches of scikit-learn's sample photographs); prints one table; draws figures/digits.png and
figures/digits_ood.png.

python -m figures.demo [--seeds 3]
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from figures.embedding import draw

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = ["4", "8"]
METHODS = {
    "SCL in": ["main_supcon.py", "--loss_type", "supcon"],
    "RINCE in": ["main_supcon.py", "--loss_type", "rince"],
    "RINCE out_in": ["main_supcon.py", "--loss_type", "rince", "--mixed_out_in", "True"],
    "cross-entropy": ["main_ce.py"],
}
DRAWN = ("SCL in", "RINCE in", "RINCE out_in")
COLUMNS = ("fine R@1", "fine mAP", "coarse R@1", "coarse mAP", "probe", "near AUROC", "far AUROC", "seconds")


def call(*command: str) -> dict:
    """Run one of the scripts as a user would, on one core; the record it saved. Output is shown only if it fails."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    saved = re.findall(r"^saved (\S.*?\.json)", done.stdout, flags=re.MULTILINE)
    return json.loads(Path(saved[-1]).read_text()) | {"file": saved[-1]} if saved else {}


def photograph_patches(folder: Path, side: int = 32) -> None:
    """Grey patches of scikit-learn's two sample photographs, side x side pixels, edge to edge."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for n, photograph in enumerate(load_sample_images().images):
        grey = Image.fromarray(photograph).convert("L")
        for x in range(0, grey.width - side + 1, side):
            for y in range(0, grey.height - side + 1, side):
                grey.crop((x, y, x + side, y + side)).save(folder / f"{n}_{x}_{y}.png")


def train_and_evaluate(method: str, seed: int, folder: Path) -> dict:
    """One method with one seed: COLUMNS in percent, and the files of features and OOD picture."""
    name = f"{method.replace(' ', '_')}_seed{seed}"
    start = time.perf_counter()
    shared = ["--hold_out", *HELD_OUT, "--save_folder", str(folder)]
    script, *loss = METHODS[method]
    call(script, "--exp_name", name, "--seed", str(seed), "--overwrite", *loss, *shared)
    seconds = time.perf_counter() - start
    shared += ["--ckpt", str(folder / "SupCon" / "digits_models" / name)]
    shared += ["--features_cache", str(folder / "features")]
    retrieval = call("retrieval.py", "--labelset", "both", *shared)
    probe = call("main_linear.py", "--cache_features", "--exp_name", name, "--overwrite", "--seed", str(seed), *shared)
    ood = ["out_of_dist_detection.py", *shared]
    near = call(*ood, "--dataset_outliers", "digits", "--outlier_classes", *HELD_OUT, "--outlier_split", "all")
    far = call(*ood, "--dataset_outliers", "path", "--data_folder_outliers", str(folder / "photograph_patches"))
    print(f"{method}, seed {seed}: trained in {seconds:.0f} s, evaluated", flush=True)
    scores = {f"{labels} {m}": retrieval["metrics"][labels][m] for labels in ("fine", "coarse") for m in ("R@1", "mAP")}
    scores |= {"probe": probe["metrics"]["last"]["top-1"], "seconds": seconds}
    scores |= {"near AUROC": near["metrics"]["AUROC"], "far AUROC": far["metrics"]["AUROC"]}
    return {
        **scores,
        "features": retrieval["features"]["queries"]["file"],
        "picture": Path(near["file"]).with_suffix(".png"),
    }


def table(results: dict) -> str:
    """The methods' mean figures (and their standard deviation over seeds), in percent, as Markdown."""
    lines = [f"| method | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for method, runs in results.items():
        cells = []
        for column in COLUMNS:
            values = np.array([run[column] for run in runs])
            spread = f" ± {values.std(ddof=1):.1f}" if len(runs) > 1 and column != "seconds" else ""
            cells.append(f"{values.mean():.{0 if column == 'seconds' else 1}f}{spread}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="seeds a method")
    parser.add_argument("--save_folder", type=Path, default=ROOT / "save" / "demo")
    parser.add_argument("--figures", type=Path, default=ROOT / "figures", help="folder of the pictures")
    args = parser.parse_args()
    folder = args.save_folder.resolve()
    photograph_patches(folder / "photograph_patches")
    jobs = [(method, seed) for method in METHODS for seed in range(args.seeds)]
    print(f"training {len(jobs)} models on scikit-learn's digits, {os.cpu_count()} at a time", flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(lambda job: train_and_evaluate(*job, folder), jobs))
    results = {m: [r for (method, _), r in zip(jobs, done, strict=True) if method == m] for m in METHODS}
    text = table(results)
    (folder / "table.md").write_text(text + "\n")
    print(
        f"\nIn percent, digits {', '.join(HELD_OUT)} held out: retrieval among the training images, linear probe on the"
    )
    print(f"features, OOD detection of the held-out digits (near) and of patches of photographs (far)\n\n{text}\n")
    embeddings = {method: torch.load(results[method][0]["features"], weights_only=True) for method in DRAWN}
    draw(embeddings, "digits", args.figures / "digits.png")
    shutil.copy(results["RINCE in"][0]["picture"], args.figures / "digits_ood.png")
    print(f"drew {args.figures / 'digits.png'} and digits_ood.png")


if __name__ == "__main__":
    main()

"""The main job on real data that ships with scikit-learn: what ranked positives do to an embedding of digits.

Trains SCL in, RINCE in and RINCE out_in through main_supcon.py (digits 4 and 8 held out), evaluates each through
retrieval.py, prints one table, and draws figures/digits.png.

python -m figures.demo [--seeds 3]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from figures.embedding import draw

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = ["4", "8"]
METHODS = {
    "SCL in": ["--loss_type", "supcon"],
    "RINCE in": ["--loss_type", "rince"],
    "RINCE out_in": ["--loss_type", "rince", "--mixed_out_in", "True"],
}
COLUMNS = (("fine", "R@1"), ("fine", "mAP"), ("coarse", "R@1"), ("coarse", "mAP"))


def call(*command: str) -> None:
    """Run one of the scripts as a user would, on one core; its output is shown only if it fails."""
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


def train_and_evaluate(method: str, seed: int, folder: Path) -> tuple[dict, float, Path]:
    """One method with one seed: retrieval metrics, training seconds, and the file of its features."""
    name = f"{method.replace(' ', '_')}_seed{seed}"
    start = time.perf_counter()
    shared = ["--hold_out", *HELD_OUT, "--save_folder", str(folder)]
    call("main_supcon.py", "--exp_name", name, "--seed", str(seed), "--overwrite", *METHODS[method], *shared)
    seconds = time.perf_counter() - start
    run, features = folder / "SupCon" / "digits_models" / name, folder / f"{name}.pt"
    call("retrieval.py", "--ckpt", str(run), "--labelset", "both", "--features", str(features), *shared)
    result = json.loads((folder / "results" / f"retrieval_digits_{name}_both.json").read_text())
    print(f"{method}, seed {seed}: done in {seconds:.0f} s", flush=True)
    return result["metrics"], seconds, features


def table(results: dict, seeds: int) -> str:
    """The methods' mean figures (and their standard deviation over seeds), in percent, as Markdown."""
    lines = ["| method | fine R@1 | fine mAP | coarse R@1 | coarse mAP | seconds |", "|---|---|---|---|---|---|"]
    for method, runs in results.items():
        cells = []
        for labelset, metric in COLUMNS:
            values = 100 * np.array([metrics[labelset][metric] for metrics, _, _ in runs])
            cells.append(f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if seeds > 1 else ""))
        cells.append(f"{np.mean([seconds for _, seconds, _ in runs]):.0f}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="seeds a method")
    parser.add_argument("--save_folder", type=Path, default=ROOT / "save" / "demo")
    parser.add_argument("--figure", type=Path, default=ROOT / "figures" / "digits.png")
    args = parser.parse_args()
    args.save_folder.mkdir(parents=True, exist_ok=True)
    jobs = [(method, seed) for method in METHODS for seed in range(args.seeds)]
    print(f"training {len(jobs)} models on scikit-learn's digits, {os.cpu_count()} at a time", flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(lambda job: train_and_evaluate(*job, args.save_folder.resolve()), jobs))
    results = {m: [r for (method, _), r in zip(jobs, done, strict=True) if method == m] for m in METHODS}
    text = table(results, args.seeds)
    (args.save_folder / "table.md").write_text(text + "\n")
    print(f"\nRetrieval among the training images, in percent; digits {', '.join(HELD_OUT)} held out\n\n{text}\n")
    embeddings = {method: torch.load(runs[0][2], weights_only=True) for method, runs in results.items()}
    draw(embeddings, "digits", args.figure)
    print(f"drew {args.figure}")


if __name__ == "__main__":
    main()

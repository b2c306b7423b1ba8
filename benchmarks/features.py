"""Measure a training step of a head on features, compared with plain loops of torch.

python -m benchmarks.features [--peers] [--threads 1] [--json FILE]

15,000 rows of 384 dimensions, 150 classes in 10 groups, batch 256, bank 4,096, an MLP 384-384-128, AdamW. `plain` has
one term, InfoNCE with the key as the positive, by autograd, on the same views, head, momentum encoder and optimizer.
`not loss and head` is the share of a step that the same model's loss, backward and optimizer do not explain: views,
order, progress, guards. --peers adds a loop with pytorch-metric-learning's SupConLoss over its CrossBatchMemory.
"""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import ROUNDS, in_turn, parser, ratio, report
from benchmarks.loss import plain_infonce
from benchmarks.train_step import Training

ROWS, DIM, CLASSES, GROUPS = 15_000, 384, 150, 10
PEERS = ("pytorch-metric-learning",)
FORMS = {"SCL out": "--loss_type supcon --variant out", "RINCE in": "--variant in", "RINCE out_in": "--variant out_in"}


@dataclass(frozen=True)
class Case:
    """What is trained."""

    rows: int = ROWS

    def make_features(self, folder: Path) -> None:
        """Write rows around a center per class."""
        rng = np.random.default_rng(0)
        labels = np.arange(self.rows) % CLASSES
        rows = rng.normal(size=(CLASSES, DIM))[labels] + 2 * rng.normal(size=(self.rows, DIM))
        names = {"labels": labels.astype(str), "coarse": (labels % GROUPS).astype(str)}
        np.savez(folder / "features.npz", features=rows.astype(np.float32), **names)

    def words(self, folder: Path) -> list[str]:
        """Return the options of main_supcon.py."""
        names = {"features": folder / "features.npz", "save_folder": folder / "save", "exp_name": "benchmark"}
        names |= {"save_minutes": 1e9, "print_freq": 10**6}
        return [f"--{name}={value}" for name, value in names.items()]


def build_core(begun: Training) -> Callable[[], None]:
    """Build the training's own loss, backward and optimizer on one batch, and nothing else."""

    def step() -> None:
        loss, _ = begun.step(*begun.batch)
        begun.stepper.optimizer.zero_grad()
        loss.backward()
        begun.stepper.optimizer.step()

    return step


def build_plain(begun: Training) -> Callable[[], None]:
    """Build a step of one-term InfoNCE by autograd, with the training's model and optimizer."""
    model, optimizer, (views, labels) = begun.run.model, begun.stepper.optimizer, begun.batch

    def step() -> None:
        query = F.normalize(model.head(model.encoder(views[0])), dim=1)
        with torch.no_grad():
            model.update_key_encoder()
            key = model.encode_keys(views[1])
        loss = plain_infonce(query, key, labels, model.bank.keys.clone(), model.bank.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.bank.push(key, labels)

    return step


def build_peer(begun: Training) -> Callable[[], None]:
    """Build a step of pytorch-metric-learning: SupConLoss over a memory of embeddings of the trained network."""
    from pytorch_metric_learning.losses import CrossBatchMemory, SupConLoss

    model, optimizer, (views, labels) = begun.run.model, begun.stepper.optimizer, begun.batch
    criterion = CrossBatchMemory(SupConLoss(temperature=0.1), model.head[-1].out_features, len(model.bank))

    def step() -> None:
        embeddings = model.head(model.encoder(views[0]))
        loss = criterion(embeddings, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure(rounds: int, peers: bool) -> list[dict]:
    """Rows of the plain loop, of each loss, and of a peer."""
    device, case, rows = torch.device("cpu"), Case(), []
    with tempfile.TemporaryDirectory() as scratch:
        case.make_features(Path(scratch))
        trainings = {name: Training(case, Path(scratch), device, words) for name, words in FORMS.items()}
        plain = trainings["SCL out"]
        steps = len(plain.loader)
        forms = {"plain": build_plain(plain)}
        if peers:
            forms["pytorch-metric-learning"] = build_peer(Training(case, Path(scratch), device, FORMS["SCL out"]))
        cores = {name: build_core(begun) for name, begun in trainings.items()}
        epochs = {name: begun.take_epoch for name, begun in trainings.items()}
        spent = in_turn(
            {name: lambda step=step: [step() for _ in range(steps)] for name, step in (forms | cores).items()}
            | {f"{name}, epoch": take for name, take in epochs.items()},
            rounds,
        )
    for name in forms:
        rows.append({"form": name, "ms per step": 1000 * statistics.median(spent[name]) / steps})
        rows[-1] |= {"times plain": ratio(spent[name], spent["plain"]), "not loss and head": ""}
    for name in FORMS:
        whole = spent[f"{name}, epoch"]
        row = {"form": f"main_supcon.py, {name}", "ms per step": 1000 * statistics.median(whole) / steps}
        row |= {"times plain": ratio(whole, spent["plain"])}
        rows.append(row | {"not loss and head": f"{100 * (1 - ratio(spent[name], whole)):.0f} %"})
    return rows


def get_parser():
    p = parser(__doc__)
    p.add_argument("--rounds", type=int, default=5, help=ROUNDS)
    p.add_argument("--threads", type=int, help="threads of torch (default: all cores)")
    p.add_argument("--peers", action="store_true", help="compare with pytorch-metric-learning")
    return p


def main():
    args = get_parser().parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    threads = torch.get_num_threads()
    title = f"a head on features, batch 256 of {DIM} dimensions, bank 4,096, {threads} threads"
    report(
        title,
        measure(args.rounds, args.peers),
        args.json,
        name=f"features_{threads}",
        libraries=PEERS if args.peers else (),
    )


if __name__ == "__main__":
    main()

"""Measure a training step of RINCE, option by option, compared with a plain form.

python -m benchmarks.train_step [--device cuda] [--model resnet18] [--size 32] [--batch_size 256] [--bank 4096]
    [--compile] [--json FILE]

Each form is a training that `main_supcon.py` builds from its options, and takes its steps, of the same views always, so
that no data is waited for. The plain form is the same model in float32, contiguous and eager: the loss from its
formula by autograd, momentum update and SGD parameter by parameter. The last column is the difference of the loss in
the last round.
"""

import contextlib
import importlib
import io
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
import yaml

from benchmarks import ROUNDS, in_turn, parser, ratio, report
from benchmarks.data import MEAN, STD, make_photographs
from benchmarks.loss import C, plain_rince
from engine.cli import config
from engine.train import training
from networks.resnet import TORCHVISION

FORMS = {  # name -> options of main_supcon.py; None: the plain form
    "plain": None,
    "fast loss, fused updates": "--precision float32 --channels_last False",
    "+ channels_last": "--precision float32",
    "+ bfloat16": "--precision bfloat16",
}
COMPILED = {
    "+ compiled, float32": "--precision float32 --compile",
    "+ compiled, bfloat16": "--precision bfloat16 --compile",
}


@dataclass(frozen=True)
class Case:
    """What is trained. Up to 64 pixels, ResNets have the stem for small images."""

    model: str
    size: int
    batch_size: int
    bank: int

    @property
    def title(self) -> str:
        return f"{self.model}, batch {self.batch_size} of {self.size} x {self.size}, bank {self.bank}"

    def make_images(self, folder: Path, batches: int = 1) -> None:
        """Write JPEGs of a hundred classes, and superclasses of five: two ranks."""
        shape = (40, 40) if self.size <= 64 else (500, 375)
        make_photographs(folder / "images", max(2 * C, batches * self.batch_size), C, *shape)
        groups = {f"group {g}": [f"class {c}" for c in range(g, g + 5)] for g in range(0, C, 5)}
        (folder / "groups.yaml").write_text(yaml.safe_dump(groups))

    def words(self, folder: Path) -> list[str]:
        """Return the options of main_supcon.py."""
        stem = "_cifar" if self.size <= 64 and self.model in TORCHVISION else ""
        options = {
            "dataset": "path", "data_folder": folder / "images", "ranking": folder / "groups.yaml",
            "model": self.model + stem, "size": self.size, "batch_size": self.batch_size,
            "memorybank_size": self.bank, "mean": MEAN, "std": STD, "mixed_out_in": True, "num_workers": 0,
            "save_folder": folder / "save", "exp_name": "benchmark", "save_minutes": 1e9, "epochs": 1000,
            "augment_on": "worker",
        }  # fmt: skip
        return [f"--{name}={value}" for name, value in options.items()]


class _Begun(Exception):
    """Raised where a first epoch would begin."""


class Training:
    """A training as the command line builds it, stopped where its first epoch would begin."""

    def __init__(self, case: Case, folder: Path, device: torch.device, options: str):
        script = importlib.import_module("main_supcon")
        words = [*case.words(folder), *options.split()]
        args = config.parse_words(script.get_parser(), script.RECIPES, words, "main_supcon")
        with contextlib.redirect_stdout(io.StringIO()):
            with mock.patch.object(training, "train_epoch", side_effect=_Begun) as epoch, contextlib.suppress(_Begun):
                script.worker(args, device)
            self.run, self.loader, self.step, self.stepper, _ = epoch.call_args.args
            self.run.close()  # the folder is free again
            self.batch = next(iter(self.loader))

    def take_steps(self, steps: int = 1) -> float:
        """Take this many steps of the first batch as an epoch of the script; return their mean loss."""
        return self._take([self.batch] * steps)[0]

    def take_epoch(self) -> tuple[float, float]:
        """Take the loader's own batches; return images/s, and the share of the time that data was waited for."""
        images_per_second = self._take(self.loader)[2]
        return images_per_second, self.loader.scalars()["waiting_for_data"]

    def _take(self, batches) -> tuple:
        with contextlib.redirect_stdout(io.StringIO()):
            return training.train_epoch(self.run, batches, self.step, self.stepper, 1)


def build_plain_steps(begun: Training) -> Callable[[int], float]:
    """Build what takes steps of a training's model as one would first write them, and returns their mean loss."""
    model, (views, labels) = begun.run.model, begun.batch
    trained = [*model.encoder.parameters(), *model.head.parameters()]
    followers = [*model.key_encoder.parameters(), *model.key_head.parameters()]
    optimizer = torch.optim.SGD(trained, begun.stepper.set_rate(0), momentum=0.9, weight_decay=1e-4, foreach=False)

    def step() -> torch.Tensor:
        query = F.normalize(model.head(model.encoder(views[0])), dim=1)
        with torch.no_grad():
            for follower, parameter in zip(followers, trained, strict=True):
                follower.lerp_(parameter, 1 - model.momentum)
            key = F.normalize(model.key_head(model.key_encoder(views[1])), dim=1)
        bank = model.bank.keys.clone()  # backward needs the bank as it was
        loss = plain_rince(model.criterion, query, key, labels, bank, model.bank.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.bank.push(key, labels)
        return loss.detach()

    return lambda steps=1: float(sum(step() for _ in range(steps)) / steps)


def compare(case: Case, device: torch.device, forms: dict, rounds: int, steps: int) -> list[dict]:
    """Rows of forms as in FORMS, each next to the first: rounds in turn, of this many steps each."""
    runs, last = {}, {}

    def run(name: str, take_steps: Callable[[int], float]) -> None:
        last[name] = take_steps(steps)

    with tempfile.TemporaryDirectory() as scratch:
        case.make_images(Path(scratch))
        for name, options in forms.items():
            begun = Training(case, Path(scratch), device, options or FORMS["fast loss, fused updates"])
            runs[name] = partial(run, name, begun.take_steps if options else build_plain_steps(begun))
    seconds, rows, first = in_turn(runs, rounds, warm=2), [], next(iter(forms))
    for name, spent in seconds.items():
        step = statistics.median(spent) / steps
        row = {"form": name, "ms": 1000 * step, "images/s": case.batch_size / step}
        row |= {"times as fast": ratio(seconds[first], spent), "loss differs by": abs(last[name] - last[first])}
        rows.append(row)
    return rows


def get_parser():
    p = parser(__doc__)
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device to measure")
    p.add_argument("--model", default="resnet18", help="name of the encoder")
    p.add_argument("--size", type=int, default=32, help="side of an image in pixels")
    p.add_argument("--batch_size", type=int, default=256, help="images per step")
    p.add_argument("--bank", type=int, default=4096, help="keys in the memory bank")
    p.add_argument("--rounds", type=int, default=5, help=ROUNDS)
    p.add_argument("--steps", type=int, default=1, help="steps per round; on a GPU 10 or more")
    p.add_argument("--compile", action="store_true", help="measure compiled encoders, too")
    return p


def main():
    args = get_parser().parse_args()
    case = Case(args.model, args.size, args.batch_size, args.bank)
    forms = FORMS | (COMPILED if args.compile else {})
    rows = compare(case, torch.device(args.device), forms, args.rounds, args.steps)
    report(case.title, rows, args.json, args.device)


if __name__ == "__main__":
    main()

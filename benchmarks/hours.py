"""Compute the hours of the trainings of a recipe on GPUs; nothing is run.

python -m benchmarks.hours [recipes/cifar100.yaml recipes/imagenet100.yaml] [--tflops 60] [--json FILE]

Operations are counted by torch on tensors without content: forward and backward of the encoder once per image and view,
a key encoder's forward besides; head and loss are small next to them. --tflops is what the GPUs together make of them
per second, in 10^12: 60 is a guess for one H100 in bfloat16, `python -m benchmarks.gpu` measures yours.
"""

import importlib
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import datasets
import recipes
import util
from benchmarks import parser, report
from engine.cli import config, options
from engine.encoder import pretrained
from util import InputError

IMAGES = {  # of training, and classes; ImageNet-100's about
    "digits": (1_442, 10), "fashion_mnist": (60_000, 10), "cifar10": (50_000, 10), "cifar100": (50_000, 100),
    "imagenet": (126_000, 100), "imagenet_100": (126_000, 100), "tiny_imagenet": (90_000, 180),
}  # fmt: skip


def count_operations(model: str, size: int, small: bool) -> float:
    """Floating-point operations of an encoder's forward pass of one image."""
    encoder = pretrained.build_encoder(model, small, "meta").train()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.empty(2, 3, size, size, device="meta"))
    return counter.get_total_flops() / 2


def count_images(args, command: str) -> float:
    """Training images of a command, as far as its options tell. Raises InputError for a data set of unknown size."""
    if args.dataset not in IMAGES:
        raise InputError(f"{command}: the number of images of --dataset {args.dataset} is not known")
    whole, classes = IMAGES[args.dataset]
    return (args.images_per_class or whole / classes) * (classes - len(args.hold_out))


def compute_row(command: str, tflops: float) -> dict:
    """Of a training command: epochs, batch, operations, and hours at so many 10^12 operations per second."""
    script = command.split()[1].removesuffix(".py")
    module = importlib.import_module(script)
    args = config.parse_words(module.get_parser(), module.RECIPES, recipes.words(command)[2:], script)
    spec = datasets.spec(args.dataset)
    size = args.size or spec.size
    passes = 4 if script == "main_supcon" else 3  # a backward pass is two forward ones; the key encoder has none
    operations = passes * count_operations(args.model, size, spec.small)
    total = operations * count_images(args, command) * args.epochs
    return {
        "run": args.exp_name, "encoder": f"{args.model} at {size}", "epochs": args.epochs, "batch": args.batch_size,
        "GFLOP an image": operations / 1e9, "EFLOP": total / 1e18, "hours": total / tflops / 1e12 / 3600,
    }  # fmt: skip


def get_parser():
    p = parser(__doc__)
    known = [Path("recipes/cifar100.yaml"), Path("recipes/imagenet100.yaml")]
    p.add_argument("recipes", type=Path, nargs="*", default=known, help="YAML files of recipes")
    p.add_argument("--tflops", type=options.positive, default=60.0, help="operations per second of the GPUs, in 10^12")
    return p


def main():
    args = get_parser().parse_args()
    rows = []
    for path in args.recipes:
        recipe = recipes.read(path)
        first = (recipes.commands(recipe, name, 0, recipes.Scope()).get("training") for name in recipe["methods"])
        rows += [compute_row(command, args.tflops) for command in first if command]  # a given checkpoint has none
    if not rows:
        raise InputError(f"{', '.join(map(str, args.recipes))}: no method is trained")
    report(f"computed, at {args.tflops:g} TFLOP/s", rows, args.json)


if __name__ == "__main__":
    util.run_command(main)

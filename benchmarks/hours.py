"""Hours and memory of the trainings of a recipe on GPUs, computed from its commands: nothing is run.

python -m benchmarks.hours [recipes/cifar100.yaml recipes/imagenet100.yaml] [--tflops 60] [--json FILE]

Operations are counted by torch on tensors without content: forward and backward of the encoder once an image and view,
a key encoder's forward besides; the head and the loss are small beside them. --tflops is what the GPUs together make
of them a second, in 10^12: 60 is a guess for one H100 in bfloat16, `python -m benchmarks.gpu` measures yours. Memory is
what a run on one GPU says at its start (engine.memory), in bfloat16.
"""

import argparse
import importlib
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import datasets
import recipes
import util
from benchmarks import report
from engine import config, memory, options, training
from util import InputError

IMAGES = {  # of training, and classes; ImageNet-100's about
    "digits": (1_442, 10), "fashion_mnist": (60_000, 10), "cifar10": (50_000, 10), "cifar100": (50_000, 100),
    "imagenet": (126_000, 100), "imagenet_100": (126_000, 100), "tiny_imagenet": (90_000, 180),
}  # fmt: skip


def operations(encoder, size: int) -> float:
    """Floating-point operations of a forward pass of one image. encoder: on the meta device."""
    encoder.train()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.empty(2, 3, size, size, device="meta"))
    return counter.get_total_flops() / 2


def images(args, command: str) -> float:
    """Training images of a command, as far as its options tell. Raises InputError for a data set of unknown size."""
    if args.dataset not in IMAGES:
        raise InputError(f"{command}: how many images --dataset {args.dataset} has is not known here")
    whole, classes = IMAGES[args.dataset]
    return (args.images_per_class or whole / classes) * (classes - len(args.hold_out))


def row(command: str, tflops: float) -> dict:
    """Of a training command: epochs, batch, operations, hours at so many 10^12 operations a second, memory."""
    script = command.split()[1].removesuffix(".py")
    module = importlib.import_module(script)
    args = config.parse_words(module.get_parser(), module.RECIPES, recipes.words(command)[2:], script)
    spec = datasets.spec(args.dataset)
    size = args.size or spec.size
    contrastive = script == "main_supcon"
    encoder = training.build_encoder(args.model, spec.small, "meta")
    forward = operations(encoder, size)
    passes = 4 if contrastive else 3  # a backward pass is two forward ones; the key encoder has none
    total = forward * passes * images(args, command) * args.epochs
    bank = None
    if contrastive:
        bank = memory.Bank(args.memorybank_size, args.feat_dim)
    needs = memory.of_training(encoder, size, torch.bfloat16, args.batch_size, bank)
    return {
        "run": args.exp_name,
        "encoder": f"{args.model} at {size}",
        "epochs": args.epochs,
        "batch": args.batch_size,
        "GFLOP an image": forward * passes / 1e9,
        "EFLOP": total / 1e18,
        "hours": total / tflops / 1e12 / 3600,
        "GB": needs.total(args.batch_size) / memory.GB,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [Path("recipes/cifar100.yaml"), Path("recipes/imagenet100.yaml")]
    parser.add_argument("recipes", type=Path, nargs="*", default=known)
    parser.add_argument("--tflops", type=options.positive, default=60.0)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    rows = []
    for path in args.recipes:
        recipe = recipes.read(path)
        first = (recipes.commands(recipe, name, 0, recipes.Scope()).get("training") for name in recipe["methods"])
        rows += [row(command, args.tflops) for command in first if command]  # a given checkpoint has no training
    if not rows:
        raise InputError(f"{', '.join(map(str, args.recipes))}: no method is trained")
    report(f"computed, at {args.tflops:g} TFLOP/s", rows, args.json)


if __name__ == "__main__":
    util.run_command(main)

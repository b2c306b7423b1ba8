"""Step time, traffic and memory of 1 to 64 GPUs and banks of up to a million keys: computed, not run.

python -m benchmarks.scaling                                 # measures one process of this machine, then computes
python -m benchmarks.scaling --step_ms 9 --image_ms 0.6 --entry_ns 0.02    # figures from elsewhere

Measured, in one process: milliseconds an image (query forward and backward, key forward) and what a step costs besides
(key encoder, optimiser); nanoseconds an entry of the [n, K] similarities (the loss, forward and backward). Assumed:
links of given bandwidth, ring all-reduce of float32 gradients behind half of the backward pass, nothing else hidden,
the batch is shared out, the bank is whole on every process.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import losses
from benchmarks import report
from losses import RINCELoss
from networks import resnet
from networks.contrastive import ContrastiveModel, projection_head
from networks.memory_bank import MemoryBank

PROCESSES, BANKS = (1, 2, 4, 8, 16, 32, 64), (8192, 65536, 262144, 1048576)


def get_parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="resnet18")
    p.add_argument("--size", type=int, default=224)
    p.add_argument("--batch_size", type=int, default=768, help="images a step, over all processes")
    p.add_argument("--feat_dim", type=int, default=128)
    p.add_argument("--classes", type=int, default=100)
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    for flag, of in {
        "--step_ms": "a step",
        "--image_ms": "an image",
        "--entry_ns": "a similarity",
    }.items():
        p.add_argument(flag, type=float, help=f"what {of} costs; None: measured")
    p.add_argument("--matrices", type=float, default=4.51, help="[n, K] floats of the loss, from benchmarks.loss_head")
    p.add_argument("--banks", type=int, nargs="+", default=BANKS)
    p.add_argument("--gpus_per_node", type=int, default=8)
    p.add_argument("--node_gbytes", type=float, default=200, help="GB/s of a GPU to those of its node")
    p.add_argument("--network_gbytes", type=float, default=12.5, help="GB/s of a GPU to other nodes")
    p.add_argument("--memory_gbytes", type=float, default=80, help="of a GPU")
    p.add_argument("--json", type=Path, help="file to add the figures to")
    return p


def seconds(step, device, repeats=7):
    """The fastest of some repeats, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def per_unit(step_of, sizes, device) -> tuple[float, float]:
    """Seconds whatever the size, and seconds a unit: the line through two sizes."""
    small, large = (seconds(step_of(size), device) for size in sizes)
    slope = (large - small) / (sizes[1] - sizes[0])
    return max(0.0, small - slope * sizes[0]), slope


def network(args) -> ContrastiveModel:
    """The model of a run, but with a loss and a bank that cost nothing."""
    encoder = resnet.encoder(args.model, small_images=args.size < 96)
    bank, table = MemoryBank(1, args.feat_dim), torch.eye(args.classes)
    head = projection_head(encoder.dim, args.feat_dim)
    return ContrastiveModel(encoder, head, bank, RINCELoss(table)).to(args.device)


def image_seconds(args, model) -> tuple[float, float]:
    """Of a training step without its loss: a step, an image."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, momentum=0.9)

    def step_of(n):
        views = torch.randn(2, n, 3, args.size, args.size, device=args.device)
        labels = torch.zeros(n, dtype=torch.long, device=args.device)

        def step():
            optimizer.zero_grad()
            model(views[0], views[1], labels).loss().backward()
            optimizer.step()

        return step

    return per_unit(step_of, (8, 24) if args.device == "cpu" else (64, 256), args.device)


def entry_seconds(args) -> float:
    """Of the loss, forward and backward, with two ranks."""
    group = torch.arange(args.classes) // 5
    table = torch.eye(args.classes).maximum(0.75 * (group[:, None] == group))
    criterion, k = RINCELoss(table).to(args.device), 8192

    def unit(rows):
        return F.normalize(torch.randn(rows, args.feat_dim, device=args.device), dim=1)

    bank, bank_labels = unit(k), torch.randint(args.classes, (k,), device=args.device)

    def step_of(entries):
        n = entries // k
        query, key, labels = unit(n).requires_grad_(), unit(n), torch.randint(args.classes, (n,), device=args.device)
        return lambda: criterion.terms(query, key, labels, bank, bank_labels).loss().backward()

    return per_unit(step_of, (64 * k, 512 * k), args.device)[1]


def transfer_seconds(args, world: int, received: float) -> float:
    """Of bytes that reach each process from the others: over the slowest link on the way."""
    gbytes = args.node_gbytes if world <= args.gpus_per_node else args.network_gbytes
    return received / (gbytes * 1e9)


def compute(args, world: int, bank: int, costs: dict, parameters: int) -> dict:
    """One process of `world`: seconds a step and where they go, bytes it receives, bytes it holds."""
    n, d = args.batch_size / world, args.feat_dim
    keys = (args.batch_size - n) * (4 * d + 8)
    gradients = 2 * (world - 1) / world * 4 * parameters
    encoder = costs["step"] + n * costs["image"]
    loss = n * bank * costs["entry"]
    gather, reduce = transfer_seconds(args, world, keys), transfer_seconds(args, world, gradients)
    wait = gather + max(0.0, reduce - encoder / 2)
    return {
        "encoder": encoder, "loss": loss, "wait": wait, "step": encoder + loss + wait,
        "fixed": costs["step"], "keys": keys, "gradients": gradients,
        "bank": bank * (4 * d + 8),
        "matrices": args.matrices * 4 * min(n * bank, losses.BLOCK["cuda"]),  # a block of anchors at a time
    }  # fmt: skip


def first_limit(args, row: dict) -> str:
    """What a configuration runs into, if anything."""
    limits = {
        "memory": row["bank"] + row["matrices"] > 0.7 * args.memory_gbytes * 1e9,  # the rest: network, activations
        "half of the step does not shrink with the batch": row["fixed"] > row["step"] / 2,
        "the loss takes longer than the encoder": row["loss"] > row["encoder"],
        "waiting takes a third of the step": row["wait"] > row["step"] / 3,
    }
    return "; ".join(name for name, met in limits.items() if met)


def costs_of(args, model) -> dict:
    """Seconds of a step, an image and a similarity: given, or measured."""
    given = {"step": args.step_ms, "image": args.image_ms, "entry": args.entry_ns}
    costs = {name: x and x / (1e3 if name in ("step", "image") else 1e9) for name, x in given.items()}
    if None in (costs["step"], costs["image"]):
        costs["step"], costs["image"] = image_seconds(args, model)
    if costs["entry"] is None:
        costs["entry"] = entry_seconds(args)
    return costs


def main():
    args = get_parser().parse_args()
    torch.manual_seed(0)
    model = network(args)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    costs = costs_of(args, model)
    rows = []
    for bank in args.banks:
        for world in PROCESSES:
            row = compute(args, world, bank, costs, parameters)
            shown = {"GPUs": world, "bank": bank}
            shown |= {f"{name}, ms": 1e3 * row[name] for name in ("step", "encoder", "loss", "wait")}
            shown |= {"images/s": args.batch_size / row["step"], "keys received, MB": row["keys"] / 1e6}
            shown |= {"gradients, MB": row["gradients"] / 1e6, "bank, GB": row["bank"] / 1e9}
            rows.append(shown | {"loss, GB": row["matrices"] / 1e9, "runs into": first_limit(args, row)})
    title = f"{args.model}, {parameters / 1e6:.1f} M parameters, {args.size} pixels, batch {args.batch_size} over all; "
    title += f"{1e3 * costs['step']:.3g} ms a step, {1e3 * costs['image']:.3g} ms an image, "
    report(f"{title}{1e9 * costs['entry']:.3g} ns a similarity", rows, args.json, args.device)


if __name__ == "__main__":
    main()

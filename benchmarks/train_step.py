"""A whole training step of RINCE, option by option, against its plain form: float32, contiguous, eager, in log space.

python -m benchmarks.train_step [--device cuda] [--model resnet18] [--size 32] [--batch_size 256] [--bank 4096]
    [--compile] [--json FILE]

Views are random numbers on the device, so that no data is waited for. The plain form's loss is `losses.rince_terms`,
its momentum update and SGD go parameter by parameter. The last column is the difference of the loss at the last step.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import losses
import util
from benchmarks import report
from engine import training
from engine.optimisation import Schedule, Stepper
from losses import RINCELoss
from networks import resnet
from networks.contrastive import ContrastiveModel, projection_head
from networks.memory_bank import MemoryBank

CLASSES = 100


class PlainModel(ContrastiveModel):
    """The momentum update as a loop."""

    @torch.no_grad()
    def update_key_encoder(self):
        for key_net, query_net in ((self.key_encoder, self.encoder), (self.key_head, self.head)):
            for theta_k, theta_q in zip(key_net.parameters(), query_net.parameters(), strict=True):
                theta_k.lerp_(theta_q, 1 - self.momentum)


class PlainLoss(RINCELoss):
    """By autograd, over whole matrices."""

    def bank_terms(self, query, own, labels, bank, bank_labels):
        similarity = torch.cat([own[:, None], query @ bank.clone().T], 1)  # backward needs the bank as it was
        rank = F.pad(self.ranks(labels, bank_labels), (1, 0))  # the own key's is 0
        found = losses.rince_terms(similarity, rank, self.taus, min_probability=self.min_probability)
        return found.total, found.count


def steps(args, device, plain: bool, channels_last=False, compiled=False, precision="float32"):
    """A generator: each step taken gives its loss, a tensor on the device."""
    util.seed_everything(0)
    group = torch.arange(CLASSES) // 5
    table = torch.eye(CLASSES) + 0.75 * ((group[:, None] == group) & ~torch.eye(CLASSES, dtype=torch.bool))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    encoder = resnet.encoder(args.model, small_images=args.size <= 64)
    kind = PlainModel if plain else ContrastiveModel
    model = kind(
        encoder, projection_head(encoder.dim), MemoryBank(args.bank, 128), (PlainLoss if plain else RINCELoss)(table)
    )
    model = training.prepared(model, device, layout, compiled)
    how = dict(momentum=0.9, weight_decay=1e-4, **({"foreach": False} if plain else {"fused": True}))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05, **how)
    stepper = Stepper(optimizer, Schedule(0.05, 1, False), getattr(torch, precision), device)

    def step(views, labels):
        terms = model(*views, labels)
        return terms.loss(), terms.per_rank()

    generator = torch.Generator().manual_seed(0)
    while True:
        views = torch.randn(2, args.batch_size, 3, args.size, args.size, generator=generator)
        views = [v.to(device).contiguous(memory_format=layout) for v in views]
        labels = torch.randint(CLASSES, (args.batch_size,), generator=generator).to(device)
        yield  # what comes next is timed
        loss, _ = stepper.backward(step, views, labels)
        stepper.scaler.step(optimizer)
        stepper.scaler.update()
        yield loss.detach()


def compared(args, device, forms: dict[str, dict]) -> list[dict]:
    """Rows of the forms (name -> arguments of `steps`), the first of which is the plain one: `args.steps` steps each,
    in turn, so that a drift of the machine meets all, after two for warming up.
    """
    plain = next(iter(forms))
    runs = {name: steps(args, device, **how) for name, how in forms.items()}
    seconds, last, peak = {name: [] for name in runs}, {}, {}
    for _ in range(args.steps + 2):
        for name, run in runs.items():
            next(run)
            if device.type == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            last[name] = next(run)
            if device.type == "cuda":
                torch.cuda.synchronize()
                peak[name] = torch.cuda.max_memory_allocated() / 1e9  # the models of all rows count in it
            seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, s in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[plain][2:], s[2:], strict=True))
        difference = abs(float(last[name]) - float(last[plain]))
        row = {
            "form": name,
            "ms": 1000 * statistics.median(s[2:]),
            "images/s": args.batch_size / statistics.median(s[2:]),
        }
        rows.append(row | {"times as fast": ratio, "loss differs by": difference})
        if peak:
            rows[-1]["peak GB"] = peak[name]
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--bank", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="add rows with compiled encoders")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    device = torch.device(args.device)
    forms = {
        "plain": dict(plain=True),
        "fast loss, fused updates": dict(plain=False),
        "+ channels_last": dict(plain=False, channels_last=True),
        "+ bfloat16": dict(plain=False, channels_last=True, precision="bfloat16"),
    }
    if args.compile:
        forms["+ compiled, float32"] = dict(plain=False, channels_last=True, compiled=True)
        forms["+ compiled, bfloat16"] = dict(plain=False, channels_last=True, precision="bfloat16", compiled=True)
    rows = compared(args, device, forms)
    title = f"{args.model}, batch {args.batch_size} of {args.size} x {args.size}, bank {args.bank}"
    report(title, rows, args.json, args.device)


if __name__ == "__main__":
    main()

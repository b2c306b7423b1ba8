"""The RINCE loss against plain one-term InfoNCE, forward and backward, in the same run: time, operations, memory.

python -m benchmarks.loss_head [--device cuda]

`in one block` is how a GPU computes it; a CPU takes the anchors a block at a time, for its caches.
"""

import argparse
import statistics
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import losses
from benchmarks import in_turn, ratio, report
from engine import config
from losses import RINCELoss

N, D, C = 768, 128, 100  # anchors, dimensions, classes


class CountOperations(TorchDispatchMode):
    """Counts the operations that reach the dispatcher, backward's included."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def plain_infonce(q, k, labels, bank, bank_labels, tau=0.1):
    """One positive, the own key; every bank entry is a negative."""
    positive = (q * k).sum(1) / tau
    return (torch.logaddexp(positive, (q @ bank.T / tau).logsumexp(1)) - positive).mean()


def inputs(keys: int = 8192, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    """What the benchmarks give to a loss: query with a gradient, key, labels, bank, bank_labels."""
    g = torch.Generator().manual_seed(0)

    def unit(rows):
        return F.normalize(torch.randn(rows, D, generator=g), dim=1).to(device)

    def classes(rows):
        return torch.randint(C, (rows,), generator=g).to(device)

    return unit(N).requires_grad_(), unit(N), classes(N), unit(keys), classes(keys)


def table() -> torch.Tensor:
    """[C, C] classes in superclasses of five: two ranks."""
    group = torch.arange(C) // 5
    return torch.eye(C) + 0.75 * ((group[:, None] == group) & ~torch.eye(C, dtype=torch.bool))


def in_one_block(run, device: str = "cpu") -> None:
    """Run a step of the loss with all anchors in one block, as a GPU takes them."""
    with mock.patch.dict(losses.BLOCK, {device: 2**40}):
        run()


def peak_bytes(step, device):
    """Largest sum of live tensor bytes above the start."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    live = peak = 0
    for event in sorted(trace.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--keys", type=int, default=8192, help="in the bank; a million takes 10 GB for plain InfoNCE")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    config.huge_pages()  # as every script of ours does; the plain form has them, too
    given = inputs(args.keys, args.device)
    criterion = RINCELoss(table()).to(args.device)

    def step(loss):
        def run():
            given[0].grad = None
            loss(*given).backward()
            if args.device == "cuda":
                torch.cuda.synchronize()

        return run

    heads = {"plain InfoNCE": step(plain_infonce), "RINCE out_in": step(lambda *x: criterion.terms(*x).loss())}
    heads["in one block"] = partial(in_one_block, heads["RINCE out_in"], args.device)
    times, rows = in_turn(heads, args.repeats, warm=3), []
    for name, run in heads.items():
        with CountOperations() as counter:
            run()
        extra = peak_bytes(run, args.device)
        row = {"head": name, "median ms": 1000 * statistics.median(times[name])}
        row |= {"times plain": ratio(times[name], times["plain InfoNCE"]), "operations": counter.count}
        rows.append(row | {"extra [N, K] floats": extra / (4 * N * args.keys), "extra MB": extra / 1e6})
    title = f"N {N}, K {args.keys}, D {D}, {C} classes, 2 ranks, float32, forward + backward"
    report(title, rows, args.json, args.device)


if __name__ == "__main__":
    main()

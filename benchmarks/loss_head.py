"""The RINCE loss against plain one-term InfoNCE, forward and backward, in the same run: time, operations, memory.

python -m benchmarks.loss_head [--device cuda]

`in one block` is how a GPU computes it; a CPU takes the anchors a block at a time, for its caches.
"""

import argparse
import statistics
import time
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import losses
from benchmarks import report
from losses import RINCELoss


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


def seconds(step, device, repeats):
    times = []
    for _ in range(repeats):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times


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
    n, k, d, c = 768, args.keys, 128, 100
    torch.manual_seed(0)

    def unit(rows):
        return F.normalize(torch.randn(rows, d, device=args.device), dim=1)

    group = torch.arange(c) // 5
    table = torch.eye(c) + 0.75 * ((group[:, None] == group) & ~torch.eye(c, dtype=torch.bool))
    criterion = RINCELoss(table).to(args.device)
    q = unit(n).requires_grad_()
    inputs = (unit(n), torch.randint(c, (n,), device=args.device), unit(k), torch.randint(c, (k,), device=args.device))

    def step(loss):
        def run():
            q.grad = None
            loss(q, *inputs).backward()

        return run

    def in_one_block():
        with mock.patch.dict(losses.BLOCK, {args.device: n * (k + 1)}):
            step(criterion)()

    heads = {"plain InfoNCE": step(plain_infonce), "RINCE out_in": step(criterion), "  in one block": in_one_block}
    times = {name: [] for name in heads}
    for run in heads.values():
        seconds(run, args.device, 3)
    for _ in range(args.repeats):  # in turn, so that a drift of the machine meets both
        for name, run in heads.items():
            times[name] += seconds(run, args.device, 1)
    title = f"N {n}, K {k}, D {d}, {c} classes, 2 ranks, float32, forward + backward"
    rows = []
    for name, run in heads.items():
        with CountOperations() as counter:
            run()
        ratio = statistics.median(a / b for a, b in zip(times[name], times["plain InfoNCE"], strict=True))
        extra = peak_bytes(run, args.device)
        rows.append(
            {"head": name.strip(), "median ms": 1000 * statistics.median(times[name]), "ratio": ratio,
             "operations": counter.count, "extra [N, K] floats": extra / (4 * n * k), "extra MB": extra / 1e6}
        )  # fmt: skip
    report(title, rows, args.json, args.device)


if __name__ == "__main__":
    main()

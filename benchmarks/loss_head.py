"""The RINCE loss against plain one-term InfoNCE, forward and backward, in the same run: time, operations, memory.

python -m benchmarks.loss_head [--device cuda]
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

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
    args = parser.parse_args()
    n, k, d, c = 768, 8192, 128, 100
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

    heads = {"plain InfoNCE": step(plain_infonce), "RINCE out_in": step(criterion)}
    times = {name: [] for name in heads}
    for run in heads.values():
        seconds(run, args.device, 3)
    for _ in range(args.repeats):  # in turn, so that a drift of the machine meets both
        for name, run in heads.items():
            times[name] += seconds(run, args.device, 1)
    print(f"N {n}, K {k}, D {d}, {c} classes, 2 ranks, float32, forward + backward, torch {torch.__version__}", end="")
    print(f", {args.device}, {torch.get_num_threads()} threads")
    print(f"{'head':<16}{'median ms':>10}{'ratio':>8}{'operations':>12}{'extra [N, K] floats':>22}")
    for name, run in heads.items():
        with CountOperations() as counter:
            run()
        ratio = statistics.median(a / b for a, b in zip(times[name], times["plain InfoNCE"], strict=True))
        matrices = peak_bytes(run, args.device) / (4 * n * k)
        print(
            f"{name:<16}{1000 * statistics.median(times[name]):>10.1f}{ratio:>8.2f}{counter.count:>12}{matrices:>22.2f}"
        )


if __name__ == "__main__":
    main()

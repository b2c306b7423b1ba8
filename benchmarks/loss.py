"""Measure the RINCE loss, forward and backward, compared with plain forms: time, operations, memory.

python -m benchmarks.loss [--device cuda] [--keys 8192] [--growth | --rivals] [--json FILE]

`in one block` is how a GPU computes it; a CPU takes the anchors a block at a time, for its caches. --growth measures
banks of 1,024 keys up to --keys instead, with 128 anchors; --rivals every loss beside SupCon.
"""

import statistics
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import losses
from benchmarks import ROUNDS, growth_row, in_turn, must_equal, parser, peak_bytes, ratio, report
from losses import (
    BankLoss,
    CoarseSupConLoss,
    HiMulConLoss,
    RankNContrastLoss,
    RINCELoss,
    SupConLoss,
    TripletLoss,
    XCLRLoss,
    YAwareLoss,
    blocks,
)

N, D, C = 768, 128, 100  # anchors, dimensions, classes
TAU = 0.1  # of the forms with one temperature


class CountOperations(TorchDispatchMode):
    """Counts the operations that reach the dispatcher, backward's included."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def make_inputs(keys: int = 8192, device: str = "cpu", anchors: int = N) -> tuple[Tensor, ...]:
    """Make what the benchmarks give to a loss: query with a gradient, key, labels, bank, bank_labels."""
    g = torch.Generator().manual_seed(0)

    def unit(rows):
        return F.normalize(torch.randn(rows, D, generator=g), dim=1).to(device)

    def classes(rows):
        return torch.randint(C, (rows,), generator=g).to(device)

    return unit(anchors).requires_grad_(), unit(anchors), classes(anchors), unit(keys), classes(keys)


def make_table() -> Tensor:
    """[C, C] classes in superclasses of five: two ranks."""
    group = torch.arange(C) // 5
    return torch.eye(C).maximum(0.75 * (group[:, None] == group))


def plain_infonce(q: Tensor, k: Tensor, labels, bank: Tensor, bank_labels) -> Tensor:
    """One positive, the own key; every bank entry is a negative."""
    positive = (q * k).sum(1) / TAU
    return (torch.logaddexp(positive, (q @ bank.T / TAU).logsumexp(1)) - positive).mean()


def plain_rince(criterion: RINCELoss, q: Tensor, k: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor):
    """RINCE from its formula, by autograd: masks of all ranks over all entries."""
    similarity = torch.cat([(q * k).sum(1, keepdim=True), q @ bank.T], 1)
    rank = F.pad(criterion.ranks.between(labels, bank_labels), (1, 0))  # the own key's is 0
    terms = losses.rince_terms(similarity, rank, criterion.taus, min_probability=criterion.groups[0].min_probability)
    return terms._replace(occurs=criterion.occurring(labels)).loss()  # of a bank that is filling, too


def forward_and_backward(loss: Callable[[], Tensor], q: Tensor, device: str = "cpu") -> Callable[[], Tensor]:
    """Compute what is timed: a loss and the gradient of q."""

    def run():
        q.grad = None
        found = loss()
        found.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return found.detach()

    return run


def in_one_block(run: Callable[[], Tensor], device: str = "cpu") -> Tensor:
    """Run a step of the loss with all anchors in one block, as a GPU takes them."""
    with mock.patch.dict(blocks.BLOCK, {device: 2**40}):
        return run()


def measure(keys: int, device: str = "cpu", rounds: int = 15) -> list[dict]:
    """Rows of the forms of the loss over a bank, the plainest first."""
    given = make_inputs(keys, device)
    criterion = RINCELoss(make_table()).to(device)
    forms = {
        "plain InfoNCE": lambda: plain_infonce(*given),
        "RINCE out_in": lambda: criterion.terms(*given).loss(),
        "RINCE out_in, plain": lambda: plain_rince(criterion, *given),
    }
    forms = {name: forward_and_backward(loss, given[0], device) for name, loss in forms.items()}
    forms["in one block"] = partial(in_one_block, forms["RINCE out_in"], device)
    must_equal("plain RINCE", forms["RINCE out_in, plain"](), forms["RINCE out_in"](), 1e-4)
    times, rows = in_turn(forms, rounds, warm=3), []
    for name, run in forms.items():
        with CountOperations() as counter:
            run()
        extra = peak_bytes(run, device)
        row = {"head": name, "median ms": 1000 * statistics.median(times[name])}
        row |= {"times plain": ratio(times[name], times["plain InfoNCE"]), "operations": counter.count}
        rows.append(row | {"extra [N, K] floats": extra / (4 * N * keys), "extra MB": extra / 1e6})
    return rows


def measure_rivals(keys: int, device: str = "cpu", rounds: int = 15) -> list[dict]:
    """Rows of every loss, SupCon first."""
    given, table, values = make_inputs(keys, device), make_table(), torch.arange(C).double()
    losses_ = {
        "SupCon": SupConLoss(C, TAU, "all"),
        "SCL in": SupConLoss(C, TAU, "in"),
        "SCL out": SupConLoss(C, TAU, "out"),
        "SupCon on coarse groups": CoarseSupConLoss(table, TAU, "all"),
        "two losses": CoarseSupConLoss(table, TAU, "all", fine=True),
        "RINCE in": RINCELoss(table, variant="in"),
        "RINCE out-in": RINCELoss(table),
        "HiMulCon": HiMulConLoss(table),
        "X-CLR": XCLRLoss(table),
        "y-aware": YAwareLoss(table),
        "y-aware, values": YAwareLoss(values, sigma=5.0),
        "rank-n-contrast": RankNContrastLoss(table),
        "rank-n-contrast, values": RankNContrastLoss(values),
        "triplet": TripletLoss(table),
    }
    forms = {name: partial(_mean_term, loss.to(device), given) for name, loss in losses_.items()}
    times = in_turn({n: forward_and_backward(f, given[0], device) for n, f in forms.items()}, rounds, warm=3)
    return [
        {"loss": name, "median ms": 1000 * statistics.median(seconds), "times SupCon": ratio(seconds, times["SupCon"])}
        for name, seconds in times.items()
    ]


def _mean_term(loss: BankLoss, given: tuple[Tensor, ...]) -> Tensor:
    return loss.terms(*given).loss()


def measure_growth(keys: int, anchors: int = 128) -> dict:
    """Measure the row of a bank of this size."""
    given, ranked = make_inputs(keys, anchors=anchors), RINCELoss(make_table())
    forms = {
        "RINCE": forward_and_backward(lambda: ranked.terms(*given).loss(), given[0]),
        "plain InfoNCE": forward_and_backward(lambda: plain_infonce(*given), given[0]),
    }
    return growth_row(keys, forms, anchors, rounds=3 if keys <= 2**16 else 1)


def get_parser():
    p = parser(__doc__)
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device to measure")
    p.add_argument("--rounds", type=int, default=15, help=ROUNDS)
    p.add_argument("--keys", type=int, help="keys in the memory bank (default: 8192, or 1048576 with --growth)")
    p.add_argument("--growth", action="store_true", help="measure how time and memory grow with the bank")
    p.add_argument("--rivals", action="store_true", help="measure every loss next to SupCon")
    return p


def main():
    args = get_parser().parse_args()
    torch.manual_seed(0)
    if args.growth:
        rows = [measure_growth(4**n) for n in range(5, 16) if 4**n <= (args.keys or 4**10)]
        report(f"the loss over a bank, 128 anchors, D {D}", rows, args.json, name="growth_bank")
        return
    keys = args.keys or 8192
    if args.rivals:
        rows = measure_rivals(keys, args.device, args.rounds)
        report(f"N {N}, K {keys}, D {D}, {C} classes, 2 ranks, float32", rows, args.json, args.device, "rivals")
        return
    title = f"N {N}, K {keys}, D {D}, {C} classes, 2 ranks, float32, forward + backward"
    report(title, measure(keys, args.device, args.rounds), args.json, args.device)


if __name__ == "__main__":
    main()

"""Losses, gradients, bank and weights of 1, 2 and 3 processes agree, whatever part of the batch each has."""

from functools import partial
from itertools import product

import pytest
import torch
import torch.distributed as dist
from processes import together
from torch.nn.parallel import DistributedDataParallel

from engine.processes import distributed
from losses import (
    VARIANTS,
    CoarseSupConLoss,
    HiMulConLoss,
    NestedRINCELoss,
    RankNContrastLoss,
    RINCELoss,
    SupConLoss,
    TripletLoss,
    TwoHeadLoss,
    ValueRanks,
    XCLRLoss,
    YAwareLoss,
)
from networks.contrastive import ContrastiveModel
from networks.memory_bank import MemoryBank

STEPS, BATCH = 5, 7  # 7 = 4 + 3 = 3 + 2 + 2
TABLE = torch.tensor([[1, 0.75, 0.5, 0], [0.75, 1, 0.5, 0], [0.5, 0.5, 1, 0], [0, 0, 0, 1]])
GROUPS = torch.tensor([[0, 0], [1, 0], [2, 0], [3, 1]])
FILTER = 1e-3  # leaves out the own key where it points away from its query


def criteria():
    """Every loss in every variant."""
    ranked = {"rince": RINCELoss, "cumulative": partial(RINCELoss, cumulative_positives=True)}
    every = {
        f"{name} {variant}": make(TABLE, variant=variant, min_probability=FILTER)
        for (name, make), variant in product(ranked.items(), VARIANTS)
    }
    for variant in VARIANTS:
        every[f"nested {variant}"] = NestedRINCELoss(GROUPS, variant=variant, min_probability=FILTER)
    for name, variant in (("rince", "out"), ("cumulative", "out_in")):
        made = ranked[name](TABLE, variant=variant, min_probability=FILTER, reduction="anchors")
        every[f"{name} {variant} within anchors"] = made
    for variant in ("in", "out"):
        every[f"supcon {variant}"] = SupConLoss(4, variant=variant, min_probability=FILTER)
    return every


def rivals():
    """The losses that leave no term out."""
    two = [SupConLoss(4), CoarseSupConLoss(TABLE)]
    return {
        "nested positives": RINCELoss(TABLE, positives="nested"),
        "rince of values": RINCELoss(ValueRanks(torch.tensor([0.0, 1, 3, 2]), [0, 1.5])),
        "himulcon": HiMulConLoss(TABLE),
        "himulcone": HiMulConLoss(TABLE, enforce=True),
        "two losses": CoarseSupConLoss(TABLE, fine=True),
        "two heads": TwoHeadLoss(*two),
        "xclr": XCLRLoss(TABLE),
        "yaware of values": YAwareLoss(torch.tensor([0.0, 1, 3, 2]), sigma=1.0),
        "rnc": RankNContrastLoss(TABLE),
        "rnc of values": RankNContrastLoss(torch.tensor([0.0, 1, 3, 2])),
        "triplet": TripletLoss(TABLE),
    }


def batch(step):
    """Views [B, 2, 12] and labels [B]; in the first step the last process has no positive, of any rank."""
    generator = torch.Generator().manual_seed(step)
    views, labels = torch.randn(BATCH, 2, 12, generator=generator), torch.randint(3, (BATCH,), generator=generator)
    if step == 0:
        views[4:, 1], labels[4:] = -views[4:, 0], 3
    return views, labels


def train(criterion, shuffle=False):
    """STEPS steps; what this process saw of loss, counts and gradients, and the model it ends with."""
    torch.manual_seed(0)
    world, rank = distributed.world_size(), distributed.rank()
    encoder = torch.nn.Sequential(torch.nn.Linear(12, 8, bias=False), torch.nn.Tanh())
    model = ContrastiveModel(
        encoder, torch.nn.Linear(8, 6, bias=False), MemoryBank(24, 6), criterion, 0.9,
        partial(distributed.gather, total=BATCH),
        partial(distributed.encode_shuffled, total=BATCH) if shuffle and world > 1 else None,
    )  # fmt: skip
    wrapped = DistributedDataParallel(model, broadcast_buffers=False) if world > 1 else model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02, momentum=0.9)
    seen = {"losses": [], "per_rank": [], "counts": [], "gradients": []}
    for step in range(STEPS):
        views, labels = (x.split(distributed.shares(BATCH))[rank] for x in batch(step))
        own = wrapped(views[:, 0], views[:, 1], labels)
        terms = own.over_processes(distributed.all_reduce, world)
        optimizer.zero_grad()
        terms.loss().backward()
        optimizer.step()
        seen["losses"].append(distributed.all_reduce(terms.loss()))
        seen["per_rank"].append(distributed.all_reduce(terms.per_rank()))
        seen["counts"].append(own.count)
        seen["gradients"].append(torch.cat([p.grad.flatten() for p in encoder.parameters()]))
    return {**{k: torch.stack(v) for k, v in seen.items()}, "model": model.state_dict()}


def worker(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    results = {name: train(criterion) for name, criterion in (criteria() | rivals()).items()}
    results["shuffled"] = train(criteria()["rince out_in"], shuffle=True)
    torch.save(results, f"{folder}/{world}_{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """By number of processes, each one's results; of one process, made here."""
    folder = tmp_path_factory.mktemp("parity")
    done = {1: [{name: train(criterion) for name, criterion in (criteria() | rivals()).items()}]}
    done[1][0]["shuffled"] = done[1][0]["rince out_in"]
    for world in (2, 3):
        together(worker, (world, folder), world)
        done[world] = [torch.load(folder / f"{world}_{r}.pt", weights_only=True) for r in range(world)]
    return done


def assert_close(a, b, what):
    """Relative 1e-5 of the largest entry."""
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()), msg=lambda m: f"{what}: {m}")


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", [*criteria(), *rivals(), "shuffled"])
def test_several_processes_compute_what_one_does(results, name, world):
    (want,) = (x[name] for x in results[1])
    for process in results[world]:
        for what in ("losses", "per_rank", "gradients"):
            assert_close(process[name][what], want[what], what)
        for key, value in want["model"].items():
            assert_close(process[name]["model"][key], value, key)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", [name for name in criteria() if " all" not in name])  # which leaves no term out
def test_the_comparison_holds_where_one_process_has_no_positive_at_all(results, name, world):
    first = [process[name]["counts"][0] for process in results[world]]
    assert int(first[-1].sum()) == 0
    assert int(first[0].sum()) > 0
    assert torch.equal(sum(first), results[1][0][name]["counts"][0])


def test_the_mean_of_each_process_own_means_would_be_another(results):
    """So the comparison above can fail."""
    counts = [process["rince out"]["counts"] for process in results[2]]
    assert (counts[0][:, 0] != counts[1][:, 0]).any()

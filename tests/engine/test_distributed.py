"""Two gloo processes, different shards each: the bank and the weights stay the same on both."""

import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import together
from torch.nn.parallel import DistributedDataParallel

from engine.processes import distributed, launch
from losses import RINCELoss
from networks.contrastive import ContrastiveModel
from networks.memory_bank import MemoryBank


def train(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.manual_seed(0)
    table = torch.tensor([[1, 0.75, 0], [0.75, 1, 0], [0, 0, 1]])
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8), torch.nn.ReLU())
    model = ContrastiveModel(
        encoder, torch.nn.Linear(8, 4), MemoryBank(20, 4), RINCELoss(table), 0.9, distributed.gather
    )
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    generator = torch.Generator().manual_seed(rank)  # another shard on every process
    pushed = []
    for _ in range(4):
        x, y = torch.rand(2, 3, 3, 2, 2, generator=generator), torch.randint(3, (3,), generator=generator)
        wrapped(x[0], x[1], y).loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        pushed.append(y)
    torch.save({"model": model.state_dict(), "labels": torch.stack(pushed)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs():
    with tempfile.TemporaryDirectory() as folder:
        together(train, (2, folder), 2)
        yield [torch.load(Path(folder) / f"{r}.pt", weights_only=True) for r in range(2)]


def test_weights_and_bank_are_equal_on_both_processes(runs):
    first, second = (run["model"] for run in runs)
    assert not torch.equal(runs[0]["labels"], runs[1]["labels"])
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_the_bank_takes_the_keys_of_all_processes_in_rank_order(runs):
    want = torch.cat([step for pair in zip(runs[0]["labels"], runs[1]["labels"], strict=True) for step in pair])
    bank = runs[0]["model"]
    assert int(bank["bank.pointer"]) == 24 % 20
    assert torch.equal(bank["bank.labels"].roll(-4), want[-20:])


@pytest.mark.parametrize(("backend", "device_id"), [("nccl", torch.device("cuda", 1)), ("gloo", None)])
def test_nccl_connects_at_once_since_each_process_names_its_gpu(monkeypatch, backend, device_id):
    """So that a broken fabric shows when processes meet; stand-ins for the meeting and for the GPUs."""
    asked = []
    monkeypatch.setenv("TORCH_NCCL_DESYNC_DEBUG", "1")  # the meeting sets it
    monkeypatch.setattr(launch, "_device", lambda local_rank: torch.device("cuda", local_rank))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **how: asked.append((backend, how)))
    launch._meet(1, launch.Meeting(backend, 30, "tcp://127.0.0.1:1", world=2))
    ((found, how),) = asked
    assert (found, how.get("device_id"), how["rank"], how["world_size"]) == (backend, device_id, 1, 2)


def test_what_processes_tell_one_another_goes_by_way_of_the_host(monkeypatch):
    """Objects sent over NCCL would be copied to a GPU and waited for there."""
    groups = []
    monkeypatch.setitem(distributed.groups, "host", "gloo on the host")
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "broadcast_object_list", lambda box, src, group: groups.append(group))
    monkeypatch.setattr(dist, "all_gather_object", lambda values, value, group: groups.append(group))
    monkeypatch.setattr(dist, "all_reduce", lambda x, op, group: groups.append(group))
    monkeypatch.setattr(dist, "barrier", lambda group: groups.append(group))
    with distributed.main_first():
        pass
    distributed.gather_objects(1)
    distributed.vote([True])
    distributed.barrier()
    assert groups == ["gloo on the host"] * 4

"""What processes of the GPU's tests do: apart, so that they import little."""

import contextlib
import os
import signal
import sys
import warnings
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import main_supcon
import util
from engine.cli import config
from engine.processes import distributed
from engine.train import training
from engine.train.optimization import allow_tf32
from engine.train.training import Stepper
from losses import InBatchLoss, NestedRINCELoss, RINCELoss, SupConLoss
from networks.contrastive import ContrastiveModel
from networks.memory_bank import MemoryBank

# ---- waits -----------------------------------------------------------------------------------------------------------


def look_for_waits(mode: str) -> None:
    """What torch does from now on where the host waits for the device: "error", "warn", or "default", nothing."""
    if torch.cuda.is_available():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is a prototype
            torch.cuda.set_sync_debug_mode(mode)


@contextlib.contextmanager
def waits_looked_for(first: int, last: int, mode: str):
    """While it is entered, waits are looked for from the begin of step `first` of a training (from 1) to the begin of
    the step after `last`. Gives the list of the steps that began, each with the mode it began in.
    """
    began, backward = [], Stepper.backward

    def watched(self, step, images, labels):
        number = len(began) + 1
        if number in (first, last + 1):
            look_for_waits(mode if number == first else "default")
        began.append(mode if first <= number <= last else "default")
        return backward(self, step, images, labels)

    try:
        with mock.patch.object(Stepper, "backward", watched):
            yield began
    finally:
        look_for_waits("default")


@contextlib.contextmanager
def keys_always_shuffled():
    """While it is entered, --shuffle_bn shuffles in a run of one process, too."""
    build = main_supcon.build_model

    def shuffled(args, *parts):
        model = build(args, *parts)
        model.shuffle = partial(distributed.encode_shuffled, total=args.batch_size)
        return model

    with mock.patch.object(main_supcon, "build_model", shuffled):
        yield


def train(words: list[str], device) -> None:
    """main_supcon.py in this process, which has joined its group."""
    with mock.patch.object(sys, "argv", ["main_supcon.py", *words]):
        main_supcon.worker(config.parse(main_supcon.get_parser(), main_supcon.RECIPES), device)


def train_without_waits(words: list[str], device) -> None:
    """A training in whose steps 12 to 18 a wait is an error: up to step 11 DistributedDataParallel waits for the times
    of the first ten.
    """
    with waits_looked_for(12, 18, "error") as began:
        train(words, device)
    assert began[:19] == ["default"] * 11 + ["error"] * 7 + ["default"]


def losses_of_steps(folder: Path, words: list[str], environment: dict[str, str], name: str) -> None:
    """A training whose losses, step by step, are saved in `folder` under `name`. The device is late in each step, so
    that the host and its copies run ahead of it, whatever the loader brings.
    """
    os.environ.update(environment)
    os.chdir(folder)
    losses, backward = [], Stepper.backward

    def kept(self, *batch):
        if torch.cuda.is_available():
            torch.cuda._sleep(100_000_000)  # cycles: about 50 ms
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        loss, parts = backward(self, *batch)
        losses.append(loss.detach())
        return loss, parts

    sys.argv = ["main_supcon.py", *words]
    with mock.patch.object(Stepper, "backward", kept):
        util.run_command(main_supcon.main)
    torch.save(torch.stack(losses).cpu(), name)


# ---- several processes -----------------------------------------------------------------------------------------------

CLASSES, STEPS, DIM = 20, 3, 16
GROUP = torch.arange(CLASSES) // 4
TABLE = torch.eye(CLASSES).maximum(0.75 * (GROUP[:, None] == GROUP))


def criteria() -> dict:
    return {
        "RINCE out_in": RINCELoss(TABLE),
        "RINCE in": RINCELoss(TABLE, variant="in"),
        "RINCE out within anchors": RINCELoss(TABLE, variant="out", reduction="anchors"),
        "SCL out": SupConLoss(CLASSES),
        "nested": NestedRINCELoss(torch.stack([torch.arange(CLASSES), GROUP], 1)),
    }


def network():
    """An encoder [N, 3, 12, 12] -> [N, 32], without BatchNorm, whose statistics differ between processes."""
    layers = torch.nn.Conv2d(3, 32, 3, stride=2), torch.nn.Tanh(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    return torch.nn.Sequential(*layers)


def share(tensors, total: int, device) -> list:
    """This process's rows of each."""
    return [x.split(distributed.shares(total))[distributed.rank()].to(device) for x in tensors]


def drawn(total: int, step: int):
    """Two views [total, 2, 3, 12, 12] and labels [total]."""
    g = torch.Generator().manual_seed(step)
    return torch.randn(total, 2, 3, 12, 12, generator=g), torch.randint(CLASSES, (total,), generator=g)


def with_a_bank(criterion, total: int, shuffle: bool, device) -> dict:
    """STEPS steps of a model over a batch of `total` images, shared out: losses, gradients, keys of the bank."""
    torch.manual_seed(0)
    world = distributed.world_size()
    model = ContrastiveModel(
        network(), torch.nn.Linear(32, DIM), MemoryBank(2 * total + 1, DIM), criterion, 0.9,
        partial(distributed.gather, total=total),
        partial(distributed.encode_shuffled, total=total) if shuffle and world > 1 else None,
    ).to(device)  # fmt: skip
    wrapped = training.wrap_parallel(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses, gradients = torch.optim.SGD(trained, lr=0.1, momentum=0.9), [], []
    for step in range(STEPS):
        views, labels = share(drawn(total, step), total, device)
        terms = wrapped(views[:, 0], views[:, 1], labels).over_processes(distributed.all_reduce, world)
        optimizer.zero_grad()
        terms.loss().backward()
        optimizer.step()
        losses.append(distributed.all_reduce(terms.loss()))
        gradients.append(torch.cat([p.grad.flatten() for p in trained]))
    return {"losses": torch.stack(losses), "gradients": torch.stack(gradients), "bank": model.bank.keys}


def in_the_batch(total: int, device) -> dict:
    """Loss and gradient of one batch whose keys, of all processes, are the candidates."""
    torch.manual_seed(0)
    net = network().to(device)
    wrapped = DistributedDataParallel(net) if distributed.world_size() > 1 else net
    views, labels = share(drawn(total, 0), total, device)
    queries, keys = (F.normalize(x, dim=1) for x in wrapped(views.transpose(0, 1).flatten(0, 1)).chunk(2))
    loss = InBatchLoss(RINCELoss(TABLE)).to(device)(queries, keys, labels)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in net.parameters()])
    return {"losses": distributed.all_reduce(loss), "gradients": gradient}


def every_loss(total: int, device) -> dict:
    """What each loss gives in this process of those that share the batch."""
    allow_tf32(False)
    found = {name: with_a_bank(criterion, total - 1, False, device) for name, criterion in criteria().items()}
    found["shuffled"] = with_a_bank(criteria()["RINCE out_in"], total - 1, True, device)
    found["in the batch"] = in_the_batch(total, device)
    return {name: {k: v.cpu() for k, v in what.items()} for name, what in found.items()}


def whole_batch(total: int, device) -> dict:
    """An encoder with BatchNorm, synchronized where there are several processes: output, gradient, running statistics
    over the whole batch.
    """
    allow_tf32(False)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Tanh(), torch.nn.Flatten())
    net = training.sync_batchnorm(net, "resnet8", device).to(device)
    wrapped = DistributedDataParallel(net) if distributed.world_size() > 1 else net
    (views,) = share(drawn(total, 0)[:1], total, device)
    out = wrapped(views[:, 0])
    (out.square().sum() * distributed.world_size()).backward()  # their mean over processes is the whole batch's sum
    gradient = torch.cat([p.grad.flatten() for p in net.parameters()])
    statistics = torch.cat([b.float().flatten() for b in net.buffers()])
    found = {"output": distributed.gather(out.detach(), total), "gradients": gradient, "statistics": statistics}
    return {"encoder": {k: v.detach().cpu() for k, v in found.items()}}


def save_what(compute, folder: Path, device) -> None:
    """What this process computes, saved under its number."""
    torch.save(compute(device), folder / f"{distributed.rank()}.pt")


def assert_all_saved(folder: Path, wanted: dict, processes: int) -> None:
    """All processes have saved what one computes with the whole batch."""
    for rank in range(processes):
        found = torch.load(folder / f"{rank}.pt")
        assert found.keys() == wanted.keys()
        for name in wanted:
            for what, value in wanted[name].items():
                assert (found[name][what] - value).abs().max() <= 1e-4 * value.abs().max(), f"{name}, {what}, {rank}"


def on_one_device(rank: int, world: int, compute, folder: Path, device) -> None:
    """A process of `world` that share a device, by way of gloo."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    save_what(compute, folder, device)
    dist.destroy_process_group()


def fail(device):
    """The last process fails while the others wait for it."""
    if distributed.rank() == distributed.world_size() - 1:
        raise ZeroDivisionError("the first error")
    distributed.all_reduce(torch.ones(1, device=device)).tolist()


def be_killed(device):
    if distributed.rank() == distributed.world_size() - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.all_reduce(torch.ones(1, device=device)).tolist()

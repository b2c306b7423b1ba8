"""A training step of CIFAR's size beside the published code's and the packages', on one encoder: of peers."""

import argparse
import copy
from functools import partial

import torch
import torch.nn.functional as F

import util
from benchmarks import Work, must_equal
from benchmarks.loss_head import plain_infonce
from benchmarks.peers_losses import key_mask, memory
from benchmarks.train_step import CLASSES, random_batch, steps
from networks import resnet
from networks.contrastive import projection_head

TAU, MOMENTUM, RATE = 0.1, 0.99, 0.05


class Encoders(torch.nn.Module):
    """Query and momentum encoder of the packages' steps: ours, of the same weights, with their own update."""

    def __init__(self, args, layout=torch.contiguous_format):
        super().__init__()
        util.seed_everything(0)
        encoder = resnet.encoder(args.model, small_images=True)
        self.query = torch.nn.Sequential(encoder, projection_head(encoder.dim)).to(memory_format=layout)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.optimizer = torch.optim.SGD(self.query.parameters(), RATE, momentum=0.9, weight_decay=1e-4)

    def step(self, views, loss) -> torch.Tensor:
        """One step of loss(query, key) -> scalar."""
        from lightly.models.utils import update_momentum

        update_momentum(self.query, self.key, MOMENTUM)
        with torch.no_grad():
            key = F.normalize(self.key(views[1]), dim=1)
        found = loss(F.normalize(self.query(views[0]), dim=1), key)
        self.optimizer.zero_grad()
        found.backward()
        self.optimizer.step()
        return found.detach()


def of_lightly(args, **how):
    """MoCo as lightly's guide builds it; a generator of losses."""
    from lightly.loss import NTXentLoss

    nets, criterion = Encoders(args, **how), NTXentLoss(TAU, memory_bank_size=(args.bank, 128))
    while True:
        views, _ = random_batch(args)
        yield nets.step(views, criterion)


def of_metric_learning(args, **how):
    """A labelled momentum bank as pytorch-metric-learning's guide builds it; a generator of losses."""
    from pytorch_metric_learning.losses import CrossBatchMemory, SupConLoss

    nets, bank = Encoders(args, **how), F.normalize(torch.randn(args.bank, 128), dim=1)
    criterion, _ = memory(CrossBatchMemory, SupConLoss, bank, torch.randint(CLASSES, (args.bank,)))
    while True:
        views, labels = random_batch(args)

        def loss(q, k, labels=labels):
            return criterion(torch.cat([q, k]), torch.cat([labels, labels]), enqueue_mask=key_mask(q))

        yield nets.step(views, loss)


def ours(args, **how):
    """The steps of benchmarks.train_step, batch and all; a generator of losses."""
    run = steps(args, torch.device("cpu"), **how)
    for _ in run:
        yield next(run)


def _same_features(args) -> None:
    """That the packages' encoders are ours: the first loss of lightly's step is InfoNCE of the same features."""
    from lightly.loss import NTXentLoss

    views, labels = random_batch(args)
    nets, criterion = Encoders(args), NTXentLoss(TAU, memory_bank_size=(args.bank, 128))
    with torch.no_grad():
        q, k = (F.normalize(net(x), dim=1) for net, x in zip((nets.query, nets.key), views, strict=True))
        bank = criterion.memory_bank.bank.clone()
        must_equal("lightly's loss", criterion(q, k), plain_infonce(q, k, labels, bank, None, TAU), 1e-4)
    plain, fast = (float(next(ours(args, plain=plain))) for plain in (True, False))
    must_equal("the published loop's first loss", plain, fast, 1e-4)


def _step(model: str, batch: int, rounds: int) -> Work:
    args = argparse.Namespace(model=model, size=32, batch_size=batch, bank=4096)
    _same_features(args)
    runs = {
        "RINCE out-in, channels_last (default)": ours(args, plain=False, channels_last=True),
        "the same, contiguous": ours(args, plain=False),
        "published loop, plain": ours(args, plain=True),
        "lightly: MoCo, no labels": of_lightly(args),
        "pytorch-metric-learning: labelled bank": of_metric_learning(args),
        "lightly, channels_last": of_lightly(args, layout=torch.channels_last),
        "pytorch-metric-learning, channels_last": of_metric_learning(args, layout=torch.channels_last),
    }
    forms = {name: partial(next, run) for name, run in runs.items()}
    return Work(
        f"a training step, {model}, batch {batch} of 32 x 32, bank 4,096, {CLASSES} classes", forms, batch, rounds
    )


def resnet8() -> Work:
    return _step("resnet8", 256, 7)


def resnet18() -> Work:
    return _step("resnet18", 64, 5)


def bfloat16() -> Work:
    """--precision bfloat16 on this CPU."""
    args = argparse.Namespace(model="resnet20", size=32, batch_size=128, bank=4096)
    float32, narrow = (ours(args, plain=False, channels_last=True, precision=p) for p in ("float32", "bfloat16"))
    must_equal("the loss in bfloat16", float(next(narrow)), float(next(float32)), 0.05)
    forms = {"float32 (--precision auto on a CPU)": partial(next, float32), "bfloat16": partial(next, narrow)}
    return Work("precision on this CPU, a step of ResNet-20, batch 128", forms, 128)

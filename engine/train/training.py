"""What the training scripts share: a model on a device, one epoch, validation."""

import inspect
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

import util
from engine.batches import loading
from engine.processes import distributed
from engine.train.optimization import FiniteGuard, Stepper
from util import InputError


def prepared(model, device: torch.device, memory_format: torch.memory_format, compiled: bool):
    """The model on the device, in its layout; where `compiled`, its encoders are compiled when they first run."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes never change
    model = model.to(device, memory_format=memory_format)
    if compiled:
        for name, module in model.named_children():
            if name in ("encoder", "key_encoder"):
                module.compile()
    return model


def share_of_batch(labels: Tensor, batch_size: int) -> float:
    """This process's share of a batch, times the processes: a mean over its images, so weighed, becomes in the mean
    over processes that of all images, whether or not the batch divides.
    """
    return len(labels) * distributed.world_size() / batch_size


def sync_batchnorm(encoder, name: str, device: torch.device):
    """--syncBN: the encoder of this name with BatchNorm whose statistics are those of all processes."""
    from networks import encoders

    if distributed.world_size() == 1:
        return encoder
    if device.type != "cuda":
        raise InputError("--syncBN: torch has it on CUDA only; leave it out here")
    if encoders.is_timm(name):  # its layers join BatchNorm and activation
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(encoder)
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(encoder)


def parallel(model):
    """The model in DistributedDataParallel, where there are several processes.

    Buffers are not sent every step: the bank is equal anyway, and BatchNorm's running means stay per process.
    """
    if distributed.world_size() == 1:
        return model
    known = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # torch's new name
    return DistributedDataParallel(model, **{option: False})


@torch.no_grad()
def accuracy(logits, labels):
    """[2] share of the images whose label is the first, and is among the first five, of logits [N, C]."""
    return _hits(logits, labels) / len(labels)


def _hits(logits, labels):
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([best[:, 0].double().sum(), best.any(1).double().sum()])


@torch.no_grad()
def validate(model, loader, stepper: Stepper):
    """top-1 and top-5 accuracy in percent over the shares of all processes; the model's mode is put back.

    In the training's precision, and in its layout, which convolutions take from their weights.
    """
    was_training, device = model.training, stepper.device
    model.eval()
    distributed.broadcast_buffers(model)  # every process judges the model that is saved
    right = torch.zeros(3, dtype=torch.float64, device=device)
    for images, labels in loader:
        with stepper.autocast():
            logits = model(images.to(device, non_blocking=True))
        labels = labels.to(device, non_blocking=True)
        right[:2] += _hits(logits, labels)
        right[2] += len(labels)
    model.train(was_training)
    top1, top5, images = distributed.all_reduce(right, "sum").tolist()
    return 100 * top1 / images, 100 * top5 / images


def peak_memory(device: torch.device) -> str:
    """What a first step has taken of a GPU's memory; "" on a CPU."""
    if device.type != "cuda":
        return ""
    peak, whole = torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]
    return f"memory: the first step took {peak / 1e9:.1f} GB of this GPU's {whole / 1e9:.1f} GB"


def train_epoch(run, loader, step: Callable, stepper: Stepper, epoch: int):
    """One epoch, or what is left of it: step(images, labels) -> loss, parts [R]. Returns their means over steps and
    processes, and images a second (None where no step was left).

    No process begins a step before all have their batches: where the loader of one ends early, at a stop or since no
    images come, all can still save and stop. The device is waited for at progress lines and before a checkpoint only;
    there the run stops if loss or gradients have turned NaN or infinite. Torch itself waits besides: with several
    processes, DistributedDataParallel for the times that it takes of steps 1 to 10 and of every 100th, at the begin of
    the step after each; --syncBN in every BatchNorm layer.
    """
    begin = time.perf_counter()
    loss_mean, parts_mean, guard = util.Mean(), util.Mean(), FiniteGuard(stepper.optimizer, stepper.device)
    done = i = run.enter(epoch, loss_mean, parts_mean, device=stepper.device)
    progress = run.progress(epoch, len(loader))

    def check_finite():
        first_bad = int(distributed.all_reduce(guard.first_bad, "max"))
        if first_bad < 0 and guard.collapsed(stepper.scaler):
            first_bad = i
        if first_bad >= 0:
            progress.close()
            run.stop_on_nan(epoch, first_bad, stepper.optimizer.param_groups[0]["lr"])

    def save_where_due():
        stop, save = run.wishes()
        if stop or (save and i > done):
            check_finite()
            run.save_step(epoch, i, stop, loss_mean, parts_mean)  # with `stop`, it ends the run

    for batch in loader:
        save_where_due()
        i += 1
        rate = stepper.set_rate(epoch - 1 + (i - 1) / len(loader))
        loss, parts = stepper.backward(step, *batch)
        del batch  # or it would be there while the next one is made
        guard.step(loss, i, stepper.scaler)
        loss_mean.update(loss)
        parts_mean.update(parts)
        if i == done + 1 and epoch == run.resumed_from + 1:
            distributed.say(peak_memory(stepper.device))
        if i % progress.every == 0 or i == len(loader):
            check_finite()
            progress.tick(i, f"loss {loss_mean.value():.4f}  lr {rate:.4g}")
    save_where_due()
    progress.close()
    for mean in (loss_mean, parts_mean):
        mean.total = distributed.all_reduce(mean.total)
    images = (len(loader) - done) * run.sampler.batch_size
    return loss_mean.value(), parts_mean.value(), images / (time.perf_counter() - begin) if images else None


def classification_epoch(run, loader, step: Callable, validation: Callable, stepper: Stepper, epoch: int) -> None:
    """One epoch of a classifier with step(images, labels) -> loss, accuracy [2]; validated, logged, saved.

    validation() -> top-1 and top-5 accuracy in percent.
    """
    loss, (top1, top5), images_per_second = train_epoch(run, loader, step, stepper, epoch)
    scalars = {"loss": loss, "learning_rate": stepper.optimizer.param_groups[0]["lr"], **loader.scalars()}
    if not isinstance(loader.dataset, TensorDataset):
        scalars |= loading.report_damage(run, loader.dataset.data, stepper.device)
    scalars |= {"train_top1": 100 * top1, "train_top5": 100 * top5}
    top1, top5 = validation()
    run.latest = {"top-1": top1, "top-5": top5, "epoch": epoch}
    if top1 > run.best.get("top-1", -1):
        run.best = run.latest
    scalars |= {"val_top1": top1, "val_top5": top5}
    run.log(epoch, scalars, images_per_second)
    run.save(epoch)

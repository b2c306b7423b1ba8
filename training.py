"""What the training scripts share: options, model and optimiser, one epoch, validation."""

import inspect
import sys
import time

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

import config
import datasets
import distributed
import loading
import util
import watching
from networks import resnet
from util import InputError

# small images are read faster than loader processes start
SMALL_DATA = {name: {"num_workers": 0} for name in ("digits", "fashion_mnist", "cifar10", "cifar100")}


def parse(parser, recipes: dict):
    """Parse --config files and the command line, with the defaults of the data set that they name."""
    util.huge_pages()
    words = config.command_line(parser, sys.argv[1:])
    known, _ = parser.parse_known_args(words)
    parser.set_defaults(**recipes.get(known.dataset, {}))
    return parser.parse_args(words)


def check_mean_and_std(args) -> None:
    """Both or neither, else InputError."""
    if (args.mean is None) != (args.std is None):
        raise InputError("--mean and --std go together: give both or neither")


def build_encoder(name: str, small_images: bool):
    """networks.resnet.encoder, whose error is the user's."""
    try:
        return resnet.encoder(name, small_images)
    except ValueError as error:
        raise InputError(str(error)) from None


def classification_data(args, only=()):
    """Training and validation set of the options, of two classes or more."""
    train, test = datasets.build_pair(args.dataset, args.data_folder, tuple(args.hold_out), only, args.skip_images)
    if len(train.classes) < 2:
        raise InputError(f"--data_folder {args.data_folder}: holds a single class; there is nothing to tell apart")
    return train, test


def autocast(args, device):
    """The context of a forward pass in --precision; the loss itself is always computed in float32."""
    kind = precision(args, device)
    return torch.autocast(device.type, dtype=kind, enabled=kind != torch.float32)


def precision(args, device) -> torch.dtype:
    """The type that --precision means; auto: on CUDA bfloat16, or float16 where a GPU lacks that; else float32."""
    if args.precision != "auto":
        return getattr(torch, args.precision)
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def gradient_scaler(args, device):
    """For float16, whose small gradients would vanish; otherwise it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision(args, device) == torch.float16)


def prepared(model, args, device):
    """The model on the device, in its layout; with --compile its encoders are compiled when they first run."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes never change
    model = model.to(device, memory_format=loading.memory_format(args))
    if args.compile:
        for name, module in model.named_children():
            if name in ("encoder", "key_encoder"):
                module.compile()
    return model


def image_settings(args, data):
    """The data set's spec, and the size, mean and std of its views: given, known, or estimated from the images."""
    check_mean_and_std(args)
    spec = datasets.spec(args.dataset)
    mean, std = (args.mean, args.std) if args.mean else (spec.mean, spec.std)
    if mean is None:
        mean, std = datasets.mean_and_std(data)
    return spec, args.size or spec.size, mean, std


def share_of_batch(args, labels) -> float:
    """This process's share of a batch, times the processes: a mean over its images, so weighed, becomes in the mean
    over processes that of all images, whether or not the batch divides.
    """
    return len(labels) * distributed.world_size() / args.batch_size


def sync_batchnorm(args, encoder, device):
    """With --syncBN, an encoder whose BatchNorm takes its statistics over all processes."""
    if not args.syncBN or distributed.world_size() == 1:
        return encoder
    if device.type != "cuda":
        raise InputError("--syncBN: torch has it on CUDA only; leave it out here")
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


def sgd(model, args):
    """SGD over the model's trained parameters, with the options' momentum and weight decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    how = dict(momentum=args.momentum, weight_decay=args.weight_decay, fused=True)  # fused: see util.FiniteGuard
    return torch.optim.SGD(trained, args.learning_rate, **how)


@torch.no_grad()
def accuracy(logits, labels):
    """[2] share of the images whose label is the first, and is among the first five, of logits [N, C]."""
    return _hits(logits, labels) / len(labels)


def _hits(logits, labels):
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([best[:, 0].double().sum(), best.any(1).double().sum()])


@torch.no_grad()
def validate(model, loader, device):
    """top-1 and top-5 accuracy in percent over the shares of all processes; the model's mode is put back."""
    was_training = model.training
    model.eval()
    distributed.broadcast_buffers(model)  # every process judges the model that is saved
    right = torch.zeros(3, dtype=torch.float64, device=device)
    for images, labels in loader:
        logits = model(images.to(device, non_blocking=True))
        labels = labels.to(device, non_blocking=True)
        right[:2] += _hits(logits, labels)
        right[2] += len(labels)
    model.train(was_training)
    top1, top5, images = distributed.all_reduce(right, "sum").tolist()
    return 100 * top1 / images, 100 * top5 / images


def set_learning_rate(optimizer, args, progress: float) -> float:
    """The schedule of the options at `progress` epochs."""
    rate = util.learning_rate(
        progress,
        base=args.learning_rate,
        epochs=args.epochs,
        cosine=args.cosine,
        decay_rate=args.lr_decay_rate,
        decay_epochs=args.lr_decay_epochs,
        warm_epochs=util.warm_up_epochs(args.warm, args.batch_size, args.epochs),
    )
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def train_epoch(run, loader, step, optimizer, epoch: int, device):
    """One epoch, or what is left of it: step(images, labels) -> loss, parts [R]. Returns their means over steps and
    processes, and images a second (None where no step was left).

    The device is waited for at progress lines and before a checkpoint only; there the run stops if loss or gradients
    have turned NaN or infinite.
    """
    args, begin = run.args, time.perf_counter()
    loss_mean, parts_mean, guard = util.Mean(), util.Mean(), util.FiniteGuard(optimizer, device)
    done = run.enter(epoch, loss_mean, parts_mean, device=device)
    progress = util.Progress(f"epoch {epoch}/{args.epochs}", len(loader), args.print_freq, distributed.is_main())
    for i, (images, labels) in enumerate(loader, done + 1):
        rate = set_learning_rate(optimizer, args, epoch - 1 + (i - 1) / len(loader))
        with torch.autograd.set_detect_anomaly(args.detect_anomaly):
            with autocast(args, device):
                loss, parts = step(images, labels)
            optimizer.zero_grad(set_to_none=True)
            run.scaler.scale(loss).backward()
        guard.step(loss, i, run.scaler)
        loss_mean.update(loss)
        parts_mean.update(parts)
        stop, save = run.wishes()
        if stop or save or i % args.print_freq == 0 or i == len(loader):
            first_bad = int(distributed.all_reduce(guard.first_bad, "max"))
            if first_bad < 0 and guard.collapsed(run.scaler):
                first_bad = i
            if first_bad >= 0:
                progress.close()
                run.stop_on_nan(epoch, first_bad, rate)
            progress.tick(i, f"loss {loss_mean.value():.4f}  lr {rate:.4g}")
        if stop or save:
            run.save_step(epoch, i, stop, loss_mean, parts_mean)
    progress.close()
    for mean in (loss_mean, parts_mean):
        mean.total = distributed.all_reduce(mean.total)
    images = (len(loader) - done) * args.batch_size
    return loss_mean.value(), parts_mean.value(), images / (time.perf_counter() - begin) if images else None


def classification_epoch(run, loader, step, model, validation, optimizer, epoch: int, device) -> None:
    """One epoch of a classifier with step(images, labels) -> loss, accuracy [2]; validated, logged, saved."""
    timed = watching.Timed(loader)
    loss, (top1, top5), images_per_second = train_epoch(run, timed, step, optimizer, epoch, device)
    scalars = {"loss": loss, "learning_rate": optimizer.param_groups[0]["lr"], **timed.scalars()}
    if not isinstance(loader.dataset, TensorDataset):
        scalars |= loading.report_damage(run, loader.dataset.data, device)
    scalars |= {"train_top1": 100 * top1, "train_top5": 100 * top5}
    top1, top5 = validate(model, validation, device)
    run.latest = {"top-1": top1, "top-5": top5, "epoch": epoch}
    if top1 > run.best.get("top-1", -1):
        run.best = run.latest
    scalars |= {"val_top1": top1, "val_top5": top5}
    run.log(epoch, scalars, images_per_second)
    run.save(epoch)

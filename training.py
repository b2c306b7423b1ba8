"""What the training scripts share: data, its loader, damaged images, one epoch, validation."""

import inspect
import itertools
import os
import signal
import sys
import threading
import time

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, Sampler, Subset, TensorDataset

import config
import datasets
import distributed
import util
import watching
from datasets.decoding import find_damage
from datasets.views import Views, as_it_is
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


def memory_format(args) -> torch.memory_format:
    """Of images and convolutions."""
    return torch.channels_last if args.channels_last else torch.contiguous_format


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
    model = model.to(device, memory_format=memory_format(args))
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


def check_images(run, data, device, what: str = "training"):
    """With --check_data, decode every image, the processes sharing the work; returns the data without the damaged ones.

    They are listed in the run's damaged_images.txt; without --on_bad_image skip, they are an InputError.
    """
    args = run.args
    if not args.check_data or isinstance(data.images, np.ndarray):
        return data
    share = range(distributed.rank(), len(data), distributed.world_size())
    found = find_damage([data.images[i] for i in share], show=distributed.is_main())
    bad = torch.zeros(len(data), dtype=torch.uint8, device=device)
    bad[[share[i] for i in found]] = 1
    bad = distributed.all_reduce(bad, "max").bool().cpu()
    damaged = bad.nonzero()[:, 0].tolist()
    run.say(f"decoded {len(data)} {what} images, {len(damaged)} damaged")
    if not damaged:
        return data
    listed = run.list_damage([data.images[i] for i in damaged])
    if args.on_bad_image != "skip":
        raise InputError(
            f"--check_data: {len(damaged)} of {len(data)} {what} images are damaged, as {data.images[damaged[0]]}; "
            f"give --skip_images {listed}, or --on_bad_image skip"
        )
    if len(damaged) == len(data):
        raise InputError(f"--check_data: none of the {len(data)} {what} images can be read")
    return data.chosen((~bad).nonzero()[:, 0].tolist())


def tolerate_damage(args, data) -> None:
    """Skip what turns out damaged during the run: the default, unless the images were checked before it."""
    if (args.on_bad_image or ("error" if args.check_data else "skip")) == "skip":
        data.tolerate_damage()


def report_damage(run, data, device) -> dict:
    """The number of images that were skipped so far by any process, for the log; a new one is listed and counted."""
    if data.bad is None:
        return {}
    bad = distributed.all_reduce(data.bad.to(device, torch.uint8), "max")
    damaged = bad.nonzero()[:, 0].tolist()
    if len(damaged) > run.damaged:
        run.damaged = len(damaged)
        listed = run.list_damage([data.images[i] for i in damaged])
        run.say(f"{len(damaged)} damaged images skipped so far, as {data.images[damaged[-1]]}; listed in {listed}")
    return {"damaged_images": len(damaged)} if damaged else {}


class EpochBatches(Sampler):
    """The batches of an epoch, this process's part of each: indices, in an order made of (seed, epoch) alone.

    A batch is the same set of images whatever the number of processes, which share it in rank order. Items are
    (epoch, index) where `keyed`: what is drawn for an image depends on these and on the seed (datasets.ImageData).
    Whole batches only: BatchNorm and the bank want them.
    """

    def __init__(self, count: int, batch_size: int, seed: int, keyed: bool = True):
        self.count, self.batch_size, self.seed, self.keyed = count, batch_size, seed, keyed
        self.set_epoch(1)

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """The epoch that comes next, from its step `done` on."""
        self.epoch, self.done = epoch, done

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return self.count // self.batch_size

    def __iter__(self):
        order = util.keyed_generator(self.seed, self.epoch, "order").permutation(self.count)
        for step in range(self.done, len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            part = np.array_split(batch, distributed.world_size())[distributed.rank()].tolist()
            yield [(self.epoch, i) for i in part] if self.keyed else part


def training_loader(data, args, device):
    """Batches on the device, and their sampler: shuffled, shared out to the processes, whole batches only.

    data: Views, or features in memory (a TensorDataset), which come a whole batch at a time.
    """
    if args.batch_size < distributed.world_size():
        raise InputError(f"--batch_size {args.batch_size} is less than the {distributed.world_size()} processes")
    if len(data) < args.batch_size:
        raise InputError(f"--batch_size {args.batch_size} is more than the {len(data)} training images")
    in_memory = isinstance(data, TensorDataset)
    sampler = EpochBatches(len(data), args.batch_size, args.seed, keyed=not in_memory)
    if in_memory:
        return Batches(DataLoader(data, sampler=sampler, batch_size=None), device, memory_format(args)), sampler
    loader = DataLoader(
        data,
        batch_sampler=sampler,
        collate_fn=as_it_is,
        num_workers=args.num_workers,
        pin_memory=device.type == "cuda",
        persistent_workers=args.num_workers > 0,
        **signal_free(args),
    )
    return Batches(loader, device, memory_format(args)), sampler


def augmented(data, args, device, augmentation) -> Views:
    """The training images as views of --seed, finished where --augment_on says: on the device, or by the workers."""
    where = args.augment_on or ("device" if device.type == "cuda" else "worker")
    return Views(data, augmentation, args.seed, finished=where == "worker")


class Batches:
    """A loader's batches, on the device and finished: (images, labels).

    On CUDA the next batch is copied, on a stream of its own, while the device works on this one.
    """

    def __init__(self, loader, device, memory_format):
        self.loader, self.dataset, self.device, self.memory_format = loader, loader.dataset, device, memory_format

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        if self.device.type != "cuda":
            yield from map(self._finished, self.loader)
            return
        copies, ahead = torch.cuda.Stream(), None
        for batch in itertools.chain(self.loader, [None]):
            now = ahead
            if batch is not None:
                with torch.cuda.stream(copies):
                    ahead = self._moved(batch), copies.record_event()
            if now is not None:
                moved, copied = now
                torch.cuda.current_stream().wait_event(copied)
                yield self._finished(moved)

    def _moved(self, batch):
        images, labels = batch
        if isinstance(images, torch.Tensor):
            images = images.to(self.device, non_blocking=True)
        else:  # the parameters stay on the CPU, where what is to be done is read from them
            images = images[0].to(self.device, non_blocking=True), images[1]
        return images, labels.to(self.device, non_blocking=True)

    def _finished(self, batch):
        images, labels = batch
        for x in (images if isinstance(images, torch.Tensor) else images[0], labels):
            if x.is_cuda:
                x.record_stream(torch.cuda.current_stream())  # its memory may not be used again before
        if not isinstance(images, torch.Tensor):
            return self.dataset.finish(*images, self.memory_format), labels
        if images.ndim >= 4 and self.memory_format == torch.channels_last:
            flat = images.flatten(0, -4).contiguous(memory_format=self.memory_format)
            images = flat.unflatten(0, images.shape[:-3])
        return images, labels


def signal_free(args) -> dict:
    """Of a DataLoader: its processes leave signals, which may go to all of a job, to the one that saves; it draws from
    random numbers of its own, so that those of the process stand where a checkpoint says.
    """
    return {"worker_init_fn": ignore_signals if args.num_workers else None, "generator": torch.Generator()}


def ignore_signals(worker: int) -> None:
    """Of a loader process: signals that go to a whole job are for the process that saves; only its parent ends it."""
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for_parent, daemon=True).start()


def _end_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


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


def share_loader(data, args, device):
    """This process's share of a data set in order, every image once over all processes: r, r + world, ..."""
    share = range(distributed.rank(), len(data), distributed.world_size())
    if isinstance(data, TensorDataset):
        batches = BatchSampler(share, args.batch_size, drop_last=False)
        return DataLoader(data, sampler=batches, batch_size=None)
    return DataLoader(
        Subset(data, share),
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        pin_memory=device.type == "cuda",
        persistent_workers=args.num_workers > 0,
        **signal_free(args),
    )


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
    processes, and images a second.

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
            if first_bad >= 0:
                progress.close()
                run.stop_on_nan(epoch, first_bad, rate)
            progress.tick(i, f"loss {loss_mean.value():.4f}  lr {rate:.4g}")
        if stop or save:
            run.save_step(epoch, i, stop, loss_mean, parts_mean)
    progress.close()
    for mean in (loss_mean, parts_mean):
        mean.total = distributed.all_reduce(mean.total)
    return loss_mean.value(), parts_mean.value(), (len(loader) - done) * args.batch_size / (time.perf_counter() - begin)


def classification_epoch(run, loader, step, model, validation, optimizer, epoch: int, device) -> None:
    """One epoch of a classifier with step(images, labels) -> loss, accuracy [2]; validated, logged, saved."""
    timed = watching.Timed(loader)
    loss, (top1, top5), images_per_second = train_epoch(run, timed, step, optimizer, epoch, device)
    scalars = {"loss": loss, "learning_rate": optimizer.param_groups[0]["lr"], **timed.scalars()}
    if not isinstance(loader.dataset, TensorDataset):
        scalars |= report_damage(run, loader.dataset.data, device)
    scalars |= {"train_top1": 100 * top1, "train_top5": 100 * top5}
    top1, top5 = validate(model, validation, device)
    run.latest = {"top-1": top1, "top-5": top5, "epoch": epoch}
    if top1 > run.best.get("top-1", -1):
        run.best = run.latest
    scalars |= {"val_top1": top1, "val_top5": top5}
    run.log(epoch, scalars, images_per_second)
    run.save(epoch)

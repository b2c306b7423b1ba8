"""What the training scripts share: data loader, one epoch, validation, and a run's folder with checkpoints and logs."""

import inspect
import sys
import time
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import checkpoint
import datasets
import distributed
import options
import util
from networks import resnet
from util import InputError

# options that a resumed run must share with its checkpoint, or the weights mean something else
FIXED = ("dataset", "model", "feat_dim", "memorybank_size", "cache_features")

# small images are read faster than loader processes start
SMALL_DATA = {name: {"num_workers": 0} for name in ("digits", "fashion_mnist", "cifar10", "cifar100")}


def parse(parser, recipes: dict):
    """Parse the command line, with the defaults of the data set that it names."""
    known, _ = parser.parse_known_args()
    parser.set_defaults(**recipes.get(known.dataset, {}))
    return parser.parse_args()


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
    train, test = datasets.build_pair(args.dataset, args.data_folder, tuple(args.hold_out), only)
    if len(train.classes) < 2:
        raise InputError(f"--data_folder {args.data_folder}: holds a single class; there is nothing to tell apart")
    return train, test


def memory_format(device) -> torch.memory_format:
    """channels_last is the fast layout of convolutions on CUDA."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def image_settings(args, data):
    """The data set's spec, and the size, mean and std of its views: given, known, or estimated from the images."""
    check_mean_and_std(args)
    spec = datasets.spec(args.dataset)
    mean, std = (args.mean, args.std) if args.mean else (spec.mean, spec.std)
    if mean is None:
        mean, std = datasets.mean_and_std(data)
    return spec, args.size or spec.size, mean, std


class EpochSampler(RandomSampler):
    """A fresh shuffle every epoch from (seed, epoch), for a run of one process."""

    def __init__(self, data, seed):
        self.seed = seed
        super().__init__(data, generator=torch.Generator())

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed * 100_003 + epoch)


def training_loader(data, args, device):
    """Loader and sampler: shuffled, sharded over the processes, whole batches only (BatchNorm and bank want them).

    Features in memory (a TensorDataset) come a whole batch at a time.
    """
    world = distributed.world_size()
    if args.batch_size % world:
        raise InputError(f"--batch_size {args.batch_size} does not divide over {world} processes")
    if len(data) < args.batch_size:
        raise InputError(f"--batch_size {args.batch_size} is more than the {len(data)} training images")
    sampler = DistributedSampler(data, seed=args.seed, drop_last=True) if world > 1 else EpochSampler(data, args.seed)
    if isinstance(data, TensorDataset):
        batches = BatchSampler(sampler, args.batch_size // world, drop_last=True)
        return DataLoader(data, sampler=batches, batch_size=None), sampler
    loader = DataLoader(
        data,
        batch_size=args.batch_size // world,
        sampler=sampler,
        num_workers=args.num_workers,
        pin_memory=device.type == "cuda",
        drop_last=True,
        persistent_workers=args.num_workers > 0,
    )
    return loader, sampler


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
    return torch.optim.SGD(trained, args.learning_rate, momentum=args.momentum, weight_decay=args.weight_decay)


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
    """One epoch: step(images, labels) -> loss, parts [R]. Returns their means over steps and processes.

    The device is waited for at progress lines only; there the run stops if the loss has turned NaN or infinite.
    """
    args = run.args
    loss_mean, parts_mean, bad = util.Mean(), util.Mean(), util.FirstBadStep(device)
    progress = util.Progress(f"epoch {epoch}/{args.epochs}", len(loader), args.print_freq, distributed.is_main())
    for i, (images, labels) in enumerate(loader, 1):
        rate = set_learning_rate(optimizer, args, epoch - 1 + (i - 1) / len(loader))
        images = images.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        loss, parts = step(images, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss_mean.update(loss)
        parts_mean.update(parts)
        bad.update(loss, i)
        if i % args.print_freq == 0 or i == len(loader):
            first = int(distributed.all_reduce(bad.step, "max"))
            if first >= 0:
                progress.close()
                run.stop_on_nan(epoch, first, rate)
            progress.tick(i, f"loss {loss_mean.value():.4f}  lr {rate:.4g}")
    progress.close()
    for mean in (loss_mean, parts_mean):
        mean.total = distributed.all_reduce(mean.total)
    return loss_mean.value(), parts_mean.value()


def classification_epoch(run, loader, sampler, step, model, validation, optimizer, epoch: int, device) -> dict:
    """One epoch of a classifier with step(images, labels) -> loss, accuracy [2]; validated, logged; its scalars."""
    sampler.set_epoch(epoch)
    begin = time.perf_counter()
    loss, (top1, top5) = train_epoch(run, loader, step, optimizer, epoch, device)
    seconds = time.perf_counter() - begin
    scalars = {"epoch": epoch, "loss": loss, "learning_rate": optimizer.param_groups[0]["lr"]}
    scalars |= {"train_top1": 100 * top1, "train_top5": 100 * top5}
    scalars["val_top1"], scalars["val_top5"] = validate(model, validation, device)
    if scalars["val_top1"] > run.best.get("top1", -1):
        run.best = {"top1": scalars["val_top1"], "top5": scalars["val_top5"], "epoch": epoch}
    run.log(epoch, scalars, images_per_second=len(loader) * run.args.batch_size / seconds)
    return scalars


def best_and_last(best: dict, scalars: dict) -> dict:
    """The two rows of a classifier's result, in percent: at the epoch of the best top-1, and at the last."""
    return {
        "best": {"top-1": best["top1"], "top-5": best["top5"], "epoch": best["epoch"]},
        "last": {"top-1": scalars["val_top1"], "top-5": scalars["val_top5"], "epoch": scalars["epoch"]},
    }


class Run:
    """A run's folder: refuses to mix two runs, writes checkpoints, TensorBoard scalars and log.jsonl (main process)."""

    def __init__(self, args, method: str, name: str):
        self.args, self.begin = args, time.perf_counter()
        root = Path(args.save_folder) / method
        self.folder = root / f"{args.dataset}_models" / name
        self.last = self.folder / "last.pth"
        self.writer, self.tensorboard = None, root / f"{args.dataset}_tensorboard" / name
        self.best = {}  # of the validation scores so far
        self.good = "none yet"  # the last checkpoint of this run
        self.script = Path(sys.argv[0]).stem
        if not name or Path(name).name != name or name == "..":
            raise InputError(f"--exp_name {name}: must be a plain name, without a path")
        util.check_folder(args.save_folder, "--save_folder")
        if not distributed.is_main():
            return
        holds = self.last.exists() or any(self.folder.glob("ckpt_epoch_*.pth"))
        source = Path(args.resume).resolve() if args.resume else None
        own = source is not None and self.folder.resolve() in (source, source.parent)
        if holds and not own and not args.overwrite:
            raise InputError(
                f"--exp_name {name}: {self.folder} already holds a run; go on with --resume {self.folder}, "
                "start anew with --overwrite, or choose another name"
            )

    def open(self, epoch: int) -> None:
        """Make the folders, once there is something to write."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.args.resume:
            (self.folder / "log.jsonl").unlink(missing_ok=True)  # --overwrite
        self.writer = SummaryWriter(str(self.tensorboard), purge_step=epoch)
        record = {"options": options.plain(self.args), "torch": torch.__version__}
        util.append_json(self.folder / "log.jsonl", record)

    def say(self, text: str) -> None:
        """One line from the main process."""
        if distributed.is_main():
            print(text, flush=True)

    def resume(self, model, optimizer, facts) -> int:
        """Load --resume into model and optimiser; returns the epochs that are done."""
        args = self.args
        state = checkpoint.load(args.resume, "--resume")
        before = checkpoint.trained_options(state)
        if state.get("script", self.script) != self.script:
            raise InputError(f"--resume {args.resume}: was written by {state['script']}.py, not by {self.script}.py")
        if "optimizer" not in state or "epoch" not in state:
            raise InputError(f"--resume {args.resume}: holds no state of an optimiser; it can only be evaluated")
        for name in FIXED:
            if name in before and before[name] != getattr(args, name, before[name]):
                raise InputError(
                    f"--resume {args.resume}: was trained with --{name} {before[name]}, not {getattr(args, name)}"
                )
        if state.get("classes") != facts["classes"]:
            raise InputError(f"--resume {args.resume}: was trained on other classes than --data_folder holds")
        if state.get("encoder") != facts.get("encoder"):
            raise InputError(f"--resume {args.resume}: was trained on the features of another --ckpt")
        checkpoint.load_strictly(model, state["model"], f"--resume {args.resume}")
        optimizer.load_state_dict(state["optimizer"])
        if state["epoch"] >= args.epochs:
            raise InputError(f"--resume {args.resume}: has all of its {state['epoch']} epochs; give more --epochs")
        self.say(f"resumed {args.resume} after epoch {state['epoch']}")
        self.best, self.good = state.get("best", self.best), args.resume
        return state["epoch"]

    def log(self, epoch: int, scalars: dict, images_per_second: float) -> None:
        """An epoch's line, TensorBoard scalars, and log record."""
        if not distributed.is_main():
            return
        if self.writer is None:
            self.open(epoch)
        scalars = {**scalars, "images_per_second": images_per_second}
        shown = "".join(f"  {k} {v:.2f}" for k, v in scalars.items() if k.startswith("val_"))
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()
        util.append_json(self.folder / "log.jsonl", {"epoch": epoch, **scalars})
        left = (time.perf_counter() - self.begin) / epoch * (self.args.epochs - epoch)
        print(
            f"epoch {epoch}/{self.args.epochs}  loss {scalars['loss']:.4f}{shown}  lr {scalars['learning_rate']:.4g}  "
            f"{images_per_second:.0f} images/s  {left / 60:.1f} min left",
            flush=True,
        )

    def save(self, epoch: int, model, optimizer, facts) -> None:
        """last.pth after every epoch, ckpt_epoch_N.pth every --save_freq."""
        if not distributed.is_main():
            return
        state = {
            "options": options.plain(self.args),
            "epoch": epoch,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "best": self.best,
            "script": self.script,
            **facts,
        }
        checkpoint.save(self.last, state)
        self.good = self.last
        if epoch % self.args.save_freq == 0:
            checkpoint.save(self.folder / f"ckpt_epoch_{epoch}.pth", state)

    def stop_on_nan(self, epoch: int, step: int, rate: float) -> None:
        """End the run: the loss is no number any more; what is saved stays."""
        raise InputError(
            f"the loss turned NaN or infinite in epoch {epoch}, step {step}, at learning rate {rate:.4g}; "
            f"last good checkpoint: {self.good}; try a smaller --learning_rate or --warm"
        )

    def close(self) -> None:
        """Say where everything lies."""
        if self.writer is not None:
            self.writer.close()
            print(f"saved {self.last}  ({time.perf_counter() - self.begin:.0f} s)", flush=True)

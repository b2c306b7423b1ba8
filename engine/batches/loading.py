"""From a data set to its loaders, of training and of evaluation; and what is done about its damaged images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import BatchSampler, Subset, TensorDataset

from datasets.decoding import describe_damage, find_damage
from datasets.feature_views import FeatureItems, FeatureViews
from datasets.views import Views, as_it_is
from engine.batches.epoch_batches import BalancedBatches, EpochBatches, Loader, Prefetcher
from engine.processes import distributed, signals
from util import InputError


@dataclass(frozen=True)
class Loading:
    """How batches come to a device.

    batch_size: images a step, over all processes; workers: loader processes of each process; channels_last: layout of
    the images, and of the convolutions that take them; timeout_minutes: for so long a run may hang.
    """

    batch_size: int
    workers: int
    device: torch.device
    channels_last: bool = False
    timeout_minutes: float = 30

    @property
    def memory_format(self) -> torch.memory_format:
        """Of images and convolutions."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def of_loader(self) -> dict:
        """Arguments of a DataLoader. Its processes leave signals, which may go to all of a job, to the one that saves;
        it draws from random numbers of its own, so that those of the process stand where a checkpoint says.
        """
        return {
            "num_workers": self.workers,
            "pin_memory": self.device.type == "cuda",
            "persistent_workers": self.workers > 0,
            "worker_init_fn": signals.ignore if self.workers else None,
            "generator": torch.Generator(),
            "patience": 0.8 * 60 * self.timeout_minutes,  # before the processes that wait for this one lose theirs
        }


@dataclass(frozen=True)
class Balance:
    """What BalancedBatches draws by: labels [n] of the training images, and images per class."""

    labels: torch.Tensor
    per_class: int


def check_images(run, device, check: bool, skip: bool, parts: dict) -> list:
    """Where `check` holds, decode every image of the parts (name -> data), the processes sharing the work; returns the
    parts without the damaged ones.

    They are listed in the run's damaged_images.txt; unless `skip` holds, they are an InputError, as is a class without
    any other.
    """
    damaged, kept = {}, {}
    for name, data in parts.items():
        if not check or data.in_memory:
            continue
        bad = _damaged(data, device)
        damaged[name] = [data.images[i] for i in bad.nonzero()[:, 0].tolist()]
        run.say(f"decoded {len(data)} {name} images, {len(damaged[name])} corrupt")
        if bad.all():
            raise InputError(f"--check_data: none of the {len(data)} {name} images can be read")
        if bad.any():
            kept[name] = (~bad).nonzero()[:, 0].tolist()
    found = [image for images in damaged.values() for image in images]
    if found:
        listed = run.list_damage(found)
        if not skip:
            counts = " and ".join(f"{len(images)} of {len(parts[n])} {n}" for n, images in damaged.items() if images)
            raise InputError(
                f"--check_data: {counts} images are corrupt, such as {found[0]}: {describe_damage(found[0])}; "
                f"give --skip_images {listed}, or --on_bad_image skip"
            )
    option = "--on_bad_image skip"
    return [data.reduce_to(kept[name], option, name) if name in kept else data for name, data in parts.items()]


def _damaged(data, device) -> torch.Tensor:
    """[n] bool on the CPU: the images that do not decode, the same on every process."""
    share = range(distributed.rank(), len(data), distributed.world_size())
    found = find_damage([data.images[i] for i in share], show=distributed.is_main())
    bad = torch.zeros(len(data), dtype=torch.uint8, device=device)
    bad[[share[i] for i in found]] = 1
    return distributed.all_reduce(bad, "max").bool().cpu()


def report_damage(run, data, device) -> dict:
    """Report how many images any process has skipped so far, for the log; a new one is listed and counted."""
    if data.bad is None:
        return {}
    bad = distributed.all_reduce(data.bad.to(device, torch.uint8), "max")
    damaged = bad.nonzero()[:, 0].tolist()
    if len(damaged) > run.damaged:
        run.damaged = len(damaged)
        listed = run.list_damage([data.images[i] for i in damaged])
        count = "1 corrupt image" if len(damaged) == 1 else f"{len(damaged)} corrupt images"
        run.say(f"{count} skipped so far, such as {data.images[damaged[-1]]}; listed in {listed}")
    return {"damaged_images": len(damaged)} if damaged else {}


def training_loader(data, loading: Loading, seed: int, balanced: Balance | None = None):
    """Batches on the device, and their sampler: shuffled, shared out to the processes, whole batches only.

    data: Views, or features (FeatureViews, a TensorDataset), which come a whole batch at a time; balanced: of views,
    how BalancedBatches draws them.
    """
    if loading.batch_size < distributed.world_size():
        raise InputError(f"--batch_size {loading.batch_size} is less than the {distributed.world_size()} processes")
    if len(data) < loading.batch_size:
        raise InputError(f"--batch_size {loading.batch_size} is more than the {len(data)} training images")
    in_memory = isinstance(data, TensorDataset)
    whole_batches = in_memory or isinstance(data, FeatureViews)
    if balanced:
        sampler = BalancedBatches(balanced.labels, loading.batch_size, seed, balanced.per_class)
    else:
        sampler = EpochBatches(len(data), loading.batch_size, seed, keyed=not in_memory)
    if whole_batches:
        loader = Loader(data, sampler=sampler, batch_size=None)
    else:
        how = loading.of_loader()
        loader = Loader(data, batch_sampler=sampler, collate_fn=as_it_is, ends_early=True, **how)
    return Prefetcher(loader, loading.device, loading.memory_format), sampler


def build_views(data, augmentation, seed: int, where: str | None, device) -> Views:
    """Build the training images as views of a seed, finished on the "device" or by the "worker"; None: on a GPU."""
    where = where or ("device" if device.type == "cuda" else "worker")
    return Views(data, augmentation, seed, finished=where == "worker")


class Resident(TensorDataset):
    """Features and labels in memory, once for all epochs; a batch of them is taken where they lie."""

    def __getitem__(self, indices: list[int]):
        index = torch.tensor(indices)
        if self.tensors[0].is_cuda:  # from pinned memory the host waits for no copy
            index = index.pin_memory().to(self.tensors[0].device, non_blocking=True)
        return tuple(x.index_select(0, index) for x in self.tensors)

    @staticmethod
    def of(features: torch.Tensor, labels: torch.Tensor, device: torch.device) -> "Resident":
        """On the device where the features take at most half of what is free there, else where they are."""
        if device.type == "cuda" and 2 * features.nbytes > torch.cuda.mem_get_info(device)[0]:
            return Resident(features, labels)
        return Resident(features.to(device), labels.to(device))


def share_loader(data, loading: Loading):
    """Return this process's share of a data set in order, every image once over all processes: r, r + world, ..."""
    return ordered_loader(data, range(distributed.rank(), len(data), distributed.world_size()), loading)


def ordered_loader(data, indices: Sequence[int], loading: Loading):
    """Return these images of a data set, or rows of features, in order."""
    if getattr(data, "are_features", False):
        data = FeatureItems(data, data.transform)
    if isinstance(data, TensorDataset | FeatureItems):
        batches = BatchSampler(indices, loading.batch_size, drop_last=False)
        return Loader(data, sampler=batches, batch_size=None)
    return Loader(Subset(data, indices), batch_size=loading.batch_size, **loading.of_loader())

"""Features as training views and as items to evaluate: normalized, with dropout or noise, a whole batch at a time. They
are those of a data set `data`, with `images`, FeatureRows, and `labels` [n].
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from datasets.features import FeatureRows
from datasets.sources import ViewSettings
from util import InputError

NORMALIZATIONS = ("l2", "standard", "none")
STATISTICS_ROWS = 2**18  # rows, evenly spaced, that mean and std of --normalize standard come from


class Normalization:
    """How features are scaled before anything else: `l2` to length 1, `standard` by mean and std of training rows, or
    not at all (`none`).
    """

    def __init__(self, views: ViewSettings):
        self.views = views
        if views.normalize == "standard":
            self.mean, self.std = torch.tensor(views.mean), torch.tensor(views.std)

    def __repr__(self) -> str:
        return f"Normalization({self.views.to_dict()})"

    def __call__(self, x: Tensor) -> Tensor:
        """[n, d] -> [n, d]."""
        if self.views.normalize == "l2":
            return F.normalize(x, dim=1)
        return (x - self.mean) / self.std if self.views.normalize == "standard" else x


def complete(given: ViewSettings, rows: FeatureRows) -> ViewSettings:
    """How rows are normalized: as given, `l2` where nothing is, with mean and std of these rows where they are needed.

    Raises InputError where the rows have another number of dimensions than is given, that of an encoder.
    """
    if given.size not in (None, rows.dim):
        source = f"{rows.flag} {rows.files[0]}"
        raise InputError(f"{source}: its rows have {rows.dim} dimensions, the encoder takes {given.size}")
    normalize = given.normalize or "l2"
    if normalize != "standard":
        return ViewSettings(rows.dim, normalize=normalize)
    mean, std = (given.mean, given.std) if given.mean is not None else _measure(rows)
    return ViewSettings(rows.dim, mean, std, normalize)


def _measure(rows: FeatureRows) -> tuple[list[float], list[float]]:
    """Mean and std of each dimension; of one that never changes, 1."""
    chosen = torch.linspace(0, len(rows) - 1, min(len(rows), STATISTICS_ROWS)).round().long()
    total, squares = torch.zeros(2, rows.dim, dtype=torch.float64)
    for part in chosen.split(2**14):
        x = rows.take(part).double()
        total, squares = total + x.sum(0), squares + x.square().sum(0)
    mean = total / len(chosen)
    std = (squares / len(chosen) - mean.square()).clamp(min=0).sqrt()
    return mean.tolist(), torch.where(std > 1e-6 * mean.abs().clamp(min=1e-12), std, 1.0).tolist()


@dataclass(frozen=True)
class Perturbation:
    """What makes a view of a row: each number is dropped with probability `dropout`, the others grow by 1 / (1 -
    dropout); Gaussian noise of std `noise` is added. views: of a row; with stored views, each is a different one of
    them where two suffice.
    """

    dropout: float = 0.1
    noise: float = 0.0
    views: int = 2


class FeatureViews(Dataset):
    """Training batches of views of features: item [(epoch, index), ...] of `data`, drawn from (seed, epoch, index)
    alone, as (views float32 [V, n, d], labels [n]); a single view is [n, d].
    """

    def __init__(self, data, normalization: Normalization, perturbation: Perturbation, seed: int):
        self.data, self.normalization, self.perturbation, self.seed = data, normalization, perturbation, seed

    def __len__(self) -> int:
        return len(self.data)

    @property
    def bad(self) -> None:
        """Features are refused where they are damaged: none is skipped."""
        return None

    def __getitem__(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        p, rows = self.perturbation, self.data.images
        epochs, indices = np.array(keys, dtype=np.uint64).T
        index = torch.from_numpy(indices.astype(np.int64))
        words = keyed_words(self.seed, epochs, indices, _words(p, rows))
        if rows.views > 1:
            chosen = _choose_stored(words[:, 0], rows.views, p.views)
            x = torch.stack([self.normalization(rows.take(index, view)) for view in chosen])
        else:
            x = self.normalization(rows.take(index))[None]
        x = (x / (1 - p.dropout)).expand(p.views, -1, -1)
        begin = 1
        if p.dropout:
            end = begin + -(-p.views * rows.dim // 4)
            kept = _numbers(words[:, begin:end], np.uint16, p.views, rows.dim) >= round(p.dropout * 2**16)
            x, begin = torch.where(torch.from_numpy(kept), x, 0.0), end
        if p.noise:
            numbers = _numbers(words[:, begin:], np.uint32, p.views, rows.dim) >> 9  # 23 bits: exact in float32
            uniform = (torch.from_numpy(numbers.astype(np.float32)) + 0.5) / 2**23
            x = x + p.noise * 2**0.5 * (2 * uniform - 1).erfinv()
        return x if len(x) > 1 else x[0], self.data.labels[index]


class FeatureItems(Dataset):
    """Features as evaluation sees them: item [index, ...] is (normalized rows [n, d] of view 0, labels [n])."""

    def __init__(self, data, normalization: Normalization):
        self.data, self.normalization = data, normalization

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        index = torch.tensor(indices)
        return self.normalization(self.data.images.take(index)), self.data.labels[index]


def _words(p: Perturbation, rows: FeatureRows) -> int:
    """Random words of 64 bits that the views of a row take: one, four numbers a word for dropout, two for noise."""
    numbers = p.views * rows.dim
    return 1 + (-(-numbers // 4) if p.dropout else 0) + (-(-numbers // 2) if p.noise else 0)


def _numbers(words: np.ndarray, kind: type, views: int, dim: int) -> np.ndarray:
    """Words [n, m] as whole numbers [V, n, d] of a smaller type."""
    return words.view(kind)[:, : views * dim].reshape(len(words), views, dim).swapaxes(0, 1)


def _choose_stored(words: np.ndarray, stored: int, views: int) -> Tensor:
    """[V, n] which stored views of a row are taken, by a random word each [n]; two are always different."""
    first = words % np.uint64(stored)
    step = np.uint64(1) + (words >> np.uint64(32)) % np.uint64(max(1, stored - 1))
    chosen = [(first + np.uint64(view) * step) % np.uint64(stored) for view in range(views)]
    return torch.from_numpy(np.stack(chosen).astype(np.int64))


def keyed_words(seed: int, epochs: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """[n, count] random 64-bit words, those of a row made of (seed, epoch, row) alone, without a loop over rows.

    SplitMix64 (Steele et al. 2014): a counter, mixed; seed, epoch and row are mixed into its start.
    """
    start = _mix(np.full(1, seed % 2**64, np.uint64)) ^ epochs
    start = _mix(_mix(start) ^ rows)
    return _mix(start[:, None] + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN)


GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """Compute the output function of SplitMix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

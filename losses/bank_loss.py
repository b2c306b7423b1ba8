"""What all losses over a memory bank share: their arguments, checks, and the loss of random embeddings."""

from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import BlockTerms, Grades, Term
from .equations import RankTerms, widen
from .ranks import PairSources, ValueSources, as_integers

Sources = TypeVar("Sources", bound=PairSources | ValueSources)


class Candidates(NamedTuple):
    """Anchors, and what each is compared with: the entries, and its own key.

    query, key: [N, D] and entries: [K, D] unit vectors; labels: [N]; entry_labels: [K], -1 for an empty entry.
    place: [N] where the own key, or the query itself, stands among the entries, and is none; None: it does not.
    has_key: whether the own key is a candidate.
    """

    query: Tensor
    key: Tensor
    labels: Tensor
    entries: Tensor
    entry_labels: Tensor
    place: Tensor | None = None
    has_key: bool = True

    def place_key(self, sources: Sources, of_key: int = 0) -> Sources:
        """The sources with the place of the key here, and its number, if it is a candidate."""
        return sources._replace(place=self.place, of_key=of_key if self.has_key else -1)  # type: ignore[return-value]

    def compute(self, grades: Grades, terms: tuple[Term, ...]) -> tuple[Tensor, Tensor]:
        """Total and count of each term, [G]."""
        return BlockTerms.apply(self.query, (self.query * self.key).sum(1), self.entries, grades, terms)


class BankLoss(nn.Module):
    """A loss of queries and keys over a bank of labelled keys. A subclass gives `compare` and `positives_per_anchor`.

    num_labels: labels count from 0 to one less; taus: the temperature of each term, for logs.
    """

    def __init__(self, num_labels: int, taus: tuple[float, ...]):
        super().__init__()
        self.num_labels, self.taus = num_labels, taus
        self.checked = False  # whether `check` has looked at values on a device

    def compare(self, candidates: Candidates) -> RankTerms:
        """The terms of anchors among candidates, float32 or better."""
        raise NotImplementedError

    def positives_per_anchor(self, labels: Tensor, bank_labels: Tensor) -> Tensor:
        """[N], [K] -> [G] mean number of positives an anchor has in each term; for logs."""
        raise NotImplementedError

    def terms(self, query: Tensor, key: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor) -> RankTerms:
        """The terms of each rank; the arguments of `forward`, whose values it does not check."""
        labels, bank_labels = as_integers(labels, "labels"), as_integers(bank_labels, "bank_labels")
        with torch.autocast(query.device.type, enabled=False):
            q, k, m = widen([query, key, bank])
            return self.compare(Candidates(q, k, labels, m, bank_labels))

    def forward(self, query: Tensor, key: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor) -> Tensor:
        """query, key: [N, D] unit vectors; labels: [N] from 0; bank: [K, D]; bank_labels: [K], -1 = empty -> scalar.

        Labels are of any integer type. The bank may be overwritten between this and backward. Raises ValueError for
        labels that the table has not, and for vectors of another length, whose sums of exponentials would leave
        float32's range; on CUDA the values are looked at once.
        """
        self.check({"labels": labels, "bank_labels": bank_labels}, {"query": query, "key": key, "bank": bank})
        return self.terms(query, key, labels, bank, bank_labels).loss()

    def check(self, labels: dict[str, Tensor], vectors: dict[str, Tensor]) -> None:
        """Raise ValueError where labels are none of the table, or vectors none of unit length; names are the
        arguments'. On a CPU at each call; elsewhere at the first one, since to look at values waits for the device;
        never where there are none to look at: while it is compiled or traced.
        """
        query = vectors["query"]
        traced = torch.compiler.is_compiling() or type(query) not in (Tensor, nn.Parameter)
        if traced or (self.checked and query.device.type != "cpu"):
            return
        for name, x in labels.items():
            least, most = -1 if name == "bank_labels" else 0, self.num_labels - 1
            wrong = as_integers(x, name)
            wrong = wrong[(wrong < least) | (wrong > most)]
            if len(wrong):
                raise ValueError(f"{name} hold {int(wrong[0])}; they must lie from {least} to {most}")
        for name, x in vectors.items():
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                norm = widen([x.detach()])[0].norm(dim=-1)
            # rounding to bfloat16 passes, and so do zeros, which are not to be normalised, and NaN, which shows
            wrong = norm[((norm - 1).abs() > 0.02) & (norm > 1e-3)]
            if len(wrong):
                length = f"{float(wrong[0]):.4g}"
                raise ValueError(f"{name} holds a vector of length {length}; normalise: F.normalize({name}, dim=1)")
        self.checked = True

    @torch.no_grad()
    def chance(self, labels: Tensor, bank_labels: Tensor, dim: int) -> Tensor:
        """The loss of random embeddings: the mean of each of the terms, which a loss that learns falls below.

        labels: [N] of the anchors; bank_labels: [K]; dim: D -> [G] float64 on the CPU. Queries, keys and banks are
        drawn, uniform on the sphere, by a generator of their own, for 256 anchors whose labels are spread as `labels`;
        of a small bank several. About 1 % off the expected value, a few percent at temperatures below 0.05.
        """
        generator = torch.Generator().manual_seed(0)

        def drawn(n: int) -> Tensor:
            return F.normalize(torch.randn(n, dim, generator=generator), dim=1).to(bank_labels.device)

        anchors = labels.sort().values[torch.arange(256 if len(labels) else 0) * len(labels) // 256]
        sizes, banks = (len(anchors), len(anchors), len(bank_labels)), 1 + 2**12 // (len(bank_labels) + 1)
        drawings = [self.terms(q, k, anchors, m, bank_labels) for q, k, m in (map(drawn, sizes) for _ in range(banks))]
        total, count = (sum(getattr(d, name) for d in drawings) for name in ("total", "count"))
        return RankTerms(total, count, drawings[0].occurs).per_rank().double().cpu()

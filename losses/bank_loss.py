"""What all losses over a bank share: arguments, checks, the loss of random embeddings."""

from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import BlockTerms, Grades, Term
from .equations import RankTerms, widen
from .ranks import PairSources, ValueSources, as_integers

Sources = TypeVar("Sources", bound=PairSources | ValueSources)


class Candidates(NamedTuple):
    """Hold anchors and what each is compared with: the entries and its key.

    Attributes:
        query: L2-normalized embeddings of the anchors, (N, D).
        key: L2-normalized embeddings of their keys, (N, D).
        labels: Labels of the anchors, (N,).
        entries: L2-normalized embeddings to compare with, (K, D).
        entry_labels: Labels of the entries, (K,); -1 for an empty entry.
        place: Index among the entries of each anchor's key, or of the anchor itself, (N,). This entry is left out.
            None if the entries hold neither.
        has_key: Whether the anchor's key is a candidate.

    Examples:
        >>> x = torch.eye(2)
        >>> candidates = Candidates(x, x, labels=torch.tensor([0, 1]), entries=x, entry_labels=torch.tensor([0, -1]))
        >>> candidates.has_key
        True
    """

    query: Tensor
    key: Tensor
    labels: Tensor
    entries: Tensor
    entry_labels: Tensor
    place: Tensor | None = None
    has_key: bool = True

    def place_key(self, sources: Sources, of_key: int = 0) -> Sources:
        """Return the sources with the place and the number of the anchor's key.

        Args:
            sources: What the number of each pair is made from.
            of_key: Number of the anchor's key where it is a candidate.

        Returns:
            A copy of the sources; the number is -1 where the key is not a candidate.
        """
        return sources._replace(place=self.place, of_key=of_key if self.has_key else -1)  # type: ignore[return-value]

    def compute(self, grades: Grades, terms: tuple[Term, ...]) -> tuple[Tensor, Tensor]:
        """Sum each term over all anchors.

        Args:
            grades: What the terms need to know of the candidates, apart from their cosines.
            terms: The G terms of the objective.

        Returns:
            Total and count of each term, (G,) each.
        """
        return BlockTerms.apply(self.query, (self.query * self.key).sum(1), self.entries, grades, terms)


class BankLoss(nn.Module):
    """Compare queries and keys with a bank of labeled keys: the base of all losses.

    A subclass defines ``compare``, and ``positives_per_anchor`` for logs.

    Args:
        num_labels: Number of labels, which count from 0.
        taus: Temperature of each term, for logs.

    Shape:
        - query, key: (N, D), L2-normalized; labels: (N,); bank: (K, D); bank_labels: (K,), -1 for an empty entry.
        - output: scalar.

    Examples:
        >>> class PullLoss(BankLoss):
        ...     def compare(self, candidates):
        ...         total = (1 - (candidates.query * candidates.key).sum(1)).sum()
        ...         return RankTerms(total[None], torch.tensor([len(candidates.query)]), torch.tensor([True]))
        >>> x, labels = torch.eye(4), torch.arange(4)
        >>> PullLoss(num_labels=4, taus=(1.0,))(x, -x, labels, x, labels)
        tensor(2.)
    """

    def __init__(self, num_labels: int, taus: tuple[float, ...]):
        super().__init__()
        self.num_labels, self.taus = num_labels, taus
        self.checked = False  # whether `check` has looked at values on a device

    def compare(self, candidates: Candidates) -> RankTerms:
        """Compute the terms of anchors among candidates.

        Args:
            candidates: Anchors and entries, in float32 or better.

        Returns:
            The terms, G of them.
        """
        raise NotImplementedError

    def positives_per_anchor(self, labels: Tensor, bank_labels: Tensor) -> Tensor:
        """Count the positives that an anchor has in each term, for logs.

        Args:
            labels: Labels of the anchors, (N,).
            bank_labels: Labels of the bank, (K,); -1 for an empty entry.

        Returns:
            Mean number of positives, (G,).
        """
        raise NotImplementedError

    def terms(self, query: Tensor, key: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor) -> RankTerms:
        """Compute the terms of the loss before their mean, without a check of values.

        Args:
            query: L2-normalized embeddings of the anchors, (N, D).
            key: L2-normalized embeddings of their keys, (N, D).
            labels: Labels of the anchors, (N,), of any integer type.
            bank: L2-normalized embeddings, (K, D).
            bank_labels: Labels of the bank, (K,); -1 for an empty entry.

        Returns:
            The terms; their method ``loss`` gives the scalar.

        Raises:
            ValueError: If labels are not integers.
        """
        labels, bank_labels = as_integers(labels, "labels"), as_integers(bank_labels, "bank_labels")
        with torch.autocast(query.device.type, enabled=False):
            q, k, m = widen([query, key, bank])
            return self.compare(Candidates(q, k, labels, m, bank_labels))

    def forward(self, query: Tensor, key: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor) -> Tensor:
        """Compute the loss of queries and keys over a bank.

        The bank may be overwritten before ``backward``. On CUDA, values are checked in the first call alone.

        Args:
            query: L2-normalized embeddings of the anchors, (N, D).
            key: L2-normalized embeddings of their keys, (N, D).
            labels: Labels of the anchors, (N,), of any integer type, from 0.
            bank: L2-normalized embeddings, (K, D).
            bank_labels: Labels of the bank, (K,); -1 for an empty entry.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: If a label is out of range, or an embedding is not L2-normalized: then sums of exponentials
                would leave the range of float32.
        """
        self.check({"labels": labels, "bank_labels": bank_labels}, {"query": query, "key": key, "bank": bank})
        return self.terms(query, key, labels, bank, bank_labels).loss()

    def check(self, labels: dict[str, Tensor], vectors: dict[str, Tensor]) -> None:
        """Check labels and embeddings.

        The check looks at values in each call on a CPU. On other devices, where it waits for the device, it looks in
        the first call alone, and never while the loss is compiled or traced.

        Args:
            labels: Labels by the name of the argument, (N,) or (K,). Under ``bank_labels``, -1 is valid too.
            vectors: Embeddings by the name of the argument, (N, D) or (K, D); ``query`` is one of them.

        Raises:
            ValueError: If a label is out of range, or an embedding is not L2-normalized.
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
            # rounding to bfloat16 passes, and so do zeros, which are not to be normalized, and NaN, which shows
            wrong = norm[((norm - 1).abs() > 0.02) & (norm > 1e-3)]
            if len(wrong):
                length = f"{float(wrong[0]):.4g}"
                raise ValueError(f"{name} holds a vector of length {length}; normalize: F.normalize({name}, dim=1)")
        self.checked = True

    @torch.no_grad()
    def chance(self, labels: Tensor, bank_labels: Tensor, dim: int) -> Tensor:
        """Estimate the loss of random embeddings, below which a loss that learns falls.

        Queries, keys and banks are uniform on the sphere, from a generator with a fixed seed: 256 anchors, whose labels
        are spread as ``labels``, and several banks if the bank is small. The result is within about 1 % of the expected
        value, and within a few percent at temperatures below 0.05.

        Args:
            labels: Labels of the anchors, (N,).
            bank_labels: Labels of the bank, (K,); -1 for an empty entry.
            dim: Dimensions D of the embeddings.

        Returns:
            Mean of each term, (G,), float64 on the CPU.
        """
        generator = torch.Generator().manual_seed(0)

        def drawn(n: int) -> Tensor:
            return F.normalize(torch.randn(n, dim, generator=generator), dim=1).to(bank_labels.device)

        anchors = labels.sort().values[torch.arange(256 if len(labels) else 0) * len(labels) // 256]
        sizes, banks = (len(anchors), len(anchors), len(bank_labels)), 1 + 2**12 // (len(bank_labels) + 1)
        drawings = [self.terms(q, k, anchors, m, bank_labels) for q, k, m in (map(drawn, sizes) for _ in range(banks))]
        total, count = (sum(getattr(d, name) for d in drawings) for name in ("total", "count"))
        return RankTerms(total, count, drawings[0].occurs).per_rank().double().cpu()

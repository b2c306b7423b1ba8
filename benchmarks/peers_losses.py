"""The losses beside those of pytorch-metric-learning and lightly, and beside plain forms: of peers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import Work, must_equal
from benchmarks.loss_head import in_one_block, inputs, plain_infonce, table
from losses import InBatchLoss, NestedRINCELoss, RINCELoss, SupConLoss, rince

TAU = 0.1


def forward_and_backward(loss, q: Tensor):
    """What is timed: a loss () -> scalar, and the gradient of q."""

    def run():
        q.grad = None
        loss().backward()

    return run


def over_a_bank() -> Work:
    """RINCE over a bank, beside one-term InfoNCE and the packages' banks."""
    from lightly.loss import NTXentLoss
    from pytorch_metric_learning.losses import CrossBatchMemory
    from pytorch_metric_learning.losses import SupConLoss as OfPackage

    q, k, labels, bank, bank_labels = given = inputs()
    ranked = RINCELoss(table())
    moco = NTXentLoss(TAU, memory_bank_size=tuple(bank.shape))
    moco.memory_bank.bank = bank.clone()
    # without labels: every vector its own class, of which InfoNCE is the case of one rank
    alone = NestedRINCELoss(torch.arange(len(q) + len(bank))[:, None], TAU, TAU, min_probability=0)
    own, others = torch.arange(len(q)), torch.arange(len(q), len(q) + len(bank))
    plain = plain_infonce(q, k, labels, bank, bank_labels)
    must_equal("plain InfoNCE", plain.detach(), alone(q, k, own, bank, others).detach(), 1e-4)
    with torch.no_grad():
        must_equal("lightly's NTXentLoss", moco(q.detach(), k), plain.detach(), 1e-4)
    with_classes, of_package = memory(CrossBatchMemory, OfPackage, bank, bank_labels)
    must_equal(
        "pytorch-metric-learning's SupConLoss",
        of_package(q, labels, ref_emb=bank, ref_labels=bank_labels).detach(),
        supcontrast(q.detach() @ bank.T, labels[:, None] == bank_labels),
        1e-4,
    )
    with torch.no_grad():
        keys, numbers = torch.cat([k[:1], bank]), torch.cat([labels[:1], bank_labels])
        rank = (~(labels[:1, None] == numbers)).long()
        one = SupConLoss(100, TAU)(q[:1], k[:1], labels[:1], bank, bank_labels)
        must_equal("SCL of one anchor", one, rince(q[:1] @ keys.T, rank, (TAU,), "out"), 1e-5)

    def products():
        (q.detach() @ bank.T) @ bank

    forms = {
        "RINCE out-in, two ranks": forward_and_backward(lambda: ranked.terms(*given).loss(), q),
        "the same in one block, as on a GPU": lambda: in_one_block(
            forward_and_backward(lambda: ranked.terms(*given).loss(), q)
        ),
        "plain InfoNCE, one term, autograd": forward_and_backward(lambda: plain_infonce(*given), q),
        "lightly: NTXentLoss with a bank, no labels": forward_and_backward(lambda: moco(q, k), q),
        "pytorch-metric-learning: CrossBatchMemory(SupConLoss)": forward_and_backward(
            lambda: with_classes(torch.cat([q, k]), torch.cat([labels, labels]), enqueue_mask=key_mask(q)), q
        ),
        "two products of the same size": products,
    }
    return Work(f"loss over a bank, N {len(q)}, K {len(bank):,}, D {q.shape[1]}, forward and backward", forms)


def memory(kind, loss_kind, bank: Tensor, bank_labels: Tensor):
    """pytorch-metric-learning's bank, full of ours, and the loss alone."""
    loss = loss_kind(TAU)
    filled = kind(loss, bank.shape[1], len(bank))
    filled.add_to_memory(bank, bank_labels, len(bank))
    return filled, loss


def key_mask(q: Tensor) -> Tensor:
    """Of queries and keys in one batch, which are keys, that go into the bank."""
    return torch.arange(2 * len(q)) >= len(q)


def supcontrast(similarity: Tensor, positive: Tensor, candidate: Tensor | None = None) -> Tensor:
    """L_out of Khosla et al. (2020, eq. 2) from its formula: [N, K] cosines, which are positives, which are candidates
    (None: all). The denominator holds all candidates, other positives too, unlike ours.
    """
    logits = similarity / TAU
    candidates = logits if candidate is None else logits.masked_fill(~candidate, -torch.inf)
    log_p = logits - candidates.logsumexp(1, keepdim=True)
    number = positive.sum(1)
    return -((log_p * positive).sum(1) / number.clamp(min=1))[number > 0].mean()


def at_low_temperature() -> Work:
    """Where sums of exponentials would leave float32's range, and where ranks come from groups instead of a table."""
    given = inputs()
    q = given[0]
    cold = RINCELoss(table(), 0.03, 0.6)
    groups = torch.stack([torch.arange(100), torch.arange(100) // 5], 1)
    nested = NestedRINCELoss(groups)
    with torch.no_grad():
        must_equal("nested groups", nested(*given), RINCELoss(table())(*given), 1e-4)
    forms = {
        "RINCE out-in, temperature 0.03, in log space": forward_and_backward(lambda: cold.terms(*given).loss(), q),
        "RINCE out-in, ranks from nested groups": forward_and_backward(lambda: nested.terms(*given).loss(), q),
        "plain InfoNCE, one term, autograd": forward_and_backward(lambda: plain_infonce(*given), q),
    }
    return Work("low temperature and nested groups, the same sizes", forms)


def in_the_batch() -> Work:
    """Two views of each of 768 images as anchors and candidates alike."""
    from pytorch_metric_learning.losses import SupConLoss as OfPackage

    g = torch.Generator().manual_seed(0)
    labels = torch.randint(100, (768,), generator=g).repeat(2)
    q = F.normalize(torch.randn(len(labels), 128, generator=g), dim=1).requires_grad_()
    ours = InBatchLoss(SupConLoss(100, TAU))
    others = ~torch.eye(len(q), dtype=torch.bool)
    of_package = OfPackage(TAU)

    def plain():
        return supcontrast(q @ q.T, (labels[:, None] == labels) & others, others)

    def as_ours():
        """-log(e_j / (e_j + S(N))) a pair, whose denominator has no other positives."""
        logits, positive = q @ q.T / TAU, (labels[:, None] == labels) & others
        log_n = logits.masked_fill(labels[:, None] == labels, -torch.inf).logsumexp(1, keepdim=True)
        return F.softplus(log_n - logits)[positive].mean()

    with torch.no_grad():
        must_equal("pytorch-metric-learning's SupConLoss", of_package(q, labels), plain(), 1e-4)
        must_equal("ours", ours(q, None, labels), as_ours(), 1e-4)
    forms = {
        "InBatchLoss(SupConLoss), one rank": forward_and_backward(lambda: ours.terms(q, None, labels).loss(), q),
        "SupContrast, plain, autograd": forward_and_backward(plain, q),
        "ours, plain, autograd": forward_and_backward(as_ours, q),
        "pytorch-metric-learning: SupConLoss": forward_and_backward(lambda: of_package(q, labels), q),
    }
    return Work("in the batch, 768 x 2 views, D 128, forward and backward", forms)

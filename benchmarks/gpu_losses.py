"""The loss in three forms, on a device: ours, plain in log space, as published."""

import torch
import torch.nn.functional as F

import losses
from benchmarks.gpu_parts import CLASSES, TABLE, Case, seconds_of
from losses import RINCELoss


def published_loss(query, key, labels, bank, bank_labels, criterion: RINCELoss):
    """RINCE out-in in the published form: probabilities from exponentials, over masked [N, 1 + K] matrices.

    query, key: [N, D]; labels: [N]; bank: [K, D]; bank_labels: [K]; criterion: whose ranks, temperatures and filter.
    """
    cosine = torch.cat([(query * key).sum(1, keepdim=True), query @ bank.T], 1)
    rank = F.pad(criterion.ranks(labels, bank_labels), (1, 0))  # the own key's is 0
    terms = []
    for r, tau in enumerate(criterion.taus):
        e = torch.exp(cosine / tau)
        positive, s_negative = rank == r, (e * (rank > r)).sum(1, keepdim=True)
        if r == 0:  # out: one term a pair
            probability, kept = e / (e + s_negative), positive
        else:  # in: one term an anchor
            s_positive = (e * positive).sum(1, keepdim=True)
            probability, kept = s_positive / (s_positive + s_negative), positive.any(1, keepdim=True)
        kept = kept & (probability > criterion.min_probability)
        # the inner choice keeps the logarithm of what is left out from turning the gradient into NaN
        nll = torch.where(kept, -torch.log(torch.where(kept, probability, 1.0)), 0)
        terms.append(nll.sum() / kept.sum().clamp(min=1))
    return torch.stack(terms).mean()


def loss_forms(case: Case, device) -> list[dict]:
    """Milliseconds and extra MB of the loss, forward and backward, in three forms, and how far they lie apart."""
    g, n, k = torch.Generator().manual_seed(0), case.batch_size, case.bank
    query, key, bank = (F.normalize(torch.randn(m, 128, generator=g), dim=1).to(device) for m in (n, n, k))
    labels, known = (torch.randint(CLASSES, (m,), generator=g).to(device) for m in (n, k))
    criterion, found = RINCELoss(TABLE).to(device), {}
    query.requires_grad_()

    def ours():
        return criterion.terms(query, key, labels, bank, known).loss()

    def in_log_space():
        cosine = torch.cat([(query * key).sum(1, keepdim=True), query @ bank.T], 1)
        rank = F.pad(criterion.ranks(labels, known), (1, 0))  # the own key's is 0
        return losses.rince(cosine, rank, criterion.taus, min_probability=criterion.min_probability)

    def published():
        return published_loss(query, key, labels, bank, known, criterion)

    rows = []
    for name, form in (("ours", ours), ("plain, in log space", in_log_space), ("published form", published)):

        def run(name=name, form=form):
            query.grad = None
            found[name] = form()
            found[name].backward()

        row = {"loss": name, "ms": 1000 * seconds_of(run, device)}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            row["extra MB"] = (torch.cuda.max_memory_allocated() - before) / 1e6
        rows.append(row | {"differs by": abs(float(found[name].detach()) - float(found["ours"].detach()))})
    for row in rows:
        row["times as slow"] = row["ms"] / rows[0]["ms"]
    return rows

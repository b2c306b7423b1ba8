"""Tables, batches and gradients that the tests of the objective share."""

import reference
import torch
import torch.nn.functional as F

CLASSES = 6
LEVELS = [1.0, 0.75, 0.5, 0.2]
HEADS = ("fast", "log space", "low temperature")
FORMS = [("in", "pairs"), ("out", "pairs"), ("out_in", "pairs"), ("out", "anchors"), ("out_in", "anchors")]
GROUPS = torch.tensor([[0, 0], [1, 0], [2, 1], [3, 1], [4, 2]])  # nested: labels 0 and 1, 2 and 3 share a group
GROUPS_TABLE = torch.eye(5) + 0.75 * ((GROUPS[:, None, 1] == GROUPS[:, 1]) & ~torch.eye(5, dtype=torch.bool))


def generator(seed):
    return torch.Generator().manual_seed(seed)


def unit(rows, dim, gen, dtype=torch.float64):
    return F.normalize(torch.randn(rows, dim, generator=gen, dtype=torch.float64), dim=1).to(dtype)


def asymmetric_table(ranks, gen):
    """[C, C] random table that has each of the first `ranks` levels, 1 beside the diagonal too."""
    levels = torch.tensor([*LEVELS[:ranks], 0.0], dtype=torch.float64)
    table = levels[torch.randint(ranks + 1, (CLASSES, CLASSES), generator=gen)]
    table[0, 1 : ranks + 2] = levels
    return table.fill_diagonal_(1)


def superclass_table(classes=CLASSES, size=2):
    group = torch.arange(classes) // size
    table = 0.75 * (group[:, None] == group).double()
    return table.fill_diagonal_(1)


def batch(seed, anchors=7, slots=16, filled=16, dim=4, classes=CLASSES, dtype=torch.float64):
    """query, key, labels, bank, bank_labels; the entries after the first `filled` are empty."""
    gen = generator(seed)
    labels = torch.randint(classes, (anchors,), generator=gen)
    bank_labels = torch.randint(classes, (slots,), generator=gen)
    bank_labels[filled:] = -1
    query, key, bank = unit(anchors, dim, gen, dtype), unit(anchors, dim, gen, dtype), unit(slots, dim, gen, dtype)
    return query, key, labels, bank, bank_labels


def expected(data, table, *args, **kwargs):
    return reference.rince(*(x.tolist() for x in (*data, table)), *args, **kwargs)


def loss_and_grads(criterion, query, key, *rest):
    query, key = query.clone().requires_grad_(), key.clone().requires_grad_()
    loss = criterion(query, key, *rest)
    return loss.detach(), *torch.autograd.grad(loss, (query, key))


def hard_batch(query_rows=1):
    """Anchors whose own key is opposite to them and a negative on top of them: probability exp(-2 / tau)."""
    query = torch.eye(3, dtype=torch.float64)[[0] * query_rows]
    labels = torch.zeros(query_rows, dtype=torch.long)
    return query, -query, labels, query[:1].clone(), torch.tensor([-1])


def nested_groups(labels, levels, gen):
    """[G, L] random groups: label g at level 0, its group's group at the next."""
    columns = [torch.arange(labels)]
    for level in range(1, levels):
        size = max(1, labels // 2**level)
        columns.append(torch.randint(size, (labels,), generator=gen)[columns[-1]])
    return torch.stack(columns, 1)

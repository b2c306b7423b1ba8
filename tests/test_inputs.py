"""Public functions of tensors take them as they come, strided, transposed, of half or double precision: same figures,
and no warning of torch's own.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import evaluation
import losses
from evaluation import Levels
from networks.adapters import OpenOODNet
from networks.memory_bank import MemoryBank

G = torch.Generator().manual_seed(0)
TRAIN, TEST = (F.normalize(torch.randn(n, 6, generator=G), dim=1) for n in (24, 9))
SCORES, OTHERS = torch.randn(9, generator=G), torch.randn(12, generator=G)
TRAIN_LABELS, TEST_LABELS, OTHER_LABELS = torch.arange(24) // 2 % 4, torch.arange(9) % 4, torch.arange(12) % 4
GROUPS = torch.stack([torch.arange(4), torch.arange(4) // 2], 1)
TABLE = torch.eye(4) + 0.5 * (torch.arange(4)[:, None] // 2 == torch.arange(4) // 2) * (1 - torch.eye(4))
REPEATED = TEST[[0, 1, 0, 2, 1]]
RANK = torch.arange(9 * 24).view(9, 24) % 3
TRAIN_SET, TEST_SET = (TRAIN, TRAIN_LABELS), (TEST, TEST_LABELS)


def of_type(dtype):
    return lambda x: x.to(dtype) if x.is_floating_point() else x


def strided(x):
    return x.repeat_interleave(2, 0)[::2]


FORMS = {
    "strided": strided,
    "transposed": lambda x: x.T.contiguous().T if x.ndim == 2 else x.repeat_interleave(3)[1::3],
    "half": of_type(torch.half),
    "bfloat16": of_type(torch.bfloat16),
    "double": of_type(torch.double),
    "labels of a byte": lambda x: x if x.is_floating_point() else x.to(torch.uint8),
    "with gradient": lambda x: x.clone().requires_grad_() if x.is_floating_point() else x,
    "double, strided": lambda x: strided(of_type(torch.double)(x)),
}
ROUNDED = {"half": 1e-3, "bfloat16": 8e-3}  # as gradients are, which have their input's type


def curve(x, y, gallery, z):
    sums = evaluation.Curve(y, z)
    evaluation.look_up(x, gallery, [sums])
    return list(sums.by_class(y, 4).values())


def order(x, y, gallery, z):
    sums = evaluation.Order(y, z, Levels.of_groups(GROUPS))
    evaluation.look_up(x, gallery, [sums])
    return sums.result()


def loss(criterion, query, key, labels, bank, bank_labels):
    query, key, bank = parts = [x.detach().requires_grad_() for x in (query, key, bank)]
    found = criterion(query, key, labels, bank, bank_labels)
    return found, *torch.autograd.grad(found, parts)


def pushed(keys, labels):
    bank = MemoryBank(30, 6)
    bank.push(keys, labels)
    return bank.keys[: len(keys)], bank.labels


def with_means(means, images):
    encoder = nn.Identity()
    encoder.dim = 6
    return OpenOODNet.of_means(encoder, means)(images)


VALUED = TEST, TEST_LABELS.float(), TRAIN, TRAIN_LABELS.float()
PAIR, TO_BANK = (TEST, TEST.roll(1, 0)), (TEST, TEST.roll(1, 0), TEST_LABELS, *TRAIN_SET)
LOOK_UP, OOD = (*TEST_SET, *TRAIN_SET), (*TRAIN_SET, TEST)
# name -> function and its arguments
CALLS = {
    "Curve": (curve, *LOOK_UP),
    "Levels": (lambda table, y, others: Levels.of_table(table).between(y, others), TABLE, TEST_LABELS, TRAIN_LABELS),
    "Order": (order, *LOOK_UP),
    "alignment": (evaluation.alignment, *PAIR),
    "auroc_by_class": (lambda *x: evaluation.auroc_by_class(*x, 4), SCORES, OTHERS, OTHER_LABELS),
    "class_correlation": (evaluation.class_correlation, *TRAIN_SET, TABLE),
    "distinct": (lambda x: evaluation.distinct(x)[1], REPEATED),
    "energy_scores": (evaluation.energy_scores, TEST),
    "extract": (lambda x, y: evaluation.extract(nn.Identity(), [(x, y)], "cpu"), *TEST_SET),
    "gaussian_scores": (evaluation.gaussian_scores, *OOD),
    "knn_accuracy": (lambda *x: evaluation.knn_accuracy(*x, k=5), *LOOK_UP),
    "knn_scores": (lambda x, _, y: evaluation.knn_scores(x, y, k=3), *OOD),
    "look_up": (order, *TEST_SET, None, None),
    "mahalanobis_scores": (evaluation.mahalanobis_scores, *OOD),
    "msp_scores": (evaluation.msp_scores, TEST),
    "nearest": (lambda x, y: evaluation.nearest(x, y, 3), TEST, TRAIN),
    "neighbor_accuracy": (evaluation.neighbor_accuracy, TRAIN, GROUPS[TRAIN_LABELS]),
    "not_alone": (evaluation.not_alone, TEST_LABELS),
    "other_class_map": (evaluation.other_class_map, *LOOK_UP, torch.arange(4) // 2),
    "knn_regression": (lambda x, _, *gallery: evaluation.knn_regression(x, *gallery), *VALUED),
    "regression_metrics": (evaluation.regression_metrics, *VALUED),
    "regression_scores": (evaluation.regression_scores, SCORES, OTHERS[: len(SCORES)]),
    "ridge_regression": (lambda x, _, *gallery: evaluation.ridge_regression(x, *gallery), *VALUED),
    "value_consistency": (evaluation.value_consistency, *VALUED),
    "ood_metrics": (evaluation.ood_metrics, SCORES, OTHERS),
    "rank_metrics": (lambda *x: evaluation.rank_metrics(*x[:4], Levels.of_table(x[4])), *LOOK_UP, TABLE),
    "rank_metrics, groups": (lambda *x: evaluation.rank_metrics(*x[:4], Levels.of_groups(x[4])), *LOOK_UP, GROUPS),
    "relative_mahalanobis_scores": (evaluation.relative_mahalanobis_scores, *OOD),
    "retrieval_curve": (evaluation.retrieval_curve, *LOOK_UP),
    "retrieval_metrics": (evaluation.retrieval_metrics, *LOOK_UP),
    "retrieval_metrics, one another": (evaluation.retrieval_metrics, *TEST_SET, None, None),
    "uniformity": (evaluation.uniformity, TEST),
    "rince": (lambda x, rank: losses.rince(x, rank, [0.1, 0.4]), TEST @ TRAIN.T, RANK),
    "RINCELoss": (lambda table, *x: loss(losses.RINCELoss(table), *x), TABLE, *TO_BANK),
    "RINCELoss, cumulative": (
        lambda table, *x: loss(losses.RINCELoss(table, cumulative_positives=True), *x), TABLE, *TO_BANK,
    ),
    "SupConLoss": (lambda *x: loss(losses.SupConLoss(4), *x), *TO_BANK),
    "HiMulConLoss": (lambda table, *x: loss(losses.HiMulConLoss(table), *x), TABLE, *TO_BANK),
    "XCLRLoss": (lambda table, *x: loss(losses.XCLRLoss(table), *x), TABLE, *TO_BANK),
    "YAwareLoss": (lambda table, *x: loss(losses.YAwareLoss(table), *x), TABLE, *TO_BANK),
    "RankNContrastLoss": (lambda table, *x: loss(losses.RankNContrastLoss(table), *x), TABLE, *TO_BANK),
    "TripletLoss": (lambda table, *x: loss(losses.TripletLoss(table), *x), TABLE, *TO_BANK),
    "NestedRINCELoss": (lambda groups, *x: loss(losses.NestedRINCELoss(groups), *x), GROUPS, *TO_BANK),
    "InBatchLoss": (lambda *x: losses.InBatchLoss(losses.RINCELoss(TABLE))(*x), *PAIR, TEST_LABELS),
    "chance": (lambda *x: losses.RINCELoss(TABLE).chance(*x, 6), TEST_LABELS, TRAIN_LABELS),
    "positives_per_anchor": (losses.NestedRINCELoss(GROUPS).positives_per_anchor, TEST_LABELS, TRAIN_LABELS),
    "MemoryBank": (pushed, *TEST_SET),
    "OpenOODNet": (with_means, TRAIN[:4], TEST),
}  # fmt: skip


@pytest.fixture(autouse=True)
def each_warning_again():
    """torch gives some warnings once a process, in which another test may have met them."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


def numbers(found):
    """All numbers of a result, one after another."""
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, (tuple, list)):
        return torch.cat([numbers(part) for part in found])
    return torch.as_tensor(found).detach().double().flatten()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CALLS)
def test_public_functions_take_tensors_of_any_layout_and_precision_without_a_warning(name, form):
    function, *given = CALLS[name]
    formed = [None if x is None else FORMS[form](x) for x in given]
    plain = [None if x is None else x.to(before.dtype).contiguous() for x, before in zip(formed, given, strict=True)]
    found, wanted = numbers(function(*formed)), numbers(function(*plain))
    torch.testing.assert_close(found, wanted, rtol=ROUNDED.get(form, 1e-5), atol=1e-6, equal_nan=True)


def test_every_public_function_of_the_evaluation_is_among_them():
    assert {name for name in evaluation.__all__ if not name.isupper()} <= set(CALLS)

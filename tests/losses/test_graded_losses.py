"""The rivals of RINCE equal their slow references, in the bank and in the batch, and name what they cannot take."""

import math
from functools import partial

import pytest
import reference
import torch
import torch.nn.functional as F
from loss_cases import GROUPS, GROUPS_TABLE, batch, generator, loss_and_grads, superclass_table

from losses import (
    CoarseSupConLoss,
    HiMulConLoss,
    InBatchLoss,
    NestedRanks,
    RankNContrastLoss,
    RankTerms,
    RINCELoss,
    SupConLoss,
    TripletLoss,
    TwoHeadLoss,
    ValueRanks,
    XCLRLoss,
    YAwareLoss,
    blocks,
)

NUMBER = torch.arange(6)
LEVELS = torch.eye(6, dtype=torch.float64).maximum(0.75 * (NUMBER[:, None] // 2 == NUMBER // 2))
LEVELS = LEVELS.maximum(0.5 * (NUMBER[:, None] // 4 == NUMBER // 4))  # pairs, and pairs of these: three levels
REAL = (LEVELS + 0.1 * torch.rand(6, 6, generator=generator(0), dtype=torch.float64) - 0.3).fill_diagonal_(1)
VALUES = torch.tensor([0, 1, 1, 2.5, 4, -3], dtype=torch.float64)


def supcon(labels, compared, tau, least=1.0):
    return reference.supcon(labels, compared, lambda y, b: LEVELS[y][b] >= least, tau)


def kernel(y, b):
    return math.exp(-(float(VALUES[y] - VALUES[b]) ** 2) / (2 * 1.5**2))


def distance(y, b):
    return abs(float(VALUES[y] - VALUES[b]))


# name -> the loss at a temperature, and its reference: labels, what each anchor is compared with, temperature
LOSSES = {
    "supcon": (lambda t: SupConLoss(6, t, "all"), supcon),
    "supcon coarse": (lambda t: CoarseSupConLoss(LEVELS, t, "all"), partial(supcon, least=0.5)),
    "two losses": (
        lambda t: CoarseSupConLoss(LEVELS, t, "all", fine=True),
        lambda *x: supcon(*x) + supcon(*x, least=0.5),
    ),
    "himulcon": (
        lambda t: HiMulConLoss(LEVELS, t), lambda y, c, t: reference.himulcon(y, c, LEVELS.tolist(), t, False),
    ),
    "himulcone": (
        lambda t: HiMulConLoss(LEVELS, t, enforce=True),
        lambda y, c, t: reference.himulcon(y, c, LEVELS.tolist(), t, True),
    ),
    "xclr": (lambda t: XCLRLoss(REAL, t, 0.2), lambda y, c, t: reference.xclr(y, c, REAL.tolist(), t, 0.2)),
    "yaware": (
        lambda t: YAwareLoss(REAL, t),
        lambda y, c, t: reference.cross_entropy_of_weights(y, c, lambda a, b: max(float(REAL[a][b]), 0.0), t),
    ),
    "yaware, kernel": (
        lambda t: YAwareLoss(REAL, t, 0.4),
        lambda y, c, t: reference.cross_entropy_of_weights(
            y, c, lambda a, b: math.exp(-((1 - float(REAL[a][b])) ** 2) / (2 * 0.4**2)), t
        ),
    ),
    "yaware, values": (
        lambda t: YAwareLoss(VALUES, t, 1.5),
        lambda y, c, t: reference.cross_entropy_of_weights(y, c, kernel, t),
    ),
    "rnc": (
        lambda t: RankNContrastLoss(LEVELS, t),
        lambda y, c, t: reference.rank_n_contrast(y, c, lambda a, b: 1 - float(LEVELS[a][b]), t),
    ),
    "rnc, values": (
        lambda t: RankNContrastLoss(VALUES, t), lambda y, c, t: reference.rank_n_contrast(y, c, distance, t),
    ),
    "triplet": (lambda t: TripletLoss(REAL, 0.2), lambda y, c, t: reference.triplet(y, c, REAL.tolist(), 0.2)),
}  # fmt: skip
each_loss = pytest.mark.parametrize("name", LOSSES)


def lists(*tensors):
    return [None if x is None else x.tolist() for x in tensors]


@pytest.mark.parametrize("tau", [0.01, 0.1, 2.0])
@each_loss
def test_a_loss_over_a_bank_equals_its_reference(name, tau):
    make, slow = LOSSES[name]
    for seed, filled in enumerate((0, 8, 16)):
        data = batch(seed, filled=filled)
        want = slow(data[2].tolist(), reference.candidates(*lists(*data)), tau)
        loss, *gradients = loss_and_grads(make(tau), *data)
        assert float(loss) == pytest.approx(want, rel=1e-11, abs=1e-12), filled
        assert all(x.isfinite().all() for x in gradients)


@pytest.mark.parametrize("own_key", [True, False])
@each_loss
def test_a_loss_in_the_batch_equals_its_reference(name, own_key):
    make, slow = LOSSES[name]
    for labels in ([0, 0, 1, 3, 3, 5, 2], [2] * 7, [0, 1, 2, 3, 4, 5, 0]):
        query, key, *_ = batch(4)
        key = key if own_key else None
        compared = reference.candidates_in_batch(*lists(query, key), labels)
        loss = InBatchLoss(make(0.1))(query, key, torch.tensor(labels))
        assert float(loss) == pytest.approx(slow(labels, compared, 0.1), rel=1e-11, abs=1e-12)


@each_loss
def test_the_gradients_are_those_of_finite_differences(name):
    query, key, labels, bank, bank_labels = batch(7, anchors=4, slots=8, filled=6, dim=3)
    loss, inputs = LOSSES[name][0](0.3), [x.requires_grad_() for x in (query, key, bank)]
    assert torch.autograd.gradcheck(lambda q, k, m: loss(q, k, labels, m, bank_labels), inputs)
    in_batch = InBatchLoss(loss)
    assert torch.autograd.gradcheck(lambda q: in_batch(q, None, labels), inputs[:1])


@each_loss
def test_blocks_of_anchors_change_nothing(name, monkeypatch):
    loss, data, found = LOSSES[name][0](0.1), batch(8, anchors=20), []
    monkeypatch.setattr(blocks, "LEAST_ROWS", 1)
    for rows in (100, 3):
        monkeypatch.setitem(blocks.BLOCK, "cpu", rows * 16)
        found.append(loss_and_grads(loss, *data))
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("tau", [0.01, 0.1])
@each_loss
def test_float32_and_bfloat16_stay_finite_and_close_to_float64(name, tau):
    data = batch(9, anchors=40, slots=96, dim=16)
    want = loss_and_grads(LOSSES[name][0](tau), *data)
    for dtype, close in ((torch.float32, 2e-4), (torch.bfloat16, 0.15)):
        found = loss_and_grads(LOSSES[name][0](tau), *(x.to(dtype) if x.is_floating_point() else x for x in data))
        assert found[0].dtype == torch.float32
        assert all(x.isfinite().all() for x in found)
        assert abs(float(found[0]) - float(want[0])) < close * abs(float(want[0])) + close


def test_weights_too_small_for_float32_are_taken_as_they_are():
    """Anchors without a key, alone in their class: the largest of their weights is far below 1."""
    query, labels = batch(9)[0][:5], torch.arange(5)
    for loss in (XCLRLoss(torch.eye(5) * 0.9 + 0.1, 0.1, 0.005), YAwareLoss(torch.arange(5.0), 0.1, 0.07)):
        wide, narrow = (InBatchLoss(loss)(query.to(t), None, labels) for t in (torch.float64, torch.float32))
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=0)
        assert float(wide) > 1


@each_loss
def test_queries_on_top_of_their_keys_have_finite_gradients(name):
    query, _, labels, bank, bank_labels = batch(10)
    bank[0] = query[0]
    assert all(
        x.isfinite().all() for x in loss_and_grads(LOSSES[name][0](0.1), query, query, labels, bank, bank_labels)
    )


@each_loss
def test_an_empty_batch_has_loss_zero(name):
    query, key, labels, *bank = batch(11)
    loss, *gradients = loss_and_grads(LOSSES[name][0](0.1), query[:0], key[:0], labels[:0], *bank)
    assert loss == 0
    assert all(x.shape == (0, 4) for x in gradients)


@each_loss
def test_an_anchor_that_meets_its_own_class_alone_equals_its_reference(name):
    query, key, _, bank, _ = batch(25)
    labels, bank_labels = torch.tensor([0] * 3 + [5] * 4), torch.zeros(len(bank), dtype=torch.long)
    make, slow = LOSSES[name]
    want = slow(labels.tolist(), reference.candidates(*lists(query, key, labels, bank, bank_labels)), 0.1)
    assert float(make(0.1)(query, key, labels, bank, bank_labels)) == pytest.approx(want, rel=1e-11)


# What they are of one another


def test_one_level_more_or_less_is_the_difference_of_the_losses():
    data, taus = batch(12), (0.1, 0.1)
    separate = RINCELoss(LEVELS, *taus, "all", positives="nested")
    terms = separate.terms(*data).per_rank()
    himulcon = HiMulConLoss(LEVELS, 0.1).terms(*data)
    torch.testing.assert_close(himulcon.per_rank(), terms)
    assert float(himulcon.loss()) == pytest.approx(float((terms * torch.tensor([2, 2**0.5, 2 ** (1 / 3)])).sum()) / 3)


@pytest.mark.parametrize("head", ["fast", "low temperature"])
@pytest.mark.parametrize("positives", ["separate", "cumulative", "nested"])
@pytest.mark.parametrize("variant", ["in", "out", "out_in", "all", "all_in"])
def test_rince_with_any_positives_equals_the_reference(variant, positives, head, use_head):
    taus, data = use_head(head), batch(13, filled=12)
    loss = RINCELoss(LEVELS, *taus, variant, False, 1e-7, "pairs", positives)
    want = reference.rince(*lists(*data, LEVELS), *taus, variant, False, 1e-7, "pairs", positives)
    assert float(loss(*data)) == pytest.approx(want, rel=1e-10)


def test_official_cifar_100_flags_train_scl_on_classes_and_on_superclasses_without_the_key():
    """At one temperature the two terms of cumulative positives are the paper's two losses, but for that key."""
    table, data = superclass_table(), batch(14, filled=12)
    terms = RINCELoss(table, 0.1, 0.1, "in", True).terms(*data).per_rank()
    fine = SupConLoss(6, 0.1, "in")(*data)
    coarse = [x.clone() for x in data]
    want = reference.rince(*lists(*data), (table > 0).double().tolist(), 0.1, 0.1, "in", False, 1e-7)
    with_key = CoarseSupConLoss(table, 0.1, "in")(*coarse)
    assert float(terms[0]) == pytest.approx(float(fine), rel=1e-12)
    assert float(with_key) == pytest.approx(want, rel=1e-12)
    assert float(terms[1]) > float(with_key)  # the key is a positive there


def test_scl_out_within_anchors_without_threshold_is_sincere():
    query, key, labels, bank, bank_labels = batch(15)
    losses = []
    for i, y in enumerate(labels.tolist()):  # Feeney and Hughes 2023, eq. 6: no other positive below
        s = torch.cat([query[i : i + 1] @ key[i : i + 1].T, query[i : i + 1] @ bank.T], 1)[0] / 0.1
        own = torch.tensor([True, *(b == y for b in bank_labels.tolist())])
        losses.append(sum(-(x - torch.cat([x[None], s[~own]]).logsumexp(0)) for x in s[own]) / own.sum())
    found = SupConLoss(6, 0.1, "out", 0, "anchors")(query, key, labels, bank, bank_labels)
    assert float(found) == pytest.approx(float(sum(losses)) / len(losses), rel=1e-12)


def test_xclr_of_unrelated_classes_at_a_low_target_temperature_is_supcon():
    data = batch(16)
    torch.testing.assert_close(XCLRLoss(torch.eye(6), 0.1, 0.01)(*data), SupConLoss(6, 0.1, "all")(*data))


def test_nested_groups_give_what_their_table_gives():
    data = batch(17, classes=5)
    for loss in (HiMulConLoss, CoarseSupConLoss, RankNContrastLoss):
        torch.testing.assert_close(loss(NestedRanks(GROUPS))(*data), loss(GROUPS_TABLE)(*data))


def test_values_with_thresholds_give_what_their_table_gives():
    data, apart = batch(18, filled=12), (VALUES[:, None] - VALUES).abs()
    table = torch.where(apart <= 0.5, 1.0, torch.where(apart <= 1.5, 2 / 3, torch.where(apart <= 3, 1 / 3, 0.0)))
    ranks, table = ValueRanks(VALUES, [0.5, 1.5, 3]), table.double()
    assert torch.equal(ranks.between(data[2], data[4]), RINCELoss(table).ranks.between(data[2], data[4]))
    assert torch.equal(ranks.has_rank, RINCELoss(table).ranks.has_rank)
    counts = ranks.entries_per_rank(data[2], data[4])
    assert torch.equal(counts, RINCELoss(table).ranks.entries_per_rank(data[2], data[4]))
    for loss in (HiMulConLoss, RankNContrastLoss):
        torch.testing.assert_close(loss(ranks)(*data), loss(table)(*data))
    same = RINCELoss(ranks, 0.1, 0.1)(*data)
    torch.testing.assert_close(same, RINCELoss(table, 0.1, 0.1)(*data))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_in_tenths_rank_as_whole_numbers_do(dtype):
    """0.9 - 0.2 is less than 0.7 in floating point, and 5.9 - 5.7 more than 0.2."""
    data, whole = batch(23, anchors=30, slots=60, classes=50), torch.arange(50)
    tenths = (whole.double() / 10).to(dtype)
    ranks = ValueRanks(whole, [0, 2, 7]), ValueRanks(tenths, [0, 0.2, 0.7])
    first, second = (r.between(data[2], data[4]) for r in ranks)
    assert torch.equal(first, second)
    first, second = (r.entries_per_rank(data[2], data[4]) for r in ranks)
    assert torch.equal(first, second)
    torch.testing.assert_close(RankNContrastLoss(tenths)(*data), RankNContrastLoss(whole)(*data))


@pytest.mark.parametrize("name", ["rnc", "rnc, values"])
def test_the_distance_of_a_query_from_its_own_copy_is_bounded(name):
    query, _, *rest = batch(24)
    make, slow = LOSSES[name]
    want = slow(rest[0].tolist(), reference.candidates(*lists(query, query, *rest)), 0.01)
    assert float(make(0.01)(query, query, *rest)) == pytest.approx(want, rel=1e-11)


def test_two_heads_are_two_losses_of_half_a_vector_each():
    fine, coarse = SupConLoss(6, 0.1, "all"), CoarseSupConLoss(LEVELS, 0.1, "all")
    first, second = batch(19), batch(20)
    labels = first[2], first[4]
    query, key, bank = (F.normalize(torch.cat([first[i], second[i]], 1), dim=1) for i in (0, 1, 3))
    both = TwoHeadLoss(fine, coarse).terms(query, key, labels[0], bank, labels[1])
    assert both.per_rank().tolist() == pytest.approx(
        [float(fine(*first)), float(coarse(*second[:2], labels[0], second[3], labels[1]))]
    )
    assert float(both.loss()) == pytest.approx(float(both.per_rank().sum()))


def test_the_level_that_stands_in_is_that_of_all_processes():
    """Of each half alone, or by its own counts, it would be another."""
    total, count = torch.tensor([[2.0, 9], [3, 0]]), torch.tensor([[1, 3], [1, 1]])
    occurs, weights = torch.ones(2, dtype=torch.bool), torch.tensor([2.0, 1])
    for half in range(2):
        sums = iter([torch.stack([count.sum(0), 2 * occurs.long()]), total.sum(0)])
        own = RankTerms(total[half], count[half], occurs, weights).rising()
        terms = own.over_processes(lambda x, _, sums=sums: next(sums), 2)
        assert terms.stand_in.tolist() == [0, 0]  # means of 2.5 and 2.25
        assert float(terms.loss()) == 3 * float(total[half, 0])  # 2 / 2 of it, with a weight of 2 + 1


@each_loss
def test_positives_for_the_log_and_the_loss_of_random_embeddings_are_given(name):
    loss, (_, _, labels, _, bank_labels) = LOSSES[name][0](0.1), batch(21, filled=12)
    positives = loss.positives_per_anchor(labels, bank_labels)
    group = VALUES.tolist() if "values" in name else [0, 0, 0, 0, 1, 1] if "coarse" in name else list(range(6))
    own = [sum(group[b] == group[y] for b in bank_labels.tolist() if b >= 0) for y in labels.tolist()]
    assert float(positives[0]) == pytest.approx(1 + sum(own) / len(own))
    assert len(positives) == len(loss.taus) == len(loss.terms(*batch(21)).total)
    assert loss.chance(labels, bank_labels, 8).isfinite().all()


@pytest.mark.slow
def test_supcon_and_the_triplet_loss_equal_those_of_a_metric_learning_library():
    pml = pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import distances, miners, reducers
    from pytorch_metric_learning import losses as peers

    assert pml
    query, _, labels, *_ = batch(22, anchors=12, dtype=torch.float32)
    supcon = InBatchLoss(SupConLoss(6, 0.1, "all"))(query, None, labels)
    alone = torch.tensor([int((labels == y).sum()) > 1 for y in labels])
    peer = peers.SupConLoss(0.1, reducer=reducers.AvgNonZeroReducer())(query, labels)
    assert int(alone.sum()) > 2
    assert float(supcon) == pytest.approx(float(peer), rel=1e-5)
    cosine = distances.CosineSimilarity()
    hard = miners.BatchHardMiner(distance=cosine)(query, labels)
    peer = peers.TripletMarginLoss(0.2, distance=cosine, reducer=reducers.MeanReducer())(query, labels, hard)
    ours = InBatchLoss(TripletLoss(torch.eye(6), 0.2))(query, None, labels)
    assert float(ours) == pytest.approx(float(peer), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: HiMulConLoss(torch.eye(3)), "needs groups of classes"),
        (lambda: CoarseSupConLoss(torch.eye(3)), "needs groups of classes"),
        (lambda: RankNContrastLoss(torch.eye(3)), "an order of classes"),
        (lambda: RankNContrastLoss(VALUES, 0.001), "0.004 is the least"),
        (lambda: RankNContrastLoss(VALUES * math.nan), "finite numbers"),
        (lambda: YAwareLoss(VALUES), "values need a sigma"),
        (lambda: YAwareLoss(LEVELS, sigma=0.0), "sigma is 0"),
        (lambda: XCLRLoss(LEVELS[:2]), r"\[C, C\] is needed"),
        (lambda: XCLRLoss(2 * LEVELS), r"must lie in \[-1, 1\]"),
        (lambda: XCLRLoss(LEVELS, 0.0), "temperature is 0"),
        (lambda: XCLRLoss(LEVELS, 0.1, 0.0), "target_temperature is 0"),
        (lambda: TripletLoss(LEVELS, -1.0), "margin is -1"),
        (lambda: HiMulConLoss(LEVELS, 0.0), "must be above 0"),
        (lambda: RINCELoss(LEVELS, positives="own"), "'own'; choose"),
        (lambda: ValueRanks(VALUES, [2, 1]), "must rise"),
        (lambda: ValueRanks(VALUES, []), "must rise"),
    ],
)
def test_what_a_loss_cannot_take_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()

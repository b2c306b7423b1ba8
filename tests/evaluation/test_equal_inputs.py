"""Equal inputs give equal results, also where a kernel rounds each entry of a product in its own way."""

import pytest
import reference
import torch
from torch import Tensor

import evaluation
from engine.encoder import detectors
from evaluation import Levels, knn_accuracy, nearest, neighbor_accuracy, rank_metrics, retrieval_metrics

TABLE = [[1.0, 0.75, 0.0], [0.75, 1.0, 0.0], [0.0, 0.0, 1.0]]


@pytest.fixture(autouse=True)
def uneven_products(monkeypatch):
    """Products whose last bits depend on the place of an entry, as those of a kernel do at its edges."""

    def uneven(product):
        def of(*args, **kwargs):
            out = product(*args, **kwargs)
            noise = torch.rand(out.shape, generator=torch.Generator().manual_seed(out.numel()), dtype=out.dtype)
            return out * (1 + (noise - 0.5) * 8 * torch.finfo(out.dtype).eps)

        return of

    monkeypatch.setattr(Tensor, "__matmul__", uneven(Tensor.__matmul__))
    for name in ("addmm", "cdist"):
        monkeypatch.setattr(torch, name, uneven(getattr(torch, name)))


def repeated(seed=0, directions=11, copies=4, dim=16):
    """Features [44, 16], each direction four times and not side by side, and labels that differ among equal ones."""
    g = torch.Generator().manual_seed(seed)
    which = torch.randperm(directions * copies, generator=g) % directions
    labels = torch.randint(3, (len(which),), generator=g)
    labels[:3] = torch.arange(3)
    return torch.randn(directions, dim, generator=g)[which], labels, which


@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_equal_entries_of_a_gallery_are_one_step_of_retrieval_and_of_the_rank_consistency(chunk):
    gallery, known, _ = repeated()
    queries, labels, _ = repeated(1)
    given, levels = (queries, labels, gallery, known), Levels.of_table(torch.tensor(TABLE, dtype=torch.float64))
    lists = [x.tolist() for x in given]
    want = reference.retrieval(*lists, topk=(1, 5, 10, 20))
    assert retrieval_metrics(*given, chunk=chunk) == pytest.approx(want, rel=1e-9)
    assert rank_metrics(*given, levels, chunk) == pytest.approx(reference.rank_metrics(*lists, TABLE), rel=1e-6)
    among = evaluation.other_class_map(*given, torch.tensor([0, 0, 1]), chunk)
    assert among == pytest.approx(reference.other_class_map(*lists, [0, 0, 1]), rel=1e-9)


def test_equal_queries_retrieve_the_same_in_one_order_of_the_gallery():
    gallery, (queries, _, which) = repeated()[0], repeated(1)
    for chunk in (1, 5, 256):
        cosines, indices = nearest(queries, gallery, 40, chunk)
        for direction in which.unique():
            rows = which == direction
            assert (indices[rows] == indices[rows][0]).all() and (cosines[rows] == cosines[rows][0]).all()
        assert indices.tolist() == reference.nearest(queries.tolist(), gallery.tolist(), 40)


def test_of_equally_near_neighbors_the_first_ones_vote():
    gallery, known, _ = repeated()
    queries, labels, _ = repeated(1)
    for k in (1, 2, 3, 7, 30):
        want = reference.knn_accuracy(*(x.tolist() for x in (queries, labels, gallery, known)), k=k, tau=0.07)
        assert knn_accuracy(queries, labels, gallery, known, k=k) == pytest.approx(want, abs=1e-9)
    want = reference.neighbor_accuracy(queries.tolist(), labels[:, None].tolist())
    assert neighbor_accuracy(queries, labels[:, None]) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("detector", detectors.DETECTORS)
def test_equal_images_have_one_ood_score_in_whichever_part_they_are(detector):
    train, labels, _ = repeated(2, directions=40, dim=8)
    x, _, which = repeated(3, dim=8)
    parts = detectors.compute_scores(detector, 3, "cpu", [x, x[:7].clone()], train, labels)
    for direction in which.unique():
        assert len(parts[0][which == direction].unique()) == 1
    assert torch.equal(parts[0][:7], parts[1])


def test_distinct_rows_are_told_by_value():
    x = torch.tensor([[1.0, 0], [2, 0], [1, -0.0], [2, 1e-45]])
    rows, which = evaluation.distinct(x)
    assert torch.equal(rows[which], x) and len(rows) == 3 and which[0] == which[2]
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        assert len(evaluation.distinct(x[:3].to(kind))[0]) == 2
    assert evaluation.distinct(x[[0, 1, 3]])[0].equal(x[[0, 1, 3]])


def test_rows_that_are_equal_as_float32_have_one_cosine():
    gallery, (queries, _, _) = repeated()[0].double(), repeated(1)
    gallery[1::2] *= 1 + 1e-12
    assert torch.equal(nearest(queries, gallery, 40)[1], nearest(queries, gallery.float(), 40)[1])


@pytest.mark.parametrize("nan", [torch.nan, -torch.nan])
def test_what_is_no_number_is_near_to_nothing_whatever_its_sign(nan):
    gallery = torch.tensor([[1.0, 0], [nan, 1], [0.8, 0.6]])
    assert nearest(torch.tensor([[1.0, 0]]), gallery, 3)[1].tolist() == [[0, 2, 1]]


@pytest.mark.parametrize("score", [evaluation.energy_scores, evaluation.msp_scores])
def test_equal_logits_have_each_their_gradient(score):
    logits = torch.tensor([[1.0, 2], [0, 1], [1, 2]], requires_grad=True)
    score(logits).sum().backward()
    assert torch.equal(logits.grad[0], logits.grad[2]) and logits.grad.abs().sum(1).all()

"""What a page is made of: numbers as loops have them, names as text, no path, a size that can be mailed."""

import re

import numpy as np
import pages
import pytest
import reference
import torch
import yaml
from made_data import clouds

import datasets
from figures import encoders
from reports import items, maps, measures, page, pairs, results, runs
from util import InputError


def test_items_are_sampled_class_by_class():
    labels = np.array([0] * 50 + [1] * 5 + [2] * 30 + [3])
    chosen = items.sample_items(labels, 16)
    assert np.bincount(labels[chosen]).tolist() == [5, 5, 5, 1]
    assert np.array_equal(chosen, items.sample_items(labels, 16)) and (np.diff(chosen) > 0).all()
    assert chosen[:5].tolist() != [0, 1, 2, 3, 4]  # spread over the class, not its first ones
    assert len(items.sample_items(labels, 100)) == len(labels)


def test_neighbors_and_average_precision_are_those_of_loops():
    z, labels = clouds(each=4)
    labels[0] = 3  # alone in its class
    found = measures.measure(z, labels, 5)
    rows, own = z.tolist(), labels.tolist()
    for i in range(len(rows)):
        gallery = [x for j, x in enumerate(rows) if j != i]
        others = [j for j in range(len(rows)) if j != i]
        assert found.nearest[i].tolist() == [others[j] for j in reference.nearest([rows[i]], gallery, 5)[0]]
        if i == 0:
            assert np.isnan(found.ap[0]) and np.isnan(found.first[0])
            continue
        want = reference.retrieval([rows[i]], [own[i]], gallery, [own[j] for j in others], (1,))
        assert found.ap[i] == pytest.approx(100 * want["mAP"])
        assert found.first[i] == 100 * want["R@1"]


def test_encoders_disagree_by_the_neighbors_that_they_do_not_share():
    rng = np.random.default_rng(0)
    nearest = [np.stack([rng.permutation(9)[:4] for _ in range(20)]) for _ in range(3)]
    want = [reference.disagreement([of[i].tolist() for of in nearest]) for i in range(20)]
    assert measures.compare_neighbors(nearest) == pytest.approx(np.array(want))
    assert measures.compare_neighbors([nearest[0], nearest[0][:, ::-1]]).tolist() == [0] * 20


def test_a_class_has_the_mean_of_its_items_that_are_known():
    values, labels = np.array([10.0, 20, np.nan, 40, np.nan]), np.array([0, 0, 0, 1, 3])
    assert measures.average_by_class(values, labels, 4) == pytest.approx([15, 40, np.nan, np.nan], nan_ok=True)


def test_classes_are_compared_by_mean_cosines_and_the_pairs_that_stand_out_are_found():
    z, labels = clouds(each=3)
    want = np.array(reference.class_cosines(z.tolist(), labels.tolist(), 3))
    cosines = encoders.class_cosines(z * 5, labels, 4)
    assert cosines[:3, :3] == pytest.approx(want, abs=1e-6) and np.isnan(cosines[3]).all()
    near, far = pairs.find_extremes(np.array([[1, 0, 0.9, 0]] * 4), cosines)
    assert near[0][:2] == (0, 1)
    assert [pair[:2] for pair in far] == sorted([pair[:2] for pair in far], key=lambda pair: cosines[pair] - 0.9)
    relations = pairs.Relations(list("abcd"), [0, 1, 0, 1], ["even", "odd"], None)
    *even, odd = pairs.order_classes(relations, cosines).tolist()  # by superclass, and no class without items
    assert sorted(even) == [0, 2] and odd == 1
    assert relations.related[0].tolist() == [1, 0, 0.75, 0]
    assert len(pairs.thin_out(np.arange(1000))) == 200


def test_maps_keep_to_one_scale_and_are_turned_onto_the_first():
    z, _ = clouds()
    turned = z.numpy() @ np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    first, other = maps.make_maps([z.numpy(), turned.astype(np.float32)], "PCA")
    assert other == pytest.approx(first, abs=1e-3)
    assert np.abs(first).max() == pytest.approx(1) and first.mean(0) == pytest.approx([0, 0], abs=1e-6)
    assert maps.make_maps([np.ones((2, 1))], "MDS")[0].shape == (2, 2)


def test_thumbnails_end_where_the_page_has_no_more_room():
    data = datasets.build("digits", split="test")
    whole = items.make_thumbnails(data, [5, 3, 8])
    assert [*whole.thumbnails] == [5, 3, 8] and whole.pixelated and not whole.left_out
    few = items.make_thumbnails(data, [5, 3, 8], most_bytes=len(whole.thumbnails[5]) + 1)
    assert [*few.thumbnails] == [5] and few.left_out == 2


def test_a_corrupt_image_is_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    data = datasets.ImageData([str(tmp_path / "broken.jpg")], torch.zeros(1, dtype=torch.long), ["a"])
    with pytest.raises(InputError, match=r"broken\.jpg"):
        items.make_thumbnails(data, [0])


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("/home/someone/runs/a", "a"),
        ("--ckpt=/home/someone/a.pth", "--ckpt=a.pth"),
        ("../secret/a", "a"),
        ("runs/a", "runs/a"),
        ("--seed=3", "--seed=3"),
    ],
)
def test_a_command_is_shown_without_the_folders_of_the_machine(word, shown):
    assert runs.hide_path(word) == shown
    assert runs.describe_command(["/opt/rince/report.py", word]) == f"python report.py {shown}"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"dataset": "cifar100", "data_folder": "/home/someone"}, "cifar100"),
        ({"dataset": "path", "data_folder": "/home/someone/birds"}, "birds"),
        ({"dataset": "features", "features": ["/home/someone/minilm/train-*"]}, "minilm/train-*"),
        ({}, "-"),
    ],
)
def test_data_are_named_without_the_folders_above_them(options, name):
    assert runs._name_data(options) == name


@pytest.mark.parametrize(
    ("written", "losses"),
    [
        ('{"options": {}}\n{"epoch": 1, "loss": 3}\n{"epoch": 2, "loss": 2}\n{"epoch": 2, "loss": 1}\n', [3, 1]),
        ('{"epoch": 1, "loss": 3}\n{"epoch": 2, "lo', [3]),
        ("[3]\n{", []),
        (None, []),
    ],
)
def test_of_an_epoch_that_was_trained_twice_the_last_counts(tmp_path, written, losses):
    if written is not None:
        (tmp_path / "log.jsonl").write_text(written)
    assert [record["loss"] for record in runs.read_epochs(tmp_path / "log.jsonl")] == losses


def test_names_are_text_and_the_page_asks_for_nothing():
    text = page.render(pages.make_page())
    assert text.count("alert(1)") > 10
    assert "<script>alert" not in text and "<i>low" not in text and "<u>digits" not in text and "<b>two" not in text
    assert text.count("<script") == text.count("</script>") == 3
    assert "default-src 'none'" in text and "sourceMappingURL" not in text


def test_a_page_that_cannot_be_mailed_is_refused(monkeypatch):
    monkeypatch.setattr(page, "MOST_BYTES", 10_000)
    with pytest.raises(InputError, match=r"--max_items 60: the page would have 1\.\d MB; give fewer items"):
        page.render(pages.make_page())


def test_javascript_of_our_own_is_short():
    assert len((page.HERE / "templates/page.js").read_text().splitlines()) < 200


def test_every_term_of_the_template_is_explained():
    template = (page.HERE / "templates/page.html").read_text()
    terms = yaml.safe_load((page.HERE / "terms.yaml").read_text())
    used = set(re.findall(r'term\("([^"]+)"', template)) | {"MDS", "PCA", "UMAP"}
    assert used <= set(terms)


def test_results_of_a_recipe_are_shown_with_their_intervals():
    found = results.read_tables(page.HERE.parent / "figures/clinc150.json")
    assert [table.title for table in found] == ["Results", "Difference to SupCon, paired by seed, with 95 % interval"]
    assert found[0].head[0] == "method" and any("±" in cell for row in found[0].rows for cell in row)
    assert any("[" in cell for row in found[1].rows for cell in row)
    assert all(len(row) == len(table.head) for table in found for row in table.rows)

"""Taxonomies of several levels: what a file or a name says, the ranks they make, and evaluation level by level."""

import json

import numpy as np
import pytest
import torch
from commands import error_of, result, run

from datasets import rankings, text_files
from datasets.rankings import taxonomy
from engine.encoder import pretrained
from losses import NestedRINCELoss
from util import InputError

NESTED = """animals:
  cats:
    big: [lion, tiger]
    small: [tabby]
  dogs:
    hounds: [beagle]
plants:
  trees:
    big: [oak, elm]
"""
ROWS = """class,genus,family,order
lion,big,cats,animals
tiger,big,cats,animals
tabby,small,cats,animals
beagle,hounds,dogs,animals
oak,tall,trees,plants
elm,tall,trees,plants
"""
CLASSES = ["lion", "tiger", "tabby", "beagle", "oak", "elm"]
WANT = np.array([
    [1, 0.75, 0.5, 0.25, 0, 0],
    [0.75, 1, 0.5, 0.25, 0, 0],
    [0.5, 0.5, 1, 0.25, 0, 0],
    [0.25, 0.25, 0.25, 1, 0, 0],
    [0, 0, 0, 0, 1, 0.75],
    [0, 0, 0, 0, 0.75, 1],
])  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [("t.yaml", NESTED), ("t.csv", ROWS)])
def test_a_ranking_has_a_rank_for_each_level_that_two_classes_share(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = rankings.find_similarities(f"{tmp_path}/{name}", CLASSES)
    assert np.allclose(found, WANT)
    some = rankings.find_similarities(f"{tmp_path}/{name}", ["elm", "lion", "oak"])
    assert np.allclose(some, WANT[[5, 0, 4]][:, [5, 0, 4]])


def test_groups_of_one_name_in_different_groups_are_two(tmp_path):
    (tmp_path / "t.yaml").write_text(NESTED)
    found = taxonomy.number_groups(taxonomy.read_taxonomy(f"{tmp_path}/t.yaml", "--ranking"), CLASSES, "t")
    assert {name: of.tolist() for name, of in found.items()} == {
        "level 1": [0, 0, 1, 2, 3, 3], "level 2": [0, 0, 0, 1, 2, 2], "level 3": [0, 0, 0, 0, 1, 1],
    }  # fmt: skip


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 6, 9, 20])
def test_the_steps_are_those_of_nested_groups_and_a_threshold_at_a_level_is_met_by_it(levels):
    names = tuple(f"l{i}" for i in range(levels))
    classes = [str(i) for i in range(levels + 2)]  # class i shares all but the first i - 1 levels with class 0
    groups = {c: tuple((f"{c if at < i - 1 else 0}.{at}",) for at in range(levels)) for i, c in enumerate(classes)}
    table = taxonomy.compute_similarity(taxonomy.Taxonomy(names, groups), classes, "t")
    step = min(0.25, 1 / (levels + 1))
    assert table[0].tolist() == pytest.approx([1, *(1 - step * r for r in range(1, levels + 1)), 0])
    nested = NestedRINCELoss(torch.zeros(1, levels + 1, dtype=torch.long), 0.1, 0.6)
    assert nested.taus == pytest.approx([0.1 + 0.5 * (1 - s) for s in table[0, :-1]])
    for distance in range(1, levels + 1) if levels in (3, 4, 9) else ():  # a step that is typed in two digits
        ranks = rankings.Ranks(thresholds=[float(f"{1 - distance * step:.2f}")])
        assert int((rankings.assign_ranks(table, ranks)[0] > 0).sum()) == 1 + distance


def test_one_level_is_superclasses_whatever_the_file(tmp_path):
    (tmp_path / "s.yaml").write_text("a: [lion, tiger]\nb: [oak]\n")
    (tmp_path / "s.csv").write_text("class,kind\nlion,a\ntiger,a\noak,b\n")
    for name in ("s.yaml", "s.csv"):
        assert taxonomy.read_superclasses(f"{tmp_path}/{name}") == {"a": ["lion", "tiger"], "b": ["oak"]}
        found = rankings.find_similarities(f"{tmp_path}/{name}", ["oak", "lion", "tiger"])
        assert found.tolist() == [[1, 0, 0], [0, 1, 0.75], [0, 0.75, 1]]
    (tmp_path / "deep.yaml").write_text(NESTED)
    with pytest.raises(InputError, match="superclasses are a YAML file of lines"):
        taxonomy.read_superclasses(f"{tmp_path}/deep.yaml", "--superclasses")


INAT = [
    "00000_Animalia_Chordata_Aves_Piciformes_Picidae_Picus_viridis",
    "00001_Animalia_Chordata_Aves_Piciformes_Picidae_Picus_canus_griseus",
    "00002_Animalia_Chordata_Mammalia_Carnivora_Felidae_Felis_catus",
    "00003_Plantae_Tracheophyta_Magnoliopsida_Fagales_Fagaceae_Quercus_robur",
]


def test_the_names_of_inaturalists_folders_say_their_levels():
    found = rankings.find_similarities("inaturalist", INAT)
    assert found[0].tolist() == pytest.approx([1, 6 / 7, 2 / 7, 0])  # of one genus; of one phylum; of nothing
    levels = taxonomy.number_groups(taxonomy.parse_inaturalist(INAT, "i"), INAT, "i")
    assert list(levels) == ["genus", "family", "order", "class", "phylum", "kingdom"]
    assert levels["phylum"].tolist() == [0, 0, 0, 1]
    with pytest.raises(InputError, match="the class oak is not a folder of iNaturalist 2021"):
        rankings.find_similarities("inaturalist", [*INAT, "oak"])


@pytest.mark.parametrize(
    ("rows", "want"),
    [
        ("class,genus\na,x\nb,x\n", True),
        ("class,1,2\na,7,8\nb,7,9\n", False),  # a square of numbers: a matrix whose header is wrong
        ("class,coarse\na,1\nb,1\nc,2\n", True),
        ("class,genus\ngenus,x\nb,x\nc,y\n", False),  # a class heads most columns
        ("class,genus,family\ngenus,x,f\nb,x,f\nc,y,f\nd,y,f\n", False),
        ("class,a,b\na,1,0.5\nb,0.5,1\n", False),
        ("class,a,b\na,1,x\nb,0.5,1\n", False),  # a matrix with a fault in it
        ("class;a;b\na;1;0,5\nb;0,5;1\n", False),
        ("class,genus\n", False),
    ],
)
def test_a_matrix_is_told_from_a_taxonomy(tmp_path, rows, want):
    (tmp_path / "r.csv").write_text(rows)
    assert taxonomy.is_table(text_files.read_rows(tmp_path / "r.csv", "")) == want


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("t.yaml", "a:\n  b: [x]\nc: [y]\n", "y lies 1 deep, x 2; all classes must lie at one depth"),
        ("t.yaml", "a:\n  b: [x]\n  c: [x]\n", "class x is there twice"),
        ("t.yaml", "a:\n  b: []\n", "a / b must hold lines of"),
        ("t.yaml", "a:\n  b: 3\n", "a / b must hold lines of"),
        ("t.yaml", "a:\n  b: [x, [y]]\n", "a / b: an empty name, or something else than one"),
        ("t.csv", "class,genus,genus\nx,a,b\n", "the first line must have each name once; genus is there twice"),
        ("t.csv", "class,genus,family\nx,a,f\ny,a\n", "line 3: must have 3 entries"),
        ("t.csv", "class,genus,family\nx,a,f\nx,b,f\n", "class x is there twice"),
        (
            "t.csv",
            "class,genus,family\nx,a,f\ny,a,g\n",
            "line 3: genus a belongs to family g and to f; groups must be nested, the finest column first",
        ),
        ("t.csv", "class,genus\nx,a\n", "lacks the class y of the data set"),
        ("t.csv", "path,label\na,x\n", "this image list has no ranking; it needs columns of levels"),
        ("t.csv", "path,label,genus\na,x,f\nb,x,g\n", "line 3: label x belongs to genus g and to f;"),
        ("t.csv", "path,label,genus\na,x\n", "line 2: must have 3 entries"),
    ],
)
def test_a_taxonomy_that_does_not_fit_is_one_line_with_its_place(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as error:
        rankings.find_similarities(f"{tmp_path}/{name}", ["x", "y"])
    assert reason in str(error.value) and str(error.value).startswith(f"--ranking {tmp_path}/{name}")


# ---- whole commands --------------------------------------------------------------------------------------------------


def test_retrieval_looks_at_every_level_whatever_it_is_called(monkeypatch, capsys, tmp_path):
    rows = [f"{d},{'odd' if d % 2 else 'even'},all" for d in range(10)]
    for name, head in (("t.csv", "class,parity,everything"), ("own.csv", "name,ranks,class")):
        (tmp_path / name).write_text("\n".join([head, *rows]) + "\n")
    torch.manual_seed(0)
    encoder = pretrained.build_encoder("resnet8", small_images=True).state_dict()
    torch.save({"model": encoder, "options": {"model": "resnet8"}}, tmp_path / "a.pth")
    command = "--ckpt a.pth --labelset levels"
    run(monkeypatch, tmp_path, f"{command} --superclasses t.csv --save_folder one", "retrieval")
    (path,) = (tmp_path / "one" / "results").glob("retrieval_*.json")
    metrics = json.loads(path.read_text())["metrics"]
    assert list(metrics) == ["class", "parity", "everything"]
    assert metrics["class"]["mAP"] < metrics["parity"]["mAP"] < metrics["everything"]["mAP"] == pytest.approx(100)
    for words, reason in (
        ("", "--labelset levels: give --superclasses a taxonomy"),
        ("--superclasses none.csv", "--superclasses none.csv: no such file"),
        ("--superclasses inaturalist", "--superclasses inaturalist: the class 0 is not a folder of iNaturalist"),
    ):
        assert reason in error_of(monkeypatch, capsys, tmp_path, f"{command} {words}", "retrieval")
    run(monkeypatch, tmp_path, f"{command} --superclasses own.csv --ranking superclass", "retrieval")
    found = result(tmp_path, "retrieval_*")
    names = ["class", "level ranks", "level class"]
    assert list(found["metrics"]) == [*names, "ranks"] and list(found["by_class"]) == names
    assert [found["metrics"][name] for name in names] == list(metrics.values())
    assert "NDCG" in found["metrics"]["ranks"]

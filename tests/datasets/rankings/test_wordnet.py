"""WordNet's similarities equal a reference that writes out every way up, from every kind of file."""

import random
import sys
from functools import partial

import commands
import pytest
import reference
from commands import run

import datasets
from datasets.rankings import files, wordnet
from util import InputError

make = partial(run, script="rankings")
error_of = partial(commands.error_of, script="rankings")


def random_parents(seed, nodes=25):
    """A tree below n0 in which every third node has a second parent."""
    rng = random.Random(seed)
    parents = {"n0": ()}
    for i in range(1, nodes):
        parents[f"n{i}"] = tuple({f"n{rng.randrange(i)}" for _ in range(1 + (i % 3 == 0))})
    return parents


@pytest.mark.parametrize("measure", wordnet.MEASURES)
@pytest.mark.parametrize("seed", range(5))
def test_similarities_equal_the_reference(seed, measure):
    parents = random_parents(seed)
    classes = list(parents)
    table = wordnet.compute_similarities(classes, parents, measure)
    for i, a in enumerate(classes):
        for j, b in enumerate(classes):
            want = 1 if a == b else reference.wordnet_similarity(parents, a, b, measure)
            assert table[i, j] == pytest.approx(want, abs=1e-12), (a, b)


# cat and dog below animal, car below thing, below the root
LINES = "root animal\nroot thing\nanimal cat\nanimal dog\nthing car\n"


def test_several_roots_meet_in_one_more():
    parents = {"cat": ("animal",), "car": ("thing",), "animal": (), "thing": ()}
    assert wordnet.compute_similarities(["cat", "car"], parents, "path")[0, 1] == pytest.approx(1 / 5)
    assert wordnet.compute_similarities(["cat", "car"], parents, "wup")[0, 1] == pytest.approx(2 / (4 + 2))


NOUNS = """  1 a license
00000001 03 n 01 root 0 001 ~ 00000002 n 0000 | the top
00000002 03 n 0b a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 k 0 001 @ 00000001 n 0000 | eleven words
00000003 03 n 01 dog 0 002 @ 00000002 n 0000 ! 00000001 n 0101 | a kind of 2
00000004 03 n 01 Rex 0 001 @i 00000003 n 0000 | an instance
"""


def test_data_noun_and_an_is_a_file_give_the_same_parents(tmp_path):
    (tmp_path / "data.noun").write_text(NOUNS)
    (tmp_path / "is_a.txt").write_text("n00000001 n00000002\nn00000002 n00000003\nn00000003 n00000004\n")
    want = {"n00000001": (), "n00000002": ("n00000001",), "n00000003": ("n00000002",), "n00000004": ("n00000003",)}
    for path in (tmp_path / "data.noun", tmp_path, tmp_path / "is_a.txt"):
        assert wordnet.read_parents(path) == want


def test_wordnet_writes_a_ranking_of_the_named_wnids(monkeypatch, tmp_path):
    (tmp_path / "is_a.txt").write_text(LINES)
    (tmp_path / "names.txt").write_text("car\ncat\ndog\n")
    make(monkeypatch, tmp_path, "wordnet --names names.txt --is_a is_a.txt --measure wup --out r.npz")
    table, classes = files.read_matrix(tmp_path / "r.npz")
    assert classes == ["car", "cat", "dog"]
    assert table[1, 2] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("root cat\n", r"lacks the class dog \(1 in all\)"),
        ("cat dog\ndog cat\n", "has a cycle"),
        ("one two three\n", "neither lines of `parent child`"),
    ],
)
def test_a_file_that_cannot_serve_is_one_line(monkeypatch, capsys, tmp_path, content, reason):
    (tmp_path / "is_a.txt").write_text(content)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    with pytest.raises(InputError, match=f"--is_a.*{reason}"):
        wordnet.compute_similarities(["cat", "dog"], wordnet.read_parents(tmp_path / "is_a.txt"), "path")
    error_of(monkeypatch, capsys, tmp_path, "wordnet --names names.txt --is_a is_a.txt --out r.csv")
    assert not (tmp_path / "r.csv").exists()


def test_without_a_file_and_without_nltk_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(InputError, match="pip install nltk"):
        wordnet.read_parents(None)


def test_nltks_wordnet_gives_the_same_similarities_as_its_own_functions():
    corpus = pytest.importorskip("nltk.corpus", reason="needs NLTK").wordnet
    try:
        corpus.ensure_loaded()
    except LookupError:
        pytest.skip("needs NLTK's WordNet")
    classes = list(datasets.class_list("ImageNet-100"))
    synsets = [corpus.synset_from_pos_and_offset("n", int(c[1:])) for c in classes]
    parents = wordnet.read_parents(None)
    table = wordnet.compute_similarities(classes, parents, "path")
    for i, a in enumerate(synsets):
        assert [a.path_similarity(b) for b in synsets] == pytest.approx(table[i].tolist())

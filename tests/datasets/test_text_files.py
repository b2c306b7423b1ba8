"""Text files as people and spreadsheets make them, in every file that is read."""

import codecs
import os

import numpy as np
import pytest
from made_data import make_image_folders

import datasets
import recipes
from datasets import decoding, sources, text_files
from datasets.rankings import files, instances, taxonomy, wordnet
from engine.cli import config, options
from util import InputError

ROWS = [["class", "a b", "c,d"], ["a b", "1", "0.5"], ["c,d", "0.5", "1"]]


def quoted(cell, delimiter):
    return f'"{cell}"' if delimiter in cell else cell


def written(delimiter=",", end="\n", encoding="utf-8", comma=False, rows=ROWS):
    """A table's bytes, as a spreadsheet writes them; comma: numbers have a decimal comma."""
    lines = [delimiter.join(quoted(c.replace(".", ",") if comma else c, delimiter) for c in row) for row in rows]
    return end.join([*lines, ""]).encode(encoding)


SPREADSHEETS = {
    "plain": written(),
    "UTF-8 with a mark": written(encoding="utf-8-sig"),
    "UTF-16": written(encoding="utf-16"),
    "UTF-16, big-endian": codecs.BOM_UTF16_BE + written(encoding="utf-16-be"),
    "lines of Windows": written(end="\r\n"),
    "lines of old Macs": written(end="\r"),
    "semicolons and decimal commas": written(";", comma=True),
    "tabs": written("\t"),
    "a line for Excel": b"sep=;\r\n" + written(";", "\r\n"),
    "everything in quotes": b'"class","a b","c,d"\n"a b","1","0.5"\n"c,d","0.5","1"\n',
    "comments and empty lines": b"# by hand; yes, by hand\n\n  # again\n" + written() + b",,\n\n# end",
    "empty columns at the end": written().replace(b"\n", b",,\n"),
    "blanks around cells": b'class, a b ,"c,d"\n a b, 1 , 0.5\n"c,d", 0.5, 1\n',
}


@pytest.mark.parametrize("kind", SPREADSHEETS)
def test_a_matrix_is_the_same_however_a_spreadsheet_writes_it(tmp_path, kind):
    (tmp_path / "r.csv").write_bytes(SPREADSHEETS[kind])
    table, names = files.read_matrix(tmp_path / "r.csv")
    assert names == ["a b", "c,d"]
    assert table.tolist() == [[1, 0.5], [0.5, 1]]


def put(path, text):
    """A text file as Excel may write it, below a comment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"# a comment, with a comma\n{text}".replace("\n", "\r\n").encode("utf-16"))
    return path


def test_every_other_table_is_read_so_too(tmp_path):
    names = put(tmp_path / "names.csv", "class;name\nn1;an élan\n001;no\n")
    assert files.read_names(names) == {"n1": "an élan", "001": "no"}
    assert files.read_names(put(tmp_path / "classes.txt", "n1\n001\n")) == {"n1": "n1", "001": "001"}
    make_image_folders(tmp_path, ["a"], each=2)
    groups = put(tmp_path / "groups.csv", "image;frame;shot\na/a_0.JPEG;1e3;no\na/a_1.JPEG;001;no\n")
    assert instances.build(tmp_path, groups)[0].classes == ["001", "1e3"]
    assert wordnet.read_parents(put(tmp_path / "is_a.txt", "n1;n2\nn1;n3\n"))["n3"] == ("n1",)
    put(tmp_path / "tiny/val/images/v.JPEG", "")
    put(tmp_path / "tiny/val/val_annotations.txt", "v.JPEG;n1;0;0\n")
    assert sources.read_tiny_imagenet(tmp_path / "tiny", "test")[2] == ["n1"]


def test_every_list_of_images_is_read_so_too(tmp_path):
    make_image_folders(tmp_path, ["a"], each=3)
    for end in ("", ";;", "\tx"):  # empty columns, another column
        path = put(tmp_path / "list.txt", f"{tmp_path}/a/a_1.JPEG{end}\n")
        data = datasets.build("path", tmp_path, which=datasets.Selection(skip=path))
        assert [f[-8:] for f in data.images] == ["a_0.JPEG", "a_2.JPEG"]


def test_every_yaml_file_is_read_so_too(tmp_path):
    groups = put(tmp_path / "s.yaml", "élans: [a, b]\n")
    assert taxonomy.read_superclasses(str(groups)) == {"élans": ["a", "b"]}
    parser = options.parser("")
    options.add_data(parser, ["path"])
    words = ["--config", str(put(tmp_path / "c.yaml", "size: 3\n"))]
    assert config.command_line(parser, words, "main_ce") == ["--size=3"]


# ---- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("class,ä\nä,1\n".encode("latin-1"), "line 1: not readable as UTF-8 text; save it as UTF-8"),
        ("class,a\na,1\n".encode("utf-16-le"), "it holds zero bytes; save it as UTF-8"),
        (b'class,a\n"a,1\n', "line 2: not readable as CSV"),
        (b"class,a\na,1,1\n", "line 2: must have 2 entries, as the first line has"),
        (b"# nothing\n\n", "it is empty"),
        (b"class,a\n\na,one\n", "line 3: not readable as a CSV matrix (could not convert"),
        (None, ": no such file"),
        ("folder", ": is a folder, not a file"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line_with_its_line(tmp_path, content, reason):
    if content == "folder":
        (tmp_path / "r.csv").mkdir()
    elif content:
        (tmp_path / "r.csv").write_bytes(content)
    with pytest.raises(InputError) as error:
        files.read_matrix(tmp_path / "r.csv")
    assert str(error.value).startswith(f"--ranking {tmp_path}/r.csv")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


# ---- YAML ------------------------------------------------------------------------------------------------------------

ODD = ["no", "001", "1e3", "on", "2024-01-01", "0x10", "1_000", "1:30", "~x", "=", ".5", "True"]


def test_names_of_classes_in_yaml_are_what_was_written(tmp_path):
    (tmp_path / "s.yaml").write_text(f"010: [{', '.join(ODD[:6])}]\noff: [{', '.join(ODD[6:])}]\n")
    assert taxonomy.read_superclasses(f"{tmp_path}/s.yaml") == {"010": ODD[:6], "off": ODD[6:]}


@pytest.mark.parametrize("name", ["null", "", "~", "[a]", "{a: b}"])
def test_a_name_that_is_none_is_refused(tmp_path, name):
    (tmp_path / "s.yaml").write_text(f"x:\n- a\n- {name}\n")
    with pytest.raises(InputError, match=r"s\.yaml: x: an empty name, or something else than one; quote"):
        taxonomy.read_superclasses(f"{tmp_path}/s.yaml")


def test_options_in_yaml_are_what_was_written_and_of_the_options_kind(tmp_path):
    parser = options.parser("")
    options.add_data(parser, ["path"])
    options.add_training(parser)
    text = "learning_rate: 1e-4\nexp_name: 007\nhold_out: [no, 1e3]\ncosine: no\nwarm: on\ncompile: yes\nresume: null\n"
    (tmp_path / "c.yaml").write_text(text + "weight_decay: 1.0e-05\nepochs: 010\n")
    args = parser.parse_args(config.command_line(parser, ["--config", str(tmp_path / "c.yaml")], "main_ce"))
    assert (args.learning_rate, args.exp_name, args.hold_out) == (1e-4, "007", ["no", "1e3"])
    assert (args.cosine, args.warm, args.compile, args.resume) == (False, True, True, None)
    assert (args.weight_decay, args.epochs) == (1e-5, 10)


RECIPE = """title: 2024
jobs: {jobs}
methods:
  no: {{command: "python main_ce.py --exp_name {{name}} --learning_rate {{rate}}", with: {{name: 001, rate: 1e-4}},
       scaled: {{epochs: {epochs}}}}}
evaluations:
  on: {{command: python retrieval.py --ckpt $path2chkpt, columns: {{y: fine.y}}}}
"""


def test_a_recipe_is_what_was_written_and_its_numbers_are_numbers(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE.format(jobs=2, epochs="1e2"))
    recipe = recipes.read(tmp_path / "r.yaml")
    assert (recipe["title"], recipe["jobs"], recipes.columns(recipe)) == ("2024", 2, ["y"])
    command = recipes.commands(recipe, "no", 0, recipes.Scope(scale=0.1))["training"]
    assert command.startswith("python main_ce.py --exp_name 001 --learning_rate 1e-4 --epochs 10")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [x]\nb: [y]\na: [z]\n", ", line 3: not readable as YAML (the key a is there twice)"),
        ("a:\n  b: 1\n  'b': 2\n", ", line 3: not readable as YAML (the key b is there twice)"),
        ("a: [x\nb: [y]\n", ", line 2: not readable as YAML"),
        ("a: 1\n\tb: 2\n", ", line 2: not readable as YAML"),
        ("a: 1\nb: \x07\n", ", line 2: not readable as YAML"),
        ("a: !!python/object:os.system x\n", ", line 1: not readable as YAML"),
        ("[" * 2000, ": not readable as YAML (maximum recursion"),
        ("? [a, b]\n: 1\n", ", line 1: not readable as YAML"),
    ],
)
@pytest.mark.parametrize("as_written", [False, True])
def test_what_is_wrong_in_yaml_is_one_line_with_its_line(tmp_path, text, reason, as_written):
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        text_files.read_yaml(tmp_path / "f.yaml", "--config f.yaml", as_written)
    assert str(error.value).startswith(f"--config f.yaml{reason}")
    assert "\n" not in str(error.value)


def test_merged_keys_are_no_repeated_ones(tmp_path):
    (tmp_path / "f.yaml").write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\n")
    assert text_files.read_yaml(tmp_path / "f.yaml", "f")["b"] == {"x": 3, "y": 2}
    assert text_files.read_yaml(tmp_path / "f.yaml", "f", as_written=True)["b"] == {"x": "3", "y": "2"}


# ---- odd paths and names, written and read back ----------------------------------------------------------------------

ODD_NAMES = ["a\nb", "a\rb", "a\u2028b", "a\x85b", "a\tb", "\udcff", 'a"b', "a,b;c", "#a", " a"]


def test_a_line_of_a_list_is_a_path_or_a_comment_where_there_is_no_such_file(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "#a.jpg").touch()
    (tmp_path / "list.txt").write_text("  /a/b c.jpg\n\n/a/d,e;f.png\n#a.jpg\n# a comment\n/a/ü.jpg  \n")
    assert text_files.read_paths(tmp_path / "list.txt", "") == ["/a/b c.jpg", "/a/d,e;f.png", "#a.jpg", "/a/ü.jpg"]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_a_path_with_any_character_is_one_line_of_the_list_and_is_read_back(monkeypatch, tmp_path, name):
    (tmp_path / "mine" / "c").mkdir(parents=True)
    paths = [tmp_path / "mine" / "c" / f"{name}{end}.png" for end in "xyz"]
    for path in paths:
        path.write_bytes(b"no image")
    monkeypatch.chdir(tmp_path / "mine" / "c")
    decoding.write_list(tmp_path / "list.txt", [paths[0], os.path.basename(paths[1])])
    lines = (tmp_path / "list.txt").read_text().splitlines()
    assert len(lines) == 2
    assert text_files.read_paths(tmp_path / "list.txt", "") == [str(path) for path in paths[:2]]
    data = datasets.build("path", tmp_path / "mine", which=datasets.Selection(skip=tmp_path / "list.txt"))
    assert data.images == [str(paths[2])]
    known = text_files.read_paths(tmp_path / "list.txt", "")
    decoding.write_list(tmp_path / "list.txt", [*known, str(paths[2])])  # as a list in use grows
    assert len((tmp_path / "list.txt").read_text().splitlines()) == 3
    assert text_files.read_paths(tmp_path / "list.txt", "") == [str(path) for path in paths]


def test_a_written_matrix_is_read_back_whatever_its_names(tmp_path):
    names = ["#1", "a,b", "c;d", 'e"f', "1e3", "no"]
    table = np.eye(len(names))
    files.write_matrix(tmp_path / "r.csv", table, names, "made; by hand")
    assert files.read_matrix(tmp_path / "r.csv")[1] == names

"""Tables of texts: every line below the header is a text, whatever it begins with; bad tables are one line."""

import pytest

from datasets.text_tables import TextTable, read_texts
from util import InputError

TEXTS = ["#1 song", "wait; what", 'say "hi", now', "two\n# lines"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_texts_labels_and_superclasses_are_read_as_they_are_written(tmp_path, delimiter):
    cells = ['"' + text.replace('"', '""') + '"' if text != "#1 song" else text for text in TEXTS]
    lines = [delimiter.join((cell, f"class{i}", "all")) for i, cell in enumerate(cells)]
    (tmp_path / "a.csv").write_text("\n".join([delimiter.join(("text", "label", "coarse")), *lines]) + "\n\n")
    found = read_texts(tmp_path / "a.csv", "--texts")
    assert found == TextTable(TEXTS, ["class0", "class1", "class2", "class3"], ["all"] * 4)


def test_columns_are_found_by_name_and_texts_alone_are_a_table(tmp_path):
    (tmp_path / "a.csv").write_text("id,label,text\n7,x,hello\n")
    assert read_texts(tmp_path / "a.csv", "--texts") == TextTable(["hello"], ["x"], None)
    (tmp_path / "b.csv").write_text("text\nwait; what\n")
    assert read_texts(tmp_path / "b.csv", "--texts") == TextTable(["wait; what"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\nhello,x\nhi\n", "line 3: must have 2 entries"),
        ("text,label\nhello,x\nhi,\n", "line 3: has no label"),
        ("sentence,label\nhello,x\n", "has no column text; it has sentence, label"),
        ("text,text\na,b\n", "column text is there twice"),
        ("text,label\n", "holds no text"),
        ("", "holds no text"),
        ('text,label\n"hello,x\n', "not readable as CSV"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError, match=rf"--texts .*a\.csv.*{message}"):
        read_texts(tmp_path / "a.csv", "--texts")

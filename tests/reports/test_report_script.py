"""report.py as users run it: a page of digits, of features with their texts, and one line for bad input."""

import re

import numpy as np
import pytest
from commands import CE, ROOT, error_of, run
from made_data import clouds, make_image_folders

from reports import page

KEPT = "--features_cache kept --exclude_classes 2 3 5 7 8"


@pytest.fixture(scope="module")
def root(digits):
    """Beside the digits' models: features of clouds with texts, and images of one class and of two."""
    for part in ("train", "val"):
        z, labels = clouds(each=4)
        np.savez(digits / f"{part}.npz", features=z.numpy(), labels=np.array(["cat", "dog", "car"])[labels])
        rows = [f"the {part} text {i} <i>,{('cat', 'dog', 'car')[c]}" for i, c in enumerate(labels.tolist())]
        (digits / f"{part}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (digits / "few.csv").write_text("text,label\nalone,cat\n")
    (digits / "other.csv").write_text((digits / "val.csv").read_text().replace(",cat", ",bat").replace(",dog", ",cat")
                                      .replace(",bat", ",dog"))  # fmt: skip
    make_image_folders(digits / "one" / "train", ["cat", "dog"], each=2)
    make_image_folders(digits / "one" / "val", ["dog"], each=1)
    return digits


def test_a_page_compares_encoders_of_digits(monkeypatch, capsys, root):
    outliers = "--dataset_outliers digits --outlier_classes 2 --detector knn --knn_k 3"
    words = f"--ckpt {root}/{CE} random --names first second --max_items 40 --out made/page.html {KEPT} {outliers}"
    run(monkeypatch, root, words, "report")
    assert re.search(r"wrote made/page.html \(1\.\d MB, \d+ s\)", capsys.readouterr().out)
    text = (root / "made/page.html").read_text()
    shown = re.sub(r"<[^>]+>", "", text.partition('<script type="application/json"')[0])
    for words in ("Comparison of first, second on digits", "cross-entropy", "top-1 on validation", "OOD", "AUROC"):
        assert words in shown
    assert "40 test image" in shown
    assert str(root) not in text and str(ROOT) not in text  # no folder of the machine


def test_rows_of_features_are_shown_by_their_texts(monkeypatch, root):
    features = "--features train.npz --features_val val.npz"
    run(monkeypatch, root, f"{features} --texts val.csv --out texts.html", "report")
    text = (root / "texts.html").read_text()
    assert "the val text 3 \\u003ci\\u003e" in text and "<i>" not in text and "the train text" not in text
    run(monkeypatch, root, f"{features} --out rows.html", "report")
    assert '"word":"row"' in (root / "rows.html").read_text()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--ckpt random --out x.png", "--out x.png: a page's name ends in .html"),
        (f"--ckpt {CE} random --names SCL", "--names: 1 for 2 checkpoints of --ckpt; give one each"),
        (f"--ckpt {'random ' * 7}", "--ckpt: 7 encoders; a page compares at most 6"),
        ("--ckpt random --table none.json", "none.json: no such file"),
        ("--ckpt random --ranking none.csv", "--ranking none.csv"),
        (
            "--ckpt random --dataset path --data_folder one --size 8",
            "--data_folder one: all test items are of one class",
        ),
        ("--ckpt random --dataset_outliers digits --outlier_classes 2", "class 2 is also a class of --dataset"),
        (
            f"--ckpt random {KEPT} --dataset_outliers digits --outlier_classes 2 --detector msp",
            "msp, energy and confusion need one of main_ce.py",
        ),
        ("--features train.npz --features_val val.npz --texts few.csv", "has 1 texts for 12 rows of features"),
        (
            "--features train.npz --features_val val.npz --texts other.csv",
            "row 0 is of dog, in the features it is of cat",
        ),
        ("--ckpt random --texts val.csv", "--texts: has no use without --features"),
    ],
)
def test_what_no_page_can_be_made_of_is_one_line(monkeypatch, capsys, root, words, reason):
    assert reason in error_of(monkeypatch, capsys, root, words, "report")


def test_a_missing_library_is_one_line(monkeypatch, capsys, root):
    monkeypatch.setattr(page.importlib.util, "find_spec", lambda name: None)
    line = error_of(monkeypatch, capsys, root, "--ckpt random", "report")
    assert 'needs bokeh; pip install ".[report]"' in line

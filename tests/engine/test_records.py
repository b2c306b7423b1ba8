"""The record of a result: its file's name takes any name of the user's, and it holds no NaN."""

import json

import pytest

from engine.cli import options
from engine.encoder import records
from engine.run import run_log


def given(*held_out):
    plain = {"save_folder": ".", "dataset": "path", "hold_out": [*held_out], "images_per_class": None}
    return options.RecordedOptions(plain, plain, {})


@pytest.mark.parametrize(
    "name", ["a/b", "../../above", "/root", "a\0b", "猫" * 60, "\U0001f408" * 60, "b\udcffd", "plain name, (1)"]
)
def test_a_result_lies_in_the_folder_of_results_whatever_its_names_hold(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    detail = f"{name}_gaussian"
    path = records.write(given(name, "b"), "ood", name, detail, {"AUROC": 1.0}, {"sha256": ""}, {}, {})
    assert [tmp_path / path] == list((tmp_path / "results").iterdir())
    assert json.loads(path.read_text())["options"]["hold_out"] == [name, "b"]
    assert len(path.name.encode(errors="surrogateescape")) < 240  # a picture's name is a little longer
    if name.startswith("plain"):
        assert path.name.startswith("ood_path_without_plain name, (1)-b_plain name, (1)_plain name, (1)_gaussian_")


def test_what_is_no_number_is_null_in_every_record(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    nan, inf = float("nan"), float("inf")
    metrics = {"AUROC": nan, "by": [1.0, inf]}
    path = records.write(given(), "ood", "a", "", metrics, {"sha256": ""}, {}, {"x": (nan,)})
    record = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert record["metrics"] == {"AUROC": None, "by": [1.0, None]} and record["x"] == [None]
    run_log.append_json(tmp_path / "log.jsonl", {"epoch": 1, "loss": -inf, "n": 2})
    assert json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail) == {
        "epoch": 1, "loss": None, "n": 2,
    }  # fmt: skip

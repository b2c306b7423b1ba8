"""docs/speed.md is made of what the benchmarks found, and by nobody's hand."""

import json
import re
import sys

import pytest
import torch
from commands import ROOT

from benchmarks import in_turn, must_equal, page, peers, ratio, report
from benchmarks.train_step import FORMS, Case, Training, build_plain_steps
from util import InputError

RECORDS = {
    "loss": {
        "title": "a loss", "machine": "a machine", "command": "python -m it", "date": "2026-01-01",
        "versions": {"python": "3", "torch": "2"},
        "rows": [{"form": "ours", "ms": 12.345}, {"form": "plain", "ms": 1234.5, "times": 2}],
    }
}  # fmt: skip


def test_the_docs_are_the_page_of_their_records():
    records = json.loads((ROOT / "docs/speed.json").read_text())
    assert (ROOT / "docs/speed.md").read_text() == page.fill(page.TEMPLATE.read_text(), records)


def test_every_record_has_its_command_machine_versions_and_date():
    for record in json.loads((ROOT / "docs/speed.json").read_text()).values():
        assert record["command"].startswith("python -m benchmarks.")
        assert all(record[name] for name in ("title", "machine", "date", "rows")) and "torch" in record["versions"]


def test_a_template_is_filled_and_what_was_not_measured_is_named():
    table = "| form | ms ↓ | times |\n| --- | --- | --- |\n| ours | 12.3 |  |\n| plain | 1,234 | 2 |"
    filled = page.fill("{{Title loss}}, {{title loss}}, {{machine loss}}:\n{{table loss}}", RECORDS)
    assert filled == f"A loss, a loss, a machine:\n{table}"
    assert page.fill("{{cell loss | plain | ms}}", RECORDS) == "1,234"
    for wanted in ("table other", "figure loss", "cell loss | other | ms", "cell loss | ours | times"):
        with pytest.raises(InputError, match=f"{re.escape(wanted)}.*: not among the results"):
            page.fill(f"{{{{{wanted}}}}}", RECORDS)


def test_a_benchmark_adds_its_record_to_those_of_others(tmp_path, monkeypatch, capsys):
    path = tmp_path / "new" / "all.json"
    monkeypatch.setattr(sys, "argv", ["it.py", "--rounds", "2", "--json", str(path)])
    report("one", [{"form": "a", "ms": 1.5}], path, name="first")
    report("two", [{"form": "b", "ms": 2}, {"form": "c", "s": 3}], path, name="second")
    found = json.loads(path.read_text())
    assert {name: record["title"] for name, record in found.items()} == {"first": "one", "second": "two"}
    assert found["first"]["command"].endswith(" --rounds 2")  # where it was written to is nobody's business
    assert "form  ms  s" in capsys.readouterr().out


def test_forms_are_measured_in_turn_without_the_first_rounds_and_a_ratio_is_the_median_of_the_rest():
    calls = []
    times = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warm=2)
    assert calls == ["a", "b"] * 5
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}
    assert ratio([2.0, 30.0, 8.0], [1.0, 3.0, 2.0]) == 4.0


def test_unequal_results_are_not_timed():
    must_equal("it", [1.0, 2.0], [1.0, 2.1], 0.2)
    for wrong in (2.3, float("nan")):
        with pytest.raises(SystemExit, match="it: results are"):
            must_equal("it", [1.0, 2.0], [1.0, wrong], 0.2)


def test_missing_peers_are_named_with_what_installs_them(monkeypatch):
    monkeypatch.setattr(peers, "PACKAGES", {"a_package_of_nobody": "its-name"})
    monkeypatch.setattr(sys, "argv", ["peers.py", "--only", "bank"])
    with pytest.raises(InputError, match=r'packages are missing: its-name; pip install "\.\[bench\]"'):
        peers.main()


def test_the_plain_form_of_a_step_is_the_step_of_main_supcon(tmp_path):
    case = Case("resnet8", 32, 16, 64)
    case.make_images(tmp_path)
    options = FORMS["fast loss, fused updates"]
    ours, theirs = (Training(case, tmp_path, torch.device("cpu"), options) for _ in range(2))
    plain = build_plain_steps(theirs)
    for _ in range(3):
        assert plain(2) == pytest.approx(ours.take_steps(2), rel=1e-3)

"""Runs the scripts as a user does, inside this process."""

import importlib
import json
import shlex
import sys
from pathlib import Path

import pytest

import util

ROOT = Path(__file__).resolve().parent.parent
PAPER = (ROOT / "docs/paper.md").read_text().partition("## Train on ImageNet-100 and CIFAR-100")[2]
PAPER = [line for line in PAPER.splitlines() if line.startswith("python ")]
CE = "save/SupCon/digits_models/ce"  # where the fixture `digits` has its model


def module_file(name: str) -> Path | None:
    """The file of a module of ours; None for other people's."""
    path = ROOT / name.replace(".", "/")
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)


def run(monkeypatch, folder, command, script="main_supcon"):
    """A whole command line, or the options of `script`, with `folder` as the working folder."""
    words = shlex.split(command)
    if words[:1] == ["python"]:
        script, words = words[1].removesuffix(".py"), words[2:]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *words])
    util.run_command(importlib.import_module(script).main)


def error_of(monkeypatch, capsys, folder, command, script="main_supcon") -> str:
    """The one line with which a command ends in exit code 2."""
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, folder, command, script)
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert len(lines) == 1
    return lines[0]


def result(folder, pattern) -> dict:
    """The one record in save/results that the pattern finds."""
    (path,) = (folder / "save" / "results").glob(pattern + ".json")
    return json.loads(path.read_text())

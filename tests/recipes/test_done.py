"""What a recipe takes for done: the same command, and the same content of every file that its options name."""

import importlib
import json
import subprocess

import pytest
import yaml
from commands import run
from processes import Forked
from test_reproduce import reproduced

from engine import checkpoint, config, options
from engine.parsing import Means
from recipes import done
from recipes.done import changed_since, find_record, find_run
from recipes.form import words
from recipes.running import Runner

NEEDED = {"main_supcon": "", "main_ce": "", "main_linear": "--ckpt a", "retrieval": "--ckpt a"}
NEEDED["out_of_dist_detection"] = "--ckpt a --dataset_outliers digits"
FILES = [
    (script, action.option_strings[0])
    for script in NEEDED
    for action in importlib.import_module(script).get_parser()._actions
    if Means.FILE in (action.means or Means.RESULT)
]
# a file or a run's folder; the others read the first as they like, --config as YAML
CONTENTS = {"file": ("size: 8\n", "size: 10\n"), "run/last.pth": (b"weights", b"other weights")}


def sums(command):
    script = words(command)[1].removesuffix(".py")
    module = importlib.import_module(script)
    recipes = getattr(module, "RECIPES", options.SMALL_DATA)
    return config.parse_words(module.get_parser(), recipes, words(command)[2:], script).files


def write(file, content):
    file.parent.mkdir(exist_ok=True)
    (file.write_text if isinstance(content, str) else file.write_bytes)(content)


@pytest.mark.parametrize(("script", "flag"), FILES)
def test_a_result_counts_as_done_while_the_file_of_each_option_is_as_it_was(monkeypatch, tmp_path, script, flag):
    monkeypatch.chdir(tmp_path)
    place = "run/last.pth" if flag in ("--ckpt", "--init") else "file"
    (first, second), file = CONTENTS[place], tmp_path / place
    write(file, first)
    command = f"python {script}.py {NEEDED[script]} --exp_name a {flag} {place.partition('/')[0]}"
    command = command if script.startswith("main_") else command.replace("--exp_name a ", "")
    said = {"command": words(command)[1:], "protocol": config.protocol(script)}
    record = {"checkpoint": {"sha256": "a"}, **said, "files": sums(command)}
    begun = {"options": {}, "resumed": None, "files": sums(command)}
    (tmp_path / "save/results").mkdir(parents=True)

    def passes(record, begun):
        """Whether the record of an evaluation, and the folder of a run, pass for this command's."""
        (tmp_path / "save/results/r.json").write_text(json.dumps(record))
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"about": said}))
        (tmp_path / "starts.jsonl").write_text(json.dumps(begun))
        assert find_run([tmp_path], command) == tmp_path
        return find_record(command, "a") is not None, changed_since(tmp_path, command) is None

    assert passes(record, begun) == (True, True)
    write(file, second)
    assert passes(record, begun) == (False, False)
    assert changed_since(tmp_path, command) == f"{flag} {place.partition('/')[0]}"
    older = [{name: x for name, x in entry.items() if name != "files"} for entry in (record, begun)]
    assert passes(*older) == (True, True)  # nobody knows
    file.unlink()
    assert passes(record, begun) == (True, True)  # nothing else is in its place
    write(file, first)
    assert passes(record, begun) == (True, True)


def test_a_run_that_went_on_after_a_file_had_changed_is_made_of_both(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.csv").write_text("now")
    command = "python main_supcon.py --ranking r.csv --exp_name a"
    starts = [
        {"options": {}, "resumed": None, "files": {"--ranking r.csv": "of another content"}},
        {"options": {}, "resumed": "last.pth", "files": sums(command)},
    ]
    (tmp_path / "starts.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts))
    assert changed_since(tmp_path, command) == "--ranking r.csv"
    starts[1]["resumed"] = None  # begun anew
    (tmp_path / "starts.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts))
    assert changed_since(tmp_path, command) is None


def test_after_a_file_has_changed_an_evaluation_is_run_again_and_a_training_is_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "Popen", Forked)
    (tmp_path / "c.yaml").write_text("model: resnet8\nbatch_size: 256\nepochs: 1\n")
    (tmp_path / "s.yaml").write_text("low: [0, 1, 2, 3, 4]\nhigh: [5, 6, 7, 8, 9]\n")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({
        "title": "Small",
        "methods": {"good": {"command": "python main_ce.py --config c.yaml --exp_name good"}},
        "evaluations": {"retrieval": {
            "command": "python retrieval.py --ckpt $path2chkpt --labelset coarse --superclasses s.yaml",
            "columns": {"mAP": "coarse.mAP"},
        }},
    }))  # fmt: skip

    def values():
        (found,) = json.loads((tmp_path / "save/tables/small.json").read_text())["results"]["good"]
        return found["values"]

    run(monkeypatch, tmp_path, "small.yaml", "reproduce")
    first = values()
    (tmp_path / "s.yaml").write_text("a: [0]\nb: [1, 2, 3, 4, 5, 6, 7, 8, 9]\n")
    run(monkeypatch, tmp_path, "small.yaml", "reproduce")
    assert values()["mAP"] > first["mAP"] + 5
    (tmp_path / "c.yaml").write_text("model: resnet8\nbatch_size: 256\nepochs: 3\n")
    printed = reproduced(tmp_path)
    place = "save/SupCon/digits_models/good"
    assert f"== good, seed 0: FAILED: --config c.yaml has changed since {place} was trained; put the file" in printed
    assert values() == {}
    assert checkpoint.load(tmp_path / place)["epoch"] == 1


def test_a_probe_that_was_cut_off_goes_on_unless_a_file_of_its_options_has_changed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Runner, "call", lambda self, title, command: called.append(command))
    called, place = [], tmp_path / "save/linear/digits_models/p"
    command = "python main_linear.py --ckpt c.pth --exp_name p"
    write(tmp_path / "c.pth", b"weights")
    place.mkdir(parents=True)
    (place / "last.pth").touch()
    monkeypatch.setattr(done, "epochs_left", lambda folder: 3)
    about = {"command": words(command)[1:], "protocol": config.protocol("main_linear")}
    (place / "config.yaml").write_text(yaml.safe_dump({"about": about}))
    (place / "starts.jsonl").write_text(json.dumps({"options": {}, "resumed": None, "files": sums(command)}))
    Runner(tmp_path, 1).evaluate("t", command, "a")
    write(tmp_path / "c.pth", b"other weights")
    Runner(tmp_path, 1).evaluate("t", command, "a")
    assert called == [f"{command} --resume save/linear/digits_models/p", f"{command} --overwrite"]

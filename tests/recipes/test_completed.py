"""What a recipe takes for done: the same command, and the same content of every file that its options name."""

import importlib
import json

import pytest
import yaml

from engine.cli import config, options
from engine.cli.parsing import Means
from recipes import completed
from recipes.completed import find_change_since, find_record, find_run
from recipes.running import Runner
from recipes.schema import words
from util import InputError

NEEDED = {"main_supcon": "", "main_ce": "", "main_linear": "--ckpt a", "retrieval": "--ckpt a"}
NEEDED["out_of_dist_detection"] = "--ckpt a --dataset_outliers digits"
FILES = [
    (script, action.option_strings[0])
    for script in NEEDED
    for action in importlib.import_module(script).get_parser()._actions
    if Means.FILE in (action.means or Means.RESULT)
]
OF_FEATURES = ("--features_val", "--labels", "--labels_val", "--class_names", "--features_outliers")
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
    rows = "--features rows.npz" if flag in OF_FEATURES else ""
    command = f"python {script}.py {NEEDED[script]} {rows} --exp_name a {flag} {place.partition('/')[0]}"
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
        return find_record(command, "a") is not None, find_change_since(tmp_path, command) is None

    assert passes(record, begun) == (True, True)
    write(file, second)
    assert passes(record, begun) == (False, False)
    assert find_change_since(tmp_path, command) == f"{flag} {place.partition('/')[0]}"
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
    first = {"options": {}, "resumed": None, "files": {"--ranking r.csv": "of another content"}}
    for resumed, changed in (("last.pth", "--ranking r.csv"), (None, None)):  # or begun again
        second = {"options": {}, "resumed": resumed, "files": sums(command)}
        (tmp_path / "starts.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
        assert find_change_since(tmp_path, command) == changed


def test_after_a_file_has_changed_a_training_is_refused_by_name_and_a_probe_begins_again(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Runner, "call", lambda self, title, command: called.append(command))
    monkeypatch.setattr(completed, "epochs_left", lambda folder: 3)
    called, runner = [], Runner(tmp_path, 1)
    training = "python main_ce.py --config c.yaml --exp_name a", "c.yaml", "save/SupCon/digits_models/a"
    probe = "python main_linear.py --ckpt c.pth --exp_name p", "c.pth", "save/linear/digits_models/p"
    write(tmp_path / "c.yaml", "size: 8\n")
    write(tmp_path / "c.pth", b"weights")
    for command, _, place in (training, probe):
        said = {"command": words(command)[1:], "protocol": config.protocol(words(command)[1])}
        (tmp_path / place).mkdir(parents=True)
        write(tmp_path / place / "config.yaml", yaml.safe_dump({"about": said}))
        write(tmp_path / place / "starts.jsonl", json.dumps({"options": {}, "resumed": None, "files": sums(command)}))
        write(tmp_path / place / "last.pth", b"")
    runner.train("t", training[0])
    runner.evaluate("t", probe[0], "a")
    write(tmp_path / "c.yaml", "size: 10\n")
    write(tmp_path / "c.pth", b"other weights")
    with pytest.raises(InputError, match=f"--config c.yaml has changed since {training[2]} was trained; put the file"):
        runner.train("t", training[0])
    runner.evaluate("t", probe[0], "a")
    resumed = [f"{command} --resume {place}" for command, _, place in (training, probe)]
    assert called == [*resumed, f"{probe[0]} --overwrite"]

"""reproduce.py: the documented commands from a recipe, what is done left alone, failures survived, one table."""

import contextlib
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import yaml
from commands import ROOT, error_of, run
from made_data import make_cifar10, make_cifar100, make_image_folders, make_tiny_imagenet, original_checkpoint
from processes import Forked, InTurn

import datasets
import recipes
import reproduce
import util
from datasets import texts
from engine import checkpoint, config, published
from networks import resnet
from recipes.done import find_record, find_run, same, seconds
from recipes.table import cell

README = (ROOT / "README.md").read_text()
PAPER = README.partition("## The paper's commands")[2].partition("\n## ")[0]
PAPER = [line for line in PAPER.splitlines() if line.startswith("python ")]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def printed(monkeypatch, capsys, folder, words):
    run(monkeypatch, folder, words, "reproduce")
    return capsys.readouterr().out


def test_a_dry_run_of_imagenet_100_prints_exactly_the_documented_commands(monkeypatch, capsys, tmp_path):
    out = printed(monkeypatch, capsys, tmp_path, f"{ROOT}/recipes/imagenet100.yaml --dry-run")
    documented = [line for line in PAPER if "imagenet100" in line]
    trainings, evaluations = documented[:3], documented[3:]
    assert [line.split()[1] for line in trainings] == ["main_supcon.py", "main_supcon.py", "main_ce.py"]
    assert len(evaluations) == 3
    evaluations += [evaluations[-1].replace("split1", f"split{i}") for i in (2, 3)]
    want = [command for training in trainings for command in (training, *evaluations)]
    assert [line for line in out.splitlines() if line.startswith("python ")] == want
    assert "path2chkpt=save/SupCon/imagenet_models/rince_imagenet100\n" in out
    assert "path2chkpt=save/SupCon/imagenet_100_models/imagenet100_ce_baseline_sslAugment\n" in out
    assert not (tmp_path / "save").exists()


def test_a_dry_run_of_cifar_100_prints_exactly_the_documented_commands(monkeypatch, capsys, tmp_path):
    out = printed(monkeypatch, capsys, tmp_path, f"{ROOT}/recipes/cifar100.yaml --dry-run")
    documented = [line for line in PAPER if "cifar100" in line]
    trainings, evaluations = documented[:6], documented[6:]
    assert len(evaluations) == 5
    kinds = ["contrastive"] * 5 + ["cross_entropy"]
    want = []
    for training, kind in zip(trainings, kinds, strict=True):
        want += [training, *(e.replace("--model_type contrastive", f"--model_type {kind}") for e in evaluations)]
    assert [line for line in out.splitlines() if line.startswith("python ")] == want


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_reads_and_gives_each_method_a_run_of_its_own(path):
    recipe = recipes.read(path)
    trained = [name for name in recipe["methods"] if not recipes.given(recipe, name)]
    folders = [
        recipes.run_folder(recipes.commands(recipe, name, seed, recipes.Scope())["training"])
        for name in trained
        for seed in (0, 1)
    ]
    assert len(set(folders)) == 2 * len(trained)
    assert all(len(folder.name) > 2 for folder in folders)
    files = {recipes.given(recipe, name) for name in recipe["methods"]} - {None}
    assert len(trained) + len(files) == len(recipe["methods"])


def test_another_seed_and_a_scale_change_the_name_and_shorten_the_epochs(monkeypatch, capsys, tmp_path):
    words = f"{ROOT}/recipes/imagenet100.yaml --only scl_out --seeds 2 --scale 0.02 --dry-run"
    first, *evaluations, second = [
        line
        for line in printed(monkeypatch, capsys, tmp_path, words).splitlines()
        if "main_supcon" in line or "main_linear" in line
    ][:3]
    assert first.endswith("--loss_type=supcon --epochs 10 --exp_name imagenet100_SCL_out_scale0.02")
    assert second.endswith("--epochs 10 --seed 1 --exp_name imagenet100_SCL_out_seed1_scale0.02")
    assert evaluations[0].endswith("--epochs=100 --epochs 2 --lr_decay_epochs 1,2,2")


def test_the_last_of_two_spellings_of_an_option_counts():
    command = "python main_ce.py --exp_name=a --dataset digits --exp_name b"
    assert recipes.option(command, "--exp_name") == "b"
    assert recipes.option(command, "--save_folder", "./save") == "./save"


SMALL = "--epochs 1 --batch_size 256 --model"
SMALL_RECIPE = {
    "title": "Small",
    "published": {"source": "nobody, 2026", "good": {"R@1": 99.5, "fine mAP": 98}},
    "methods": {
        "bad": {"command": f"python main_ce.py {SMALL} resnet8 --exp_name bad --data_folder nowhere --dataset path"},
        "good": {"title": "a good one", "command": f"python main_ce.py {SMALL} resnet8 --exp_name good"},
    },
    "evaluations": {
        "retrieval": {
            "command": "python retrieval.py --ckpt $path2chkpt/last.pth",
            "columns": {"R@1": "fine.R@1", "fine mAP": "fine.mAP"},
        }
    },
}


GOOD = SMALL_RECIPE["methods"]["good"]["command"]
RETRIEVAL = SMALL_RECIPE["evaluations"]["retrieval"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("none.yaml", "none.yaml: no such file"),
        (f"{ROOT}/recipes/cifar100.yaml --only rince_out_on", "did you mean rince_out_in?"),
        (f"{ROOT}/recipes/cifar100.yaml --seeds 0", "--seeds 0"),
        (f"{ROOT}/recipes/cifar100.yaml --scale 0", "--scale 0"),
        (f"{ROOT}/recipes/cifar100.yaml --jobs -1", "--jobs -1"),
    ],
)
def test_a_wrong_option_is_one_line(monkeypatch, capsys, tmp_path, words, reason):
    assert reason in error_of(monkeypatch, capsys, tmp_path, words, "reproduce")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("nothing", "r.yaml must be a mapping, not 'nothing'"),
        ({"title": None}, "r.yaml: title is missing"),
        ({"titel": "t"}, "r.yaml: unknown key titel; did you mean title?"),
        ({"methods": [GOOD]}, "methods must be a mapping"),
        ({"methods": "GOOD"}, "methods must be a mapping"),
        ({"methods": {"a": None}}, "method a must be a mapping, not None"),
        ({"methods": {"a": GOOD}}, "method a must be a mapping"),
        ({"methods": {"a": {"comand": GOOD}}}, "method a: unknown key comand; did you mean command?"),
        ({"methods": {"a": {"title": "t"}}}, "method a: command is missing"),
        ({"methods": {"a": {"command": [GOOD]}}}, "method a: command must be a command, such as `python main_supcon"),
        ({"methods": {"a": {"command": "make"}}}, "method a: command must be a command"),
        ({"methods": {"a": {"command": "python 'x"}}}, "method a: command must be a command"),
        (
            {"methods": {"a": {"command": "python main_ce.py"}}},
            "method a: its command must name the run",
        ),
        ({"methods": {"a": {"command": GOOD + " --seed=1"}}}, "method a: leave --seed out of the command"),
        ({"methods": {"a": {"title": "t"}}}, "command is missing, or checkpoint, a file that needs no training"),
        ({"methods": {"a": {"command": GOOD, "checkpoint": "a.pth"}}}, "a: command or checkpoint: give one of them"),
        ({"methods": {"a": {"checkpoint": "a.pth", "scaled": {"epochs": 3}}}}, "method a: scaled has no use without"),
        ({"methods": {"a": {"checkpoint": "a.pth", "seeds": 1}}}, "method a: seeds has no use without"),
        ({"methods": {"a": {"command": GOOD, "seeds": 0}}}, "method a: seeds must be at least 1"),
        ({"methods": {"a": {"command": GOOD, "seeds": -1}}}, "method a: seeds must be a whole number"),
        ({"methods": {"a": {"checkpoint": ["a.pth"]}}}, "method a: checkpoint must be text"),
        ({"evaluations": {"e": {**RETRIEVAL, "for": "good"}}}, "evaluation e: for must be a list"),
        ({"evaluations": {"e": {**RETRIEVAL, "for": ["goof"]}}}, "for: there is no method goof; did you mean good?"),
        (
            {"evaluations": {"e": {**RETRIEVAL, "for": ["good"]}, "f": {**RETRIEVAL, "for": ["bad", "good"]}}},
            "evaluation f: column R@1 is there already",
        ),
        ({"methods": {"a": {"command": GOOD, "title": [3]}}}, "method a: title must be text"),
        (
            {"methods": {"a": {"command": GOOD, "scaled": {"epochs": "ten"}}}},
            "a: scaled: epochs must be a number",
        ),
        ({"methods": {"a": {"command": GOOD, "with": ["x"]}}}, "method a: with must be a mapping"),
        ({"evaluations": {"e": {"command": GOOD}}}, "evaluation e: columns is missing"),
        ({"evaluations": {"e": {**RETRIEVAL, "columns": ["R"]}}}, "evaluation e: columns must be a mapping"),
        ({"evaluations": {"e": {**RETRIEVAL, "columns": {"R": [1]}}}}, "columns: R must be text"),
        ({"evaluations": {"e": {**RETRIEVAL, "columns": {"seconds": "x"}}}}, "column seconds is there already"),
        ({"evaluations": {"e": RETRIEVAL, "f": RETRIEVAL}}, "evaluation f: column R@1 is there already"),
        ({"methods": {"a": {"command": GOOD + " --learning_rat 1"}}}, "r.yaml: a: training: main_ce.py: unrecognized"),
        ({"methods": {"a": {"command": GOOD + " --learning_rat 1"}}}, "did you mean --learning_rate?"),
        ({"methods": {"a": {"command": GOOD + " --mod 1 {x}", "with": {"x": "--none"}}}}, "--mod 1 --none"),
        ({"methods": {"a": {"command": "python main_c.py --exp_name a"}}}, "training: there is no script main_c.py"),
        ({"evaluations": {"e": {**RETRIEVAL, "command": "python retrieval.py --ckpt $x"}}}, "$x is unknown; a run's"),
        ({"evaluations": {"e": {**RETRIEVAL, "command": "python retrieval.py"}}}, "required: --ckpt"),
        ({"evaluations": {"e": {**RETRIEVAL, "command": "python retrieval.py --size big"}}}, "argument --size"),
        ({"before": "python x"}, "before must be a list"),
        ({"before": [{"command": "python x", "makes": [3]}]}, "before 1: makes must be text"),
        ({"after": "python x"}, "after must be a list"),
        ({"after": [[3]]}, "after 1 must be a mapping, not ['3']"),
        ({"jobs": "two"}, "jobs must be a whole number"),
        ({"published": {"good": {"R@1": 1}}}, "published: source is missing"),
        ({"published": {"source": "s", "goof": {"R@1": 1}}}, "published: there is no method goof; did you mean good?"),
        ({"published": {"source": "s", "good": 3}}, "published: good must be a mapping"),
        ({"published": {"source": "s", "good": {"R@2": 1}}}, "published good: no column R@2; did you mean R@1?"),
    ],
)
def test_a_wrong_recipe_is_one_line(monkeypatch, capsys, tmp_path, change, reason):
    content = change
    if isinstance(change, dict):
        content = SMALL_RECIPE | ({"published": None} if "methods" in change else {}) | change
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    assert reason in error_of(monkeypatch, capsys, tmp_path, "r.yaml --dry-run --seeds 2", "reproduce")


def test_what_a_recipe_may_leave_out_may_be_empty_too(monkeypatch, capsys, tmp_path):
    content = SMALL_RECIPE | {"before": None, "after": ["python x.py"], "about": None, "jobs": None, "published": None}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    assert printed(monkeypatch, capsys, tmp_path, "r.yaml --dry-run").endswith("\npython x.py\n")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A recipe with a method that fails before one that works, run twice: folder, and what both runs printed."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL_RECIPE))
    return folder, [reproduced(folder) for _ in range(2)]


def reproduced(folder) -> str:
    """What the recipe, one of whose methods fails, prints."""
    output = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(output),
        pytest.raises(SystemExit, match=r"^1$"),
    ):
        patch.setattr(subprocess, "Popen", Forked)
        run(patch, folder, "small.yaml", "reproduce")
    return output.getvalue()


def test_a_failure_is_reported_at_the_end_and_the_rest_goes_on(small):
    folder, (printed, _) = small
    table = (folder / "save/tables/small.md").read_text()
    record = json.loads(next((folder / "save/results").glob("retrieval_*.json")).read_text())
    assert f"| a good one | {record['metrics']['fine']['R@1']:.1f} | {record['metrics']['fine']['mAP']:.1f} |" in table
    assert table.count(" | R@1 99.5, fine mAP 98 |") == 1
    assert "\nPublished: nobody, 2026\n" in table
    assert "| bad | - | - | - |" in table
    assert "FAILED: bad, seed 0: training (exit code 2: main_ce.py: error: --data_folder nowhere" in table
    assert table in printed
    content = json.loads((folder / "save/tables/small.json").read_text())
    (failure,) = content["failures"]
    assert "main_ce.py: error: --data_folder nowhere: no such folder; " in failure["why"]
    assert "nowhere: no such folder" in (folder / failure["why"].rpartition("; ")[2]).read_text()
    (of_good,) = content["results"]["good"]
    assert of_good["values"]["R@1"] == record["metrics"]["fine"]["R@1"]
    assert of_good["values"]["seconds"] > 0


def test_what_is_done_is_skipped_and_the_table_is_the_same(small):
    first, second = small[1]
    assert first.count(": is done, ") == 0
    assert second.count(": is done, ") == 2
    assert second.count("== bad, seed 0: training: FAILED") == 1
    assert first.partition("## Small")[2] == second.partition("## Small")[2]


def test_a_method_that_is_not_wanted_is_shown_if_it_is_done_but_not_run(monkeypatch, capsys, small):
    folder, _ = small
    monkeypatch.setattr(subprocess, "Popen", Forked)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, folder, "small.yaml --only bad --out other", "reproduce")
    assert stop.value.code == 1
    assert "== good" not in capsys.readouterr().out
    assert "| a good one | 9" in (folder / "other/small.md").read_text()


def test_another_checkpoint_asks_for_another_evaluation(small):
    folder, _ = small
    command = "python retrieval.py --ckpt save/SupCon/digits_models/good/last.pth"
    sha256 = checkpoint.sha256(folder / "save/SupCon/digits_models/good/last.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert find_record(command, sha256)["metrics"]
        assert find_record(command, "0" * 64) is None
        assert find_record(command + " --labelset coarse", sha256) is None


def test_a_record_of_before_a_change_of_protocol_enters_no_table(monkeypatch, small):
    folder, _ = small
    monkeypatch.chdir(folder)
    command = "python retrieval.py --ckpt save/SupCon/digits_models/good/last.pth"
    sha256 = checkpoint.sha256(folder / "save/SupCon/digits_models/good/last.pth")
    record = find_record(command, sha256)
    assert record["protocol"] == config.protocol("retrieval") > 1
    file = Path(record["file"])
    content = file.read_text()
    try:
        file.write_text(json.dumps({k: v for k, v in json.loads(content).items() if k != "protocol"}))
        assert find_record(command, sha256) is None
    finally:
        file.write_text(content)
    monkeypatch.setitem(config.PROTOCOL, "main_ce", 2)
    place = Path("save/SupCon/digits_models/good")
    assert find_run([place], SMALL_RECIPE["methods"]["good"]["command"]) is None


def test_a_run_that_began_before_an_option_existed_is_still_the_commands(monkeypatch, small):
    folder, _ = small
    monkeypatch.chdir(folder)
    place, command = Path("save/SupCon/digits_models/good"), SMALL_RECIPE["methods"]["good"]["command"]
    starts = (place / "starts.jsonl").read_text()
    (first,) = map(json.loads, starts.splitlines())
    older = {name: value for name, value in first["options"].items() if name != "precision"}
    later = {**first, "resumed": str(place / "last.pth")}
    try:
        (place / "starts.jsonl").write_text("\n".join(map(json.dumps, [{**first, "options": older}, later])) + "\n")
        assert find_run([place], command) == place
        other = {**first, "options": {**older, "learning_rate": 7.0}}
        (place / "starts.jsonl").write_text("\n".join(map(json.dumps, [other, later])) + "\n")
        assert find_run([place], command) is None
    finally:
        (place / "starts.jsonl").write_text(starts)


def test_a_training_that_was_cut_off_goes_on_and_another_command_does_not_count(monkeypatch, small, tmp_path):
    folder, _ = small
    monkeypatch.chdir(folder)
    called = []
    monkeypatch.setattr(reproduce.Runner, "call", lambda self, title, command: called.append(command) or True)
    runner = reproduce.Runner(tmp_path, 1)
    command = SMALL_RECIPE["methods"]["good"]["command"]
    place = Path("save/SupCon/digits_models/good")
    assert runner.train("t", command) == place
    assert called == []
    runner.train("t", command + " --seed 7")
    whole = (place / "last.pth").read_bytes()
    try:  # cut off, although the log may have the epoch whose checkpoint could not be written any more
        checkpoint.save(place / "last.pth", {**checkpoint.load(place), "epoch": 0, "step": 3})
        runner.train("t", command)
        (place / "last.pth").rename(place / "previous.pth")
        runner.train("t", command)
    finally:
        (place / "last.pth").write_bytes(whole)
        (place / "previous.pth").unlink(missing_ok=True)
    assert called == [command + " --seed 7", *2 * [f"{command} --resume {place}"]]


def test_a_run_that_began_from_another_or_with_other_options_is_not_the_commands(monkeypatch, small):
    folder, _ = small
    command, place = SMALL_RECIPE["methods"]["good"]["command"], Path("save/SupCon/digits_models/good")
    monkeypatch.chdir(folder)
    assert find_run([place], command) == place
    (start,) = util.read_json_lines(place / "starts.jsonl")
    own = {**start, "after_epoch": 1, "resumed": str(place / "last.pth")}
    before = (place / "starts.jsonl").read_text()
    other = {**start, "options": {**start["options"], "learning_rate": 7.0}}
    free = {**start, "options": {**start["options"], "num_workers": 7}}
    from_another = {**own, "resumed": str(place.parent / "another/last.pth")}
    try:
        for starts, wanted in (
            ([start, own], place), ([other, start, own], place), ([free, own], place), ([other, own], None),
            ([start, from_another], None), ([own], None), ([], None),
        ):  # fmt: skip
            (place / "starts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in starts))
            assert find_run([place], command) == wanted
            assert starts != [start, own] or seconds(place) is None  # the time of the epoch it was cut off in is lost
    finally:
        (place / "starts.jsonl").write_text(before)
    assert seconds(place) > 0


@pytest.mark.parametrize(
    ("called", "alike"),
    [
        ("main_ce.py --epochs 1 --exp_name a --resume auto", True),
        ("/x/main_ce.py --resume=auto --epochs 1 --overwrite --exp_name a", True),
        ("main_ce.py --epochs 1 --overwrite=True --exp_name a --overwrite True", True),
        ("main_ce.py --epochs 2 --exp_name a", False),
        ("main_supcon.py --epochs 1 --exp_name a", False),
    ],
)
def test_how_a_run_was_started_is_no_part_of_its_command(called, alike):
    assert same(called.split(), "python main_ce.py --epochs 1 --exp_name a") == alike


def test_a_fault_of_one_method_ends_that_method_alone(monkeypatch, capsys, small, tmp_path):
    folder, _ = small
    place = folder / "save/SupCon/path_models/bad"
    place.mkdir(parents=True)
    (place / "config.yaml").write_text("epochs: 1\n")
    (folder / "save/results/none.json").write_text("[]")
    (folder / "save/results/empty.json").write_text("")
    try:
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, folder, "small.yaml", "reproduce")
    finally:
        (place / "config.yaml").unlink()
        place.rmdir()
    assert stop.value.code == 1
    printed = capsys.readouterr().out
    assert "FAILED: bad, seed 0 (save/SupCon/path_models/bad/config.yaml: does not say by which command" in printed
    assert "| a good one | 9" in printed


def test_ctrl_c_while_something_runs_before_the_methods_ends_it_too(monkeypatch, capsys, tmp_path):
    waiting = {"command": 'python -c \'import time, os; open("pid", "w").write(str(os.getpid())); time.sleep(600)\''}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(SMALL_RECIPE | {"before": [waiting]}))
    command = [sys.executable, str(ROOT / "reproduce.py"), "r.yaml"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not ((tmp_path / "pid").is_file() and (tmp_path / "pid").read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == b"reproduce.py: stopped; the same command goes on where it stopped\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_column_that_no_record_has_is_a_failure_of_its_own(monkeypatch, small, tmp_path):
    folder, _ = small
    monkeypatch.chdir(folder)
    recipe = recipes.read(folder / "small.yaml")
    recipe["evaluations"]["retrieval"]["columns"] = {"wrong": "fine.R@2", "R@1": "fine.R@1"}
    runner = reproduce.Runner(tmp_path, 1)
    result = reproduce.run_method(recipe, "good", 0, reproduce.get_parser().parse_args(["small.yaml"]), runner)
    assert list(result["values"]) == ["R@1", "seconds"]
    why = runner.failures[0]["why"]
    assert "no figure fine.R@2 for column wrong; did you mean fine.R@" in why
    assert (
        "; there are fine.R@1, fine.R@5, fine.R@10, fine.R@20, fine.AP, fine.AP-published, fine.mAP, in save/results/"
        in why
    )


# ---- given checkpoints -----------------------------------------------------------------------------------------------

GIVEN = {
    "title": "Given",
    "methods": {
        "missing": {"checkpoint": "data/published/CIFAR-100/RINCE_in/last.pth"},
        "nowhere": {"checkpoint": "nowhere.pth"},
        "other": {"title": "another file", "checkpoint": "data/published/CIFAR-100/SCL_in/last.pth"},
        "right": {"title": "the file", "checkpoint": "data/published/ImageNet-100/CE/ckpt_epoch_500.pth"},
    },
    "evaluations": {
        "retrieval": {
            "command": "python retrieval.py --ckpt $path2chkpt", "columns": {"R@1": "fine.R@1"}, "for": ["right"],
        },
        "probe": {
            "command": "python main_linear.py --epochs 2 --cache_features --ckpt $path2chkpt/last.pth",
            "columns": {"probe best": "best.top-1"}, "scaled": {"epochs": 2}, "for": ["right", "nowhere"],
        },
        "far": {
            "command": "python retrieval.py --ckpt $path2chkpt/last.pth --labelset coarse",
            "columns": {"probe best": "coarse.R@1"}, "for": ["missing"],
        },
    },
}  # fmt: skip


def test_a_dry_run_of_given_checkpoints_needs_no_file_and_names_the_one_to_evaluate(monkeypatch, capsys, tmp_path):
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(GIVEN, sort_keys=False))
    out = printed(monkeypatch, capsys, tmp_path, "given.yaml --seeds 3 --scale 0.5 --dry-run")
    assert out == (
        "\n# missing, data/published/CIFAR-100/RINCE_in/last.pth\npath2chkpt=data/published/CIFAR-100/RINCE_in\n"
        "python retrieval.py --ckpt $path2chkpt/last.pth --labelset coarse\n"
        "\n# nowhere, nowhere.pth\npath2chkpt=.\n"
        "python main_linear.py --epochs 2 --cache_features --ckpt $path2chkpt/nowhere.pth --epochs 1 "
        "--exp_name nowhere_probe_scale0.5\n"
        "\n# another file, data/published/CIFAR-100/SCL_in/last.pth\npath2chkpt=data/published/CIFAR-100/SCL_in\n"
        "\n# the file, data/published/ImageNet-100/CE/ckpt_epoch_500.pth\npath2chkpt=data/published/ImageNet-100/CE\n"
        "python retrieval.py --ckpt $path2chkpt/ckpt_epoch_500.pth\n"
        "python main_linear.py --epochs 2 --cache_features --ckpt $path2chkpt/ckpt_epoch_500.pth --epochs 1 "
        "--exp_name right_probe_scale0.5\n"
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "given.yaml"]


@pytest.mark.parametrize(
    ("command", "want"),
    [
        ("--ckpt $path2chkpt/last.pth --x", "--ckpt $path2chkpt/a.pth --x"),
        ("--ckpt=$path2chkpt/ --x", "--ckpt=$path2chkpt/a.pth --x"),
        ("--ckpt $path2chkpt", "--ckpt $path2chkpt/a.pth"),
        ("--ckpt $path2chkpt/last.pth.old", "--ckpt $path2chkpt/last.pth.old"),
        ("--ckpt $path2chkpt/previous.pth", "--ckpt $path2chkpt/previous.pth"),
    ],
)
def test_a_given_file_stands_for_a_runs_folder_and_its_last_pth(command, want):
    assert recipes.of_file(command, Path("folder/a.pth")) == want


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The recipe run with --seeds 2 and again at half scale on made files in published places, the scripts in this
    process: folder, what each run printed, what each called.
    """
    folder = tmp_path_factory.mktemp("given")
    (folder / "given.yaml").write_text(yaml.safe_dump(GIVEN, sort_keys=False))
    for place in ("CIFAR-100/SCL_in/last.pth", "ImageNet-100/CE/ckpt_epoch_500.pth"):
        file = folder / "data/published" / place
        original_checkpoint(file, resnet.encoder("resnet8"), "cifar", "resnet8", "cifar100")
    weights = [dataclasses.replace(w, sha256=checkpoint.sha256(file)) if w.classes else w for w in published.WEIGHTS]
    printed, called = [], []
    with pytest.MonkeyPatch.context() as patch:

        def call(self, title, command, show=False):
            called[-1].append(title)
            run(patch, folder, command)
            return True

        patch.setattr(published, "WEIGHTS", tuple(weights))
        patch.setattr(reproduce.Runner, "call", call)
        patch.setattr(reproduce, "ThreadPoolExecutor", InTurn)
        for options in ("--seeds 2", "--seeds 2 --scale 0.5"):
            called.append([])
            out = io.StringIO()
            with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as stop:
                run(patch, folder, f"given.yaml {options}", "reproduce")
            assert stop.value.code == 1
            printed.append(out.getvalue())
    return folder, printed, called


def test_given_checkpoints_are_evaluated_once_without_training_or_seconds(given):
    folder, (out, _), (called, _) = given
    table = (folder / "save/tables/given.md").read_text()
    retrieval = json.loads(next((folder / "save/results").glob("retrieval_*.json")).read_text())
    (probe,) = [json.loads(f.read_text()) for f in (folder / "save/results").glob("linear_*_CE_*.json")]
    cells = f"{retrieval['metrics']['fine']['R@1']:.1f} | {probe['metrics']['best']['top-1']:.1f}"
    assert f"| the file | {cells} | - |\n" in table
    assert "In percent.\n\nGiven checkpoints are evaluated once: seeds are those of trainings.\n" in table
    assert called == ["right: retrieval", "right: probe"]
    place = "data/published/ImageNet-100/CE/ckpt_epoch_500.pth"
    assert out.count(f"--ckpt {place}: these are the published weights cross-entropy, ImageNet-100\n") == 2


def test_a_file_that_is_missing_fails_alone_in_one_line_with_its_hash_and_place(given):
    out, table = given[1][0], (given[0] / "save/tables/given.md").read_text()
    (line,) = [line for line in out.splitlines() if line.startswith("== missing: FAILED: ")]
    (known,) = [w for w in published.WEIGHTS if w.name == "RINCE in, CIFAR-100"]
    assert line == (
        "== missing: FAILED: data/published/CIFAR-100/RINCE_in/last.pth: no such file; put the published weights "
        f"RINCE in, CIFAR-100 (RINCE_in/last.pth, SHA-256 {known.sha256}) there"
    )
    assert f"FAILED: missing ({line.partition('FAILED: ')[2]})\n" in table
    assert "FAILED: nowhere (nowhere.pth: no such file)\n" in table
    assert table.count("FAILED") == 2


def test_another_file_in_the_place_of_published_weights_is_named(given):
    folder, (out, _), _ = given
    found = checkpoint.sha256(folder / "data/published/CIFAR-100/SCL_in/last.pth")
    text = f"data/published/CIFAR-100/SCL_in/last.pth is not the published file: its SHA-256 is {found}, not that of"
    table = (folder / "save/tables/given.md").read_text()
    for said, start in ((out, "== other: warning: "), (table, "WARNING: ")):
        (line,) = [line for line in said.splitlines() if line.startswith(start)]
        assert line.startswith(start + text)
    assert "ckpt_epoch_500.pth is not" not in out + table


def test_a_scale_shortens_the_probe_of_a_given_checkpoint_beside_the_whole_one(given):
    folder, (_, out), (_, called) = given
    assert out.count("== right: retrieval: is done, ") == 1
    assert called == ["right: probe"]
    runs = {
        place.parent.name: texts.read_yaml(place, "")["epochs"] for place in folder.glob("save/linear/*/*/config.yaml")
    }
    (whole,) = [name for name in runs if name.startswith("CE_ckpt_epoch_500_")]
    assert runs == {whole: 2, "right_probe_scale0.5": 1}
    assert "SCALED: 50 % of the epochs" in (folder / "save/tables/given_scale0.5.md").read_text()


@pytest.mark.slow
def test_when_it_is_ended_the_script_that_runs_is_ended_too(tmp_path):
    recipe = SMALL_RECIPE | {
        "published": None,
        "methods": {"long": {"command": "python main_ce.py --epochs 500 --exp_name x"}},
    }
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(recipe))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "reproduce.py"), "long.yaml", "--jobs", "2"], cwd=tmp_path,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    log = tmp_path / "save/tables/logs/long/long_seed_0_training.txt"
    while process.poll() is None and not (log.is_file() and "epoch 1/500" in log.read_text()):
        time.sleep(0.1)
    process.terminate()
    assert process.wait(timeout=60) == 143
    size = log.stat().st_size
    time.sleep(1)
    assert log.stat().st_size == size


def test_runs_are_made_seed_by_seed_and_a_method_has_no_more_than_its_own_number_of_them(monkeypatch):
    made = []

    def attempt(recipe, name, seed, scope, runner, run):
        made.append((name, seed))
        return {"seed": seed, "values": {}, "records": {}}

    monkeypatch.setattr(reproduce, "attempt", attempt)
    recipe = {"methods": {"once": {"command": GOOD, "seeds": "1"}, "a": {"command": GOOD}, "b": {"command": GOOD}}}
    runner = types.SimpleNamespace(jobs=1, stopped=threading.Event())
    found = reproduce.run_methods(recipe, list(recipe["methods"]), recipes.Scope(seeds=3), runner, lambda *of: None)
    assert made == [("once", 0), ("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert {name: [run["seed"] for run in runs] for name, runs in found.items()} == {
        "once": [0], "a": [0, 1, 2], "b": [0, 1, 2],
    }  # fmt: skip


def test_mean_and_spread_are_over_the_seeds_that_there_are():
    assert cell([1.0, 2.0, 6.0], 3) == "3.0 ± 2.6"
    assert cell([1.0, 2.0], 3) == "1.5 ± 0.7 (2 of 3)"
    assert cell([4.0], 1) == "4.0"
    assert cell([], 3) == "-"


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Small generated data where the big recipes look for theirs."""
    root = tmp_path_factory.mktemp("trees")
    data, wnids = root / "data", datasets.class_list("ImageNet-100")
    make_image_folders(data / "imagenet100" / "train", wnids, each=2)
    make_image_folders(data / "imagenet100" / "val", wnids, each=1)
    for i in (1, 2, 3):
        outliers = datasets.class_list(f"imagenet_outliers_split{i}")[:4]
        make_image_folders(data / f"imagenet_outliers_split{i}" / "val", outliers, each=3)
    make_image_folders(data / "Animals_with_Attributes2" / "JPEGImages", ["antelope", "zebra"], each=5)
    make_cifar100(data, train=200, test=100)
    make_cifar10(data, train=10, test=30)
    make_tiny_imagenet(data, wnids[:3], each=4)
    (root / "datasets").symlink_to(ROOT / "datasets")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("name", "columns"), [("imagenet100", 6), ("cifar100", 11), ("noise", 4)])
def test_the_big_recipes_run_end_to_end_at_a_small_scale(trees, name, columns):
    options = "--size 32 --batch_size 100 --num_workers 0 --model resnet8"
    done = subprocess.run(
        [sys.executable, str(ROOT / "reproduce.py"), str(ROOT / f"recipes/{name}.yaml"), "--scale", "0.002",
         "--jobs", "2", f"--options={options}"],
        cwd=trees, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    table = (trees / f"save/tables/{name}_scale0.002.md").read_text()
    assert "SCALED: 0.2 % of the epochs" in table
    rows = [line.strip("|").split("|")[1 : columns + 1] for line in table.splitlines()[4:] if line.startswith("|")]
    assert len(rows) == {"imagenet100": 3, "cifar100": 6, "noise": 7}[name]
    assert all(float(cell) >= 0 for row in rows for cell in row)


@pytest.mark.slow
def test_the_published_weights_of_both_data_sets_are_evaluated_at_a_small_scale(trees):
    """On made files, so that each is named as not the published one."""
    made = {"RINCE out-in, CIFAR-100": ("resnet50", None), "cross-entropy, ImageNet-100": ("resnet18", 1000)}
    for weights in published.WEIGHTS:
        if weights.name in made:
            (model, classes), small = made[weights.name], weights.data_set == "CIFAR-100"
            form, dataset = ("cifar", "cifar100") if small else ("imagenet", "imagenet_100")
            file = trees / weights.place
            original_checkpoint(file, resnet.encoder(model, small_images=small), form, model, dataset, classes)
    done = subprocess.run(
        [sys.executable, str(ROOT / "reproduce.py"), str(ROOT / "recipes/published.yaml"), "--scale", "0.01",
         "--jobs", "2", "--only", "cifar100_rince_out_in", "imagenet100_cross_entropy",
         "--options=--size 8 --batch_size 100 --num_workers 0"],
        cwd=trees, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    table = (trees / "save/tables/published_scale0.01.md").read_text()
    assert table.count("is not the published file") == 2
    rows = [line.strip("|").split("|") for line in table.splitlines()[4:] if line.startswith("|")]
    assert len(rows) == 8
    for title, *cells, _, _ in rows:
        figures, cifar = [cell.strip() != "-" for cell in cells], "CIFAR-100" in title
        assert figures == [True, *(4 * [cifar]), *(4 * [not cifar])] if title.strip() in made else not any(figures)
        assert all(0 <= float(cell) <= 100 for cell in cells if cell.strip() != "-")


def test_the_recipe_in_the_docs_is_one(monkeypatch, capsys, tmp_path):
    recipe = (ROOT / "docs/recipes.md").read_text().partition("```yaml\ntitle:")[2].partition("```")[0]
    (tmp_path / "own.yaml").write_text(f"title:{recipe}")
    out = printed(monkeypatch, capsys, tmp_path, "own.yaml --scale 0.01 --dry-run")
    assert "--exp_name my_rince --epochs 10 --exp_name my_rince_scale0.01\n" in out
    assert out.count("python retrieval.py") == 2

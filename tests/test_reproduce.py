"""reproduce.py: the documented commands from a recipe, what is done left alone, failures survived, one table."""

import contextlib
import copy
import dataclasses
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import PAPER, ROOT, run
from made_data import make_paper_data, original_checkpoint
from processes import Forked, InTurn, wait_until

import recipes
import reproduce
import util
from datasets import text_files
from engine.cli import config
from engine.encoder import official_checkpoints
from engine.encoder.records import read_table
from engine.run import checkpoint, run_log
from networks import resnet
from recipes import completed, running, table
from recipes.completed import find_record, find_run, same, seconds
from recipes.running import Finder, Runner


def printed(monkeypatch, capsys, folder, words):
    run(monkeypatch, folder, words, "reproduce")
    return capsys.readouterr().out


@pytest.mark.parametrize(("name", "trainings"), [("imagenet100", 3), ("cifar100", 6)])
def test_a_dry_run_prints_exactly_the_documented_commands(monkeypatch, capsys, tmp_path, name, trainings):
    out = printed(monkeypatch, capsys, tmp_path, f"{ROOT}/recipes/{name}.yaml --dry-run")
    documented = [line for line in PAPER if name in line]
    evaluations = documented[trainings:]
    if name == "imagenet100":
        evaluations += [evaluations[-1].replace("split1", f"split{i}") for i in (2, 3)]
        assert "path2chkpt=save/SupCon/imagenet_models/rince_imagenet100\n" in out
        assert "path2chkpt=save/SupCon/imagenet_100_models/imagenet100_ce_baseline_sslAugment\n" in out
    assert len(evaluations) == 5
    want = []
    for training in documented[:trainings]:
        kind = "cross_entropy" if "main_ce" in training else "contrastive"
        want += [training, *(e.replace("--model_type contrastive", f"--model_type {kind}") for e in evaluations)]
    assert [line for line in out.splitlines() if line.startswith("python ")] == want
    assert not (tmp_path / "save").exists()


RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.yaml") if "\nmethods:" in path.read_text())


@pytest.mark.parametrize(
    ("name", "unseen", "count"),
    [("clinc150_held_out", "clinc150_held_out", 50), ("cifar100_features_held_out", "cifar100_held_out", 40)],
)
def test_the_classes_that_a_recipe_holds_out_are_those_it_calls_unseen(name, unseen, count):
    recipe = recipes.read(ROOT / f"recipes/{name}.yaml")
    held_out = recipe["methods"]["supcon"]["with"]["held_out"].split()
    assert (ROOT / f"recipes/{unseen}.txt").read_text().split() == held_out
    assert len(held_out) == count


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_reads_and_gives_each_method_a_run_of_its_own(path):
    recipe, folders, files = recipes.read(path), set(), set()
    for name in recipe["methods"]:
        if file := recipes.given(recipe, name):
            files.add(file)
        else:
            both = [recipes.commands(recipe, name, seed, recipes.Scope())["training"] for seed in (0, 1)]
            folders.update(map(recipes.run_folder, both))
    assert all(len(folder.name) > 2 for folder in folders)
    assert len(folders) / 2 + len(files) == len(recipe["methods"])


@pytest.mark.parametrize("file", sorted((ROOT / "figures").glob("*.json")), ids=lambda path: path.stem)
def test_the_recipe_of_a_stored_table_takes_every_run_of_it(monkeypatch, file):
    monkeypatch.chdir(ROOT)
    stored, recipe = read_table(file), recipes.read(Path(f"recipes/{file.stem}.yaml"))
    runs = {(name, run["seed"]) for name, runs in stored["results"].items() for run in runs}
    assert runs and completed.take_up(recipe, recipes.Scope(stored["seeds"])).keys() == runs


def test_another_seed_and_a_scale_change_the_name_and_shorten_the_epochs(monkeypatch, capsys, tmp_path):
    words = f"{ROOT}/recipes/imagenet100.yaml --only scl_out --seeds 2 --scale 0.02 --dry-run"
    lines = printed(monkeypatch, capsys, tmp_path, words).splitlines()
    first, probe, second = [line for line in lines if "main_supcon" in line or "main_linear" in line][:3]
    assert first.endswith("--loss_type=supcon --epochs 10 --exp_name imagenet100_SCL_out_scale0.02")
    assert second.endswith("--epochs 10 --seed 1 --exp_name imagenet100_SCL_out_seed1_scale0.02")
    assert probe.endswith("--epochs=100 --epochs 2 --lr_decay_epochs 1,2,2")


GOOD = "python main_ce.py --epochs 1 --batch_size 256 --model resnet8 --exp_name good"
PLACE = Path("save/SupCon/digits_models/good")
COLUMNS = {"R@1": "fine.R@1", "fine mAP": "fine.mAP"}
SMALL_RECIPE = {
    "title": "Small",
    "published": {"source": "nobody, 2026", "good": {"R@1": 99.5, "fine mAP": 98}},
    "methods": {
        "bad": {"command": f"{GOOD} --exp_name bad --data_folder nowhere --dataset path"},
        "good": {"title": "a good one", "command": GOOD},
    },
    "evaluations": {"retrieval": {"command": "python retrieval.py --ckpt $path2chkpt/last.pth", "columns": COLUMNS}},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A recipe with a method that fails before one that works, run twice: folder, and what both runs printed."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL_RECIPE))
    return folder, [reproduced(folder) for _ in range(2)]


def reproduced(folder, options="", code=1) -> str:
    """What the recipe, one of whose methods fails, prints."""
    output = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(output),
        pytest.raises(SystemExit, match=f"^{code}$") if code else contextlib.nullcontext(),
    ):
        patch.setattr(subprocess, "Popen", Forked)
        run(patch, folder, f"small.yaml {options}", "reproduce")
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


def test_what_is_done_is_skipped_and_the_table_is_the_same_and_shows_what_was_not_asked_for(small):
    folder, (first, second) = small
    assert first.count(": is done, ") == 0
    assert second.count(": is done, ") == 2
    assert second.count("== bad, seed 0: training: FAILED") == 1
    assert first.partition("## Small")[2] == second.partition("## Small")[2]
    assert "== good" not in reproduced(folder, "--only bad --out other")
    assert "| a good one | 9" in (folder / "other/small.md").read_text()


@pytest.fixture
def done(monkeypatch, small, tmp_path):
    """The working folder: a copy of what the recipe left."""
    monkeypatch.chdir(shutil.copytree(small[0], tmp_path / "done"))


def test_another_checkpoint_or_command_or_protocol_asks_for_another_evaluation(monkeypatch, done):
    command, sha256 = f"python retrieval.py --ckpt {PLACE}/last.pth", util.sha256(PLACE / "last.pth")
    record = find_record(command, sha256)
    assert record["metrics"] and record["protocol"] == config.protocol("retrieval") > 1
    assert find_record(command, "0" * 64) is None
    assert find_record(command + " --labelset coarse", sha256) is None
    Path(record["file"]).write_text(json.dumps({k: v for k, v in record.items() if k != "protocol"}))
    assert find_record(command, sha256) is None
    monkeypatch.setitem(config.PROTOCOL, "main_ce", 2)
    assert find_run([PLACE], GOOD) is None


def test_finished_runs_of_an_earlier_table_are_taken_up_where_save_is_gone(done):
    shutil.move("save/tables/small.json", "small.json")
    shutil.rmtree("save")
    earlier = json.loads(Path("small.json").read_text())
    recipe = SMALL_RECIPE | {"results": "small.json"}
    recipe["evaluations"] = copy.deepcopy(SMALL_RECIPE["evaluations"])
    recipe["evaluations"]["retrieval"]["columns"] = {"mAP, renamed": "fine.mAP"}
    recipe["published"] = None
    Path("small.yaml").write_text(yaml.safe_dump(recipe))
    out = reproduced(Path.cwd())
    assert "== a good one" not in out and "== good, seed 0: is taken from small.json, not trained\n" in out
    assert "== bad, seed 0: training: FAILED" in out and not Path("save/SupCon").exists()
    now = json.loads(Path("save/tables/small.json").read_text())
    (run_then,), (run_now,) = (content["results"]["good"] for content in (earlier, now))
    then, now = run_then.pop("values"), run_now.pop("values")
    assert now == {"mAP, renamed": then["fine mAP"], "seconds": then["seconds"]} and run_now == run_then
    assert run_now["machine"].startswith(config.processor()) and ", torch " in run_now["machine"]


def test_what_comes_last_is_left_out_where_it_needs_a_run_that_was_taken_from_a_table(done):
    shutil.move("save/tables/small.json", "small.json")
    recipe = SMALL_RECIPE | {"results": "small.json", "methods": {"good": SMALL_RECIPE["methods"]["good"]}}
    recipe |= {"published": None, "after": [f"python retrieval.py --labelset both --ckpt {PLACE}"]}
    Path("small.yaml").write_text(yaml.safe_dump(recipe))
    left_out = f"== after: retrieval.py --labelset both: is left out, {PLACE} is not there\n"
    assert left_out not in reproduced(Path.cwd(), code=0)
    shutil.rmtree("save")
    assert left_out in reproduced(Path.cwd(), code=0)


def test_a_run_of_an_earlier_table_counts_for_the_same_commands_and_columns_of_today_alone(monkeypatch, tmp_path):
    def recipe_of(**change):
        content = copy.deepcopy(SMALL_RECIPE) | {"results": "t.json", "published": None}
        for place, value in change.items():
            *path, last = place.split("__")
            functools.reduce(lambda at, key: at[key], path, content)[last] = value
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
        return recipes.read(tmp_path / "r.yaml")

    monkeypatch.chdir(tmp_path)
    runs = [{"seed": s, "values": {"R@1": 1.0, "fine mAP": 2.0}, "protocols": {"retrieval.py": 4}} for s in (0, 1)]
    runs.append({"seed": 2, "values": {"R@1": 1.0}})  # an evaluation failed
    about = {"command": [], "failures": []}
    table.write(tmp_path / "t", recipe_of(), {"good": runs, "bad": []}, recipes.Scope(3), about)

    def taken(scope=None, **change):
        return list(completed.take_up(recipe_of(**change), scope or recipes.Scope(4)))

    assert taken() == [("good", 0), ("good", 1)]
    assert taken(methods__good__title="other", methods__bad__command=f"{GOOD} --exp_name bad") == taken()
    assert taken(methods__good__command=GOOD.replace("--exp_name", "--overwrite --exp_name")) == taken()
    assert taken(recipes.Scope(1)) == [("good", 0)]
    columns = {"x": "fine.R@1"}
    assert taken(evaluations__retrieval__columns=columns) == [("good", 0), ("good", 1), ("good", 2)]
    (found,) = completed.take_up(recipe_of(evaluations__retrieval__columns=columns), recipes.Scope()).values()
    assert found["values"] == {"x": 1}
    more = {"command": "python retrieval.py --ckpt $path2chkpt --labelset coarse", "columns": {"y": "coarse.mAP"}}
    nothing = [
        {"methods__good__command": GOOD.replace("256", "128")},
        {"evaluations__retrieval__command": "python retrieval.py --ckpt $path2chkpt --knn_vote 3"},
        {"evaluations__retrieval__columns": {"AP": "fine.AP"}},
        {"evaluations__more": more},
        {"results": "none.json"},
        {"results": None},
    ]
    assert [taken(**change) for change in nothing] == [[]] * len(nothing)
    assert taken(recipes.Scope(4, 0.5)) == taken(recipes.Scope(4, 1.0, "--size 8")) == []
    monkeypatch.setitem(config.PROTOCOL, "retrieval", 5)
    assert taken() == []


def test_what_comes_before_the_methods_is_left_out_where_none_is_to_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    called = []
    monkeypatch.setattr(Runner, "call", lambda self, title, command, show=False: called.append(title))
    recipe = {"title": "T", "methods": {"a": {"command": GOOD}}, "before": [{"command": "python -m x", "makes": "y"}]}
    recipe |= {"evaluations": SMALL_RECIPE["evaluations"], "after": [], "jobs": 1, "published": None, "baseline": None}
    recipe |= {"about": "", "results": "t.json", "means": {}}
    run_of_a = {"seed": 0, "values": {"R@1": 1.0, "fine mAP": 2.0}}
    for results, want in (({"a": []}, ["before: -m x", "a, seed 0: training"]), ({"a": [run_of_a]}, [])):
        table.write(tmp_path / "t", recipe, results, recipes.Scope(), {"command": [], "failures": []})
        called.clear()
        reproduce.run_recipe(recipe, ["a"], recipes.Scope(), reproduce.get_parser().parse_args(["r.yaml"]))
        assert called == want


def test_a_training_that_was_cut_off_goes_on_and_another_command_does_not_count(monkeypatch, done, tmp_path):
    called, runner = [], Runner(tmp_path, 1)
    monkeypatch.setattr(Runner, "call", lambda self, title, command: called.append(command))
    assert (runner.train("t", GOOD), called) == (PLACE, [])
    runner.train("t", GOOD + " --seed 7")
    # cut off, although the log may have the epoch whose checkpoint could not be written any more
    checkpoint.save(PLACE / "last.pth", {**checkpoint.load(PLACE), "epoch": 0, "step": 3})
    runner.train("t", GOOD)
    (PLACE / "last.pth").rename(PLACE / "previous.pth")
    runner.train("t", GOOD)
    assert called == [GOOD + " --seed 7", *2 * [f"{GOOD} --resume {PLACE}"]]


def test_a_run_is_the_commands_if_each_start_from_scratch_on_was_its_own_with_its_options(done):
    file = PLACE / "starts.jsonl"
    (start,) = run_log.read_json_lines(file)
    assert find_run([PLACE], GOOD) == PLACE and seconds(PLACE) > 0

    def with_options(**change):
        return {**start, "options": {name: x for name, x in (start["options"] | change).items() if x != "unknown"}}

    own = {**start, "after_epoch": 1, "resumed": str(PLACE / "last.pth")}
    other, free = with_options(learning_rate=7.0), with_options(num_workers=7)
    older = with_options(precision="unknown")  # an option that is younger than the run
    from_another = {**own, "resumed": str(PLACE.parent / "another/last.pth")}
    for starts, wanted in (
        ([start, own], PLACE), ([other, start, own], PLACE), ([free, own], PLACE), ([older, own], PLACE),
        ([other, own], None), ([start, from_another], None), ([own], None), ([], None),
    ):  # fmt: skip
        file.write_text("".join(json.dumps(record) + "\n" for record in starts))
        assert find_run([PLACE], GOOD) == wanted
        assert starts != [start, own] or seconds(PLACE) is None  # the time of the epoch it was cut off in is lost


@pytest.mark.parametrize(
    ("called", "alike"),
    [
        ("main_ce.py --epochs 1 --exclude_classes 4 --resume auto", True),
        ("/x/main_ce.py --resume=auto --epochs 1 --overwrite --exclude_classes 4", True),
        ("main_ce.py --epochs 1 --overwrite=True --hold_out 4 --overwrite True", True),  # in its old spelling
        ("main_ce.py --epochs 2 --exclude_classes 4", False),
        ("main_supcon.py --epochs 1 --exclude_classes 4", False),
    ],
)
def test_how_a_run_was_started_and_an_option_is_spelt_is_no_part_of_its_command(called, alike):
    assert same(called.split(), "python main_ce.py --epochs 1 --exclude_classes 4") == alike


def test_a_fault_of_one_method_ends_that_method_alone(done):
    place = Path("save/SupCon/path_models/bad")
    place.mkdir(parents=True)
    (place / "config.yaml").write_text("epochs: 1\n")
    Path("save/results/none.json").write_text("[]")
    Path("save/results/empty.json").write_text("")
    printed = reproduced(Path.cwd())
    assert "FAILED: bad, seed 0 (save/SupCon/path_models/bad/config.yaml: has no command that the run was" in printed
    assert "| a good one | 9" in printed


def test_a_column_that_no_record_has_is_a_failure_of_its_own(done, tmp_path):
    recipe, runner = recipes.read(Path("small.yaml")), Runner(tmp_path, 1)
    recipe["evaluations"]["retrieval"]["columns"] = {"wrong": "fine.R@2", "R@1": "fine.R@1"}
    assert list(running.run_method(recipe, "good", 0, recipes.Scope(), runner)["values"]) == ["R@1", "seconds"]
    why = runner.failures[0]["why"]
    assert "no value fine.R@2 for column wrong; did you mean fine.R@" in why
    there = "fine.R@1, fine.R@5, fine.R@10, fine.R@20, fine.AP, fine.AP-published, fine.mAP"
    assert f"; it has {there}, in save/results/" in why


WAITING = 'python -c \'import time, os; open("pid", "w").write(str(os.getpid())); time.sleep(600)\' --exp_name x'


@pytest.mark.parametrize(
    ("place", "number", "code", "line"),
    [
        (
            {"before": [WAITING]},
            signal.SIGINT,
            130,
            "reproduce.py: stopped; the same command continues\n",
        ),
        ({"methods": {"good": {"command": WAITING}}, "jobs": 2}, signal.SIGTERM, 143, ""),
    ],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_signal_ends_what_runs_before_or_in_the_methods_too(tmp_path, place, number, code, line):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(SMALL_RECIPE | place))
    command, pid = [sys.executable, str(ROOT / "reproduce.py"), "r.yaml"], tmp_path / "pid"
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: pid.is_file() and pid.read_text(), process)
        process.send_signal(number)
        assert (process.wait(30), process.stderr.read().decode()) == (code, line)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


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
            "command": "python retrieval.py --ckpt=$path2chkpt/", "columns": {"R@1": "fine.R@1"}, "for": ["right"],
        },
        "probe": {
            "command": "python main_linear.py --epochs 2 --cache_features --ckpt $path2chkpt/last.pth",
            "columns": {"probe best": "best.top-1"}, "scaled": {"epochs": 2}, "for": ["right", "nowhere"],
        },
        "far": {
            "command": "python retrieval.py --ckpt $path2chkpt/previous.pth --labelset coarse",
            "columns": {"probe best": "coarse.R@1"}, "for": ["missing"],
        },
    },
}  # fmt: skip


def test_a_dry_run_of_given_checkpoints_needs_no_file_and_names_the_one_to_evaluate(monkeypatch, capsys, tmp_path):
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(GIVEN, sort_keys=False))
    out = printed(monkeypatch, capsys, tmp_path, "given.yaml --seeds 3 --scale 0.5 --dry-run")
    assert out == (
        "\n# missing, data/published/CIFAR-100/RINCE_in/last.pth\npath2chkpt=data/published/CIFAR-100/RINCE_in\n"
        "python retrieval.py --ckpt $path2chkpt/previous.pth --labelset coarse\n"
        "\n# nowhere, nowhere.pth\npath2chkpt=.\n"
        "python main_linear.py --epochs 2 --cache_features --ckpt $path2chkpt/nowhere.pth --epochs 1 "
        "--exp_name nowhere_probe_scale0.5\n"
        "\n# another file, data/published/CIFAR-100/SCL_in/last.pth\npath2chkpt=data/published/CIFAR-100/SCL_in\n"
        "\n# the file, data/published/ImageNet-100/CE/ckpt_epoch_500.pth\npath2chkpt=data/published/ImageNet-100/CE\n"
        "python retrieval.py --ckpt=$path2chkpt/ckpt_epoch_500.pth\n"
        "python main_linear.py --epochs 2 --cache_features --ckpt $path2chkpt/ckpt_epoch_500.pth --epochs 1 "
        "--exp_name right_probe_scale0.5\n"
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "given.yaml"]


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
    weights = [
        dataclasses.replace(w, sha256=util.sha256(file)) if w.classes else w for w in official_checkpoints.WEIGHTS
    ]
    printed, called = [], []
    with pytest.MonkeyPatch.context() as patch:

        def call(self, title, command, show=False):
            called[-1].append(title)
            run(patch, folder, command)
            return True

        patch.setattr(official_checkpoints, "WEIGHTS", tuple(weights))
        patch.setattr(Runner, "call", call)
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
    assert out.count(f"--ckpt {place}: these are the official weights cross-entropy, ImageNet-100\n") == 2


def test_files_that_are_missing_or_others_than_the_published_ones_are_named_with_hash_and_place(given):
    folder, (out, _), _ = given
    table = (folder / "save/tables/given.md").read_text()
    (weights,) = [w for w in official_checkpoints.WEIGHTS if w.name == "RINCE in, CIFAR-100"]
    missing = "data/published/CIFAR-100/RINCE_in/last.pth: no such file; put the published weights RINCE in, CIFAR-100 "
    missing += f"(RINCE_in/last.pth, SHA-256 {weights.sha256}) there"
    other = "data/published/CIFAR-100/SCL_in/last.pth"
    warning = f"{other} is not the published file: its SHA-256 is {util.sha256(folder / other)}, not that of the pub"
    assert f"== missing: FAILED: {missing}\n" in out and out.count(f"== other: warning: {warning}") == 1
    assert f"FAILED: missing ({missing})\n" in table and table.count(f"WARNING: {warning}") == 1
    assert "FAILED: nowhere (nowhere.pth: no such file)\n" in table and table.count("FAILED") == 2
    assert "ckpt_epoch_500.pth is not" not in out + table


def test_a_scale_shortens_the_probe_of_a_given_checkpoint_beside_the_whole_one(given):
    folder, (_, out), (_, called) = given
    assert out.count("== right: retrieval: is done, ") == 1
    assert called == ["right: probe"]
    files = folder.glob("save/linear/*/*/config.yaml")
    runs = {place.parent.name: text_files.read_yaml(place, "")["epochs"] for place in files}
    (whole,) = [name for name in runs if name.startswith("CE_ckpt_epoch_500_")]
    assert runs == {whole: 2, "right_probe_scale0.5": 1}
    assert "SCALED: 50 % of the epochs" in (folder / "save/tables/given_scale0.5.md").read_text()


def test_runs_are_made_seed_by_seed_and_a_method_has_no_more_than_its_own_number_of_them(monkeypatch):
    def attempt(recipe, name, seed, scope, runner):
        if isinstance(runner, Runner) and not isinstance(runner, Finder):
            made.append((name, seed))
        return {"seed": seed, "values": {}, "records": {}}

    made = []
    monkeypatch.setattr(reproduce, "attempt", attempt)
    recipe = {"methods": {"once": {"command": GOOD, "seeds": "1"}, "a": {"command": GOOD}, "b": {"command": GOOD}}}
    found = reproduce.run_methods(recipe, ["once", "a"], recipes.Scope(seeds=3), Runner(Path(), 1), lambda *of: None)
    assert made == [("once", 0), ("a", 0), ("a", 1), ("a", 2)]
    assert {name: [run["seed"] for run in runs] for name, runs in found.items()} == {
        "once": [0], "a": [0, 1, 2], "b": [0, 1, 2],
    }  # fmt: skip


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Small generated data where the big recipes look for theirs."""
    root = tmp_path_factory.mktemp("trees")
    make_paper_data(root)
    (root / "datasets").symlink_to(ROOT / "datasets")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("name", "columns", "methods"), [("imagenet100", 6, 3), ("cifar100", 11, 6), ("noise", 4, 7)])
def test_the_big_recipes_run_end_to_end_at_a_small_scale(trees, name, columns, methods):
    command = [sys.executable, str(ROOT / "reproduce.py"), str(ROOT / f"recipes/{name}.yaml"), "--scale", "0.002"]
    command += ["--jobs", "2", "--options=--size 32 --model resnet8 --batch_size 100 --num_workers 0"]
    done = subprocess.run(command, cwd=trees, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    table = (trees / f"save/tables/{name}_scale0.002.md").read_text()
    rows = [line.strip("|").split("|") for line in table.splitlines()[4:] if line.startswith("|")]
    assert "SCALED: 0.2 % of the epochs" in table
    assert len(rows) == methods
    assert all(float(cell) >= 0 for row in rows for cell in row[1 : columns + 1])


def test_the_recipe_in_the_docs_is_one(monkeypatch, capsys, tmp_path):
    recipe = (ROOT / "docs/recipes.md").read_text().partition("```yaml\ntitle:")[2].partition("```")[0]
    (tmp_path / "own.yaml").write_text(f"title:{recipe}")
    out = printed(monkeypatch, capsys, tmp_path, "own.yaml --scale 0.01 --dry-run")
    assert "--exp_name my_rince --epochs 10 --exp_name my_rince_scale0.01\n" in out
    assert out.count("python retrieval.py") == 2

"""What an option means is said where it is declared; resumes, records, configs, cards and files go by that."""

import importlib
import shlex

import pytest
from commands import CE, run

import util
from engine import config, export, options, resuming
from engine.parsing import Means
from util import InputError

NEEDED = {"main_supcon": "", "main_ce": "", "main_linear": "--ckpt a", "retrieval": "--ckpt a"}
NEEDED["out_of_dist_detection"] = "--ckpt a --dataset_outliers digits"
TRAININGS, RECORDS = tuple(NEEDED)[:3], tuple(NEEDED)[1:]
ALL = [(s, a) for s in NEEDED for a in importlib.import_module(s).get_parser()._actions if a.dest != "help"]

# what no resume may change, and what it may change without a word
FIXED = {"dataset", "model", "optimizer", "feat_dim", "memorybank_size", "cache_features"}
RUNNING = {
    "exp_name", "save_folder", "save_freq", "save_minutes", "print_freq", "num_workers", "nproc_per_node", "world_size",
    "rank", "dist_url", "dist_backend", "timeout_minutes", "keep_checkpoints", "max_hours", "detect_anomaly",
    "knn_freq", "features_cache", "resume", "overwrite",
}  # fmt: skip
FREE = RUNNING | {"check_data", "augment_on", "init", "pretrained"}
# what the hash of a record has in another form
BY_CONTENT = {"ckpt", "data_folder", "data_folder_outliers"}


def parsed(script, words=""):
    module = importlib.import_module(script)
    recipes = getattr(module, "RECIPES", options.SMALL_DATA)
    return config.parse_words(module.get_parser(), recipes, shlex.split(f"{NEEDED[script]} {words}"), script)


@pytest.mark.parametrize(("script", "action"), ALL, ids=lambda x: getattr(x, "dest", x))
def test_every_option_of_every_script_says_what_it_means_and_those_of_paths_whether_they_name_a_file(script, action):
    assert action.means is not None, "give it or its group `means`"
    if action.type in (util.user_text, util.user_path) or action.metavar in ("FILE", "DIR"):
        assert Means.FILE in action.means or Means.RUNNING in action.means


@pytest.mark.parametrize("script", TRAININGS)
def test_a_resume_refuses_names_or_passes_over_every_option(script):
    args = parsed(script)
    now = options.plain(args)
    for name in now:
        before = {**now, name: "other"}
        if name in FIXED:
            with pytest.raises(InputError, match=f"^x: was trained with --{name} other, not "):
                resuming.changed_options(before, now, args.means, "x")
        else:
            found = resuming.changed_options(before, now, args.means, "x")
            assert found == ({} if name in FREE else {name: f"--{name} {now[name]} (was other)"})


@pytest.mark.parametrize("script", RECORDS)
def test_the_hash_of_a_record_has_every_option_that_a_result_depends_on_and_no_other(script):
    args = parsed(script)
    before = options.recorded(args).hashed
    for name in vars(args):
        changed = parsed(script)
        setattr(changed, name, "other")
        assert (options.recorded(changed).hashed == before) == (name in RUNNING | BY_CONTENT), name


def test_configs_and_cards_have_the_options_that_say_so():
    means = {name: of for script, _ in ALL for name, of in parsed(script).means.items()}
    assert {name for name, of in means.items() if Means.START in of} == {"resume", "overwrite"}
    images = {"dataset", "data_folder", "size", "mean", "std", "hold_out", "skip_images", "images_per_class"}
    assert {name for name, of in means.items() if Means.IMAGES in of} == images
    assert {*export.told_options()} == {
        "loss_type", "variant", "ranking", "thresholds", "epochs", "batch_size", "optimizer", "learning_rate",
        "weight_decay", "seed", "images_per_class", "hold_out",
    }  # fmt: skip


def test_a_result_has_one_record_however_it_was_run(monkeypatch, digits, tmp_path):
    probe, retrieval = f"--ckpt {digits / CE} --cache_features --epochs 1 --overwrite", f"--ckpt {digits / CE}"
    for words in ("", "--max_hours 9", "--save_minutes 5 --keep_checkpoints 2", "--timeout_minutes 31"):
        run(monkeypatch, tmp_path, f"{probe} {words}", "main_linear")
    for words in ("", "--timeout_minutes 31"):
        run(monkeypatch, tmp_path, f"{retrieval} {words}", "retrieval")
    records = sorted(file.name.partition("_")[0] for file in (tmp_path / "save/results").glob("*.json"))
    assert records == ["linear", "retrieval"]

"""What an option means is said where it is declared; resumes, records, configs, cards and files go by that."""

import importlib
import shlex

import pytest
from commands import run
from made_data import make_image_folders

import datasets
import util
from engine import export
from engine.cli import config, options
from engine.cli.parsing import Means
from engine.run import checkpoint, resume
from util import InputError

NEEDED = {"main_supcon": "", "main_ce": "", "main_linear": "--ckpt a", "retrieval": "--ckpt a"}
NEEDED["out_of_dist_detection"] = "--ckpt a --dataset_outliers digits"
TRAININGS, RECORDS = tuple(NEEDED)[:3], tuple(NEEDED)[1:]
ALL = [(s, a) for s in NEEDED for a in importlib.import_module(s).get_parser()._actions if a.dest != "help"]

# what no resume may change, and what it may change without a word
FIXED = {"dataset", "model", "optimizer", "feat_dim", "memorybank_size", "cache_features"}
FIXED |= {"normalize", "hidden_dim", "batch_norm", "heads"}
RUNNING = {
    "exp_name", "save_folder", "save_freq", "save_minutes", "print_freq", "num_workers", "nproc_per_node", "world_size",
    "rank", "dist_url", "dist_backend", "timeout_minutes", "keep_checkpoints", "max_hours", "detect_anomaly",
    "knn_freq", "features_cache", "resume", "overwrite",
}  # fmt: skip
FREE = RUNNING | {"check_data", "augment_on", "init", "pretrained"}
# what the hash of a record has in another form
BY_CONTENT = {"ckpt", "data_folder", "data_folder_outliers", "features", "features_val", "features_outliers"}


def parsed(script, words=""):
    module = importlib.import_module(script)
    recipes = getattr(module, "RECIPES", options.SMALL_DATA)
    return config.parse_words(module.get_parser(), recipes, shlex.split(f"{NEEDED[script]} {words}"), script)


@pytest.mark.parametrize(("script", "action"), ALL, ids=lambda x: getattr(x, "dest", x))
def test_every_option_of_every_script_says_what_it_means_and_those_of_paths_whether_they_name_a_file(script, action):
    assert action.means is not None, "give it or its group `means`"
    if action.type in (util.user_text, util.user_path) or action.metavar in ("FILE", "FOLDER"):
        assert Means.FILE in action.means or Means.RUNNING in action.means


@pytest.mark.parametrize("script", TRAININGS)
def test_a_resume_refuses_names_or_passes_over_every_option(script):
    args = parsed(script)
    now = options.plain(args)
    for name, spelling in args.spelling.items():
        before = {**now, name: "other"}
        if name in FIXED & now.keys():
            with pytest.raises(InputError, match=f"^x: was trained with {spelling} other, not "):
                resume.find_changed_options(before, now, args, "x")
        elif name in now:
            found = resume.find_changed_options(before, now, args, "x")
            assert found == ({} if name in FREE else {name: f"{spelling} {now[name]} (was other)"})


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
    vectors = {"features", "features_val", "labels", "labels_val", "class_names", "label_columns", "normalize"}
    vectors |= {"values"}  # of images as well
    assert {name for name, of in means.items() if Means.IMAGES in of} == images | vectors
    assert {*export.list_card_options()} == {
        "loss_type", "variant", "ranking", "thresholds", "epochs", "batch_size", "optimizer", "learning_rate",
        "weight_decay", "seed", "images_per_class", "hold_out", "positives", "target_tau", "sigma", "margin",
        "values", "use_ssl_augmentations", "targets", "beta", "epsilon", "heads", "superclasses",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("script", "old", "new"),
    [
        ("main_supcon", "--m 0.9", "--momentum_encoder_decay 0.9"),
        ("main_supcon", "--rank 1", "--node_rank 1"),
        ("main_ce", "--colour 0.5 --hold_out a b", "--color 0.5 --exclude_classes a b"),
        ("retrieval", "--within test --knn_k 5", "--gallery test --knn_vote 5"),
    ],
)
def test_an_option_means_the_same_by_its_old_spelling(script, old, new):
    assert vars(parsed(script, old)) == vars(parsed(script, new))


# ---- resumed on other images -----------------------------------------------------------------------------------------

RUN = "--dataset path --size 32 --batch_size 4 --model resnet8 --num_workers 0"
A = "save/SupCon/path_models/a"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Twelve images, a run of one epoch on them, and copies in other folders, of which two lack an image, or a name."""
    root = tmp_path_factory.mktemp("images")
    for name in ("first", "moved/further", "fewer", "renamed"):
        for split in ("train", "val"):
            make_image_folders(root / name / split, ["cat", "dog"], each=6)
    (root / "fewer/train/cat/cat_3.JPEG").unlink()
    (root / "renamed/train/dog/dog_3.JPEG").rename(root / "renamed/train/dog/other.JPEG")
    (root / "skipped.txt").write_text("# none yet\n")
    with pytest.MonkeyPatch.context() as patch:
        run(patch, root, f"{RUN} --exp_name a --epochs 1 --data_folder first", "main_ce")
    return root


@pytest.mark.parametrize(
    ("folder", "fault"),
    [
        ("fewer", "was trained on 12 images, --data_folder fewer has 11; give the images that it was trained on, or "),
        ("renamed", "was trained on images of other names, or in another order, than --data_folder renamed has; "),
    ],
)
def test_other_images_in_the_place_of_a_runs_own_are_refused(monkeypatch, capsys, begun, folder, fault):
    with pytest.raises(SystemExit, match=r"^2$"):
        run(monkeypatch, begun, f"{RUN} --epochs 2 --exp_name {folder} --resume {A} --data_folder {folder}", "main_ce")
    printed = capsys.readouterr()
    assert f"main_ce.py: error: --resume {A}: {fault}" in printed.err
    assert f"resumed with other options: --data_folder {folder} (was first), --epochs 2 (was 1)" in printed.out
    assert not (begun / A).with_name(folder).exists()


def test_a_run_goes_on_where_its_images_were_moved_or_a_named_option_leaves_some_out(monkeypatch, capsys, begun):
    moved = f"{RUN} --exp_name moved --data_folder moved/further --skip_images skipped.txt"
    run(monkeypatch, begun, f"{moved} --epochs 2 --resume {A}", "main_ce")
    others = "--data_folder moved/further (was first), --skip_images skipped.txt (was None), --epochs 2 (was 1)"
    assert f"resumed with other options: {others}\n" in capsys.readouterr().out
    (begun / "skipped.txt").write_text("moved/further/train/dog/dog_5.JPEG\n")
    run(monkeypatch, begun, f"{moved} --epochs 3 --resume auto", "main_ce")
    assert ", --skip_images skipped.txt (its content was another)\n" in capsys.readouterr().out
    assert checkpoint.load((begun / A).with_name("moved"))["images"]["count"] == 11


def test_a_checkpoint_that_does_not_know_its_images_goes_on_with_any(monkeypatch, capsys, begun):
    state = checkpoint.load(begun / A)
    checkpoint.save(begun / "older.pth", {k: v for k, v in state.items() if k not in ("images", "files")})
    run(monkeypatch, begun, f"{RUN} --epochs 2 --exp_name old --resume older.pth --data_folder fewer", "main_ce")
    assert "--data_folder fewer (was first)" in capsys.readouterr().out


def test_a_pack_has_the_names_of_the_images_that_it_was_made_of(monkeypatch, begun):
    run(monkeypatch, begun, "pack --data_folder first --out packed --side 64", "datasets.prepare")
    folder, pack = (datasets.build("path", begun / name).images for name in ("first", "packed"))
    assert resume.describe_images(folder) == resume.describe_images(pack)


def test_a_folder_has_the_names_of_its_images_from_inside_it_too():
    inside, outside = (["a/0.png", "b/0.png"], ["/d/a/0.png", "/d/b/0.png"])
    assert resume.describe_images(inside) == resume.describe_images(outside)

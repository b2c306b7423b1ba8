"""Images as they lie in Parquet, tar, zip and metadata.jsonl: in every script the same data set as a folder of them."""

import json
import os
import pickle
import shutil
import subprocess
import tarfile
import zipfile

import processes
import pytest
import torch
from commands import result, run
from made_data import make_image_folders
from made_shards import CLASSES, FORMS, LAST, RUN, jpeg, place_of, shard, write_parquet, write_tar

import datasets
from datasets import decoding, stored_files
from util import InputError


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_folders_classes_order_labels_and_pixels(made, form):
    for ours, theirs in zip(*(datasets.build_pair("path", place_of(made, f)) for f in (form, "mine")), strict=True):
        assert ours.classes == theirs.classes == CLASSES
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert len({*ours.names()}) == len(ours) == len(theirs)
        for i in range(len(ours)):
            assert torch.equal(ours.pixels(i), theirs.pixels(i))
            assert ours.image(i).tobytes() == theirs.image(i).tobytes()


def weights(folder):
    """The model of the run in a folder."""
    return torch.load(folder / LAST, weights_only=True)["model"]


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.fixture(scope="module")
def of_folder(made, tmp_path_factory):
    """The models that the folder trains, by processes: (run in, model)."""
    found = {}
    for count in (1, 2):
        place = tmp_path_factory.mktemp(f"by{count}")
        code, printed = processes.call(place, train_words(made, "mine", count, workers=0))
        assert code == 0, printed
        found[count] = place, weights(place)
    return found


def train_words(made, form, count=1, workers=0):
    """The options of a training on a form."""
    return [
        *RUN.split(),
        "--data_folder",
        str(place_of(made, form)),
        *f"--num_workers {workers} --nproc_per_node {count}".split(),
    ]


@pytest.mark.parametrize("form", FORMS)
def test_trainings_are_bit_identical_and_evaluations_equal(monkeypatch, tmp_path, made, of_folder, form):
    run(monkeypatch, tmp_path, f"{RUN} --num_workers 0 --data_folder '{place_of(made, form)}'")
    assert_equal(weights(tmp_path), of_folder[1][1])
    found = []
    for place in ("mine", form):
        shutil.rmtree(tmp_path / "save/results", ignore_errors=True)
        evaluate = f"--dataset path --data_folder '{place_of(made, place)}' --ckpt {LAST} --num_workers 0 --size 32"
        run(monkeypatch, tmp_path, evaluate, "retrieval")
        found.append(result(tmp_path, "retrieval_*")["metrics"])
    assert found[0] == found[1]


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_with_two_workers_each_train_the_same(made, cache, tmp_path, of_folder, form):
    place = tmp_path / "run"
    process = processes.start(place, train_words(made, form, 2, workers=2), env={"RINCE_CACHE": str(cache)})
    process.join()
    assert process.exitcode == 0, (place / "output.txt").read_text()
    assert_equal(weights(place), of_folder[2][1])


@pytest.mark.parametrize("form", ["parquet", "tar", "zip"])
def test_a_training_that_is_killed_resumes_to_the_same_bits(made, cache, tmp_path, of_folder, form):
    words = [w for w in train_words(made, form) if w != "--overwrite"]
    words += ["--save_minutes", "1e-9", "--resume", "auto"]
    env, place = {"RINCE_CACHE": str(cache)}, tmp_path / "run"
    process = processes.start(place, words, slow_writes=0.5, env=env)
    processes.wait_until((place / LAST).exists, process)
    process.kill()
    process.join()
    process = processes.start(place, words, env=env)
    process.join()
    printed = (place / "output.txt").read_text()
    assert process.exitcode == 0, printed
    assert "resumed save" in printed and "in epoch 1, after step" in printed
    assert_equal(weights(place), of_folder[1][1])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_packed_and_a_pack_knows_its_images(monkeypatch, tmp_path, made, form):
    command = f"pack --data_folder '{place_of(made, form)}' --out packs --side 64 --check"
    for _ in range(2):  # the second time it is there already
        run(monkeypatch, tmp_path, command, "datasets.prepare")
    for ours, theirs in zip(*(datasets.build_pair("path", f) for f in ("packs", place_of(made, form))), strict=True):
        assert ours.names() == theirs.names()
        assert ours.labels.tolist() == theirs.labels.tolist()
        plain = [i for i in range(len(ours)) if ours.labels[i] == 0]  # JPEGs that go in as they are
        assert all(torch.equal(ours.pixels(i), theirs.pixels(i)) for i in plain)


@pytest.mark.parametrize("form", FORMS)
def test_outliers_among_them_are_known_by_their_names_and_a_list_leaves_images_out(monkeypatch, tmp_path, made, form):
    (tmp_path / "link").symlink_to(place_of(made, form))
    train, test = datasets.build_pair("path", place_of(made, form))
    for split, count in (("test", len(test)), ("train", len(train)), ("all", len(train) + len(test))):
        assert len(datasets.build_outliers("path", place_of(made, form), split)) == count
    if form != "list":  # a link to a zip is no zip by its name
        shutil.move(tmp_path / "link", tmp_path / f"link{place_of(made, form).suffix}")
        outliers = datasets.build_outliers("path", tmp_path / f"link{place_of(made, form).suffix}")
        with pytest.raises(InputError, match="OOD images are validation images"):
            datasets.check_outliers(train, test, outliers, False, "link")
    monkeypatch.chdir(tmp_path)
    decoding.write_list(tmp_path / "skip.txt", [train.images[2], test.images[1]])
    ours, theirs = datasets.build_pair("path", place_of(made, form), datasets.Selection(skip="skip.txt"))
    assert (len(ours), len(theirs)) == (len(train) - 1, len(test) - 1)
    assert train.names()[2] not in ours.names()
    decoding.write_list(tmp_path / "skip.txt", [test.images[1]])  # of another part
    assert len(datasets.build("path", place_of(made, form), which=datasets.Selection(skip="skip.txt"))) == len(train)
    with pytest.raises(InputError, match="is a file"):
        (tmp_path / "skip.txt").write_text("nowhere.tar:cat_0.jpg\n")
        datasets.build_pair("path", place_of(made, form), datasets.Selection(skip="skip.txt"))


# ---- what lies where -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "place", "found"),
    [
        ("train-0 train-1 val-0", "", (2, 1)),
        ("imagenet1k-train-0 imagenet1k-validation-0", "", (1, 1)),
        ("data/train-0 data/validation-0 data/test-0 data/test-1", "", (1, 1)),
        ("data/train-0 data/test-0 data/test-1", "", (1, 2)),
        ("train/0 train/1 val/0", "", (2, 1)),
        ("train/0 train/1 val/0", "train", (2, 1)),
        ("a-0 a-1 a-2 a-3", "a-{1..3}.tar", (3, 0)),
        ("train-008 train-009 train-010 val-008", "{train,val}-{008..010}.tar", None),
        ("train-008 train-009 val-008 val-009", "{train,val}-{008..009}.tar", (2, 2)),
        ("train-0 train-1", "train-*.tar", (2, 0)),
        ("train-0 val-0", "train-0.tar", (1, 0)),
    ],
)
def test_files_names_or_folders_say_the_split(tmp_path, names, place, found):
    for name in names.split():
        shard(tmp_path / f"{name}.tar", "x")
    if found is None:
        with pytest.raises(InputError, match=r"--data_folder .*val-009\.tar: no such file"):
            datasets.build("path", tmp_path / place)
        return
    assert len(datasets.build("path", tmp_path / place)) == found[0]
    if found[1]:
        assert len(datasets.build("path", tmp_path / place, "test")) == found[1]
    else:
        with pytest.raises(InputError, match="holds no validation image; name files or folders"):
            datasets.build("path", tmp_path / place, "test")


def test_an_empty_shard_is_none_and_one_without_labels_is_named(tmp_path):
    shard(tmp_path / "train-1.tar")
    write_tar(tmp_path / "train-0.tar", [])
    assert len(datasets.build("path", tmp_path)) == 2
    write_tar(tmp_path / "train-0.tar", [("x.jpg", jpeg())])
    with pytest.raises(
        InputError, match=r"train-1\.tar: its columns of labels are others than those of .*train-0\.tar"
    ):
        datasets.build("path", tmp_path)


def test_class_folders_and_packs_count_more_than_shards_next_to_them(tmp_path):
    make_image_folders(tmp_path / "mine/train", ["a", "b"], each=2)
    shard(tmp_path / "mine/train-0.tar")
    assert isinstance(datasets.build("path", tmp_path / "mine").images[0], str)


@pytest.mark.parametrize("archive", ["x.tar.gz", "x.tgz"])
def test_what_images_were_downloaded_in_counts_less_than_they_at_whatever_depth(tmp_path, archive):
    for name in ("a", "b"):
        make_image_folders(tmp_path / "mine" / name, ["inner"], each=2)
    (tmp_path / "mine" / archive).write_bytes(b"\x1f\x8b")
    assert (
        len(datasets.build("path", tmp_path / "mine")) == len(datasets.build_outliers("path", tmp_path / "mine")) == 4
    )


def test_files_that_say_no_split_next_to_those_that_do_are_counted(tmp_path):
    for name in ("train-0", "more", "val-0"):
        shard(tmp_path / f"{name}.tar")
    data = datasets.build("path", tmp_path)
    left_out = f"left out: 1 files whose names say no split (such as {tmp_path}/more.tar)"
    assert (len(data), data.left_out.describe()) == (2, left_out)
    assert len(datasets.build_outliers("path", tmp_path, "all")) == 6
    (tmp_path / "train-0.tar").unlink()
    assert not datasets.build("path", tmp_path, "test").left_out.describe()


@pytest.mark.parametrize("more", ["README.txt", "cat/notes.txt", "info.json", "cat/cat_1.png", "eel/cat_1.a.jpg"])
def test_class_folders_in_a_tar_are_those_that_it_unpacks_to(tmp_path, more):
    folder = tmp_path / "x.tar"  # a folder, whatever its name
    make_image_folders(folder, ["cat", "eel"], each=2)
    content = {".txt": b"a text", ".json": b'{"version": 1}'}.get((folder / more).suffix, jpeg())
    (folder / more).write_bytes(content)
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(folder, ".")
    ours, theirs = (datasets.build("path", place) for place in (tmp_path / "all.tar", folder))
    assert (labels_of(ours), ours.classes) == (labels_of(theirs), theirs.classes)
    assert all(torch.equal(ours.pixels(i), theirs.pixels(i)) for i in range(len(theirs)))


def test_names_in_a_zip_are_those_that_it_unpacks_to(tmp_path):
    names = ["é", "日本", "e\u0301t"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name in names:
            file.writestr(f"{name}\\1.jpg", jpeg())  # as Windows writes it
    content = (tmp_path / "a.zip").read_bytes()
    for mark, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):  # macOS and Info-ZIP do not say that it is UTF-8
        parts = content.split(mark)
        content = mark.join([parts[0], *(p[: flags - 4] + bytes(2) + p[flags - 2 :] for p in parts[1:])])
    (tmp_path / "b.zip").write_bytes(content)
    for archive in ("a.zip", "b.zip"):
        assert {*datasets.build("path", tmp_path / archive).classes} == {*names}


def test_folders_in_a_tar_say_the_split_in_whatever_letters(tmp_path):
    write_tar(tmp_path / "a.tar", [(f"set/{name}.jpg", jpeg()) for name in ("Train/a/1", "Train/b/1", "VALID/a/1")])
    assert [len(data) for data in datasets.build_pair("path", tmp_path / "a.tar")] == [2, 1]


def test_the_digits_say_that_shards_were_meant(tmp_path):
    shard(tmp_path / "train-0.tar")
    with pytest.raises(InputError, match="the data set digits reads none: give --dataset path"):
        datasets.build("digits", tmp_path)


def test_more_shards_than_a_process_may_open_are_read(monkeypatch, tmp_path):
    monkeypatch.setattr(stored_files, "_open", stored_files.functools.lru_cache(2)(stored_files._open.__wrapped__))
    for i in range(5):
        shard(tmp_path / f"train-{i}.tar", "a")
    data, before = datasets.build("path", tmp_path), len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert all(data.pixels(i).shape == (24, 24, 3) for i in range(5))
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert torch.equal(pickle.loads(pickle.dumps(data)).pixels(3), data.pixels(3))


# ---- labels ----------------------------------------------------------------------------------------------------------


def labels_of(data):
    return [data.classes[label] for label in data.labels]


def test_labels_of_shards_are_in_cls_json_or_txt_and_a_file_names_integers(tmp_path):
    about = {"label": 1, "coarse": "pet", "caption": "x" * 300, "boxes": [1, 2]}
    content = [("b/x.JPG", jpeg()), ("b/x.json", json.dumps(about).encode()), ("b/x.txt", b"a text")]
    content += [("b/x.mask.png", jpeg(1)), ("b/._x.jpg", jpeg(2)), ("b/x.heic", b"?")]
    write_tar(tmp_path / "a.tar", content)
    data = datasets.build("path", tmp_path)
    assert ([str(f) for f in data.images], labels_of(data)) == ([f"{tmp_path}/a.tar:b/x.JPG"], ["1"])
    assert data.superclasses.groups == {"1": (("pet",),)}
    assert "1 hidden or companion files and folders" in data.left_out.describe()
    assert "1 unreadable images ending in .heic" in data.left_out.describe()
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert datasets.build("path", tmp_path).classes == ["dog"]
    (tmp_path / "other.txt").write_text("eel\nfox\n")
    which = datasets.Selection(class_names=str(tmp_path / "other.txt"))
    assert datasets.build("path", tmp_path, which=which).classes == ["fox"]
    assert datasets.build("path", tmp_path, which=datasets.Selection(label_columns=("txt",))).classes == ["a text"]
    write_tar(tmp_path / "a.tar", [*content, ("b/x.cls", b"eel")])
    assert datasets.build("path", tmp_path).classes == ["eel"]


def test_class_labels_of_a_schema_are_a_taxonomy_with_names(tmp_path):
    images = [{"bytes": jpeg(i), "path": None} for i in range(4)]
    columns = {"fine": [0, 1, 2, 1], "coarse_label": ["pet", "pet", "fish", "pet"], "age": [0.5, 1, 1, 2]}
    write_parquet(tmp_path / "train.parquet", columns=columns, named=("fine",), images=images)
    data = datasets.build("path", tmp_path)
    assert labels_of(data) == ["cat", "dog", "eel", "dog"] and data.superclasses is None
    which = datasets.Selection(label_columns=("fine", "coarse_label"))
    data = datasets.build("path", tmp_path, which=which)
    assert data.superclasses.levels == ("coarse_label",)
    assert data.superclasses.groups == {"cat": (("pet",),), "dog": (("pet",),), "eel": (("fish",),)}
    values = datasets.build("path", tmp_path, which=datasets.Selection(values="age"))
    assert values.values[values.labels].tolist() == [0.5, 1, 1, 2]


def test_outliers_need_no_labels(tmp_path):
    images = [{"bytes": jpeg(i), "path": None} for i in range(3)]
    write_tar(tmp_path / "plain/test-0.tar", [("a.jpg", jpeg())])
    write_tar(tmp_path / "told/test-0.tar", [("a.jpg", jpeg()), ("a.json", b'{"caption": "a cat"}')])
    write_parquet(tmp_path / "hidden/test.parquet", columns={"label": [-1] * 3}, images=images)
    write_parquet(tmp_path / "none/test.parquet", columns={"age": [1, 2, 3]}, images=images)
    for name, count in (("plain", 1), ("told", 1), ("hidden", 3), ("none", 3)):
        data = datasets.build_outliers("path", tmp_path / name)
        assert (len(data), len(data.classes)) == (count, 1)


def test_several_columns_of_labels_are_the_levels_of_an_evaluation(monkeypatch, capsys, tmp_path):
    images = [{"bytes": jpeg(i), "path": None} for i in range(12)]
    columns = {"label": [i % 3 for i in range(12)], "coarse": ["pet" if i % 3 < 2 else "fish" for i in range(12)]}
    for split in ("train", "test"):
        write_parquet(tmp_path / f"p/{split}.parquet", columns=columns, images=images)
    run(monkeypatch, tmp_path, f"{RUN} --num_workers 0 --data_folder p --loss_type rince --ranking superclass")
    assert "cat: dog" in capsys.readouterr().out
    run(monkeypatch, tmp_path, f"--dataset path --data_folder p --ckpt {LAST} --size 32 --labelset coarse", "retrieval")
    assert list(result(tmp_path, "retrieval_*")["metrics"]) == ["coarse"]


# ---- as others write them --------------------------------------------------------------------------------------------

WRITE = """
import datasets, webdataset
from pathlib import Path

for split, of in datasets.load_dataset("imagefolder", data_dir="mine").items():
    of = of.with_format("arrow").map(datasets.table.embed_table_storage, batched=True).with_format(None)
    of.to_parquet(f"parquet/data/{split}-00000-of-00001.parquet")
for split in ("train", "val"):
    classes = sorted(Path("mine", split).iterdir())
    with webdataset.ShardWriter(f"shards/{split}-%06d.tar", maxcount=7) as shards:
        for number, folder in enumerate(classes):
            for f in sorted(folder.iterdir()):
                about = {"cls": number} if split == "train" else {"json": {"label": number, "of": f.name}}
                shards.write({"__key__": f.stem, f.suffix[1:].lower(): f.read_bytes(), **about})
Path("shards/classes.txt").write_text("".join(f"{f.name}\\n" for f in classes))
"""


@pytest.mark.skipif("OTHER_PYTHON" not in os.environ, reason="OTHER_PYTHON: a Python with datasets and webdataset")
def test_what_the_libraries_datasets_and_webdataset_write_is_read(made, tmp_path):
    shutil.copytree(made / "mine", tmp_path / "mine")
    for name in ("parquet/data", "shards"):
        (tmp_path / name).mkdir(parents=True)
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ""}  # `datasets` is theirs there
    subprocess.run([os.environ["OTHER_PYTHON"], "-c", WRITE], check=True, cwd=tmp_path, env=env)
    for form in ("parquet", "shards"):
        for ours, theirs in zip(*(datasets.build_pair("path", tmp_path / f) for f in (form, "mine")), strict=True):
            assert ours.classes == theirs.classes == CLASSES
            assert ours.labels.tolist() == theirs.labels.tolist()
            assert all(torch.equal(ours.pixels(i), theirs.pixels(i)) for i in range(len(ours)))

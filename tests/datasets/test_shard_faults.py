"""What is wrong with shards, what is damaged in them, and what is kept of them."""

import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import processes
import pytest
from commands import error_of, run
from made_data import make_image_folders
from made_shards import CLASSES, LAST, RUN, jpeg, list_images, shard, write_parquet, write_tar

import datasets
import util
from datasets import decoding, members, packed, parquet_images, stored_files
from util import InputError

# ---- what is wrong ---------------------------------------------------------------------------------------------------


def make_bad(case, root):
    """Something that cannot be read, at `root`; what --data_folder is of it."""
    root.mkdir()
    two = [("a.jpg", jpeg()), ("a.cls", b"0"), ("b.jpg", jpeg(1))]
    images = [{"bytes": jpeg(i), "path": None} for i in range(3)]
    shards_of = {
        "unlabeled": two,
        "mixed": [*two, ("b.cls", b"dog")],
        "fraction": [("a.jpg", jpeg()), ("a.json", b'{"label": 0.5}')],
        "outside": [*two, ("b.cls", b"3")],
        "key twice": [*two, ("b.cls", b"0"), ("a.png", jpeg())],
        "no json": [("a.jpg", jpeg()), ("a.json", b"{")],
        "captions": [("a.jpg", jpeg()), ("a.json", b'{"caption": "a cat"}')],
        "no image": [("a.cls", b"0")],
        "no label": [("a.jpg", jpeg())],
        "downwards": [],
        "member twice": [("a/1.jpg", jpeg())] * 2,
    }
    columns = {
        "null": {"label": [0, None, 1]}, "parquet outside": {"label": [0, -1, 1]}, "no column": {"age": [1, 2, 3]},
        "truth": {"label": [True, False, True]},
    }  # fmt: skip
    if case in shards_of:
        write_tar(root / "train-0.tar", shards_of[case])
    elif case in columns:
        write_parquet(root / "train.parquet", columns=columns[case], images=images)
    elif case == "other names":
        write_parquet(root / "train-0.parquet", columns={"label": [0, 1, 2]}, images=images)
        write_parquet(root / "train-1.parquet", columns={"label": [0, 1, 2]}, images=images, named=())
    elif case == "paths only":
        images = [{"bytes": None, "path": "a.jpg"}] * 3
        write_parquet(root / "train.parquet", columns={"label": [0, 1, 2]}, images=images)
    elif case == "two kinds":
        write_parquet(root / "train.parquet", columns={"label": [0, 1, 2]}, images=images)
        shard(root / "train-0.tar")
    elif case in ("gz", "gz by content"):
        name = "train-0.tar" if case == "gz by content" else "train-0.tar.gz"
        with tarfile.open(root / name, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("a"))
    elif case == "no tar":
        (root / "train-0.tar").write_bytes(b"?" * 2000)
    elif case == "no parquet":
        (root / "train.parquet").write_bytes(b"?" * 2000)
    elif case in ("no zip", "no name in zip", "bzip2", "zip twice", "locked"):
        with zipfile.ZipFile(root / "all.zip", "w") as file:
            for name in ["é/1.jpg" if case == "no name in zip" else "a/1.jpg"] * (2 if case == "zip twice" else 1):
                file.writestr(name, jpeg(), zipfile.ZIP_BZIP2 if case == "bzip2" else None)
        content = (root / "all.zip").read_bytes()
        place = content.rfind(b"PK\1\2") + 8
        edited = {
            "no zip": content[:-30], "locked": content[:place] + b"\1" + content[place + 1 :],
            "no name in zip": content.replace("é".encode(), b"\x8e?"),
        }  # fmt: skip
        (root / "all.zip").write_bytes(edited.get(case, content))
        return root / "all.zip"
    else:
        (root / "a.jpg").write_bytes(jpeg())
        lines = {
            "no file": '{"file_name": "b.jpg", "label": 0}',
            "file twice": '{"file_name": "a.jpg", "label": 0}\n' * 2,
            "no split": '{"file_name": "a.jpg", "label": 0, "split": "most"}',
            "no name": '{"label": 0}',
            "no line": "{",
            "unlabeled line": '{"file_name": "a.jpg", "label": null}',
        }
        (root / "metadata.jsonl").write_text(lines[case] + "\n")
    return root / ("train-{3..1}.tar" if case == "downwards" else "")


BAD = {
    "unlabeled": "train-0.tar:b.jpg: has no label (cls)",
    "mixed": "train-0.tar:b.jpg: has a name as label, dog, and ROOT/train-0.tar:a.jpg an integer (cls)",
    "fraction": "train-0.tar:a.jpg: has the label 0.5, neither an integer nor a name (label)",
    "outside": "train-0.tar:b.jpg: its cls is 3, and there are 3 class names; labels count from 0",
    "key twice": "train-0.tar:a.png: the key a is there twice, first as a.jpg; give each image a key of its own",
    "no json": "train-0.tar:a.json: not readable as JSON",
    "captions": "train-0.tar: has no labels, but caption; give --label_columns",
    "no image": "ROOT: holds no training image; name files or folders by split, such as train-0.tar; labels are",
    "no label": "ROOT: holds no training image; name files or folders by split, such as train-0.tar; labels are",
    "member twice": "train-0.tar:a/1.jpg: the key a/1 is there twice, first as a/1.jpg",
    "downwards": "train-{3..1}.tar: {3..1} names no file; the first number must not be larger than the last",
    "null": "train.parquet:1: has no label (label)",
    "parquet outside": "train.parquet:1: its label is -1, and there are 3 class names",
    "truth": "train.parquet:0: has the label True, neither an integer nor a name (label)",
    "no column": "train.parquet: has no labels, but age; give --label_columns",
    "other names": "train-1.parquet: its class names are others than those of ROOT/train-0.parquet",
    "paths only": "train.parquet: holds paths of images, and none of their bytes",
    "two kinds": "images in two forms",
    "gz": "train-0.tar.gz: is compressed, so that no image is found without all before it; unpack it with gunzip",
    "gz by content": "train-0.tar: is compressed, so that no image is found without all before it",
    "no tar": "train-0.tar: not readable as a tar file",
    "no parquet": "train.parquet: not readable as Parquet",
    "no zip": "all.zip: not readable as a zip file",
    "no name in zip": "all.zip: not readable as a zip file ('utf-8' codec can't decode",
    "bzip2": "all.zip:a/1.jpg: is compressed by method 12",
    "zip twice": "all.zip:a/1.jpg: is in the zip twice",
    "locked": "all.zip:a/1.jpg: is encrypted",
    "no file": "metadata.jsonl, line 1: the image ",
    "file twice": "metadata.jsonl, line 2: the image a.jpg is also in line 1",
    "no split": "metadata.jsonl, line 1: split most is unknown; write train, val or test",
    "no name": "metadata.jsonl, line 1: names no image; it must have a file_name",
    "no line": "metadata.jsonl, line 1: not readable as JSON",
    "unlabeled line": "a.jpg: has no label (label)",
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_bad_input_is_one_line_that_names_file_and_member(monkeypatch, capsys, tmp_path, case):
    place = make_bad(case, tmp_path / "bad")
    (tmp_path / "classes.txt").write_text("cat\ndog\neel\n" if case == "outside" else "")
    if case != "outside":
        (tmp_path / "classes.txt").unlink()
    line = error_of(monkeypatch, capsys, tmp_path, f"{RUN} --num_workers 0 --data_folder {place}")
    assert f"--data_folder {tmp_path}/bad" in line
    assert BAD[case].replace("ROOT", f"{tmp_path}/bad") in line
    assert not (tmp_path / "save").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--label_columns genus", "train-0.tar: has no column genus; it has cls"),
        ("--class_names none.txt", "--class_names none.txt: no such file"),
        ("--data_folder all.zip --label_columns genus", "all.zip: has no column genus; its classes are folders"),
        ("--dataset digits --label_columns cls", "--label_columns: digits has no columns of labels"),
        ("--data_folder folders --class_names none.txt", "--class_names: folders has no columns of labels"),
    ],
)
def test_options_of_labels_that_do_not_fit_are_one_line(monkeypatch, capsys, tmp_path, options, reason):
    make_image_folders(tmp_path / "folders", CLASSES, each=2)
    shard(tmp_path / "s/train-0.tar")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as file:
        file.writestr("a/1.jpg", jpeg())
    assert reason in error_of(monkeypatch, capsys, tmp_path, f"{RUN} --data_folder s {options}")


# ---- damage ----------------------------------------------------------------------------------------------------------

EVALUATE = f"--dataset path --data_folder s --ckpt {LAST} --num_workers 0 --size 32"


def check_damage(monkeypatch, capfd, folder, damaged, reason):
    """A training on `s` skips and lists the images of these names; an evaluation stops at the first, or leaves them
    out.
    """
    run(monkeypatch, folder, f"{RUN} --num_workers 0 --data_folder s --knn_freq 1")
    printed = capfd.readouterr()
    assert f"warning: s/{damaged[0]}: not a readable image ({reason}" in printed.err
    listed = folder / "save/SupCon/path_models/a/damaged_images.txt"
    assert {*listed.read_text().splitlines()} <= {f"{folder}/s/{name}" for name in damaged}
    listed.write_text("".join(f"{folder}/s/{name}\n" for name in damaged))
    line = error_of(monkeypatch, capfd, folder, EVALUATE, "retrieval")
    assert f"s/{damaged[0]}: not a readable image ({reason}" in line and "leave it out with --skip_images" in line
    run(monkeypatch, folder, f"{EVALUATE} --skip_images {listed}", "retrieval")
    return printed.out + capfd.readouterr().out


def test_a_shard_that_ends_too_early_is_counted_and_its_whole_images_are_trained_on(monkeypatch, capfd, tmp_path):
    shard(tmp_path / "s/train-0.tar", "abcdef")
    write_tar(
        tmp_path / "s/train-1.tar", [(f"{k}.{e}", c) for k in "ghijk" for e, c in (("cls", b"1"), ("jpg", jpeg(9)))]
    )
    shard(tmp_path / "s/val-0.tar")
    path = tmp_path / "s/train-1.tar"
    index = members.list_tar(path)
    os.truncate(path, int(index.begin[3]) + 100)  # in the image j
    printed = check_damage(monkeypatch, capfd, tmp_path, ["train-1.tar:j.jpg"], "the shard ends inside it)")
    assert "left out: 1 shards that end too early (such as s/train-1.tar:j.jpg)" in printed
    assert "SCL in: 10 images, 2 classes" in printed
    for cut, count in ((int(index.begin[2]) - 100, 8), (int(index.begin[2]) - 700, 8)):  # in a header, in a label
        os.truncate(path, cut)
        data = datasets.build("path", tmp_path / "s")
        assert len(data) == count
        assert "shards that end too early" in data.left_out.describe()
    shard(path, "gh", label="1")
    os.truncate(path, int(members.list_tar(path).begin[1]) + len(jpeg(1)))  # h has no label any more
    assert len(datasets.build("path", tmp_path / "s")) == 7


def test_a_row_group_that_cannot_be_read_costs_its_images(monkeypatch, capfd, tmp_path):
    images = [{"bytes": jpeg(i), "path": None} for i in range(16)]
    labels = {"label": [i % 2 for i in range(16)]}
    for split in ("train", "val"):
        write_parquet(tmp_path / f"s/{split}.parquet", columns=labels, images=images, group=4)
    from pyarrow import parquet

    path = tmp_path / "s/train.parquet"
    column = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    begin = min(x for x in (column.data_page_offset, column.dictionary_page_offset) if x)
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(bytes(column.total_compressed_size))
    names = [f"train.parquet:{row}" for row in range(4, 8)]
    check_damage(monkeypatch, capfd, tmp_path, names, "its row group cannot be read)")


@pytest.mark.parametrize("deflate", [False, True])
def test_a_damaged_member_of_a_zip_is_a_damaged_image(monkeypatch, capfd, tmp_path, deflate):
    (tmp_path / "s").mkdir()
    with zipfile.ZipFile(tmp_path / "s/all.zip", "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as file:
        for split in ("train", "val"):
            for i in range(8):
                file.writestr(f"{split}/{'ab'[i % 2]}/{i}.jpg", jpeg(i))
    archive, _ = members.open_zip(tmp_path / "s/all.zip")
    with (tmp_path / "s/all.zip").open("r+b") as file:
        file.seek(int(archive.begin[2]) + 50)
        file.write(bytes(300))
    data = datasets.build("path", tmp_path / "s/all.zip")
    with pytest.raises(InputError, match=r"all\.zip:train/a/2\.jpg: not a readable image"):
        data[[str(f)[-5:] for f in data.images].index("2.jpg")]


def test_a_shard_that_is_cut_while_it_is_read_ends_the_run_with_one_line(tmp_path):
    shard(tmp_path / "train-0.tar", "abcdefgh")
    data = datasets.build("path", tmp_path)
    data.tolerate_damage()  # which a whole shard is not
    data.pixels(0)
    os.truncate(tmp_path / "train-0.tar", 3000)
    with pytest.raises(
        packed.PackInputError, match=r"bytes now, [\d,]+ when it was opened; give the same command again"
    ):
        data[7]
    with pytest.raises(packed.PackInputError):
        decoding.find_damage(data.images, show=False)


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_members_are_listed_once_and_again_where_the_shard_has_changed(monkeypatch, capsys, tmp_path):
    path = shard(tmp_path / "train-0.tar")
    calls, listing = [], members.list_tar
    monkeypatch.setattr(members, "list_tar", lambda path: calls.append(path) or listing(path))
    for _ in range(2):
        assert len(datasets.build("path", tmp_path)) == 2
    assert capsys.readouterr().out == f"{path}: the members are listed, once\n"
    assert len(calls) == 1 and (tmp_path / "train-0.tar.index.npz").is_file()
    shard(path, "xyz")
    os.utime(path, ns=(0, 12345))
    assert [str(f)[-5:] for f in datasets.build("path", tmp_path).images] == ["x.jpg", "y.jpg", "z.jpg"]
    assert f"{path}: is not what it was when its members were listed; they are listed again" in capsys.readouterr().out
    (tmp_path / "train-0.tar.index.npz").write_bytes(b"torn")
    assert len(datasets.build("path", tmp_path)) == 3 and len(calls) == 3


def test_where_nothing_can_be_written_next_to_shards_the_index_is_in_the_cache_folder(monkeypatch, tmp_path, cache):
    shard(tmp_path / "s/train-0.tar")
    write_file = stored_files.util.write_file

    def refuse(path, content):
        if path.parent != cache:
            raise InputError(f"{path}: cannot be written")
        write_file(path, content)

    monkeypatch.setattr(stored_files.util, "write_file", refuse)
    for _ in range(2):
        assert len(datasets.build("path", tmp_path / "s")) == 2
        monkeypatch.setattr(members, "list_tar", None)  # the second time it is there
    assert [f.name for f in (tmp_path / "s").iterdir()] == ["train-0.tar"]


def build_at_once(rank, place, ends):
    """What each of several processes does; how many files it listed or copied."""
    os.environ["RINCE_CACHE"] = str(Path(ends).parent / "cache")
    made, ways = [], {members: "list_tar", parquet_images: "_copy_images"}
    for module, name in ways.items():
        way = getattr(module, name)
        setattr(module, name, lambda *of, way=way: made.append(of) or way(*of))
    data = datasets.build_pair("path", place)
    seen = [len(data[0]), len(data[1]), int(data[0].pixels(3).sum())]
    Path(ends, str(rank)).write_text(json.dumps([seen, len(made)]))


def test_what_a_killed_copy_left_is_removed_an_hour_later(monkeypatch, cache, made):
    data = parquet_images._find_copy(made / "parquet/data/train-00000-of-00002.parquet")
    parquet_images.open_parquet(made / "parquet/data/train-00000-of-00002.parquet")
    old, new = util.temporary_name(data), util.temporary_name(data)
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (0, 0))
    parquet_images.open_parquet(made / "parquet/data/train-00000-of-00002.parquet")
    assert [*cache.glob("*.tmp")] == [new] and data.is_file()
    new.unlink()


@pytest.mark.parametrize("form", ["parquet", "tar"])
def test_of_processes_that_begin_at_once_one_makes_each_index_or_copy(made, tmp_path, form):
    place, ends = tmp_path / "s", tmp_path / "ends"
    shutil.copytree(made / form, place, ignore=shutil.ignore_patterns("*.npz"))
    ends.mkdir()
    processes.together(build_at_once, (str(place), str(ends)), 3)
    seen, counts = zip(*(json.loads((ends / str(rank)).read_text()) for rank in range(3)), strict=True)
    assert seen[0] == seen[1] == seen[2]
    assert sum(counts) == len([*place.rglob("*.parquet"), *place.rglob("*.tar")])
    assert not [*tmp_path.rglob("*.tmp")]


def test_a_copy_of_parquet_is_made_once_and_again_where_the_file_has_changed(monkeypatch, capsys, made, tmp_path):
    shutil.copytree(made / "parquet", tmp_path / "p")
    calls, copy = [], parquet_images._copy_images
    monkeypatch.setattr(parquet_images, "_copy_images", lambda *of: calls.append(of) or copy(*of))
    for _ in range(2):
        datasets.build("path", tmp_path / "p")
    assert len(calls) == 2  # two files
    assert capsys.readouterr().out.count("of images are copied to") == 1
    write_parquet(tmp_path / "p/data/train-00000-of-00002.parquet", list(list_images(made / "mine"))[:2])
    assert len(datasets.build("path", tmp_path / "p")) == 14
    assert len(calls) == 3


def test_a_disk_without_room_for_a_copy_is_one_line(monkeypatch, made, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"train-00000-of-00002\.parquet and 1 others: 0\.00 GB do not fit into"):
        datasets.build("path", made / "parquet")


def test_cached_features_depend_on_the_archive(monkeypatch, capsys, tmp_path):
    for name in ("train", "val"):
        shard(tmp_path / f"s/{name}-0.tar", "abcdefgh", label="1")
        shard(tmp_path / f"s/{name}-1.tar", "abcdefgh", label="0")
    run(monkeypatch, tmp_path, f"{RUN} --num_workers 0 --data_folder s")
    for _ in range(2):
        run(monkeypatch, tmp_path, f"{EVALUATE} --features_cache c", "retrieval")
    kept = {f.name for f in (tmp_path / "c").iterdir()}
    shard(tmp_path / "s/val-0.tar", "abcdefgh", label="1", seed=9)
    run(monkeypatch, tmp_path, f"{EVALUATE} --features_cache c", "retrieval")
    assert len({f.name for f in (tmp_path / "c").iterdir()} - kept) == 1 and len(kept) == 2

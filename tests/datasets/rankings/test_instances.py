"""Ranks from nested groups of images instead of classes."""

import json
from functools import partial

import commands
import pytest
import reference
import torch
from commands import result, run
from made_data import make_crops, make_image_folders

from datasets.rankings import instances
from engine.encoder import pretrained

error_of = partial(commands.error_of, script="main_supcon")
TINY = "--dataset path --data_folder . --size 32 --num_workers 0 --batch_size 4 --model resnet8 --epochs 1 "

TABLE = """image,frame,shot,video
a/a_0.JPEG,f1,s1,v1
a/a_1.JPEG,f1,s1,v1
a/a_2.JPEG,f2,s1,v1
b/b_0.JPEG,f3,s2,v1
b/b_1.JPEG,f4,s3,v2
"""


def made(folder, table=TABLE):
    make_image_folders(folder, ["a", "b"], each=3)
    (folder / "groups.csv").write_text(table)
    return folder / "groups.csv"


def test_a_row_is_an_image_labeled_by_its_finest_group(tmp_path):
    data, groups, levels = instances.build(tmp_path, made(tmp_path))
    assert levels == ["frame", "shot", "video"]
    assert data.classes == ["f1", "f2", "f3", "f4"]
    assert data.labels.tolist() == [0, 0, 1, 2, 3]
    assert [f.split("/")[-1] for f in data.images] == ["a_0.JPEG", "a_1.JPEG", "a_2.JPEG", "b_0.JPEG", "b_1.JPEG"]
    assert groups.tolist() == [[0, 0, 0], [1, 0, 0], [2, 1, 0], [3, 2, 1]]
    assert instances.count_unlisted(data, tmp_path)[0] == 1
    rows = [line.split(",")[1:] for line in TABLE.splitlines()[1:]]
    ranks = [[reference.nested_rank(rows, a, b) for b in range(5)] for a in range(5)]
    assert ranks[0] == [0, 0, 1, 2, 3]
    lines = instances.summarize_groups(groups, levels, (0.1, 0.2, 0.3), data.labels)
    for rank, line in enumerate(lines):
        counts = sorted(row.count(rank) for row in ranks)
        assert f"an image has {counts[0]}/{counts[2]}/{counts[-1]} images" in line


def test_a_run_prints_its_levels_and_what_the_table_leaves_out(monkeypatch, capsys, tmp_path):
    made(tmp_path)
    run(monkeypatch, tmp_path, TINY + "--instance_ranks groups.csv --mixed_out_in --knn_freq 1 --exp_name a")
    printed = capsys.readouterr().out
    assert "--instance_ranks does not name 1 images of .: they are left out" in printed
    assert "RINCE out_in: 5 images, 4 groups" in printed
    assert "rank 2: same video, 2 of them, tau 0.35; an image has 0/1/3 images" in printed
    state = torch.load(tmp_path / "save/SupCon/path_models/a/last.pth", weights_only=True)
    assert state["classes"] == ["f1", "f2", "f3", "f4"]
    assert state["ranking"]["levels"] == ["frame", "shot", "video"]
    assert state["ranking"]["groups"].tolist() == [[0, 0, 0], [1, 0, 0], [2, 1, 0], [3, 2, 1]]
    log = (tmp_path / "save/SupCon/path_models/a/log.jsonl").read_text().splitlines()
    assert {"nn_frame", "nn_shot", "nn_video"} <= json.loads(log[-1]).keys()


@pytest.mark.parametrize("name", ["himulcon", "two_losses_two_heads", "supcon", "rnc"])
def test_losses_over_ranks_take_nested_groups(name, monkeypatch, capsys, tmp_path):
    made(tmp_path)
    run(monkeypatch, tmp_path, f"{TINY} --instance_ranks groups.csv --loss_type {name} --exp_name a")
    levels = "rank 0: same frame" if name == "supcon" else "rank 2: same video"
    assert levels in capsys.readouterr().out


def test_an_image_list_stands_for_the_folder_of_the_table(monkeypatch, capsys, tmp_path):
    made(tmp_path / "deep")
    names = ("a/a_0", "a/a_1", "a/a_2", "b/b_0", "b/b_1", "b/b_2")
    listed = "path,label,split\n" + "".join(f"./{name}.JPEG,{name[0]},train\n" for name in names)
    (tmp_path / "deep" / "list.csv").write_text(listed)
    options = TINY.replace("--data_folder .", "--data_folder deep/list.csv") + "--instance_ranks deep/groups.csv"
    run(monkeypatch, tmp_path, f"{options} --mixed_out_in --exp_name a")
    printed = capsys.readouterr().out
    assert "RINCE out_in: 5 images, 4 groups" in printed
    assert "--instance_ranks does not name 1 images of deep/list.csv: they are left out" in printed
    evaluate = options.replace("--model resnet8 --epochs 1", "--ckpt save/SupCon/path_models/a")
    run(monkeypatch, tmp_path, evaluate, "retrieval")
    (tmp_path / "deep" / "list.csv").write_text(listed.replace("./b/b_0.JPEG,b,train\n", ""))
    line = error_of(monkeypatch, capsys, tmp_path, options)
    assert "groups.csv, line 5: the image b/b_0.JPEG is not in the list --data_folder deep/list.csv" in line


def test_images_of_nested_groups_look_for_one_another_at_every_level(monkeypatch, capsys, tmp_path):
    made(tmp_path)
    torch.manual_seed(0)
    trained = {
        "model": pretrained.build_encoder("resnet8", small_images=True).state_dict(),
        "options": {"model": "resnet8"},
    }
    torch.save(trained, tmp_path / "a.pth")
    evaluate = "--dataset path --data_folder . --size 32 --num_workers 0 --instance_ranks groups.csv --ckpt a.pth"
    run(monkeypatch, tmp_path, evaluate, "retrieval")
    printed = capsys.readouterr().out
    record = result(tmp_path, "retrieval_path_*")
    assert list(record["metrics"]) == ["frame", "shot", "video", "ranks"]
    # a_0 and a_1 share a frame, a_2 their shot, b_0 their video; b_1 is alone everywhere
    assert record["queries"] == {"frame": 2, "shot": 3, "video": 4}
    assert record["images"] == {"train": 5, "test": 5}
    assert record["similarity_of_ranks"] == pytest.approx([1, 0.75, 0.5, 0])
    assert {"AUROC 0>1", "AUROC 1>2", "AUROC 2>3", "NDCG", "H-AP", "ASI"} <= record["metrics"]["ranks"].keys()
    assert record["metrics"]["video"]["R@5"] == 100  # all others are among the first four
    assert "ranks by similarity: 0: 1, 1: 0.75, 2: 0.5, 3: 0" in printed
    (tmp_path / "alone.csv").write_text("image,frame\na/a_0.JPEG,f1\na/a_1.JPEG,f2\n")
    for words, reason in (
        (evaluate.replace("groups", "alone"), "no two images share a group at any level"),
        (f"{evaluate} --labelset coarse", "--instance_ranks: has no classes for --labelset"),
        (f"{evaluate} --classes excluded", "--instance_ranks: has no classes for --labelset, --superclasses or --cl"),
        (f"{evaluate} --ranking superclass", "--ranking has no use with --instance_ranks"),
    ):
        assert reason in error_of(monkeypatch, capsys, tmp_path, words, script="retrieval")


OWN = "--dataset path --data_folder mine --size 32 --num_workers 0"
SHORT = "--learning_rate 0.1 --epochs 12"


def precision(monkeypatch, folder, name, options) -> float:
    """mAP of crops that look for those of their photograph, after training on the groups of crops."""
    train = f"{OWN} --instance_ranks mine/groups.csv --batch_size 24 --memorybank_size 168 --feat_dim 32 --cosine "
    train += "--model resnet8 --mixed_out_in"
    run(monkeypatch, folder, f"{train} {options} --exp_name {name}")
    evaluate = f"{OWN} --labelset coarse --superclasses mine/photographs.yaml"
    run(monkeypatch, folder, f"{evaluate} --ckpt save/SupCon/path_models/{name}", "retrieval")
    return result(folder, f"retrieval_path_{name}_*")["metrics"]["coarse"]["mAP"]


@pytest.mark.slow
def test_they_do_so_better_with_ranks_than_with_one(monkeypatch, tmp_path):
    """Means of two seeds, since one run's figure moves by some percent with the machine's arithmetic."""
    make_crops(tmp_path / "mine")
    means = {
        kind: sum(
            precision(monkeypatch, tmp_path, f"{kind}{s}", f"{SHORT} --seed {s} --loss_type {kind}") for s in (0, 1)
        )
        for kind in ("rince", "supcon")
    }
    assert means["rince"] / 2 > means["supcon"] / 2 + 2


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("", "not readable as CSV"),
        ("file,g\na/a_0.JPEG,x\n", "the first line must be"),
        ("image,g\n", "names no image"),
        ("image,,shot\na/a_0.JPEG,1,A\n", "the first line must be"),
        ("image,a b,a_b\na/a_0.JPEG,1,A\n", "each name once; a_b is there twice"),  # one tag of TensorBoard
        ("image,g\na/a_0.JPEG,\n", "line 2: must have 2 entries"),
        ("image,g\na/none.JPEG,x\n", "line 2: the image a/none.JPEG does not exist"),
        ("image,g\na/a_0.JPEG,x\na/a_0.JPEG,y\n", "line 3: the image a/a_0.JPEG is also in line 2"),
        ("image,g\na/a_0.JPEG,x\n./a/../a/a_0.JPEG,y\n", "line 3: the image ./a/../a/a_0.JPEG is also in line 2"),
        ("# mine\nimage,g\n#a_0.JPEG,x\n", "line 3: the image #a_0.JPEG does not exist"),
        (
            "image,frame,video\na/a_0.JPEG,1,A\na/a_1.JPEG,1,B\n",
            "line 3: frame 1 belongs to video B and to A; groups must be nested, the finest column first",
        ),
    ],
)
def test_a_table_that_cannot_serve_is_one_line_with_its_row(monkeypatch, capsys, tmp_path, table, reason):
    made(tmp_path, table)
    line = error_of(monkeypatch, capsys, tmp_path, TINY + "--instance_ranks groups.csv")
    assert "--instance_ranks groups.csv" in line
    assert reason in line


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--hold_out f1", "--exclude_classes has no use with --instance_ranks"),
        ("--ranking identity", "--ranking has no use with --instance_ranks"),
        ("--thresholds 0.4", "--thresholds has no use with --instance_ranks"),
        ("--loss_type xclr", "--loss_type xclr: needs similarities of classes, not --instance_ranks"),
        ("--dataset digits", "--instance_ranks groups.csv: needs --dataset path"),
        ("--instance_ranks none.csv", "--instance_ranks none.csv: no such file"),
    ],
)
def test_options_that_contradict_the_table_are_one_line(monkeypatch, capsys, tmp_path, options, reason):
    made(tmp_path)
    assert reason in error_of(monkeypatch, capsys, tmp_path, f"{TINY} --instance_ranks groups.csv {options}")

"""A run's folder: what only shows ends no training, what is kept, when it stops by itself."""

import os
import shutil
from pathlib import Path

import pytest
from commands import error_of, run
from made_data import make_image_folders

from engine.run import checkpoint, run_log, runs
from engine.run.run_log import Board

RUN = "--model resnet8 --batch_size 256 --num_workers 0 --exp_name a"
FOLDER = Path("save/SupCon/digits_models/a")


def test_a_tensorboard_whose_folder_is_gone_is_said_once_and_shows_nothing_more(tmp_path):
    said, drawn = [], []
    board = Board(tmp_path / "board", 1, said.append)
    board.show(lambda writer: writer.add_scalar("loss", 1.0, 1))
    shutil.rmtree(tmp_path / "board")
    (tmp_path / "board").write_text("in the way")
    for _ in range(3):
        board.show(lambda writer: writer.add_scalar("loss", 1.0, 2))
    board.show(drawn.append)
    board.close()
    assert drawn == []
    assert len(said) == 1
    assert "the run continues without TensorBoard" in said[0]


def test_neither_tensorboard_nor_the_log_ends_a_training(monkeypatch, capsys, tmp_path):
    append = run_log.append_json

    def full(path, record):
        if path.name == "log.jsonl" and record["epoch"] == 2:
            raise OSError(28, "No space left on device", str(path))
        append(path, record)

    def fault(*_):
        raise ValueError("no such color\nmap")

    monkeypatch.setattr(run_log, "append_json", full)
    monkeypatch.setattr(runs.monitor.Watch, "draw_pairs", fault)
    run(monkeypatch, tmp_path, f"{RUN} --epochs 3")
    printed = capsys.readouterr().out
    assert printed.count("TensorBoard in save/SupCon/digits_tensorboard/a: no such color; the run continues") == 1
    assert printed.count("log.jsonl: epoch 2 cannot be added (No space left on device); the run continues") == 1
    assert checkpoint.load(tmp_path / FOLDER)["epoch"] == 3
    assert [r["epoch"] for r in run_log.read_json_lines(tmp_path / FOLDER / "log.jsonl")] == [1, 3]


def test_the_checkpoint_comes_before_the_picture(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(Board, "show", lambda self, draw: seen.append((tmp_path / FOLDER / "last.pth").exists()))
    run(monkeypatch, tmp_path, f"{RUN} --epochs 1")
    assert seen == [True] * 3  # scalars, pairs, projector


def test_classes_whose_names_are_no_text_are_trained_on_and_shown(monkeypatch, capsys, tmp_path):
    names = ["cat", os.fsdecode(b"caf\xe9")]
    make_image_folders(tmp_path / "mine" / "train", names, each=4)
    run(monkeypatch, tmp_path, f"{RUN} --dataset path --data_folder mine --size 32 --batch_size 4 --epochs 1 "
        "--loss_type supcon")  # fmt: skip
    assert "TensorBoard in" not in capsys.readouterr().out
    (rows,) = (tmp_path / "save/SupCon/path_tensorboard/a").glob("*/encoder/metadata.tsv")
    assert set(rows.read_text().split()) == {"cat", "caf?"}
    assert checkpoint.load(tmp_path / "save/SupCon/path_models/a")["classes"] == sorted(names)


def test_the_last_k_checkpoints_are_kept_and_one_that_cannot_be_deleted_is_named(monkeypatch, capsys, tmp_path):
    unlink = Path.unlink

    def stubborn(path, missing_ok=False):
        if path.name == "ckpt_epoch_2.pth":
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", stubborn)
    run(monkeypatch, tmp_path, f"{RUN} --epochs 5 --save_freq 1 --keep_checkpoints 2")
    assert [f.name for f in checkpoint.numbered(tmp_path / FOLDER)] == [f"ckpt_epoch_{n}.pth" for n in (5, 4, 2)]
    assert f"--keep_checkpoints: {FOLDER}/ckpt_epoch_2.pth cannot be deleted (Permission denied); it stays" in (
        capsys.readouterr().out
    )


def test_after_max_hours_a_run_saves_and_exits_with_75(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit, match="75"):
        run(monkeypatch, tmp_path, f"{RUN} --epochs 1000 --max_hours 1e-9 --save_freq 1")
    assert [f.name for f in (tmp_path / FOLDER).glob("*.pth")] == ["last.pth"]
    assert "--max_hours 1e-09: stopped after epoch 1, step 0; saved" in capsys.readouterr().out
    state = checkpoint.load(tmp_path / FOLDER)
    assert (state["epoch"], state["step"]) == (0, 0)
    run(monkeypatch, tmp_path, f"{RUN} --epochs 1 --resume auto")
    assert "other options: --epochs 1 (was 1000)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["n" * 300, "ä" * 150, "a/b", ".."])
def test_a_name_that_no_disk_takes_is_one_line_after_the_errors_of_the_data(monkeypatch, capsys, tmp_path, name):
    line = error_of(monkeypatch, capsys, tmp_path, f"{RUN} --exp_name {name}")
    assert f"--exp_name {name}: must be a plain name, without a path, of at most 255 bytes" in line
    line = error_of(monkeypatch, capsys, tmp_path, f"{RUN} --exp_name {name} --dataset path --data_folder nowhere")
    assert "--data_folder nowhere" in line


def test_the_results_of_a_run_with_a_long_name_have_names_that_a_disk_takes(monkeypatch, tmp_path):
    run(monkeypatch, tmp_path, f"{RUN} --exp_name {'n' * 250} --epochs 1", "main_ce")
    words = f"--ckpt save/SupCon/digits_models/{'n' * 250} --features_cache kept"
    run(monkeypatch, tmp_path, words, "retrieval")
    run(monkeypatch, tmp_path, words, "retrieval")
    assert len(list((tmp_path / "save/results").glob("*.json"))) == 2
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_last_pth_is_there_at_every_moment_and_is_also_the_one_before(monkeypatch, tmp_path):
    (tmp_path / "last.pth").write_bytes(b"first")
    replace, there = os.replace, []

    def watched(source, target):
        there.append((tmp_path / "last.pth").exists())
        replace(source, target)
        there.append((tmp_path / "last.pth").exists())

    monkeypatch.setattr(os, "replace", watched)
    for number in (1, 2):
        checkpoint.write_whole(tmp_path / "last.pth", {"number": number}, before=tmp_path / "previous.pth")
        assert (tmp_path / "previous.pth").exists()
    assert there == [True] * 8
    assert sorted(f.name for f in tmp_path.iterdir()) == ["last.pth", "previous.pth"]


def test_a_crash_between_the_two_names_of_a_checkpoint_leaves_nothing_behind(tmp_path):
    (tmp_path / "last.pth").write_bytes(b"first")
    os.link(tmp_path / "last.pth", tmp_path / "previous.pth")
    checkpoint.write_whole(tmp_path / "last.pth", {}, before=tmp_path / "previous.pth")
    assert (tmp_path / "previous.pth").read_bytes() == b"first"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["last.pth", "previous.pth"]


def test_a_disk_without_links_still_keeps_the_checkpoint_before(monkeypatch, tmp_path):
    def link(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", link)
    (tmp_path / "last.pth").write_bytes(b"first")
    checkpoint.write_whole(tmp_path / "last.pth", {}, before=tmp_path / "previous.pth")
    assert (tmp_path / "previous.pth").read_bytes() == b"first"


def test_what_a_killed_run_had_half_written_is_cleared_away_by_the_next(monkeypatch, tmp_path):
    run(monkeypatch, tmp_path, f"{RUN} --epochs 1")
    (tmp_path / FOLDER / "last.pth.7-abc.tmp").write_bytes(b"half")
    run(monkeypatch, tmp_path, f"{RUN} --epochs 2 --resume auto")
    assert not list((tmp_path / FOLDER).glob("*.tmp"))


def test_a_line_that_a_crash_cut_short_does_not_count(tmp_path):
    assert run_log.read_json_lines(tmp_path / "log") == []
    for epoch in (1, 2):
        run_log.append_json(tmp_path / "log", {"epoch": epoch})
    with (tmp_path / "log").open("a") as file:
        file.write('{"epoch": 3, "lo')
    assert run_log.read_json_lines(tmp_path / "log") == [{"epoch": 1}, {"epoch": 2}]

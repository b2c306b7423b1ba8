"""Video files become frames and tables of the groups frame, shot and video, which a training and retrieval take."""

import csv
import json
import subprocess
import sys
from functools import partial

import commands
import numpy as np
import pytest
import reference
from commands import result, run
from made_data import make_video
from PIL import Image

from datasets import videos

av = pytest.importorskip("av")
prepare = partial(run, script="datasets.prepare")
error_of = partial(commands.error_of, script="datasets.prepare")

RED, BLUE, GREEN = (200, 30, 30), (30, 30, 200), (30, 160, 30)
FRAMES = "video mine --out made --fps 2"


def rows_of(folder, split="train"):
    with open(folder / "made" / f"{split}_groups.csv", newline="") as file:
        return list(csv.DictReader(file))


def states(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize(
    ("name", "format"), [("a.mp4", None), ("a.MKV", "matroska"), ("a.avi", None), ("a.ts", None), ("a.mpg", "h264")]
)
def test_frames_are_taken_at_the_rate_and_shots_end_where_the_scene_changes(monkeypatch, tmp_path, name, format):
    """Whatever the container says of times: .avi has those of decoding, a stream without container (the last) none."""
    make_video(tmp_path / "mine/deep" / name, [(RED, 17), (BLUE, 13)], rate=25, format=format)
    prepare(monkeypatch, tmp_path, "video mine --out made --fps 5 --shots")
    rows = rows_of(tmp_path)
    assert [row["image"] for row in rows] == [f"frames/deep/{name}/{k:06d}.jpg" for k in range(6)]
    assert [row["frame"] for row in rows] == [f"deep/{name}-{k:06d}" for k in range(6)]
    assert [row["shot"] for row in rows] == [f"deep/{name}-s1"] * 4 + [f"deep/{name}-s2"] * 2
    assert {row["video"] for row in rows} == {f"deep/{name}"}
    for k, row in enumerate(rows):  # frame 5 k of 25 per second
        image = Image.open(tmp_path / "made" / row["image"])
        assert image.size == (96, 64)
        np.testing.assert_allclose(np.array(image)[56, 80], RED if 5 * k < 17 else BLUE, atol=12)
        if format != "h264" and not name.endswith("avi"):
            bright = np.flatnonzero(np.array(image)[16].min(-1) > 220)
            assert abs(bright[0] - 4 * (5 * k % 17)) <= 1  # where the square is in that frame, and no other


def test_a_rate_above_the_videos_own_takes_every_frame_once(monkeypatch, tmp_path):
    make_video(tmp_path / "mine/a.mp4", [(RED, 7)])
    prepare(monkeypatch, tmp_path, "video mine --out made --fps 100")
    rows = rows_of(tmp_path)
    assert [row["frame"] for row in rows] == [f"a.mp4-{k:06d}" for k in range(0, 70, 10)]
    assert list(rows[0]) == ["image", "frame", "video"]  # without --shots


def test_the_change_of_colors_equals_the_slow_one():
    rng = np.random.default_rng(0)
    for spread in (2, 40, 255):
        before = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
        after = np.clip(before.astype(int) + rng.integers(-spread, spread + 1, before.shape), 0, 255).astype(np.uint8)
        fast = videos.measure_change(videos.count_colors(before), videos.count_colors(after))
        assert fast == pytest.approx(
            reference.color_change(before.reshape(-1, 3).tolist(), after.reshape(-1, 3).tolist())
        )


def test_a_fade_ends_no_shot_and_a_square_that_moves_none():
    plain = [videos.count_colors(np.full((8, 8, 3), level, np.uint8)) for level in range(256)]
    assert max(map(videos.measure_change, plain, plain[1:])) == 0
    assert videos.measure_change(plain[0], plain[40]) == 1
    square = np.zeros((2, 8, 8, 3), np.uint8)
    square[0, :3, :3] = square[1, 2:5, 4:7] = 255
    assert videos.measure_change(*map(videos.count_colors, square)) == 0


def test_a_second_call_decodes_nothing_and_other_shots_need_no_decoding(monkeypatch, capsys, tmp_path):
    make_video(tmp_path / "mine/a.mp4", [(RED, 10), (BLUE, 10)])
    prepare(monkeypatch, tmp_path, f"{FRAMES} --shots")
    assert len({row["shot"] for row in rows_of(tmp_path)}) == 2
    before = states(tmp_path / "made")
    make_video(tmp_path / "mine/b.mp4", [(GREEN, 10)])
    monkeypatch.setattr(
        videos, "decode", lambda path, real=videos.decode: real(path) if path.name == "b.mp4" else 1 / 0
    )
    prepare(monkeypatch, tmp_path, f"{FRAMES} --shots --val_share 0")
    assert "2 videos in made/frames, 1 made now; 0 left out" in capsys.readouterr().out
    assert before.items() - states(tmp_path / "made").items() == {
        ("train_groups.csv", before["train_groups.csv"])
    }  # nothing else was touched
    prepare(monkeypatch, tmp_path, f"{FRAMES} --shots 0.99 --val_share 0")
    assert {row["shot"] for row in rows_of(tmp_path)} == {"a.mp4-s1", "b.mp4-s1"}
    line = error_of(monkeypatch, capsys, tmp_path, "video mine --out made --fps 3")
    assert "--out made/frames/a.mp4: is not of this video at --fps 3; remove it" in line


@pytest.mark.parametrize("call", [1, 2, 6])
def test_a_call_that_is_cut_off_leaves_whole_videos_alone(monkeypatch, tmp_path, call):
    for name in ("a.mp4", "b.mp4"):
        make_video(tmp_path / "mine" / name, [(RED, 10), (BLUE, 10)])
    prepare(monkeypatch, tmp_path, f"{FRAMES} --shots")
    want = states(tmp_path / "made")
    (tmp_path / "made").rename(tmp_path / "whole")
    calls, save = [], Image.Image.save

    def cut_off(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        save(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(Image.Image, "save", cut_off)
        prepare(monkeypatch, tmp_path, f"{FRAMES} --shots")
    assert stop.value.code == 130
    assert not list((tmp_path / "made").glob("*.csv"))
    assert (tmp_path / "made/frames/a.mp4").exists() == (call == 6)  # four frames a video
    assert not (tmp_path / "made/frames/b.mp4").exists()
    prepare(monkeypatch, tmp_path, f"{FRAMES} --shots")
    assert states(tmp_path / "made") == want


def test_two_calls_do_not_write_into_one_folder(monkeypatch, capsys, tmp_path):
    make_video(tmp_path / "mine/a.mp4", [(RED, 10)])
    prepare(monkeypatch, tmp_path, FRAMES)
    code = "import fcntl; f = open('made/lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, **pipes) as other:
        other.stdout.readline()
        line = error_of(monkeypatch, capsys, tmp_path, FRAMES)
        other.communicate("\n")
    assert "--out made: another call is writing there; wait for its end" in line


def test_damaged_videos_are_named_in_a_line_each_and_the_rest_goes_on(monkeypatch, capsys, tmp_path):
    make_video(tmp_path / "mine/whole.mp4", [(RED, 20)])
    make_video(tmp_path / "mine/half.mkv", [(RED, 40), (BLUE, 40)])
    make_video(tmp_path / "mine/holed.mp4", [(RED, 40), (BLUE, 40)])
    half, holed = (tmp_path / "mine/half.mkv").read_bytes(), bytearray((tmp_path / "mine/holed.mp4").read_bytes())
    (tmp_path / "mine/half.mkv").write_bytes(half[: len(half) // 2])
    with av.open(tmp_path / "mine/holed.mp4") as container:
        second = [packet for packet in container.demux(video=0) if packet.is_keyframe][1]
        at = second.pos + second.size // 2
    holed[at : at + 8] = b"\xa5" * 8
    (tmp_path / "mine/holed.mp4").write_bytes(holed)
    (tmp_path / "mine/junk.avi").write_bytes(b"no video" * 100)
    (tmp_path / "mine/notes.txt").write_text("no video")
    prepare(monkeypatch, tmp_path, FRAMES)
    printed = capsys.readouterr()
    assert "video: 1 videos in made/frames, 1 made now; 3 left out" in printed.out
    half, holed, junk = sorted(line for line in printed.err.splitlines() if "left out" in line)
    assert half.startswith("mine/half.mkv: ends after ") and half.endswith(" of 8.0 seconds; the video is left out")
    assert holed == "mine/holed.mp4: frame 40 is corrupt; the video is left out"
    assert junk == "mine/junk.avi: Invalid data found when processing input; the video is left out"
    assert {f.name for f in (tmp_path / "made/frames").iterdir()} == {"whole.mp4"}
    assert {row["video"] for row in rows_of(tmp_path)} == {"whole.mp4"}
    (tmp_path / "mine/whole.mp4").unlink()
    assert "mine: none of its 3 videos can be read" in error_of(monkeypatch, capsys, tmp_path, FRAMES)


@pytest.mark.skipif(not hasattr(av.video.stream.VideoStream, "set_display_rotation"), reason="PyAV writes none")
def test_a_video_that_is_turned_is_seen_upright(monkeypatch, tmp_path):
    make_video(tmp_path / "mine/a.mp4", [(RED, 1)], rotation=90)
    prepare(monkeypatch, tmp_path, FRAMES)
    image = np.array(Image.open(tmp_path / "made" / rows_of(tmp_path)[0]["image"]))
    assert image.shape == (96, 64, 3)
    # the square was at the left of the upper edge: counterclockwise, at the lower end of the left edge
    assert image[88, 16].min() > 220 and image[88, 50].min() < 100 and image[8, 16].min() < 100


@pytest.mark.parametrize(
    ("names", "share", "held"),
    [("a", 0.9, ""), ("abcd", 0.2, "c"), ("abcde", 0.4, "bd"), ("abc", 0.99, "ac"), ("abcd", 0, ""), ("ab", 0.5, "b")],
)
def test_validation_videos_are_spread_evenly_and_leave_one_to_train_on(names, share, held):
    assert "".join(videos.choose_validation([*names], share)) == held


def test_no_video_is_in_both_tables_and_hidden_files_and_links_are_no_videos(monkeypatch, tmp_path):
    for name in ("a.mp4", "b.mp4", ".hidden.mp4", "@eaDir/c.mp4"):
        make_video(tmp_path / "mine" / name, [(RED, 10)])
    (tmp_path / "mine/link.mp4").symlink_to("a.mp4")
    prepare(monkeypatch, tmp_path, f"{FRAMES} --val_share 0.5")
    assert [{row["video"] for row in rows_of(tmp_path, split)} for split in ("train", "val")] == [{"a.mp4"}, {"b.mp4"}]
    prepare(monkeypatch, tmp_path, f"{FRAMES} --val_share 0")
    assert {row["video"] for row in rows_of(tmp_path)} == {"a.mp4", "b.mp4"}
    assert not (tmp_path / "made/val_groups.csv").exists()  # it would name what is trained on now


def test_a_training_and_retrieval_take_the_frames_and_their_groups(monkeypatch, capsys, tmp_path):
    for name, scenes in (("a", [RED, BLUE]), ("b", [GREEN, RED]), ("c, d", [BLUE, GREEN]), ("é", [RED, GREEN])):
        make_video(tmp_path / f"mine/{name}.mp4", [(color, 10) for color in scenes])
    prepare(monkeypatch, tmp_path, f"{FRAMES} --shots --val_share 0.5")
    options = "--dataset path --data_folder made --size 32 --num_workers 0 --instance_ranks made/{}_groups.csv"
    train = "--model resnet8 --epochs 1 --batch_size 4 --memorybank_size 16 --mixed_out_in --exp_name a"
    run(monkeypatch, tmp_path, f"{options.format('train')} {train}")
    printed = capsys.readouterr().out
    assert "rank 0: same frame, 8 of them" in printed
    assert "rank 1: same shot, 4 of them" in printed
    assert "rank 2: same video, 2 of them" in printed
    run(monkeypatch, tmp_path, f"{options.format('val')} --ckpt save/SupCon/path_models/a", "retrieval")
    record = result(tmp_path, "retrieval_path_*")
    assert record["queries"] == {"frame": 0, "shot": 8, "video": 8}
    assert record["metrics"].keys() == {"shot", "video", "ranks"}
    assert json.loads((tmp_path / "made/frames/é.mp4/video.json").read_text())["fps"] == 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("none", "none: no such folder"),
        ("empty", "empty: holds no video; endings are .3gp, "),
        ("mine --out mine/made", "--out mine/made: is inside the source mine"),
        ("mine --fps 0", "--fps 0: must be more than 0"),
        ("mine --fps nan", "--fps nan: must be more than 0"),
        ("mine --shots 1", "--shots 1: must lie between 0 and 1"),
        ("mine --val_share 1", "--val_share 1: must lie in [0, 1)"),
        ("odd", r"a table cannot hold the name ' a.mp4'; rename the video"),
        ("mine", 'needs PyAV; pip install ".[video]"'),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, tmp_path, options, reason):
    for folder, name in (("mine", "a.mp4"), ("odd", " a.mp4"), ("empty", "notes.txt")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    monkeypatch.setitem(sys.modules, "av", None)
    assert reason in error_of(monkeypatch, capsys, tmp_path, f"video {options}")

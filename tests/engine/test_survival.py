"""Runs that are killed, stopped or damaged go on as if nothing had been."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from commands import ROOT, error_of, run
from processes import start, wait_until

import util
from engine.run import checkpoint, run_log, runs

# a checkpoint after every step
RUN = "--model resnet8 --batch_size 128 --memorybank_size 256 --mixed_out_in --exp_name a --save_minutes 1e-9"
RUN += " --save_freq 2 --resume auto"
FEW_STEPS = RUN.replace("batch_size 128", "batch_size 256")
FOLDER = "save/SupCon/digits_models/a"


def same(a, b) -> bool:
    """Whether two contents of checkpoints are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def outcome(folder):
    """What a run leaves: its checkpoints, and its log without what is timing."""
    log = run_log.read_json_lines(folder / FOLDER / "log.jsonl")
    checkpoints = {f.name: torch.load(f, weights_only=True) for f in (folder / FOLDER).glob("*.pth")}
    checkpoints.pop("previous.pth")
    return checkpoints, [{k: v for k, v in record.items() if k not in runs.TIMING} for record in log]


def written_at(path) -> int:
    """When a file was written; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def half_written_in(folder) -> bool:
    """Whether a last.pth is being written in a run's folder, or was when the run was killed."""
    return bool(list(folder.glob("last.pth.*.tmp")))


def finish(folder, words, **how):
    process = start(folder, words.split(), **how)
    process.join()
    assert process.exitcode == 0, (folder / "output.txt").read_text()


def kill_and_go_on(folder, words, kills, seed):
    """Kill a run so many times at random moments after its first checkpoint, every other time inside the writing of
    one; then let it end. Returns how many kills left a checkpoint half-written.
    """
    rng, last, half_written = random.Random(seed), folder / FOLDER / "last.pth", 0
    for i in range(kills):
        process = start(folder, words.split(), slow_writes=0.3 * (i % 2))
        written = written_at(last)
        wait_until(lambda written=written: written_at(last) > written, process)
        if i % 2:
            wait_until(lambda: half_written_in(last.parent), process)
        time.sleep(rng.uniform(0, 0.25))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (folder / "output.txt").read_text()
        half_written += half_written_in(last.parent)
    finish(folder, words)
    assert (folder / "output.txt").read_text().count("resumed save") == kills
    return half_written


def check_that_kills_leave_no_trace(folder, words, kills):
    finish(folder / "whole", words)
    assert kill_and_go_on(folder / "killed", words, kills, seed=kills) >= kills // 4
    (checkpoints, log), (want_checkpoints, want_log) = outcome(folder / "killed"), outcome(folder / "whole")
    assert log == want_log
    assert checkpoints.keys() == want_checkpoints.keys()
    for name in checkpoints:
        assert same(checkpoints[name], want_checkpoints[name]), name


def test_a_run_killed_twice_ends_equal_to_the_bit_to_one_left_alone(tmp_path):
    check_that_kills_leave_no_trace(tmp_path, f"{FEW_STEPS} --epochs 2 --num_workers 0", kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_twenty_times_ends_equal_to_the_bit_to_one_left_alone(tmp_path, workers):
    check_that_kills_leave_no_trace(tmp_path, f"{RUN} --epochs 10 --num_workers {workers}", kills=24)


# ---- signals ---------------------------------------------------------------------------------------------------------


def good(folder):
    """The newest checkpoint, whole."""
    return checkpoint.load(folder / FOLDER, "--resume")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_lets_the_step_end_saves_and_exits_with_75(tmp_path, number):
    process = start(tmp_path, f"{RUN} --epochs 1000 --num_workers 0".split())
    last = tmp_path / FOLDER / "last.pth"
    wait_until(last.exists, process)
    os.kill(process.pid, number)
    process.join(60)
    printed = (tmp_path / "output.txt").read_text()
    assert process.exitcode == 75, printed
    assert f"{number.name}: stopped after epoch" in printed
    assert good(tmp_path)["options"]["epochs"] == 1000


def test_a_second_ctrl_c_stops_at_once_and_leaves_the_checkpoint_before(tmp_path):
    process = start(tmp_path, f"{RUN} --epochs 1000 --num_workers 0".split(), slow_writes=60)
    wait_until(lambda: half_written_in(tmp_path / FOLDER), process)
    checkpoint.save(tmp_path / "hand.pth", {"model": {}, "epoch": 3})
    shutil.copy(tmp_path / "hand.pth", tmp_path / FOLDER / "last.pth")
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGINT)  # within a second: torchrun's echo of the first
    time.sleep(1.5)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    process.join(20)
    assert process.exitcode == 130
    assert good(tmp_path)["epoch"] == 3


def test_a_second_start_of_a_living_run_is_refused_and_one_of_a_queued_job_waits(monkeypatch, capsys, tmp_path):
    process = start(tmp_path, f"{RUN} --epochs 1000 --num_workers 0".split(), slow_writes=1)
    wait_until((tmp_path / FOLDER / "last.pth").exists, process)
    again = f"{RUN} --epochs 1 --num_workers 0"
    for how in (f"--resume {FOLDER}", "--overwrite"):
        line = error_of(monkeypatch, capsys, tmp_path, again.replace("--resume auto", how))
        assert f"--exp_name a: {FOLDER} is being written by process {process.pid} on " in line
    wait_until(lambda: half_written_in(tmp_path / FOLDER), process)
    os.kill(process.pid, signal.SIGTERM)
    run(monkeypatch, tmp_path, again)
    process.join(60)
    assert process.exitcode == 75, (tmp_path / "output.txt").read_text()
    assert re.search(r"waiting for it to end, at most 300 s\n(.*\n)*resumed save.* after step", capsys.readouterr().out)


DRIVER = f"""
import os, sys, time
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import main_ce, processes, util
from engine.train import training

def main():
    where, validate = os.environ["WHERE"], training.validate
    if where == "save":
        processes.write_slowly(2)
    if where == "validation":
        def slow(*args):
            Path({FOLDER!r}, "validating").touch()
            time.sleep(2)
            return validate(*args)
        training.validate = slow
    if where == "crash" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        def crash(*args):
            if Path({FOLDER!r}, "last.pth").exists():
                raise ZeroDivisionError("once")
            return validate(*args)
        training.validate = crash
    util.run_command(main_ce.main)

if __name__ == "__main__":
    sys.argv[0] = "main_ce.py"
    main()
"""
CLASSIFIER = "--model resnet8 --batch_size 256 --exp_name a"


def torchrun(folder, where, words, more=()):
    (folder / "driver.py").write_text(DRIVER)
    with (folder / "output.txt").open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *more,
             "driver.py", *words.split()],
            cwd=folder, env=os.environ | {"WHERE": where}, stdout=output, stderr=output,
        )  # fmt: skip


@pytest.mark.slow  # without torchrun: the test of Ctrl-C below
@pytest.mark.parametrize("where", ["step", "validation", "save"])
def test_torchrun_asked_to_stop_during_a_step_a_validation_or_a_save_leaves_a_good_checkpoint(tmp_path, where):
    process = torchrun(tmp_path, where, f"{CLASSIFIER} --epochs 1000")
    sign = {"step": "last.pth", "validation": "validating", "save": "last.pth.*.tmp"}[where]
    wait_until(lambda: list((tmp_path / FOLDER).glob(sign)), process)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert time.monotonic() - asked < 20
    printed = (tmp_path / "output.txt").read_text()
    assert printed.count("SIGTERM: stopped after epoch") == 1, printed
    state = good(tmp_path)
    assert (state["epoch"] >= 1) or state["step"] >= 1
    assert len(state["processes"]) == 2


@pytest.mark.slow
def test_torchrun_starts_a_crashed_run_again_and_it_goes_on_by_itself(tmp_path):
    process = torchrun(tmp_path, "crash", f"{CLASSIFIER} --epochs 3", ["--max-restarts", "1"])
    process.wait(120)
    printed = (tmp_path / "output.txt").read_text()
    assert process.returncode == 0, printed
    assert "ZeroDivisionError: once" in printed
    assert f"resumed {FOLDER}/last.pth after epoch 1" in printed
    assert [r["epoch"] for r in run_log.read_json_lines(tmp_path / FOLDER / "log.jsonl")] == [1, 2, 3]


def test_ctrl_c_reaches_processes_and_loaders_and_another_number_of_processes_goes_on(monkeypatch, capsys, tmp_path):
    words = f"{FEW_STEPS} --epochs 2 --num_workers 1"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main_supcon.py"), *words.split(), "--nproc_per_node", "2"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    wait_until((tmp_path / FOLDER / "last.pth").exists, process)
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 75, printed
    assert len(re.findall("SIG(?:INT|TERM): stopped after epoch 1, step", printed)) == 1
    assert "Traceback" not in printed
    assert good(tmp_path)["step"] > 0
    run(monkeypatch, tmp_path, words)
    assert "in epoch 1, after step " in capsys.readouterr().out.split("resumed ")[1]
    log = run_log.read_json_lines(tmp_path / FOLDER / "log.jsonl")
    assert [r["epoch"] for r in log] == [1, 2]
    assert 1 < log[0]["loss"] < 6


# ---- resume ----------------------------------------------------------------------------------------------------------

SHORT = "--model resnet8 --batch_size 256 --mixed_out_in --exp_name a --num_workers 0"


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_with_a_line(monkeypatch, capsys, tmp_path):
    run(monkeypatch, tmp_path, f"{SHORT} --epochs 2")
    last = tmp_path / FOLDER / "last.pth"
    last.write_bytes(last.read_bytes()[:-100])
    run(monkeypatch, tmp_path, f"{SHORT} --epochs 3 --resume auto")
    printed = capsys.readouterr().out
    assert f"left out: --resume {FOLDER}/last.pth: not a readable checkpoint" in printed
    assert f"resumed {FOLDER}/previous.pth after epoch 1" in printed
    assert "resumed with other options: --epochs 3 (was 2)" in printed
    assert [r["epoch"] for r in run_log.read_json_lines(tmp_path / FOLDER / "log.jsonl")] == [1, 2, 3]
    starts = run_log.read_json_lines(tmp_path / FOLDER / "starts.jsonl")
    assert [s["after_epoch"] for s in starts] == [0, 1]


def test_where_all_checkpoints_are_damaged_nothing_is_started_anew(monkeypatch, capsys, tmp_path):
    run(monkeypatch, tmp_path, f"{SHORT} --epochs 2")
    for path in (tmp_path / FOLDER).glob("*.pth"):
        path.write_bytes(b"nothing")
    log = (tmp_path / FOLDER / "log.jsonl").read_bytes()
    error = error_of(monkeypatch, capsys, tmp_path, f"{SHORT} --epochs 3 --resume auto")
    assert "last.pth: not a readable checkpoint" in error
    assert error.endswith("and no earlier one is readable")
    assert (tmp_path / FOLDER / "log.jsonl").read_bytes() == log


def test_resume_auto_starts_from_scratch_once_and_ends_at_once_where_all_is_done(monkeypatch, capsys, tmp_path):
    run(monkeypatch, tmp_path, f"{CLASSIFIER} --epochs 1 --resume auto", "main_ce")
    assert capsys.readouterr().out.count("holds no checkpoint yet, this run starts from scratch") == 1
    before = (tmp_path / FOLDER / "last.pth").read_bytes()
    run(monkeypatch, tmp_path, f"{CLASSIFIER} --epochs 1 --resume auto", "main_ce")
    assert "epoch 1/1" not in capsys.readouterr().out
    assert (tmp_path / FOLDER / "last.pth").read_bytes() == before
    error = error_of(monkeypatch, capsys, tmp_path, f"{CLASSIFIER} --resume auto --overwrite", "main_ce")
    assert "--resume auto and --overwrite: give one" in error


def test_an_option_that_changes_the_mathematics_is_named_and_the_epoch_under_way_begins_anew(
    monkeypatch, capsys, tmp_path
):
    run(monkeypatch, tmp_path, f"{SHORT} --epochs 1")
    path = tmp_path / FOLDER / "last.pth"
    state = torch.load(path, weights_only=True)
    checkpoint.save(path, {**state, "epoch": 0, "step": 2})
    run(monkeypatch, tmp_path, f"{SHORT} --epochs 1 --resume auto --seed 4 --reduction anchors --print_freq 3")
    printed = capsys.readouterr().out
    assert "resumed with other options: --reduction anchors (was pairs), --seed 4 (was 0)\n" in printed
    assert "other images, --batch_size or --seed: the unfinished epoch starts again" in printed
    assert torch.load(path, weights_only=True)["epoch"] == 1


def test_overwrite_leaves_no_checkpoint_of_the_run_before(monkeypatch, tmp_path):
    run(monkeypatch, tmp_path, f"{SHORT} --epochs 2 --save_freq 2")
    run(monkeypatch, tmp_path, f"{SHORT} --epochs 1 --save_freq 2 --overwrite")
    assert {f.name for f in (tmp_path / FOLDER).glob("*.pth")} == {"last.pth"}
    assert [r["epoch"] for r in run_log.read_json_lines(tmp_path / FOLDER / "log.jsonl")] == [1]


# ---- disks, loaders, numbers -----------------------------------------------------------------------------------------


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before_it(monkeypatch, capsys, tmp_path):
    run(monkeypatch, tmp_path, f"{SHORT} --epochs 1")
    (tmp_path / FOLDER / "full").symlink_to("/dev/full")
    monkeypatch.setattr(checkpoint, "temporary_name", lambda path: path.with_name("full"))
    whole = (tmp_path / FOLDER / "last.pth").read_bytes()
    error = error_of(monkeypatch, capsys, tmp_path, f"{SHORT} --epochs 3 --resume auto")
    assert f"{FOLDER}/last.pth: cannot be written (No space left on device); last good checkpoint: {FOLDER}" in error
    assert (tmp_path / FOLDER / "last.pth").read_bytes() == whole
    assert not (tmp_path / FOLDER / "full").exists()
    assert good(tmp_path)["epoch"] == 1


class Deadly(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_loader_process_killed_for_memory_gives_advice():
    with pytest.raises(RuntimeError) as error:
        list(torch.utils.data.DataLoader(Deadly(), num_workers=1))
    assert "lack of memory; give fewer --num_workers" in util.fault(error.value)


def test_detect_anomaly_names_the_operation(monkeypatch, tmp_path):
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="returned nan values"):
        run(monkeypatch, tmp_path, f"{SHORT} --epochs 3 --detect_anomaly --learning_rate 1e30")

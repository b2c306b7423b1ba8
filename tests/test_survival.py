"""Runs that are killed, stopped or damaged go on as if nothing had been."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from commands import ROOT, error_of, run
from processes import start, wait_until

import training
import util

# a checkpoint after every step
RUN = "--model resnet8 --batch_size 128 --memorybank_size 256 --mixed_out_in --exp_name a --save_minutes 1e-9"
RUN += " --save_freq 2 --resume auto"
FOLDER = "save/SupCon/digits_models/a"
TIMING = "images_per_second"


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
    log = util.read_json_lines(folder / FOLDER / "log.jsonl")
    checkpoints = {f.name: torch.load(f, weights_only=True) for f in (folder / FOLDER).glob("*.pth")}
    checkpoints.pop("previous.pth")
    return checkpoints, [{k: v for k, v in record.items() if k != TIMING} for record in log]


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
        before = last.stat().st_mtime_ns if last.exists() else 0
        wait_until(lambda: last.exists() and last.stat().st_mtime_ns != before, process)
        if i % 2:
            wait_until((last.parent / "last.pth.tmp").exists, process)
        time.sleep(rng.uniform(0, 0.25))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (folder / "output.txt").read_text()
        half_written += (last.parent / "last.pth.tmp").exists()
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


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_twice_ends_equal_to_the_bit_to_one_left_alone(tmp_path, workers):
    check_that_kills_leave_no_trace(tmp_path, f"{RUN} --epochs 2 --num_workers {workers}", kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_twenty_times_ends_equal_to_the_bit_to_one_left_alone(tmp_path, workers):
    check_that_kills_leave_no_trace(tmp_path, f"{RUN} --epochs 10 --num_workers {workers}", kills=24)


def test_the_number_of_loader_processes_changes_no_weight(tmp_path):
    for workers in (0, 1, 4):
        finish(tmp_path / str(workers), f"{RUN.replace('128', '256')} --epochs 1 --num_workers {workers}")
    states = [torch.load(tmp_path / str(n) / FOLDER / "last.pth", weights_only=True) for n in (0, 1, 4)]
    for state in states[1:]:
        assert same(state["model"], states[0]["model"])
        assert same(state["optimizer"], states[0]["optimizer"])

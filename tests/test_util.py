"""The meters and the seeds."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import ROOT

import util


def test_the_mean_of_vectors_is_taken_by_entry():
    mean = util.Mean()
    for x in ([1.0, 2.0], [3.0, 6.0]):
        mean.update(torch.tensor(x))
    assert mean.value() == [2.0, 4.0]
    other = util.Mean()
    other.set_state(mean.state(), "cpu")
    for m in (mean, other):
        m.update(torch.tensor([8.0, 1.0]))
    assert other.value() == mean.value() == [4.0, 3.0]


def test_every_key_has_random_numbers_of_its_own_drawn_alone_or_with_others():
    keys = [(0, 1, "views", 0), (0, 1, "views", 1), (0, 1, "views", 2), (0, 2, "views", 0), (1, 1, "views", 0)]
    keys += [(0, 1, "order", 0), (-1, 1, "views", 0)]
    drawn = [set(util.keyed_generator(*key).random(500).tolist()) for key in keys]
    assert len(set().union(*drawn)) == 500 * len(keys)
    keys = [(3, 7), (3, 2**40), (1, 7), (3, 7)]  # in any order, again and again
    got = util.keyed_numbers(-5, keys, "views", 61)
    for (epoch, sample), numbers in zip(keys, got, strict=True):
        assert numbers.tolist() == util.keyed_generator(-5, epoch, "views", sample).random(61).tolist()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (util.InputError("--x: y"), "--x: y"),
        (OSError(5, "Input/output error", "a/last.pth"), "a/last.pth: Input/output error"),
        (FileNotFoundError(2, "No such file"), None),
        (RuntimeError("shapes differ"), None),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0.\n...\nRuntimeError: shapes differ"), None),
    ],
)
def test_what_ends_a_command_in_one_line_is_told_from_other_errors(error, line):
    assert util.fault(error) == line


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 9 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(12, "Cannot allocate memory"),
        lambda: torch.empty(2**60),
        lambda: np.empty(2**50),
    ],
)
def test_a_lack_of_memory_is_one_line_that_names_the_option(error):
    if callable(error):  # by torch's and NumPy's own words
        with pytest.raises((RuntimeError, MemoryError)) as raised:
            error()
        error = raised.value
    line = util.fault(error)
    assert ": give a smaller --batch_size" in line and str(error)[:40] in line and "\n" not in line


def test_a_reader_that_goes_away_ends_a_command_silently():
    printing = "import util\ndef main():\n for i in range(100_000): print(i)\nutil.run_command(main)"
    command = [sys.executable, "-c", printing]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_ctrl_c_ends_a_command_with_130_and_a_broken_pipe_of_its_own_is_no_readers_fault(capsys):
    def fail(error):
        raise error

    with pytest.raises(SystemExit, match="130"):
        util.run_command(lambda: fail(KeyboardInterrupt))
    assert capsys.readouterr().err == ""
    with pytest.raises(BrokenPipeError, match="a loader's"):
        util.run_command(lambda: fail(BrokenPipeError(32, "a loader's")))


def test_a_line_that_a_crash_cut_short_does_not_count(tmp_path):
    assert util.read_json_lines(tmp_path / "log") == []
    for epoch in (1, 2):
        util.append_json(tmp_path / "log", {"epoch": epoch})
    with (tmp_path / "log").open("a") as file:
        file.write('{"epoch": 3, "lo')
    assert util.read_json_lines(tmp_path / "log") == [{"epoch": 1}, {"epoch": 2}]

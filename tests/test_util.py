"""The meters and the seeds."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import ROOT

import util


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

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


def test_every_key_has_random_numbers_of_its_own():
    keys = [(0, 1, "views", 0), (0, 1, "views", 1), (0, 1, "views", 2), (0, 2, "views", 0), (1, 1, "views", 0)]
    keys += [(0, 1, "order", 0), (-1, 1, "views", 0)]
    drawn = [set(util.keyed_generator(*key).random(500).tolist()) for key in keys]
    assert len(set().union(*drawn)) == 500 * len(keys)
    assert drawn[0] == set(util.keyed_generator(*keys[0]).random(500).tolist())


def test_numbers_by_key_are_those_of_each_keys_own_generator():
    keys = [(3, 7), (3, 2**40), (1, 7), (3, 7)]  # in any order, again and again
    got = util.keyed_numbers(-5, keys, "views", 61)
    for (epoch, sample), numbers in zip(keys, got, strict=True):
        assert numbers.tolist() == util.keyed_generator(-5, epoch, "views", sample).random(61).tolist()


def test_what_ends_a_command_in_one_line_is_known_from_other_errors():
    assert util.fault(util.InputError("--x: y")) == "--x: y"
    assert util.fault(OSError(5, "Input/output error", "a/last.pth")) == "a/last.pth: Input/output error"
    assert util.fault(FileNotFoundError(2, "No such file")) is None
    assert util.fault(RuntimeError("shapes differ")) is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 9 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_a_lack_of_memory_is_one_line_that_names_the_option(error):
    line = util.fault(error)
    assert ": give a smaller --batch_size" in line
    assert str(error)[:40] in line
    assert "\n" not in line


def test_memory_that_torch_and_numpy_cannot_have_is_known_by_their_own_words():
    for make in (lambda: torch.empty(2**60), lambda: np.empty(2**50)):
        with pytest.raises((RuntimeError, MemoryError)) as error:
            make()
        assert "give a smaller --batch_size" in util.fault(error.value)


def test_an_error_inside_a_loader_process_is_not_taken_for_its_end():
    error = RuntimeError("Caught RuntimeError in DataLoader worker process 0.\n...\nRuntimeError: shapes differ")
    assert util.fault(error) is None


def test_ctrl_c_ends_a_command_with_130_and_no_traceback(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="130"):
        util.run_command(main)
    assert capsys.readouterr().err == ""


def test_a_reader_that_goes_away_ends_a_command_silently():
    printing = "import util\ndef main():\n for i in range(100_000): print(i)\nutil.run_command(main)"
    command = [sys.executable, "-c", printing]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_another_broken_pipe_is_no_readers_fault():
    def main():
        raise BrokenPipeError(32, "a loader's")

    with pytest.raises(BrokenPipeError, match="a loader's"):
        util.run_command(main)


def test_a_line_that_a_crash_cut_short_does_not_count(tmp_path):
    assert util.read_json_lines(tmp_path / "log") == []
    for epoch in (1, 2):
        util.append_json(tmp_path / "log", {"epoch": epoch})
    with (tmp_path / "log").open("a") as file:
        file.write('{"epoch": 3, "lo')
    assert util.read_json_lines(tmp_path / "log") == [{"epoch": 1}, {"epoch": 2}]

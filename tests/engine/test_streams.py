"""An output that breaks never ends a training."""

import io
import os
import signal
import sys
from functools import partial

import pytest
from commands import run
from processes import CONTEXT, start, wait_until

import util
from engine.processes import streams
from engine.run import checkpoint


def broken_pipe():
    """A stream whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.parametrize("broken", [broken_pipe, partial(open, "/dev/full", "w")], ids=["pipe", "full disk"])
def test_an_output_that_breaks_falls_silent_and_the_other_one_says_so_once(monkeypatch, broken):
    other = io.StringIO()
    monkeypatch.setattr(sys, "stdout", broken())
    monkeypatch.setattr(sys, "stderr", other)
    with streams.lasting():
        for _ in range(3):
            print("epoch", flush=True)
    assert other.getvalue().count("standard output cannot be written (") == 1
    assert len(other.getvalue().splitlines()) == 1
    sys.stdout.close()  # nothing that was left in it meets the broken end


def test_both_may_break_and_what_other_code_writes_breaks_nothing(monkeypatch):
    pipes = broken_pipe(), broken_pipe()
    monkeypatch.setattr(sys, "stdout", pipes[0])
    monkeypatch.setattr(sys, "stderr", pipes[1])
    with streams.lasting():
        print("a", flush=True)
        print("b", file=sys.stderr, flush=True)
        sys.stderr.writelines(["c", "d"])
        os.write(pipes[0].fileno(), b"of a library")
    assert (sys.stdout, sys.stderr) == pipes
    for stream in pipes:
        stream.close()


def test_ctrl_c_that_also_ends_the_reader_of_a_training_lets_it_save_and_exit_with_75(tmp_path):
    os.mkfifo(tmp_path / "output.txt")  # as `2>&1 | tee log` does
    reader = os.open(tmp_path / "output.txt", os.O_RDONLY | os.O_NONBLOCK)
    words = "--model resnet8 --epochs 1000 --exp_name a --save_minutes 1e-9"
    process = start(tmp_path, words.split())
    last = tmp_path / "save/SupCon/digits_models/a/last.pth"
    wait_until(last.exists, process)
    os.close(reader)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 75
    assert checkpoint.load(last)["step"] + checkpoint.load(last)["epoch"] > 0


def test_a_training_ends_well_whose_output_goes_to_a_full_disk(monkeypatch, tmp_path):
    with open("/dev/full", "w") as full, open("/dev/full", "w") as other:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", other)
        run(monkeypatch, tmp_path, "--model resnet8 --batch_size 512 --epochs 1 --exp_name a", "main_ce")
    assert checkpoint.load(tmp_path / "save/SupCon/digits_models/a/last.pth")["epoch"] == 1


def test_a_class_name_that_the_output_cannot_encode_is_shown_with_escapes(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    util.run_command(lambda: print("café \udcff"))
    assert shown.getvalue() == b"caf\\xe9 \\udcff\n"


def _with_closed_streams():
    for number in (1, 2):
        os.close(number)
    sys.stdout = sys.stderr = None
    with pytest.raises(SystemExit) as stop:
        util.run_command(_open_and_fail)
    os._exit(stop.value.code)


def _open_and_fail():
    with open("file", "wb") as file:
        assert file.fileno() > 2
        os.write(2, b"a handler's message")
        print("a", flush=True)
    raise util.InputError("said to nobody")


def test_closed_streams_lead_nowhere_and_not_into_the_files_of_the_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    process = CONTEXT.Process(target=_in_folder, args=(str(tmp_path),))
    process.start()
    process.join(60)
    assert process.exitcode == 2
    assert (tmp_path / "file").read_bytes() == b""


def _in_folder(folder):
    os.chdir(folder)
    _with_closed_streams()

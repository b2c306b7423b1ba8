"""Signals in programs of others, in threads, and in evaluations."""

import json
import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from processes import start

from engine.processes import signals
from engine.run import checkpoint
from networks import resnet


@pytest.fixture
def programs_own():
    """A handler that the program has already."""
    came = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    yield came
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("enter", [signals.StopSignals, lambda: signals.passed_on([])], ids=["stop", "pass on"])
def test_the_handlers_of_a_program_are_put_back(programs_own, enter):
    with enter():
        signal.raise_signal(signal.SIGTERM)
        assert programs_own == []
    signal.raise_signal(signal.SIGTERM)
    assert programs_own == [signal.SIGTERM]
    assert signals.asked() is None


def test_a_handler_that_is_not_of_python_stays(monkeypatch):
    taken = []
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGUSR1 else signal.SIG_DFL)
    monkeypatch.setattr(signal, "signal", lambda number, handler: taken.append(number))
    with signals.StopSignals():
        assert taken == [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT]


@pytest.mark.parametrize("enter", [signals.StopSignals, lambda: signals.passed_on([])], ids=["stop", "pass on"])
def test_in_a_thread_all_works_without_handlers_and_says_so(capsys, programs_own, enter):
    def within():
        with enter():
            pass

    with ThreadPoolExecutor() as pool:
        pool.submit(within).result()
    assert capsys.readouterr().err.startswith("not in the main thread: signals keep their effect in this program")
    signal.raise_signal(signal.SIGTERM)
    assert programs_own == [signal.SIGTERM]


def test_a_signal_is_passed_on_to_the_processes_and_a_second_ctrl_c_ends_them():
    class Process:
        exitcode, done = None, ()

        def terminate(self):
            self.done += ("terminate",)

        def kill(self):
            self.done += ("kill",)

    process = Process()
    with signals.passed_on([process]) as came:
        for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGINT):
            signal.raise_signal(number)
    assert process.done == ("terminate", "terminate", "kill")
    assert came == [signal.SIGUSR1, signal.SIGINT, signal.SIGINT]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_evaluation_under_a_signal_at_any_moment_leaves_nothing_half_written(tmp_path, number, processes):
    encoder = resnet.encoder("resnet8", small_images=True)
    state = {"model": {f"encoder.{k}": v for k, v in encoder.state_dict().items()}, "options": {"model": "resnet8"}}
    checkpoint.save(tmp_path / "last.pth", state)
    words = f"--ckpt last.pth --num_workers 1 --features_cache kept --nproc_per_node {processes}".split()
    rng, results = random.Random(number), tmp_path / "save" / "results"
    for moment in (0.2, rng.uniform(0.4, 2), rng.uniform(0.4, 2)):
        process = start(tmp_path, words, "retrieval")
        process.join(moment)
        if process.is_alive():
            os.kill(process.pid, number)
        process.join(30)
        ended = {signal.SIGTERM: (-signal.SIGTERM, 143), signal.SIGINT: (130,)}[number]
        assert process.exitcode in (0, *ended), (tmp_path / "output.txt").read_text()
    assert "Traceback" not in (tmp_path / "output.txt").read_text()
    for record in results.glob("*.json") if results.exists() else ():
        assert json.loads(record.read_text())["metrics"]
    for kept in (tmp_path / "kept").glob("*.pt"):
        assert torch.load(kept, weights_only=True)["features"].isfinite().all()

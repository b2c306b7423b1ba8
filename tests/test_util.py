"""The schedule, the meters and the seeds."""

import itertools
import math
import subprocess
import sys

import pytest
import reference
import torch
from commands import ROOT

import util

COSINE = dict(base=0.3, epochs=500, cosine=True, decay_rate=0.1)


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("warm_epochs", [0, 10])
def test_learning_rate_equals_the_reference(cosine, warm_epochs):
    options = dict(base=0.5, epochs=100, cosine=cosine, decay_rate=0.1, decay_epochs=(40, 70), warm_epochs=warm_epochs)
    for progress in [0, 0.3, 5, 9.99, 10, 10.5, 39.5, 40, 40.9, 70, 99, 99.9]:
        assert util.learning_rate(progress, **options) == pytest.approx(reference.learning_rate(progress, **options))


def test_cosine_ends_at_the_cube_of_the_decay_rate_and_never_rises():
    rates = [util.learning_rate(e, **COSINE) for e in range(500)]
    assert rates[-1] == pytest.approx(0.3 * 0.1**3)
    assert all(a > b for a, b in itertools.pairwise(rates))


def test_learning_rate_is_constant_inside_an_epoch_after_the_warm_up():
    assert util.learning_rate(20, **COSINE) == util.learning_rate(20.99, **COSINE)


def test_warm_up_starts_at_a_hundredth_rises_each_step_and_meets_the_schedule():
    rates = [util.learning_rate(s / 10, **COSINE, warm_epochs=10) for s in range(101)]
    assert rates[0] == pytest.approx(0.01)
    assert all(a < b for a, b in itertools.pairwise(rates))
    floor = 0.3e-3
    assert rates[99] == pytest.approx(floor + (0.3 - floor) * 0.5 * (1 + math.cos(math.pi * 10 / 500)), rel=0.02)


def test_warm_up_is_for_large_batches_or_on_demand_and_at_most_half_a_run():
    assert util.warm_up_epochs(False, 256, 500) == 0
    assert util.warm_up_epochs(False, 257, 500) == 10
    assert util.warm_up_epochs(True, 64, 500) == 10
    assert util.warm_up_epochs(True, 64, 6) == 3


def test_steps_multiply_by_the_decay_rate_after_each_decay_epoch():
    options = dict(base=1.0, epochs=10, cosine=False, decay_rate=0.1, decay_epochs=(3, 6))
    assert [round(util.learning_rate(e, **options), 6) for e in range(10)] == [1] * 3 + [0.1] * 3 + [0.01] * 4


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


def test_what_ends_a_command_in_one_line_is_known_from_other_errors():
    assert util.fault(util.InputError("--x: y")) == "--x: y"
    assert util.fault(OSError(5, "Input/output error", "a/last.pth")) == "a/last.pth: Input/output error"
    assert util.fault(FileNotFoundError(2, "No such file")) is None
    assert util.fault(RuntimeError("shapes differ")) is None


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

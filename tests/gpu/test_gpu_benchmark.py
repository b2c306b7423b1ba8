"""The benchmark behind `make gpu`: what of it can be held against something without a GPU."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from commands import ROOT

from benchmarks import gpu, gpu_parts
from losses import RINCELoss
from util import InputError


@pytest.mark.parametrize("min_probability", [0, 1e-7, 1e-2])
def test_the_published_form_of_the_loss_has_the_value_and_gradient_of_ours(min_probability):
    g = torch.Generator().manual_seed(0)
    query, key, bank = (F.normalize(torch.randn(n, 16, generator=g).double(), dim=1) for n in (40, 40, 200))
    labels, known = (torch.randint(gpu_parts.CLASSES, (n,), generator=g) for n in (40, 200))
    known[-20:] = -1
    criterion = RINCELoss(gpu_parts.TABLE, min_probability=min_probability)
    query.requires_grad_()
    wanted = criterion(query, key, labels, bank, known)
    found = gpu_parts.published_loss(query, key, labels, bank, known, criterion)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(loss, query)[0] for loss in (found, wanted)))


def test_a_part_is_metered_without_those_inside_it():
    readings = iter([0, 1, 4, 10, 10, 12])
    parts = gpu_parts.Parts(lambda: next(readings), lambda begin, end: end - begin)
    with parts.part("encoders"), parts.part("loss"):
        pass
    with parts.part("loss"):
        pass
    assert dict(parts.totals()) == {"encoders": 7, "loss": 5}


def test_traffic_is_what_operations_read_and_write_and_views_are_none():
    x = torch.ones(10, 4)
    with gpu_parts.Traffic() as traffic:
        x.view(4, 10)
        y = x + 1  # reads and writes 160 bytes
        y.mul_(2)
        torch.empty(100)
    assert traffic.operations == 2
    assert 640 <= traffic.bytes <= 3 * 320  # an operation in place may be counted with what it returns


def test_the_results_of_tests_are_read_as_sentences(tmp_path):
    path = tmp_path / "tests.xml"
    path.write_text(
        '<testsuites><testsuite><testcase name="test_steps_wait_for_nothing"/><testcase name="test_a_loss_is_alike[x]">'
        '<failure message="m"/></testcase><testcase name="test_of_several"><skipped message="needs two"/></testcase>'
        "</testsuite></testsuites>"
    )
    found = gpu.results(path)
    assert found["hold"] == ["steps wait for nothing"]
    assert found["do not hold"] == ["a loss is alike[x]"]
    assert found["left out"] == ["of several: needs two"]
    assert gpu.of_tests(found)[:2] == [
        "Of 3 checks 1 hold, 1 do not, 1 were left out.",
        "  does not hold: a loss is alike[x]",
    ]
    with pytest.raises(InputError, match=r"--tests .*none.xml: cannot be read .*did pytest run"):
        gpu.results(tmp_path / "none.xml")


def test_a_machine_without_so_many_gpus_is_told_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"^no CUDA device: "):
        gpu.check("cuda", 1)
    gpu.check("cpu", 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpu.check("cuda", 2)
    with pytest.raises(InputError, match="--gpus 8 is more than the 2 GPUs"):
        gpu.check("cuda", 8)


def test_what_to_set_follows_the_figures():
    fed, forms = {"images/s a core": 100.0}, [{"ms": 9.0}, {"ms": 4.0}, {"ms": 2.0}]
    case = {"title": "A", "precision": "bfloat16", "images/s": 1000.0, "fed": fed, "forms": forms, "busy": 0.5}
    lines = gpu.to_set({"machine": {"cores": 16}, "cases": [case, {"title": "B", "error": "out of memory"}]})
    assert lines[2] == (
        "  A: --num_workers 12 from raw packs; --precision auto is bfloat16, 2.00 times as fast as float32"
    )
    assert lines[3] == "    the device idles 50 % of a step: --compile, or more images a GPU"
    assert len(lines) == 4
    (line,) = gpu.to_set({"machine": {"cores": 4}, "cases": [case | {"busy": 0.9, "forms": forms[::-1]}]})[2:]
    assert "12 loader processes would feed it, and there are 4 cores: --num_workers 4" in line
    assert "--precision float32, since bfloat16 is slower here" in line


@pytest.mark.slow
def test_the_whole_benchmark_runs_on_a_cpu_and_says_that_it_measured_no_gpu(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--small", "--gpus", "2", "--out"]
    done = subprocess.run([*command, str(tmp_path / "gpu.json")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("This ran on a CPU to try the code: nothing about a GPU was measured.")
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert {"machine", "rates", "cases", "several"} == record.keys()
    for case in record["cases"]:
        _, log_space, published = case["losses"]
        assert max(log_space["differs by"], published["differs by"]) < 1e-4
        rows = {row["part"]: row for row in case["parts"]}
        assert rows.keys() == {*gpu_parts.PARTS, "whole step", "the host's orders"}
        assert sum(rows[p]["ms"] for p in gpu_parts.PARTS) == pytest.approx(rows["whole step"]["ms"], rel=0.05)
        assert rows["encoders"]["products allow"] > rows["optimiser"]["products allow"] == 0
    assert [row["GPUs"] for row in record["several"]] == [1, 2, 1, 2]

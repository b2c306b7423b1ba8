"""What is behind `make gpu`, its benchmark above all: what of it can be held against something without a GPU."""

import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from commands import ROOT
from processes import children

from benchmarks import gpu
from engine.cli import config, options
from util import InputError


def test_a_machine_without_so_many_gpus_is_told_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"^--device cuda: this machine has no CUDA device"):
        gpu.check(1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpu.check(2)
    with pytest.raises(InputError, match="--check 8: this machine has 2 GPUs"):
        gpu.check(8)


def test_what_to_set_follows_the_results():
    forms = [{"ms": 9.0}, {"ms": 4.0}, {"ms": 2.0}]
    case = {"title": "A", "precision": "bfloat16", "images/s": 1000.0, "TFLOP/s": 5.0, "busy": 0.5, "forms": forms}
    case["fed"] = {"workers": 4, "images/s": 400.0, "waiting": 0.6}
    page = "\n".join(gpu.describe_case(case))
    assert "the device works 50 % of a step: set --compile, or more images per GPU" in page
    assert "what would feed it: python -m benchmarks.data --takes 1000" in page
    assert page.endswith("bfloat16 is 2.00 times as fast as float32")
    case |= {"busy": 0.0, "forms": forms[::-1]}  # 0: the profiler recorded no work, so nothing is said of idleness
    case["fed"]["waiting"] = 0.05
    page = "\n".join(gpu.describe_case(case))
    assert "the device works" not in page
    assert "what would feed it" not in page
    assert page.endswith("bfloat16 is 0.44 times as fast as float32: set --precision float32")


# ---- what fails ------------------------------------------------------------------------------------------------------


def broken(*_, **__):
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate\nand more")


REASON = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"


def run_benchmark(monkeypatch, capsys, folder):
    """Exit code, page and record of benchmarks.gpu in small, over one tiny case."""
    monkeypatch.setitem(gpu.CASES, "cpu", (gpu.Case("resnet8", 32, 4, 32),))
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--out", str(folder / "gpu.json")])
    code = 0
    try:
        gpu.main()
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().out, json.loads((folder / "gpu.json").read_text())


def test_a_section_that_fails_is_said_next_to_what_was_measured_and_the_code_is_1(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu, "measure_card", lambda device: {"rates": {"float32 TFLOP/s": 1.0}})
    monkeypatch.setattr(gpu.loss, "measure", lambda *_: [{"head": "RINCE out_in", "median ms": 5.0}])
    monkeypatch.setattr(gpu, "measure_feeding", broken)
    code, printed, record = run_benchmark(monkeypatch, capsys, tmp_path)
    assert code == 1
    (case,) = record["cases"]
    assert case["errors"] == {"feeding": REASON}
    assert "errors" not in record
    assert case["images/s"] > 0
    assert len(case["forms"]) == 3
    assert case["forms"][1]["loss differs by"] < 0.1
    assert printed.startswith("This ran on a CPU to try the code: nothing about a GPU was measured.")
    assert printed.count(f"not measured: feeding: {REASON}\n") == 1
    assert "RINCE out_in" in printed


def test_a_device_that_does_nothing_is_said(monkeypatch, capsys, tmp_path):
    for owner, name in ((gpu, "measure_card"), (gpu, "Training"), (gpu, "compare"), (gpu.loss, "measure")):
        monkeypatch.setattr(owner, name, broken)
    code, printed, record = run_benchmark(monkeypatch, capsys, tmp_path)
    assert code == 1
    assert record["errors"].keys() == {"the card by itself", "the loss"}
    assert record["cases"][0]["errors"].keys() == {"a step", "feeding", "forms"}
    assert printed.count(REASON) == 5


@pytest.mark.slow
def test_the_whole_benchmark_runs_on_a_cpu_and_says_that_it_measured_no_gpu(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--out", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("This ran on a CPU to try the code: nothing about a GPU was measured.")
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record.keys() == {"machine", "rates", "cases", "loss"}  # no errors
    for case in record["cases"]:
        assert case.keys() == {"title", "precision", "images/s", "TFLOP/s", "fed", "forms"}
        assert case["fed"]["images/s"] > 0
        assert 0 <= case["fed"]["waiting"] <= 1


# ---- what the tests of a GPU stand on --------------------------------------------------------------------------------


def test_children_are_all_processes_that_one_has_started_but_for_those_that_compile():
    words = [sys.executable, "-c", "import time; time.sleep(60)"]
    own = subprocess.Popen(words)
    compiler = subprocess.Popen([*words, "torch/_inductor/compile_worker/__main__.py"])
    try:
        found = children(os.getpid())
        assert own.pid in found
        assert compiler.pid not in found
    finally:
        for process in (own, compiler):
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo Default; echo ' Exclusive_Process '", ["Default", "Exclusive_Process"]), ("echo no devices; exit 6", [])],
)
def test_what_nvidia_smi_says_of_each_gpu_is_taken_and_nothing_where_it_fails(monkeypatch, tmp_path, script, said):
    (tmp_path / "nvidia-smi").write_text(f'#!/bin/sh\n[ "$1" = --query-gpu=compute_mode ] && {{ {script}; }}\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.asked("compute_mode") == said
    monkeypatch.setenv("PATH", "")
    assert gpu.asked("compute_mode") == []


@pytest.mark.gpu
def test_a_warning_of_torchs_own_fails_no_test_of_a_gpu_and_another_does():
    for module in ("torch.cuda", "triton.language"):
        warnings.warn_explicit("on CUDA alone", UserWarning, "file", 1, module=module)
    for module in ("torchvision", "engine.batches.epoch_batches"):
        with pytest.raises(UserWarning, match="ours"):
            warnings.warn_explicit("ours", UserWarning, "file", 1, module=module)


def test_one_process_compiles_unless_the_user_says_otherwise_or_encoders_are_compiled(monkeypatch):
    name = "TORCHINDUCTOR_COMPILE_THREADS"
    parser = options.parser("")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--compile", action="store_true")
    for before, words, wanted in ((None, [], "1"), (None, ["--compile"], None), ("8", [], "8")):
        monkeypatch.delenv(name, raising=False)
        if before:
            monkeypatch.setenv(name, before)
        monkeypatch.setattr(sys, "argv", ["main_supcon.py", *words])
        config.parse(parser, {})
        assert os.environ.get(name) == wanted

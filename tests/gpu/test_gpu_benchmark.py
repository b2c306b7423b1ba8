"""What is behind `make gpu`, its benchmark above all: what of it can be held against something without a GPU."""

import json
import os
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from commands import ROOT
from processes import children

from benchmarks import gpu, gpu_data, gpu_losses, gpu_page, gpu_parts, gpu_several
from engine import config, distributed, options
from losses import RINCELoss
from util import InputError

CPU = torch.device("cpu")
TINY = gpu_parts.Case("resnet8", 32, 4, 32, steps=2)


@pytest.mark.parametrize("min_probability", [0, 1e-7, 1e-2])
def test_the_published_form_of_the_loss_has_the_value_and_gradient_of_ours(min_probability):
    g = torch.Generator().manual_seed(0)
    query, key, bank = (F.normalize(torch.randn(n, 16, generator=g).double(), dim=1) for n in (40, 40, 200))
    labels, known = (torch.randint(gpu_parts.CLASSES, (n,), generator=g) for n in (40, 200))
    known[-20:] = -1
    criterion = RINCELoss(gpu_parts.TABLE, min_probability=min_probability)
    query.requires_grad_()
    wanted = criterion(query, key, labels, bank, known)
    found = gpu_losses.published_loss(query, key, labels, bank, known, criterion)
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
    assert gpu_page.of_tests(found)[:2] == [
        "Of 3 checks 1 hold, 1 do not, 1 were left out.",
        "  does not hold: a loss is alike[x]",
    ]


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
    out_of_memory = {"title": "B", "precision": "bfloat16", "errors": {"a step": "out of memory"}}
    lines = gpu_page.to_set({"machine": {"cores": 16}, "cases": [case, out_of_memory]})
    assert lines[2] == (
        "  A: --num_workers 12 from raw packs; --precision auto is bfloat16, 2.00 times as fast as float32"
    )
    assert lines[3] == "    the device idles 50 % of a step: --compile, or more images a GPU"
    assert len(lines) == 4
    case |= {"busy": None, "forms": forms[::-1]}  # None: the profiler recorded nothing, so nothing is said of idleness
    (line,) = gpu_page.to_set({"machine": {"cores": 4}, "cases": [case]})[2:]
    assert "12 loader processes would feed it, and there are 4 cores: --num_workers 4" in line
    assert "--precision float32, since bfloat16 is slower here" in line


# ---- what is measured ------------------------------------------------------------------------------------------------


def test_feeding_is_measured_over_batches_that_were_not_made_beforehand_and_for_a_while_at_most(monkeypatch):
    now, taken = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def arriving():
        yield None
        for i in range(16):
            now[0] += 0.0 if i < 4 else 3.0  # the first four lay ready
            yield i

    def take(batch):
        taken.append(batch)
        now[0] += 1.0

    found = gpu_data.consumed(arriving(), 10, 4, take, CPU)
    assert found == {"images/s": 10 * 4 / 16, "waiting": 12 / 16, "batches": 4}
    assert taken == list(range(8))
    monkeypatch.setattr(gpu_data, "LONGEST", 1000)
    assert gpu_data.consumed(arriving(), 10, 4, take, CPU)["batches"] == 12


def test_an_epoch_of_repeated_images_feeds_4_times_what_loader_processes_hold_ready(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    found = gpu_data.fed(TINY, CPU, torch.float32)
    assert (found["workers"], found["batches"]) == (2, 3 * 2 * 2)  # 4 times as many, but for those made beforehand
    assert found["images/s"] > 0
    assert 0 <= found["waiting"] <= 1
    views = gpu_data.Repeated(gpu_parts.Setting(TINY, CPU, torch.float32).views, 1000)
    assert len(views) == 1000
    (crops, _), labels = views.__getitems__([(1, 2), (1, 998)])
    assert torch.equal(crops[:, 0], crops[:, 1])
    assert labels.tolist() == [2, 2]


def test_a_cores_rate_is_that_of_one_thread_once_it_is_warm():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    calls = []

    class Views:
        def __getitems__(self, keys):
            calls.append((len(keys), torch.get_num_threads()))
            time.sleep(0.2 if len(calls) == 1 else 0.01)

    try:
        rate = gpu_data.one_core(Views(), 8)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert calls == [(8, 1), (8, 1)]
    assert 8 / 0.1 < rate <= 8 / 0.01


@pytest.mark.parametrize(("world", "warm"), [(1, 3), (2, 11)])
def test_steps_are_timed_once_ddp_waits_for_no_times_of_its_own(monkeypatch, world, warm):
    steps = []
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    gpu_parts.steps_timed(TINY, CPU, steps.append)
    assert len(steps) == warm + TINY.steps
    assert len({*map(id, steps[warm:])}) == 1  # into one account, that of the result


def test_the_loss_is_allowed_what_float32_products_take_and_the_step_the_sum():
    rates = {"float32 TFLOP/s": 1.0, "bfloat16 TFLOP/s": 10.0, "copy GB/s": 100.0}
    work = {"encoders": torch.tensor([5e12, 3e9, 7]).numpy(), "loss": torch.tensor([2e12, 1e9, 3]).numpy()}
    for part, products, moved in (("encoders", 500, 30), ("loss", 2000, 10)):
        assert gpu_parts.allowed_ms({part: work[part]}, rates, torch.bfloat16) == pytest.approx((products, moved))
    assert gpu_parts.allowed_ms(work, rates, torch.bfloat16) == pytest.approx((2500, 40))


def test_a_product_is_the_mean_of_20_in_a_row_after_two(monkeypatch):
    calls, now = [], [0.0]

    def product(a, b, out):
        now[0] += 100.0 if len(calls) < 2 else 0.5
        calls.append(a.shape)

    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(gpu_parts.time, "perf_counter", lambda: now[0])
    assert gpu_parts.product_seconds(8, torch.float32, CPU) == pytest.approx(0.5)
    assert calls == [(8, 8)] * 22
    assert gpu_parts.side_of(torch.bfloat16, torch.device("cuda"), small=False) == 8192
    assert gpu_parts.side_of(torch.float32, torch.device("cuda"), small=False) == 4096
    assert gpu_parts.side_of(torch.bfloat16, CPU, small=False) == 4096


CUDA_EVENT = torch.autograd.DeviceType.CUDA


def event(key, count=1, microseconds=0.0, device=torch.autograd.DeviceType.CPU):
    of_time = SimpleNamespace(elapsed_us=lambda: microseconds)
    return SimpleNamespace(key=key, count=count, device_type=device, time_range=of_time)


@pytest.mark.parametrize(
    ("recorded", "found"),
    [
        ([event("cudaLaunchKernel", 5), event("cudaMemcpyAsync", 2), event("aten::mm", 9)], (7, None)),
        ([event("aten::mm", 9)], (None, None)),
        ([event("cuLaunchKernel", 3), *[event("gemm", 1, 1500.0, CUDA_EVENT)] * 2], (3, 3.0)),
    ],
)
def test_a_profiler_that_records_no_kernels_makes_no_device_idle(monkeypatch, recorded, found):
    traces = [[event("cudaLaunchKernel", 99, 99.0, CUDA_EVENT)], recorded]  # the first does not count

    class Profile:
        def __init__(self, activities):
            events = traces.pop(0)
            self.key_averages = self.events = lambda: events

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(gpu_parts, "profile", Profile)
    monkeypatch.setattr(gpu_parts, "wait", lambda device: None)
    monkeypatch.setattr(gpu_parts, "timed", lambda device: None)
    setting = SimpleNamespace(device=SimpleNamespace(type="cuda"), step=lambda batch, parts: None)
    assert gpu_parts.launches_of(setting, None) == found


def test_costs_of_a_step_an_image_and_a_similarity_are_those_that_made_the_times():
    cases = [gpu_parts.Case("resnet8", 32, n, 1000) for n in (10, 80)]
    loss = [1e3 * (0.001 + n * 1000 * 1e-6) for n in (10, 80)]
    steps = [1e3 * (0.02 + n * 0.003) + of_loss for n, of_loss in zip((10, 80), loss, strict=True)]
    assert gpu_several.costs(cases, steps, loss) == pytest.approx({"step": 0.02, "image": 0.003, "entry": 1e-6})


def test_what_ends_a_process_of_several_is_an_error_of_its_last_line(monkeypatch):
    def launch(worker, processes):
        raise SystemExit("Traceback (most recent call last):\n  File\nRuntimeError: NCCL\n")

    monkeypatch.setattr(gpu_several, "launch", launch)
    with pytest.raises(RuntimeError, match=r"^2 processes: RuntimeError: NCCL$"):
        gpu_several.on(2, [TINY], torch.float32)


# ---- what fails ------------------------------------------------------------------------------------------------------


def broken(*_, **__):
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate\nand more")


def benchmark_of(monkeypatch, capsys, folder, *words):
    """Exit code, page and record of benchmarks.gpu in small, over one tiny case."""
    monkeypatch.setattr(gpu, "SMALL", (TINY,))
    command = ["gpu", "--device", "cpu", "--small", "--out", str(folder / "gpu.json"), *words]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # it sets it; so it is put back
    code = 0
    try:
        gpu.main()
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().out, json.loads((folder / "gpu.json").read_text())


def test_a_section_that_fails_is_said_beside_what_was_measured_and_the_code_is_1(monkeypatch, capsys, tmp_path):
    def rows(*_):
        yield {"scaling": "strong", "GPUs": 1, "ms": 5.0}
        broken()

    rates = {f"{name} TFLOP/s": 1.0 for name in ("float32", "bfloat16")}
    monkeypatch.setattr(gpu_parts, "rates", lambda *_: rates | {"copy GB/s": 1.0, "from the host GB/s": 1.0})
    monkeypatch.setattr(gpu.train_step, "compared", lambda *_: [{"ms": 2.0, "times as fast": 1.0}] * 3)
    monkeypatch.setattr(gpu_data, "fed", broken)
    monkeypatch.setattr(gpu_several, "scaled", rows)
    code, printed, record = benchmark_of(monkeypatch, capsys, tmp_path, "--gpus", "2")
    reason = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"
    assert code == 1
    (case,) = record["cases"]
    assert case["errors"] == {"feeding": reason}
    assert record["errors"] == {"several GPUs": reason}
    assert len(case["parts"]) == 7
    assert len(case["losses"]) == 3
    assert record["several"] == [{"scaling": "strong", "GPUs": 1, "ms": 5.0}]
    assert printed.count(f"not measured: feeding: {reason}\n") == 1
    assert printed.count(f"not measured: several GPUs: {reason}\n") == 1
    assert "encoders" in printed


@pytest.mark.parametrize("content", [None, "<testsuites><testsuite>"])
def test_tests_that_ended_without_results_and_a_device_that_does_nothing_are_said(
    monkeypatch, capsys, tmp_path, content
):
    if content:
        (tmp_path / "tests.xml").write_text(content)
    for owner, name in ((gpu_parts, "rates"), (gpu_parts, "Setting"), (gpu_losses, "loss_forms")):
        monkeypatch.setattr(owner, name, broken)
    monkeypatch.setattr(gpu.train_step, "compared", broken)
    monkeypatch.setattr(gpu_data, "fed", broken)
    code, printed, record = benchmark_of(monkeypatch, capsys, tmp_path, "--tests", str(tmp_path / "tests.xml"))
    assert code == 1
    assert record["tests"] is None
    assert "The tests ended without results." in printed
    assert record["errors"].keys() == {"the card by itself"}
    assert record["cases"][0]["errors"].keys() == {"a step", "feeding", "forms of a step", "forms of the loss"}


@pytest.mark.parametrize(
    ("tests", "refused"),
    [
        ({"hold": ["a"], "do not hold": []}, False),
        ({"hold": ["a"], "do not hold": ["b"]}, True),
        ({"hold": [], "do not hold": []}, True),
        (None, True),
    ],
)
def test_a_machine_is_refused_where_a_test_does_not_hold_or_something_was_not_measured(tests, refused):
    assert gpu.refused({"cases": [{}], "tests": tests}) == refused
    assert not gpu.refused({"cases": [{}]})
    assert gpu.refused({"cases": [{}, {"errors": {"a step": "out of memory"}}]})


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
    for module in ("torchvision", "engine.batches"):
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


@pytest.mark.slow
def test_the_whole_benchmark_runs_on_a_cpu_and_says_that_it_measured_no_gpu(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--small", "--gpus", "2", "--out"]
    done = subprocess.run([*command, str(tmp_path / "gpu.json")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("This ran on a CPU to try the code: nothing about a GPU was measured.")
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert {"machine", "rates", "cases", "several"} == record.keys()  # no errors
    for case in record["cases"]:
        assert "errors" not in case
        _, log_space, published = case["losses"]
        assert max(log_space["differs by"], published["differs by"]) < 1e-4
        rows = {row["part"]: row for row in case["parts"]}
        assert rows.keys() == {*gpu_parts.PARTS, "whole step", "the host's orders"}
        assert sum(rows[p]["ms"] for p in gpu_parts.PARTS) == pytest.approx(rows["whole step"]["ms"], rel=0.05)
        assert rows["encoders"]["products allow"] > rows["optimiser"]["products allow"] == 0
    assert [row["GPUs"] for row in record["several"]] == [1, 1, 2, 2]
    assert [row["batch"] for row in record["several"]] == [16, 16, 16, 32]

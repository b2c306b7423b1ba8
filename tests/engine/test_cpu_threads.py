"""Threads and loader processes by what the machine has."""

import pytest
import torch
from commands import run

import util
from engine.cli import config
from engine.processes import cpu_threads
from engine.train.optimization import advise_on_precision


@pytest.fixture
def of_eight(monkeypatch):
    """Eight cores, and none of the variables that say how they are shared."""
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(util, "cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    return monkeypatch


def threads_after(monkeypatch, per_node, before=64):
    given = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: before)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    cpu_threads.limit_threads(per_node)
    return given


def test_a_containers_limit_counts(monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # as joblib finds a limit of cgroups
    assert util.cores() == 1


@pytest.mark.parametrize(
    ("per_node", "before", "threads"), [(None, 64, 8), (2, 64, 4), (3, 64, 2), (16, 64, 1), (None, 4, 4)]
)
def test_the_processes_of_a_node_share_its_cores_and_torch_gets_no_more_than_it_would_take(
    of_eight, per_node, before, threads
):
    assert threads_after(of_eight, per_node, before) == [threads]


def test_the_users_threads_stand(of_eight):
    of_eight.setenv("OMP_NUM_THREADS", "6")
    assert threads_after(of_eight, 4) == []


@pytest.mark.parametrize(
    ("env", "processes"),
    [
        ({"LOCAL_WORLD_SIZE": "4"}, 4),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, 4),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_CPUS_PER_TASK": "2"}, 1),
        ({"SLURM_STEP_NUM_TASKS": "1"}, 1),
    ],
)
def test_torchrun_and_srun_say_how_many_share_them(of_eight, env, processes):
    for name, value in env.items():
        of_eight.setenv(name, value)
    assert cpu_threads.processes_here() == processes
    assert cpu_threads.loaders() == 8 // processes


def test_loader_processes_are_a_share_of_the_cores_and_eight_at_most(of_eight):
    assert [cpu_threads.loaders(n) for n in (1, 2, 3, 9)] == [8, 4, 2, 1]
    of_eight.setattr(util, "cores", lambda: 64)
    assert cpu_threads.loaders() == 8


def test_loader_processes_follow_the_processes_unless_they_are_given(of_eight):
    import main_supcon

    def workers(*words):
        return config.parse_words(main_supcon.get_parser(), {}, list(words), "main_supcon").num_workers

    assert workers() == 8
    assert workers("--nproc_per_node", "4") == 2
    assert workers("--nproc_per_node", "4", "--num_workers", "5") == 5


def test_a_run_says_it(monkeypatch, capsys, tmp_path):
    run(monkeypatch, tmp_path, "python main_ce.py --epochs 1 --batch_size 256 --model resnet8 --exp_name a")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "of torch" in line]
    assert line.endswith("1 thread of torch (OMP_NUM_THREADS), 0 loader processes (--num_workers)")
    assert cpu_threads.line(3, 4).endswith("3 loader processes (--num_workers), in each of 4 processes")


@pytest.mark.parametrize(
    ("choice", "has", "advice"),
    [
        ("bfloat16", {"avx512_bf16": False, "amx_bf16": False}, "--precision bfloat16: this CPU has no"),
        ("bfloat16", {"avx512_bf16": False, "amx_bf16": True}, ""),
        ("float16", {"avx512_fp16": False}, "--precision float16: this CPU has no"),
        ("auto", {"avx512_bf16": False}, ""),
        ("bfloat16", {}, ""),
        ("auto", {"amx_bf16": True}, "bfloat16 is up to twice as fast"),
        ("auto", {"amx_bf16": False}, ""),
        ("auto", {}, ""),
        ("float32", {"amx_bf16": True}, ""),
    ],
)
def test_what_the_cpu_is_slow_or_fast_at_is_said(monkeypatch, choice, has, advice):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    line = advise_on_precision(choice, torch.device("cpu"))
    assert advice in line and bool(line) == bool(advice)
    assert advise_on_precision(choice, torch.device("cuda")) == ""

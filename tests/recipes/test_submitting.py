"""A recipe as jobs: on a simulated SLURM, and in processes of this machine."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import submitit
import yaml
from commands import ROOT, error_of, run
from processes import wait_until
from slurm import Cluster, all_jobs, write_job
from submitit.slurm.slurm import SlurmInfoWatcher

from engine.run import checkpoint, run_log
from recipes import submitting
from recipes.submitting import BEFORE, TABLE, Task
from util import InputError

OPTIONS = submitting.read_options("--partition=gpu --gres=gpu:8 --time=12:00:00 --cpus-per-task=16")
# what a job calls: it fails, is killed, or stops, when it is asked to or by itself, and is done at its second start
JOB = """
import json, signal, sys, time
from pathlib import Path
place, title, kind = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
print(kind, "begins")
if kind == "killed":
    sys.exit(137)
if kind == "twice" and not (place / "saved").exists():
    (place / "saved").touch()
    sys.exit(75)
if kind == "long" and not (place / "saved").exists():
    def save(*_):
        time.sleep(1)
        (place / "saved").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, save)
    (place / "begun").touch()
    for _ in range(6000):  # a signal that comes just before a sleep is taken after it
        time.sleep(0.1)
failures = [{"what": title, "command": "", "why": "because"}] if kind == "bad" else []
(place / (title.replace(" ", "_") + ".json")).write_text(json.dumps(failures))
sys.exit(len(failures))
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A simulated SLURM; the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(submitit.SlurmJob, "watcher", SlurmInfoWatcher())  # the numbers begin at 1 again
    cluster = Cluster(tmp_path, monkeypatch)
    yield cluster
    cluster.close()


def make_task(place, title, kind="good"):
    return Task(title, [sys.executable, "-c", JOB, str(place), title, kind])


def make_stages(place, *kinds):
    return [[make_task(place, BEFORE)], [make_task(place, kind, kind) for kind in kinds], [make_task(place, TABLE)]]


def end(place, number, title):
    """What a job leaves that SLURM has run."""
    write_job(number, state="COMPLETED")
    submitting.write_failures(place, title, [])


def states_in(place):
    return {job.title: state for job, state in submitting.find_states(place)}


# ---- SLURM -----------------------------------------------------------------------------------------------------------


def test_an_array_follows_what_comes_before_and_the_table_follows_it_whatever_became_of_its_tasks(cluster, tmp_path):
    place = tmp_path / "save/small"
    submitting.submit_to_slurm(make_stages(place, "bad", "killed", "long"), place, OPTIONS, limit=2)
    after = {number: job["after"] for number, job in all_jobs().items()}
    assert after == {"1": [], "2_0": ["1"], "2_1": ["1"], "2_2": ["1"], "3": ["1", "2"]}
    assert set(states_in(place).values()) == {"waiting"}
    options = all_jobs()["2_0"]["options"]
    want = {"gres": "gpu:8", "time": "720", "array": "0-2%2", "signal": "USR2@180", "job-name": "small"}
    assert want.items() <= options.items() and options["requeue"] is True

    end(place, "1", BEFORE)
    cluster.start("2_2")
    wait_until((place / "begun").exists, cluster.processes["2_2"])
    assert states_in(place)["long"] == "running" and not (place / "saved").exists()
    cluster.signal("2_2", signal.SIGTERM, signal.SIGUSR2)  # as SLURM does to a job that it preempts
    assert cluster.finish("2_2") == "PENDING" and (place / "saved").exists()  # queued again once all was saved
    assert states_in(place)["long"] == "waiting"
    cluster.run()
    assert all_jobs()["2_2"]["starts"] == 2 and all_jobs()["2_2"]["srun"]["--cpus-per-task"] == "16"
    ends = {"2_0": "FAILED", "2_1": "OUT_OF_MEMORY", "2_2": "COMPLETED", "3": "COMPLETED"}
    assert cluster.jobs() == {"1": "COMPLETED", **ends}
    ends = {"bad": "failed", "killed": "failed (OUT_OF_MEMORY)", "long": "done", TABLE: "done"}
    assert states_in(place) == {BEFORE: "done", **ends}
    failed, killed = submitting.collect_failures(place)
    assert failed["why"] == "because"
    assert killed["why"] == f"job 2_1 was ended by others; killed begins; {place}/2_1_0_log.out"


def test_what_is_in_the_queue_is_not_handed_over_again_and_the_new_table_comes_after_it(cluster, tmp_path, capsys):
    place = tmp_path / "save/small"
    submitting.submit_to_slurm(make_stages(place, "good", "bad"), place, OPTIONS, None)
    end(place, "1", BEFORE)
    end(place, "2_1", "bad")
    write_job("2_0", state="RUNNING")
    capsys.readouterr()
    submitting.submit_to_slurm(make_stages(place, "good", "bad", "other"), place, OPTIONS, None)
    assert "== good: is job 2_0 already\n" in capsys.readouterr().out
    assert cluster.jobs()["3"] == "CANCELLED by 1000"  # the table that would have come too early
    jobs = {job.title: job.id for job in submitting.read_jobs(place)[1]}
    assert jobs == {"good": "2_0", BEFORE: "4", "bad": "5_0", "other": "5_1", TABLE: "6"}
    assert {n: all_jobs()[n]["after"] for n in ("5_0", "6")} == {"5_0": ["4"], "6": ["2_0", "4", "5"]}
    assert states_in(place) == {"good": "running"} | dict.fromkeys((BEFORE, "bad", "other", TABLE), "waiting")


def test_a_job_that_is_cancelled_saves_and_is_not_queued_again(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(submitting, "GRACE_SECONDS", 0.5)
    place = tmp_path / "save/small"
    submitting.submit_to_slurm([[make_task(place, "long", "long")]], place, OPTIONS, None)
    cluster.start("1")
    wait_until((place / "begun").exists, cluster.processes["1"])
    assert os.system("scancel 1") == 0
    assert cluster.finish("1") == "CANCELLED by 1000" and (place / "saved").exists()
    assert states_in(place) == {"long": "failed (CANCELLED)"}


@pytest.mark.parametrize(
    ("given", "minutes"),
    [("90", 90), ("90:01", 91), ("12:00:00", 720), ("1-0", 1440), ("1-2:30", 1590), ("2-00:00:30", 2881), ("0:10", 1)],
)
def test_a_time_limit_is_read_as_sbatch_reads_it(given, minutes):
    assert submitting.read_options(f"--time={given}") == {"time": minutes}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("--gres=gpu:8", "--time is missing, after which a job is queued again; give it"),
        ("-p gpu --time=1", "-p: write an option of sbatch in its long form with =, as --partition=gpu"),
        ("--partition gpu --time=1", "gpu: write an option"),
        ("--time=12h", "--time=12h: must be as 90, 12:00:00 or 2-12:00:00"),
        ("--time=1 --array=0-3", "--array is set by --submit; leave it out"),
        ("--time=1 --ntasks-per-node=8", "--ntasks-per-node=8: a job is one task on one node"),
        ("--time=1 --comment='a", "a quote is not closed"),
    ],
)
def test_an_option_that_no_job_could_have_is_named(given, line):
    with pytest.raises(InputError, match=re.escape(line)):
        submitting.read_options(given)


RECIPE = {
    "title": "Small",
    "methods": {
        "bad": {"command": "python main_ce.py --exp_name bad --data_folder nowhere --dataset path"},
        "good": {"command": "python main_ce.py --epochs 12 --batch_size 64 --model resnet8 --exp_name good"},
    },
    "evaluations": {"retrieval": {"command": "python retrieval.py --ckpt $path2chkpt", "columns": {"R@1": "fine.R@1"}}},
}
SLURM = '--submit slurm --slurm="--partition=gpu --gres=gpu:8 --time=12:00:00"'


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(RECIPE))


def test_errors_of_a_submission_are_one_line(monkeypatch, capsys, cluster, recipe, tmp_path):
    def error(words):
        return error_of(monkeypatch, capsys, tmp_path, f"small.yaml {words}", "reproduce").partition("error: ")[2]

    assert error("--status").startswith("--status: small.yaml was not submitted with these options; save/tables/jobs/")
    assert error("--slurm=--time=1") == "--slurm: has no use without --submit slurm"
    refused = error("--submit slurm --slurm='--time=1 --partition=cpu'")
    assert refused == "--slurm: sbatch refuses the job: sbatch: error: invalid partition specified: cpu"
    monkeypatch.setenv("PATH", "/nowhere")
    assert error(SLURM).startswith("--submit slurm: this machine has no sbatch and srun; ")
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert error("--submit local") == error(SLURM) == '--submit: needs submitit; pip install ".[slurm]"'


@pytest.mark.parametrize(("made", "first"), [(False, [BEFORE]), (True, [])])
def test_each_method_has_a_job_for_each_of_its_seeds_and_what_is_needed_before_has_one(
    monkeypatch, tmp_path, made, first
):
    def submit_to_slurm(stages, place, options, limit):
        handed.append(stages)

    handed = []
    monkeypatch.setattr(submitting, "submit_to_slurm", submit_to_slurm)
    methods = {**RECIPE["methods"], "given": {"checkpoint": "none.pth"}}
    content = {**RECIPE, "methods": methods, "before": [{"command": "python -m x", "makes": "made"}]}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    if made:
        (tmp_path / "made").touch()
    run(monkeypatch, tmp_path, f"small.yaml --only good given --seeds 2 --scale 0.5 {SLURM}", "reproduce")
    (stages,) = handed
    titles = [task.title for stage in stages for task in stage]
    assert titles == [*first, "good, seed 0", "given", "good, seed 1", TABLE]
    words = " ".join(stages[-2][-1].words[2:])
    assert words == "small.yaml --out save/tables --scale 0.5 --options= --jobs 1 --task run good 1"
    table = " ".join(stages[-1][0].words[2:])
    assert table.endswith(" --jobs 1 --seeds 2 --only good given --task table")
    assert not (tmp_path / "save/tables/small_scale0.5.json").exists()


@pytest.mark.slow
def test_a_recipe_on_slurm_survives_preemption_and_is_not_trained_twice(monkeypatch, capsys, cluster, recipe, tmp_path):
    def reproduce(words):
        run(monkeypatch, tmp_path, f"small.yaml {words}", "reproduce")
        return capsys.readouterr().out

    folder = tmp_path / "save/SupCon/digits_models/good"
    assert reproduce(SLURM).endswith("== 2 runs, an array: job 1\n== the table: job 2\n")
    cluster.start("1_0")
    assert cluster.finish("1_0") == "FAILED"
    cluster.start("1_1")
    wait_until((folder / "last.pth").exists, cluster.processes["1_1"])
    cluster.signal("1_1", signal.SIGTERM, signal.SIGUSR2)
    assert cluster.finish("1_1") == "PENDING"
    assert 0 < checkpoint.load(folder)["epoch"] < 12
    state = reproduce("--status").splitlines()
    assert state[0] == "1 failed, 2 waiting" and "main_ce.py: error: --data_folder nowhere: no such folder" in state[1]
    assert "== good, seed 0: is job 1_1 already\n" in reproduce(SLURM)
    cluster.run()
    assert set(cluster.jobs().values()) <= {"COMPLETED", "FAILED", "CANCELLED by 1000"}
    first, second = run_log.read_json_lines(folder / "starts.jsonl")
    assert first["resumed"] is None and second["resumed"] == "save/SupCon/digits_models/good/last.pth"
    table = json.loads((tmp_path / "save/tables/small.json").read_text())
    assert table["results"]["good"][0]["values"]["R@1"] > 90
    (failure,) = table["failures"]
    assert failure["what"] == "bad, seed 0: training"
    out = reproduce(SLURM)
    assert "== good, seed 0: is done\n== bad, seed 0: job 5\n" in out


# ---- one job ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signals", "code", "again"),
    [
        ([], 0, False), ([], 1, False), ([], 75, True), ([signal.SIGTERM], 75, False), ([signal.SIGUSR2], 75, True),
        ([signal.SIGTERM, signal.SIGUSR2], 143, True), ([signal.SIGUSR2, signal.SIGTERM], 143, True),
        ([signal.SIGUSR2], 0, False),
    ],
)  # fmt: skip
def test_a_job_asks_its_command_to_stop_once_and_is_queued_again_when_it_was_told_to(tmp_path, signals, code, again):
    script = "import signal, sys, time; from pathlib import Path; came = []\n"
    script += "signal.signal(signal.SIGTERM, lambda *_: came.append(1)); Path('begun').touch()\n"
    script += "end = time.time() + 0.6\nwhile time.time() < end: time.sleep(0.05)\n"
    script += f"assert len(came) == {bool(signals):d}\nsys.exit({code})"

    def send():
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(0.1)

    queued, before = [], {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    signal.signal(signal.SIGUSR2, lambda *_: queued.append(1))  # submitit's place
    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        with pytest.raises(SystemExit) if code else contextlib.nullcontext() as stop:
            Task("t", [sys.executable, "-c", script], str(tmp_path))()
    finally:
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (queued == [1]) == again and (not code or stop.value.code == code)


# ---- here ------------------------------------------------------------------------------------------------------------


def test_jobs_on_this_machine_come_in_turn_and_see_its_gpus(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    place = tmp_path / "jobs"
    show = f"import os; print('bad.json' in os.listdir({str(place)!r}), os.environ['CUDA_VISIBLE_DEVICES'])"
    stages = [make_stages(place, "bad", "twice")[1], [Task(TABLE, [sys.executable, "-c", show])]]
    submitting.run_here(stages, place, limit=2)
    out = capsys.readouterr().out
    assert "== twice: done\n" in out and (place / "saved").exists()
    assert "== bad: FAILED: because\n" in out and f" was ended by others; True 0,3; {place}/" in out
    assert states_in(place) == {"bad": "failed", "twice": "done", TABLE: "failed"}


@pytest.mark.parametrize(
    ("driven", "number", "state"),
    [
        (True, None, "waiting"), (False, None, "stopped"),
        (True, "4194305", "running"),  # on another machine that sees the folder
        (False, "4194305", "stopped"), (False, "1", "stopped"),  # of a process that is no job
        (False, "orphan", "running"),
    ],
)  # fmt: skip
def test_states_of_jobs_of_processes_are_true_on_another_machine_after_a_kill_and_after_a_reboot(
    monkeypatch, tmp_path, driven, number, state
):
    monkeypatch.setattr(submitting, "held_by", lambda place: "process 1 on node1" if driven else None)
    words = [sys.executable, "-c", "import time; time.sleep(60)", "submitit.local._local", str(tmp_path)]
    with subprocess.Popen(words) as process:
        wait_until(Path(f"/proc/{process.pid}/cmdline").read_bytes, process)  # empty while it starts
        job = submitting.Job("a", [], str(process.pid) if number == "orphan" else number)
        submitting.write_jobs(tmp_path, "local", [job])
        try:
            assert states_in(tmp_path) == {"a": state}
        finally:
            process.kill()


@pytest.mark.parametrize("why", [None, "because"])
def test_a_table_that_fails_or_is_not_written_is_a_failure_of_the_submission(monkeypatch, recipe, tmp_path, why):
    def run_here(stages, place, limit):
        submitting.write_jobs(place, "local", [submitting.Job(TABLE, ["words"], "7")])
        if why:
            submitting.write_failures(place, TABLE, [{"what": "after", "command": "", "why": why}])

    monkeypatch.setattr(submitting, "run_here", run_here)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, tmp_path, "small.yaml --submit local", "reproduce")
    assert stop.value.code == 1


def test_a_second_submission_while_the_jobs_run_here_is_one_line(tmp_path):
    place = tmp_path / "jobs"
    place.mkdir()
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        with submitting.locked(place):
            os.write(writer, b"x")
            time.sleep(60)
    try:
        os.read(reader, 1)
        line = rf"--submit: the jobs of this recipe belong to process {child} on .*; wait for its end"
        with pytest.raises(InputError, match=line), submitting.locked(place):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)


@pytest.mark.slow
def test_the_digits_as_jobs_on_this_machine_stop_at_ctrl_c_and_go_on(tmp_path):
    words = [sys.executable, str(ROOT / "reproduce.py"), str(ROOT / "recipes/digits.yaml"), "--submit", "local"]
    words += ["--scale", "0.2", "--only", "rince_in", "cross_entropy"]
    last = tmp_path / "save/demo/SupCon/digits_models/RINCE_in_scale0.2/last.pth"
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        wait_until(last.exists, process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(60) == 130 and "stopped; the same command continues" in process.stderr.read()
    assert checkpoint.load(last)["epoch"] < 3
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    starts = run_log.read_json_lines(last.parent / "starts.jsonl")
    assert len(starts) == 2 and starts[1]["resumed"]
    table = json.loads((tmp_path / "save/tables/digits_scale0.2.json").read_text())
    # eight columns, and the seconds, which what was resumed has not
    assert all(len(table["results"][name][0]["values"]) >= 8 for name in ("rince_in", "cross_entropy"))
    status = subprocess.run([*words[:3], "--scale", "0.2", "--status"], cwd=tmp_path, capture_output=True, text=True)
    assert status.stdout.startswith("3 done\n")

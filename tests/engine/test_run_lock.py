"""One run at a time writes into a folder."""

import errno
import os
import time

import pytest
from processes import CONTEXT

from engine.run import run_lock
from engine.run.run_lock import FolderLock, held_by, wait_until_free
from util import InputError


def hold(folder, ready, seconds):
    FolderLock(folder).take("--exp_name a", print)
    if os.fork() == 0:  # as a loader process, which may outlive a killed run
        time.sleep(seconds + 30)
        os._exit(0)
    ready.set()
    time.sleep(seconds)
    os._exit(9)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder "run" for a minute, and has forked another; it is killed at the end."""
    ready = CONTEXT.Event()
    process = CONTEXT.Process(target=hold, args=(tmp_path / "run", ready, 60))
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_second_run_is_told_who_writes_and_may_as_soon_as_that_process_is_gone(tmp_path, holder):
    with pytest.raises(InputError, match=f"^--exp_name a: .*run is being written by process {holder.pid} on .*, since"):
        FolderLock(tmp_path / "run").take("--exp_name a", print)
    assert f"process {holder.pid}" in held_by(tmp_path / "run")
    holder.kill()
    holder.join()
    assert held_by(tmp_path / "run") is None  # although its own child lives
    lock = FolderLock(tmp_path / "run")
    lock.take("--exp_name a", print)
    lock.release()


def test_waiting_ends_with_the_predecessor_or_after_a_bounded_time(tmp_path, holder):
    said, begin = [], time.monotonic()
    wait_until_free(tmp_path / "run", 0.5, said.append)
    assert 0.4 < time.monotonic() - begin < 5
    assert held_by(tmp_path / "run")
    assert len(said) == 1
    assert "waiting for it to end, at most" in said[0]
    holder.kill()
    wait_until_free(tmp_path / "run", 60, said.append)
    assert held_by(tmp_path / "run") is None


def test_a_folder_without_a_run_is_free_and_stays_away(tmp_path):
    wait_until_free(tmp_path / "none", 60, pytest.fail)
    assert not (tmp_path / "none").exists()


def test_a_disk_that_knows_no_locks_is_said_and_used(monkeypatch, tmp_path):
    def lockf(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "lockf", lockf)
    said = []
    FolderLock(tmp_path / "run").take("--exp_name a", said.append)
    assert said == [f"{tmp_path}/run/lock: this disk has no file locks; do not start this run a second time"]
    assert held_by(tmp_path / "run") is None

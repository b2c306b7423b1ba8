"""What the processes of tests/engine/test_processes.py do: apart, so that they import little."""

import os
import signal
import sys
import time

import torch

from engine import distributed


def fail(device):
    """Process 1 fails while the others wait for it."""
    if distributed.rank() == 1:
        raise ZeroDivisionError("the first error")
    distributed.all_reduce(torch.ones(1))


def be_killed(device):
    if distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.all_reduce(torch.ones(1))


def hang(who, device):
    """Process `who` never comes."""
    if distributed.rank() == who:
        time.sleep(600)
    distributed.all_reduce(torch.ones(1))


def fill_the_disk(device):
    if distributed.is_main():
        with open("/dev/full", "w") as file:
            file.write("x")
    distributed.all_reduce(torch.ones(1))


def vote_and_stop(device):
    """Process 1 wishes to stop at step 3; all stop at the same step, which they print."""
    votes, step = distributed.Votes(), 0
    while True:
        step += 1
        if votes.cast([distributed.rank() == 1 and step >= 3])[0]:
            break
    assert distributed.gather_objects(step) == [4, 4]
    distributed.barrier()
    sys.exit(distributed.EXIT_STOPPED)

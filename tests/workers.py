"""What the processes of tests/engine/test_processes.py do: apart, so that they import little."""

import os
import signal
import sys
import time
import types

import torch
import torch.distributed as dist

import util
from engine.processes import distributed
from engine.train import training


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
    """Process 1 wishes to stop at step 3; all learn of it at that step."""
    step = 0
    while True:
        step += 1
        if distributed.vote([distributed.rank() == 1 and step >= 3])[0]:
            break
    assert distributed.gather_objects(step) == [3, 3]
    distributed.barrier()
    sys.exit(distributed.EXIT_STOPPED)


def lose_output(device):
    """Print where nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    print("epoch", flush=True)


def score_alone(device):
    """The main process has something to do for longer than the others may be waited for."""
    if distributed.is_main():
        time.sleep(2)


def fail_and_wait_for_the_others(device):
    """Process 1 fails; what would put process groups in order waits for peers that never come, as NCCL's may."""
    dist.destroy_process_group = lambda: time.sleep(600)
    fail(device)


class Steps:
    """What `train_epoch` needs of a run and of a stepper, for steps that do nothing."""

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1, fused=True)
    device, scaler = torch.device("cpu"), torch.amp.GradScaler("cpu", enabled=False)

    resumed_from = 0

    def __init__(self):
        self.asked, self.sampler = False, types.SimpleNamespace(batch_size=1)

    def enter(self, epoch, means, device):
        return 0

    def progress(self, epoch, steps):
        return util.Progress("", steps, 100, show=False)

    def set_rate(self, progress):
        return 1.0

    def backward(self, step, images, labels):
        total = distributed.all_reduce(images, "sum")  # as gradients are: all are in it, or none
        return total.sum(), total

    def ask_wishes(self):
        return distributed.vote([self.asked, False]) if distributed.world_size() > 1 else [self.asked, False]

    def save_step(self, epoch, step, stop, means):
        assert distributed.gather_objects((step, stop)) == [(2, True), (2, True)]
        sys.exit(distributed.EXIT_STOPPED)


class Stuck(list):
    """A loader of process 1 that ends before its third batch, since that process is to stop."""

    def __init__(self, steps):
        self.steps = steps
        super().__init__([0] * 5)

    def __iter__(self):
        for i in range(5):
            if i == 2 and distributed.rank() == 1:
                self.steps.asked = True
                return
            yield torch.ones(1), torch.zeros(1)


def stop_one_that_waits(device):
    steps = Steps()
    training.train_epoch(steps, Stuck(steps), None, steps, 1)

"""What does not train: the start of a script, a resumed run's first step, a checkpoint.

python -m benchmarks.starts [--rounds 3] [--json FILE]

The digits' recipe, as a user calls it, from the command to the line of its first step; it is stopped as a cluster does,
by SIGTERM, and resumed. Checkpoints are those of a run with a bank of 4,096 keys, query and key encoder and SGD's
momentum, written to the folder of temporary files and forced onto its disk.
"""

import argparse
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import report
from engine import checkpoint
from engine.optimisation import sgd
from losses import RINCELoss
from networks import resnet
from networks.contrastive import ContrastiveModel, projection_head
from networks.memory_bank import MemoryBank

ROOT = Path(__file__).parent.parent


def until_first_step(folder: Path, more: tuple[str, ...] = ()) -> float:
    """Seconds from the command to the line of the first step; then the run is asked to stop, which saves."""
    words = [sys.executable, "main_supcon.py", "--print_freq", "1", "--save_folder", str(folder), *more]
    begin = time.perf_counter()
    with subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        for line in run.stdout:
            if re.search(r"epoch \d+/\d+ step \d+/", line):
                seconds = time.perf_counter() - begin
                run.send_signal(signal.SIGTERM)
                run.communicate()
                if run.returncode == 75:  # stopped, and all saved
                    return seconds
        raise SystemExit(f"the run ended with {run.wait()}: {run.stderr.read()}")


def seconds_of(*words: str) -> float:
    """Seconds that a command of Python takes."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def checkpoint_of(name: str, small: bool) -> dict:
    """What of a run fills its checkpoint: model and momentum."""
    encoder = resnet.encoder(name, small_images=small)
    model = ContrastiveModel(encoder, projection_head(encoder.dim), MemoryBank(4096, 128), RINCELoss(torch.eye(100)))
    optimizer = sgd(model, 0.1, 0.9, 1e-4)
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to add the figures to")
    args = parser.parse_args()
    spent = {}

    def took(what: str, seconds: float) -> None:
        spent.setdefault(what, []).append(seconds)

    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            took("import torch", seconds_of("-c", "import torch"))
            took("main_supcon.py --help", seconds_of("main_supcon.py", "--help"))
            took("main_supcon.py to its first step, digits", until_first_step(Path(scratch)))
            took("resumed inside an epoch, to its first step", until_first_step(Path(scratch), ("--resume", "auto")))
            for name, small in (("resnet20", True), ("resnet18", True), ("resnet50", False)):
                state, path = checkpoint_of(name, small), Path(scratch, f"{name}.pth")
                begin = time.perf_counter()
                checkpoint.save(path, state)
                size = path.stat().st_size / 1e6
                took(f"writing a checkpoint, {name} ({size:.0f} MB)", time.perf_counter() - begin)
    rows = [{"what": what, "seconds": statistics.median(seconds)} for what, seconds in spent.items()]
    report("starts and checkpoints", rows, args.json)


if __name__ == "__main__":
    main()

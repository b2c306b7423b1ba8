"""A run's folder: checkpoints, resume, TensorBoard scalars and log."""

import os
import sys
import time
from pathlib import Path

import torch

import checkpoint
import config
import distributed
import options
import util
import watching
from util import InputError

# options that a resumed run must share with its checkpoint, or the weights mean something else
FIXED = ("dataset", "model", "feat_dim", "memorybank_size", "cache_features")


class Run:
    """A run's folder: refuses to mix two runs, writes checkpoints, TensorBoard scalars and log.jsonl (main process)."""

    def __init__(self, args, method: str, name: str):
        self.args, self.begin = args, time.perf_counter()
        root = Path(args.save_folder) / method
        self.folder = root / f"{args.dataset}_models" / name
        self.last = self.folder / "last.pth"
        self.writer, self.tensorboard = None, root / f"{args.dataset}_tensorboard" / name
        self.best = {}  # of the validation scores so far
        self.good = "none yet"  # the last checkpoint of this run
        self.damaged = 0  # images skipped so far
        self.before, self.advised = 0, False  # epochs of earlier sittings; whether advice was given
        self.script = Path(sys.argv[0]).stem
        if not name or Path(name).name != name or name == "..":
            raise InputError(f"--exp_name {name}: must be a plain name, without a path")
        util.check_folder(args.save_folder, "--save_folder")
        if not distributed.is_main():
            return
        holds = self.last.exists() or any(self.folder.glob("ckpt_epoch_*.pth"))
        source = Path(args.resume).resolve() if args.resume else None
        own = source is not None and self.folder.resolve() in (source, source.parent)
        if holds and not own and not args.overwrite:
            raise InputError(
                f"--exp_name {name}: {self.folder} already holds a run; go on with --resume {self.folder}, "
                "start anew with --overwrite, or choose another name"
            )

    def open(self, epoch: int) -> None:
        """Make the folders, once there is something to write."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.args.resume:
            (self.folder / "log.jsonl").unlink(missing_ok=True)  # --overwrite
        self.writer = SummaryWriter(str(self.tensorboard), purge_step=epoch)
        record = {"options": options.plain(self.args), "torch": torch.__version__}
        util.append_json(self.folder / "log.jsonl", record)
        config.write(self.folder, self.args)

    def say(self, text: str) -> None:
        """One line from the main process."""
        if distributed.is_main():
            print(text, flush=True)

    def list_damage(self, images: list[str]) -> Path:
        """Write the run's list of damaged images, which --skip_images takes; returns its path."""
        path = self.folder / "damaged_images.txt"
        if distributed.is_main():
            util.write_file(path, "".join(f"{os.path.abspath(f)}\n" for f in images).encode())
        return path

    def resume(self, model, optimizer, facts) -> int:
        """Load --resume into model and optimiser; returns the epochs that are done."""
        args = self.args
        state = checkpoint.load(args.resume, "--resume")
        before = checkpoint.trained_options(state)
        if state.get("script", self.script) != self.script:
            raise InputError(f"--resume {args.resume}: was written by {state['script']}.py, not by {self.script}.py")
        if "optimizer" not in state or "epoch" not in state:
            raise InputError(f"--resume {args.resume}: holds no state of an optimiser; it can only be evaluated")
        for name in FIXED:
            if name in before and before[name] != getattr(args, name, before[name]):
                raise InputError(
                    f"--resume {args.resume}: was trained with --{name} {before[name]}, not {getattr(args, name)}"
                )
        if state.get("classes") != facts["classes"]:
            raise InputError(f"--resume {args.resume}: was trained on other classes than --data_folder holds")
        if state.get("encoder") != facts.get("encoder"):
            raise InputError(f"--resume {args.resume}: was trained on the features of another --ckpt")
        checkpoint.load_strictly(model, state["model"], f"--resume {args.resume}")
        optimizer.load_state_dict(state["optimizer"])
        if state["epoch"] >= args.epochs:
            raise InputError(f"--resume {args.resume}: has all of its {state['epoch']} epochs; give more --epochs")
        self.say(f"resumed {args.resume} after epoch {state['epoch']}")
        self.best, self.good, self.before = state.get("best", self.best), args.resume, state["epoch"]
        return state["epoch"]

    def log(self, epoch: int, scalars: dict, images_per_second: float) -> None:
        """An epoch's line, TensorBoard scalars, and log record."""
        if not distributed.is_main():
            return
        if self.writer is None:
            self.open(epoch)
        scalars = {**scalars, "images_per_second": images_per_second}
        shown = "".join(f"  {k} {v:.2f}" for k, v in scalars.items() if k.startswith("val_"))
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()
        util.append_json(self.folder / "log.jsonl", {"epoch": epoch, **scalars})
        spent = time.perf_counter() - self.begin
        left = spent / (epoch - self.before) * (self.args.epochs - epoch)
        print(
            f"epoch {epoch}/{self.args.epochs}  loss {scalars['loss']:.4f}{shown}  lr {scalars['learning_rate']:.4g}  "
            f"{images_per_second:.0f} images/s, {100 * scalars['waiting_for_data']:.0f} % of the time waiting for data"
            f"  {left / 60:.1f} min left",
            flush=True,
        )
        advice = watching.advice(scalars["waiting_for_data"], spent, self.args.num_workers)
        if advice and not self.advised:
            print(advice, flush=True)
            self.advised = True

    def save(self, epoch: int, model, optimizer, facts) -> None:
        """last.pth after every epoch, ckpt_epoch_N.pth every --save_freq."""
        if not distributed.is_main():
            return
        state = {
            "options": options.plain(self.args),
            "epoch": epoch,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "best": self.best,
            "script": self.script,
            **facts,
        }
        checkpoint.save(self.last, state)
        self.good = self.last
        if epoch % self.args.save_freq == 0:
            checkpoint.save(self.folder / f"ckpt_epoch_{epoch}.pth", state)

    def stop_on_nan(self, epoch: int, step: int, rate: float) -> None:
        """End the run: the loss is no number any more; what is saved stays."""
        raise InputError(
            f"the loss turned NaN or infinite in epoch {epoch}, step {step}, at learning rate {rate:.4g}; "
            f"last good checkpoint: {self.good}; try a smaller --learning_rate or --warm"
        )

    def close(self) -> None:
        """Say where everything lies."""
        if self.writer is not None:
            self.writer.close()
            print(f"saved {self.last}  ({time.perf_counter() - self.begin:.0f} s)", flush=True)

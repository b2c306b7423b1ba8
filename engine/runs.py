"""A run's folder: checkpoints, resume, signals, TensorBoard scalars and log."""

import json
import os
import platform
import sys
import time
from pathlib import Path

import torch

import util
from datasets.decoding import write_list
from engine import checkpoint, config, distributed, options, watching
from engine.optimisation import Stepper, in_force
from engine.signals import StopSignals
from util import InputError

# options that a resumed run must share with its checkpoint, or the weights mean something else
FIXED = ("dataset", "model", "feat_dim", "memorybank_size", "cache_features")
# options that leave the mathematics as it is; any other that a resumed run changes is named
FREE = (
    "resume", "overwrite", "exp_name", "save_folder", "save_freq", "save_minutes", "print_freq", "num_workers",
    "data_folder", "check_data", "detect_anomaly", "nproc_per_node", "world_size", "rank", "dist_url", "dist_backend",
    "timeout_minutes", "augment_on", "knn_freq", "config",
)  # fmt: skip


# entries of log.jsonl that no two runs share
TIMING = ("images_per_second", "seconds", "waiting_for_data")

VERSIONS = {"torch": str(torch.__version__), "python": platform.python_version()}


class Run:
    """A run's folder: refuses to mix two runs, writes checkpoints, TensorBoard scalars and log.jsonl (main process)."""

    def __init__(self, args, method: str, name: str):
        self.args, self.start = args, time.perf_counter()
        root = Path(args.save_folder) / method
        self.folder = root / f"{args.dataset}_models" / name
        self.last = self.folder / "last.pth"
        self.writer, self.tensorboard = None, root / f"{args.dataset}_tensorboard" / name
        self.best, self.latest = {}, {}  # validation scores: of the best epoch, of the last one
        self.good = "none yet"  # the last checkpoint of this run
        self.damaged = 0  # images skipped so far
        self.damage = []  # paths of all images that were found damaged
        self.advised = False  # of what to do about waiting for data
        self.script = Path(sys.argv[0]).stem
        if not name or Path(name).name != name or name == "..":
            raise InputError(f"--exp_name {name}: must be a plain name, without a path")
        util.check_folder(args.save_folder, "--save_folder")
        if args.resume == "auto" and args.overwrite:
            raise InputError("--resume auto goes on, --overwrite starts anew: give one of them")
        # a run that torchrun has started again goes on by itself
        self.auto = args.resume == "auto" or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
        self.source = None  # what it resumes: a checkpoint or a run's folder
        if self.auto:
            self.source = self.folder if checkpoint.history(self.folder) else None
        elif args.resume:
            self.source = Path(args.resume)
        place = self.source and self.source.resolve()
        self.goes_on = place is not None and self.folder.resolve() in (place, place.parent)
        if distributed.is_main() and checkpoint.history(self.folder) and not self.goes_on and not args.overwrite:
            raise InputError(
                f"--exp_name {name}: {self.folder} already holds a run; go on with --resume {self.folder}, "
                "start anew with --overwrite, or choose another name"
            )

    def begin(self, model, stepper: Stepper, sampler, facts: dict, data) -> None:
        """What a checkpoint holds from now on, and whose order of images; loads what is to be resumed into it.

        facts: plain entries that a checkpoint keeps, with the names of the classes; data: its `bad` marks images that
        were skipped, if it has one.
        """
        self.model, self.optimizer, self.scaler = model, stepper.optimizer, stepper.scaler
        self.sampler, self.facts, self.precision = sampler, facts, stepper.precision
        self.bad = getattr(data, "bad", None)
        self.stop = StopSignals()
        self.epochs_done, self.step, self.own = 0, 0, {}  # where the run stands; own: what differs between processes
        if self.source:
            with distributed.main_first():
                self._resume()
        elif self.auto:
            self.say(f"--resume auto: {self.folder} holds no checkpoint yet, this run starts from scratch")
        self.resumed_from = self.epochs_done
        self._saved()

    def _resume(self) -> None:
        """Load the checkpoint at `source` and take its place."""
        flag = f"--resume {self.source}"
        if self.source.is_dir():
            path, state, passed = checkpoint.newest(self.source)
            for reason in passed:
                self.say(f"passed over: {reason}")
        else:
            path, state = self.source, checkpoint.load(self.source, "--resume")
        if state.get("script", self.script) != self.script:
            raise InputError(f"{flag}: was written by {state['script']}.py, not by {self.script}.py")
        if "optimizer" not in state or not isinstance(state.get("epoch"), int):
            raise InputError(f"{flag}: holds no state of an optimiser; it can only be evaluated")
        self._check_options(state, flag)
        checkpoint.load_strictly(self.model, state["model"], flag)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{flag}: its optimiser is of another kind ({error})") from None
        for group in self.optimizer.param_groups:
            group["fused"] = True  # a checkpoint from elsewhere says None, and util.FiniteGuard needs it
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        if state["epoch"] >= self.args.epochs and not self.auto:
            raise InputError(f"{flag}: has all of its {state['epoch']} epochs; give more --epochs")
        self.epochs_done, self.step = state["epoch"], state.get("step", 0)
        self.best, self.latest, self.good = state.get("best", {}), state.get("latest", {}), path
        self._take_own(state)
        inside = f"in epoch {self.epochs_done + 1}, after step {self.step}"
        self.say(f"resumed {path} {inside if self.step else f'after epoch {self.epochs_done}'}")
        if self.epochs_done >= self.args.epochs:
            self.say(f"all of its {self.epochs_done} epochs are done")

    def _take_own(self, state: dict) -> None:
        """This process's random numbers, means and skipped images; the means of all, where their number is another."""
        processes = state.get("processes") or []
        if self.bad is not None:
            for process in processes:
                self.bad[[i for i in process["skipped"] if i < len(self.bad)]] = True
        if state.get("order") != self._order() and self.step:
            self.say("other images, --batch_size or --seed: the epoch that was under way starts anew")
            self.step = 0
        elif len(processes) == distributed.world_size():
            self.own = processes[distributed.rank()]
        elif self.step:
            self.own = {"means": _joined([p["means"] for p in processes])}

    def _order(self) -> list[int]:
        return [self.sampler.count, self.sampler.batch_size, self.sampler.seed]

    def _check_options(self, state: dict, flag: str) -> None:
        """InputError where weights or classes would mean something else; names every other option that is not as
        before.
        """
        before, now = checkpoint.trained_options(state), options.plain(self.args)
        changed = [n for n in now if n in before and before[n] != now[n]]
        for name in FIXED:
            if name in changed:
                raise InputError(f"{flag}: was trained with --{name} {before[name]}, not {now[name]}")
        if state.get("classes") != self.facts["classes"]:
            raise InputError(f"{flag}: was trained on other classes than --data_folder holds")
        if state.get("encoder") != self.facts.get("encoder"):
            raise InputError(f"{flag}: was trained on the features of another --ckpt")
        named = [f"--{n} {now[n]} (was {before[n]})" for n in changed if n not in FREE]
        if named:
            self.say(f"resumed with other options: {', '.join(named)}")

    def epochs(self):
        """The numbers of the epochs that are left, from 1; while they run, a signal lets the run save and stop."""
        with self.stop:
            yield from range(self.epochs_done + 1, self.args.epochs + 1)

    def enter(self, epoch: int, *means: util.Mean, device) -> int:
        """Begin an epoch, or go on inside it: sets the sampler and the running means; returns the steps done."""
        self.sampler.set_epoch(epoch, self.step)
        own, self.own = self.own, {}
        if "random" in own:
            checkpoint.set_random_state(own["random"])
        if self.step and own.get("means"):
            for mean, state in zip(means, own["means"], strict=True):
                mean.set_state(state, device)
        return self.step

    def progress(self, epoch: int, steps: int) -> util.Progress:
        """The progress of an epoch, with a line every --print_freq steps."""
        title = f"epoch {epoch}/{self.args.epochs}"
        return util.Progress(title, steps, self.args.print_freq, distributed.is_main())

    def wishes(self, waiting: bool) -> list[bool]:
        """Before each step, on all processes: whether they are to stop, to save, to wait for one without its batch."""
        due = distributed.is_main() and time.monotonic() > self.next_save
        return distributed.vote([self.stop.asked is not None, due, waiting])

    def save_step(self, epoch: int, step: int, stop: bool, *means: util.Mean) -> None:
        """A checkpoint inside an epoch, after `step` steps of it; with `stop`, the end of the run."""
        self._write(epoch - 1, step, means)
        if stop:
            self._leave(f"epoch {epoch}, step {step}")

    def save(self, epoch: int) -> None:
        """A checkpoint after a whole epoch; ckpt_epoch_N.pth every --save_freq. Ends the run if it was asked to."""
        self.step = 0
        self._write(epoch, 0, ())
        if any(distributed.gather_objects(self.stop.asked is not None)):
            self._leave(f"epoch {epoch}")

    def _write(self, epochs_done: int, step: int, means) -> None:
        """last.pth, the one before it as previous.pth, and where it is due ckpt_epoch_N.pth."""
        skipped = self.bad.nonzero()[:, 0].tolist() if self.bad is not None else []
        own = {"random": checkpoint.random_state(), "means": [m.state() for m in means], "skipped": skipped}
        processes = distributed.gather_objects(own)
        self._saved()
        if not distributed.is_main():
            return
        if self.writer is None:
            self.open()
        state = {
            "options": options.plain(self.args),
            "versions": VERSIONS,
            "epoch": epochs_done,
            "step": step,
            "order": self._order(),
            "processes": processes,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "latest": self.latest,
            "script": self.script,
            **self.facts,
        }
        try:
            # the one that stays comes first: a crash between the two would leave it out, since a resumed run goes on
            if step == 0 and epochs_done and epochs_done % self.args.save_freq == 0:
                checkpoint.save(self.folder / f"ckpt_epoch_{epochs_done}.pth", state)
            checkpoint.save(self.last, state, before=self.folder / "previous.pth")
            self.good = self.last
        except OSError as error:
            raise InputError(
                f"{error.filename}: cannot be written ({error.strerror or error}); last good checkpoint: {self.good}"
            ) from None

    def _saved(self) -> None:
        self.next_save = time.monotonic() + 60 * self.args.save_minutes

    def _leave(self, where: str) -> None:
        """End every process, once the main one has saved: the first to go would have the others ended."""
        signal_name = next(filter(None, distributed.gather_objects(self.stop.asked)))
        self.say(f"{signal_name}: stopped after {where}; saved {self.last}, go on with --resume auto")
        self._close_writer()
        distributed.barrier()
        raise SystemExit(distributed.EXIT_STOPPED)

    def open(self) -> None:
        """Make the folders, once there is something to write; drop what lies beyond the point of resuming."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "log.jsonl"
        kept = [r for r in util.read_json_lines(log) if self.goes_on and r["epoch"] <= self.resumed_from]
        if log.exists():
            util.write_file(log, "".join(json.dumps(r) + "\n" for r in kept).encode())
        if not self.goes_on:  # --overwrite: the old run's checkpoints must not be taken for this one's
            for path in checkpoint.history(self.folder):
                path.unlink()
        self.writer = SummaryWriter(str(self.tensorboard), purge_step=self.resumed_from + 1)
        record = {"options": options.plain(self.args), "versions": VERSIONS, "processes": distributed.world_size()}
        record |= {"after_epoch": self.resumed_from, "resumed": str(self.good) if self.source else None}
        util.append_json(self.folder / "starts.jsonl", record)
        config.write(self.folder, self.args, in_force(self.precision))

    def say(self, text: str) -> None:
        """One line from the main process."""
        if distributed.is_main():
            print(text, flush=True)

    def list_damage(self, images: list[str]) -> Path:
        """Add to the run's list of damaged images, which --skip_images takes; returns its path.

        Where that list is the one in use, what it leaves out already stays in it.
        """
        path = self.folder / "damaged_images.txt"
        if distributed.is_main():
            skipped = self.args.skip_images
            before = path.read_text().splitlines() if skipped and path.resolve() == Path(skipped).resolve() else []
            self.damage += images
            write_list(path, [*before, *self.damage])
        return path

    def log(self, epoch: int, scalars: dict, images_per_second: float | None) -> None:
        """An epoch's line, TensorBoard scalars, and log record; TIMING is all in it that is no result."""
        if not distributed.is_main():
            return
        if self.writer is None:
            self.open()
        if images_per_second is not None:
            scalars = {**scalars, "images_per_second": images_per_second}
        shown = "".join(f"  {k} {v:.2f}" for k, v in scalars.items() if k.startswith("val_"))
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()
        util.append_json(self.folder / "log.jsonl", {"epoch": epoch, **scalars})
        done, spent = epoch - self.resumed_from, time.perf_counter() - self.start
        left = spent / done * (self.args.epochs - epoch)
        speed = "no step was left"
        if images_per_second is not None:
            waiting = f"{100 * scalars['waiting_for_data']:.0f} % of the time waiting for data"
            speed = f"{images_per_second:.0f} images/s, {waiting}"
        print(
            f"epoch {epoch}/{self.args.epochs}  loss {scalars['loss']:.4f}{shown}  lr {scalars['learning_rate']:.4g}  "
            f"{speed}  {left / 60:.1f} min left",
            flush=True,
        )
        advice = watching.advice(scalars["waiting_for_data"], spent, self.args.num_workers)
        if advice and not self.advised:
            print(advice, flush=True)
            self.advised = True

    def stop_on_nan(self, epoch: int, step: int, rate: float) -> None:
        """End the run: the loss is no number any more; what is saved stays, and the weights are those before it."""
        raise InputError(
            f"loss or gradients turned NaN or infinite in epoch {epoch}, step {step}, at learning rate {rate:.4g}; "
            f"last good checkpoint: {self.good}; try a smaller --learning_rate or --warm, or --detect_anomaly"
        )

    def _close_writer(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def close(self) -> None:
        """Say where everything lies."""
        self._close_writer()
        self.say(f"saved {self.last}  ({time.perf_counter() - self.start:.0f} s)")


def _joined(means: list[list]) -> list:
    """The mean over processes of their running means: [total, count] each."""
    return [[sum(m[0] for m in column) / len(column), column[0][1]] for column in zip(*means, strict=True)]

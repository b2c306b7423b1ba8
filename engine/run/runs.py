"""A run's folder: one run at a time in it, checkpoints, resume, signals, log and TensorBoard."""

import contextlib
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import util
from datasets.decoding import write_list
from datasets.text_files import read_paths
from engine.cli import config, options
from engine.cli.parsing import Means
from engine.processes import distributed
from engine.processes.signals import StopSignals
from engine.run import checkpoint, resume, run_lock, run_log
from engine.train import monitor
from engine.train.optimization import describe_precision
from engine.train.training import Mean, Stepper
from util import InputError

# entries of log.jsonl that no two runs share
TIMING = ("images_per_second", "seconds", "waiting_for_data")

VERSIONS = {"torch": str(torch.__version__), "python": platform.python_version()}


def locate_folder(args, method: str, name: str) -> Path:
    """Where a run lies."""
    return Path(args.save_folder) / method / f"{args.dataset}_models" / name


def resumes_by_itself(args) -> bool:
    """Whether a run takes up its own checkpoint, if there is one: as asked for, or started again by torchrun."""
    return args.resume == "auto" or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def wait_for_predecessor(args, method: str, name: str | None) -> None:
    """Before processes meet: let a run that this one takes up, as of a job that was queued again, end its saving.

    name: None where it is known only later.
    """
    if distributed.will_be_main(args.rank) and name and _is_plain(name) and resumes_by_itself(args):
        run_lock.wait_until_free(locate_folder(args, method, name), run_lock.WAIT_SECONDS, print)


def _is_plain(name: str) -> bool:
    return bool(name) and Path(name).name == name and name != ".." and len(os.fsencode(name)) <= 255


class Run:
    """A run's folder: refuses to mix two runs, writes checkpoints, TensorBoard scalars and log.jsonl (main process)."""

    say = staticmethod(distributed.say)

    def __init__(self, args, method: str, name: str, images):
        """images: those of the training set, before damaged ones are left out."""
        self.args, self.start, self.processes = args, time.perf_counter(), distributed.world_size()
        self.images = resume.describe_images(images)
        self.folder = locate_folder(args, method, name)
        self.last = self.folder / "last.pth"
        self.lock, self.journal = run_lock.FolderLock(self.folder), None
        self.tensorboard = self.folder.parent.with_name(f"{args.dataset}_tensorboard") / name
        self.best, self.latest = {}, {}  # validation scores: of the best epoch, of the last one
        self.good = "none yet"  # the last checkpoint of this run
        self.damaged = 0  # images skipped so far
        self.damage = []  # paths of all images that were found damaged
        self.advised = False  # of what to do about waiting for data
        self.script = Path(sys.argv[0]).stem
        if not _is_plain(name):
            raise InputError(f"--exp_name {name}: must be a plain name, without a path, of at most 255 bytes")
        util.check_folder(args.save_folder, "--save_folder")
        if args.resume == "auto" and args.overwrite:
            raise InputError("--resume auto and --overwrite: give one; the first resumes, the second starts again")
        self.auto = resumes_by_itself(args)
        self.source = None  # what it resumes: a checkpoint or a run's folder
        if self.auto:
            self.source = self.folder if checkpoint.history(self.folder) else None
        elif args.resume:
            self.source = Path(args.resume)
        place = self.source and self.source.resolve()
        self.goes_on = place is not None and self.folder.resolve() in (place, place.parent)
        if distributed.is_main() and checkpoint.history(self.folder) and not self.goes_on and not args.overwrite:
            if holder := run_lock.held_by(self.folder):
                raise InputError(run_lock.refusal(f"--exp_name {name}", self.folder, holder))
            raise InputError(
                f"--exp_name {name}: {self.folder} already holds a run; resume it with --resume {self.folder}, "
                "start again with --overwrite, or choose another name"
            )

    def begin(self, model, stepper: Stepper, sampler, facts: dict, data) -> None:
        """Set what a checkpoint holds from now on, and whose order of images; load what is to be resumed into it.

        facts: plain entries that a checkpoint keeps, with the names of the classes; data: its `bad` marks images that
        were skipped, if it has one.
        """
        self.model, self.optimizer, self.scaler = model, stepper.optimizer, stepper.scaler
        self.sampler, self.facts, self.precision = sampler, facts, stepper.precision
        self.bad = getattr(data, "bad", None)
        self.stop = StopSignals(self.args.max_hours, self.start)
        self.epochs_done, self.step, self.own = 0, 0, {}  # where the run stands; own: what differs between processes
        with distributed.main_first():
            if self.goes_on:
                self._take_folder()
            if self.source:
                self._resume()
            if not self.goes_on:  # what is refused leaves no folder
                self._take_folder()
        if self.auto and not self.source:
            self.say(f"--resume auto: {self.folder} holds no checkpoint yet, this run starts from scratch")
        self.resumed_from = self.epochs_done
        self._set_next_save()

    def _take_folder(self) -> None:
        """Let no other run write into the folder from now on; InputError where one does."""
        if distributed.is_main():
            if self.auto:  # main_linear knows its name only now
                run_lock.wait_until_free(self.folder, run_lock.WAIT_SECONDS, self.say)
            self.lock.take(f"--exp_name {self.folder.name}", self.say)

    def _resume(self) -> None:
        """Load the checkpoint at `source` and take its place."""
        flag = f"--resume {self.source}"
        if self.source.is_dir():
            path, state, passed = checkpoint.newest(self.source)
            for reason in passed:
                self.say(f"left out: {reason}")
        else:
            path, state = self.source, checkpoint.load(self.source, "--resume")
        if state.get("script", self.script) != self.script:
            raise InputError(f"{flag}: was written by {state['script']}.py, not by {self.script}.py")
        if "format" not in state or "optimizer" not in state or not isinstance(state.get("epoch"), int):
            raise InputError(
                f"{flag}: holds no state of an optimizer of this code; evaluate it, or start from it by --init"
            )
        before = checkpoint.trained_options(state)
        means = self.args.means
        changed = resume.find_changed_options(before, options.plain(self.args), self.args, flag)
        changed |= resume.find_changed_files(state.get("files"), self.args.files, means)
        if changed:
            self.say(f"resumed with other options: {', '.join(changed.values())}")
        classes, now = state.get("classes"), self.facts["classes"]
        if classes != now and not (isinstance(classes, list) and util.match_spelling(classes, now) == now):
            raise InputError(f"{flag}: was trained on other classes than --data_folder holds")
        if state.get("encoder") != self.facts.get("encoder"):
            raise InputError(f"{flag}: was trained on the features of another --ckpt")
        if not any(Means.SUBSET in means[name] for name in changed):
            resume.check_images(state.get("images"), self.images, flag, self.args.data_folder)
        if state.get("ranking") and resume.is_other_ranking(state["ranking"], self.facts.get("ranking")):
            self.say("the ranking is another than the checkpoint was trained on: other ranks from here on")
        resume.check_state(state, self.model, self.optimizer, len(now), flag)
        checkpoint.load_strictly(self.model, state["model"], flag)
        resume.take_momenta(state["optimizer"], self.optimizer)
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
            self.say(f"all {self.args.epochs} epochs are done")

    def _take_own(self, state: dict) -> None:
        """Take this process's random numbers, means and skipped images; means of all, if their number has changed."""
        processes = state.get("processes") or []
        if self.bad is not None:
            for process in processes:
                self.bad[[i for i in process["skipped"] if i < len(self.bad)]] = True
        if state.get("order") != self.sampler.identity and self.step:
            self.say("other images, --batch_size or --seed: the unfinished epoch starts again")
            self.step = 0
        elif len(processes) == self.processes:
            self.own = processes[distributed.rank()]
        elif self.step:
            self.own = {"means": _join_means([p["means"] for p in processes])}

    def epochs(self):
        """Yield the numbers of the epochs that are left, from 1; meanwhile a signal lets the run save and stop."""
        with self.stop:
            yield from range(self.epochs_done + 1, self.args.epochs + 1)

    def enter(self, epoch: int, means: list[Mean], device) -> int:
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
        """Return the progress of an epoch, with a line every --print_freq steps."""
        title = f"epoch {epoch}/{self.args.epochs}"
        return util.Progress(title, steps, self.args.print_freq, distributed.is_main())

    def ask_wishes(self) -> list[bool]:
        """Before each step and after the last, on all processes: whether they are to stop, to save."""
        own = [bool(self.stop.asked or self.stop.fault), time.monotonic() > self.next_save]
        return distributed.vote(own) if self.processes > 1 else own

    def save_step(self, epoch: int, step: int, stop: bool, means: list[Mean]) -> None:
        """Save a checkpoint inside an epoch, after `step` steps of it; with `stop`, the end of the run."""
        self._write(epoch - 1, step, means)
        if stop:
            self._leave(f"epoch {epoch}, step {step}")

    def save(self, epoch: int) -> None:
        """Save a checkpoint after a whole epoch; ckpt_epoch_N.pth every --save_freq; then TensorBoard. Ends the run if
        it was asked to.
        """
        self.step = 0
        self._write(epoch, 0, ())
        if self.journal is not None:
            self.journal.show_latest()
        if any(distributed.gather_objects(self.stop.asked)):
            self._leave(f"epoch {epoch}")

    def _write(self, epochs_done: int, step: int, means) -> None:
        """last.pth, the one before it as previous.pth, and where it is due ckpt_epoch_N.pth."""
        skipped = self.bad.nonzero()[:, 0].tolist() if self.bad is not None else []
        own = {"random": checkpoint.random_state(), "means": [m.state() for m in means], "skipped": skipped}
        processes = distributed.gather_objects(own)
        self._set_next_save()
        if not distributed.is_main():
            return
        self._open()
        state = {
            "options": options.plain(self.args),
            "files": self.args.files,
            "images": self.images,
            "versions": VERSIONS,
            "epoch": epochs_done,
            "step": step,
            "order": self.sampler.identity,
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
        if self.args.keep_checkpoints:
            self._forget(checkpoint.numbered(self.folder)[self.args.keep_checkpoints :])

    def _forget(self, paths: list[Path]) -> None:
        """Delete checkpoints of --save_freq; one that cannot be deleted is named, and stays."""
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                self.say(f"--keep_checkpoints: {path} cannot be deleted ({error.strerror}); it stays")

    def _set_next_save(self) -> None:
        """Note when the main process is to save next inside an epoch; the others have no clock of their own."""
        self.next_save = time.monotonic() + 60 * self.args.save_minutes if distributed.is_main() else math.inf

    def _leave(self, where: str) -> None:
        """End every process, once the main one has saved: the first to go would have the others ended."""
        asked, faults = zip(*distributed.gather_objects((self.stop.asked, self.stop.fault)), strict=True)
        stopped = f"stopped after {where}; saved {self.last}, resume with --resume auto"
        self._let_go()
        if not any(asked):
            with distributed.main_first():
                raise InputError(f"{next(filter(None, faults))}; {stopped}")
        self.say(f"{next(filter(None, asked))}: {stopped}")
        distributed.barrier()
        raise SystemExit(distributed.EXIT_STOPPED)

    def _open(self) -> None:
        """Once, when there is something to write: drop what lies beyond the point of resuming, begin the records."""
        if self.journal is not None:
            return
        for leftover in self.folder.glob("*.tmp"):  # of a run that was killed while it wrote
            with contextlib.suppress(OSError):
                leftover.unlink()
        if not self.goes_on:  # --overwrite: the old run's checkpoints must not be taken for this one's
            for path in checkpoint.history(self.folder):
                path.unlink()
        after_epoch = self.resumed_from if self.goes_on else 0
        self.journal = run_log.Journal(self.folder, self.tensorboard, after_epoch, self.say)
        record = {"options": options.plain(self.args), "versions": VERSIONS, "processes": self.processes}
        record |= {"after_epoch": self.resumed_from, "resumed": str(self.good) if self.source else None}
        record["files"] = self.args.files
        run_log.append_json(self.folder / "starts.jsonl", record)
        config.write(self.folder, self.args, describe_precision(self.precision))

    def list_damage(self, images: list[str]) -> Path:
        """Add to the run's list of damaged images, which --skip_images takes; returns its path.

        Where that list is the one in use, what it leaves out already stays in it.
        """
        path = self.folder / "damaged_images.txt"
        if distributed.is_main():
            skipped = self.args.skip_images
            in_use = skipped and path.resolve() == Path(skipped).resolve()
            before = read_paths(path, f"--skip_images {path}") if in_use else []
            self.damage += images
            write_list(path, [*before, *self.damage])
        return path

    def log(self, epoch: int, scalars: dict, images_per_second: float | None) -> None:
        """Log an epoch: its line and record, and what TensorBoard gets after the checkpoint; TIMING is all in it that
        is no result.
        """
        if not distributed.is_main():
            return
        self._open()
        if images_per_second is not None:
            scalars = {**scalars, "images_per_second": images_per_second}
        self.journal.record(epoch, scalars)
        done, spent = epoch - self.resumed_from, time.perf_counter() - self.start
        left = util.clock(spent / done * (self.args.epochs - epoch))
        line = monitor.describe_epoch(scalars, images_per_second)
        self.say(f"epoch {epoch}/{self.args.epochs}  {line}  ETA {left}")
        advice = monitor.advise_on_waiting(scalars["waiting_for_data"], spent, self.args.num_workers)
        if advice and not self.advised:
            self.say(advice)
            self.advised = True

    def stop_on_nan(self, epoch: int, step: int, rate: float) -> None:
        """End the run: the loss is no number any more; what is saved stays, and the weights are those before it."""
        raise InputError(
            f"training: loss or gradients turned NaN or infinite in epoch {epoch}, step {step}, at learning rate "
            f"{rate:.4g}; last good checkpoint: {self.good}; try a smaller --learning_rate, --warm or --detect_anomaly"
        )

    def show(self, draw: Callable) -> None:
        """draw(writer) on the run's TensorBoard, in the main process; whatever goes wrong, the run goes on."""
        if self.journal is not None:
            self.journal.board.show(draw)

    def _let_go(self) -> None:
        if self.journal is not None:
            self.journal.board.close()
        self.lock.release()

    def close(self) -> None:
        """Let others write into the folder, and say where everything lies."""
        self._let_go()
        self.say(f"saved {self.last}  ({time.perf_counter() - self.start:.0f} s)")


def _join_means(means: list[list]) -> list:
    """Return the mean over processes of their running means: [total, count] each."""
    return [[sum(m[0] for m in column) / len(column), column[0][1]] for column in zip(*means, strict=True)]

"""One run, from its config to its finished directory."""

import contextlib
import dataclasses
import datetime
import logging
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kdbench import metrics
from kdbench.config import RunConfig
from kdbench.config.derived import TRAIN
from kdbench.config.paths import is_file
from kdbench.data import Batches
from kdbench.data.dataset import resolve_data
from kdbench.errors import BusyError, ConfigError, PrunedError, RunError, first_line
from kdbench.methods.base import Method
from kdbench.models import summarize
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.files import check_writable, write_json
from kdbench.rundir.identity import run_key, teacher_directory, with_hashed_weights
from kdbench.rundir.lock import Lock
from kdbench.rundir.related import check_parent_unchanged, with_related
from kdbench.rundir.roots import check_roots, check_run_folder
from kdbench.rundir.student import inference_size
from kdbench.rundir.summary import KEY, Status, changed_file, names
from kdbench.runner.build import Parts, bind, build_learner, build_parts, check_parts
from kdbench.runner.failures import nonfinite_step, record_failure
from kdbench.runner.processes import with_processes
from kdbench.runner.pruning import after_epoch
from kdbench.runner.resources import check_disk_space, user_error
from kdbench.runner.results import Predictions, fidelity, write_result
from kdbench.runner.settings import METADATA, NumericSettings, adopt_settings, check_settings, recorded_settings
from kdbench.system.device import peak_memory, resolve_runtime
from kdbench.system.guard import Guard
from kdbench.system.logs import RunLog
from kdbench.system.signals import Interrupted
from kdbench.teachers import cache
from kdbench.teachers.resolve import ResolvedTeacher
from kdbench.trackers.sender import Tracking, check_trackers, resend
from kdbench.train.checkpoint import Checkpointer
from kdbench.train.evaluate import check_finite, predict
from kdbench.train.learner import Learner
from kdbench.train.optim import state_tensors
from kdbench.train.sums import NonFiniteError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run: its directory if it is complete, else the error that ended it."""

    config: RunConfig
    directory: RunDirectory | None
    error: Exception | None

    @property
    def status(self) -> Status:
        if self.error is None:
            return Status.COMPLETE
        if isinstance(self.error, PrunedError):
            return Status.PRUNED
        return Status.SKIPPED if isinstance(self.error, BusyError) else Status.FAILED

    @property
    def path(self) -> Path | None:
        """Run directory of a complete run."""
        return self.directory.path if self.directory and self.error is None else None


class Run:
    """A run: resolved, built, opened, trained by its learner, finished and closed, in this order.

    Every method is called within `guard`: an exception is stored as `error` and fails this run only.

    Args:
        config: config as parsed.
        name: text before the run's lines on the console, where several share a process.
        on_busy: wait or skip, where it differs from the config's.
    """

    directory: RunDirectory
    parts: Parts
    learner: Learner
    checkpointer: Checkpointer

    def __init__(self, config: RunConfig, name: str = "", on_busy: str | None = None) -> None:
        self.config = config
        self.guard = Guard(f"{name}: " if name else "", on_failure=self.fail)
        self.on_busy = on_busy or config.on_busy
        self.complete = False
        self.error: Exception | None = None
        self.teacher: ResolvedTeacher | None = None
        self.lock: Lock | None = None
        self.log: RunLog | None = None
        self.tracking: Tracking | None = None
        self.lockstep = 1
        """Number of runs that train together, this one included."""
        self.started: str | None = None
        """Time at which the training started, of a resumed run for the first time."""

    @property
    def pending(self) -> bool:
        """True if there is work left: it is neither complete nor failed."""
        return not self.complete and self.error is None

    @property
    def result(self) -> RunResult:
        return RunResult(self.config, self.directory if self.complete else None, self.error)

    @property
    def method(self) -> Method:
        return self.parts.method

    @property
    def batches(self) -> Batches:
        return self.parts.batches

    def resolve(self) -> None:
        """Resolve every `auto` value, find the run directory, and skip a complete run."""
        self.config, self.directory = resolve_run(self.config)
        self.guard.log = self.directory.log
        if self.directory.is_complete() and not self.config.overwrite:
            self.skip_complete()

    def skip_complete(self) -> None:
        """Check the records of a complete run, and mark it so."""
        path, summary = self.directory.path, self.directory.read_summary()  # weights may have been removed since
        if changed := changed_file(path, summary):
            raise ConfigError(
                f"{path / changed} was changed since the run was finished; restore it, or delete {path} to repeat the "
                "run (kdbench-verify lists everything that does not match)",
                code="checksum",
                key=changed,
            )
        check_parent_unchanged(self.directory, summary)
        if not self.directory.is_shared(self.config):
            self.remove_leftovers()
        log.info("complete already, skipped: %s", path)
        self.complete = True
        self.tracking = resend(self.config, self.directory, summary.started, self.guard.prefix)

    def remove_leftovers(self) -> None:
        """Remove what a process killed at its very end has left of a complete run, unless another is about to."""
        lock = self.directory.lock()
        if not any(is_file(file) for file in (*self.directory.checkpoints(), lock.file)):
            return
        try:
            lock.acquire(wait=False)
            if self.directory.is_complete():  # another process may have started to repeat it
                self.directory.remove_checkpoints(self.config.checkpoint.keep_last)
        except (BusyError, ConfigError, RunError, OSError):
            log.debug("%s: leftovers were not removed", self.directory.path)
        finally:
            lock.release()

    def build(self) -> None:
        """Load the data, and build student and method."""
        self.parts = build_parts(self.config)

    def recorded_cache(self) -> Any:
        """Return whether an unfinished run reads the logit cache (on or off), or None."""
        return recorded_settings(self.directory).get("cache")

    def open(self) -> None:
        """Lock the run, open its log, and restore its learner; a run that is complete by now is skipped."""
        self.lock = self.directory.lock("run")
        self.lock.acquire(wait=self.on_busy == "wait")
        # Another process may have finished the run meanwhile, or made its folder by another name.
        self.directory = directory = RunDirectory.of(self.config, self.directory.key)
        self.guard.log = directory.log
        if directory.is_complete() and not self.config.overwrite:
            self.close()
            self.skip_complete()
            return
        if directory.is_complete():
            directory.clear()
        settings = self.numeric_settings()
        check_settings(settings, directory)
        evaluated = len(self.parts.dataset.val) + len(self.parts.dataset.test)
        copies = 2 + state_tensors(self.config.recipe) + (self.config.recipe.ema is not None)
        spec = self.parts.dataset.spec
        check_disk_space(directory, self.parts.student, evaluated, spec.num_classes, copies, self.method)
        directory.create()
        self.log = RunLog(directory.log)
        self.log.open()
        if self.teacher:
            assert self.config.teacher
            assert settings.cache is not None
            log.debug("teacher: %s", self.teacher.description)
            source = dataclasses.replace(self.config.teacher, cache=settings.cache)
            self.config = dataclasses.replace(self.config, teacher=source)
        bind(self.parts, [self.teacher.teacher.network] if self.teacher else [])
        self.learner = build_learner(self.config, self.parts, self.guard)
        if self.teacher:
            self.learner.teacher = self.teacher.source
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        known = directory.checkpoint_metadata()
        self.started = known.get(KEY.started) if known else now
        metadata = {METADATA: dataclasses.asdict(settings), KEY.started: self.started}
        tracking = self.tracking = Tracking(self.config, directory, self.started, self.guard.prefix)
        self.checkpointer = Checkpointer(
            directory, self.config.checkpoint, self.learner, self.lock, metadata, tracking.end_epoch
        )
        self.learner.checkpointer = self.checkpointer
        self.learner.after_epoch = after_epoch(self.config, self.learner, self.checkpointer)
        runtime = self.config.runtime
        for remark in self.parts.remarks:
            log.info("%s", remark)
        log.info(
            "%s: %s on %s, %s, threads: %d",
            self.config.title, directory.path, runtime.device, runtime.precision, runtime.threads,
        )  # fmt: skip
        directory.write_config(self.config)
        for record in (directory.nonfinite, directory.failure):  # of an earlier attempt
            record.unlink(missing_ok=True)
        self.checkpointer.resume()
        if self.learner.rows:
            directory.write_metrics(self.learner.rows)  # the file may be older, damaged or gone
        self.tracking.open(self.learner.epoch)

    def numeric_settings(self) -> NumericSettings:
        """Return what the run has to keep until it is complete."""
        runtime, teacher = self.config.runtime, self.teacher
        return NumericSettings(
            threads=runtime.threads,
            channels_last=runtime.channels_last,
            profile=runtime.profile,
            compile=runtime.compile,
            cache=None if teacher is None else "on" if teacher.cached else "off",
            teacher_weights_sha256=teacher.teacher.weights_sha256 if teacher else None,
            train_data_sha256=self.parts.dataset.train.sha256,
        )

    def work(self, live_students: int) -> float:
        """Return the run's share of its group's work: multiply-accumulates per image, with its part of a live teacher.

        Args:
            live_students: number of runs in the group with a live teacher.
        """
        work = 3.0 * self.parts.model_summary.macs
        if self.teacher and not self.teacher.cached and self.config.teacher:
            model, trained = self.config.teacher.model, self.config.teacher.is_trained
            work += summarize(model, self.parts.dataset.spec, "teacher", trained).macs / live_students
        return work

    def finish(self) -> None:
        """Evaluate the test set with the last and with the best weights, and write the result."""
        assert self.lock is not None
        config, dataset, learner, best = self.config, self.parts.dataset, self.learner, self.learner.best
        teacher = self.teacher.teacher if self.teacher else None
        assert best is not None

        def test_logits_of(epoch: int) -> Tensor:
            logits = predict(learner.student, dataset, dataset.test, config.runtime, learner.method)
            return check_finite(logits, epoch)

        with learner.averaged():
            test_logits = final = test_logits_of(learner.epoch)
        if best["epoch"] != learner.epoch:
            learner.student.body.load_state_dict(best["weights"])
            learner.method.load_state_dict(best["method"], strict=False)
            test_logits = test_logits_of(best["epoch"])
        predictions = Predictions(best["val_logits"], test_logits)
        speeds = [row["images_per_second"] for row in learner.rows]
        labels = dataset.test.labels.cpu().numpy()
        training = names(
            epochs=config.recipe.epochs,
            best_val_epoch=best["epoch"] if dataset.validation else None,
            test_acc_final=metrics.accuracy(final.numpy(), labels),
            teacher_test_acc=teacher.test_acc if teacher else None,
            teacher_key=teacher.directory.key if teacher else None,
            parent_weights_sha256=self.parts.parent_sha256,
            teacher_weights_sha256=teacher.weights_sha256 if teacher else None,
            started=self.started,
            train_seconds=sum(row["seconds"] for row in learner.rows),
            images_per_second=statistics.median(speeds[1:] or speeds),
            lockstep=self.lockstep,
            peak_memory_bytes=peak_memory(config.runtime.device),
            skipped_steps=learner.skipped,
            overflowed_steps=learner.overflows,
        ) | fidelity(predictions.test, teacher.test_logits if teacher else None)
        self.lock.check()
        summary = self.parts.model_summary
        if learner.method.predicts():
            try:
                size = inference_size(learner.student.eval(), learner.method.eval(), summary, dataset.spec)
                training |= names(inference_params=size[0], inference_macs=size[1])
            except Exception as error:  # of a user's own code; the run is complete without it
                log.info("size of a prediction: not known (%s)", first_line(error))
        write_result(self.directory, config, dataset, summary, best["weights"], best["method"], predictions, training)
        accuracy = metrics.accuracy(test_logits.numpy(), labels)
        epoch = "the best validation epoch" if dataset.validation else "the last epoch"
        if learner.skipped:
            log.info("skipped: %d steps, which were not finite", learner.skipped)
        log.info("done: test accuracy %.2f%% at %s, %d", 100 * accuracy, epoch, best["epoch"])
        self.directory.remove_checkpoints(config.checkpoint.keep_last)
        self.complete = True
        self.close()

    def save_interrupted(self, interruption: Interrupted) -> None:
        """Write a checkpoint because a stop was requested, unless the training is over and its end is saved already.

        The evaluation of the test set loads the best weights into the learner, which must not reach a checkpoint.
        """
        if self.learner.epoch < self.config.recipe.epochs:
            self.checkpointer.save_interrupted(interruption)

    def fail(self, error: Exception) -> None:
        """Store the error that ends this run, write what a step that was not finite saw, and release the run."""
        self.error = error
        record_failure(self, error)
        if isinstance(error, NonFiniteError):
            try:
                assert self.lock is not None
                self.lock.check()
                write_json(self.directory.nonfinite, nonfinite_step(self, error))
                details = f"{error}. Inputs and values of the step: {self.directory.nonfinite}"
                error = RunError(details, code=error.code, key=error.key)
            except OSError as refused:
                error = refused
            except Exception as refused:  # a GPU in a bad state, a lost lock: the loss is the error to report
                log.debug("the step that was not finite cannot be recorded: %s", refused)
        self.error = user_error(error, self.config, getattr(self, "directory", None))
        try:  # alone, the command prints the error anyway
            heading = "%s" if isinstance(error, PrunedError) else "failed: %s"
            log.log(logging.INFO if self.guard.prefix and self.log else logging.DEBUG, heading, self.error)
        except OSError:
            log.debug("the log cannot be written")
        finally:
            self.close()

    def close(self) -> None:
        """Close the log and release the lock, as far as the disk allows."""
        if self.tracking:
            pruned = isinstance(self.error, PrunedError)
            failed = "" if pruned or self.error is None else str(self.error) or type(self.error).__name__
            status = Status.COMPLETE if self.complete else Status.INTERRUPTED
            self.tracking.end(Status.PRUNED if pruned else Status.FAILED if failed else status, failed)
        for part in (self.log and self.log.close, self.lock and self.lock.release):
            if part:
                with contextlib.suppress(OSError):
                    part()
        self.log = self.lock = None


def resolve_run(config: RunConfig) -> tuple[RunConfig, RunDirectory]:
    """Return the config with every `auto` resolved, and where its run is or will be.

    An unfinished run keeps the numeric settings that it recorded: sums are rounded in the order of threads and memory.

    Raises:
        ConfigError: the device, the precision or the output root cannot be used here.
    """
    runtime = with_processes(resolve_runtime(config.runtime), config.kind)
    data = resolve_data(config.data, runtime.device)
    config = dataclasses.replace(config, runtime=runtime, data=data)
    check_writable(Path(config.output_root).expanduser())
    check_roots(config)
    check_trackers(config)
    if config.kind == TRAIN:
        config = with_hashed_weights(with_related(config))
    directory = RunDirectory.of(config, run_key(config))
    check_run_folder(config, directory)
    if config.kind != TRAIN:
        return config, directory
    return (config if directory.is_complete() else adopt_settings(config, directory)), directory


def is_complete(config: RunConfig) -> bool:
    """Return whether a run is complete and is not to be repeated."""
    return resolve_run(config)[1].is_complete() and not config.overwrite


def check_run(config: RunConfig) -> Path | None:
    """Check everything that can be wrong with a run before it starts. Writes nothing.

    Returns:
        The logit cache that the run would read if there were one, for a sweep to count.

    Raises:
        ConfigError: the config cannot run here.
    """
    config, directory = resolve_run(config)
    if config.kind != TRAIN or (directory.is_complete() and not config.overwrite):
        return None
    _, _, method = check_parts(config)
    if config.teacher and config.teacher.cache == "auto" and not recorded_settings(directory).get("cache"):
        return (
            cache.cache_file(teacher_directory(config), config)
            if cache.can_answer(method.requires, config.recipe)
            else None
        )
    return None

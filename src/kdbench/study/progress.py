"""Progress of a study's runs: the state of each, and the time left at the speed measured so far."""

import csv
import statistics
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from kdbench.config.derived import TRAIN
from kdbench.data import spec_of
from kdbench.errors import ConfigError
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.identity import teacher_directory
from kdbench.rundir.summary import RunSummary, read_summary
from kdbench.rundir.unfinished import read_failure
from kdbench.runner.run import resolve_run
from kdbench.sweep.lockstep import macs_of, needs_live_teacher
from kdbench.sweep.plan import PlannedRun
from kdbench.system.device import resolve_runtime

SECONDS_WITHOUT_TRAINING = 10.0
"""Time of a compression or a measurement, about what small networks take on two cores."""
DONE, RESUMABLE, MISSING, REFUSED = "done", "resumable", "missing", "refused"


def state_of(run: PlannedRun) -> str:
    """Return how far a run is: done, resumable (it has a checkpoint), missing, or refused."""
    if run.error:
        return REFUSED
    directory = run.directory
    if directory.is_complete():
        return DONE
    return RESUMABLE if directory.checkpoint.is_file() else MISSING


def is_done(run: PlannedRun) -> bool:
    """Return whether a run is complete."""
    return state_of(run) == DONE


def past_failure(run: PlannedRun) -> str:
    """Return the message with which a run, not refused, failed the last time; empty if it did not."""
    if not run.directory.has_failed():
        return ""
    failure = read_failure(run.directory.path)
    return failure.message if failure else "it failed; its failure.json cannot be read"


def lack_of_teacher(run: PlannedRun, trained: Collection[str]) -> str:
    """Return why a run, not refused, cannot start for want of its teacher; empty if it can.

    Args:
        run: the run.
        trained: keys of the runs of its study; a teacher that is none of them is trained by the run itself.
    """
    if run.config.kind != TRAIN or run.config.teacher is None or not run.config.teacher.is_trained:
        return ""
    teacher = teacher_directory(resolve_run(run.config)[0])
    if teacher.key not in trained or teacher.is_complete():
        return ""
    return f"its teacher is not complete: {teacher.path}; the study trains it in an earlier stage, which has its error"


def summary_of(run: PlannedRun) -> RunSummary | None:
    """Return the summary of a complete run, or None if there is none that can be read."""
    try:
        return read_summary(run.directory.path) if is_done(run) else None
    except ConfigError:
        return None


def epochs_left(run: PlannedRun) -> int:
    """Return the number of epochs that a run, not refused, still has to train."""
    if run.config.kind != TRAIN:
        return 0
    done = count_epochs(run.directory) if state_of(run) == RESUMABLE else 0
    return run.config.recipe.epochs - done


def count_epochs(directory: RunDirectory) -> int:
    """Return the number of epochs in the metrics that a run has written so far."""
    try:
        with directory.metrics.open(newline="") as file:
            return sum(1 for _ in csv.DictReader(file))
    except OSError:
        return 0


def num_train(run: PlannedRun) -> int:
    """Return the number of training images of a run, not refused."""
    return resolve_run(run.config)[0].data.params.num_train


class Speed:
    """Training time of runs, estimated from those that are complete under the same root on the same kind of device.

    A run with the student, teacher, method and size of images of a complete one takes as long per training image; any
    other one is estimated by the multiply-accumulates of its student (three times, for forward and backward) and its
    teacher.
    """

    def __init__(self, summaries: Iterable[RunSummary], device: str) -> None:
        self.per_image: dict[tuple[Any, ...], list[float]] = {}
        """Seconds per image of runs by student, teacher, method and shape of the images."""
        self.per_mac: list[float] = []
        for s in summaries:
            images = (s.epochs or 0) * (s.num_train or 0)
            if not images or not s.train_seconds or s.device != device:
                continue
            seconds = s.train_seconds / images
            if s.lockstep in (None, 1):  # in a group the teacher's time is shared
                case = (s.student, s.teacher, s.method, s.classes_and_shape[1])
                self.per_image.setdefault(case, []).append(seconds)
            if not s.teacher and s.macs:
                self.per_mac.append(seconds / (3 * s.macs))

    def seconds(self, run: PlannedRun) -> float | None:
        """Return the seconds that a run, not refused, still takes; None if nothing was measured yet."""
        config = run.config
        if config.kind != TRAIN:
            return SECONDS_WITHOUT_TRAINING
        teacher = config.teacher.model.name if config.teacher else None
        shape = spec_of(config.data, resolve_runtime(config.runtime).device).input_shape
        measured = self.per_image.get((config.student.name, teacher, config.method.name, shape))
        if measured:
            per_image = statistics.median(measured)
        elif self.per_mac:
            macs = 3 * macs_of(config.student, config) + (
                macs_of(config.teacher.model, config) if config.teacher else 0
            )
            per_image = statistics.median(self.per_mac) * macs
        else:
            return None
        return per_image * epochs_left(run) * num_train(run)

    def saved(self, groups: Iterable[Sequence[PlannedRun]]) -> float:
        """Return the seconds that groups save by one pass of their live teacher; 0 if nothing was measured yet."""
        per_mac = statistics.median(self.per_mac) if self.per_mac else 0.0
        saved = 0.0
        for group in groups:
            live = [run for run in group if needs_live_teacher(run.config)]
            for run in live[1:]:
                assert run.config.teacher is not None
                images = epochs_left(run) * num_train(run)
                saved += per_mac * macs_of(run.config.teacher.model, run.config) * images
        return saved


def summaries_under(output_root: Path) -> list[RunSummary]:
    """Return the summaries of all complete runs that can be read."""
    found = []
    for file in sorted((output_root / "runs").glob("*/summary.json")):
        try:
            found.append(read_summary(file.parent))
        except ConfigError:
            continue
    return found


def duration(seconds: float) -> str:
    """Return a duration in words, no more exact than an estimate."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"

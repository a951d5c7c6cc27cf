"""A run on its way: from its parts to the files of its directory, alone in the loop or beside others."""

import contextlib
import dataclasses
import logging
import resource
import statistics
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdbench import metrics, teachers
from kdbench.config import RunConfig, RuntimeConfig, TeacherConfig
from kdbench.data.dataset import IMAGE_SHAPE, NUM_CLASSES
from kdbench.errors import RunError
from kdbench.limits import told
from kdbench.locks import Held
from kdbench.logs import about
from kdbench.models import describe
from kdbench.parts import Parts, derived_seed
from kdbench.runs import RunDirectory, write_json
from kdbench.summary import Predictions, fidelity, write_result
from kdbench.teaching import no_teacher
from kdbench.train.checkpoint import Checkpointer
from kdbench.train.evaluate import finite, predict
from kdbench.train.group import Pupil
from kdbench.train.learner import Learner
from kdbench.train.optim import learning_rate
from kdbench.train.steps import Answers
from kdbench.train.sums import NonFiniteError

log = logging.getLogger(__name__)

CHOICES = ("threads", "channels_last", "profile", "compile")
"""Of the runtime: what rounds sums and so must stay as it is until a run is done."""


def choices_of(runtime: RuntimeConfig) -> dict[str, Any]:
    return {name: getattr(runtime, name) for name in CHOICES}


@dataclass(frozen=True)
class Lesson:
    """A run's teacher, and how it answers."""

    teacher: teachers.Teacher
    answers: Answers
    config: TeacherConfig
    """With `table` decided."""
    source: str
    """Live or table, for the user."""


class Job(Pupil):
    """A run that this process carries out, and has locked.

    Args:
        config: Resolved.
        directory: Of the run; it exists.
        parts: Of the run.
        lesson: None for a run without a teacher.
        lock: Of the run.
        own: What is released when the run ends: the lock, and its log.
        prefix: Before every line about it, for the user.
    """

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        parts: Parts,
        lesson: Lesson | None,
        lock: Held,
        own: ExitStack,
        prefix: str = "",
    ) -> None:
        # What models draw while they train comes from a seed of its own.
        seed = derived_seed(config.data_seed, "training")
        super().__init__(Learner(parts.student, parts.method, config.recipe, config.runtime, seed))
        self.config = dataclasses.replace(config, teacher=lesson.config) if lesson else config
        self.directory = directory
        self.parts = parts
        self.lesson = lesson
        self.lock = lock
        self.own = own
        self.prefix = prefix
        self.error: Exception | None = None
        self.together = 1
        """How many runs trained in lockstep with it, itself included, at most."""
        self.checkpointer = Checkpointer(directory, config.checkpoint, self.learner, lock, self.facts())

    @property
    def answers(self) -> Answers:
        return self.lesson.answers if self.lesson else no_teacher

    @property
    def title(self) -> str:
        return title_of(self.config)

    def speaking(self) -> AbstractContextManager[object]:
        return about(self.directory.log, self.prefix)

    def facts(self) -> dict[str, Any]:
        """What the run depends on and must find again when it goes on."""
        return {
            "choices": choices_of(self.config.runtime),
            "table": self.lesson.config.table if self.lesson else None,
            "teacher": self.lesson.teacher.directory.read_summary()["weights_sha256"] if self.lesson else None,
            "training_data": self.parts.dataset.train.sha256,
        }

    def begin(self) -> None:
        """Write the config, and go on where the run stands."""
        if self.lesson:
            log.debug("teacher: %s", self.lesson.source)
        runtime = self.config.runtime
        path = self.directory.path
        log.info("%s: %s on %s, %s, threads: %d", self.title, path, runtime.device, runtime.precision, runtime.threads)
        self.directory.write_config(self.config)
        self.directory.bad_numbers.unlink(missing_ok=True)
        self.checkpointer.resume()
        if self.learner.rows:
            self.directory.write_metrics(self.learner.rows)  # the file may be older, damaged or gone

    def between_steps(self) -> None:
        self.checkpointer.between_steps()

    def epoch_done(self, row: Mapping[str, float]) -> None:
        self.lock.check()
        self.directory.write_metrics(self.learner.rows)
        self.checkpointer.end_of_epoch()

    def failed(self, error: Exception) -> None:
        """Keep why it ended, in the words that are for the user."""
        if isinstance(error, NonFiniteError):
            try:
                write_json(self.directory.bad_numbers, self.what_went_bad(error))
                error = RunError(f"{error}. What the step saw: {self.directory.bad_numbers}")
            except OSError as refused:
                error = refused
        self.error = told(error, self.config, self.directory.path)
        with self.speaking(), contextlib.suppress(OSError):  # its log may be what failed
            log.log(logging.INFO if self.prefix else logging.DEBUG, "ended: %s", self.error)  # alone, it is said anyway
        self.own.close()

    def what_went_bad(self, error: NonFiniteError) -> dict[str, Any]:
        """What a step saw that could not be taken, for whoever wants to find out why."""
        learner = self.learner
        batch = next(self.parts.batches.epoch(error.epoch - 1, error.step - 1))
        named = [*learner.student.named_parameters(), *learner.method.named_parameters()]
        return {
            "epoch": error.epoch,
            "step": error.step,
            "learning_rate": learning_rate(learner.recipe, error.epoch - 1),
            "precision": learner.runtime.precision,
            "terms": {name: repr(value) for name, value in error.values.items()},
            "weight_norms": {name: repr(float(value.detach().norm())) for name, value in named},
            "indices": batch.indices.tolist(),
            "views": batch.views.tolist(),
        }

    def finish(self) -> None:
        """Read the test set, with the last weights and with the best, and write the result."""
        config, dataset, learner, best = self.config, self.parts.dataset, self.learner, self.learner.best
        teacher, runtime = self.lesson.teacher if self.lesson else None, self.config.runtime
        assert best is not None

        def tested(epoch: int) -> Tensor:
            return finite(predict(learner.student, dataset, dataset.test, runtime, learner.method), epoch)

        test_logits = final = tested(learner.epoch)
        if best["epoch"] != learner.epoch:
            learner.student.body.load_state_dict(best["weights"])
            learner.method.load_state_dict(best["method"])
            test_logits = tested(best["epoch"])
        predictions = Predictions(best["val_logits"], test_logits)
        speeds = [row["images_per_second"] for row in learner.rows]
        training: dict[str, Any] = {
            "epochs": config.recipe.epochs,
            "best_val_epoch": best["epoch"],
            "test_acc_final": metrics.accuracy(final.numpy(), dataset.test.labels.cpu().numpy()),
            "teacher_test_acc": teacher.test_acc if teacher else None,
            "teacher_key": teacher.directory.key if teacher else None,
            "teacher_weights_sha256": teacher.weights_sha256 if teacher else None,
            **fidelity(predictions.test, teacher.test_logits if teacher else None),
            "train_seconds": sum(row["seconds"] for row in learner.rows),
            "images_per_second": statistics.median(speeds[1:] or speeds),
            "lockstep": self.together,
            "peak_memory_bytes": peak_memory(runtime.device),
            "skipped_steps": learner.skipped,
            "overflowed_steps": learner.overflows,
        }
        self.lock.check()
        description = self.parts.description
        write_result(self.directory, config, dataset, description, best["weights"], predictions, training)
        accuracy = metrics.accuracy(test_logits.numpy(), dataset.test.labels.cpu().numpy())
        log.info("done: test accuracy %.2f%% at the best validation epoch, %d", 100 * accuracy, best["epoch"])
        remove_checkpoints(config, self.directory)


def title_of(config: RunConfig) -> str:
    """What a run is, for people."""
    source = f" from {config.teacher.model.name}" if config.teacher else ""
    return f"{config.student.name} {config.method.name}{source} seed {config.seed}"


def share_work(jobs: Sequence[Job]) -> None:
    """Weigh runs in lockstep by the multiply-accumulates that each costs, with its share of a live teacher."""
    listeners = sum(job.lesson is not None and job.lesson.config.table != "on" for job in jobs)
    for job in jobs:
        job.together = len(jobs)
        job.weight = 3 * job.parts.description.macs
        if job.lesson and job.lesson.config.table != "on":
            teacher = describe(job.lesson.config.model, NUM_CLASSES, IMAGE_SHAPE, "teacher")
            job.weight += teacher.macs / listeners


def remove_checkpoints(config: RunConfig, directory: RunDirectory) -> None:
    """Of a complete run, but for the one that is to be kept."""
    for file in directory.checkpoints():
        if not (config.checkpoint.keep_last and file == directory.checkpoint):
            file.unlink(missing_ok=True)


def peak_memory(device: str) -> int:
    """Bytes: tensors on the GPU since the training began, or on the CPU the process's largest size so far."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

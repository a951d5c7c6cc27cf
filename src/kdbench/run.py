"""Resolved configs become finished run directories."""

import dataclasses
import logging
import resource
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdbench import metrics, tables, teachers
from kdbench.config import RunConfig, TeacherConfig
from kdbench.data import Batches, Dataset, load
from kdbench.data.dataset import IMAGE_SHAPE, NUM_CLASSES
from kdbench.errors import RunError
from kdbench.methods.method import Method
from kdbench.models import Description, Network, build, describe
from kdbench.runs import RunDirectory, check_writable, identity, key_of
from kdbench.runtime import applied, placed, resolve
from kdbench.summary import Predictions, fidelity, write_result
from kdbench.teaching import LiveTeacher, TabulatedTeacher, no_teacher
from kdbench.train.checkpoint import Checkpointer
from kdbench.train.display import Display
from kdbench.train.evaluate import predict
from kdbench.train.learner import Learner
from kdbench.train.loop import Answers, fit

log = logging.getLogger(__name__)


def execute(config: RunConfig) -> RunDirectory:
    """Carry out a run: skip it if it is complete, resume it if it was begun, and have its teacher trained if need be.

    Nothing is written before everything that the user could have got wrong has been checked.

    Args:
        config: As parsed; `auto` values are decided here.

    Returns:
        The directory of the complete run.

    Raises:
        ConfigError: the config cannot run here.
        RunError: it was started and could not be finished.
    """
    config, directory = located(config)
    if skipped(directory, config):
        return directory
    try:
        with applied(config.runtime):
            parts = prepare(config)
            lesson = taught(config, directory, parts) if config.teacher else None
            with directory.locked(f"this run of {config.student.name}"):
                directory = RunDirectory.of(config, directory.key)  # another process may have named it meanwhile
                if skipped(directory, config):
                    return directory
                if directory.is_complete():
                    directory.clear()
                elif lesson and directory.recorded_table() not in (None, lesson.config.table):
                    lesson = taught(config, directory, parts)  # another process has begun it meanwhile
                directory.create()
                with directory.logging():
                    train(config, directory, parts, lesson)
    except OSError as error:
        raise RunError(f"{directory.path}: {error}") from error
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"out of memory on {config.runtime.device} with recipe.batch_size={config.recipe.batch_size}; "
            "lower it, or use runtime.precision=bf16"
        ) from error
    return directory


def check(config: RunConfig) -> Path | None:
    """Everything that can be known to be wrong with a run before it starts. Writes nothing.

    Returns:
        The table that the run would read if there were one, for a sweep to count.

    Raises:
        ConfigError: the config cannot run here.
    """
    config, directory = located(config)
    if directory.is_complete() and not config.overwrite:
        return None
    _, _, method = check_parts(config)
    if config.teacher and config.teacher.table == "auto" and not directory.recorded_table():
        return tables.table_file(teachers.directory_of(config), config) if tables.can_answer(method.needs) else None
    return None


def located(config: RunConfig) -> tuple[RunConfig, RunDirectory]:
    """The config with every `auto` decided, and where its run is or will be.

    A run that was begun keeps to what was decided then: sums are rounded in the order of threads and memory.
    """
    config = dataclasses.replace(config, runtime=resolve(config.runtime))
    check_writable(Path(config.output_root).expanduser())
    teacher_key = teachers.key_of_teacher(config) if config.teacher else None
    directory = RunDirectory.of(config, key_of(identity(config, teacher_key)))
    if not directory.is_complete():
        config.runtime = dataclasses.replace(config.runtime, **directory.recorded_choices())
    return config, directory


def skipped(directory: RunDirectory, config: RunConfig) -> bool:
    if not directory.is_complete() or config.overwrite:
        return False
    directory.read_summary()  # its presence means complete; weights may have been removed since, unless they teach
    log.info("complete already, skipped: %s", directory.path)
    return True


@dataclass(frozen=True)
class Parts:
    """What a run is made of, built before anything is written."""

    dataset: Dataset
    batches: Batches
    student: Network
    description: Description
    method: Method


def prepare(config: RunConfig) -> Parts:
    """Load the data and build student and method, each from a seed of its own.

    Raises:
        ConfigError: for whatever of it cannot be.
    """
    dataset, description, method = check_parts(config)
    # Apart from the method's: students with the same seed start from the same weights, whatever they learn by.
    torch.manual_seed(derived_seed(config.init_seed, "student"))
    student = build(config.student, NUM_CLASSES, method.needs.student_stages)
    batches = Batches(
        dataset, config.recipe.batch_size, config.data_seed, config.data.augment, config.runtime.channels_last
    )
    return Parts(dataset, batches, placed(student, config.runtime), description, placed(method, config.runtime))


def check_parts(config: RunConfig) -> tuple[Dataset, Description, Method]:
    """What a run needs, but for its networks, which are described without being built."""
    teachers.check_checkpoint(config)
    dataset = load(config.data, config.runtime.device)
    description = describe(config.student, NUM_CLASSES, IMAGE_SHAPE, "student")
    teacher = config.teacher and describe(config.teacher.model, NUM_CLASSES, IMAGE_SHAPE, "teacher")
    torch.manual_seed(derived_seed(config.init_seed, "method"))
    method = config.method.target(config.method.params, description.shapes, teacher.shapes if teacher else None)
    return dataset, description, method


def derived_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose, independent of those for others."""
    return int(np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint32)[0])


@dataclass(frozen=True)
class Lesson:
    """A run's teacher, and how it answers."""

    teacher: teachers.Teacher
    answers: Answers
    config: TeacherConfig
    """With `table` decided."""
    source: str
    """Live or table, for the user."""


def taught(config: RunConfig, directory: RunDirectory, parts: Parts) -> Lesson:
    """Choose between the live teacher and its table, and have made what is missing of the two."""
    assert config.teacher is not None
    needs = parts.method.needs
    choice = tables.choose(config, needs, teachers.directory_of(config), directory.recorded_table())
    log.info("teacher: %s", choice.reason)
    teacher = teachers.obtain(config, needs, parts.dataset, execute)
    answers: Answers = LiveTeacher(teacher.network, needs, config.runtime)
    table, source = "off", choice.reason
    if choice.use:
        logits = tables.obtain(choice, config, teacher, parts.batches)
        if isinstance(logits, str):
            source = logits
            log.info("teacher: %s", source)
        else:
            train = parts.dataset.train
            answers = TabulatedTeacher(logits.to(train.labels.device), train, tables.views_of(config))
            table = "on"
    return Lesson(teacher, answers, dataclasses.replace(config.teacher, table=table), source)


def train(config: RunConfig, directory: RunDirectory, parts: Parts, lesson: Lesson | None) -> None:
    """Train the student of a run, resuming if it was begun, and write its directory."""
    dataset, runtime = parts.dataset, config.runtime
    if lesson:
        config = dataclasses.replace(config, teacher=lesson.config)
        log.debug("teacher: %s", lesson.source)
    source = f" from {config.teacher.model.name}" if config.teacher else ""
    title = f"{config.student.name} {config.method.name}{source} seed {config.seed}"
    log.info("%s: %s on %s, %s, threads: %d", title, directory.path, runtime.device, runtime.precision, runtime.threads)
    directory.write_config(config)
    measure_memory_from_here(runtime.device)
    learner = Learner(parts.student, parts.method, config.recipe, runtime)
    torch.manual_seed(derived_seed(config.data_seed, "training"))  # for models that draw while they train
    checkpointer = Checkpointer(directory, config.checkpoint)
    checkpointer.resume(learner)

    def record(learner: Learner) -> None:
        directory.write_metrics(learner.rows)
        checkpointer.save_if_due(learner)

    display = Display(title, config.recipe.epochs, len(dataset.train), learner.epoch)
    answers = lesson.answers if lesson else no_teacher
    try:
        fit([learner], parts.batches, dataset, answers, config.recipe.epochs, display, record)
    finally:
        display.close()
    finish(config, directory, parts, lesson.teacher if lesson else None, learner)
    if not config.checkpoint.keep_last:
        directory.checkpoint.unlink(missing_ok=True)


def finish(
    config: RunConfig, directory: RunDirectory, parts: Parts, teacher: teachers.Teacher | None, learner: Learner
) -> None:
    """Read the test set, with the last weights and with the best, and write the result."""
    dataset, runtime, best = parts.dataset, config.runtime, learner.best
    assert best is not None
    final = predict(learner.student, dataset, dataset.test, runtime, learner.method)
    test_logits = final
    if best["epoch"] != learner.epoch:
        learner.student.body.load_state_dict(best["weights"])
        learner.method.load_state_dict(best["method"])
        test_logits = predict(learner.student, dataset, dataset.test, runtime, learner.method)
    predictions = Predictions(best["val_logits"], test_logits)
    speeds = [row["images_per_second"] for row in learner.rows]
    training: dict[str, Any] = {
        "epochs": config.recipe.epochs,
        "best_val_epoch": best["epoch"],
        "test_acc_final": metrics.accuracy(final.numpy(), dataset.test.labels.cpu().numpy()),
        "teacher_test_acc": teacher.test_acc if teacher else None,
        "teacher_key": teacher.directory.key if teacher else None,
        **fidelity(predictions.test, teacher.test_logits if teacher else None),
        "train_seconds": sum(row["seconds"] for row in learner.rows),
        "images_per_second": statistics.median(speeds[1:] or speeds),
        "peak_memory_bytes": peak_memory(runtime.device),
    }
    write_result(directory, config, dataset, parts.description, best["weights"], predictions, training)
    accuracy = metrics.accuracy(test_logits.numpy(), dataset.test.labels.cpu().numpy())
    log.info("done: test accuracy %.2f%% at the best validation epoch, %d", 100 * accuracy, best["epoch"])


def measure_memory_from_here(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: str) -> int:
    """Bytes: tensors on the GPU since the run began, or on the CPU the process's largest size so far."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

"""Resolved configs become finished run directories."""

import contextlib
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
from kdbench.config import RunConfig, RuntimeConfig, TeacherConfig
from kdbench.data import Batches, Dataset, load
from kdbench.data.dataset import IMAGE_SHAPE, NUM_CLASSES
from kdbench.errors import ConfigError, KdbenchError, RunError
from kdbench.limits import check_room, failures_told
from kdbench.locks import Held
from kdbench.methods.method import Method
from kdbench.models import Description, Network, build, describe
from kdbench.runs import RunDirectory, changed_since, check_writable, identity, key_of, write_json
from kdbench.runtime import applied, placed, resolve
from kdbench.stopping import deferred, leave_if_asked
from kdbench.summary import Predictions, fidelity, write_result
from kdbench.teaching import LiveTeacher, TabulatedTeacher, no_teacher
from kdbench.train.checkpoint import Checkpointer
from kdbench.train.display import Display
from kdbench.train.evaluate import finite, predict
from kdbench.train.learner import Learner
from kdbench.train.loop import Answers, fit
from kdbench.train.optim import learning_rate
from kdbench.train.sums import NonFiniteError

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
        BusyError: another process has it, and `on_busy` is skip.
        Interrupted: a signal has asked to stop; the run goes on where it was when it is executed again.
    """
    leave_if_asked()  # while the run before this one was being finished
    asked = config
    config, directory = located(config)
    if skipped(directory, config):
        return directory
    with failures_told(config, directory.path), applied(config.runtime):
        parts = prepare(config)
        lesson = taught(config, directory, parts) if config.teacher else None
        with directory.locked(f"this run of {config.student.name}", config.on_busy) as lock:
            directory = RunDirectory.of(config, directory.key)  # another process may have named it meanwhile
            if directory.is_complete() and not config.overwrite:
                log.info("complete already, skipped: %s", directory.path)
                return directory
            if directory.is_complete():
                directory.clear()
            if agrees(directory, config, lesson):
                check_room(directory, [parts.student, parts.method], len(parts.dataset.val) + len(parts.dataset.test))
                directory.create()
                with directory.logging():
                    train(config, directory, parts, lesson, lock)
                return directory
    return execute(asked)  # another process began it meanwhile, with choices of its own


def agrees(directory: RunDirectory, config: RunConfig, lesson: "Lesson | None") -> bool:
    """Whether we do as the run began, if it was begun."""
    choices, table = directory.recorded_choices(), directory.recorded_table()
    return choices in ({}, choices_of(config.runtime)) and (not lesson or table in (None, lesson.config.table))


def choices_of(runtime: RuntimeConfig) -> dict[str, Any]:
    """What rounds sums and so must stay as it is until a run is done."""
    return {name: getattr(runtime, name) for name in ("threads", "channels_last", "deterministic")}


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
    summary = directory.read_summary()  # its presence means complete; weights may have been removed since
    if changed := changed_since(directory.path, summary):
        raise ConfigError(
            f"{directory.path / changed} was changed since the run was finished; put it back, or delete "
            f"{directory.path} to repeat the run (kdbench-verify says what else does not hold)"
        )
    if any(file.is_file() for file in directory.checkpoints()):  # its process was killed after its last word
        with contextlib.suppress(KdbenchError, OSError), directory.locked("this run", "skip"):
            remove_checkpoints(config, directory)
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


def train(config: RunConfig, directory: RunDirectory, parts: Parts, lesson: Lesson | None, lock: Held) -> None:
    """Train the student of a run, resuming if it was begun, and write its directory."""
    dataset, runtime = parts.dataset, config.runtime
    if lesson:
        config = dataclasses.replace(config, teacher=lesson.config)
        log.debug("teacher: %s", lesson.source)
    source = f" from {config.teacher.model.name}" if config.teacher else ""
    title = f"{config.student.name} {config.method.name}{source} seed {config.seed}"
    log.info("%s: %s on %s, %s, threads: %d", title, directory.path, runtime.device, runtime.precision, runtime.threads)
    directory.write_config(config)
    directory.bad_numbers.unlink(missing_ok=True)
    measure_memory_from_here(runtime.device)
    learner = Learner(parts.student, parts.method, config.recipe, runtime)
    torch.manual_seed(derived_seed(config.data_seed, "training"))  # for models that draw while they train
    checkpointer = Checkpointer(directory, config.checkpoint, learner, lock, facts_of(config, parts, lesson))
    checkpointer.resume()
    if learner.rows:
        directory.write_metrics(learner.rows)  # the file may be older, damaged or gone

    def record(learner: Learner) -> None:
        lock.check()
        directory.write_metrics(learner.rows)
        checkpointer.end_of_epoch()

    done = learner.epoch + learner.step_of_epoch / len(parts.batches)
    display = Display(title, config.recipe.epochs, len(dataset.train), done)
    answers = lesson.answers if lesson else no_teacher
    with deferred(config.checkpoint.grace_seconds):
        try:
            with checkpointer.kept_on_interruption():
                fit(
                    [learner],
                    parts.batches,
                    dataset,
                    answers,
                    config.recipe.epochs,
                    display,
                    checkpointer.watched,
                    record,
                )
        except NonFiniteError as error:
            write_json(directory.bad_numbers, what_went_bad(error, parts, learner))
            raise RunError(f"{error}. What the step saw: {directory.bad_numbers}") from None
        finally:
            display.close()
        finish(config, directory, parts, lesson.teacher if lesson else None, learner, lock)
    remove_checkpoints(config, directory)


def remove_checkpoints(config: RunConfig, directory: RunDirectory) -> None:
    """Of a complete run, but for the one that is to be kept."""
    for file in directory.checkpoints():
        if not (config.checkpoint.keep_last and file == directory.checkpoint):
            file.unlink(missing_ok=True)


def facts_of(config: RunConfig, parts: Parts, lesson: Lesson | None) -> dict[str, Any]:
    """What a run depends on and must find again when it goes on."""
    taught_by = lesson.teacher.directory.read_summary()["weights_sha256"] if lesson else None
    return {
        "choices": choices_of(config.runtime),
        "table": lesson.config.table if lesson else None,
        "teacher": taught_by,
        "training_data": parts.dataset.train.sha256,
    }


def what_went_bad(error: NonFiniteError, parts: Parts, learner: Learner) -> dict[str, Any]:
    """What a step saw that could not be taken, for whoever wants to find out why."""
    batch = next(parts.batches.epoch(error.epoch - 1, error.step - 1))
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


def finish(
    config: RunConfig,
    directory: RunDirectory,
    parts: Parts,
    teacher: teachers.Teacher | None,
    learner: Learner,
    lock: Held,
) -> None:
    """Read the test set, with the last weights and with the best, and write the result."""
    dataset, runtime, best = parts.dataset, config.runtime, learner.best
    assert best is not None
    final = finite(predict(learner.student, dataset, dataset.test, runtime, learner.method), learner.epoch)
    test_logits = final
    if best["epoch"] != learner.epoch:
        learner.student.body.load_state_dict(best["weights"])
        learner.method.load_state_dict(best["method"])
        test_logits = finite(predict(learner.student, dataset, dataset.test, runtime, learner.method), best["epoch"])
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
        "peak_memory_bytes": peak_memory(runtime.device),
        "skipped_steps": learner.skipped,
        "overflowed_steps": learner.overflows,
    }
    lock.check()
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

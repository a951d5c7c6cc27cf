"""Records of runs that fail: the error, and what a step that was not finite saw."""

import logging
from typing import TYPE_CHECKING, Any

from kdbench.config import RunConfig
from kdbench.config.derived import TRAIN
from kdbench.errors import BusyError, KdbenchError, PrunedError, first_line, printable
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.identity import baseline_key, group_key, identity_of
from kdbench.rundir.summary import SCHEMA_VERSION, names
from kdbench.rundir.unfinished import Failure, write_failure
from kdbench.runner.environment import environment
from kdbench.runner.resources import user_error
from kdbench.runner.results import known_before, restated
from kdbench.train.sums import NonFiniteError

if TYPE_CHECKING:
    from kdbench.runner.run import Run

log = logging.getLogger(__name__)

BUG = "bug"
"""Code of an exception that is no error for the user."""
GIVEN_UP = "stopped"
"""Code of a run whose job was stopped again and again without progress."""


def record_failure(run: "Run", error: Exception) -> None:
    """Write failure.json as far as possible, unless the run was not opened or another process holds it.

    Args:
        run: the run. An error of a group reaches it when its lock is released already; it is taken again.
        error: error that ended it.
    """
    if not hasattr(run, "learner") or isinstance(error, BusyError | PrunedError):
        return
    lock = run.lock or run.directory.lock()
    try:
        if run.lock:
            lock.check()
            write_failure(run.directory.path, describe_failure(run, error))
        else:
            with lock.held(wait=False):
                if not run.directory.is_complete():
                    write_failure(run.directory.path, describe_failure(run, error))
    except Exception as refused:  # a full disk, a lost lock, a GPU in a bad state: the first error is the one to report
        log.debug("the failure cannot be recorded: %s", refused)


def record_given_up(config: RunConfig, directory: RunDirectory, message: str) -> None:
    """Write failure.json of a run whose job was stopped too often, unless it is complete or another process holds it.

    Compressions and measurements have none.

    Args:
        config: resolved config.
        directory: run directory.
        message: content of its message.
    """
    if config.kind != TRAIN:
        return
    try:
        with directory.lock().held(wait=False):
            if not directory.is_complete():
                identity = identity_of(config)
                known = restated(config) | names(
                    schema_version=SCHEMA_VERSION,
                    run_key=directory.key,
                    group_key=group_key(identity, config),
                    baseline_key=baseline_key(identity),
                    epochs=config.recipe.epochs,
                )
                directory.path.mkdir(parents=True, exist_ok=True)
                write_failure(directory.path, Failure(GIVEN_UP, message, None, known))
    except Exception as refused:  # a full disk, or a lock that is held; the job ends in any case
        log.debug("the failure cannot be recorded: %s", refused)


def describe_failure(run: "Run", error: Exception) -> Failure:
    """Return the content of failure.json."""
    config, learner = run.config, run.learner
    explained = user_error(error, config, run.directory)
    teacher_key = run.teacher.teacher.directory.key if run.teacher else None
    known = known_before(run.directory, config, run.parts.dataset.spec, run.parts.model_summary, teacher_key)
    return Failure(
        code=explained.code if isinstance(explained, KdbenchError) else BUG,
        message=printable(first_line(explained)),
        epoch=error.epoch if isinstance(error, NonFiniteError) else min(learner.epoch + 1, config.recipe.epochs),
        run=known | names(epochs=config.recipe.epochs, teacher_key=teacher_key, environment=environment(config)),
    )


def nonfinite_step(run: "Run", error: NonFiniteError) -> dict[str, Any]:
    """Return the inputs and values of a step that was not finite."""
    learner = run.learner
    batch = next(run.batches.epoch(error.epoch - 1, error.step - 1))
    named = [*learner.student.named_parameters(), *learner.method.named_parameters()]
    return {
        "epoch": error.epoch,
        "step": error.step,
        "learning_rate": learner.schedule.at(error.epoch - 1, error.step - 1),
        "precision": learner.runtime.precision,
        "terms": {name: repr(value) for name, value in error.values.items()},
        "weight_norms": {name: repr(float(value.detach().norm())) for name, value in named},
        "indices": batch.indices.tolist(),
        "views": batch.views.tolist(),
    }

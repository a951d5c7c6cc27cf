"""Runs without a training of their own: compressions, and measurements of several networks in turn."""

import logging
from collections.abc import Sequence

from kdbench.config import RunConfig
from kdbench.config.derived import COMPRESS
from kdbench.errors import BusyError, ConfigError
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.related import check_parent_unchanged
from kdbench.rundir.summary import changed_file
from kdbench.runner.compressing import compress_network
from kdbench.runner.measuring import measure_networks
from kdbench.runner.resources import user_error
from kdbench.runner.run import RunResult, resolve_run
from kdbench.system.signals import raise_if_requested
from kdbench.trackers.sender import resend, wait_for_trackers

log = logging.getLogger(__name__)


def complete_derived(configs: Sequence[RunConfig], on_busy: str | None = None) -> list[RunResult]:
    """Complete runs of one kind, compress or measure; finished ones are skipped. Arguments and result: see `run_all`.

    Networks that are measured together are measured in turn, all anew if one of them is missing.
    """
    if configs[0].kind == COMPRESS:
        results = [complete_one(config, on_busy) for config in configs]
    else:
        results = complete_measurements(configs, on_busy)
    wait_for_trackers([resend(one.config, one.directory, None) for one in results if one.directory and not one.error])
    return results


def complete_one(config: RunConfig, on_busy: str | None) -> RunResult:
    """Complete a run of kind compress."""
    directory = None
    try:
        raise_if_requested()
        config, directory = resolve_run(config)
        if is_finished(config, directory):
            return RunResult(config, directory, None)
        with directory.lock("run").held(wait=(on_busy or config.on_busy) == "wait"):
            if not is_finished(config, directory, say=False):
                compress_network(config, directory)
        return RunResult(config, directory, None)
    except Exception as error:
        return failed(config, directory, error)


def complete_measurements(configs: Sequence[RunConfig], on_busy: str | None) -> list[RunResult]:
    """Complete runs of kind measure that belong together."""
    raise_if_requested()
    resolved: list[tuple[RunConfig, RunDirectory]] = []
    try:
        resolved = [resolve_run(config) for config in configs]
        check_whole(configs)
        if all(is_finished(config, directory, say=False) for config, directory in resolved):
            log.info("complete already, skipped: %d measurements", len(resolved))
            return [RunResult(config, directory, None) for config, directory in resolved]
        locks = [directory.lock("measurement") for _, directory in resolved]
        held = []
        try:
            # In one order, so that no two processes wait for each other.
            for lock in sorted(locks, key=lambda lock: lock.file):
                lock.acquire(wait=(on_busy or configs[0].on_busy) == "wait")
                held.append(lock)
            if not all(is_finished(config, directory, say=False) for config, directory in resolved):
                measure_networks(resolved)
        finally:
            for lock in held:
                lock.release()
    except Exception as error:
        return [failed(config, None, error) for config in configs]
    return [RunResult(config, directory, None) for config, directory in resolved]


def check_whole(configs: Sequence[RunConfig]) -> None:
    """Check that all networks of a measurement are given, since their latencies are compared.

    Raises:
        ConfigError: some are missing.
    """
    given = sorted({config.parent.run for config in configs if config.parent})
    assert configs[0].measure is not None
    if given != configs[0].measure.together:
        raise ConfigError(
            f"the measurement is one of {len(configs[0].measure.together)} networks in turn, and {len(given)} are "
            "given; measure them with one command: kdbench-measure RUN RUN ...",
            code="mismatch",
            key="measure.together",
        )


def is_finished(config: RunConfig, directory: RunDirectory, say: bool = True) -> bool:
    """Return whether a run is complete and is not to be repeated.

    Raises:
        ConfigError: a file of it was changed since.
    """
    if not directory.is_complete() or config.overwrite:
        return False
    summary = directory.read_summary()
    check_parent_unchanged(directory, summary)
    if changed := changed_file(directory.path, summary):
        raise ConfigError(
            f"{directory.path / changed} was changed since the run was finished; restore it, or delete "
            f"{directory.path} to repeat the run",
            code="checksum",
            key=changed,
        )
    if say:
        log.info("complete already, skipped: %s", directory.path)
    return True


def failed(config: RunConfig, directory: RunDirectory | None, error: Exception) -> RunResult:
    """Return the result of a run that an error ended; requested stops are raised."""
    raise_if_requested()
    return RunResult(config, None, error if isinstance(error, BusyError) else user_error(error, config, directory))

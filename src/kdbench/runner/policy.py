"""Policies around `run_all`: what is tried again, alone or in smaller groups, when runs cannot train as given."""

import gc
import logging
import traceback
from collections.abc import Sequence

from kdbench.config import RunConfig
from kdbench.config.derived import MEASURE
from kdbench.errors import BusyError, KdbenchError, SettingsChangedError
from kdbench.runner.run import RunResult
from kdbench.runner.run_all import ATTEMPTS, Train, run_all
from kdbench.system.world import world
from kdbench.train.loop import fit

log = logging.getLogger(__name__)


def run_with_retries(
    configs: Sequence[RunConfig], names: Sequence[str] = (), train: Train = fit, attempts: int = ATTEMPTS
) -> list[RunResult]:
    """Complete runs by `run_all`, and try again what may succeed otherwise.

    - Out of memory: the halves of a group, one after the other. Not where several processes train them: the others
      have ended.
    - A run of a group that another process holds: alone, after the others, so that no lock is held while waiting.
    - A run that another process has started with other settings meanwhile: alone, with those settings.

    Arguments, result and errors: see `run_all`.
    """
    if configs and configs[0].kind == MEASURE:  # networks that are measured in turn stay together
        return run_all(configs, names, train)
    several = len(configs) > 1
    results = run_all(configs, names, train, on_busy="skip" if several else None)
    for group in groups_to_retry(results, attempts):
        for result in results:
            release_frames(result.error)
        gc.collect()
        if several and ran_out_of_memory(results[group[0]]):
            log.info("out of memory with %d runs in lockstep; continuing with %d of them", len(configs), len(group))
        group_names = [names[n] for n in group] if names else []
        changed = isinstance(results[group[0]].error, SettingsChangedError)
        retried = run_with_retries([configs[n] for n in group], group_names, train, attempts - changed)
        for n, result in zip(group, retried, strict=True):
            results[n] = result
    return results


def groups_to_retry(results: Sequence[RunResult], attempts: int) -> list[list[int]]:
    """Return the positions of the runs to try again, a list per group; none where the other processes have ended."""
    if world().problem:
        return []
    if len(results) == 1:
        changed = isinstance(results[0].error, SettingsChangedError)
        return [[0]] if changed and attempts > 1 else []
    short = [n for n, result in enumerate(results) if ran_out_of_memory(result)]
    alone = [n for n, result in enumerate(results) if isinstance(result.error, BusyError)]
    halves = [short[: len(short) // 2], short[len(short) // 2 :]]
    return [*(half for half in halves if half), *([n] for n in alone)]


def ran_out_of_memory(result: RunResult) -> bool:
    """Return whether a run ended because memory was short."""
    return isinstance(result.error, KdbenchError) and result.error.code == "out_of_memory"


def release_frames(error: BaseException | None) -> None:
    """Release the local variables of the functions that an error passed through: they hold networks."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__

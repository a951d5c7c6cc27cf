"""Measurement of the cases of a command line, printed and written after each."""

import argparse
import contextlib
import dataclasses
import datetime
import logging
from pathlib import Path
from typing import Any

from kdbench.bench.cases import LOCKSTEP_SETS, SETS
from kdbench.bench.checkpoints import cost_of_checkpoints
from kdbench.bench.lockstep import check_group, compare
from kdbench.bench.measure import figures, measure_arms
from kdbench.bench.prepare import Prepared, cases_of, prepare
from kdbench.bench.tables import arms_table, checkpoint_line, heading, lockstep_table
from kdbench.bench.trainee import Bench
from kdbench.errors import ConfigError
from kdbench.rundir.files import write_json
from kdbench.runner.environment import environment
from kdbench.system.cpu import available_cores
from kdbench.system.device import torch_settings

log = logging.getLogger(__name__)


def execute(given: argparse.Namespace) -> None:
    """Measure the cases of a command line.

    Args:
        given: parsed command line.

    Raises:
        ConfigError: a case cannot be measured here; found before the first is measured.
    """
    cases = SETS[given.set] if given.set else cases_of(given.overrides)
    arms = tuple(name.strip() for name in given.arms.split(",")) if given.arms is not None else ()
    prepared = [prepare(dataclasses.replace(case, arms=arms or case.arms)) for case in cases]
    in_lockstep = given.lockstep or given.set in LOCKSTEP_SETS
    if in_lockstep:
        check_group([one.config for one in prepared])
    now = datetime.datetime.now().astimezone()
    out = given.out or Path("outputs/bench") / f"{now:%Y-%m-%d_%H-%M-%S}.json"
    result: dict[str, Any] = {"schema_version": 1, "started": now.isoformat(timespec="seconds"), "cases": []}
    create_result(out, result)
    if in_lockstep:
        result |= measure_lockstep(prepared, given.rounds, given.seconds)
        print(f"\n{lockstep_table(result['lockstep'])}", flush=True)
        write_json(out, result)
    else:
        workers = given.workers or min(4, available_cores())
        for one in prepared:
            case = measure_case(one, workers, given.rounds, given.seconds, out.parent)
            result["environment"] = environment(one.config)
            result["cases"].append(case)
            table, line = arms_table(case["arms"]), checkpoint_line(case["checkpoints"])
            print(f"\n{heading(case)}\n{table}\n{line}", flush=True)
            write_json(out, result)
    print(f"\nwritten: {out}")


def create_result(out: Path, result: dict[str, Any]) -> None:
    """Write the result without measurements, before anything is measured.

    Raises:
        ConfigError: no file can be written there.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)
    except (OSError, ValueError) as error:  # an empty name is a ValueError
        raise ConfigError(
            f"--out is {str(out)!r}, and no file can be written there: {error}", code="not_writable", key="--out"
        ) from None


def measure_case(prepared: Prepared, workers: int, rounds: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Return the result of one case.

    Args:
        prepared: the case.
        workers: processes of the reference's loader.
        rounds: number of rounds.
        seconds: duration of a visit.
        folder: folder on the disk where checkpoints are measured.
    """
    case, config, arms = prepared.case, prepared.config, prepared.arms
    with torch_settings(config.runtime):
        log.info("measuring %s: %d arms, %d rounds", case.title, len(arms), rounds)
        with contextlib.closing(Bench(config, workers)) as bench:
            rows = figures(bench, measure_arms(bench, arms, rounds, seconds, case.title))
            checkpoints = cost_of_checkpoints(bench, folder)
    return metadata(prepared) | {"arms": rows, "checkpoints": checkpoints}


def measure_lockstep(prepared: list[Prepared], rounds: int, seconds: float) -> dict[str, Any]:
    """Return environment and result of a group."""
    configs = [one.config for one in prepared]
    with torch_settings(configs[0].runtime):
        log.info("measuring %d learners in lockstep and one after the other, %d rounds", len(configs), rounds)
        measured = compare(configs, rounds, seconds)
    return {"environment": environment(configs[0]), "lockstep": metadata(prepared[0]) | measured}


def metadata(prepared: Prepared) -> dict[str, Any]:
    """Return the configuration of a case for its result."""
    config = prepared.config
    return {
        "overrides": list(prepared.case.overrides),
        "student": config.student.name,
        "teacher": config.teacher.model.name if config.teacher else None,
        "method": config.method.name,
        "batch_size": config.recipe.batch_size,
        "runtime": dataclasses.asdict(config.runtime),
    }

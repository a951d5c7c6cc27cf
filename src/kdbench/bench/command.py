"""The console command `kdbench-bench`: cases in, one table and one JSON file out."""

import argparse
import dataclasses
import datetime
import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from kdbench.bench.arms import ARMS, Arm, Bench, arms_of
from kdbench.bench.checkpoints import cost_of_checkpoints
from kdbench.bench.lockstep import check_group, compared
from kdbench.bench.measure import figures, measured
from kdbench.compose import explained, run_config
from kdbench.config import RunConfig
from kdbench.errors import ConfigError, Parser, nearest
from kdbench.parts import check_parts
from kdbench.processors import available_cores
from kdbench.runs import write_json
from kdbench.runtime import applied, resolve
from kdbench.summary import environment

log = logging.getLogger(__name__)

DATA = ("data=shapes", "data.num_train=3840", "data.num_val=10", "data.num_test=10")
"""Speed does not depend on what the images show; these need no download."""


@dataclass(frozen=True)
class Case:
    """One configuration, and the arms to measure of it: all that differ there, or those named."""

    overrides: tuple[str, ...]
    arms: tuple[str, ...] = ()


SETS = {
    "cpu": (
        Case(("pair=r50_r18", "method=ce", "runtime.device=cpu")),
        Case(("pair=r50_r18", "method=logit", "runtime.device=cpu")),
        Case(("pair=r50_r18", "method=feature", "runtime.device=cpu"), ("reference", "folded", "kdbench")),
    ),
    "lockstep": tuple(
        Case((f"student={student}", f"method={method}", "teacher=resnet56", "runtime.device=cpu"))
        for student in ("resnet8", "resnet14")
        for method in ("logit", "feature", "ce")
    ),
    "gpu-lockstep": tuple(
        Case((f"student={student}", f"method={method}", "teacher=resnet50", "runtime.device=cuda"))
        for student in ("resnet18", "resnet34")
        for method in ("logit", "feature", "ce")
    ),
    "gpu": (
        Case(("pair=r50_r18", "method=ce", "runtime.device=cuda")),
        Case(("pair=r50_r18", "method=logit", "runtime.device=cuda")),
        Case(("pair=r50_r18", "method=feature", "runtime.device=cuda")),
        Case(("pair=r101_r34", "method=logit", "runtime.device=cuda"), ("reference", "kdbench", "kdbench-table")),
        Case(("student=resnet50", "method=ce", "runtime.device=cuda"), ("reference", "kdbench")),
    ),
}


def arguments_of(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="kdbench-bench",
        description="Training speed of kdbench beside a reference trainer, as ratios measured in one process.",
        epilog="arms: " + "; ".join(f"{arm.name} ({arm.what})" for arm in ARMS),
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE",
        help="of a run: pair=, student=, teacher=, method=, recipe.batch_size=, runtime.device=, runtime.precision=, "
        "...; several values, as in method=ce,logit, make several cases; data is the embedded set unless given",
    )  # fmt: skip
    parser.add_argument("--set", choices=SETS, help="cases that belong together, instead of KEY=VALUE of one's own")
    parser.add_argument("--arms", help="names with commas between; all that differ by default")
    parser.add_argument("--rounds", type=whole, default=5, help="visits of every arm (5)")
    parser.add_argument("--seconds", type=duration, default=2.0, help="a visit lasts, at least one step (2)")
    parser.add_argument("--workers", type=whole, help="processes of the reference's loader (one per core, at most 4)")
    parser.add_argument("--out", type=Path, help="the JSON file (outputs/bench/TIME.json)")
    parser.add_argument(
        "--lockstep", action="store_true",
        help="the combinations are learners of one group: trained in lockstep, beside one after the other",
    )  # fmt: skip
    given = parser.parse_intermixed_args(arguments)
    if given.lockstep and given.arms:
        parser.error("--lockstep has arms of its own; leave --arms out")
    if bool(given.set) and bool(given.overrides):
        parser.error("--set names its own cases; give either it or KEY=VALUE")
    return given


def whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def duration(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number above 0")
    return value


def bench(arguments: Sequence[str]) -> None:
    """Measure all cases and write the result, after each.

    Raises:
        ConfigError: a case that cannot be measured here; found before the first is.
    """
    given = arguments_of(arguments)
    cases = SETS[given.set] if given.set else expanded(given.overrides)
    named = tuple(name.strip() for name in given.arms.split(",")) if given.arms is not None else ()
    together = given.lockstep or given.set in ("lockstep", "gpu-lockstep")
    prepared = [checked(Case(case.overrides, named or case.arms)) for case in cases]
    if together:
        check_group([config for _, config, _ in prepared])
    now = datetime.datetime.now().astimezone()
    out = given.out or Path("outputs/bench") / f"{now:%Y-%m-%d_%H-%M-%S}.json"
    result: dict[str, Any] = {"schema_version": 1, "started": now.isoformat(timespec="seconds"), "cases": []}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)
    except (OSError, ValueError) as error:  # an empty name is a ValueError
        raise ConfigError(f"--out is {str(given.out)!r}, and no file can be written there: {error}") from None
    if together:
        configs = [config for _, config, _ in prepared]
        with applied(configs[0].runtime):
            log.info("measuring %d learners in lockstep and one after the other, %d rounds", len(configs), given.rounds)
            found = compared(configs, given.rounds, given.seconds)
        result["environment"] = environment(configs[0])
        result["lockstep"] = described(prepared[0][0], configs[0]) | found
        print(f"\n{lockstep_table(result['lockstep'])}", flush=True)
        write_json(out, result)
        prepared = []
    for case, config, arms in prepared:
        with applied(config.runtime):
            log.info("measuring %s: %d arms, %d rounds", " ".join(case.overrides), len(arms), given.rounds)
            shared = Bench(config, given.workers or min(4, available_cores()))
            title = " ".join(case.overrides) or "defaults"
            rows = figures(shared, measured(shared, arms, given.rounds, given.seconds, title))
            checkpoints = cost_of_checkpoints(shared, out.parent)
        result["environment"] = environment(config)
        result["cases"].append(described(case, config) | {"arms": rows, "checkpoints": checkpoints})
        print(f"\n{headline(result['cases'][-1])}\n{table(rows)}\n{cost(checkpoints)}", flush=True)
        write_json(out, result)
    print(f"\nwritten: {out}")


def expanded(overrides: Sequence[str]) -> list[Case]:
    """One case per combination of values."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except Exception as error:  # Hydra's own and what it trips over
        raise explained(error, overrides) from None
    return [Case(tuple(job)) for job in jobs]


def checked(case: Case) -> tuple[Case, RunConfig, list[Arm]]:
    """A case, its resolved config and its arms.

    Raises:
        ConfigError: its keys, its device or its arms are not what can be.
    """
    names = [arm.name for arm in ARMS]
    for name in case.arms:
        if name not in names:
            raise ConfigError(f"--arms names {name!r}; {nearest(name, names)}")
    data = () if any(override.startswith("data=") for override in case.overrides) else DATA
    config = run_config(*data, *case.overrides)
    if config.data.num_train < config.recipe.batch_size:
        raise ConfigError(
            f"recipe.batch_size is {config.recipe.batch_size}, more than data.num_train={config.data.num_train}; "
            "only whole batches are measured"
        )
    config = dataclasses.replace(config, runtime=resolve(config.runtime))
    arms = arms_of(config, check_parts(config)[2].needs)
    for name in case.arms:
        if name not in [arm.name for arm in arms]:
            raise ConfigError(
                f"--arms names {name}, which is no arm of {' '.join(case.overrides) or 'the defaults'} "
                f"({config.method.name}, {config.runtime.precision}); its arms: {', '.join(arm.name for arm in arms)}"
            )
    return case, config, [arm for arm in arms if not case.arms or arm.name in case.arms]


def described(case: Case, config: RunConfig) -> dict[str, Any]:
    return {
        "overrides": list(case.overrides),
        "student": config.student.name,
        "teacher": config.teacher.model.name if config.teacher else None,
        "method": config.method.name,
        "batch_size": config.recipe.batch_size,
        "runtime": dataclasses.asdict(config.runtime),
    }


def headline(case: dict[str, Any]) -> str:
    runtime = case["runtime"]
    source = f" from {case['teacher']}" if case["teacher"] else ""
    return (
        f"{case['student']} {case['method']}{source}, batch {case['batch_size']}, on {runtime['device']}, "
        f"{runtime['precision']}, threads: {runtime['threads']}"
    )


def lockstep_table(found: dict[str, Any]) -> str:
    """Both arms, and what lockstep gains."""
    runtime, ratio = found["runtime"], found["ratio"]
    arms = [
        {"arm": name, "images/s": "{median:.0f} ({lowest:.0f} to {highest:.0f})".format(**arm["images_per_second"])}
        for name, arm in found["arms"].items()
    ]
    return (
        f"{len(found['learners'])} learners ({', '.join(found['learners'])}) from {found['teacher']}, "
        f"batch {found['batch_size']}, on {runtime['device']}, {runtime['precision']}, threads: {runtime['threads']}\n"
        f"{pd.DataFrame(arms).to_string(index=False)}\n"
        f"lockstep is {ratio['median']:.2f} times as fast ({ratio['lowest']:.2f} to {ratio['highest']:.2f}, "
        f"n = {ratio['n']}); it saves {found['saved']:.0%} of the multiply-accumulates"
    )


def cost(checkpoints: dict[str, Any]) -> str:
    """Of a checkpoint, and of a run's checkpoints."""
    seconds, share = checkpoints["seconds"], checkpoints["share"]
    line = (
        f"a checkpoint of {checkpoints['bytes'] / 1e6:.1f} MB takes {1000 * seconds['median']:.0f} ms "
        f"({1000 * seconds['lowest']:.0f} to {1000 * seconds['highest']:.0f}, n = {seconds['n']})"
    )
    if share is None:
        return line
    return f"{line}: {share:.2%} of a run's time at checkpoint.every_minutes={checkpoints['every_minutes']:g}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Medians, with the range of the rounds for the ratio."""
    return pd.DataFrame([printed(row) for row in rows]).to_string(index=False)


def printed(row: dict[str, Any]) -> dict[str, str]:
    speed, ratio, share = row["images_per_second"], row["ratio"], row["share_of_peak"]
    shown = {
        "arm": row["arm"],
        "x reference": f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})" if ratio else "-",
        "images/s": f"{speed['median']:.0f} ({speed['lowest']:.0f} to {speed['highest']:.0f})",
        "ms/step": f"{1000 * statistics.median(row['step_seconds']):.1f}",
        "rounds x steps": f"{speed['n']} x {row['steps_per_round']}",
        "TFLOP/s": f"{row['flops_per_second'] / 1e12:.3g}",
    }
    return shown | ({"of peak": f"{share:.1%}"} if share is not None else {}) | {"what": row["what"]}

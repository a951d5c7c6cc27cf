"""The console command `kdbench-bench`: it measures cases, prints a table for each, and writes one JSON file."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from kdbench.bench.arms import ARMS
from kdbench.bench.cases import SETS
from kdbench.config.engines import refuse_hydra
from kdbench.errors import Parser


def bench(arguments: Sequence[str]) -> None:
    """Measure the cases of a command line, and write the result after each.

    Raises:
        ConfigError: a case cannot be measured here; found before the first is measured.
    """
    given = parse_arguments(arguments)
    from kdbench.bench.execute import execute  # here, because it imports torch, which --help does without

    execute(given)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line.

    Raises:
        ConfigError: it is wrong.
    """
    parser = Parser(
        prog="kdbench-bench",
        description="Training speed of kdbench and of a reference trainer, as ratios measured in one process.",
        epilog="arms: " + "; ".join(f"{arm.name} ({arm.what})" for arm in ARMS),
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE",
        help="keys of a run: pair=, student=, teacher=, method=, recipe.batch_size=, runtime.device=, "
        "runtime.precision=, ...; several values, as in method=ce,logit, make several cases; data is the embedded set "
        "unless given",
    )  # fmt: skip
    parser.add_argument("--set", choices=SETS, help="a named set of cases, instead of KEY=VALUE")
    parser.add_argument("--arms", help="names of arms, separated by commas; all that differ by default")
    parser.add_argument("--rounds", type=whole, default=5, help="number of visits of every arm (5)")
    parser.add_argument("--seconds", type=duration, default=2.0, help="duration of a visit; at least one step (2)")
    parser.add_argument("--workers", type=whole, help="processes of the reference's loader (one per core, at most 4)")
    parser.add_argument("--out", type=Path, help="the JSON file (outputs/bench/TIME.json)")
    parser.add_argument(
        "--lockstep", action="store_true",
        help="treat the combinations as learners of one group: in lockstep, compared to one after the other",
    )  # fmt: skip
    given = parser.parse_intermixed_args(arguments)
    if given.lockstep and given.arms:
        parser.error("--lockstep has arms of its own; leave --arms out")
    if bool(given.set) and bool(given.overrides):
        parser.error("--set names its own cases; give either it or KEY=VALUE")
    refuse_hydra(given.overrides, parser.prog)
    return given


def whole(text: str) -> int:
    """Return a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def duration(text: str) -> float:
    """Return a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number above 0")
    return value

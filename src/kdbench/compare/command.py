"""`kdbench-compare RUN_A RUN_B`: all metrics between two runs."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from kdbench.config.paths import is_folder
from kdbench.config.targets import check_module_names
from kdbench.errors import ConfigError, Parser

FOR_FEATURES = ("trust", "data_root")


def compare(arguments: Sequence[str]) -> None:
    """Compare the runs of a command line, and print the result.

    Raises:
        ConfigError: the command line is wrong, or the runs cannot be compared.
    """
    given = parse_arguments(arguments)
    from kdbench.compare.comparison import compare_runs  # here, because they import scipy, which --help does without
    from kdbench.compare.output import as_json, as_text
    from kdbench.compare.read import check_has_weights, read_run

    a, b = read_run(given.a, "RUN_A"), read_run(given.b, "RUN_B")
    comparison = compare_runs(a, b, read_run(given.teacher, "--teacher") if given.teacher else None)
    if given.features:
        for run in (a, b):
            check_has_weights(run)  # before torch is imported, which takes seconds
        from kdbench.compare.features import compare_features

        stages, notes = compare_features(a, b, given.data_root, tuple(given.trust))
        comparison = dataclasses.replace(comparison, stages=stages, notes=[*comparison.notes, *notes])
    print(as_json(comparison) if given.json else as_text(comparison), end="")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line.

    Raises:
        ConfigError: it is wrong.
    """
    parser = Parser(
        prog="kdbench-compare",
        description="Print all metrics between the predictions of two finished runs on their test images. With a "
        "teacher, A is the distilled student and B its control: gains are those of A over B.",
        epilog="Exit code 0: done; 2: the runs cannot be compared.",
    )
    parser.add_argument("a", type=Path, metavar="RUN_A", help="run directory; with --teacher, the distilled student")
    parser.add_argument("b", type=Path, metavar="RUN_B", help="run directory; with --teacher, the control")
    parser.add_argument(
        "--teacher", type=Path, metavar="RUN",
        help="run directory of a teacher: adds the metrics of A and B to it, and the gains of A over B in agreement "
        "with it where it is right and where it is wrong",
    )  # fmt: skip
    parser.add_argument(
        "--features", action="store_true",
        help="compute the linear CKA of A and B at every stage of the same name, from weights and test images",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the tables")
    parser.add_argument(
        "--trust", action="append", default=[], metavar="MODULE",
        help="with --features: run code of this module where a run's config names it; kdbench's own is trusted",
    )  # fmt: skip
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR",
        help="with --features: folder of the data, in place of that of a run's config and of $KDBENCH_DATA",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    unused = [f"--{name.replace('_', '-')}" for name in FOR_FEATURES if getattr(given, name) and not given.features]
    if unused:
        raise ConfigError(
            f"{unused[0]} has an effect with --features only; add --features, or remove it", code="usage", key=unused[0]
        )
    check_module_names(given.trust)
    if given.data_root and not is_folder(given.data_root):
        raise ConfigError(
            f"--data-root is {given.data_root}, and there is no such folder", code="not_found", key="--data-root"
        )
    return given

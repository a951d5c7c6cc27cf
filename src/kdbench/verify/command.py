"""`kdbench-verify RUN...`: recompute the numbers of runs from their files."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kdbench.config.paths import is_folder
from kdbench.config.targets import check_module_names
from kdbench.errors import ConfigError, Parser
from kdbench.rundir.load import run_folders
from kdbench.verify.checks import FAIL, NOT_CHECKED, PASS


def verify_runs(arguments: Sequence[str]) -> int:
    """Verify the runs of a command line, and print a line for each check.

    Returns:
        The exit code: 0 if every check passed, 1 if one failed, 2 if nothing could be checked.

    Raises:
        ConfigError: there is no run.
    """
    given = parse_arguments(arguments)
    from kdbench.verify.artifacts import Options  # here, because they import torch, which --help does without
    from kdbench.verify.verify import verify

    folders = list(dict.fromkeys(folder.resolve() for path in given.paths for folder in run_folders(path)))
    if not folders:
        raise ConfigError(
            f"no run under {', '.join(map(str, given.paths))}; give run directories, or a folder that holds them "
            "such as outputs/runs",
            code="not_found",
            key="path",
        )
    options = Options(tuple(given.trust), given.quick, given.data_root)
    counts: Counter[str] = Counter()
    for folder in folders:
        print(relative(folder), flush=True)
        for line in verify(folder, options):
            print(line)
            counts[line.verdict] += 1
    runs = f"{len(folders)} run{'s' if len(folders) > 1 else ''}"
    print(f"{runs}: {counts[PASS]} passed, {counts[FAIL]} failed, {counts[NOT_CHECKED]} not checked")
    if counts[FAIL]:
        return 1
    return 0 if counts[PASS] else 2


def relative(path: Path) -> Path:
    """Return a path relative to the working directory if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line.

    Raises:
        ConfigError: it is wrong.
    """
    parser = Parser(
        prog="kdbench-verify",
        description="Recompute what can be recomputed of finished runs, and compare it with what they recorded.",
        epilog="Exit code 0: every check passed; 1: a check failed; 2: nothing could be checked.",
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="RUN", help="a run directory, or a folder that holds some"
    )
    parser.add_argument(
        "--trust", action="append", default=[], metavar="MODULE",
        help="run code of this module where a run's config names it; kdbench's own is trusted",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="compute no logits from weights")
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR", help="folder of the data where the one of a config does not exist"
    )
    given = parser.parse_args(arguments)
    check_module_names(given.trust)
    if given.data_root and not is_folder(given.data_root):
        raise ConfigError(
            f"--data-root is {given.data_root}, and there is no such folder", code="not_found", key="--data-root"
        )
    return given

"""`kdbench-verify RUN...`: which of a run's numbers still follow from its files."""

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kdbench.errors import ConfigError, Parser
from kdbench.report.runs import run_folders, shown
from kdbench.verify.findings import FAILS, HOLDS, NOT_CHECKED
from kdbench.verify.material import Options
from kdbench.verify.run import verify


def verify_runs(arguments: Sequence[str]) -> int:
    """Verify the command line's runs, and say line by line what holds.

    Returns:
        The exit code: 0 if all that was checked holds, 1 if something fails, 2 if nothing could be checked.

    Raises:
        ConfigError: there is no run.
    """
    given = parsed(arguments)
    folders = list(dict.fromkeys(folder.resolve() for path in given.paths for folder in run_folders(path)))
    if not folders:
        raise ConfigError(
            f"no run under {', '.join(map(str, given.paths))}; give run directories, or a folder that holds them "
            "such as outputs/runs"
        )
    options = Options(tuple(given.trust), given.quick, given.data_root)
    counts: Counter[str] = Counter()
    for folder in folders:
        print(shown(folder), flush=True)
        for line in verify(folder, options):
            print(line)
            counts[line.verdict] += 1
    runs = f"{len(folders)} run{'s' if len(folders) > 1 else ''}"
    print(f"{runs}: {counts[HOLDS]} checks hold, {counts[FAILS]} fail, {counts[NOT_CHECKED]} not checked")
    if counts[FAILS]:
        return 1
    return 0 if counts[HOLDS] else 2


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="kdbench-verify",
        description="Recompute what can be recomputed of finished runs, and say line by line what holds.",
        epilog="Exit code 0: all that was checked holds; 1: something fails; 2: there was nothing to check.",
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="RUN", help="a run directory, or a folder that holds some"
    )
    parser.add_argument(
        "--trust", action="append", default=[], metavar="MODULE",
        help="run code of this module where a run's config names it; kdbench's own is trusted",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="do not compute logits from weights")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where the data are if not where a config says")
    given = parser.parse_args(arguments)
    for module in given.trust:
        if not re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", module):
            raise ConfigError(f"--trust is {module!r}; it may be the name of a module, such as torchvision.models")
    if given.data_root and not given.data_root.is_dir():
        raise ConfigError(f"--data-root is {given.data_root}, and there is no such folder")
    return given

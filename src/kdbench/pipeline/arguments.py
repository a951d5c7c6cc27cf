"""Arguments that the commands of this package share, and the runs that they name."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from kdbench.config.derived import COMPRESS, MEASURE, TRAIN
from kdbench.config.engines import refuse_hydra
from kdbench.config.paths import is_folder
from kdbench.config.targets import check_module_names
from kdbench.errors import ConfigError, Parser
from kdbench.rundir.load import run_folders
from kdbench.rundir.related import RelatedRun, locate, read_related
from kdbench.rundir.summary import SUMMARY_FILE, read_unverified

log = logging.getLogger(__name__)

RUN = "RUN"
"""Name of the argument in errors."""


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the flag for code from elsewhere."""
    parser.add_argument(
        "--trust", action="append", default=[], metavar="MODULE",
        help="run code of this module where a run's config names it; kdbench's own is trusted",
    )  # fmt: skip


def add_shared(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the commands that compose options."""
    add_trust(parser)
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="folder of your own options")


def parse_runs_and_overrides(
    parser: Parser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Return the parsed flags, the runs, and the overrides KEY=VALUE of a command line.

    Raises:
        ConfigError: a flag is not known or its value not allowed, or no run is given.
    """
    given, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise ConfigError(
            f"{unknown[0]} is no known flag; see {parser.prog} --help", code="usage", key=unknown[0].partition("=")[0]
        )
    check_shared(given)
    words = [str(word) for word in given.words]
    runs = [word for word in words if is_folder(Path(word).expanduser()) or "=" not in word]
    overrides = [word for word in words if word not in runs]
    refuse_hydra(overrides, parser.prog)
    return given, runs, overrides


def check_shared(given: argparse.Namespace) -> None:
    """Check the flags of `add_shared`.

    Raises:
        ConfigError: a module's name or a folder is wrong.
    """
    check_module_names(given.trust)
    if given.config_dir is not None and not is_folder(given.config_dir):
        raise ConfigError(
            f"--config-dir is {given.config_dir}, and there is no such folder", code="not_found", key="--config-dir"
        )


def read_runs(texts: Sequence[str], trusted: Sequence[str], trained_only: bool = False) -> list[RelatedRun]:
    """Return the finished runs of a command line, each once.

    Args:
        texts: run directories, folders that hold some, or keys of runs in outputs/runs; measurements among several are
            left out.
        trusted: modules whose code the configs may name, beside kdbench's own.
        trained_only: of a folder with several runs, take those that were trained.

    Raises:
        ConfigError: one is not finished or holds no network, or they lie under different output roots.
    """
    if not texts:
        raise ConfigError(
            "no run is given; give one or more run directories, such as a folder in outputs/runs",
            code="missing_value",
            key=RUN,
        )
    folders = list(dict.fromkeys(folder for text in texts for folder in folders_of(text, trained_only)))
    several = len(folders) > 1
    kept = [folder for folder in folders if not (several and kind_of(folder) == MEASURE)]
    if not kept:
        raise ConfigError(
            f"no run with a network under {', '.join(texts[:3])}; give run directories, and no measurements alone",
            code="not_found",
            key=RUN,
        )
    if left := len(folders) - len(kept):
        log.info("left out: measurements, which hold no network: %d", left)
    folders = kept
    for folder in folders:
        if folder.parent.name != "runs":
            raise ConfigError(
                f"{RUN} is {folder}; a run directory lies in a folder named runs, under the output root",
                code="no_run",
                key=RUN,
            )
    roots = {folder.parents[1] for folder in folders}
    if len(roots) > 1:
        raise ConfigError(
            f"the runs lie under different output roots ({', '.join(sorted(map(str, roots)))}); give runs of one",
            code="mismatch",
            key=RUN,
        )
    return [read_related(folder, RUN, list(trusted)) for folder in folders]


def folders_of(text: str, trained_only: bool) -> list[Path]:
    """Return the run directories that an argument names; of a folder with several, finished ones with a network alone.

    Args:
        text: run directory, folder that holds some, or run key.
        trained_only: leave out compressed networks among several.
    """
    given = locate(text, [Path("outputs")], RUN).resolve()
    found = [folder.resolve() for folder in run_folders(given)]
    if found in ([], [given]):
        return [given]
    kinds = (TRAIN,) if trained_only else (TRAIN, COMPRESS)
    kept = [folder for folder in found if kind_of(folder) in kinds]
    if left := len(found) - len(kept):
        log.info("%s: runs taken: %d, left out (of another kind, or unfinished): %d", text, len(kept), left)
    return kept


def kind_of(folder: Path) -> str | None:
    """Return the kind of a complete run, or None of an unfinished one."""
    try:
        return read_unverified(folder)[0].kind if (folder / SUMMARY_FILE).is_file() else None
    except ConfigError:  # damaged: reported when it is read
        return TRAIN


def output_root_of(run: RelatedRun) -> str:
    """Return the output root under which a run lies, relative to the working directory where it lies below it."""
    root = run.directory.path.resolve().parents[1]
    return str(root.relative_to(Path.cwd())) if root.is_relative_to(Path.cwd()) else str(root)

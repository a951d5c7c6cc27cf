"""Loading finished runs: one as an object, many as a table. Imports no torch."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdbench.config.paths import is_file, is_folder
from kdbench.errors import ConfigError
from kdbench.rundir.files import sha256
from kdbench.rundir.summary import KEYS, SUMMARY_FILE, RunSummary, Status, is_section, read_summary
from kdbench.rundir.unfinished import CONFIG_FILE, FAILURE_FILE

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class LoadedRun:
    """A complete run, read from its directory."""

    path: Path
    summary: RunSummary
    metrics: "pd.DataFrame | None"
    """A row per epoch; None for given weights, whose training is unknown."""
    logits: Mapping[str, NDArray[Any]]
    """`val_logits`, `test_logits` [N, C] float32, `val_labels`, `test_labels` [N] int64, as far as they were kept."""


def load_run(path: str | Path) -> LoadedRun:
    """Return a complete run from its directory.

    Args:
        path: run directory.

    Raises:
        ConfigError: it is no complete run, or a file in it is damaged or was changed. Logits in the small form
            (scripts/keep_results.py) have no hash to compare.
    """
    import pandas as pd  # here, because importing it takes longer than most commands
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = path_of(path)
    summary = read_complete(folder)
    metrics, logits = folder / "metrics.csv", folder / "logits.safetensors"
    try:
        table = pd.read_csv(metrics) if metrics.is_file() else None
        arrays = load_file(logits) if logits.is_file() else {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{folder} cannot be read: {error}", code="damaged", key="path") from None
    if any(array.dtype == np.float32 for array in arrays.values()):
        check_unchanged(logits, summary.logits_sha256)
    return LoadedRun(folder, summary, table, arrays)


def path_of(value: Any, argument: str = "path") -> Path:
    """Return an argument of the Python API as a path.

    Raises:
        ConfigError: it is neither a text nor a path.
    """
    try:
        return Path(value)
    except TypeError:
        raise ConfigError(
            f"{argument} is of type {type(value).__name__}; it must be a text or a pathlib.Path",
            code="wrong_type",
            key=argument,
        ) from None


def read_complete(folder: Path) -> RunSummary:
    """Return the summary of a run.

    Raises:
        ConfigError: the run is not complete, or its summary, config or metrics are not those that it wrote.
    """
    if not is_file(folder / SUMMARY_FILE):
        state = "an unfinished run" if is_file(folder / "config.yaml") else "not a run directory"
        raise ConfigError(f"{folder} is {state}: there is no {SUMMARY_FILE}", code="no_run", key="path")
    summary = read_summary(folder)
    if summary.status not in (None, Status.COMPLETE):
        raise ConfigError(f"{folder} is a run of status {summary.status}", code="no_run", key="path")
    check_unchanged(folder / "config.yaml", summary.config_sha256)
    check_unchanged(folder / "metrics.csv", summary.metrics_sha256)
    return summary


def check_unchanged(file: Path, recorded: str | None) -> None:
    """Check that a file, if it was kept, has the hash that its run recorded, if it did.

    Raises:
        ConfigError: it was changed since.
    """
    if recorded and file.is_file() and sha256(file) != recorded:
        raise ConfigError(
            f"{file} was changed since the run was finished; restore it, or delete {file.parent} to repeat the run",
            code="checksum",
            key="path",
        )


def load_runs(root: str | Path) -> "pd.DataFrame":
    """Return the complete runs at or below a folder, a row each: the keys of their summaries, and `path`.

    The keys of `recipe`, `method_params` and `environment` are columns of their own, such as `recipe.lr`.

    Args:
        root: run directory, or a folder that holds some, such as outputs/runs.

    Raises:
        ConfigError: there is no such folder, it is no path, or a summary is damaged.
    """
    import pandas as pd

    folders = [folder for folder in run_folders(path_of(root, "root")) if (folder / "summary.json").is_file()]
    rows = [row_of(read_summary(folder)) | {"path": str(folder)} for folder in folders]
    return pd.DataFrame(rows, columns=None if rows else [*KEYS, "path"])


def row_of(summary: RunSummary) -> dict[str, Any]:
    """Return a summary as the row of a table: sections become columns named SECTION.KEY."""
    row: dict[str, Any] = {}
    for name, value in asdict(summary).items():
        if KEYS[name].metadata["allowed"] is is_section:
            row |= {f"{name}.{inner}": v for inner, v in (value or {}).items()}
        else:
            row[name] = value
    return row


def run_folders(path: Path) -> list[Path]:
    """Return the folders at or below a path that are run directories, finished or not, sorted.

    Raises:
        ConfigError: there is no such folder.
    """
    if not is_folder(path):
        kind = "is a file; give its run directory" if is_file(path) else "was not found"
        raise ConfigError(f"{path} {kind}", code="not_found", key="path")
    found, visited = [], set()
    for folder, below, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # links may form circles
            below.clear()
            continue
        visited.add(real)
        below.sort()
        if {SUMMARY_FILE, FAILURE_FILE}.intersection(files) or {CONFIG_FILE, "train.log"} <= set(files):
            found.append(Path(folder))
            below.clear()
    return found

"""Checks of run directories: what holds at any moment, and what is equal in the end."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors import safe_open

from kdbench.rundir import checksummed
from kdbench.rundir.summary import names

TIMING = {"images_per_second", "seconds"}
"""Columns of metrics.csv that differ from one execution to the next."""
OF_THE_EXECUTION = names(
    train_seconds=None, images_per_second=None, lockstep=None, peak_memory_bytes=None, environment=None,
    metrics_sha256=None, config_sha256=None, checksum=None, started=None,
).keys()  # fmt: skip
"""Keys of a summary that do."""
Result = dict[str, Any]
"""Contents of a run directory that must not depend on what happened on the way, by name."""


def unreadable(folder: Path) -> list[str]:
    """Return the files of run directories that a reader cannot read, with the reasons."""
    found = []
    for file in sorted(folder.glob("out/runs/*/*")):
        if file.name.startswith("."):
            continue  # not in place yet
        try:
            read(file)
        except Exception as error:
            found.append(f"{file.relative_to(folder)}: {type(error).__name__}: {error}")
    return found


def read(file: Path) -> None:
    """Read a file of a run directory. Raises whatever its reader does if it is torn."""
    if file.suffix == ".json":
        json.loads(file.read_text())
    elif file.suffix == ".yaml":
        assert OmegaConf.load(file).recipe.epochs >= 1
    elif file.suffix == ".ckpt":
        checksummed.read(file)
    elif file.suffix == ".safetensors":
        with safe_open(file, "np") as opened:
            assert list(opened.keys())
    elif file.suffix == ".csv":
        rows = rows_of(file)
        assert [row["epoch"] for row in rows] == [str(n + 1) for n in range(len(rows))], "rows are torn or repeated"
        assert all(None not in row and None not in row.values() for row in rows), "a row is cut short"


def rows_of(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    return list(csv.DictReader(io.StringIO(file.read_text())))


def leftovers(folder: Path) -> list[str]:
    """Return what a finished folder must not hold: locks, temporary files, checkpoints."""
    found = [*folder.glob("out/.locks/*"), *folder.glob("out/runs/*/.*"), *folder.glob("out/runs/*/*.ckpt")]
    return [str(file.relative_to(folder)) for file in found]


def results(folder: Path) -> dict[str, Result]:
    """Return the result of each complete run, by the name of its directory."""
    return {path.name: result(path) for path in sorted(folder.glob("out/runs/*")) if (path / "summary.json").is_file()}


def result(path: Path) -> Result:
    """Return the result of a complete run."""
    summary = json.loads((path / "summary.json").read_text())
    return {
        "summary": {name: value for name, value in summary.items() if name not in OF_THE_EXECUTION},
        "metrics": [{k: v for k, v in row.items() if k not in TIMING} for row in rows_of(path / "metrics.csv")],
        "weights": (path / "best.safetensors").read_bytes(),
        "logits": (path / "logits.safetensors").read_bytes(),
    }


def differences(here: Mapping[str, Result], expected: Mapping[str, Result]) -> list[str]:
    """Return the differences between results, run by run and file by file."""
    found = [f"{name} is missing" for name in expected.keys() - here.keys()]
    found += [f"{name} was not expected" for name in here.keys() - expected.keys()]
    for name in expected.keys() & here.keys():
        for part, value in expected[name].items():
            if here[name][part] != value:
                found.append(f"{name}: {part} differ{detail(here[name][part], value)}")
    return found


def detail(here: Any, expected: Any) -> str:
    """Return which keys of two summaries differ, with both values."""
    if isinstance(here, dict):
        return f": { ({k: (here.get(k), v) for k, v in expected.items() if here.get(k) != v}) }"
    return ""

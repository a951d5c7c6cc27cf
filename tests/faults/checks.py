"""What must hold of run directories at any moment, and what must be equal in the end."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors import safe_open

from kdbench import checked

TIMING = {"images_per_second", "seconds"}
OF_THE_MACHINE = {
    "train_seconds", "images_per_second", "lockstep", "peak_memory_bytes", "environment", "metrics_sha256",
    "config_sha256", "seal",
}  # fmt: skip


def unreadable(folder: Path) -> list[str]:
    """Files of the contract that a reader would find torn."""
    found = []
    for file in sorted(folder.glob("out/runs/*/*")):
        if file.name.startswith("."):
            continue  # on its way to its place
        try:
            read(file)
        except Exception as error:
            found.append(f"{file.relative_to(folder)}: {type(error).__name__}: {error}")
    return found


def read(file: Path) -> None:
    if file.suffix == ".json":
        json.loads(file.read_text())
    elif file.suffix == ".yaml":
        assert OmegaConf.load(file).recipe.epochs >= 1
    elif file.suffix == ".ckpt":
        checked.read(file)
    elif file.suffix == ".safetensors":
        with safe_open(file, "np") as opened:
            assert list(opened.keys())
    elif file.suffix == ".csv":
        rows = rows_of(file)
        assert [row["epoch"] for row in rows] == [str(n + 1) for n in range(len(rows))], "rows torn or doubled"
        assert all(None not in row and None not in row.values() for row in rows), "a row is cut short"


def rows_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text())))


def leftovers(folder: Path) -> list[str]:
    """What a finished folder must not hold: locks, temporary files, checkpoints."""
    found = [*folder.glob("out/.locks/*"), *folder.glob("out/runs/*/.*"), *folder.glob("out/runs/*/*.ckpt")]
    return [str(file.relative_to(folder)) for file in found]


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """By run directory, everything in it that must not depend on what happened on the way."""
    return {path.name: result(path) for path in sorted(folder.glob("out/runs/*")) if (path / "summary.json").is_file()}


def result(path: Path) -> dict[str, Any]:
    summary = json.loads((path / "summary.json").read_text())
    return {
        "summary": {name: value for name, value in summary.items() if name not in OF_THE_MACHINE},
        "metrics": [{k: v for k, v in row.items() if k not in TIMING} for row in rows_of(path / "metrics.csv")],
        "weights": (path / "best.safetensors").read_bytes(),
        "logits": (path / "logits.safetensors").read_bytes(),
    }


def differences(here: Mapping[str, Mapping[str, Any]], expected: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """In words, run by run and file by file."""
    found = [f"{name} is missing" for name in expected.keys() - here.keys()]
    found += [f"{name} was not asked for" for name in here.keys() - expected.keys()]
    for name in expected.keys() & here.keys():
        for part, value in expected[name].items():
            if here[name][part] != value:
                found.append(f"{name}: other {part}{detail(here[name][part], value)}")
    return found


def detail(here: Any, expected: Any) -> str:
    if isinstance(here, dict):
        return f": { ({k: (here.get(k), v) for k, v in expected.items() if here.get(k) != v}) }"
    return ""

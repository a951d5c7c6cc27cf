"""results.json: everything that a report says, for programs and for the comparison with a later report."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdbench import __version__
from kdbench.config.paths import is_file, is_folder
from kdbench.errors import ConfigError
from kdbench.report.build import Report
from kdbench.report.changes import describe_changes, name_run, name_selection
from kdbench.report.columns import PER_CLASS
from kdbench.report.failures import FailedRun
from kdbench.report.figures.save import Picture
from kdbench.report.groups import columns_of
from kdbench.report.select import Selection
from kdbench.rundir.files import write_text
from kdbench.rundir.summary import KEY

RESULTS_FILE = "results.json"
RESULTS_SCHEMA = 1
"""Version of the layout of results.json."""


@dataclass(frozen=True)
class Making:
    """Circumstances of the making of a report, which are in none of its tables."""

    title: str
    """Heading of the page."""
    command: str
    """Command that makes the report again."""
    out: Path
    """Folder of the report."""
    pictures: Sequence[Picture] = ()
    left_out: Sequence[str] = ()
    """A line for each figure that has nothing to show."""


def results_of(report: Report, making: Making) -> dict[str, Any]:
    """Return the content of results.json: texts, numbers, lists and objects alone; a missing number is None."""
    content = {
        "schema": RESULTS_SCHEMA,
        "version": __version__,
        "command": making.command,
        "title": making.title,
        "verdict": report.verdict,
        "functional": report.functional.sentences,
        "deployment": report.deployment.sentences,
        "search": report.search.sentences,
        "remarks": [*report.remarks, *making.left_out],
        "damaged": report.damaged,
        "failed": [failed_of(run) for run in report.failed],
        "plan": report.plan,
        "changes": report.changes,
        "options": {
            "margin": report.margin,
            "analysis": report.analysis,
            "select": selection_of(report.selection),
        },
        "std": report.std,
        "run_keys": list(report.runs_table.run_key),
        "tables": {name: table.to_dict("records") for name, table in tables_of(report).items()},
        "figures": [figure_of(picture, making.out) for picture in making.pictures],
        "flipped": [flipped_of(image) for image in report.flipped],
        "environment": environment_of(report.runs),
    }
    plain: dict[str, Any] = plain_value(content)
    return plain


def tables_of(report: Report) -> dict[str, pd.DataFrame]:
    """Return every table of a report by the name of its file."""
    return {
        "runs": report.runs_table,
        "groups": report.groups_table,
        "gains": report.gains_table,
        "interactions": report.interactions_table,
        "capacity": report.capacity_table,
        "fidelity": report.fidelity.groups,
        PER_CLASS: report.fidelity.per_class,
        "flips": report.fidelity.flips,
        "choices": report.choices,
        "components": report.components,
        "search": report.search.table,
        "class_gains": report.class_gains,
        "transfer": report.functional.transfer,
        "asymmetry": report.functional.asymmetry,
        "mistakes": report.functional.mistakes,
        "deployment": report.deployment.table,
        "deployment_classes": report.deployment.classes,
    }


def selection_of(selection: Selection | None) -> dict[str, Any] | None:
    """Return what a selection chose, without the scores that chose it."""
    if selection is None:
        return None
    shown = ("student", "teacher", "method", "overrides")
    winners = [{name: getattr(winner, name) for name in shown} for winner in selection.winners]
    seeds = {"selection_seeds": selection.selection_seeds, "final_seeds": selection.final_seeds}
    return {"study": selection.study, "chosen_by": selection.chosen_by, **seeds, "winners": winners}


def figure_of(picture: Picture, out: Path) -> dict[str, Any]:
    """Return a figure without its drawing; its files are relative to the folder of the report."""
    files = [str(picture.png.with_suffix(suffix).relative_to(out)) for suffix in (".png", ".svg", ".pdf")]
    return {"name": picture.name, "title": picture.title, "caption": picture.caption, "files": files}


def failed_of(run: FailedRun) -> dict[str, Any]:
    """Return a failed run without the content of its file."""
    shown = ("student", "teacher", "method", "seed", "code", "reason", "path")
    return {name: getattr(run, name) for name in shown}


def flipped_of(image: Any) -> dict[str, Any]:
    """Return an image that flips without its pixels."""
    return {name: value for name, value in dataclasses.asdict(image).items() if name != "png"}


def environment_of(runs: pd.DataFrame) -> dict[str, list[str]]:
    """Return with which software, devices, precisions and data the runs were made: each key with its values."""
    columns = columns_of(runs.columns, (KEY.environment, KEY.precision, KEY.dataset))
    values = {c.rpartition(".")[2]: list(dict.fromkeys(str(v) for v in runs[c] if v is not None)) for c in columns}
    return {key: listed for key, listed in sorted(values.items()) if listed}


def plain_value(value: Any) -> Any:
    """Return a value as JSON has it: numbers of NumPy as Python's, what is missing or infinite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain_value(inner) for key, inner in value.items()}
    if isinstance(value, np.generic):
        return plain_value(value.item())
    if isinstance(value, list | tuple | set | np.ndarray):
        return [plain_value(inner) for inner in value]
    if value is pd.NA or value is pd.NaT or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def write_results(report: Report, making: Making) -> None:
    """Write results.json into the folder of the report, in one piece: `--against` may have read the one before."""
    content = json.dumps(results_of(report, making), indent=1, allow_nan=False, ensure_ascii=True)
    write_text(making.out / RESULTS_FILE, content + "\n")


def read_results(path: Path) -> dict[str, Any]:
    """Return the results of an earlier report.

    Args:
        path: folder of the report, or its results.json.

    Raises:
        ConfigError: there is none, or it cannot be read by this version.
    """
    file = path / RESULTS_FILE if is_folder(path) else path
    if not is_file(file):
        raise ConfigError(
            f"--against is {path}, and {file} was not found; give the folder of a report, which holds {RESULTS_FILE}",
            code="not_found",
            key="--against",
        )
    try:
        content = json.loads(file.read_text())
        if content["schema"] == RESULTS_SCHEMA:
            check_results(content)
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        described = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"--against: {file} is damaged or no results of a report ({described}); make that report again",
            code="damaged",
            key="--against",
        ) from None
    if content["schema"] != RESULTS_SCHEMA:
        raise ConfigError(
            f"--against: {file} has schema {content['schema']!r}, this version reads {RESULTS_SCHEMA}; make that "
            "report again with this version",
            code="mismatch",
            key="--against",
        )
    results: dict[str, Any] = content
    return results


def check_results(content: Mapping[str, Any]) -> None:
    """Check that results hold what the comparison of two reports reads, by comparing them with themselves.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: they do not.
    """
    options, tables = content["options"], content["tables"]
    for name in ("gains", "interactions", "runs"):
        if not all(isinstance(record, dict) for record in tables[name]):
            raise ValueError(f"tables.{name} holds something else than rows")
    for run in tables["runs"]:
        name_run(run), run[KEY.test_acc_best]
    name_selection(options["select"])
    describe_changes(content, content)

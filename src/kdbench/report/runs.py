"""Reading finished runs into one table, a row per run."""

from collections import namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError, safe_open

from kdbench.config.derived import TRAIN
from kdbench.errors import ConfigError, KdbenchError
from kdbench.report.failures import FailedRun, read_failed, remark_failed, remark_unfinished
from kdbench.rundir.files import sha256
from kdbench.rundir.load import row_of, run_folders
from kdbench.rundir.summary import GIVEN, KEY, SUMMARY_FILE, RunSummary, Status, changed_file, read_summary
from kdbench.rundir.unfinished import FAILURE_FILE, RecordedArm, read_arm

METRICS, LOGITS = "metrics.csv", "logits.safetensors"


@dataclass(frozen=True)
class FoundRuns:
    """Complete runs, and what was left out."""

    runs: pd.DataFrame
    """A row per run: the keys of its summary (sections as SECTION.KEY), `device`, `seeds` and `path`."""
    damaged: list[str]
    """A line for each run with a damaged file."""
    remarks: list[str]
    """A line for each run or number of runs left out for another reason."""
    failed: list[FailedRun]
    """Runs that ended in an error."""


def read_runs(paths: Sequence[Path]) -> FoundRuns:
    """Read every complete run at or below some folders, in the order of their paths, each key once.

    Raises:
        ConfigError: a path does not exist, or there is no complete run.
    """
    damaged, remarks, failed, unfinished = [], list[str](), list[FailedRun](), list[str]()
    rows: dict[str, dict[str, Any]] = {}
    for folder in dict.fromkeys(folder.resolve() for path in paths for folder in run_folders(path)):
        if not (folder / SUMMARY_FILE).is_file():
            if ended := read_failed(folder, display_path(folder)):
                failed.append(ended)
            elif (folder / FAILURE_FILE).is_file():
                remarks.append(
                    f"FAILED, and {FAILURE_FILE} cannot be read: {arm_name(folder)}; the verdict with failed runs is "
                    "without it"
                )
            else:
                unfinished.append(arm_name(folder))
            continue
        try:
            summary = read_checked(folder)
        except KdbenchError as error:
            damaged.append(f"left out: {error}")
            continue
        if summary.status not in (None, Status.COMPLETE):
            unfinished.append(RecordedArm(summary.student, summary.teacher, summary.method, summary.seed).name)
            continue
        row = row_of(summary) | {"device": summary.device, "seeds": summary.seeds, "path": folder}
        if summary.run_key in rows:
            remarks.append(duplicate(rows[summary.run_key], row))
        else:
            rows[summary.run_key] = row
    failed = [run for run in failed if not (run.failure and run.failure.run[KEY.run_key] in rows)]
    remarks += remark_unfinished(unfinished)
    if not rows:
        others = first_lines([*damaged, *remark_failed(failed), *remarks])
        remedy = "complete or repeat these runs, or give" if others else "give run directories, or"
        raise ConfigError(
            f"no complete run under {', '.join(map(str, paths))}; "
            f"{'; '.join([*others, f'{remedy} a folder that holds complete ones such as outputs/runs'])}",
            code="no_run",
            key="PATH",
        )
    # Objects, so that whole numbers stay whole and a missing value is None in every column.
    runs = pd.DataFrame(list(rows.values()), dtype=object)
    runs = runs.where(runs.notna(), None)
    own = trained(runs)
    remarks += [*changed_teachers(own), *given_teachers(own), *without_role(own), *unreadable_histories(own)]
    return FoundRuns(runs, damaged, remarks, failed)


def trained(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that trained a network, without those that compressed or measured one."""
    return runs[runs[KEY.kind] == TRAIN]


def only_trained(found: FoundRuns) -> FoundRuns:
    """Return what was found with the runs that trained a network alone, complete and failed ones."""
    return replace(found, runs=trained(found.runs), failed=[run for run in found.failed if run.is_trained])


def read_history(folder: Path) -> "pd.Series[float] | None":
    """Return validation accuracy by epoch, or None where there is no readable metrics.csv."""
    try:
        stat = (folder / METRICS).stat()
    except OSError:
        return None
    return read_metrics(folder / METRICS, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=2048)
def read_metrics(file: Path, mtime_ns: int, size: int) -> "pd.Series[float] | None":
    """Return validation accuracy by epoch, or None if the file cannot be read; a file written anew is read anew."""
    try:
        return pd.read_csv(file).set_index("epoch")["val_acc"].astype(float)
    except (OSError, ValueError, KeyError):
        return None


def unreadable_histories(runs: pd.DataFrame) -> list[str]:
    """Return a remark on runs whose metrics.csv is there and cannot be read."""
    found = [
        display_path(folder) for folder in runs.path if (folder / METRICS).is_file() and read_history(folder) is None
    ]
    if not found:
        return []
    many = "s" if len(found) > 1 else ""
    return [f"{METRICS} of {len(found)} run{many} cannot be read, and learning curves are without: "
            f"{'; '.join(first_lines(found))}"]  # fmt: skip


def arm_name(folder: Path) -> str:
    """Return the title of an unfinished run, or its path where its config cannot be read."""
    arm = read_arm(folder)
    return arm.name if arm else display_path(folder)


def first_lines(lines: Sequence[str], most: int = 3) -> list[str]:
    """Return at most so many lines, and how many there are more."""
    return [*lines[:most], *([f"and {len(lines) - most} more"] if len(lines) > most else [])]


def read_checked(folder: Path) -> RunSummary:
    """Return the summary of a run whose other files are those that it describes.

    Raises:
        ConfigError: the summary is damaged, or another file has changed since the run.
    """
    summary = read_summary(folder)
    if summary.seed is None and not summary.is_given:
        raise ConfigError(f"{display_path(folder / SUMMARY_FILE)} lacks seed", code="damaged", key="seed")
    changed, logits = changed_file(folder, summary), folder / LOGITS
    if not changed and summary.logits_sha256 and logits.is_file() and not is_half_precision(logits):
        changed = LOGITS if sha256(logits) != summary.logits_sha256 else None
    if changed:
        raise ConfigError(
            f"{display_path(folder / changed)} has changed since the run: its hash is not the one in summary.json",
            code="checksum",
            key=changed,
        )
    return summary


def is_half_precision(logits: Path) -> bool:
    """Return whether logits were kept in their small form (scripts/keep_results.py), whose hash is another one."""
    try:
        with safe_open(logits, "np") as file:
            return str(file.get_slice("test_logits").get_dtype()) == "F16"
    except (OSError, SafetensorError):
        return False


def duplicate(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Return a remark on two run directories with one run key."""
    a, b = pd.Series(first), pd.Series(second)
    same = (a.test_acc_best, a.test_acc_final, a.best_val_acc) == (b.test_acc_best, b.test_acc_final, b.best_val_acc)
    what = "the same run as" if same else "a run with the same key but other numbers than"
    return f"{display_path(b.path)} is {what} {display_path(a.path)}; only the latter counts"


def changed_teachers(runs: pd.DataFrame) -> list[str]:
    """Return a remark for each run whose teacher was trained again since, or replaced."""
    rows = rows_of(runs)
    teachers, remarks = {run.run_key: run for run in rows}, []
    for run in rows:
        teacher, used = teachers.get(run.teacher_key), run.teacher_weights_sha256
        if teacher and used and teacher.weights_sha256 not in (None, used):
            remarks.append(
                f"{display_path(run.path)} was trained with other teacher weights than {display_path(teacher.path)} "
                "has now"
            )
    return remarks


def given_teachers(runs: pd.DataFrame) -> list[str]:
    """Return one remark if teachers have weights that were not trained here, so that their images are unknown."""
    given = {run.run_key: run.student for run in rows_of(runs) if run.method == GIVEN}
    given |= {run.teacher_key: run.teacher for run in rows_of(runs) if run.teacher_key and run.teacher_seed is None}
    if not given:
        return []
    names = ", ".join(sorted(set(given.values())))
    many = f"the weights of {len(given)} teachers ({names}) were" if len(given) > 1 else f"the weights of {names} were"
    return [
        f"{many} given as a file (teacher.checkpoint): the images of that training are unknown, and may include the "
        "validation and test images"
    ]


def without_role(runs: pd.DataFrame) -> list[str]:
    """Return a remark if summaries of trained runs have no role, so that nothing can be compared with them."""
    unknown = int((runs.role.isna() & runs.seed.notna()).sum())
    if not unknown:
        return []
    return [
        f"{unknown} run{'s have' if unknown > 1 else ' has'} no role (baseline, distilled or control) in summary.json: "
        "neither a baseline nor compared with one"
    ]


def rows_of(table: pd.DataFrame) -> list[Any]:
    """Return the rows of a table as named tuples. Their attributes are its columns but for those of sections."""
    row_type = named_row(tuple(table.columns))
    return [row_type(*values) for values in table.to_numpy(dtype=object)]


@lru_cache(maxsize=64)
def named_row(columns: tuple[str, ...]) -> type[Any]:
    # DataFrame.itertuples makes this class anew at each call, which takes longer than all rows of a group.
    return namedtuple("Row", columns, rename=True)


def display_path(path: Path) -> str:
    """Return a path as text: relative to the working directory where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

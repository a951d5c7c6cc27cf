"""The deployment part of a report: its tables, sentences and remarks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from kdbench.config.derived import COMPRESS, MEASURE
from kdbench.report.deployment.forms import Form, find_forms
from kdbench.report.deployment.lineage import Row, is_other_parent, lineage_of, start_of
from kdbench.report.deployment.measurement import Session
from kdbench.report.deployment.sentences import describe_deployment
from kdbench.report.deployment.table import classes_table, deployment_table
from kdbench.report.deployment_columns import DEPLOYMENT_CLASSES, DEPLOYMENT_TABLE
from kdbench.report.groups import DISTILLED, RunGroup
from kdbench.report.runs import display_path, first_lines
from kdbench.rundir.summary import KEY


def empty(columns: Sequence[str]) -> Any:
    return field(default_factory=lambda: pd.DataFrame(columns=list(columns)))


@dataclass(frozen=True, eq=False)
class Deployment:
    """Deployment part of a report; empty where nothing was compressed or measured."""

    forms: Sequence[Form] = ()
    """Forms of networks; each has a row of `table`, in turn."""
    compared: Sequence[Form] = ()
    """Those of the session with the most runs: only their costs can be compared."""
    table: pd.DataFrame = empty(DEPLOYMENT_TABLE)
    classes: pd.DataFrame = empty(DEPLOYMENT_CLASSES)
    sentences: Sequence[str] = ()
    remarks: Sequence[str] = ()


def compute_deployment(runs: pd.DataFrame, groups: Sequence[RunGroup]) -> Deployment:
    """Return the deployment part of a report.

    Args:
        runs: runs of every kind.
        groups: groups of the trained runs that the report is about.
    """
    columns = list(runs.columns)
    rows = [dict(zip(columns, values, strict=True)) for values in runs.to_numpy(dtype=object)]
    by_key: dict[str, Row] = {row[KEY.run_key]: row for row in rows}
    settings = {run.run_key: group.setting for group in groups for run in group.rows}
    deployed, left_out = split_reported(by_key, settings)
    if not deployed:
        return Deployment(remarks=left_out)
    forms = find_forms(without_measured(deployed), by_key, settings)
    numbers = number_sessions(forms)
    first = next(iter(numbers), None)
    compared = [form for form in forms if form.session and form.session == first]
    return Deployment(
        forms=forms,
        compared=compared,
        table=deployment_table(forms, numbers),
        classes=classes_table(forms, numbers),
        sentences=describe_deployment(compared, numbers),
        remarks=[
            *left_out,
            *remark_sessions(forms, numbers),
            *remark_unmeasured(forms),
            *remark_other_parents(deployed, by_key),
        ],
    )


def split_reported(by_key: Mapping[str, Row], settings: Mapping[str, str]) -> tuple[list[Row], list[str]]:
    """Return the runs that compressed or measured, and a remark on those whose trained run is not reported."""
    found, left_out = [], 0
    for row in by_key.values():
        if row[KEY.kind] not in (COMPRESS, MEASURE):
            continue
        start = start_of(lineage_of(row, by_key))
        if start is None or start[KEY.run_key] in settings:
            found.append(row)
        else:
            left_out += 1
    many = "s" if left_out > 1 else ""
    return found, [f"{left_out} run{many} of networks that were not selected: left out of deployment"] * bool(left_out)


def without_measured(deployed: Sequence[Row]) -> list[Row]:
    """Return runs without those whose network another run measured: its row has their numbers too."""
    measured = {row.get(KEY.parent_key) for row in deployed if row[KEY.kind] == MEASURE}
    return [row for row in deployed if row[KEY.kind] == MEASURE or row[KEY.run_key] not in measured]


def number_sessions(forms: Sequence[Form]) -> dict[Session, int]:
    """Return the sessions with their numbers from 1: those with a distilled network first, then by number of runs."""
    counts: dict[Session, int] = {}
    distilled = {form.session for form in forms if form.identity.role == DISTILLED}
    for form in forms:
        if form.session:
            counts[form.session] = counts.get(form.session, 0) + len(form.runs)
    ordered = sorted(
        counts, key=lambda session: (session not in distilled, -counts[session], session.place, session.together)
    )
    return {session: number for number, session in enumerate(ordered, 1)}


def remark_sessions(forms: Sequence[Form], numbers: Mapping[Session, int]) -> list[str]:
    """Remark on several sessions, whose latencies are not compared with each other."""
    if len(numbers) < 2:
        return []
    described = []
    for session, number in numbers.items():
        runs = sum(len(form.runs) for form in forms if form.session == session)
        described.append(f"session {number}: {runs} run{'' if runs == 1 else 's'} on {session.place}")
    return [
        "networks were measured in several sessions, and latencies of different ones are not compared; figure and "
        f"sentences of deployment are about session 1 alone ({'; '.join(first_lines(described, 6))}); measure networks "
        "in one command to compare them"
    ]


def remark_unmeasured(forms: Sequence[Form]) -> list[str]:
    """Remark on forms that were compressed and not measured."""
    names = [form.name for form in forms if form.session is None]
    return [f"compressed and not measured: {'; '.join(first_lines(names))}"] if names else []


def remark_other_parents(deployed: Sequence[Row], by_key: Mapping[str, Row]) -> list[str]:
    """Remark on runs whose parent has other weights now than those that were compressed or measured."""
    found = [
        display_path(row["path"])
        for row in deployed
        if (parent := by_key.get(row.get(KEY.parent_key) or "")) and is_other_parent(row, parent)
    ]
    if not found:
        return []
    return [f"compressed or measured with other weights than their parent has now: {'; '.join(first_lines(found))}"]

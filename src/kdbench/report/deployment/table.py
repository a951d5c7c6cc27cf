"""Tables of deployment: a row for each form of a network, and for each of its classes."""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from kdbench.report import statistics as st
from kdbench.report.class_gains import class_names, paired
from kdbench.report.columns import row
from kdbench.report.deployment.forms import DeployedRun, Form, mean_of
from kdbench.report.deployment.lineage import Row
from kdbench.report.deployment.measurement import (
    ENGINES,
    Session,
    largest_batch,
    latency_of,
    measured,
    missing_of,
    number_of,
)
from kdbench.report.deployment_columns import DEPLOYMENT_CLASSES, DEPLOYMENT_TABLE
from kdbench.report.groups import percent
from kdbench.rundir.summary import KEY


def deployment_table(forms: Sequence[Form], numbers: Mapping[Session, int]) -> pd.DataFrame:
    """Return the content of deployment.csv.

    Args:
        forms: forms of networks.
        numbers: number of each session.
    """
    return pd.DataFrame([form_row(form, numbers) for form in forms], columns=DEPLOYMENT_TABLE)


def form_row(form: Form, numbers: Mapping[Session, int]) -> dict[str, Any]:
    """Return a row of deployment.csv."""
    own, session = form.identity, form.session
    rounds = {measured(run, "rounds") for run in form.rows} - {None}
    formats = sorted({str(found) for run in form.rows if (found := measured(run, "size_format"))})
    return row(
        form=form.name, session=numbers[session] if session else None, n=len(form.runs),
        form_mean=float(np.mean(form.accuracies)), form_std=st.std(form.accuracies),
        **change(form, "parent", parent_changes(form)), **change(form, "start", start_changes(form)),
        agreement=percent(form.mean(KEY.agreement)), parent_agreement=percent(form.mean(KEY.parent_agreement)),
        parent_kl_t1=form.mean(KEY.parent_kl_t1), ece=percent(form.mean(KEY.test_ece)), nll=form.mean(KEY.test_nll),
        params=whole(form.mean(KEY.num_params)), nonzero_params=form.mean(KEY.nonzero_params),
        sparsity=percent(form.mean(KEY.sparsity)), macs=whole(form.mean(KEY.macs)),
        **{key: form.mean(key, of_measurement=True) for key in (
            "size_bytes", "size_compressed_bytes", "peak_memory_bytes", "energy_mj_per_image"
        )},
        size_format=" and ".join(formats) or None, **latencies(form), measured_on=session.place if session else None,
        rounds=rounds.pop() if len(rounds) == 1 else None, missing=missing_of(form.rows), student=own.student,
        teacher=own.teacher, method=own.method, role=own.role, setting=own.setting, compression=", ".join(own.steps),
        remarks="; ".join(remarks_on(form)),
    )  # fmt: skip


def whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def remarks_on(form: Form) -> list[str]:
    """Return what is unusual about the runs of a form."""
    remarks = [] if form.session else ["compressed, not measured"]
    if not form.are_replicates:
        remarks.append(
            "runs share seeds, so they are no independent samples, and there is no interval; if the runs that they "
            "compressed or measured are given too, these may tell them apart"
        )
    return remarks


def parent_changes(form: Form) -> list[float]:
    """Return accuracy minus that before the last compression for each run where this is known, points."""
    before = [number_of(run.row.get(KEY.parent_test_acc)) for run in form.runs]
    return [run.accuracy - 100 * base for run, base in zip(form.runs, before, strict=True) if base is not None]


def start_changes(form: Form) -> list[float]:
    """Return accuracy minus that of the trained run before any compression, where this is known, points."""
    if not form.is_compressed:
        return []
    return [run.accuracy - 100 * float(run.start[KEY.test_acc_best]) for run in form.runs if run.start]


def change(form: Form, name: str, differences: Sequence[float]) -> dict[str, Any]:
    """Return the columns of a change: number of runs, mean, and the ends of the 95 % interval of paired differences."""
    if not differences:
        return {}
    found = st.contrast([differences], [1.0])
    ends = (found.low, found.high) if form.are_replicates else (st.NAN, st.NAN)
    return {
        f"n_{name}": len(differences), f"{name}_change": found.difference, f"{name}_low": ends[0],
        f"{name}_high": ends[1],
    }  # fmt: skip


def latencies(form: Form) -> dict[str, Any]:
    """Return the columns of latency and throughput."""
    batch = largest_batch(form.rows)
    found: dict[str, Any] = {"batch": batch}
    quartiles = {"ms": "median_ms", "low": "low_ms", "high": "high_ms"}
    for engine in ENGINES:
        for end, key in quartiles.items():
            single = f"{engine}_ms" if end == "ms" else f"{engine}_ms_{end}"
            found[single] = mean_of(latency_of(run, engine, 1, key) for run in form.rows)
            if batch:
                found[f"{engine}_batch_{end}"] = mean_of(latency_of(run, engine, batch, key) for run in form.rows)
        if batch:
            speeds = (latency_of(run, engine, batch, "images_per_second") for run in form.rows)
            found[f"{engine}_throughput"] = mean_of(speeds)
    return found


def classes_table(forms: Sequence[Form], numbers: Mapping[Session, int]) -> pd.DataFrame:
    """Return the content of deployment_classes.csv; see `deployment_table`."""
    rows = [cells for form in forms for cells in class_rows(form, numbers)]
    return pd.DataFrame(rows, columns=DEPLOYMENT_CLASSES)


def class_rows(form: Form, numbers: Mapping[Session, int]) -> list[dict[str, Any]]:
    """Return a row for each class of a form; none if its runs do not record them, or in different numbers."""
    known = [run for run in form.runs if run.row.get(KEY.per_class_acc)]
    counts = {len(run.row[KEY.per_class_acc]) for run in known}
    if len(counts) != 1:
        return []
    count = counts.pop()
    accuracies = np.array([class_percents(run.row) for run in known])
    parent, start = class_changes(known, lambda run: run.before), class_changes(known, lambda run: run.start)
    if not form.is_compressed:
        parent = start = np.full((3, count), np.nan)
    if not form.are_replicates:
        parent[1:], start[1:] = np.nan, np.nan
    names = class_names(SimpleNamespace(class_names=known[0].row.get(KEY.class_names)), count)
    return [
        row(
            form=form.name, session=numbers[form.session] if form.session else None, class_name=names[index],
            class_index=index, n=len(known), deployed_class_acc=float(accuracies[:, index].mean()),
            parent_class_change=float(parent[0, index]), parent_class_low=float(parent[1, index]),
            parent_class_high=float(parent[2, index]), start_class_change=float(start[0, index]),
            start_class_low=float(start[1, index]), start_class_high=float(start[2, index]),
        )
        for index in range(count)
    ]  # fmt: skip


def class_percents(run: Row) -> list[float]:
    """Return the accuracies of the classes in per cent; NaN for a class without test images."""
    return [np.nan if accuracy is None else 100 * float(accuracy) for accuracy in run[KEY.per_class_acc]]


def class_changes(runs: Sequence[DeployedRun], base_of: Callable[[DeployedRun], Row | None]) -> Any:
    """Return mean change of each class against other runs of the same networks, and the ends of its 95 % interval.

    Args:
        runs: runs with as many classes each.
        base_of: function that returns the other run; None where it is not known.

    Returns:
        [3, classes] in points; NaN where nothing is known, the ends also for fewer than two runs.
    """
    count, differences = len(runs[0].row[KEY.per_class_acc]), []
    for run in runs:
        base = base_of(run)
        if base and len(base.get(KEY.per_class_acc) or ()) == count:
            differences.append(np.subtract(class_percents(run.row), class_percents(base)))
    if not differences:
        return np.full((3, count), np.nan)
    return np.array(paired(np.array(differences)))

"""Run directories become a report's tables, verdict and remarks: everything but the files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdbench.errors import ConfigError
from kdbench.report import statistics as st
from kdbench.report.fidelity import Fidelity, fidelity
from kdbench.report.gains import Gain, gains_of, gains_table, grouped_by, interactions_table
from kdbench.report.groups import Group, check_alike, differing, grouped
from kdbench.report.runs import Run, find, shown
from kdbench.report.select import Selection
from kdbench.report.verdict import on_selection, verdict


@dataclass
class Report:
    """All that a report says, before it is written."""

    runs: list[Run]
    groups: list[Group]
    gains: list[Gain]
    runs_table: pd.DataFrame
    groups_table: pd.DataFrame
    gains_table: pd.DataFrame
    interactions_table: pd.DataFrame
    fidelity: Fidelity
    std: float
    """Standard deviation within groups, pooled over them, points."""
    margin: float
    verdict: list[str]
    remarks: list[str]
    damaged: list[str]


def build(
    paths: Sequence[Path], selection: Selection | None = None, margin: float = 0.1, allow_mixed: bool = False
) -> Report:
    """Read runs and compute everything that is said of them.

    Args:
        paths: Run directories, or folders that hold them.
        selection: Keeps the winners of a selection, and leaves out the runs that chose.
        margin: Of equivalence, points, above 0.
        allow_mixed: Runs of different data sets or splits may stand in one report, compared only with their like.

    Raises:
        ConfigError: there are no runs, or they do not belong together.
    """
    found = find(paths)
    runs = selection.reporting(found.runs) if selection else found.runs
    if not allow_mixed:
        check_alike(runs)
    groups = grouped(runs)
    groups = selection.kept(groups) if selection else groups
    remarks = [*found.remarks, *mixed(runs), *same_seed_twice(groups)]
    if not groups:
        raise ConfigError("--select leaves no run to report: all of these chose, or lost")
    if selection and not any(group.is_distilled and selection.competed(group) for group in groups):
        raise ConfigError(f"--select is of the study {selection.study}, and none of its winners is among these runs")
    gains = gains_of(groups, selection)
    std = st.pooled_std([group.accuracies for group in groups])
    table = gains_table(gains, std, margin)
    interactions, unmatched = interactions_table(gains, std)
    kept = [run for group in groups for run in group.runs]
    faithful = fidelity(kept, groups, gains)
    remarks += without_base(gains)
    remarks += untested(table) + unmatched + faithful.remarks
    tuned = sorted(
        {group["student"] for group in groups if selection and selection.selects_undistilled(group["student"])}
    )
    if tuned:
        remarks.append(
            f"undistilled {', '.join(tuned)} had a recipe selected too: gains are over students trained by it"
        )
    return Report(
        runs=kept,
        groups=groups,
        gains=gains,
        runs_table=pd.DataFrame([run_row(run, group) for group in groups for run in group.runs]),
        groups_table=pd.DataFrame([group_row(group) for group in groups]),
        gains_table=table,
        interactions_table=interactions,
        fidelity=faithful,
        std=std,
        margin=margin,
        verdict=[*verdict(table, interactions, std, margin), *on_selection(selection, groups)],
        remarks=remarks,
        damaged=found.damaged,
    )


def mixed(runs: Sequence[Run]) -> list[str]:
    """That runs of several data sets or splits stand together, as --allow-mixed allows."""
    keys = differing(runs)
    if not keys:
        return []
    said = "; ".join(f"{key}: {values}" for key, values in keys.items())
    return [
        f"MIXED ({said}): each group is compared with its like only, but one standard deviation is pooled over "
        "all of them, and so every number of seeds and every detectable difference here is of little use"
    ]


def same_seed_twice(groups: Sequence[Group]) -> list[str]:
    """Runs of one group that share their seeds, and so are no two samples."""
    return [
        f"{group.name}: several runs have the same seeds; they count as separate runs, which makes the "
        f"deviation too small"
        for group in groups
        if len(set(group.seeds)) < len(group.seeds)
    ]


def without_base(gains: Sequence[Gain]) -> list[str]:
    """Groups whose gain cannot be computed, a line for each reason."""
    lacking = grouped_by([gain for gain in gains if gain.base is None], lambda gain: gain.remark)
    return [f"{remark}: {'; '.join(gain.group.name for gain in of)}" for remark, of in lacking]


def untested(gains: pd.DataFrame) -> list[str]:
    """How many gains are without a test, and why."""
    known = gains[gains["delta"].notna() & gains["p_welch"].isna()]
    counts = known["remarks"].value_counts(sort=False)
    return [f"{n} gain{'s' if n > 1 else ''}: {why}" for why, n in counts.items() if why]


def group_row(group: Group) -> dict[str, Any]:
    best, last = group.accuracies, group.percents("test_acc_final")
    return {
        "student": group["student"],
        "teacher": group["teacher"],
        "method": group["method"],
        "setting": group.setting,
        "teacher_seed": group["teacher_seed"],
        "params": group["num_params"],
        "macs": group["macs"],
        "n": len(best),
        "mean": float(np.mean(best)),
        "std": st.std(best),
        "mean_last": float(np.mean(last)) if last else None,
        "std_last": st.std(last),
    }


def run_row(run: Run, group: Group) -> dict[str, Any]:
    per_cent = ("best_val_acc", "test_acc_best", "test_acc_final")
    same = ("seed", "init_seed", "data_seed", "teacher_seed", "epochs", "best_val_epoch")
    return {
        "run_key": run["run_key"],
        "student": run["student"],
        "teacher": run["teacher"],
        "method": run["method"],
        "setting": group.setting,
        **{key: run[key] for key in same},
        **{key: run.percent(key) for key in per_cent},
        "nll": run["test_nll"],
        "ece": run.percent("test_ece"),
        "agreement": run.percent("agreement"),
        "kl_t1": run["kl_t1"],
        "kl_t4": run["kl_t4"],
        "params": run["num_params"],
        "macs": run["macs"],
        "precision": run["precision"],
        "train_seconds": run["train_seconds"],
        "images_per_second": run["images_per_second"],
        "device": (run["environment"] or {}).get("device"),
        "path": shown(run.path),
    }

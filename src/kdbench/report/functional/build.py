"""The functional part of a report: its tables, sentences and remarks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdbench.report.functional.asymmetry import asymmetry_table, count_pair
from kdbench.report.functional.conditions import Condition, find_conditions
from kdbench.report.functional.matrix import AgreementMatrix, compute_matrix
from kdbench.report.functional.mistakes import count_mistakes, mistakes_table
from kdbench.report.functional.pairs import Pair, measure_pairs
from kdbench.report.functional.sentences import describe_transfer
from kdbench.report.functional.transfer import ControlComparison, compare, transfer_table, with_pooled
from kdbench.report.groups import DISTILLED, RunGroup
from kdbench.report.predictions import known_pair, predictions_in
from kdbench.report.runs import first_lines


@dataclass(frozen=True, eq=False)
class Functional:
    """Functional part of a report; empty where there are no logits."""

    transfers: Sequence[ControlComparison]
    """Comparisons by distances to the teacher; each has as many rows of `transfer` as there are distances, in turn."""
    counts: Sequence[ControlComparison]
    """Comparisons by counts of agreement by correctness; each has a row of `asymmetry`, in turn."""
    transfer: pd.DataFrame
    asymmetry: pd.DataFrame
    mistakes: pd.DataFrame
    matrix: AgreementMatrix | None
    sentences: list[str]
    remarks: list[str]


def compute_functional(runs: pd.DataFrame, groups: Sequence[RunGroup]) -> Functional:
    """Return the functional part of a report.

    Args:
        runs: runs of the report; teachers are searched among them, then beside the student's run directory.
        groups: groups of the report.
    """
    conditions = [
        condition
        for condition in find_conditions(runs, groups)
        if any(known_pair(run.path, condition.teacher) for run in condition.group.rows)
    ]
    left_out = remark_left_out(groups, conditions)
    pairs = [(run.path, condition.teacher) for condition in conditions for run in condition.runs]
    transfers = compare_all(conditions, measure_pairs(pairs))
    counts = compare_all(conditions, {(run, teacher): count_pair(run, teacher) for run, teacher in pairs})
    mistakes = compare_all(conditions, {(run, teacher): count_mistakes(run, teacher) for run, teacher in pairs})
    transfer, asymmetry = transfer_table(transfers), asymmetry_table(counts)
    return Functional(
        transfers=transfers,
        counts=counts,
        transfer=transfer,
        asymmetry=asymmetry,
        mistakes=mistakes_table(mistakes),
        matrix=compute_matrix(groups, conditions),
        sentences=[*describe_transfer(transfer, asymmetry), *(left_out if len(transfer) else [])],
        remarks=[*left_out, *remark_without_control(conditions, transfers), *remark_same_start(conditions, runs)],
    )


def compare_all(
    conditions: Sequence[Condition], measured: Mapping[Pair, NDArray[np.float64] | None]
) -> list[ControlComparison]:
    """Return the comparisons of every condition with its controls, by the vectors of its runs beside its teacher."""
    found = []
    for condition in conditions:
        values: dict[Path, NDArray[np.float64] | None]
        values = {run.path: measured[run.path, condition.teacher] for run in condition.runs}
        found += [compare(condition, control, values) for control in condition.controls]
    return with_pooled(found)


def remark_left_out(groups: Sequence[RunGroup], conditions: Sequence[Condition]) -> list[str]:
    """Remark on distilled groups that have logits, and whose teacher has none of the same images."""
    found = {id(condition.group) for condition in conditions}
    names = [
        f"{group.name} (teacher {group.shared.teacher_key})"
        for group in groups
        if group.shared.role == DISTILLED and group.shared.teacher_key and id(group) not in found
        and any(predictions_in(run.path) for run in group.rows)
    ]  # fmt: skip
    if not names:
        return []
    return [
        f"Transfer is computed without {len(names)} condition{'s' if len(names) > 1 else ''}, since the teacher's "
        f"run is not here, or has no logits of the same images: {'; '.join(first_lines(names))}; give its directory "
        "too, or train it again (overwrite=true)."
    ]


def remark_without_control(conditions: Sequence[Condition], transfers: Sequence[ControlComparison]) -> list[str]:
    """Remark on conditions that have no control with logits, so that nothing can be said about transfer."""
    compared = {id(own.group) for own in transfers}
    names = [condition.group.name for condition in conditions if id(condition.group) not in compared]
    if not names:
        return []
    return [
        "no transfer can be computed, since there is no control with logits (such as runs of kdbench experiment=siddo "
        f"or method=ce): {'; '.join(first_lines(names))}"
    ]


def remark_same_start(conditions: Sequence[Condition], runs: pd.DataFrame) -> list[str]:
    """Remark on students that have the first weights of their teacher: same architecture, same initialisation seed."""
    inits = {run_key: seeds[0] for run_key, seeds in zip(runs.run_key, runs.seeds, strict=True)}
    found = []
    for condition in conditions:
        shared = condition.group.shared
        start = inits.get(shared.teacher_key, shared.teacher_seed)
        seeds = [str(run.seed) for run in condition.group.rows if run.seeds[0] == start]
        if shared.student == shared.teacher and seeds and start is not None:
            found.append(f"{condition.group.name} (seed {', '.join(seeds)})")
    if not found:
        return []
    return [
        "students with the first weights of their teacher (same architecture and seed) resemble it without any "
        f"transfer, and so do SIDDO controls; give teacher.seed another value: {'; '.join(first_lines(found))}"
    ]

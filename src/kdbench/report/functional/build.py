"""The functional part of a report: its tables, sentences and remarks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdbench.metrics import DISTANCES
from kdbench.report.columns import ASYMMETRY, MISTAKES, TRANSFER
from kdbench.report.fidelity import teacher_folder
from kdbench.report.functional.asymmetry import asymmetry_table, count_pair
from kdbench.report.functional.conditions import Condition, find_conditions
from kdbench.report.functional.matrix import AgreementMatrix, compute_matrix
from kdbench.report.functional.mistakes import count_mistakes, mistakes_table
from kdbench.report.functional.pairs import Pair, are_comparable, measure_pairs
from kdbench.report.functional.sentences import describe
from kdbench.report.functional.transfer import Comparison, compare, transfer_table, with_pooled
from kdbench.report.groups import RunGroup
from kdbench.report.runs import first_lines

Values = Mapping[Path, NDArray[np.float64] | None]
"""Vector of values of each run beside one teacher."""


@dataclass(frozen=True, eq=False)
class Functional:
    """Functional part of a report; empty where there are no logits."""

    transfers: Sequence[Comparison]
    """Comparisons whose vectors are the distances to the teacher."""
    counts: Sequence[Comparison]
    """The same whose vectors are counts of agreement by correctness."""
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
    matrix = compute_matrix(groups)
    conditions = find_conditions(groups)
    teachers = {id(condition): teacher_folder(condition.group.shared, runs) for condition in conditions}
    usable = [
        condition
        for condition in conditions
        if (teacher := teachers[id(condition)])
        and any(are_comparable(run.path, teacher) for run in condition.group.rows)
    ]
    if not usable:
        transfer, asymmetry, mistakes = (pd.DataFrame(columns=names) for names in (TRANSFER, ASYMMETRY, MISTAKES))
        return Functional([], [], transfer, asymmetry, mistakes, matrix, [], [])

    def compare_all(measure: Callable[[Path, Path], NDArray[np.float64] | None]) -> list[Comparison]:
        """Return the comparisons of every condition and control by a function of a run and a teacher."""
        found = []
        for condition in usable:
            teacher = teachers[id(condition)]
            assert teacher is not None
            values = {run.path: measure(run.path, teacher) for run in runs_of(condition)}
            found += [
                (condition.family, compare(condition, control, values, place == 0))
                for place, control in enumerate(condition.controls)
            ]
        return with_pooled(found)

    pairs: list[Pair] = [(run.path, teacher) for c in usable if (teacher := teachers[id(c)]) for run in runs_of(c)]
    distances = measure_pairs(pairs)

    def distance_vector(run: Path, teacher: Path) -> NDArray[np.float64] | None:
        known = distances[run, teacher]
        return np.array([known[name] for name in DISTANCES]) if known else None

    transfers, counts = compare_all(distance_vector), compare_all(count_pair)
    transfer, asymmetry = transfer_table(transfers), asymmetry_table(counts)
    remarks = [*remark_without_control(usable), *remark_same_start(usable, runs)]
    return Functional(
        transfers, counts, transfer, asymmetry, mistakes_table(compare_all(count_mistakes)), matrix,
        describe(transfer, asymmetry), remarks,
    )  # fmt: skip


def runs_of(condition: Condition) -> list[Any]:
    """Return the students and all control runs of a condition, each once."""
    of_controls = [run for control in condition.controls for runs in control.runs.values() for run in runs]
    return list({run.path: run for run in [*condition.group.rows, *of_controls]}.values())


def remark_without_control(conditions: Sequence[Condition]) -> list[str]:
    """Remark on conditions that have no control at all, so that nothing can be said about transfer."""
    names = [condition.group.name for condition in conditions if not condition.controls]
    if not names:
        return []
    return [
        f"no transfer can be computed, since there is no control (such as kdbench experiment=siddo or method=ce): "
        f"{'; '.join(first_lines(names))}"
    ]


def remark_same_start(conditions: Sequence[Condition], runs: pd.DataFrame) -> list[str]:
    """Remark on students that have the first weights of their teacher: same architecture, same initialisation seed."""
    inits = dict(zip(runs.run_key, runs.init_seed, strict=True))
    found = []
    for condition in conditions:
        shared = condition.group.shared
        start = inits.get(shared.teacher_key, shared.teacher_seed)
        seeds = [str(run.seed) for run in condition.group.rows if run.init_seed == start]
        if shared.student == shared.teacher and seeds and start is not None:
            found.append(f"{condition.group.name} (seed {', '.join(seeds)})")
    if not found:
        return []
    return [
        "students with the first weights of their teacher (same architecture and seed) resemble it without any "
        f"transfer; give teacher.seed another value: {'; '.join(first_lines(found))}"
    ]

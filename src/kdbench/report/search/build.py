"""The part of a report about a search: a table, its curves and sentences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from kdbench.report.columns import row
from kdbench.report.gains import Gain
from kdbench.report.groups import BASELINE, COMPARED
from kdbench.report.runs import rows_of
from kdbench.report.search.expected import expected_best
from kdbench.report.search.read import Arm, FoundSearch, Trial
from kdbench.report.search_columns import SEARCH_TABLE
from kdbench.report.select import Selection

INDEPENDENT = ("random", "qmc", "grid")
"""Samplers that do not look at earlier trials."""


@dataclass(frozen=True)
class SearchedArm:
    """A student, teacher and method with its trials in a search."""

    arm: Arm
    role: str
    trials: Sequence[Trial]

    @property
    def scores(self) -> list[float]:
        return [trial.score for trial in self.trials]

    @property
    def best(self) -> float:
        return max(self.scores)

    @property
    def default(self) -> float | None:
        """Validation accuracy of the default setting, per cent."""
        return next((trial.score for trial in self.trials if trial.is_default and trial.status == "complete"), None)

    @property
    def name(self) -> str:
        student, teacher, method = self.arm
        return f"{student} {method}" + (f" from {teacher}" if teacher else "")


def empty_table() -> pd.DataFrame:
    return pd.DataFrame(columns=SEARCH_TABLE)


@dataclass(frozen=True, eq=False)
class SearchPart:
    """Part of a report about a search; empty where none was given."""

    name: str = ""
    arms: Sequence[SearchedArm] = ()
    """A row of the table each."""
    table: pd.DataFrame = field(default_factory=empty_table)
    sentences: Sequence[str] = ()
    remarks: Sequence[str] = ()


def compute_search(
    found: FoundSearch | None, runs: pd.DataFrame, gains: Sequence[Gain], selection: Selection | None
) -> SearchPart:
    """Return the part about a search.

    Args:
        found: the search.
        runs: runs that report.
        gains: gains of the report.
        selection: selection that was applied.
    """
    if found is None:
        return SearchPart()
    known = {(run.student, run.teacher, run.method): run.role for run in rows_of(runs)}
    arms = [SearchedArm(arm, found.of(arm)[0].role or known.get(arm) or "", found.of(arm)) for arm in found.arms]
    baselines = {searched.arm[0]: searched for searched in reversed(arms) if searched.role == BASELINE}
    rows = [arm_row(searched, baselines.get(searched.arm[0]), found) for searched in arms]
    table = pd.DataFrame(rows, columns=SEARCH_TABLE)
    return SearchPart(
        found.name,
        arms,
        table,
        [
            *(line for searched in arms if searched.role != BASELINE
              for line in describe_arm(searched, baselines.get(searched.arm[0]), gains)),
            *(describe_baseline(searched) for searched in arms if searched.role == BASELINE),
            describe_rule(found),
        ],
        remark_trials(found, runs, selection),
    )  # fmt: skip


def difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def arm_row(searched: SearchedArm, baseline: SearchedArm | None, found: FoundSearch) -> dict[str, Any]:
    """Return a row of search.csv."""
    student, teacher, method = searched.arm
    statuses = [trial.status for trial in searched.trials]
    cells = row(
        student=student, teacher=teacher, method=method, role=searched.role or None, search=found.name,
        sampler=found.sampler or None, trials=len(statuses), trials_pruned=statuses.count("pruned"),
        trials_diverged=statuses.count("diverged"), val_default=searched.default, val_best=searched.best,
        search_gain=difference(searched.best, searched.default), expected_one=expected_best(searched.scores, 1),
    )  # fmt: skip
    if baseline is None or baseline is searched:
        return cells
    return cells | row(
        trials_base=len(baseline.trials),
        trials_equal=equal_trials(searched, baseline),
        equal_gain=equal_gain(searched, baseline),
        default_gain=difference(searched.default, baseline.default),
        tuned_gain=difference(searched.best, baseline.default),
        search_share=search_share(searched, baseline),
    )


def equal_trials(searched: SearchedArm, baseline: SearchedArm) -> int:
    return min(len(searched.trials), len(baseline.trials))


def equal_gain(searched: SearchedArm, baseline: SearchedArm) -> float:
    """Return the gain over the baseline after the same number of trials of each, in points of validation accuracy."""
    trials = equal_trials(searched, baseline)
    return expected_best(searched.scores, trials) - expected_best(baseline.scores, trials)


def search_share(searched: SearchedArm, baseline: SearchedArm) -> float | None:
    """Return the search gain as a part of the gain over the untuned baseline, per cent; None where there is none."""
    part, whole = difference(searched.best, searched.default), difference(searched.best, baseline.default)
    return None if part is None or whole is None or whole <= 0 else min(100.0, 100 * part / whole)


def describe_arm(searched: SearchedArm, baseline: SearchedArm | None, gains: Sequence[Gain]) -> list[str]:
    """Return how much of an arm's gain the search explains, as sentences."""
    count = len(searched.trials)
    line = f"{searched.name}: the best of {counted(count)} has a validation accuracy of {searched.best:.2f} %"
    part = difference(searched.best, searched.default)
    if part is None:
        line += "; the default setting was not one of them, so what the search gains is not known"
    else:
        line += f", {part:+.2f} points over the default setting"
    if baseline is None:
        return [f"{line}. The baseline was not searched: a part of its gain may be that of tuning one arm alone."]
    whole = difference(searched.best, baseline.default)
    if part is not None and whole is not None:
        line += (
            f". Of {whole:+.2f} points over the baseline at its default setting, {part:.2f} are what the search of "
            f"{counted(count)} gains"
        )
    trials = equal_trials(searched, baseline)
    line += (
        f". After {counted(trials)} of each, the expected best is {equal_gain(searched, baseline):+.2f} points over "
        f"that of the baseline{test_text(searched, gains)}."
    )
    return [line]


def test_text(searched: SearchedArm, gains: Sequence[Gain]) -> str:
    """Return the gain of an arm on the test images, if the report has one."""
    for gain in gains:
        shared = gain.group.shared
        if (shared.student, shared.teacher, shared.method) == searched.arm and not math.isnan(gain.delta):
            return f"; its gain on the test images is {gain.delta:+.2f} points (n = {len(gain.values)})"
    return ""


def describe_baseline(searched: SearchedArm) -> str:
    part = difference(searched.best, searched.default)
    gained = "" if part is None else f", {part:+.2f} points over the default setting"
    return (
        f"{searched.name}, a baseline: the best of {counted(len(searched.trials))} has a validation accuracy of "
        f"{searched.best:.2f} %{gained}."
    )


def describe_rule(found: FoundSearch) -> str:
    """Return how the numbers of the search are meant."""
    adaptive = "" if found.sampler in INDEPENDENT else (
        f"; the sampler {found.sampler} looks at earlier trials, so this describes these trials in a random order"
        if found.sampler else ""
    )  # fmt: skip
    pruned = any(trial.status == "pruned" for trial in found.trials)
    limits = "; pruned trials count with their best epoch, which is less than they might have reached" if pruned else ""
    return (
        "The expected best of k trials is the mean over all choices of k trials of the search"
        f"{adaptive}{limits}. All of it is validation accuracy with the seed that chose."
    )


def counted(number: int) -> str:
    return f"{number} trial{'' if number == 1 else 's'}"


def remark_trials(found: FoundSearch, runs: pd.DataFrame, selection: Selection | None) -> list[str]:
    """Remark on reported runs that are trials: the seed that chose a setting does not report it."""
    if selection is not None:
        return []
    keys = {trial.run_key for trial in found.trials}
    count = sum(run.run_key in keys and run.role in (BASELINE, *COMPARED) for run in rows_of(runs))
    if not count:
        return []
    return [
        f"{count} of the reported runs {'is a trial' if count == 1 else 'are trials'} of search {found.name}: their "
        "seed chose among settings, so they look too good; give --select best.yaml, which leaves them out"
    ]

"""The part of a report about a search: a table, its curves and sentences."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from kdbench.report.columns import row
from kdbench.report.gains import Gain
from kdbench.report.groups import BASELINE, COMPARED
from kdbench.report.runs import rows_of
from kdbench.report.search.expected import expected_best
from kdbench.report.search.match import check_belongs, chosen_settings, gains_of, remark_match
from kdbench.report.search.read import DIVERGED, ArmNames, FoundSearch, Trial
from kdbench.report.search_columns import SEARCH_TABLE
from kdbench.report.select import Selection
from kdbench.rundir.summary import Status

GRID = "grid"
INDEPENDENT = ("random", "qmc", GRID)
"""Samplers that do not look at earlier trials."""
PLAIN_TRAINING = "ce"
"""Method without a teacher that is a baseline where neither the search nor a reported run has its role."""


@dataclass(frozen=True)
class SearchedArm:
    """A student, teacher and method with its trials in a search."""

    arm: ArmNames
    role: str
    trials: Sequence[Trial]

    @property
    def scores(self) -> list[float]:
        return [trial.score for trial in self.trials]

    @property
    def best(self) -> float | None:
        """Best validation accuracy of the complete trials, per cent."""
        return max((trial.score for trial in self.trials if trial.status == Status.COMPLETE), default=None)

    @property
    def is_default_known(self) -> bool:
        """False if it is not known which trial had the default setting."""
        return all(trial.is_default is not None for trial in self.trials)

    @property
    def default_trial(self) -> Trial | None:
        """Trial of the default setting."""
        return next((trial for trial in self.trials if trial.is_default), None)

    @property
    def default(self) -> float | None:
        """Validation accuracy of the default setting, per cent; None unless its trial is complete."""
        trial = self.default_trial
        return trial.score if trial and trial.status == Status.COMPLETE else None

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
    found: FoundSearch | None,
    runs: pd.DataFrame,
    gains: Sequence[Gain],
    selection: Selection | None,
    read: pd.DataFrame,
) -> SearchPart:
    """Return the part about a search.

    Args:
        found: the search.
        runs: runs that report.
        gains: gains of the report.
        selection: selection that was applied.
        read: every run that was read, those that chose among them.

    Raises:
        ConfigError: the search is of other data, or of other students, teachers and methods.
    """
    if found is None:
        return SearchPart()
    chosen = chosen_settings(found, read)
    check_belongs(found, chosen, runs)
    known = {(run.student, run.teacher, run.method): run.role for run in rows_of(runs)}
    arms = [
        SearchedArm(arm, found.of(arm)[0].role or known.get(arm) or usual_role(arm), found.of(arm))
        for arm in found.arms
    ]
    baselines = {searched.arm[0]: searched for searched in reversed(arms) if searched.role == BASELINE}
    rows = [arm_row(searched, baselines.get(searched.arm[0]), found) for searched in arms]
    table = pd.DataFrame(rows, columns=SEARCH_TABLE)
    compared = [searched for searched in arms if searched.role != BASELINE]
    return SearchPart(
        found.name,
        arms,
        table,
        [
            *(
                describe_arm(
                    searched, baselines.get(searched.arm[0]), gains_of(searched.arm, chosen[searched.arm], gains)[0]
                )
                for searched in compared
            ),
            *(describe_baseline(searched) for searched in arms if searched.role == BASELINE),
            *describe_unsearched([searched for searched in compared if searched.arm[0] not in baselines]),
            *describe_unknown_default(arms),
            describe_rule(found),
        ],
        [
            *remark_match(found, chosen, gains, {searched.arm: searched.name for searched in arms}),
            *remark_trials(found, runs, selection),
        ],
    )


def usual_role(arm: ArmNames) -> str:
    """Return the role of an arm that neither the search nor a reported run has; empty where it is not known."""
    _, teacher, method = arm
    return BASELINE if teacher is None and method == PLAIN_TRAINING else ""


def difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def arm_row(searched: SearchedArm, baseline: SearchedArm | None, found: FoundSearch) -> dict[str, Any]:
    """Return a row of search.csv."""
    student, teacher, method = searched.arm
    statuses = [trial.status for trial in searched.trials]
    cells = row(
        student=student, teacher=teacher, method=method, role=searched.role or None, search=found.name,
        sampler=found.sampler or None, trials=len(statuses), trials_pruned=statuses.count(Status.PRUNED),
        trials_diverged=statuses.count(DIVERGED), val_default=searched.default, val_best=searched.best,
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
    """Return the search gain as a part of the gain over the untuned baseline, per cent; None unless it is a part."""
    part, whole = difference(searched.best, searched.default), difference(searched.best, baseline.default)
    return 100 * part / whole if part is not None and whole and 0 <= part <= whole else None


def describe_arm(searched: SearchedArm, baseline: SearchedArm | None, gains: Sequence[Gain]) -> str:
    """Return how much of an arm's gain the search explains, as sentences.

    Args:
        searched: the arm.
        baseline: that of its student, if it was searched too.
        gains: gains of the setting that won.
    """
    line = describe_best(searched)
    if baseline is None:
        return f"{line}{test_text(gains)}."
    trials = equal_trials(searched, baseline)
    return (
        f"{line}{describe_parts(searched, baseline)}. After {counted(trials)} of each, the expected best is "
        f"{equal_gain(searched, baseline):+.2f} points over that of the baseline{test_text(gains)}."
    )


def describe_unsearched(arms: Sequence[SearchedArm]) -> list[str]:
    """Return what it means that the baseline of some arms was not searched."""
    if not arms:
        return []
    students = ", ".join(dict.fromkeys(searched.arm[0] for searched in arms))
    return [
        f"The baseline of {students} was not searched: a part of a gain may be that of tuning one arm alone, and the "
        f"share of the search in it is not known ({'; '.join(searched.name for searched in arms)})."
    ]


def describe_unknown_default(arms: Sequence[SearchedArm]) -> list[str]:
    """Return that the default setting is not known, where a file does not say which trial had it."""
    unknown = [searched for searched in arms if not searched.is_default_known]
    unrecorded = [one.name for one in unknown if not all(trial.records_default for trial in one.trials)]
    unplanned = [one.name for one in unknown if all(trial.records_default for trial in one.trials)]
    sentences = {
        "It is not recorded which of these trials had the default setting, so what the search gains over it is not "
        "known ({}). The same command of kdbench-study, given again, records it in selected.yaml.": unrecorded,
        "The default setting, which is the one without the grid, could not be planned (default: null in "
        "selected.yaml), so what the search gains over it is not known ({}).": unplanned,
    }
    return [sentence.format("; ".join(names)) for sentence, names in sentences.items() if names]


def describe_best(searched: SearchedArm) -> str:
    """Return the best of an arm's trials beside its default setting."""
    count = len(searched.trials)
    if searched.best is None:
        return f"{searched.name}: none of {counted(count)} is complete"
    line = f"{searched.name}: the best of {counted(count)} has a validation accuracy of {searched.best:.2f} %"
    part = difference(searched.best, searched.default)
    if part is not None:
        return (
            f"{line}, {part:+.2f} points over the default setting" if part else f"{line}, that of the default setting"
        )
    return f"{line}; {why_no_default(searched)}" if searched.is_default_known else line


def why_no_default(searched: SearchedArm) -> str:
    """Return why a search has no gain over the default setting."""
    trial = searched.default_trial
    if trial is None:
        return "the default setting was not one of them, so what the search gains is not known"
    ended = "its loss was not finite" if trial.status == DIVERGED else "it was pruned"
    return f"the default setting has no result ({ended}), so what the search gains over it is not known"


def describe_parts(searched: SearchedArm, baseline: SearchedArm) -> str:
    """Return the gain over the untuned baseline with the part that the search explains; empty where it is not known."""
    part, whole = difference(searched.best, searched.default), difference(searched.best, baseline.default)
    if part is None or whole is None:
        return ""
    share = search_share(searched, baseline)
    if share is not None:
        return (
            f". Of {whole:+.2f} points over the baseline at its default setting, {part:.2f} ({share:.0f} %) are what "
            f"the search of {counted(len(searched.trials))} gains"
        )
    line = f". The default setting is {part - whole:.2f} points below that of the baseline, and the best setting "
    if whole <= 0:
        return f"{line}{abs(whole):.2f} points below it: there is no gain of which the search could be a share"
    return f"{line}{whole:.2f} points above it: without the search there is no gain, so it explains all of it"


def test_text(gains: Sequence[Gain]) -> str:
    """Return the gains of a setting on the test images, if the report has any."""
    if not gains:
        return ""
    listed = " and ".join(f"{gain.delta:+.2f} points (n = {len(gain.values)})" for gain in gains)
    return (
        f"; its gain{'' if len(gains) == 1 else 's'} on the test images {'is' if len(gains) == 1 else 'are'} {listed}"
    )


def describe_baseline(searched: SearchedArm) -> str:
    return f"{describe_best(searched).replace(searched.name, f'{searched.name}, a baseline', 1)}."


def describe_rule(found: FoundSearch) -> str:
    """Return how the numbers of the search are meant."""
    adaptive = "" if set(found.sampler.split(", ")) <= set(INDEPENDENT) else (
        f"; the sampler {found.sampler} looks at earlier trials, so this describes these trials in a random order"
        if found.sampler else ""
    )  # fmt: skip
    pruned = any(trial.status == Status.PRUNED for trial in found.trials)
    limits = "; pruned trials count with their best epoch, which is less than they might have reached" if pruned else ""
    chosen = "; the default setting, which was not drawn, is one of these trials" if found.sampler != GRID and any(
        trial.is_default for trial in found.trials
    ) else ""  # fmt: skip
    return (
        "The expected best of k trials is the mean over all choices of k trials of the search"
        f"{adaptive}{limits}{chosen}. All but the gains on the test images is validation "
        "accuracy with the seed that chose."
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

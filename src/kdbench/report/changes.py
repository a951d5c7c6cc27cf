"""Differences between two reports: which verdicts changed, and why."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdbench.report.columns import GAINS, INTERACTIONS, format_value
from kdbench.report.plan import name_gain
from kdbench.report.published import primary_view
from kdbench.report.runs import first_lines, rows_of
from kdbench.rundir.summary import KEY

Record = Mapping[str, Any]
Arm = tuple[str, str | None, str | None]
"""Student, teacher and method of some runs."""
Results = Mapping[str, Any]
"""Content of a results.json."""

NUMBERS = (
    KEY.best_val_acc, KEY.test_acc_best, KEY.test_acc_final, "nll", "ece", KEY.agreement, KEY.kl_t1, KEY.kl_t4,
)  # fmt: skip
"""Columns of runs.csv that are results of a run, not how or where it was made."""


@dataclass(frozen=True)
class Row:
    """Gain or interaction of a report, with its verdict."""

    name: str
    arms: frozenset[Arm]
    """Runs that it compares."""
    effect: float
    low: float
    high: float
    p: float
    significant: bool | None
    equivalent: bool | None
    analysis: str
    """Primary analysis in words; empty without a test."""

    @property
    def numbers(self) -> tuple[float, ...]:
        return self.effect, self.low, self.high, self.p

    @property
    def text(self) -> str:
        """Effect, interval and p in words."""
        if math.isnan(self.low):
            return f"{format_value(self.effect, '+.2f') or 'no number'} (no test)"
        ends = ", ".join(format_value(end, "+.2f") for end in (self.low, self.high))
        return f"{self.effect:+.2f} [{ends}], p {format_value(self.p, 'p') or 'unknown'}"


@dataclass(frozen=True)
class RunChanges:
    """Runs that only one of two reports has, or that have other numbers in each."""

    added: Sequence[Record]
    gone: Sequence[Record]
    changed: Sequence[Record]

    def __bool__(self) -> bool:
        return bool(self.added or self.gone or self.changed)

    @property
    def text(self) -> str:
        """The changes in words."""
        kinds = ((self.added, "added"), (self.gone, "gone"), (self.changed, "with other numbers"))
        return "; ".join(list_runs(runs, kind) for runs, kind in kinds if runs)

    def of(self, row: Row) -> "RunChanges":
        """Return the changes of the runs that a gain or interaction compares."""

        def own(runs: Sequence[Record]) -> list[Record]:
            return [run for run in runs if (run[KEY.student], run.get(KEY.teacher), run.get(KEY.method)) in row.arms]

        return RunChanges(own(self.added), own(self.gone), own(self.changed))


def describe_changes(old: Results, new: Results) -> list[str]:
    """Return the sentences on what changed from one report to another; one alone if nothing did.

    Args:
        old: results of the earlier report.
        new: results of the later one.
    """
    runs = compare_runs(old["tables"]["runs"], new["tables"]["runs"])
    options = compare_options(old, new)
    verdicts, analyses, same, moved = list[str](), Counter[str](), 0, 0
    for kind, read in (("gain", read_gains), ("interaction", read_interactions)):
        before, after = read(old), read(new)
        families = compare_families(kind, before.values(), after.values())
        for key in dict.fromkeys([*after, *before]):
            was, now = before.get(key), after.get(key)
            analysis = compare_analyses(was, now)
            analyses.update([analysis] if analysis else [])
            why = reasons(now or before[key], runs, (*options, analysis, families), old["version"], new["version"])
            changes = compare_rows(kind, was, now)
            verdicts += [f"{change} Why: {why}." for change in changes]
            same += not changes
            moved += bool(not changes and was and now and not same_numbers(was.numbers, now.numbers))
    if not (verdicts or moved or runs or options or analyses):
        return ["Nothing changed: the same runs, options, numbers and verdicts as in the earlier report."]
    inputs = [f"Runs: {runs.text}." if runs else "", *(f"Options: {option}." for option in options)]
    inputs += [f"Analysis of {count} of the gains and interactions: {text}." for text, count in analyses.items()]
    if not verdicts:
        verdicts = [f"No verdict changed; {moved} of {same} gains and interactions have other numbers."]
    elif same:
        verdicts.append(f"{same} other gains and interactions keep their verdict, {moved} of them with other numbers.")
    return [*compare_subjects(old, new), *verdicts, *filter(None, inputs)]


def compare_subjects(old: Results, new: Results) -> list[str]:
    """Return a warning where the reports are of other data, or have no run in common."""
    data = [sorted(results.get("environment", {}).get(KEY.dataset, ())) for results in (old, new)]
    if data[0] and data[1] and data[0] != data[1]:
        then, now = map(", ".join, data)
        return [f"OTHER DATA: {then} then, {now} now; the verdicts below are no changes of one result."]
    keys = [{run[KEY.run_key] for run in results["tables"]["runs"]} for results in (old, new)]
    if keys[0] and keys[1] and not keys[0] & keys[1]:
        return ["NO RUN IN COMMON: the earlier report is of other runs; is it the one that was meant (--against)?"]
    return []


def compare_runs(old: Sequence[Record], new: Sequence[Record]) -> RunChanges:
    """Return which runs were added, are gone, or have other numbers by the same key."""
    before, after = ({run[KEY.run_key]: run for run in runs} for runs in (old, new))
    return RunChanges(
        [run for key, run in after.items() if key not in before],
        [run for key, run in before.items() if key not in after],
        [run for key, run in after.items() if key in before and differs(before[key], run)],
    )


def differs(a: Record, b: Record) -> bool:
    return not same_numbers([a.get(name) for name in NUMBERS], [b.get(name) for name in NUMBERS])


def same_numbers(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Return whether numbers are equal up to the rounding of another order of the same sums."""

    def same(x: Any, y: Any) -> bool:
        unknown = [value is None or (isinstance(value, float) and math.isnan(value)) for value in (x, y)]
        return all(unknown) if any(unknown) else math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-9)

    return all(map(same, a, b))


def list_runs(runs: Sequence[Record], kind: str) -> str:
    """Return what happened to some runs, and which they are."""
    many = "s" if len(runs) > 1 else ""
    return f"{len(runs)} run{many} {kind} ({'; '.join(first_lines([name_run(run) for run in runs]))})"


def name_run(run: Record) -> str:
    source = f" from {run[KEY.teacher]}" if run.get(KEY.teacher) else ""
    return f"{run[KEY.student]} {run.get(KEY.method)}{source}, seed {run.get(KEY.seed)}, key {run[KEY.run_key]}"


def compare_options(old: Results, new: Results) -> list[str]:
    """Return the options that differ, in words."""
    changed = [
        f"{name} {old['options'][name]} then, {new['options'][name]} now"
        for name in ("margin", "analysis")
        if old["options"][name] != new["options"][name]
    ]
    before, after = old["options"]["select"], new["options"]["select"]
    if before != after:
        changed.append(f"selection: {name_selection(before)} then, {name_selection(after)} now")
    return changed


def name_selection(selection: Record | None) -> str:
    if selection is None:
        return "none"
    chosen = "; ".join(" ".join([w["student"], w["method"], *w["overrides"]]) for w in selection["winners"])
    return f"of the study {selection['study']}, seeds {selection['selection_seeds']} ({chosen})"


def compare_families(kind: str, before: Any, after: Any) -> str:
    """Return in words that another number of tests is corrected for, or nothing."""
    counts = [sum(not math.isnan(row.p) for row in rows) for rows in (before, after)]
    return "" if counts[0] == counts[1] else f"number of tests among {kind}s: {counts[0]} then, {counts[1]} now"


def compare_analyses(was: Row | None, now: Row | None) -> str:
    """Return in words that the primary analysis of a row is another one, or nothing."""
    if was is None or now is None or was.analysis == now.analysis:
        return ""
    then, later = (f"by {row.analysis}" if row.analysis else "without a test" for row in (was, now))
    return f"{then} then, {later} now"


def reasons(row: Row, runs: RunChanges, others: Sequence[str], old: str, new: str) -> str:
    """Return why a row changed: its own runs first, else everything that reaches it by spread and correction.

    Args:
        row: gain or interaction.
        runs: changes of all runs.
        others: other changes that concern the row, in words; empty ones do not count.
        old: version of kdbench that made the earlier report.
        new: version that made the later one.
    """
    own = runs.of(row)
    found = [text for text in (own.text, *others) if text]
    if runs and not own:
        found.append("runs of other groups changed, and with them the spread that all groups share")
    if found:
        return "; ".join(found)
    version = f"kdbench {old} then, {new} now" if old != new else f"the same version of kdbench, {new}"
    return f"computed differently from the same runs ({version})"


def compare_rows(kind: str, was: Row | None, now: Row | None) -> list[str]:
    """Return how the verdict on a gain or interaction changed, a sentence each."""
    if was is None or now is None:
        row = now or was
        assert row is not None
        return [f"The {kind} of {row.name} is {'new' if now else 'gone'}: {row.text}."]
    numbers = f"{was.text} then, {now.text} now"
    sentences = []
    if was.significant != now.significant:
        state = {True: "significant", False: "not significant", None: "not tested"}
        change = f"{state[was.significant]} then, {state[now.significant]} now"
        sentences.append(f"The {kind} of {now.name}: {change} ({numbers}).")
    if was.equivalent != now.equivalent:
        state = {True: "shown to be within the margin", False: "not shown to be within the margin", None: "not tested"}
        change = f"{state[was.equivalent]} then, {state[now.equivalent]} now"
        sentences.append(f"The {kind} of {now.name}: {change} ({numbers}).")
    if was.effect * now.effect < 0:
        sentences.append(f"The {kind} of {now.name} changed its direction ({numbers}).")
    return sentences


def read_gains(results: Results) -> dict[tuple[Any, ...], Row]:
    """Return the gains of a report by what identifies them."""

    def describe(record: Record) -> tuple[str, set[Arm]]:
        student, teacher, method = record["student"], record["teacher"], record["method"]
        # Baselines have no teacher, and any method.
        arms: set[Arm] = {(student, teacher, method), *((student, None, other) for other in baseline_methods(results))}
        return name_gain(student, teacher, method, record["setting"] or ""), arms

    identity = ("student", "teacher", "method", "setting", "teacher_seed")
    return read_rows(results["tables"]["gains"], GAINS, "delta", identity, describe)


def read_interactions(results: Results) -> dict[tuple[Any, ...], Row]:
    """Return the interactions of a report by what identifies them."""

    def describe(record: Record) -> tuple[str, set[Arm]]:
        students, teacher, method = (record["student_a"], record["student_b"]), record["teacher"], record["method"]
        arms: set[Arm] = {(student, teacher, method) for student in students}
        arms |= {(student, None, other) for student in students for other in baseline_methods(results)}
        setting = "; ".join(dict.fromkeys(s for s in (record["setting_a"], record["setting_b"]) if s))
        return name_gain(" against ".join(students), teacher, method, setting), arms

    identity = ("student_a", "student_b", "teacher", "method", "setting_a", "setting_b", "teacher_seed")
    return read_rows(results["tables"]["interactions"], INTERACTIONS, "difference", identity, describe)


def baseline_methods(results: Results) -> set[str | None]:
    return {run.get(KEY.method) for run in results["tables"]["runs"] if run.get(KEY.role) == "baseline"}


def read_rows(
    records: Sequence[Record],
    columns: Sequence[str],
    effect: str,
    identity: Sequence[str],
    describe: Callable[[Record], tuple[str, set[Arm]]],
) -> dict[tuple[Any, ...], Row]:
    """Return the rows of a table of tests by what identifies them.

    Args:
        records: rows of results.json.
        columns: columns of that table.
        effect: column of the gain or difference.
        identity: columns that identify a row.
        describe: function that returns the name of a row, and the runs that it compares.
    """
    view = primary_view(pd.DataFrame(list(records), columns=list(columns), dtype=object))
    rows = {}
    for record, seen in zip(records, rows_of(view), strict=True):
        name, arms = describe(record)
        value = record[effect]
        rows[tuple(record[key] for key in identity)] = Row(
            name, frozenset(arms), math.nan if value is None else value, seen.low, seen.high, seen.p_adjusted,
            known(seen.significant), known(seen.equivalent), seen.analysis,
        )  # fmt: skip
    return rows


def known(value: Any) -> bool | None:
    return None if pd.isna(value) else bool(value)

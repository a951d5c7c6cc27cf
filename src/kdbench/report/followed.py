"""Comparison of a study with the plan that it registered: seeds, hypotheses, tests, settings, and what came first."""

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdbench.report.gains import Gain
from kdbench.report.groups import key_text
from kdbench.report.plan import Plan, PlannedGain, PlannedInteraction, name_gain
from kdbench.report.runs import first_lines, rows_of
from kdbench.report.select import Selection
from kdbench.rundir.summary import KEY


@dataclass(frozen=True)
class Finding:
    """Sentence on one respect of a plan."""

    text: str
    followed: bool | None = True
    """Result of the comparison; None if it cannot be told."""


def check_followed(
    plan: Plan,
    gains: Sequence[Gain],
    interactions: pd.DataFrame,
    selection: Selection | None,
    analysis: str,
    margin: float,
) -> list[str]:
    """Return whether a plan was followed: a sentence for the whole, then one or several for each respect.

    Args:
        plan: registered plan.
        gains: gains of the report.
        interactions: content of interactions.csv.
        selection: choice of settings of the report.
        analysis: primary analysis of the report, as --analysis names it.
        margin: margin of equivalence of the report, points.
    """
    pairs = [(planned, found) for planned in plan.gains for found in gains if is_planned(planned, found, selection)]
    findings = [
        *check_times(plan, pairs),
        *check_seeds(pairs),
        *check_gains(plan, gains, pairs),
        *check_interactions(plan, interactions),
        *check_tests(plan, analysis, margin),
        *check_selection(plan, selection),
        *check_data(plan, gains),
    ]
    return [whole(plan, findings), *(finding.text for finding in findings)]


def whole(plan: Plan, findings: Sequence[Finding]) -> str:
    """Return the sentence on the plan as a whole."""
    registered = (
        f"The plan of the study {plan.study}, registered on {plan.time:%Y-%m-%d at %H:%M %Z} with "
        f"{count(len(plan.gains), 'gain')} and {count(len(plan.interactions), 'interaction')}"
    )
    broken = sum(finding.followed is False for finding in findings)
    if broken:
        return f"{registered}, was not followed in {count(broken, 'respect')}."
    if any(finding.followed is None for finding in findings):
        return f"{registered}: whether it was followed cannot be told wholly; what can be checked agrees with it."
    return f"{registered}, was followed."


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def is_planned(planned: PlannedGain, found: Gain, selection: Selection | None) -> bool:
    """Return whether a gain is the one of a hypothesis: the same networks, method and settings."""
    run = found.group.shared
    names = (planned.student, planned.teacher, planned.teacher_seed, planned.method)
    if names != (run.student, run.teacher, found.teacher_seed, run.method):
        return False
    if planned.stem is not None and run.stem not in (None, planned.stem):
        return False
    if not all(agrees(run.get(f"{KEY.recipe}.{key}"), value) for key, value in planned.recipe.items()):
        return False
    if planned.method_params is not None:
        return all(
            key_text(run.get(f"{KEY.method_params}.{key}")) == key_text(value)
            for key, value in planned.method_params.items()
        )
    winners = [winner for winner in selection.winners if winner.is_subject(run)] if selection else []
    return not winners or any(winner.is_setting(run) for winner in winners)


def agrees(recorded: Any, planned: Any) -> bool:
    """Return whether a run has a planned setting, or does not record it."""
    return recorded is None or key_text(recorded) == key_text(planned)


def check_times(plan: Plan, pairs: Sequence[tuple[PlannedGain, Gain]]) -> list[Finding]:
    """Compare the time of registration with the starts of the runs that report."""
    groups = [group for _, gain in pairs for group in (gain.group, gain.baseline) if group]
    starts = {run.run_key: run.started for group in groups for run in rows_of(group.runs)}
    known = {key: datetime.datetime.fromisoformat(start) for key, start in starts.items() if start}
    early = [key for key, start in known.items() if start < plan.time]
    findings = []
    if early:
        listed = ", ".join(first_lines(early))
        findings.append(
            Finding(f"{len(early)} of {len(starts)} runs started before the plan was registered: {listed}.", False)
        )
    elif known and len(known) == len(starts):
        findings.append(
            Finding(f"It was registered before the first of the {len(starts)} runs started ({min(known.values())}).")
        )
    if len(known) < len(starts):
        unknown = len(starts) - len(known)
        findings.append(
            Finding(
                f"{unknown} of {len(starts)} runs do not record when they started, so that they may be older than the "
                "plan.",
                None,
            )
        )
    return findings


def check_seeds(pairs: Sequence[tuple[PlannedGain, Gain]]) -> list[Finding]:
    """Compare the seeds of each hypothesis, and of its baseline, with those of its runs."""
    differing: dict[str, list[str]] = {}
    for planned, found in pairs:
        if found.is_pooled:
            continue
        arms = [("", planned.seeds, found.group)]
        if found.baseline:
            arms.append(("of the baseline ", planned.baseline_seeds, found.baseline))
        deviations = [
            text for arm, seeds, group in arms if (text := compare_seeds(arm, seeds, group.runs.seed.tolist()))
        ]
        if deviations:
            differing.setdefault("; ".join(deviations), []).append(planned.name)
    if not differing:
        return [Finding("Every planned gain that is here has the planned seeds.")] if pairs else []
    return [
        Finding(f"Seeds of {', '.join(first_lines(names))}: {deviations}.", False)
        for deviations, names in differing.items()
    ]


def compare_seeds(arm: str, planned: Sequence[int], found: Sequence[Any]) -> str:
    """Return in words which seeds of an arm lack and which were added."""
    missing, added = sorted(set(planned) - set(found)), sorted(set(found) - set(planned), key=str)
    parts = [
        f"{arm}{', '.join(map(str, seeds))} {verb}"
        for seeds, verb in ((missing, "missing"), (added, "not planned"))
        if seeds
    ]
    return ", ".join(parts)


def check_gains(plan: Plan, gains: Sequence[Gain], pairs: Sequence[tuple[PlannedGain, Gain]]) -> list[Finding]:
    """Compare the hypotheses on gains with the gains of the report."""
    seen = {id(planned) for planned, _ in pairs}
    expected = {id(found) for _, found in pairs}
    missing = [planned.name for planned in plan.gains if id(planned) not in seen]
    others = [
        name_gain(run.student, run.teacher, run.method, gain.setting)
        for gain in gains
        if id(gain) not in expected and not math.isnan(gain.delta)
        for run in (gain.group.shared,)
    ]
    return named_findings("gain", len(plan.gains), missing, others)


def check_interactions(plan: Plan, interactions: pd.DataFrame) -> list[Finding]:
    """Compare the hypotheses on interactions with those of the report."""
    planned = {key_of(interaction): interaction for interaction in plan.interactions}
    found = {
        (row.method, row.teacher, seed_text(row.teacher_seed), frozenset((row.student_a, row.student_b))): row
        for row in rows_of(interactions)
    }
    missing = [name_interaction(i.method, i.teacher, i.students) for key, i in planned.items() if key not in found]
    others = [
        name_interaction(row.method, row.teacher, (row.student_a, row.student_b))
        for key, row in found.items()
        if key not in planned
    ]
    return named_findings("interaction", len(plan.interactions), missing, others)


def seed_text(seed: Any) -> str:
    """Return a teacher's seed as text; tables with unknown ones hold whole numbers as 0.0."""
    return str(int(seed)) if isinstance(seed, float) and not math.isnan(seed) else str(seed)


def key_of(planned: PlannedInteraction) -> tuple[Any, ...]:
    return planned.method, planned.teacher, seed_text(planned.teacher_seed), frozenset(planned.students)


def name_interaction(method: str, teacher: str | None, students: Sequence[str]) -> str:
    return name_gain(" against ".join(students), teacher, method, "")


def named_findings(kind: str, planned: int, missing: Sequence[str], others: Sequence[str]) -> list[Finding]:
    """Return the sentences on hypotheses of one kind that lack, and on what was not planned."""
    findings = []
    if missing:
        many = "s are" if len(missing) > 1 else " is"
        text = f"{len(missing)} of {planned} planned {kind}{many} missing here: {'; '.join(missing)}."
        findings.append(Finding(text, False))
    elif planned:
        findings.append(Finding(f"Every planned {kind} is here."))
    # Gains outside the plan may be reported, as long as they are named.
    if others:
        findings.append(Finding(f"Not in the plan, exploratory: {'; '.join(dict.fromkeys(others))}."))
    return findings


def check_tests(plan: Plan, analysis: str, margin: float) -> list[Finding]:
    """Compare the primary analysis and the margin with the planned ones."""
    findings = []
    for name, planned, used in (
        ("primary analysis", plan.analysis, analysis),
        ("margin of equivalence", f"{plan.margin:g} points", f"{margin:g} points"),
    ):
        if planned == used:
            findings.append(Finding(f"The {name} is the planned one, {used}."))
        else:
            findings.append(Finding(f"The {name} is {used}; {planned} was planned.", False))
    return findings


def check_selection(plan: Plan, selection: Selection | None) -> list[Finding]:
    """Compare the choice of settings with the planned one."""
    planned = plan.selection
    if planned is None:
        return []
    if selection is None:
        return [Finding("The report was made without the selection that the plan names (--select).", None)]
    findings = []
    for name, expected, used in (
        ("seeds that chose the settings", list(planned["seeds"]), list(selection.selection_seeds)),
        ("criterion that chose them", planned["chosen_by"], selection.chosen_by),
    ):
        if expected != used:
            findings.append(Finding(f"The {name}: {shown(used)}; planned: {shown(expected)}.", False))
    chosen = {(w.student, w.teacher, w.method): list(w.overrides) for w in selection.winners}
    for winner in planned["winners"] or ():
        subject = (winner["student"], winner["teacher"], winner["method"])
        if subject in chosen and chosen[subject] != list(winner["overrides"]):
            name = name_gain(*subject, "")
            was, now = (" ".join(o) or "no override" for o in (winner["overrides"], chosen[subject]))
            findings.append(Finding(f"{name}: {now} was chosen; the plan names {was}.", False))
    return findings or [Finding("The settings were chosen as planned.")]


def shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def check_data(plan: Plan, gains: Sequence[Gain]) -> list[Finding]:
    """Compare data set and split of the runs with the planned ones, as far as both say them."""
    findings = []
    for key, planned in plan.data.items():
        recorded = {key_text(gain.group.shared.get(key)): gain.group.shared.get(key) for gain in gains}
        used = [value for value in recorded.values() if value is not None]
        if planned is not None and used and any(not agrees(value, planned) for value in used):
            findings.append(Finding(f"{key} is {' and '.join(map(str, used))}; {planned} was planned.", False))
    return findings or [Finding("Data set and split are the planned ones.")]

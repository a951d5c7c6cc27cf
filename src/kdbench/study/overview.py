"""Overviews of a study as text: every run with its state, the groups in lockstep, and the time left."""

import shlex
from collections import Counter
from collections.abc import Sequence

from kdbench.config.derived import MEASURE
from kdbench.study.plan import StageSweep, StudyPlan
from kdbench.study.progress import (
    DONE,
    MISSING,
    REFUSED,
    RESUMABLE,
    Speed,
    duration,
    epochs_left,
    is_done,
    state_of,
    summaries_under,
)
from kdbench.sweep.lockstep import saved_share
from kdbench.sweep.plan import PlannedRun


def progress_line(plan: StudyPlan, failed: int, seconds: float) -> str:
    """Return how far a study is, in one line.

    Args:
        plan: of the study.
        failed: number of runs that failed twice.
        seconds: time since the study started.
    """
    runs = plan.all_runs()
    done = sum(map(is_done, runs))
    failures = f", {failed} failed" if failed else ""
    return (
        f"study {plan.study.label}: {done} of {len(runs) + plan.count_waiting()} runs done{failures}, "
        f"{duration(seconds)} so far, {time_left(plan, runs)}"
    )


def time_left(plan: StudyPlan, runs: Sequence[PlannedRun]) -> str:
    """Return the time that some runs and the waiting ones will take, in words."""
    speed = Speed(summaries_under(plan.output_root), plan.device)
    left = [run for run in runs if not run.error and not is_done(run)]
    seconds = [speed.seconds(run) for run in left]
    measured = [s for s in seconds if s is not None]
    waiting = plan.count_waiting()
    if len(measured) < len(seconds) or (not measured and waiting):
        return "time left unknown: no complete run to measure it by"
    saved = speed.saved(plan.groups(left))
    less = f", up to {duration(saved)} less in lockstep" if saved else ""
    return f"about {duration(sum(measured) + waiting * seconds_of_final(plan, speed))} left{less}"


def seconds_of_final(plan: StudyPlan, speed: Speed) -> float:
    """Return the seconds of a run whose setting is not chosen yet: the candidates' mean per epoch, times its epochs."""
    choosing = [title for title in plan.study.stages if plan.stage(title).choose]
    candidates = [run for title in choosing for run in plan.runs_of(title) if not run.error and epochs_left(run)]
    per_epoch = [(speed.seconds(run) or 0) / epochs_left(run) for run in candidates]
    return plan.epochs * sum(per_epoch) / len(per_epoch) if per_epoch else 0.0


def overview(plan: StudyPlan) -> str:
    """Return every sweep and run of a study with its state, and the time left: the text of --dry-run."""
    lines = [f"study {plan.study.label}: {plan.folder}", plan.study.config.question.strip()]
    for title in plan.study.stages:
        waiting = plan.count_waiting(title)
        winners = f": {waiting} runs wait for the winners of {plan.stage(title).winners_of}" if waiting else ""
        lines.append(f"\nstage {title}{winners}")
        for sweep in plan.sweeps[title]:
            lines += [f"  {shlex.join(sweep.command)}", *sweep_lines(sweep)]
        groups = [group for group in plan.groups(plan.runs_of(title)) if len(group) > 1]
        for number, group in enumerate(groups, 1):
            lines.append(f"  {together(group)}, group {number}: {group_members(group)}")
        if waiting and plan.max_learners > 1:
            lines.append("  the waiting runs join the groups where they can share")
    runs, waiting = plan.all_runs(), plan.count_waiting()
    counts = {state: sum(state_of(run) == state for run in runs) for state in (DONE, RESUMABLE, MISSING, REFUSED)}
    counts["waiting for winners"] = waiting
    total = ", ".join(f"{n} {state}" for state, n in counts.items() if n or state in (DONE, MISSING))
    lines.append(f"\n{len(runs) + waiting} runs: {total}; {time_left(plan, runs)}")
    return "\n".join(lines)


def sweep_lines(sweep: StageSweep) -> list[str]:
    """Return a line for each run of a sweep: its state, and the overrides that not all of them have."""
    runs = sweep.runs
    common = set(runs[0].overrides).intersection(*(run.overrides for run in runs)) if len(runs) > 1 else set()
    lines = []
    for run in runs:
        own = " ".join(text for text in run.overrides if text not in common)
        if sweep.command[0] != "kdbench":
            own = run.config.title
        lines.append(f"    {state_text(run):<28}{own}" + (f": {run.error}" if run.error else ""))
    return lines


def state_text(run: PlannedRun) -> str:
    """Return the state of a run, with its epochs where it is resumable."""
    state = state_of(run)
    if state != RESUMABLE:
        return state
    epochs = run.config.recipe.epochs
    return f"{state} ({epochs - epochs_left(run)} of {epochs} epochs)"


def group_members(group: Sequence[PlannedRun]) -> str:
    """Return the runs of a group in words, with what one pass of their teacher for all of them saves."""
    configs = [run.config for run in group]
    teacher = next((config.teacher.model.name for config in configs if config.teacher), None)
    names = Counter(f"{config.student.name} {config.method.name}" for config in configs)
    members = ", ".join(f"{number} x {name}" if number > 1 else name for name, number in names.items())
    if configs[0].kind == MEASURE:
        return members
    source = f", from {teacher}, {saved_share(configs):.0%} less arithmetic" if teacher else ""
    return f"{members}, seed {configs[0].seed}{source}"


def group_sizes(plan: StudyPlan, runs: Sequence[PlannedRun]) -> str:
    """Return how runs that are not complete train together, in words."""
    groups = plan.groups(runs)
    shared = [group for group in groups if len(group) > 1]
    text = f"{len(runs)} runs" if len(runs) > 1 else "1 run"
    if not shared:
        return f"{text}, one after the other" if len(runs) > 1 else text
    how = together(shared[0])
    sizes = ", ".join(str(len(group)) for group in shared)
    alone = f", {len(groups) - len(shared)} alone" if len(groups) > len(shared) else ""
    return f"{text}: {sum(map(len, shared))} {how}, in groups of {sizes}{alone}"


def together(group: Sequence[PlannedRun]) -> str:
    """Return how the runs of a group are executed together, in words."""
    return "measured in turn" if group[0].config.kind == MEASURE else "in lockstep"

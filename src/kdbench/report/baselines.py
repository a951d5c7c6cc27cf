"""Finding the baseline of a group and of a run: the one place that compares recipes and keys."""

from collections.abc import Sequence
from typing import Any

from kdbench.report.groups import BASELINE, STUDENT, TEST_IMAGES, RunGroup, columns_of
from kdbench.rundir.summary import KEY

CLIP_PROJECTIONS = "recipe.clip_projections"
"""Column of a setting that changes nothing for a baseline, which has no projections; baseline keys leave it out too."""


def find_baselines(group: RunGroup, groups: Sequence[RunGroup]) -> list[RunGroup]:
    """Return the groups of role `baseline` that equal a group in all but method, teacher and seeds.

    Usually one. There are several where runs have baselines by more than one method; those with most seeds in common
    come first. Of those that differ in `clip_projections` alone, the ones with the group's own value are returned.
    """
    found = [other for other in groups if is_baseline(other, group) and not other.seed_control]
    recipe = (KEY.recipe,)
    same = [other for other in found if settings_of(other, recipe) == settings_of(group, recipe)]
    own = set(group.seeds)
    return sorted(same or found, key=lambda other: -len(own.intersection(other.seeds)))


def is_baseline(other: RunGroup, group: RunGroup) -> bool:
    """Return whether a group is of role `baseline` and equal to another in all but method, teacher and seeds."""
    return other.shared.role == BASELINE and share_training(other, group)


def share_training(other: RunGroup, group: RunGroup) -> bool:
    """Return whether two groups are equal in all but method, teacher and seeds.

    A baseline key holds the seeds. So where both groups have runs of one seed, their keys decide: equal for a run and
    its baseline, different otherwise. Groups without a common seed (or from summaries without keys) are compared by
    what the key covers, as far as the summary says it. Where the baseline's recipe was selected too, the recipes may
    differ in the selected keys, and the keys, which cover the whole recipe, do not apply.
    """
    if other.shared.tuned != group.shared.tuned:
        return False
    if not group.shared.tuned:
        known = {run.seeds: run.baseline_key for run in group.rows if run.baseline_key}
        common = [run for run in other.rows if run.baseline_key and run.seeds in known]
        if common:
            return all(run.baseline_key == known[run.seeds] for run in common)
    if differs(group, other, TEST_IMAGES) or differs(group, other, KEY.class_names):
        return False
    ours, theirs = settings_of(group, STUDENT), settings_of(other, STUDENT)
    return all(ours[column] == theirs[column] for column in ours if column != CLIP_PROJECTIONS)


def differs(group: RunGroup, other: RunGroup, key: str) -> bool:
    """Return whether two groups record different values; a value that one of them lacks is compatible."""
    ours, theirs = group.shared.get(key), other.shared.get(key)
    return ours is not None and theirs is not None and ours != theirs


def settings_of(group: RunGroup, wanted: Sequence[str]) -> dict[str, Any]:
    """Return the settings that a group shares with its baseline, by column."""
    selected = group.shared.tuned
    return {column: group.shared[column] for column in columns_of(group.runs.columns, wanted) if column not in selected}


def baseline_runs(group: RunGroup, baseline: RunGroup) -> RunGroup:
    """Return the baseline runs to compare with: after a selection, those with the seeds that report, if there are any.

    A baseline may have more runs, as the teachers of the study or from other studies.
    """
    final = baseline.runs[baseline.runs.is_final]
    return RunGroup(final, baseline.setting) if group.shared.is_selected and len(final) else baseline


def runs_by_seeds(group: RunGroup) -> dict[tuple[int | None, int | None], Any]:
    """Return the runs of a group by their seeds, to find the pair of a run."""
    return {run.seeds: run for run in group.rows}

"""The group of a sweep's runs in their trackers."""

import dataclasses
from collections.abc import Sequence

from kdbench.rundir.files import hash_of
from kdbench.sweep.overrides import key_of, override, value_of
from kdbench.sweep.plan import PlannedRun


def name_of_sweep(runs: Sequence[PlannedRun]) -> str:
    """Return the same name for a sweep each time: that of its experiment, with a hash of the keys of its runs."""
    experiments = [value_of(text) for run in runs for text in run.overrides if key_of(text) == "experiment"]
    name = str(experiments[0]).replace("/", "-") if experiments else "sweep"
    return f"{name}-{hash_of({'runs': sorted(run.key for run in runs if run.key)})[:8]}"


def set_group(runs: Sequence[PlannedRun], name: str) -> None:
    """Have the trackers of runs put them into a group, unless their configs name one.

    Args:
        runs: runs of a sweep or study; launchers get their configs or their overrides.
        name: of the group.
    """
    for run in runs:
        missing = (
            [tracker.name for tracker in run.config.trackers if tracker.params.group is None] if run.composed else []
        )
        if not missing:
            continue
        run.overrides += tuple(override(f"tracker.{tracker}.group", name) for tracker in missing)
        run.composed = dataclasses.replace(
            run.config,
            trackers=[
                dataclasses.replace(tracker, params=dataclasses.replace(tracker.params, group=name))
                if tracker.name in missing
                else tracker
                for tracker in run.config.trackers
            ],
        )

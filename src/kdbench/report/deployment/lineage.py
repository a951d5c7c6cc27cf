"""Lineage of a network: from the run that holds it, over compression and fine-tuning, to the run that it started as."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from kdbench.config.derived import COMPRESS, TRAIN
from kdbench.rundir.summary import KEY

Row = Mapping[str, Any]
"""Row of the table of runs: keys of the summary, sections as SECTION.KEY."""
STEPS = f"{KEY.compression}.steps"


def steps_of(run: Row) -> list[dict[str, Any]]:
    """Return how the network of a run was compressed, in order; what has no name is left out."""
    steps = run.get(STEPS)
    return [step for step in steps if isinstance(step, dict) and step.get("name")] if isinstance(steps, list) else []


def is_other_parent(run: Row, parent: Row) -> bool:
    """Return whether the run with the key of the parent now has other weights than those that the run started from."""
    used, now = run.get(KEY.parent_weights_sha256), parent.get(KEY.weights_sha256)
    return None not in (used, now) and used != now


def lineage_of(run: Row, by_key: Mapping[str, Row]) -> list[Row]:
    """Return a run and its ancestors, as far as they are known and have the weights that were used.

    Args:
        run: run of any kind.
        by_key: runs of the report by their keys.
    """
    found = [run]
    while True:
        parent = by_key.get(found[-1].get(KEY.parent_key) or "")
        if parent is None or is_other_parent(found[-1], parent) or any(parent is known for known in found):
            return found
        found.append(parent)


def start_of(lineage: Sequence[Row]) -> Row | None:
    """Return the trained run that a lineage begins with; None where it is not known."""
    last = lineage[-1]
    return last if last[KEY.kind] == TRAIN and not last.get(KEY.parent_key) and not steps_of(last) else None


def before_last_step(lineage: Sequence[Row]) -> Row | None:
    """Return the run whose network the last compression began with; None where it is not known or there was none."""
    count = len(steps_of(lineage[0]))
    for run, parent in pairwise(lineage):
        if run[KEY.kind] == COMPRESS and len(steps_of(run)) == count:
            return parent
    return None


def fine_tunings(lineage: Sequence[Row]) -> list[tuple[int, Row]]:
    """Return the trainings that continued from another run, each after the number of steps before it; oldest first."""
    found = [(len(steps_of(run)), run) for run in lineage if run[KEY.kind] == TRAIN and run.get(KEY.parent_key)]
    return found[::-1]

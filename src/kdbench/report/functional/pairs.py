"""Distances between runs and teachers, from saved logits, each pair once."""

from collections.abc import Iterable
from pathlib import Path

from kdbench.metrics import DISTANCES, Distribution
from kdbench.report.predictions import logits_in, predictions_in, same_images

Pair = tuple[Path, Path]
"""Directories of a run and of a teacher."""


def measure_pairs(pairs: Iterable[Pair]) -> dict[Pair, dict[str, float] | None]:
    """Return every distance of each run to each of its teachers; None where logits of the same images are not there.

    Runs are read one after the other, and teachers are kept: there are few of them.
    """
    wanted: dict[Path, dict[Path, None]] = {}
    for run, teacher in pairs:
        wanted.setdefault(run, {})[teacher] = None
    teachers: dict[Path, Distribution] = {}
    found: dict[Pair, dict[str, float] | None] = {}
    for run, of_run in wanted.items():
        ours: Distribution | None = None
        for teacher in of_run:
            if not are_comparable(run, teacher):
                found[run, teacher] = None
                continue
            ours = ours or Distribution(logits_in(run))
            if teacher not in teachers:
                teachers[teacher] = Distribution(logits_in(teacher))
            found[run, teacher] = {name: distance(ours, teachers[teacher]) for name, distance in DISTANCES.items()}
    return found


def are_comparable(run: Path, teacher: Path) -> bool:
    """Return whether both have logits of the same test images."""
    ours, theirs = predictions_in(run), predictions_in(teacher)
    return ours is not None and theirs is not None and same_images(ours, theirs)

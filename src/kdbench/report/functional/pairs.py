"""Distances between runs and teachers, from saved logits, each pair once."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdbench.metrics import DISTANCES, Distribution
from kdbench.report.predictions import known_pair, logits_in

Pair = tuple[Path, Path]
"""Directories of a run and of a teacher."""


def measure_pairs(pairs: Iterable[Pair]) -> dict[Pair, NDArray[np.float64] | None]:
    """Return every distance of each run to each of its teachers, in the order of `DISTANCES`.

    None stands for pairs without logits of the same images. One teacher is in memory at a time.
    """
    wanted: dict[Path, dict[Path, None]] = {}
    for run, teacher in pairs:
        wanted.setdefault(teacher, {})[run] = None
    found: dict[Pair, NDArray[np.float64] | None] = {}
    for teacher, runs in wanted.items():
        able = [run for run in runs if known_pair(run, teacher)]
        found |= {(run, teacher): None for run in runs}
        theirs = Distribution(logits_in(teacher)) if able else None
        for run in able:
            assert theirs is not None
            ours = Distribution(logits_in(run))
            found[run, teacher] = np.array([distance(ours, theirs) for distance in DISTANCES.values()])
    return found

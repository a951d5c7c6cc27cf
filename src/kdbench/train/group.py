"""Learners that train in lockstep: which of them take the next step, and whose time was spent."""

import time
from collections.abc import Sequence

from kdbench.train.learner import Learner


def active(learners: Sequence[Learner], epochs: int) -> list[Learner]:
    """Return the learners that have not failed and have epochs left to train."""
    return [learner for learner in learners if not learner.failed and learner.epoch < epochs]


def learners_at(learners: Sequence[Learner], epoch: int, step: int | None = None) -> list[Learner]:
    """Return the learners that have not failed and stand in an epoch, at a step of it if one is given.

    A learner that a resume has brought further waits for the others.
    """
    here = [learner for learner in learners if not learner.failed and learner.epoch == epoch]
    return [learner for learner in here if step in (None, learner.step_of_epoch)]


class Clock:
    """Time spent, distributed over the learners that spent it by their share of the work."""

    def __init__(self) -> None:
        self.mark = time.perf_counter()

    def charge(self, learners: Sequence[Learner]) -> None:
        """Add the time since the last call to the learners' seconds."""
        now, total = time.perf_counter(), sum(learner.work for learner in learners)
        for learner in learners:
            share = learner.work / total if total else 1 / len(learners)  # a student may have no multiplications
            learner.seconds += (now - self.mark) * share
        self.mark = now

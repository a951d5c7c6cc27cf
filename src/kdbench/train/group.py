"""Learners that train in lockstep: who is where, whose fault what is, and whose time was spent."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from kdbench.limits import is_out_of_memory
from kdbench.train.learner import Learner


class Pupil:
    """A learner in a group, and what the loop tells of it. A run makes something of that; a benchmark does not.

    Args:
        learner: In training.
        weight: Its share of the group's work, in any unit.
    """

    def __init__(self, learner: Learner, weight: float = 1.0) -> None:
        self.learner = learner
        self.weight = weight

    def speaking(self) -> AbstractContextManager[object]:
        """What is logged meanwhile is about this one."""
        return nullcontext()

    def between_steps(self) -> None:
        """A step is done."""

    def epoch_done(self, row: Mapping[str, float]) -> None:
        """So is an epoch, and this is its record."""

    def failed(self, error: Exception) -> None:
        """It cannot go on; the others do."""
        raise error


class Group:
    """Pupils that take the same batches at the same time. One whom a resume has brought further waits for the others.

    Args:
        pupils: At least one; equally many epochs lie before them in all.
    """

    def __init__(self, pupils: Sequence[Pupil]) -> None:
        self.pupils = list(pupils)
        self.mark = time.perf_counter()

    @property
    def position(self) -> tuple[int, int]:
        """Of the one who is least far: epochs, and steps."""
        return min(pupil.learner.position for pupil in self.pupils)

    def at(self, epoch: int, step: int | None = None) -> list[Pupil]:
        """Those who stand in this epoch, and at this step of it."""
        here = [pupil for pupil in self.pupils if pupil.learner.epoch == epoch]
        return [pupil for pupil in here if step in (None, pupil.learner.step_of_epoch)]

    @contextmanager
    def apart(self, pupil: Pupil) -> Iterator[None]:
        """What goes wrong meanwhile ends this one alone, but for a lack of memory, which is everybody's."""
        try:
            with pupil.speaking():
                yield
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.pupils.remove(pupil)
            pupil.failed(error)

    def begin_clock(self) -> None:
        """What was spent until now is nobody's."""
        self.mark = time.perf_counter()

    def share_time(self, pupils: Sequence[Pupil]) -> None:
        """What was spent until now is these pupils', each one's by its weight."""
        now, total = time.perf_counter(), sum(pupil.weight for pupil in pupils)
        for pupil in pupils:
            pupil.learner.seconds += (now - self.mark) * pupil.weight / total
        self.mark = now

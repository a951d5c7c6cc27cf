"""Training without end, on whole batches, by a learner of a run or by the reference trainer."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

from kdbench.data import Batch, Batches
from kdbench.data.batches import BatchPlan
from kdbench.train.graphs import steps_for
from kdbench.train.learner import Learner
from kdbench.train.loop import train_epoch


class Training:
    """Learners in training, one alone or several in lockstep, as in an epoch of a run that does not end.

    Args:
        learners: fresh learners of one group.
        batches: training batches.
    """

    def __init__(self, learners: Sequence[Learner], batches: Batches) -> None:
        self.learners = learners
        for learner in learners:
            learner.begin_epoch()
        self.steps = steps_for(learners, batches)
        self.plan = whole_batches(batches)

    def train(self, steps: int) -> None:
        """Train a number of steps. Waits for a GPU."""
        train_epoch(self.learners, self.steps, itertools.islice(self.plan, steps), *self.learners[0].position)


def train_on(learner: Learner, batches: Iterable[Batch]) -> None:
    """Train a learner by kdbench's step on batches from elsewhere."""
    for batch in batches:
        learner.train_step(batch, learner.teacher(batch))


def whole_batches(batches: Batches) -> Iterator[BatchPlan]:
    """Yield the plans of batches without end, and without the smaller ones at the end of an epoch."""
    for epoch in itertools.count():
        yield from (plan for plan in batches.plan(epoch) if len(plan.rows) == batches.batch_size)

"""The training loop: a batch, the teachers' outputs, then one step per learner."""

from collections.abc import Iterable, Sequence

from kdbench.data.batches import Batches, BatchPlan
from kdbench.system.device import synchronize
from kdbench.train.graphs import steps_for
from kdbench.train.group import Clock, active, learners_at
from kdbench.train.learner import Learner
from kdbench.train.progress import TrainingProgress
from kdbench.train.steps import Steps


def fit(learners: Sequence[Learner], batches: Batches, epochs: int, steps: Steps | None = None) -> None:
    """Train learners in lockstep until each has finished its epochs or failed.

    Args:
        learners: at least one; a failed one leaves the group, and the others continue.
        batches: training batches, the same for all learners.
        epochs: number of epochs in total, those before a resume included.
        steps: how a step is executed; None takes what is fastest on the device.

    Raises:
        Interrupted: a stop was requested; every learner stands between two steps.
    """
    steps = steps or steps_for(learners, batches)
    progress = TrainingProgress(learners, epochs, batches)
    try:
        while running := active(learners, epochs):
            epoch, start = min(learner.position for learner in running)
            for learner in learners_at(running, epoch):
                with learner.guard:
                    learner.begin_epoch()
            train_epoch(running, steps, batches.plan(epoch, start), epoch, start, progress)
            for learner in learners_at(running, epoch):
                with learner.guard:
                    progress.show(learner, learner.end_epoch(batches.dataset))
                    learner.checkpointer.end_epoch()
                    learner.after_epoch()
            steps.raise_if_stopped()
    finally:
        progress.close()


def train_epoch(
    learners: Sequence[Learner],
    steps: Steps,
    plans: Iterable[BatchPlan],
    epoch: int,
    start: int = 0,
    progress: TrainingProgress | None = None,
) -> None:
    """Train the steps of an epoch, or the rest of it.

    Args:
        learners: none of them stands before the first step.
        steps: how a step is executed: eagerly or captured.
        plans: plans of the batches.
        epoch: the epoch, counted from 0.
        start: the first step.
        progress: display of the images trained.
    """
    clock = Clock()
    steps.enter_stream()
    try:
        for step, plan in enumerate(plans, start):
            current = learners_at(learners, epoch, step)
            if not current:  # all failed, or a resume has brought them further
                continue
            batch, teacher_outputs = steps.prepare_batch(plan, current)
            for learner in current:
                with learner.guard:
                    steps.train_step(learner, batch, teacher_outputs)
                    learner.checkpointer.maybe_save()
            if progress:
                progress.add(len(plan.rows))
            clock.charge(current)
            steps.raise_if_stopped()
    finally:
        steps.leave_stream()
    synchronize(learners[0].runtime.device)
    clock.charge(learners_at(learners, epoch))

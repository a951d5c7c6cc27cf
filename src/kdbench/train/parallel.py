"""Data-parallel training: several processes train one run as one process does.

Every process prepares the same batches. Teachers and students compute their rows of a batch; the outputs of all rows
are gathered, and every process computes the loss of the whole batch. So every method, also one that compares the
images of a batch or keeps a memory bank, computes what it computes in one process, up to rounding. Gradients are
averaged; the backward pass of the gathering multiplies by the number of processes, so that

    mean over processes (processes * gradient of own rows) = gradient of all rows

and what each process computes in full, such as projections of the method, is its own mean.
"""

from collections.abc import Sequence

from kdbench.config.sections import EXACT
from kdbench.data.batches import Batch, Batches, BatchPlan
from kdbench.errors import RunError
from kdbench.methods.base import TeacherOutput
from kdbench.system import signals
from kdbench.system.world import World
from kdbench.train.learner import Learner
from kdbench.train.parallel_student import ParallelStudent
from kdbench.train.steps import EagerSteps, TeacherOutputs


class ParallelSteps(EagerSteps):
    """Steps that are executed together with other processes.

    Args:
        batches: training batches, the same in every process.
        world: the processes.
        learners: all learners of the group, in the same order in every process.
    """

    def __init__(self, batches: Batches, world: World, learners: Sequence[Learner]) -> None:
        super().__init__(batches)
        self.world = world
        self.learners = learners

    def prepare_batch(self, plan: BatchPlan, learners: Sequence[Learner]) -> tuple[Batch, TeacherOutputs]:
        """Return a batch, and the teachers' outputs for it, of which each process computes its rows."""
        with self.world.collective():
            batch = self.batches.batch(plan)
            count = len(batch.labels)
            own = batch.part(self.world.rows(count))

            def whole(output: TeacherOutput | None) -> TeacherOutput | None:
                if output is None:
                    return None
                features = {stage: self.world.gather(values, count) for stage, values in output.features.items()}
                logits = output.logits
                return TeacherOutput(None if logits is None else self.world.gather(logits, count), features)

            teachers = dict.fromkeys(learner.teacher for learner in learners)
            return batch, {teacher: whole(teacher(own)) for teacher in teachers}

    def train_step(self, learner: Learner, batch: Batch, teacher_outputs: TeacherOutputs) -> None:
        """Train one learner on a batch. Errors: see `World.collective`."""
        with self.world.collective():
            super().train_step(learner, batch, teacher_outputs)

    def raise_if_stopped(self) -> None:
        """Leave in the same step as the other processes. Errors: see `stop_and_fail_together`."""
        stop_and_fail_together(self.learners, self.world)


def stop_and_fail_together(learners: Sequence[Learner], world: World) -> None:
    """Leave, or fail runs, in every process: for a stop request at any of them, and for runs that failed in any.

    A stop request that arrives in the meantime is one for the next call: the other processes do not know of it.

    Args:
        learners: learners of the group, in the same order in every process.
        world: the processes.

    Raises:
        Interrupted: a process has received a stop request.
        ProcessEndedError: another process has ended.
    """
    stop, *failed = world.largest([signals.requested() or 0, *(int(learner.failed) for learner in learners)])
    for learner, elsewhere in zip(learners, failed, strict=True):
        if elsewhere and not learner.failed:
            with learner.guard:
                raise RunError("the run failed in another of its processes; its lines are above", code="process_ended")
    if stop:
        if not signals.requested():
            signals.receive(stop)
        signals.raise_if_requested()


def parallelise(learners: Sequence[Learner], world: World) -> None:
    """Have learners train over several processes, each of which has the same learners.

    Args:
        learners: learners in the same state in every process.
        world: the processes.
    """
    for learner in learners:
        exact = learner.runtime.parallel == EXACT
        learner.forward = learner.parallel = ParallelStudent(learner.student, world, exact, learner.runtime.device)

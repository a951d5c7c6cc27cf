"""One of several processes, with the others pretended: stops, failures, gradients and bars."""

import signal
import sys

import pytest
import torch
from torch import nn
from torch.distributed import HashStore

from kdbench.data import Batches
from kdbench.runner.build import build_learner, build_parts
from kdbench.runner.parallel import check_exact
from kdbench.runner.run import resolve_run
from kdbench.system import signals, world
from kdbench.system.signals import Interrupted
from kdbench.system.world import World
from kdbench.train import learner as learner_module
from kdbench.train.learner import Learner
from kdbench.train.parallel import parallelise, stop_and_fail_together
from kdbench.train.parallel_student import ParallelStudent
from kdbench.train.progress import shows_bars


class Interrupting(World):
    """Several processes, one of which receives a signal; this one receives SIGUSR1 while it waits for the others.

    Args:
        elsewhere: the signal of the other process in each exchange.
    """

    def __init__(self, *elsewhere: int) -> None:
        super().__init__(1, 2)
        self.elsewhere = list(elsewhere)

    def largest(self, numbers):
        if len(self.elsewhere) > 1:
            signal.raise_signal(signal.SIGUSR1)
        return [max(numbers[0], self.elsewhere.pop(0)), *numbers[1:]]


def test_a_signal_that_arrives_during_the_exchange_waits_for_the_next_one():
    world = Interrupting(0, 0)
    with signals.handled(), signals.deferred(60):
        stop_and_fail_together([], world)  # the other processes train the next step
        assert signals.requested() == signal.SIGUSR1
        with pytest.raises(Interrupted, match="SIGUSR1"):
            stop_and_fail_together([], world)


def test_a_stop_request_of_another_process_stops_this_one():
    with signals.handled(), signals.deferred(60), pytest.raises(Interrupted, match="SIGTERM"):
        stop_and_fail_together([], Interrupting(signal.SIGTERM))


class SkippedElsewhere(World):
    """Two processes, of which the other has a gradient of each parameter, of zero."""

    def largest(self, numbers):
        return [1] * len(numbers)

    def add(self, tensor):
        return tensor


def test_with_local_a_layer_that_this_process_skipped_has_the_gradient_of_the_others():
    used, skipped = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    used.grad = torch.full((2,), 4.0)
    student = ParallelStudent(nn.Linear(1, 1), SkippedElsewhere(0, 2), False, "cpu")
    student.average_gradients(torch.optim.SGD([used, skipped], lr=0.1))
    assert used.grad.tolist() == [2.0, 2.0]
    assert skipped.grad.tolist() == [0.0, 0.0, 0.0]


@pytest.fixture
def learner_of_two(small, monkeypatch) -> tuple[Learner, Batches, World]:
    """A learner of the second of two processes, of which a failing one waits a moment for the other."""
    monkeypatch.setattr(world, "FAILURE_SECONDS", 0.05)
    monkeypatch.setattr(world, "_world", World(1, 2, store=HashStore()))
    config, _ = resolve_run(small("teacher=none", "method=ce"))
    parts = build_parts(config)
    learner = build_learner(config, parts)
    parallelise([learner], world.world())
    return learner, parts.batches, world.world()


def fail(*_):
    raise ValueError("a bug of one process")


def test_an_error_of_one_process_in_the_validation_ends_the_others(learner_of_two, monkeypatch):
    learner, batches, process = learner_of_two
    monkeypatch.setattr(learner_module, "predict", fail)
    monkeypatch.setattr(learner.sums, "means", lambda epoch: {})
    with pytest.raises(ValueError, match="a bug"):
        learner.end_epoch(batches.dataset)
    assert process.problem == "process 1 of 2 ended: a bug of one process"


def test_an_error_of_one_process_in_the_check_of_its_student_ends_the_others(learner_of_two, monkeypatch):
    learner, batches, process = learner_of_two
    monkeypatch.setattr(learner.parallel, "check_exact", fail)
    with pytest.raises(ValueError, match="a bug"):
        check_exact([learner], batches.dataset)
    assert process.problem == "process 1 of 2 ended: a bug of one process"


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_process_shows_bars(monkeypatch, rank):
    monkeypatch.setattr(world, "_world", World(rank, 2))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    assert shows_bars() == (rank == 0)

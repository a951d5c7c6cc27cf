"""A stop while the test set is evaluated: the next call gives the results of an undisturbed run."""

import signal
from collections.abc import Callable, Sequence

import pytest
import torch

from kdbench.config import RunConfig
from kdbench.data import Batches
from kdbench.runner.run_all import run_all
from kdbench.system import signals
from kdbench.train.learner import Learner
from kdbench.train.loop import fit
from tests.conftest import complete


def stop_between_evaluations(learners: Sequence[Learner], batches: Batches, epochs: int) -> None:
    """Train; request a stop once the last weights are evaluated, before the best ones, here zeros, are."""
    fit(learners, batches, epochs)
    for learner in learners:
        assert learner.best is not None
        zeros = {name: torch.zeros_like(value) for name, value in learner.best["weights"].items()}
        learner.best |= {"epoch": 1, "weights": zeros}
        learner.student.register_forward_hook(lambda *_: signal.raise_signal(signal.SIGTERM))


def test_a_stop_during_the_evaluation_leaves_the_last_weights_in_the_checkpoint(
    small: Callable[..., RunConfig],
) -> None:
    settings = ("method=ce", "recipe.epochs=3", "checkpoint.every_minutes=null")
    undisturbed = complete(small(*settings, f"output_root={small().output_root}/undisturbed")).read_summary()
    with signals.handled(), pytest.raises(signals.Interrupted):
        run_all([small(*settings)], train=stop_between_evaluations)
    resumed = complete(small(*settings)).read_summary()
    assert resumed.test_acc_final == undisturbed.test_acc_final
    assert resumed.test_acc_best == undisturbed.test_acc_best

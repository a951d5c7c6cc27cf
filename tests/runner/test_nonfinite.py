"""Steps whose loss is not finite: the run ends before the optimiser's step, or skips it, as the recipe says."""

import json
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from kdbench.config import RunConfig
from kdbench.errors import RunError
from kdbench.runner.build import build_parts
from kdbench.runner.policy import run_with_retries
from kdbench.runner.run import resolve_run
from kdbench.runner.run_all import Train
from kdbench.train.learner import Learner
from tests.conftest import complete
from tests.loss_terms import Factor, multiply_terms, nan_at
from tests.runner.trainers import with_learners

Small = Callable[..., RunConfig]

pytestmark = pytest.mark.usefixtures("trained_teachers")


def with_kd_times(factor: Factor) -> Train:
    """Return a trainer that multiplies the distillation loss of each step."""

    def change(learners: Sequence[Learner]) -> None:
        for learner in learners:
            multiply_terms(learner, factor, ("kd",))

    return with_learners(change)


@pytest.mark.slow
def test_the_inputs_and_values_of_a_bad_step_are_kept_and_the_run_can_continue(small: Small) -> None:
    config = small("method=logit", "recipe.epochs=3", "checkpoint.every_epochs=1")
    (result,) = run_with_retries([config], train=with_kd_times(nan_at(4)))
    assert isinstance(result.error, RunError)
    assert (result.error.code, result.error.key) == ("not_finite", "recipe.lr")
    resolved, directory = resolve_run(config)
    assert str(directory.nonfinite) in str(result.error)
    step = json.loads(directory.nonfinite.read_text())
    batch = list(build_parts(resolved).batches.epoch(1))[1]
    assert (step["epoch"], step["step"], step["terms"]["kd"]) == (2, 2, "nan")
    assert (step["indices"], step["views"]) == (batch.indices.tolist(), batch.views.tolist())
    assert all(float(norm) > 0 for name, norm in step["weight_norms"].items() if "conv" in name)
    assert directory.checkpoint_metadata()["epoch"] == 1  # before the bad step
    assert not complete(config).nonfinite.exists()


def test_a_run_ends_before_the_optimiser_takes_a_bad_step(small: Small) -> None:
    positions: list[tuple[int, int]] = []

    def count(learners: Sequence[Learner]) -> None:
        for learner in learners:
            learner.optimizer.register_step_post_hook(lambda *_, it=learner: positions.append(it.position))
            multiply_terms(learner, nan_at(2), ("kd",))

    (result,) = run_with_retries([small("method=logit")], train=with_learners(count))
    assert isinstance(result.error, RunError)
    assert result.error.code == "not_finite"
    assert positions == [(0, 0)]


def test_bad_steps_may_be_skipped_and_are_counted(small: Small) -> None:
    config = small("method=logit", "recipe.epochs=3", "recipe.on_nonfinite=skip")
    (result,) = run_with_retries([config], train=with_kd_times(nan_at(2, 3)))
    assert result.directory, result.error
    assert result.directory.read_summary().skipped_steps == 2
    assert np.isfinite(pd.read_csv(result.directory.metrics).to_numpy()).all()
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(result.directory.weights).values())


def test_more_bad_steps_than_the_limit_end_the_run(small: Small) -> None:
    config = small("method=logit", "recipe.epochs=3", "recipe.on_nonfinite=skip", "recipe.nonfinite_limit=1")
    (result,) = run_with_retries([config], train=with_kd_times(nan_at(2, 3)))
    assert isinstance(result.error, RunError)
    assert (result.error.code, result.error.key) == ("not_finite", "recipe.lr")

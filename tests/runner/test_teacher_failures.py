"""A teacher that cannot be trained: its students fail with one error, and nothing is tried in vain."""

from collections.abc import Callable, Sequence

import torch

from kdbench.config import RunConfig
from kdbench.data import Batches
from kdbench.errors import RunError
from kdbench.runner.policy import run_with_retries
from kdbench.train.learner import Learner


def test_a_teacher_without_memory_does_not_halve_the_group_of_its_students(small: Callable[..., RunConfig]) -> None:
    trained = []

    def greedy(learners: Sequence[Learner], batches: Batches, epochs: int) -> None:
        trained.append([learner.title for learner in learners])
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    configs = [small("method=logit", f"method.temperature={temperature}") for temperature in (1, 2, 3)]
    results = run_with_retries(configs, ["a", "b", "c"], train=greedy)
    assert trained == [["resnet20 ce seed 0"]]
    for result in results:
        assert isinstance(result.error, RunError)
        assert (result.error.code, result.error.key) == ("teacher_failed", "teacher")

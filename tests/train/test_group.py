"""Time that is spent together is divided over the learners of a group."""

from types import SimpleNamespace
from typing import Any

import pytest

from kdbench.train.group import Clock


@pytest.mark.parametrize(("work", "shares"), [((3, 1), (0.75, 0.25)), ((0, 0), (0.5, 0.5)), ((0,), (1.0,))])
def test_time_is_shared_by_work_and_equally_where_there_is_none(
    work: tuple[int, ...], shares: tuple[float, ...]
) -> None:
    """A student may have no multiplications to count."""
    learners: list[Any] = [SimpleNamespace(work=amount, seconds=0.0) for amount in work]
    Clock().charge(learners)
    total = sum(learner.seconds for learner in learners)
    assert total > 0
    assert [learner.seconds / total for learner in learners] == pytest.approx(shares)

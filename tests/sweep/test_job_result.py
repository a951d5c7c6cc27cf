"""The result of a launched run as a number, as sweepers of Hydra read it."""

import copy
import math
import pickle

import pytest

from kdbench.rundir.summary import Status
from kdbench.sweep.plan import JobResult

DONE = JobResult(Status.COMPLETE, run="somewhere", scores={"val_acc": 0.75, "seconds": 12.0, "params": 100.0})
BOTH = JobResult(Status.COMPLETE, run="somewhere", scores=DONE.scores, objectives=("val_acc", "seconds"))
FAILED = JobResult(Status.FAILED, error="a reason")


def test_it_is_the_validation_accuracy_of_a_complete_run() -> None:
    assert isinstance(DONE, float)
    assert float(DONE) == DONE + 0.0 == 0.75
    assert -1 * DONE == -0.75
    assert list(DONE) == [0.75]


def test_it_yields_several_objectives_in_their_order() -> None:
    assert [float(value) for value in BOTH] == [0.75, 12.0]
    other = JobResult(Status.COMPLETE, scores=DONE.scores, objectives=("params", "val_acc"))
    assert list(other) == [100.0, 0.75]
    assert float(other) == 100.0


@pytest.mark.parametrize("result", [FAILED, JobResult(Status.PRUNED), JobResult(Status.SKIPPED, error="held")])
def test_without_a_result_it_is_no_number_that_an_optimiser_could_take_for_one(result: JobResult) -> None:
    assert math.isnan(1 * result)
    with pytest.raises(ValueError, match=f"it is {result.status}"):
        float(result)
    with pytest.raises(ValueError, match="no val_acc"):
        [float(value) for value in result]


@pytest.mark.parametrize("result", [DONE, BOTH, FAILED])
def test_it_reaches_other_processes_as_it_is(result: JobResult) -> None:
    for same in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result), copy.copy(result)):
        assert same == result
        assert vars(same) == vars(result)
        assert repr(1.0 * same) == repr(1.0 * result)
        assert hash(same) == hash(result)


def test_results_are_equal_by_what_became_of_the_run_not_by_their_number() -> None:
    assert JobResult(Status.FAILED, error="one") != JobResult(Status.FAILED, error="other")
    assert JobResult(Status.FAILED, error="one") == JobResult(Status.FAILED, error="one")
    assert bool(JobResult(Status.COMPLETE, scores={"val_acc": 0.0}))

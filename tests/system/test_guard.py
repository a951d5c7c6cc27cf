"""The guard of a run: which exceptions fail the run alone, and which end the process."""

import logging
import signal

import pytest

from kdbench.system.guard import Guard
from kdbench.system.logs import ConsoleFormatter
from kdbench.system.signals import Interrupted


@pytest.fixture
def failures():
    return []


@pytest.fixture
def guard(failures):
    return Guard("seed=1: ", on_failure=failures.append)


def test_an_exception_is_handed_over_and_goes_no_further(guard, failures):
    error = ValueError("wrong")
    with guard:
        raise error
    assert failures == [error]
    assert guard.failed


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), MemoryError()])
def test_requested_stops_and_a_lack_of_memory_go_further(guard, failures, error):
    with pytest.raises(type(error)), guard:
        raise error
    assert failures == []
    assert not guard.failed


def test_an_interruption_goes_further(guard, failures):
    with pytest.raises(Interrupted), guard:
        raise Interrupted(signal.SIGTERM)
    assert failures == []


def test_without_a_handler_exceptions_are_raised():
    with pytest.raises(ValueError, match="wrong"), Guard():
        raise ValueError("wrong")


def test_lines_of_the_block_have_the_name_of_the_run(guard):
    record = logging.LogRecord("kdbench", logging.INFO, "", 0, "epoch %d", (1,), None)
    with guard:
        assert ConsoleFormatter().format(record) == "seed=1: epoch 1"
    assert ConsoleFormatter().format(record) == "epoch 1"


def test_blocks_can_be_entered_again_and_nested(guard, failures):
    with guard, guard:
        pass
    with guard:
        raise ValueError
    with guard:
        raise TypeError
    assert [type(error) for error in failures] == [ValueError, TypeError]

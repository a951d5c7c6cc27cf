"""A requested stop outside of the training: the process leaves at once, and the next call completes the run."""

import logging
import signal
from collections.abc import Callable, Iterator

import pytest

from kdbench.config import RunConfig
from kdbench.runner.policy import run_with_retries
from kdbench.runner.run import resolve_run
from kdbench.system.signals import Interrupted, handled
from tests.conftest import complete


class FailingLibrary(logging.Handler):
    """Receives a signal at the first line of a run, and raises another exception while it unwinds."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Interrupted:
            raise ValueError("in a clean-up") from None


@pytest.fixture
def failing_library() -> Iterator[FailingLibrary]:
    package, handler = logging.getLogger("kdbench"), FailingLibrary()
    package.addHandler(handler)
    yield handler
    package.removeHandler(handler)


@pytest.mark.parametrize("names", [(), ("job 1",)])
def test_a_stop_that_a_library_turns_into_another_error_stays_a_stop(
    small: Callable[..., RunConfig], failing_library: FailingLibrary, names: tuple[str, ...]
) -> None:
    config = small("method=ce")
    with handled(), pytest.raises(Interrupted) as stopped:
        run_with_retries([config], names)
    assert stopped.value.exit_code == 75
    assert not resolve_run(config)[1].lock().file.exists()
    logging.getLogger("kdbench").removeHandler(failing_library)
    complete(config)

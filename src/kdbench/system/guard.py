"""The guard of a run: an exception in its block fails this run only."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from kdbench.system import signals
from kdbench.system.logs import RunToken, reset_current_run, set_current_run
from kdbench.system.memory import is_out_of_memory


class Guard:
    """Context in which the code of one run is executed.

    Log lines of the block belong to that run. An exception ends the block, is handed to `on_failure` and goes no
    further; out-of-memory errors propagate, since they concern every run of the process, and so do requested stops.

    Args:
        prefix: text before each line of the run on the console.
        on_failure: what to do with the exception; None raises it.
    """

    def __init__(self, prefix: str = "", on_failure: Callable[[Exception], None] | None = None) -> None:
        self.prefix = prefix
        self.on_failure = on_failure
        self.log: Path | None = None
        """Log file of the run, once it is known."""
        self.failed = False
        self._tokens: list[RunToken] = []

    def __enter__(self) -> None:
        self._tokens.append(set_current_run(self.log, self.prefix))

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> bool:
        try:
            if not isinstance(error, Exception) or is_out_of_memory(error) or self.on_failure is None:
                return False
            if interruption := signals.interruption():
                raise interruption from error
            self.failed = True
            self.on_failure(error)
            return True
        finally:
            reset_current_run(self._tokens.pop())

"""Runs that somebody wants carried out, and what becomes of each."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kdbench.config import RunConfig
from kdbench.limits import is_out_of_memory, told
from kdbench.logs import about
from kdbench.runs import RunDirectory


@dataclass
class Outcome:
    """What became of a run: one of the two is set at the end."""

    directory: RunDirectory | None = None
    """Of the complete run."""
    error: Exception | None = None

    @property
    def ended(self) -> Path | Exception:
        """Where the run is, or why it is not."""
        if self.error:
            return self.error
        assert self.directory is not None
        return self.directory.path


@dataclass(eq=False)
class Asked:
    """A run that is to be carried out."""

    as_parsed: RunConfig
    prefix: str
    """Before every line about it, for the user."""
    outcome: Outcome = field(default_factory=Outcome)
    config: RunConfig = field(init=False)
    """Resolved."""
    directory: RunDirectory = field(init=False)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What goes wrong meanwhile ends this run alone, but for a lack of memory, which is everybody's."""
        try:
            with about(self.directory.log, self.prefix):
                yield
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.failed(error)

    def failed(self, error: Exception) -> None:
        self.outcome.error = told(error, self.config, self.directory.path)

    @property
    def is_done(self) -> bool:
        return self.outcome.directory is not None or self.outcome.error is not None

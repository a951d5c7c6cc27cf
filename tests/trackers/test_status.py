"""How a run ended, as its trackers get it."""

from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest

from kdbench.errors import PrunedError, RunError
from kdbench.runner.run import Run
from kdbench.trackers.mlflow import STATUSES
from kdbench.trackers.wandb import EXIT_CODES


@pytest.mark.parametrize(
    ("error", "complete", "ended"),
    [
        (None, True, ("complete", "")),
        (None, False, ("interrupted", "")),
        (RunError("no", code="x"), False, ("failed", "no")),
        (ValueError(), False, ("failed", "ValueError")),
        (PrunedError("after epoch 2", code="pruned"), False, ("pruned", "")),
    ],
)
def test_pruned_run_has_not_failed(error: Exception | None, complete: bool, ended: tuple[str, str]) -> None:
    run = Run(cast(Any, SimpleNamespace(on_busy="wait")))
    run.error, run.complete, run.tracking = error, complete, Mock()
    run.close()
    run.tracking.end.assert_called_once_with(*ended)
    assert STATUSES[ended[0]] in ("FINISHED", "FAILED", "KILLED")
    assert (EXIT_CODES[ended[0]] == 0) == (ended[0] in ("complete", "pruned"))

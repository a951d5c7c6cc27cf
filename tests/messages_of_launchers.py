"""Calls with a user's mistakes in launchers; tests/test_messages.py holds their messages."""

from collections.abc import Callable
from pathlib import Path

from hydra_plugins.kdbench_launcher import check_extra, whole_number
from kdbench.sweep.worker import enter_folder

LAUNCHER_CASES: list[Callable[[], object]] = [
    lambda: whole_number("max_learners", 0),
    lambda: whole_number("max_learners", "two"),
    lambda: check_extra("ray", "no_such_package", "ray"),
    lambda: enter_folder(str(Path.cwd() / "nowhere")),
]
"""Calls, each of which ends in an error."""

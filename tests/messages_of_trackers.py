"""Calls with a user's mistakes in trackers; tests/test_messages.py holds their messages."""

from collections.abc import Callable
from functools import partial

from kdbench.config import compose
from kdbench.config.parse_tracker import parse_tracker
from kdbench.trackers.sender import check_trackers

BASE = ("student=resnet8", "teacher=none", "method=ce", "data=shapes", "recipe=smoke")
COMMAND_LINES = [
    ["tracker=[mlfow]"], ["tracker=null"], ["tracker=''"], ["tracker=[3]"], ["tracker={a:1}"],
    ["tracker=mlflow,tensorboard"], ["tracker.mlflow.timeout=3"], ["tracker.mlfow.timeout=3"],
    ["tracker=[mlflow]", "tracker.mlflow.timeuot=3"], ["tracker=[mlflow]", "tracker.mlflow.timeout=0"],
    ["tracker=[mlflow]", "tracker.mlflow.tracking_uri=null"], ["tracker=[mlflow]", "tracker.mlflow.experiment=''"],
    ["tracker=[mlflow]", "tracker.wandb.project=x"], ["tracker=[wandb]", "tracker.wandb.mode=on"],
    ["tracker=[wandb]", "tracker.wandb.group=' '"], ["tracker=[tensorboard]", "tracker.tensorboard=3"],
    ["tracker=[tensorboard]", "+tracker.tensorboard.flder=x"], ["~tracker"],
]  # fmt: skip
NODES = {
    "_target_": "tests.trackers.own.Lines",
    "a b": {"_target_": "tests.trackers.own.Lines", "folder": "x"},
    "nothing": {"folder": "x"},
    "away": {"_target_": "no_such_module.Tracker"},
    "other": {"_target_": "collections.Counter"},
    "incomplete": {"_target_": "tests.trackers.own.WithoutMethods"},
    "plain": {"_target_": "tests.trackers.own.WithoutKeys"},
    "lines": {"_target_": "tests.trackers.own.Lines"},
    "absent": {"_target_": "tests.trackers.own.NotInstalled", "folder": "x"},
}
TRACKER_CASES: list[Callable[[], object]] = [
    *(partial(compose, [*BASE, *line]) for line in COMMAND_LINES),
    *(partial(parse_tracker, name, node) for name, node in NODES.items()),
    lambda: check_trackers(compose([*BASE, "tracker=[tensorboard]", "tracker.tensorboard.folder=outputs"])),
    lambda: check_trackers(compose([*BASE, "tracker=[mlflow]", "tracker.mlflow.tracking_uri='htp://nowhere'"])),
    lambda: check_trackers(compose([*BASE, "tracker=[mlflow]", "tracker.mlflow.tracking_uri=localhost:5000"])),
]
"""Calls, each of which ends in an error."""

"""Numeric settings: what an unfinished run must keep when it is resumed, decided here and nowhere else.

They are no part of a run's key, since they change its numbers by rounding at most; within one run even that is not
allowed, so the checkpoint records them.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdbench.config import RunConfig
from kdbench.errors import RunError, SettingsChangedError
from kdbench.rundir.directory import RunDirectory

METADATA = "settings"
"""Key of the checkpoint's metadata that holds them."""


@dataclass(frozen=True)
class NumericSettings:
    """The numeric settings of a run, as its checkpoint records them."""

    threads: int
    channels_last: bool
    profile: str
    compile: bool
    cache: str | None
    """Where the teacher's logits come from: on (logit cache), off (live teacher), or None without a teacher."""
    teacher_weights_sha256: str | None
    train_data_sha256: str


ADOPTED = ("threads", "channels_last", "profile", "compile")
"""Settings of `runtime` that a resumed run takes from its checkpoint; so is `cache`, once the teacher is resolved."""


def recorded_settings(directory: RunDirectory) -> Mapping[str, Any]:
    """Return the settings that an unfinished run recorded; empty for a run that has no checkpoint."""
    recorded = directory.checkpoint_metadata().get(METADATA, {})
    return recorded if isinstance(recorded, dict) else {}


def adopt_settings(config: RunConfig, directory: RunDirectory) -> RunConfig:
    """Return the config with the runtime settings that its unfinished run recorded."""
    recorded = recorded_settings(directory)
    adopted = {name: recorded[name] for name in ADOPTED if name in recorded}
    return dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, **adopted))


def check_settings(settings: NumericSettings, directory: RunDirectory) -> None:
    """Check that an unfinished run is resumed with the settings that it recorded.

    Raises:
        SettingsChangedError: another process started the run with other settings since it was resolved.
        RunError: the teacher or the data changed since the run started, or another version recorded the settings.
    """
    if not directory.checkpoint_metadata():
        return
    here, there = dataclasses.asdict(settings), recorded_settings(directory)
    if here.keys() != there.keys():
        raise RunError(
            f"{directory.path}: the unfinished run was started by another version, with other numeric settings; delete "
            "the folder to start again",
            code="damaged",
            key="last.ckpt",
        )
    changed = [name for name, value in there.items() if here[name] != value]
    if not changed:
        return
    said = "; ".join(f"{name} was {there[name]}, is {here[name]}" for name in changed)
    if set(changed) <= {*ADOPTED, "cache"}:
        raise SettingsChangedError(
            f"{directory.path}: another process started this run with other settings ({said}); rerun the same command",
            code="settings_changed",
            key="runtime",
        )
    teacher_changed = "teacher_weights_sha256" in changed
    raise RunError(
        f"numeric settings changed since this run started: {said}; restore them, or delete {directory.path} to start "
        "again",
        code="teacher_changed" if teacher_changed else "data_changed",
        key="teacher" if teacher_changed else "data",
    )

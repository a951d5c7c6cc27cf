"""TensorBoard: event files beside the runs, a folder per sweep. Needs the package tensorboard, and no torch."""

import glob
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.config.paths import is_path
from kdbench.config.schema import added, optional, setting
from kdbench.config.sections import FOLDER
from kdbench.errors import ConfigError
from kdbench.trackers.base import TrackedRun, Tracker


class TensorBoard(Tracker):
    """Event files in FOLDER/GROUP/RUN: scalars per epoch, and the settings for the page HPARAMS.

    The files are written anew from metrics.csv whenever a process starts or resumes the run, so that each epoch is in
    them once. A run that is in the folder already stays in the group that it was written to first. Only event files
    are removed, and a folder that has something to do with run directories is refused.
    """

    package = extra = "tensorboard"

    @dataclass
    class Config(Tracker.Config):
        """The keys of conf/tracker/tensorboard.yaml."""

        folder: str | None = added(optional(setting(is_path, FOLDER, identity=False)), None)

    @classmethod
    def check(cls, config: Any, name: str, output_roots: Sequence[Path]) -> None:
        if config.folder is None:
            return
        folder = Path(config.folder).expanduser().resolve()
        for root in output_roots:
            runs = (root.expanduser() / "runs").resolve()
            if folder == runs or folder in runs.parents or runs in folder.parents:
                raise ConfigError(
                    f"tracker.{name}.folder is {config.folder}, and the run directories are in {runs}; give a folder "
                    "that neither contains it nor lies in it, such as outputs/tensorboard",
                    code="out_of_range",
                    key=f"tracker.{name}.folder",
                )

    def start(self, run: TrackedRun) -> Collection[int]:
        from tensorboard.plugins.hparams import summary_v2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = self.folder_of(run)
        folder.mkdir(parents=True, exist_ok=True)
        remove_events(folder)
        self.run = run
        self.writer: Any = EventFileWriter(str(folder), flush_secs=5)
        settings: dict[str, Any] = dict(run.settings())
        self.add(summary_v2.hparams_pb(settings, trial_id=run.key, start_time_secs=run.started))
        return ()

    def folder_of(self, run: TrackedRun) -> Path:
        """Return the folder of a run: where it is, or else where it will be."""
        base = Path(self.config.folder).expanduser() if self.config.folder else run.output_root / "tensorboard"
        parts = [part for part in (run.group or "").split("/") if part not in ("", ".", "..")]
        own = base.joinpath(*parts, run.name)
        # A study's group is in a folder of the study.
        places = [place for depth in ("", "*/", "*/*/") for place in base.glob(depth + glob.escape(run.name))]
        return next((place for place in sorted(places) if place.is_dir() and not place.is_symlink()), own)

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        self.add_scalars(epoch, values)
        self.writer.flush()

    def finish(self, status: str, summary: Mapping[str, float], error: str) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        self.add_scalars(len(self.run.rows()), summary)
        # There is none for a run that was interrupted or pruned.
        statuses = {"complete": api_pb2.STATUS_SUCCESS, "failed": api_pb2.STATUS_FAILURE}
        end = plugin_data_pb2.SessionEndInfo(status=statuses.get(status, api_pb2.STATUS_UNKNOWN))
        end.end_time_secs = time.time()
        data = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end))
        tag, tensor = metadata.SESSION_END_INFO_TAG, metadata.NULL_TENSOR
        self.add(Summary(value=[Summary.Value(tag=tag, metadata=data, tensor=tensor)]))
        self.writer.close()

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers at a step."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self.add(Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]), step)

    def add(self, summary: Any, step: int = 0) -> None:
        """Write a summary of TensorBoard's at a step."""
        from tensorboard.compat.proto.event_pb2 import Event

        self.writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))


def remove_events(folder: Path) -> None:
    """Remove the event files of a folder, and nothing else."""
    for file in folder.glob("events.out.tfevents*"):
        file.unlink()

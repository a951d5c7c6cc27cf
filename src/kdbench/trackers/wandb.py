"""Weights & Biases: offline files, or a run online. Needs the package wandb."""

import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.config.paths import is_path
from kdbench.config.schema import added, one_of, optional, setting
from kdbench.config.sections import FOLDER
from kdbench.trackers.base import TrackedRun, Tracker

EXIT_CODES = {"complete": 0, "failed": 1, "interrupted": 130, "pruned": 0}


class WeightsAndBiases(Tracker):
    """Run of wandb whose id is the run key.

    Offline, the files of the run are written anew from metrics.csv whenever a process starts or resumes it, and the
    older ones are removed: one folder has the whole run, each epoch once, and `wandb sync` sends that.
    """

    package = extra = "wandb"

    @dataclass
    class Config(Tracker.Config):
        """The keys of conf/tracker/wandb.yaml."""

        project: str = setting(lambda text: text.strip() != "", "a name", identity=False)
        entity: str | None = added(optional(setting(lambda text: text.strip() != "", "a name", identity=False)), None)
        mode: str = added(one_of("offline", "online", identity=False), "offline")
        folder: str | None = added(optional(setting(is_path, FOLDER, identity=False)), None)

    def start(self, run: TrackedRun) -> Collection[int]:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing is sent that the user did not ask for
        import wandb

        config = self.config
        base = Path(config.folder).expanduser() if config.folder else run.output_root
        base.mkdir(parents=True, exist_ok=True)
        older = list((base / "wandb").glob(f"offline-run-*-{run.key}")) if config.mode == "offline" else []
        self.run: Any = wandb.init(
            mode=config.mode,
            project=config.project,
            entity=config.entity,
            dir=str(base),
            id=run.key,
            name=run.name,
            group=run.group,
            notes=run.title,
            config=run.settings(),
            resume="allow" if config.mode == "online" else None,
            reinit="create_new",  # several runs at a time in one process
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True,
                x_disable_machine_info=True, x_disable_meta=True,
            ),
        )  # fmt: skip
        for folder in older:
            if folder != Path(self.run.dir).parent:
                shutil.rmtree(folder)
        return range(1, self.run.step) if config.mode == "online" else ()

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=epoch)

    def finish(self, status: str, summary: Mapping[str, float], error: str) -> None:
        self.run.summary.update({**summary, "status": status, "error": error})
        self.run.finish(exit_code=EXIT_CODES[status])

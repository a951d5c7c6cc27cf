"""The sweeper of kdbench: Hydra's basic one, but a job that cannot run does not keep the others from running.

Hydra imports every module of `hydra_plugins` at every start, so nothing heavy is imported at the top.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus

from hydra_plugins.kdbench_lockstep import LockstepLauncher, without_hydra


@dataclass
class KdbenchSweeperConf:
    _target_: str = "hydra_plugins.kdbench_sweeper.KdbenchSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="kdbench", node=KdbenchSweeperConf, provider="kdbench")


class KdbenchSweeper(BasicSweeper):
    """Composes and checks every job first, launches those that can run, and keeps one record of the sweep."""

    def sweep(self, arguments: list[str]) -> Any:
        from kdbench import lockstep
        from kdbench.compose import explained
        from kdbench.config import RunConfig, parse
        from kdbench.sweep import Job, Sweep, singly

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        config, loader, launcher = self.config, self.hydra_context.config_loader, self.launcher
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        batches = self.split_arguments(overrides, self.max_batch_size)
        most = launcher.max_learners if isinstance(launcher, LockstepLauncher) else 0
        returns: list[JobReturn] = []

        def compose(job: tuple[str, ...]) -> RunConfig:
            try:
                composed = loader.load_sweep_config(config, list(job))
            except Exception as error:  # Hydra's own and what it trips over
                raise explained(error, job) from None
            return parse(without_hydra(composed), composed.hydra.runtime.choices)

        def launch(jobs: Sequence[Job], first: int) -> Sequence[Mapping[str, Any] | None]:
            if isinstance(launcher, LockstepLauncher):  # they are composed and parsed already
                return lockstep.launch_jobs(jobs, first)
            launched = launcher.launch([list(job.overrides) for job in jobs], initial_job_idx=first)
            returns.extend(launched)
            return [result_of(job) for job in launched]

        def together(jobs: Sequence[Job]) -> list[list[Job]]:
            if isinstance(launcher, LockstepLauncher):
                return lockstep.split(jobs, most)
            if isinstance(launcher, BasicLauncher):  # takes them one after the other: singly, the record is up to date
                return singly(jobs)
            size = self.max_batch_size or max(1, len(jobs))
            return [list(jobs[start : start + size]) for start in range(0, len(jobs), size)]

        report = None if config.report is None else str(config.report)
        jobs = [tuple(job) for batch in batches for job in batch]
        Sweep(jobs, compose, Path(str(config.output_root)), report).carry_out(
            launch, together, lockstep=isinstance(launcher, LockstepLauncher)
        )
        return returns


def result_of(job: JobReturn) -> Mapping[str, Any] | None:
    """What a launched job returned, or None where its process died."""
    if job.status == JobStatus.COMPLETED and isinstance(job.return_value, dict):
        return job.return_value
    return None

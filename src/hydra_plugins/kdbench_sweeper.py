"""The sweeper of kdbench: as Hydra's basic one, but a run that is refused does not keep the others from running.

Hydra imports every module of `hydra_plugins` at every start, so nothing heavy is imported at the top.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from kdbench.sweep.launcher import GroupLauncher

if TYPE_CHECKING:
    from kdbench.config import RunConfig
    from kdbench.sweep.plan import JobResult, PlannedRun


@dataclass
class KdbenchSweeperConf:
    _target_: str = "hydra_plugins.kdbench_sweeper.KdbenchSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="kdbench", node=KdbenchSweeperConf, provider="kdbench")


class KdbenchSweeper(BasicSweeper):
    """Sweeper that plans every run first, launches those that can run, and keeps one record of the sweep."""

    def sweep(self, arguments: list[str]) -> Any:
        from kdbench.config.composition import with_networks_of_pair
        from kdbench.sweep.execute import execute, in_turn
        from kdbench.sweep.overrides import expand
        from kdbench.sweep.plan import check_devices, check_keys, check_trackers, plan_run
        from kdbench.sweep.tracking import name_of_sweep, set_group

        assert self.hydra_context is not None
        launcher, loader = self.launcher, self.hydra_context.config_loader
        own = launcher if isinstance(launcher, GroupLauncher) else None
        returns: list[JobReturn] = []
        jobs = [
            tuple(with_networks_of_pair(job, loader)) for job in expand([*self._parse_config(), *arguments], loader)
        ]
        runs = [plan_run(job, partial(self.compose, number), number) for number, job in enumerate(jobs)]
        check_keys(runs)
        check_devices(runs)
        check_trackers(runs)
        set_group(runs, name_of_sweep(runs))
        if own:
            own.check(runs)
        execute(
            runs,
            Path(next((run.config.output_root for run in runs if run.composed), ".")),  # nothing is written without one
            own.launch_groups if own else in_turn(partial(self.launch, returns)),
            own.group if own else self.batches,
            lockstep=own is not None,
            show=partial(show_runs, report_of(runs), runs),
        )
        return returns

    def compose(self, number: int, overrides: tuple[str, ...]) -> "RunConfig":
        """Return the config of one run. Errors: see `kdbench.config.compose`.

        Args:
            number: place of the run within the sweep, counted from 0.
            overrides: of the run.
        """
        from kdbench.config.composition import parse_composed
        from kdbench.config.composition_errors import composition_error

        assert self.config is not None
        assert self.hydra_context is not None
        try:
            composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        except Exception as error:  # Hydra's own errors, and what it stumbles over
            raise composition_error(error, overrides) from None
        self.check_options(composed.hydra)
        return parse_composed(composed, number)

    def check_options(self, of_run: DictConfig) -> None:
        """Check that the options of one run, such as an experiment, change nothing of the sweep that they are part of.

        Raises:
            ConfigError: they would be ignored.
        """
        from kdbench.errors import ConfigError

        assert self.config is not None
        of_sweep = self.config.hydra
        names = [hydra.runtime.choices.get("hydra/launcher") for hydra in (of_run, of_sweep)]
        if of_run.sweeper != of_sweep.sweeper or names[0] != names[1]:
            raise ConfigError(
                f"experiment={of_run.runtime.choices.get('experiment')} is a sweep or chooses a launcher, and cannot "
                "be one of several in a sweep; give it a command of its own",
                code="usage",
                key="experiment",
            )

    def launch(self, returns: list[JobReturn], runs: Sequence["PlannedRun"], first: int) -> list["JobResult | None"]:
        """Execute runs with the launcher that the user chose, and collect what it returns."""
        assert self.launcher is not None
        # Numbered by their place in the sweep, as they were composed, not by their place among those not refused.
        launched = self.launcher.launch([list(run.overrides) for run in runs], initial_job_idx=runs[0].number)
        returns.extend(launched)
        return [result_of(job) for job in launched]

    def batches(self, runs: Sequence["PlannedRun"]) -> list[list["PlannedRun"]]:
        """Return what the launcher gets at once; Hydra's own gets runs singly, which keeps the record up to date."""
        size = 1 if isinstance(self.launcher, BasicLauncher) else max(1, self.max_batch_size or len(runs))
        batches: list[list[PlannedRun]] = []
        for run in runs:
            if batches and len(batches[-1]) < size and batches[-1][-1].number + 1 == run.number:
                batches[-1].append(run)
            else:
                batches.append([run])
        return batches


def result_of(job: JobReturn) -> "JobResult | None":
    """Return the result of a launched run, or None where its process died."""
    from kdbench.sweep.plan import JobResult

    if isinstance(job._return_value, BrokenPipeError):
        raise job._return_value  # standard output is closed; the run did not fail
    is_result = job.status == JobStatus.COMPLETED and isinstance(job.return_value, JobResult)
    return job.return_value if is_result else None


def report_of(runs: Sequence["PlannedRun"]) -> str | None:
    """Return the folder for the report of a sweep, or None for no report.

    Raises:
        ConfigError: it cannot be written, or the runs name several.
    """
    from kdbench.errors import ConfigError
    from kdbench.rundir.files import check_writable

    folders = list(dict.fromkeys(run.config.report for run in runs if run.composed))
    if len(folders) > 1:
        one, other = (folder or "null" for folder in folders[:2])
        raise ConfigError(
            f"report has several values, {one} and {other}; a sweep writes one report of all its runs: give one folder",
            code="several_options",
            key="report",
        )
    if folders and folders[0] is not None:
        check_writable(Path(folders[0]), "report")
        return folders[0]
    return None


def show_runs(report_folder: str | None, runs: Sequence["PlannedRun"], paths: Sequence[Path]) -> None:
    """Print the table of a sweep's complete runs, and write a report of all if the config names a folder for it.

    Args:
        report_folder: folder of the report; None for none.
        runs: runs of the sweep; the report names those that failed.
        paths: directories of the complete ones.
    """
    from kdbench.report.table import runs_table

    print(f"\n{runs_table(paths)}")
    if report_folder:
        from kdbench.report.command import report_runs  # late: most sweeps end without one
        from kdbench.runner.images import read_test_images

        directories = [run.directory for run in runs if run.composed]
        failed = [directory.path for directory in directories if directory.has_failed()]
        report_runs([*paths, *failed], report_folder, read_test_images)

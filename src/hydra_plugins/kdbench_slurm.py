"""The launcher of `kdbench -m ... hydra/launcher=slurm`: groups of runs as an array job.

Hydra imports every module of `hydra_plugins` at every start, so nothing heavy is imported at the top.
"""

from collections.abc import Generator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kdbench.sweep.launcher import GroupLauncher, check_engine, check_tasks_choose_devices
from kdbench.sweep.slurm_options import SlurmOptions, read_options

if TYPE_CHECKING:
    from kdbench.sweep.plan import JobResult, PlannedRun
    from kdbench.sweep.slurm_job import ArrayTask


class SlurmLauncher(GroupLauncher):
    """Launcher of groups as an array job, whose results it waits for; runs in jobs of earlier commands are waited for.

    Args: the keys of conf/hydra/launcher/slurm.yaml.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.running: list[ArrayTask] = []
        """Tasks of earlier commands with runs of this sweep."""

    @cached_property
    def keys(self) -> SlurmOptions:
        return read_options(self.given)

    def check(self, runs: Sequence["PlannedRun"]) -> None:
        super().check(runs)
        check_engine("slurm", "submitit", "slurm")
        check_tasks_choose_devices(runs, "give hydra.launcher.gpus_per_node=1 for a GPU")
        from kdbench.sweep.slurm import check_runs, check_slurm

        check_runs(self.keys, runs)
        check_slurm(self.keys, len(runs))

    def group(self, runs: Sequence["PlannedRun"]) -> list[list["PlannedRun"]]:
        """Return groups: first the runs that tasks of earlier commands have, by task, then the others."""
        from kdbench.sweep.slurm_wait import divide_running

        self.running, groups, others = divide_running(runs)
        return groups + super().group(others)

    def launch_groups(
        self, groups: Sequence[Sequence["PlannedRun"]]
    ) -> Generator[tuple[int, Sequence["JobResult | None"]], None, None]:
        from kdbench.sweep.slurm_wait import results_of_tasks

        return results_of_tasks(self.keys, groups, self.running)

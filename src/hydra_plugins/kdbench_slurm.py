"""The launcher of `kdbench -m ... hydra/launcher=slurm`: groups of runs as an array job.

Hydra imports every module of `hydra_plugins` at every start, so nothing heavy is imported at the top.
"""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from hydra_plugins.kdbench_launcher import GroupLauncher, check_engine

if TYPE_CHECKING:
    from kdbench.sweep.plan import JobResult, PlannedRun
    from kdbench.sweep.slurm import SlurmOptions
    from kdbench.sweep.slurm_job import ArrayTask


class SlurmLauncher(GroupLauncher):
    """Submits the groups as an array job, and waits for their results. Runs of earlier commands' jobs are waited for.

    Args:
        max_learners: size of the largest group.
        options: other keys of conf/hydra/launcher/slurm.yaml.
    """

    def __init__(self, max_learners: Any, **options: Any) -> None:
        super().__init__(max_learners)
        self.values: dict[str, Any] = {
            name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for name, value in options.items()
        }
        self.running: list[ArrayTask] = []
        """Tasks of earlier commands with runs of this sweep."""

    @property
    def options(self) -> "SlurmOptions":
        from kdbench.sweep.slurm import SlurmOptions

        return SlurmOptions(**self.values)

    def check(self, runs: Sequence["PlannedRun"]) -> None:
        from kdbench.sweep.slurm import check_runs, check_slurm

        super().check(runs)
        check_engine("slurm", "submitit", "slurm")
        check_runs(self.options, runs)
        check_slurm(self.options, len(runs))

    def group(self, runs: Sequence["PlannedRun"]) -> list[list["PlannedRun"]]:
        """Return groups: first the runs that tasks of earlier commands have, by task, then the others."""
        from kdbench.sweep.slurm_wait import divide_running

        self.running, groups, others = divide_running(runs)
        return groups + super().group(others)

    def launch_groups(
        self, groups: Sequence[Sequence["PlannedRun"]]
    ) -> Generator[tuple[int, Sequence["JobResult | None"]], None, None]:
        from kdbench.sweep.slurm_wait import results_of_tasks

        return results_of_tasks(self.options, groups, self.running)

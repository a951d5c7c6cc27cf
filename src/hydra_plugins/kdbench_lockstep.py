"""The launcher of `kdbench -m ... hydra/launcher=lockstep`: runs that can share batches and teacher train together.

Hydra imports every module of `hydra_plugins` at every start, so nothing heavy is imported at the top.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore

from kdbench.sweep.launcher import GroupLauncher

if TYPE_CHECKING:
    from kdbench.sweep.plan import JobResult, PlannedRun


@dataclass
class LockstepLauncherConf:
    _target_: str = "hydra_plugins.kdbench_lockstep.LockstepLauncher"
    max_learners: Any = 8
    """Size of the largest group."""


ConfigStore.instance().store(group="hydra/launcher", name="lockstep", node=LockstepLauncherConf, provider="kdbench")


class LockstepLauncher(GroupLauncher):
    """Launcher that trains one group after the other in this process."""

    def launch_groups(
        self, groups: Sequence[Sequence["PlannedRun"]]
    ) -> Generator[tuple[int, Sequence["JobResult | None"]], None, None]:
        from kdbench.sweep.execute import in_turn, launch_here

        return in_turn(launch_here)(groups)

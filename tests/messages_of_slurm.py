"""Calls with a user's mistakes in hydra/launcher=slurm; tests/test_messages.py holds their messages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.sweep import slurm
from kdbench.sweep.launcher import check_tasks_choose_devices
from kdbench.sweep.plan import PlannedRun, plan_run
from kdbench.sweep.slurm import check_runs, check_slurm, new_folder
from kdbench.sweep.slurm_commands import check_reachable
from tests.conftest import SMALL, composed_once
from tests.slurm import slurm_options


def checked(**options: Any) -> None:
    """Check options of the launcher."""
    slurm_options(**options)


def without_slurm(check: Callable[[], object] = check_reachable, **commands: str) -> None:
    """Check SLURM where only some of its commands are there.

    Args:
        check: the check.
        commands: shell script of each command.
    """
    with pytest.MonkeyPatch.context() as patched:
        folder = Path("commands")
        folder.mkdir(exist_ok=True)
        for name, script in commands.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
        patched.setenv("PATH", f"{folder}:/bin" if commands else "/nowhere")
        check()


def without_device(override: str) -> PlannedRun:
    """Plan a run on a device that this machine lacks."""
    return plan_run(("method=ce", "teacher=none", override), lambda overrides: composed_once(*SMALL, *overrides))


def refused_second_array() -> None:
    """Submit two array jobs, of which SLURM refuses the second."""
    accepted = "if [ -e accepted ]; then echo 'sbatch: error: Job violates accounting/QOS policy' >&2; exit 1; fi\n"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(slurm, "max_array_size", lambda: 1)
        calls = [print, print]
        without_slurm(
            lambda: list(slurm.submit_arrays(slurm_options(), calls, Path("arrays"), "kdbench")),
            **DOWN | {"sbatch": accepted + "touch accepted; echo Submitted batch job 12"},
        )


DOWN = {"sbatch": "", "srun": "", "squeue": "", "scontrol": "echo 'Slurmctld(primary) at head is DOWN'; exit 1"}
REFUSING = DOWN | {
    "scontrol": "",
    "sbatch": "echo 'sbatch: error: invalid partition specified: gpus' >&2\n"
    "echo 'allocation failure: Invalid partition name specified' >&2\nexit 1",
}
LACKING = "echo 'allocation failure: Requested node configuration is not available' >&2; exit 1"
SLURM_CASES: list[Callable[[], object]] = [
    lambda: checked(time=0),
    lambda: checked(time="an hour"),
    lambda: checked(time="1:00", signal_seconds=60),
    lambda: checked(signal_seconds=1.5),
    lambda: checked(max_stops=0),
    lambda: checked(array_parallelism="all"),
    lambda: checked(requeue="yes"),
    lambda: checked(partition=["a", "b"]),
    lambda: checked(setup="module load cuda"),
    lambda: checked(sbatch="--nice"),
    lambda: checked(sbatch={"nice": [1]}),
    lambda: checked(sbatch={"array": "0-3"}),
    lambda: checked(sbatch={"signal": "TERM@5"}),
    lambda: checked(sbatch={"kill_on_invalid_dep": "no"}),
    lambda: checked(sbatch={"d": "afterok:3"}),
    lambda: checked(sbatch={"partition": "gpu"}),
    lambda: checked(max_stop=2),
    lambda: check_runs(slurm_options(signal_seconds=10), [PlannedRun((), "", composed_once(*SMALL, "method=ce"))]),
    lambda: check_tasks_choose_devices(
        [without_device("runtime.device=cuda:3")], "give hydra.launcher.gpus_per_node=1"
    ),
    lambda: new_folder(Path("runs_of_100%")),
    lambda: without_slurm(),
    lambda: without_slurm(**DOWN),
    lambda: without_slurm(lambda: check_slurm(slurm_options(partition="gpus")), **REFUSING),
    lambda: without_slurm(lambda: check_slurm(slurm_options(gpus_per_node=5)), **REFUSING | {"sbatch": LACKING}),
    refused_second_array,
]
"""Calls, each of which ends in an error."""

"""SLURM: groups of planned runs as an array job, submitted through submitit, one array task per group.

`kdbench.sweep.slurm_job` is what a task executes. A task that was stopped by its time limit or by a preemption ends
with exit code 75, and its batch script requeues it. Results come back as JSON files, read by the submitting process.
"""

import contextlib
import io
import itertools
import logging
import os
import shlex
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from subprocess import CalledProcessError
from typing import TYPE_CHECKING, Any

from kdbench.errors import ConfigError
from kdbench.rundir.files import check_writable, write_json
from kdbench.sweep.launcher import SECTION
from kdbench.sweep.plan import PlannedRun, longest_grace
from kdbench.sweep.slurm_commands import SlurmError, check_reachable, command, max_array_size, own_words
from kdbench.sweep.slurm_job import ArrayTask, GroupJob
from kdbench.sweep.slurm_options import VARIABLES, SlurmOptions, keys_at_fault, variable_of
from kdbench.sweep.worker import pack_group
from kdbench.system import signals
from kdbench.system.cpu import OPENMP_IN_SHELL
from kdbench.system.signals import NOT_FINISHED, SIGNALS

if TYPE_CHECKING:
    from submitit.slurm.slurm import SlurmExecutor

log = logging.getLogger(__name__)

SURVIVE = "trap : TERM"
"""Keeps a batch script alive while the runs write checkpoints; SLURM kills what is left when the script ends."""
SUBMIT_SECONDS = 120.0
"""Time that the submission of an array job may take once a stop is requested."""
FOLDER = "slurm"
"""Folder in the output root with a folder for each array job."""
TASKS_FILE = "tasks.json"
"""Run keys of the groups of an array job, in the order of its tasks."""


def check_slurm(options: SlurmOptions, tasks: int = 1) -> None:
    """Check that SLURM answers, and that it accepts jobs with these options. Submits nothing.

    Args:
        options: of the launcher.
        tasks: number of array tasks; 0 where it is not known yet.

    Raises:
        ConfigError: SLURM is not reachable, or refuses them.
    """
    check_reachable()
    from submitit.slurm.slurm import _make_sbatch_string

    shown = {**parameters_of(options, "kdbench"), "map_count": max(1, min(tasks, max_array_size()))}
    script = _make_sbatch_string(command="true", folder="/tmp/%j", **shown)
    try:
        with outside_of_a_job(options):
            command("sbatch", "--test-only", input=script)
    except SlurmError as error:
        raise refused(error, options) from None


def check_runs(options: SlurmOptions, runs: Sequence[PlannedRun]) -> None:
    """Check that the runs have time to write their checkpoints before SLURM ends their task.

    Raises:
        ConfigError: they have not.
    """
    grace = longest_grace(run for run in runs if run.composed)
    if grace > options.signal_seconds:
        raise ConfigError(
            f"checkpoint.grace_seconds is {grace:g}, more than hydra.launcher.signal_seconds={options.signal_seconds}: "
            "SLURM would end a run that is still writing its checkpoint; increase hydra.launcher.signal_seconds",
            code="out_of_range",
            key="checkpoint.grace_seconds",
        )


def refused(error: SlurmError, options: SlurmOptions, submitted: Sequence[str] = ()) -> ConfigError:
    """Return the error for options that sbatch does not accept, with its own words.

    Args:
        error: the words.
        options: the options.
        submitted: ids of the jobs that it has accepted before.
    """
    names = " ".join(submitted)
    others = f"; accepted before: {names}, which scancel {names} cancels" if submitted else ""
    given = keys_at_fault(str(error), options)
    values = " or ".join(f"{key}={value}" for key, value in given.items()) or f"the keys of {SECTION}"
    return ConfigError(
        f"SLURM refuses the jobs of hydra/launcher=slurm: {error}{others}; change {values}; "
        "sinfo -o '%P %l %c %m %G %f' shows the partitions with time limit, cores, memory, GPUs and features",
        code="slurm_refuses",
        key=next(iter(given)) if len(given) == 1 else SECTION,
    )


def parameters_of(options: SlurmOptions, name: str, dependency: str | None = None) -> dict[str, Any]:
    """Return the parameters of submitit's executor; see `executor`."""
    additional = options.parameters
    if dependency:
        additional["kill-on-invalid-dep"] = "yes"
    return {
        "job_name": name,
        "partition": options.partition,
        "nodes": 1,
        "ntasks_per_node": 1,
        "gpus_per_node": options.gpus_per_node,
        "cpus_per_task": options.cpus_per_task,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "array_parallelism": options.array_parallelism,
        "dependency": dependency,
        "wckey": None,
        "stderr_to_stdout": True,
        # Since SLURM 22.05, srun does not follow sbatch in this.
        "srun_args": [f"--cpus-per-task={options.cpus_per_task}"] if options.cpus_per_task is not None else None,
        "setup": [SURVIVE, OPENMP_IN_SHELL, *options.setup],
        "additional_parameters": additional,
    }


def executor(options: SlurmOptions, folder: Path, name: str, dependency: str | None = None) -> "SlurmExecutor":
    """Return submitit's executor for jobs that requeue themselves.

    Args:
        options: accepted by SLURM (`check_slurm`).
        folder: folder of the jobs' files, absolute.
        name: name of the jobs.
        dependency: value of `sbatch --dependency`, such as afterok:12; jobs whose condition cannot come
            true are cancelled.
    """
    from submitit.slurm.slurm import SlurmExecutor

    logging.getLogger("submitit").setLevel(logging.ERROR)  # its lines go to standard output
    made = SlurmExecutor(folder=folder)
    teardown = requeue_script(folder) if options.requeue else None
    parameters = parameters_of(options, name, dependency)
    parameters["setup"] = [owner_check(folder), *parameters["setup"]]
    made.update_parameters(**parameters, teardown=teardown)
    return made


def requeue_script(folder: Path) -> list[str]:
    """Return the end of a batch script, which requeues the job where it was stopped before its runs were complete.

    The script outlives the process of the runs, however that ended. Where SLURM ends the job (scancel) or requeues it
    anyhow (a preemption), the job is not in the state RUNNING any more, and the script leaves it alone. Both commands
    are tried again where SLURM does not answer.
    """
    stopped = [NOT_FINISHED, *(128 + number for number in SIGNALS if number.name in ("SIGUSR1", "SIGUSR2"))]
    return [
        "code=$?",
        'job="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"',
        f'case "$code" in {"|".join(str(code) for code in stopped)})',
        "    counted=",
        "    for pause in 1 2 4 8 16; do",
        '        state="$(squeue --noheader --job "$job" --format %T)" || state=',
        '        if [ "$state" = RUNNING ]; then',
        f'            [ "$counted" ] || echo "$code" >>{shlex.quote(str(folder))}/"${{job}}_stops"',
        "            counted=1",
        '            scontrol requeue "$job" && break',
        '        elif [ "$state" ]; then',
        "            break",
        "        fi",
        '        sleep "$pause"',
        "    done ;;",
        "esac",
        "exit $code",
    ]


@contextlib.contextmanager
def outside_of_a_job(options: SlurmOptions) -> Iterator[None]:
    """Hide variables that sbatch would follow against the batch script: those of a job in which this process may run
    itself, and the user's defaults for options that the script has.

    Args:
        options: of the launcher; what they leave to the cluster, the user's defaults still give.
    """
    known = options.set_options
    defaults = {f"SBATCH_{name}" for option in known for name in (variable_of(option), *VARIABLES.get(option, ()))}
    own = {
        name: value
        for name, value in os.environ.items()
        if name in defaults or (name.startswith(("SLURM_", "SRUN_")) and name != "SLURM_CONF")
    }
    for name in own:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(own)


def submit(
    options: SlurmOptions, groups: Sequence[Sequence[PlannedRun]], firsts: Sequence[int], output_root: Path
) -> list[ArrayTask]:
    """Submit groups of runs as an array job, or several where SLURM limits the size of an array.

    Args:
        options: accepted by SLURM (`check_slurm`).
        groups: runs that train together, none of them refused.
        firsts: number of the first run of each group within the sweep, counted from 0.
        output_root: the files of the jobs are in its folder slurm/.

    Returns:
        The task of each group.

    Raises:
        ConfigError: SLURM refuses the jobs.
        Interrupted: a stop was requested, between two arrays.
    """
    calls = [
        GroupJob(pack_group(runs, first), options.max_stops, options.requeue)
        for first, runs in zip(firsts, groups, strict=True)
    ]
    keys = [tuple(run.key for run in runs) for runs in groups]
    return list(itertools.chain(*submit_arrays(options, calls, output_root, "kdbench", keys=keys)))


def submit_arrays(
    options: SlurmOptions,
    calls: Sequence[Callable[[], None]],
    output_root: Path,
    name: str,
    dependency: str | None = None,
    keys: Sequence[tuple[str, ...]] = (),
) -> Iterator[list[ArrayTask]]:
    """Submit calls as array jobs no larger than SLURM allows, and yield the tasks of each as it is submitted.

    Args:
        options: accepted by SLURM (`check_slurm`).
        calls: one for each task.
        output_root: the files of the jobs are in its folder slurm/.
        name: name of the jobs.
        dependency: see `executor`.
        keys: run keys of each call, for a later command that looks for its runs.

    Raises:
        ConfigError: SLURM refuses the jobs.
        Interrupted: a stop was requested, between two arrays.
    """
    size, done = max_array_size(), list[str]()
    for start in range(0, len(calls), size):
        signals.raise_if_requested()
        part = calls[start : start + size]
        own = keys[start : start + size] or [()] * len(part)
        folder = new_folder(output_root)
        write_json(folder / TASKS_FILE, {"keys": own})  # before: a process that is killed now leaves what is looked for
        try:
            jobs = submit_array(options, part, executor(options, folder, name, dependency))
        except SlurmError as error:
            signals.raise_if_requested()
            raise refused(error, options, done) from None
        tasks = [ArrayTask(job, folder, run_keys) for job, run_keys in zip(jobs, own, strict=True)]
        done.append(tasks[0].array)
        yield tasks


def submit_array(options: SlurmOptions, calls: Sequence[Callable[[], None]], made: "SlurmExecutor") -> list[str]:
    """Submit calls as an array job, and return the ids of its tasks.

    Signals are noted meanwhile: after sbatch, submitit moves the files that the tasks read, and tasks without them
    would fail after a minute.

    Raises:
        SlurmError: SLURM refuses the job.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    printed = io.StringIO()  # sbatch's words, which are in the error too
    try:
        with (
            signals.deferred(SUBMIT_SECONDS),
            signals.interrupts_blocked(),
            outside_of_a_job(options),
            contextlib.redirect_stderr(printed),
            made.batch(),
        ):
            jobs = [made.submit(call) for call in calls]
    except (FailedJobError, FailedSubmissionError, CalledProcessError) as error:
        raise SlurmError(own_words(str(error))) from None
    except BaseException:
        print(printed.getvalue(), end="", file=sys.stderr)
        raise
    print(printed.getvalue(), end="", file=sys.stderr)
    return [str(job.job_id) for job in jobs]


def new_folder(output_root: Path) -> Path:
    """Return a new folder for the files of an array job, absolute, which no other user can read or replace.

    It holds pickled configs, which may have passwords of servers in them. In a group's output root, the sticky bit of
    slurm/ keeps its other members from renaming it; only the owners of slurm/ and of the output root still could, which
    is why a task first checks the owner (`owner_check`).

    Raises:
        ConfigError: it cannot be made, or sbatch would misread its name.
    """
    name = f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}_{os.getpid()}"
    folder = output_root.expanduser().absolute() / FOLDER / name
    if "%" in str(folder) or not str(folder).isprintable():
        raise ConfigError(
            f"output_root is {output_root}; hydra/launcher=slurm needs a path without %, which sbatch replaces",
            code="out_of_range",
            key="output_root",
        )
    check_writable(folder.parent, "output_root")
    folder.parent.mkdir(parents=True, exist_ok=True)
    state = folder.parent.stat()
    if state.st_uid == os.getuid() and not state.st_mode & stat.S_ISVTX:
        folder.parent.chmod(stat.S_IMODE(state.st_mode) | stat.S_ISVTX)
    folder.mkdir(mode=0o700)
    return folder


def owner_check(folder: Path) -> str:
    """Return the line of a batch script that ends a task whose folder is another user's or a link."""
    name = shlex.quote(str(folder))
    error = shlex.quote(f"{folder} was replaced by another user; nothing of it was executed")
    return f"if [ ! -O {name} ] || [ -L {name} ]; then echo {error}; exit 1; fi"

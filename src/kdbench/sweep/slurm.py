"""SLURM: groups of planned runs as an array job, submitted through submitit, one array task per group.

`kdbench.sweep.slurm_job` is what a task executes. A task that was stopped by its time limit or by a preemption ends
with exit code 75, and its batch script requeues it. Results come back as JSON files, read by the submitting process.
"""

import contextlib
import io
import itertools
import logging
import os
import re
import shlex
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from subprocess import CalledProcessError
from typing import TYPE_CHECKING, Any

from hydra_plugins.kdbench_launcher import whole_number, wrong_value
from kdbench.errors import ConfigError
from kdbench.rundir.files import check_writable, write_json
from kdbench.sweep.plan import PlannedRun
from kdbench.sweep.slurm_commands import SlurmError, check_reachable, command, max_array_size, own_words
from kdbench.sweep.slurm_job import ArrayTask, GroupJob
from kdbench.sweep.worker import pack_group
from kdbench.system import signals
from kdbench.system.signals import NOT_FINISHED, SIGNALS

if TYPE_CHECKING:
    from submitit.slurm.slurm import SlurmExecutor

log = logging.getLogger(__name__)

SIGNAL = "USR2"
"""Signal before the time limit: the one that submitit handles too, until the runs' own handlers are installed."""
SURVIVE = "trap : TERM"
"""Keeps a batch script alive while the runs write checkpoints; SLURM kills what is left when the script ends."""
SUBMIT_SECONDS = 120.0
"""Time that the submission of an array job may take once a stop is requested."""
FOLDER = "slurm"
"""Folder in the output root with a folder for each array job."""
TASKS_FILE = "tasks.json"
"""Run keys of the groups of an array job, in the order of its tasks."""
OWN_OPTIONS = (
    "array", "dependency", "error", "job-name", "kill-on-invalid-dep", "no-requeue", "nodes", "ntasks",
    "ntasks-per-node", "open-mode", "output", "parsable", "requeue", "signal", "wait", "wrap",
)  # fmt: skip
SHORT_FORMS = {
    "A": "account", "C": "constraint", "J": "job-name", "N": "nodes", "W": "wait", "a": "array", "c": "cpus-per-task",
    "d": "dependency", "e": "error", "n": "ntasks", "o": "output", "p": "partition", "q": "qos", "t": "time",
}  # fmt: skip
"""Options of sbatch that kdbench sets, or that the launcher has as keys, by their letters."""
KEY_OPTIONS = ("account", "constraint", "cpus-per-task", "gpus-per-node", "mem", "partition", "qos", "time")
"""Options of sbatch that the launcher has as keys."""
OTHERS = ("gpus",)
"""Options of sbatch whose names begin as those of others do."""
VARIABLES = {
    "array": ("ARRAY_INX",), "mem": ("MEM_PER_CPU", "MEM_PER_GPU", "MEM_PER_NODE"), "time": ("TIMELIMIT",),
}  # fmt: skip
"""Ends of the names of environment variables that differ from the option, or exclude it."""
TIME_FORMS = re.compile(
    r"(?P<m>\d+)(:(?P<s>\d\d))?|(?P<h2>\d+):(?P<m2>\d\d):(?P<s2>\d\d)|(?P<d>\d+)-(?P<h3>\d+)(:(?P<m3>\d\d)(:(?P<s3>\d\d))?)?"
)


@dataclass(frozen=True)
class SlurmOptions:
    """Keys of conf/hydra/launcher/slurm.yaml, which describes them."""

    time: Any
    partition: Any = None
    gpus_per_node: Any = None
    cpus_per_task: Any = None
    mem: Any = None
    account: Any = None
    qos: Any = None
    constraint: Any = None
    array_parallelism: Any = 256
    requeue: Any = True
    signal_seconds: Any = 120
    max_stops: Any = 3
    setup: Sequence[Any] = ()
    sbatch: Mapping[str, Any] | None = None

    def check(self) -> None:
        """Check the values that do not depend on the cluster.

        Raises:
            ConfigError: one is out of range, or would be ignored.
        """
        for name in ("partition", "gpus_per_node", "cpus_per_task", "mem", "account", "qos", "constraint"):
            check_word(name, getattr(self, name))
        for name in ("array_parallelism", "signal_seconds", "max_stops"):
            whole_number(name, getattr(self, name))
        if type(self.requeue) is not bool:
            raise wrong_value("requeue", self.requeue, "true or false")
        seconds = seconds_of(self.time)
        if seconds <= self.signal_seconds:
            raise ConfigError(
                f"hydra.launcher.signal_seconds is {self.signal_seconds}; it must be less than the "
                f"{seconds} seconds of hydra.launcher.time={self.time}",
                code="out_of_range",
                key="hydra.launcher.signal_seconds",
            )
        if isinstance(self.setup, str) or not all(isinstance(line, str) and line.isprintable() for line in self.setup):
            raise wrong_value("setup", self.setup, "a list of shell commands, each in one line")
        if not (self.sbatch is None or isinstance(self.sbatch, Mapping)):
            raise wrong_value("sbatch", self.sbatch, "a mapping from options of sbatch to values, such as {nice: 100}")
        for name, value in (self.sbatch or {}).items():
            check_word(f"sbatch.{name}", value)
            long_name = full_name(name)
            if long_name in (*OWN_OPTIONS, *KEY_OPTIONS):
                raise ConfigError(
                    f"hydra.launcher.sbatch.{name}: kdbench sets --{long_name} itself, from the other keys of "
                    "hydra.launcher; remove it here",
                    code="usage",
                    key=f"hydra.launcher.sbatch.{name}",
                )

    @property
    def set_options(self) -> set[str]:
        """Names of the options of sbatch that the batch script has, or that the user has switched off."""
        keys = [name for name in KEY_OPTIONS if getattr(self, name.replace("-", "_")) is not None]
        return {*OWN_OPTIONS, *keys, *map(full_name, self.sbatch or {})}

    @property
    def parameters(self) -> dict[str, Any]:
        """Options of sbatch beside those that submitit sets."""
        given = {name.replace("_", "-"): value for name, value in (self.sbatch or {}).items()}
        return {
            "time": self.time,
            "signal": f"{SIGNAL}@{self.signal_seconds}",
            "requeue" if self.requeue else "no-requeue": True,
            **{name: value for name, value in given.items() if value is not None and value is not False},
        } | ({} if self.mem is None else {"mem": self.mem})


def full_name(option: str) -> str:
    """Return the name of an option that kdbench sets, or that is a key of the launcher, and any other as it is.

    Args:
        option: as given; sbatch takes every unambiguous beginning of a name.
    """
    plain = option.lstrip("-").replace("_", "-")
    options = () if plain in OTHERS else (*KEY_OPTIONS, *OWN_OPTIONS)
    return SHORT_FORMS.get(plain) or next((name for name in options if name.startswith(plain)), plain)


def check_word(name: str, value: Any) -> None:
    """Check a value that stands in a line of a batch script."""
    plain = value is None or isinstance(value, bool | int | float | str)
    if not plain or (isinstance(value, str) and not (value and value.isprintable())):
        raise wrong_value(name, value, "a word or a number, as sbatch takes it, or null")


def seconds_of(limit: Any) -> int:
    """Return a time limit in seconds, from the forms that sbatch takes.

    Raises:
        ConfigError: it has another form, or is no time.
    """
    match = TIME_FORMS.fullmatch(str(limit)) if type(limit) in (int, str) else None
    parts = {name: int(value) for name, value in match.groupdict().items() if value} if match else {}
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    seconds = sum(value * units[name[0]] for name, value in parts.items())
    if not seconds:
        raise wrong_value("time", limit, "minutes, 'MM:SS', 'HH:MM:SS' or 'D-HH:MM:SS' (in quotes in a YAML file)")
    return seconds


def check_slurm(options: SlurmOptions, tasks: int = 1) -> None:
    """Check the options, that SLURM answers, and that it accepts jobs with these options. Submits nothing.

    Args:
        options: of the launcher.
        tasks: number of array tasks.

    Raises:
        ConfigError: a value is out of range, SLURM is not reachable, or it refuses them.
    """
    options.check()
    check_reachable()
    from submitit.slurm.slurm import _make_sbatch_string

    shown = {**parameters_of(options, "kdbench"), "map_count": min(tasks, max_array_size())}
    script = _make_sbatch_string(command="true", folder="/tmp/%j", **shown)
    try:
        with outside_of_a_job(options):
            command("sbatch", "--test-only", input=script)
    except SlurmError as error:
        raise refused(error) from None


def check_runs(options: SlurmOptions, runs: Sequence[PlannedRun]) -> None:
    """Check that the runs have time to write their checkpoints before SLURM ends their task.

    Raises:
        ConfigError: they have not.
    """
    options.check()
    grace = max((run.config.checkpoint.grace_seconds for run in runs if run.composed), default=0)
    if grace > options.signal_seconds:
        raise ConfigError(
            f"checkpoint.grace_seconds is {grace:g}, more than hydra.launcher.signal_seconds={options.signal_seconds}: "
            "SLURM would end a run that is still writing its checkpoint; increase hydra.launcher.signal_seconds",
            code="out_of_range",
            key="checkpoint.grace_seconds",
        )


def refused(error: SlurmError, submitted: Sequence[str] = ()) -> ConfigError:
    """Return the error for options that sbatch does not accept, with its own words.

    Args:
        error: the words.
        submitted: ids of the jobs that it has accepted before.
    """
    names = " ".join(submitted)
    others = f"; accepted before: {names}, which scancel {names} cancels" if submitted else ""
    return ConfigError(
        f"SLURM refuses the jobs of hydra/launcher=slurm: {error}{others}; change the keys of hydra.launcher",
        code="slurm_refuses",
        key="hydra.launcher",
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
        "setup": [SURVIVE, *options.setup],
        "additional_parameters": additional,
    }


def executor(options: SlurmOptions, folder: Path, name: str, dependency: str | None = None) -> "SlurmExecutor":
    """Return submitit's executor for jobs that requeue themselves.

    Args:
        options: checked (`check_slurm`).
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


def variable_of(option: str) -> str:
    """Return the end of the usual name of an option's environment variable."""
    return option.upper().replace("-", "_")


def submit(
    options: SlurmOptions, groups: Sequence[Sequence[PlannedRun]], firsts: Sequence[int], output_root: Path
) -> list[ArrayTask]:
    """Submit groups of runs as an array job, or several where SLURM limits the size of an array.

    Args:
        options: checked (`check_slurm`).
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
        options: checked (`check_slurm`).
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
            raise refused(error, done) from None
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

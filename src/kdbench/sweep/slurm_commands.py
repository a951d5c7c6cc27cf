"""SLURM's own commands: bounded in time, with their words as errors."""

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kdbench.errors import ConfigError, printable

SECONDS = 30
"""Time in which a command has to answer."""
PING_SECONDS = 10
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
"""States of a job that does not run again by itself."""
USUAL_ARRAY_SIZE = 1000
"""Largest number of tasks where SLURM's configuration does not say it: its own default."""
PREFIX = re.compile(r"^(sbatch|scontrol|squeue): ((error|fatal): )?|^allocation failure: ")


class SlurmError(Exception):
    """A command of SLURM failed; the message is its own."""


@dataclass(frozen=True)
class JobState:
    """State of a job as squeue has it."""

    job: str
    """Id, with the number of the task of an array: 12_3."""
    state: str
    reason: str
    script: Path
    """Batch script, in the folder of the job's files."""


def command(*words: str, input: str | None = None, seconds: float = SECONDS) -> str:
    """Return the output of a command of SLURM.

    Args:
        words: the command.
        input: standard input.
        seconds: time in which it has to answer.

    Raises:
        SlurmError: it failed, or did not answer.
    """
    # Variables such as SQUEUE_FORMAT or SBATCH_WAIT change what a command prints or does; those of accounts stay.
    dropped = ("SQUEUE_", "SBATCH_WAIT", "SINFO_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    try:
        done = subprocess.run(words, input=input, capture_output=True, text=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]} has not answered for {seconds:g} seconds") from None
    except OSError as error:
        raise SlurmError(f"{words[0]}: {error.strerror}") from None
    if done.returncode:
        raise SlurmError(own_words(done.stderr or done.stdout) or f"{words[0]} ended with exit code {done.returncode}")
    return done.stdout


def own_words(text: str) -> str:
    """Return the messages of a command in one line, without the names of programs and the repetitions."""
    lines = [PREFIX.sub("", line).strip() for line in text.splitlines()]
    return printable("; ".join(dict.fromkeys(line for line in lines if line and not line.startswith(("Try ", "*")))))


def check_reachable() -> None:
    """Check that SLURM's commands are here and that its controller answers.

    Raises:
        ConfigError: they are not, or it does not.
    """
    missing = [name for name in ("sbatch", "srun", "squeue", "scontrol") if shutil.which(name) is None]
    if missing:
        raise unreachable(f"{missing[0]} was not found; give the command on a login node of the cluster")
    try:
        command("scontrol", "ping", seconds=PING_SECONDS)
    except SlurmError as error:
        if "resolve_ctls_from_dns_srv" in str(error) or "cannot stat file" in str(error):
            raise unreachable(
                "no configuration of SLURM was found on this machine; give the command on a login node of the cluster, "
                "or set SLURM_CONF to its slurm.conf"
            ) from None
        raise unreachable(f"its controller does not answer: {error}; sinfo shows when it does again") from None


def unreachable(why: str) -> ConfigError:
    """Return the error for an engine that cannot be used."""
    return ConfigError(f"hydra/launcher=slurm: {why}", code="unreachable_engine", key="hydra/launcher")


@functools.cache
def max_array_size() -> int:
    """Return the largest number of tasks of an array job."""
    try:
        match = re.search(r"MaxArraySize\s*=\s*(\d+)", command("scontrol", "show", "config"))
    except SlurmError:
        match = None
    return max(1, int(match[1]) - 1) if match else USUAL_ARRAY_SIZE


def jobs_of_user() -> dict[str, JobState]:
    """Return the jobs of this user that SLURM still has, by their ids; ended ones stay for some minutes.

    Raises:
        SlurmError: the controller does not answer.
    """
    own = ("--user", str(os.getuid()), "--array", "--states", "all", "--noheader", "--format", "%i|%T|%r|%o")
    found = {}
    for line in command("squeue", *own).splitlines():
        job, state, reason, script = line.strip().split("|", 3)
        found[job] = JobState(job, state, reason, Path(script))
    return found

"""The keys of `hydra/launcher=slurm`, checked, and the options of sbatch that follow from them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdbench.config.schema import as_yaml, setting, typed, whole
from kdbench.errors import ConfigError
from kdbench.sweep.launcher import SECTION, LauncherKeys

SIGNAL = "USR2"
"""Signal before the time limit: the one that submitit handles too, until the runs' own handlers are installed."""
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


def is_word(value: Any) -> bool:
    """Return whether a value can stand in a line of a batch script."""
    if isinstance(value, str):
        return value != "" and value.isprintable()
    return value is None or isinstance(value, bool | int | float)


def word() -> Any:
    """Declare a field whose value is passed to sbatch."""
    return setting(is_word, "a word or a number, as sbatch takes it, or null")


@dataclass
class SlurmOptions(LauncherKeys):
    """The keys of conf/hydra/launcher/slurm.yaml, which describes them."""

    time: Any = setting()
    partition: Any = word()
    gpus_per_node: Any = word()
    cpus_per_task: Any = word()
    mem: Any = word()
    account: Any = word()
    qos: Any = word()
    constraint: Any = word()
    array_parallelism: int = whole(1)
    requeue: bool = setting()
    signal_seconds: int = whole(1)
    max_stops: int = whole(1)
    setup: list[str] = setting(
        lambda lines: all(line.isprintable() for line in lines), "a list of shell commands, each in one line"
    )
    sbatch: dict[str, Any] | None = setting(
        lambda options: all(map(is_word, (options or {}).values())),
        "a mapping from options of sbatch to words or numbers, such as {nice: 100}, or null",
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


def read_options(values: Mapping[str, Any]) -> SlurmOptions:
    """Return the keys of the launcher, checked as far as that does not depend on the cluster.

    Raises:
        ConfigError: a key is not known, is out of range, or would be ignored.
    """
    options: SlurmOptions = typed(SlurmOptions, values, SECTION)
    seconds = seconds_of(options.time)
    if seconds <= options.signal_seconds:
        raise ConfigError(
            f"hydra.launcher.signal_seconds is {options.signal_seconds}; it must be less than the "
            f"{seconds} seconds of hydra.launcher.time={options.time}",
            code="out_of_range",
            key="hydra.launcher.signal_seconds",
        )
    for name in options.sbatch or {}:
        long_name = full_name(name)
        if long_name in (*OWN_OPTIONS, *KEY_OPTIONS):
            key = f"hydra.launcher.{long_name.replace('-', '_')}"
            remedy = (
                f"it has a key of its own; write {key}=..."
                if long_name in KEY_OPTIONS
                else f"kdbench sets --{long_name} itself; remove it"
            )
            raise ConfigError(
                f"hydra.launcher.sbatch.{name}: {remedy}",
                code="usage",
                key=f"hydra.launcher.sbatch.{name}",
            )
    return options


def full_name(option: str) -> str:
    """Return the name of an option that kdbench sets, or that is a key of the launcher, and any other as it is.

    Args:
        option: as given; sbatch takes every unambiguous beginning of a name.
    """
    plain = option.lstrip("-").replace("_", "-")
    options = () if plain in OTHERS else (*KEY_OPTIONS, *OWN_OPTIONS)
    return SHORT_FORMS.get(plain) or next((name for name in options if name.startswith(plain)), plain)


def variable_of(option: str) -> str:
    """Return the end of the usual name of an option's environment variable."""
    return option.upper().replace("-", "_")


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
        raise ConfigError(
            f"{SECTION}.time is {as_yaml(limit)}; it must be minutes, 'MM:SS', 'HH:MM:SS' or 'D-HH:MM:SS' (in quotes "
            "in a YAML file)",
            code="out_of_range",
            key=f"{SECTION}.time",
        )
    return seconds


AT_FAULT = {
    "partition": ("partition",),
    "node configuration": ("partition", "gpus_per_node", "cpus_per_task", "mem", "constraint"),
    "gres|gpu": ("gpus_per_node",), "account": ("account", "partition", "qos"), "qos": ("qos",),
    "time limit": ("time", "partition"), "memory": ("mem",), "feature|constraint": ("constraint",),
    "cpu": ("cpus_per_task",),
}  # fmt: skip
"""Keys that a refusal of SLURM can be about, by words of it; the first that match count."""


def keys_at_fault(text: str, options: SlurmOptions) -> dict[str, Any]:
    """Return the keys that a refusal of SLURM can be about, with their values; those that are not given are left out.

    Args:
        text: SLURM's words.
        options: keys of the launcher.
    """
    names = next((names for words, names in AT_FAULT.items() if re.search(words, text, re.IGNORECASE)), ())
    return {f"{SECTION}.{name}": value for name in names if (value := getattr(options, name)) is not None}

"""Steps of a chain, from the command line: compressions of conf/compress/, and trainings in between."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from kdbench.config.composition import ONE_AT_A_TIME
from kdbench.config.composition_errors import composition_error
from kdbench.config.derived import CompressConfig, MeasureConfig
from kdbench.config.options import initialize_hydra, options, register_models_once
from kdbench.config.parse_derived import parse_compress, parse_measure
from kdbench.errors import ConfigError, nearest
from kdbench.sweep.overrides import expand, key_of, value_of

FINETUNE, DISTIL = "finetune", "distil"
TRAININGS = (FINETUNE, DISTIL)
"""Steps that are ordinary runs: train the network further, or distil it into another one."""

SHARED = ("runtime", "checkpoint", "on_busy", "overwrite", "data.root", "data.download", "tracker")
"""Keys and sections that runs of every kind have."""


@dataclass(frozen=True)
class Chain:
    """Steps in their order, each with its settings."""

    steps: tuple[str, ...]
    compressions: Mapping[str, CompressConfig]
    """By step."""
    trainings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Overrides by step; those of every training come first."""
    overrides: tuple[str, ...] = ()
    """Overrides of every run, such as `runtime.threads=1`."""

    @property
    def title(self) -> str:
        return " -> ".join(self.steps)


def is_within(key: str, names: Sequence[str]) -> bool:
    """Return whether a key is one of some keys or lies in one of some sections."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def compressions(config_dir: Path | None) -> list[str]:
    """Return the names of the compressions, kdbench's and the user's."""
    return sorted({*options("compress"), *(options("compress", config_dir) if config_dir else [])})


def read_chain(overrides: Sequence[str], config_dir: Path | None = None) -> Chain:
    """Return the chain of a command line, each key with one value.

    Args:
        overrides: `method=NAME` or `chain=[NAME,...]`; `NAME.KEY=VALUE` for settings of a step (`method.KEY=VALUE` of
            the only one); everything else is an override of every run.
        config_dir: folder of the user's own options, with compress/.

    Raises:
        ConfigError: a step or a setting of it is not known, or the order is impossible.
    """
    given = {key_of(text): text for text in overrides}
    if ("method" in given) == ("chain" in given):
        raise ConfigError(
            "give either method=NAME or chain=[NAME,...], such as method=int8 or chain=[structured,distil,int8]",
            code="usage",
            key="method",
        )
    key = "method" if "method" in given else "chain"
    value = value_of(given[key])
    if key == "chain" and not isinstance(value, list):
        raise ConfigError(
            f"chain={value}: a chain is a list, chain=[structured,finetune,int8]; for one step each, give method=A,B",
            code="wrong_type",
            key="chain",
        )
    steps = tuple(map(str, value)) if isinstance(value, list) else (str(value),)
    valid = [*compressions(config_dir), *TRAININGS]
    for step in steps or ("",):
        if step not in valid:
            raise ConfigError(
                f"{key}={value}: {step!r} is no step; {nearest(step, valid)}", code="unknown_option", key=key
            )
    of_steps: dict[str, list[str]] = {step: [] for step in steps}
    others = []
    for text in overrides:
        section, _, name = text.partition("=")[0].partition(".")
        step = steps[0] if section == "method" and len(steps) == 1 else section
        if name and step in of_steps:
            of_steps[step].append(text.partition(".")[2])
        elif text != given[key]:
            if name and section in valid:
                raise ConfigError(
                    f"{text}: the chain {list(steps)} has no step {section}", code="unused_key", key=f"{section}.{name}"
                )
            others.append(text)
    found = {s: compose_compression(s, texts, config_dir) for s, texts in of_steps.items() if s not in TRAININGS}
    check_chain(steps, found)
    trainings = {step: tuple(texts) for step, texts in of_steps.items() if step in TRAININGS}
    return Chain(steps, found, trainings, tuple(others))


def jobs_of(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the overrides of each chain of a command line whose keys may have several values.

    A setting of a step belongs to the chains that have the step.

    Raises:
        ConfigError: an override cannot be read.
    """
    jobs = expand(overrides)
    steps = [steps_in(job) for job in jobs]
    every = set().union(*steps)
    return [
        tuple(text for text in job if text.partition("=")[0].partition(".")[0] not in every - own)
        for job, own in zip(jobs, steps, strict=True)
    ]


def steps_in(job: Sequence[str]) -> set[str]:
    """Return the steps that overrides with one value each name."""
    values = [value_of(text) for text in job if key_of(text) in ("method", "chain")]
    return {str(step) for value in values for step in (value if isinstance(value, list) else [value])}


def check_chain(steps: Sequence[str], found: Mapping[str, CompressConfig]) -> None:
    """Check that each step of a chain can follow those before it.

    Raises:
        ConfigError: one cannot.
    """
    from kdbench.compress import fault_of_order  # here: it imports torch, which --help does without

    rounded = masks = None
    for step in steps:
        if step == DISTIL:
            rounded = masks = None
            continue
        if step == FINETUNE:
            fault = f"{step} cannot follow {rounded}, whose weights are rounded; put {rounded} last" if rounded else ""
        else:
            fault = fault_of_order(found[step], rounded, masks)
            rounded = None if found[step].target.trainable else step
            masks = step if found[step].target.masks else masks
        if fault:
            raise ConfigError(f"chain={list(steps)}: {fault}", code="wrong_order", key="chain")


def compose_compression(name: str, overrides: Sequence[str], config_dir: Path | None) -> CompressConfig:
    """Return a compression with its settings.

    Args:
        name: file of conf/compress/.
        overrides: `KEY=VALUE`, by Hydra's grammar.
        config_dir: folder of the user's own options.

    Raises:
        ConfigError: a key or a value is not allowed.
    """
    node = compose_group("compress", name, overrides, config_dir)
    found = parse_compress(node | {"name": name})
    assert found is not None
    found.target(found.params)  # checks the keys together
    return found


def compose_measurement(overrides: Sequence[str], config_dir: Path | None) -> MeasureConfig:
    """Return the settings of a measurement; `device` is added when the machine is known.

    Arguments and errors: see `compose_compression`.
    """
    node = compose_group("measure", "default", overrides, config_dir)
    found = parse_measure(node | {"device": ""}, "")
    assert found is not None
    return found


def compose_group(group: str, name: str, overrides: Sequence[str], config_dir: Path | None) -> dict[str, Any]:
    """Return the content of one option of a group with overrides of its keys.

    Raises:
        ConfigError: Hydra cannot compose it.
    """
    texts = [f"+{group}={name}", *(f"{group}.{text}" for text in overrides)]
    with ONE_AT_A_TIME:
        register_models_once(config_dir)
        try:
            with initialize_hydra(config_dir):
                config = hydra.compose(None, texts)
        except Exception as error:  # Hydra's own errors
            raise unknown_key(error, group, name, overrides, config_dir) from None
    node: Any = OmegaConf.to_container(config[group], resolve=True)
    return node


def unknown_key(
    error: Exception, group: str, name: str, overrides: Sequence[str], config_dir: Path | None
) -> ConfigError:
    """Return an error of Hydra's for the settings of a step."""
    label = f"{name}." if group == "compress" else ""
    with initialize_hydra(config_dir):
        config: DictConfig = hydra.compose(None, [f"+{group}={name}"])
    valid = [str(key) for key in config[group] if key != "_target_"]
    for text in overrides:
        key = text.partition("=")[0].lstrip("+~").partition(".")[0]
        if key not in valid:
            return ConfigError(
                f"{label}{key} is not a known key; {nearest(key, valid)}", code="unknown_key", key=f"{label}{key}"
            )
    return composition_error(error, [f"{label}{text}" for text in overrides], config_dir)

"""From `kdbench-study study=NAME KEY=VALUE ...` to a checked study."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdbench.config import CONF_DIR
from kdbench.errors import ConfigError, first_line, nearest
from kdbench.schema import typed
from kdbench.study.plan import CHOSEN_BY, NOT_IN_NAME, SETTABLE, Study, StudyConfig, key_of


def read_study(arguments: Sequence[str], config_dir: Path | None = None) -> Study:
    """A study from its YAML file and the command line.

    Args:
        arguments: `study=NAME`, keys of the study, `stages=[...]`, and overrides of every run.
        config_dir: The user's own folder of options; its study/ is looked into first.

    Raises:
        ConfigError: which key, what it was, what it may be.
    """
    given: dict[str, str] = {}
    of_runs = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ConfigError(f"{argument!r} cannot be read; write key=value")
        if key in ("study", "stages", *SETTABLE):
            given[key] = value
        else:
            of_runs.append(argument)
    files = study_files(config_dir)
    name = given.pop("study", None)
    if name is None:
        raise ConfigError(f"which study? Say study=NAME; {nearest('', files)}")
    if name not in files:
        raise ConfigError(
            f"study={name} is no option; {nearest(name, files)}; your own: --config-dir DIR, which holds study/"
        )
    wanted = given.pop("stages", None)
    config = typed(StudyConfig, values_of(files[name], given), f"study={name}")
    check(config, name)
    stages = chosen_stages(config, wanted)
    overrides = (*config.overrides, *of_runs)
    last = {key_of(override): override for override in overrides}  # what comes last counts, where it first stood
    settings = [f"{key}={value}" for key, value in given.items()]
    label = "_".join(
        [
            name,
            *map(readable, settings),
            *(readable(o) for o in of_runs if re.split(r"[./]", key_of(o))[0] not in NOT_IN_NAME),
        ]
    )
    return Study(name, config, tuple(last.values()), stages, label, config_dir)


def study_files(config_dir: Path | None) -> dict[str, Path]:
    folders = [CONF_DIR / "study", *([config_dir / "study"] if config_dir else [])]
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def values_of(file: Path, given: dict[str, str]) -> dict[str, Any]:
    """The file's content, with the command line's values in place before anything refers to them."""
    try:
        merged = OmegaConf.merge(OmegaConf.load(file), OmegaConf.from_dotlist([f"{k}={v}" for k, v in given.items()]))
        content = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{file}: {first_line(error)}") from None
    except Exception as error:  # the YAML library has many ways to complain
        raise ConfigError(f"{file} is no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file} describes no study: it must hold keys and values, stages among them")
    return {str(key): value for key, value in content.items()}


def check(config: StudyConfig, name: str) -> None:
    """Rules between a study's fields."""
    seen: list[str] = []
    choosing = [title for title, stage in config.stages.items() if stage.choose]
    if len(choosing) > 1:
        raise ConfigError(
            f"study={name}: stages {' and '.join(choosing)} choose; one stage may, for there is one selected.yaml"
        )
    for title, stage in config.stages.items():
        path = f"study={name}: stages.{title}"
        if not (stage.students or stage.teachers or stage.pairs):
            raise ConfigError(f"{path} trains nothing; give it students, teachers or pairs")
        if stage.choose is not None and stage.choose not in CHOSEN_BY:
            raise ConfigError(
                f"{path}.choose is {stage.choose!r}; it may be {' or '.join(CHOSEN_BY)}: never the test set"
            )
        if stage.winners_of is not None:
            if stage.winners_of not in seen or config.stages[stage.winners_of].choose is None:
                earlier = ", ".join(s for s in seen if config.stages[s].choose) or "none is there"
                raise ConfigError(
                    f"{path}.winners_of is {stage.winners_of!r}; it may be an earlier stage that chooses: {earlier}"
                )
            missing = set(stage.pairs) - set(config.stages[stage.winners_of].pairs)
            if missing:
                names = ", ".join(sorted(missing))
                raise ConfigError(f"{path}.pairs has {names}, which {stage.winners_of} does not choose for")
        elif stage.methods and not stage.pairs:
            raise ConfigError(f"{path} has methods but no pairs to learn by them")
        elif stage.pairs and not stage.methods:
            raise ConfigError(f"{path} has pairs but neither methods nor winners_of to say how they learn")
        for method, grid in (stage.methods | {"undistilled": stage.undistilled}).items():
            if grid is not None and not (
                isinstance(grid, dict) and all(isinstance(values, list) and values for values in grid.values())
            ):
                raise ConfigError(f"{path}: {method} is {grid!r}; it must map keys to lists of values")
        for key in stage.undistilled:
            if not key.startswith("recipe."):
                raise ConfigError(
                    f"{path}.undistilled varies {key}; undistilled students may vary keys of their recipe"
                )
        seen.append(title)


def chosen_stages(config: StudyConfig, wanted: str | None) -> tuple[str, ...]:
    """The stages to carry out: those named, or all that are not optional, in the file's order."""
    if wanted is None:
        return tuple(title for title, stage in config.stages.items() if not stage.optional)
    names = [name.strip() for name in wanted.strip("[]").split(",") if name.strip()]
    for name in names:
        if name not in config.stages:
            raise ConfigError(f"stages={wanted}: {name} is no stage; {nearest(name, config.stages)}")
    if not names:
        raise ConfigError(f"stages={wanted} names none; {nearest('', config.stages)}")
    return tuple(title for title in config.stages if title in names)


def readable(override: str) -> str:
    """An override as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "-", re.sub(r"[\[\]{}'\"]", "", override)).strip("-")

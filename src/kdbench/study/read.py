"""From `kdbench-study study=NAME KEY=VALUE ...` to a checked study."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdbench.config.composition_errors import several_trackers
from kdbench.config.engines import check_engines
from kdbench.config.paths import CONF_DIR
from kdbench.config.schema import typed
from kdbench.errors import ConfigError, first_line, nearest
from kdbench.study.stages import BASELINE_METHOD, Study, StudyConfig
from kdbench.study.winners import CHOSEN_BY
from kdbench.sweep.overrides import escape_interpolations, is_sweep, key_of, parse, value_of

SETTINGS = ("selection_seeds", "final_seeds", "teacher_seeds", "select_baseline")
"""Keys of a study that the command line may set; all others there are keys of its runs."""
NOT_RESULTS = (
    "data.root",
    "data.cache",
    "data.memory",
    "data.download",
    "output_root",
    "on_busy",
    "overwrite",
    "report",
    "teacher.cache",
)
SECTIONS_NOT_RESULTS = ("runtime", "checkpoint", "hydra", "tracker")
"""Keys and sections that change no result, and so not the name of a study's folder; `RESULTS` are the exceptions."""
RESULTS = ("runtime", "runtime.precision")
SET_BY_STAGES = ("student", "pair", "method", "seed")
"""Keys of a run that a stage sets by fields of its own."""


def read_study(arguments: Sequence[str], config_dir: Path | None = None) -> Study:
    """Return a study from its YAML file and the command line.

    Args:
        arguments: `study=NAME`, settings of the study, `stages=[...]`, and overrides of every run.
        config_dir: the user's own folder of options; its study/ comes first.

    Raises:
        ConfigError: with the key, its value, and what it may be.
    """
    check_engines([argument for argument in arguments if not argument.startswith(("hydra.sweeper", "hydra/sweeper"))])
    given: dict[str, Any] = {}
    of_runs = []
    launcher = [argument for argument in arguments if is_of_launcher(argument)]
    arguments = [argument for argument in arguments if not is_of_launcher(argument)]
    for argument in arguments:
        key = argument.partition("=")[0]
        if "=" not in argument:
            raise ConfigError(f"{argument!r} cannot be read; write key=value", code="unreadable_override", key=argument)
        if key in ("study", "stages", *SETTINGS):
            given[key] = value_of(argument)
        else:
            of_runs.append(argument)
    name, file = chosen_study(given.pop("study", None), config_dir)
    stages = given.pop("stages", None)
    content = read_file(file)
    values = resolve(content | given, file)
    try:
        config = typed(StudyConfig, values)
    except ConfigError as error:
        if error.key.partition(".")[0] in given:
            raise
        config = typed(StudyConfig, values, f"study={name}")  # raises the same error, which names the study
    check(config, name)
    for text in (*config.overrides, *of_runs):
        check_override(text)
    last = {key_of(text): text for text in (*config.overrides, *of_runs)}  # the last one counts, at the first's place
    changes = changes_of(config, {key: value for key, value in given.items() if value != content.get(key)}, of_runs)
    return Study(
        name=name,
        config=config,
        overrides=tuple(last.values()),
        stages=chosen_stages(config, stages),
        label=label_of(name, changes),
        changes=changes,
        config_dir=config_dir,
        launcher=tuple(launcher),
    )


def is_of_launcher(argument: str) -> bool:
    """Return whether an argument chooses the launcher of a study, or sets a key of it."""
    key = argument.partition("=")[0]
    return key == "hydra/launcher" or key.startswith("hydra.launcher.")


def study_files(config_dir: Path | None) -> dict[str, Path]:
    """Return the YAML file of each study, by name."""
    folders = [CONF_DIR / "study", *([config_dir / "study"] if config_dir else [])]
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def chosen_study(name: Any, config_dir: Path | None) -> tuple[str, Path]:
    """Return the name and the file of the study that the command line names."""
    files = study_files(config_dir)
    if name is None:
        raise ConfigError(
            f"no study is named; write study=NAME; {nearest('', files)}", code="missing_value", key="study"
        )
    if not isinstance(name, str) or name not in files:
        raise ConfigError(
            f"study={name} is no option; {nearest(str(name), files)}; your own: --config-dir DIR, which holds study/",
            code="unknown_option",
            key="study",
        )
    return name, files[name]


def read_file(file: Path) -> dict[str, Any]:
    """Return the content of a study's file, its interpolations unresolved."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
    except Exception as error:  # the YAML library raises many types
        raise ConfigError(
            f"{file} is no valid YAML: {' '.join(str(error).split())}", code="invalid_yaml", key=f"study={file.stem}"
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"{file} describes no study; it must hold keys and values, stages among them",
            code="invalid_yaml",
            key=f"study={file.stem}",
        )
    return {str(key): value for key, value in content.items()}


def resolve(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the content of a study with every interpolation resolved, and its texts literal from here on."""
    try:
        resolved: Any = OmegaConf.to_container(OmegaConf.create(dict(content)), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{file}: {first_line(error)}", code="interpolation", key=str(getattr(error, "full_key", "") or "")
        ) from None
    return escape_interpolations(resolved)


def check_override(text: str) -> None:
    """Check that an override of every run gives one value, and no key of Hydra's.

    Raises:
        ConfigError: it does not.
    """
    key = key_of(text)
    if parse(text).is_delete():
        raise ConfigError(f"{text}: no key of a run can be deleted; give it another value", code="usage", key=key)
    if key.startswith(("hydra.", "hydra/")):
        raise ConfigError(
            f"{text}: a study executes its runs itself, in lockstep where they can share, or on the engine that "
            "hydra/launcher=NAME chooses, with hydra.launcher.KEY=VALUE; it takes no other key of Hydra's",
            code="usage",
            key=key,
        )
    if key == "overwrite" and value_of(text) is not False:
        raise ConfigError(
            f"{text}: a study trains what is not complete; to repeat it, give it another output_root, or delete the "
            "directories of its runs",
            code="usage",
            key=key,
        )
    if is_sweep(text):
        if key == "tracker":
            raise several_trackers(text)
        raise ConfigError(
            f"{text}: an override of a study gives every run one value; for several, execute the study once with each, "
            "or add a grid to a stage in its file",
            code="needs_multirun",
            key=key,
        )


def check(config: StudyConfig, name: str) -> None:
    """Check the rules between a study's fields.

    Raises:
        ConfigError: one does not hold.
    """
    earlier: list[str] = []
    choosing = [title for title, stage in config.stages.items() if stage.choose]
    if len(choosing) > 1:
        raise ConfigError(
            f"study={name}: the stages {' and '.join(choosing)} choose; one may, because there is one selected.yaml",
            code="mismatch",
            key=f"stages.{choosing[1]}.choose",
        )
    for set_key in map(key_of, config.overrides):
        if set_key in SET_BY_STAGES:
            raise ConfigError(
                f"study={name}: overrides sets {set_key}; stages set it by students, teachers, pairs, methods, seeds",
                code="set_by_study",
                key="overrides",
            )
    if config.select_baseline and not any(config.stages[title].baseline for title in choosing):
        raise ConfigError(
            f"study={name}: select_baseline is true, but no stage that chooses has a grid for the baselines; give one "
            "baseline: {recipe.lr: [0.05, 0.1]}, or set select_baseline to false",
            code="mismatch",
            key="select_baseline",
        )
    for title in config.stages:
        check_stage(config, title, earlier, f"study={name}: stages.{title}")
        earlier.append(title)


def check_stage(config: StudyConfig, title: str, earlier: Sequence[str], path: str) -> None:
    """Check the rules of one stage.

    Args:
        config: of the study.
        title: of the stage.
        earlier: titles of the stages before it.
        path: name of the stage in errors.
    """
    stage, key = config.stages[title], f"stages.{title}"
    trains = bool(stage.students or stage.teachers or stage.pairs)
    if not (trains or stage.chains or stage.measures):
        raise ConfigError(
            f"{path} trains nothing; give it students, teachers or pairs, or chains or measures",
            code="missing_value",
            key=key,
        )
    if trains and not stage.seeds:
        raise ConfigError(
            f"{key}.seeds has no value; give a list of different whole numbers from 0 on",
            code="missing_value",
            key=f"{key}.seeds",
        )
    check_derived(config, title, earlier, path)
    if stage.choose is not None and stage.choose not in CHOSEN_BY:
        raise ConfigError(
            f"{path}.choose is {stage.choose!r}; it must be {' or '.join(CHOSEN_BY)}, never a key of the test set",
            code="out_of_range",
            key=f"{key}.choose",
        )
    if stage.winners_of is not None:
        able = [other for other in earlier if config.stages[other].choose]
        if stage.winners_of not in able:
            raise ConfigError(
                f"{path}.winners_of is {stage.winners_of!r}; it must be an earlier stage that chooses: "
                f"{', '.join(able) or 'there is none'}",
                code="unknown_stage",
                key=f"{key}.winners_of",
            )
        missing = set(stage.pairs) - set(config.stages[stage.winners_of].pairs)
        if missing:
            raise ConfigError(
                f"{path}.pairs has {', '.join(sorted(missing))}, for which {stage.winners_of} chooses nothing",
                code="mismatch",
                key=f"{key}.pairs",
            )
    elif stage.methods and not stage.pairs:
        raise ConfigError(f"{path} has methods but no pairs to distil", code="missing_value", key=f"{key}.pairs")
    elif stage.pairs and not stage.methods:
        raise ConfigError(
            f"{path} has pairs but neither methods nor winners_of", code="missing_value", key=f"{key}.methods"
        )
    if stage.winners_of is not None:
        selection = config.stages[stage.winners_of]
        able = [*selection.methods, *([BASELINE_METHOD] if selection.baseline and config.select_baseline else [])]
        for method in stage.winning_methods:
            if method not in able:
                raise ConfigError(
                    f"{path}.winning_methods has {method}, for which {stage.winners_of} chooses nothing; it chooses "
                    f"for {', '.join(able)}",
                    code="mismatch",
                    key=f"{key}.winning_methods",
                )
    grids = [key for grid in stage.methods.values() if isinstance(grid, dict) for key in grid]
    for name in (*map(key_of, stage.overrides), *grids):
        if name in SET_BY_STAGES:
            raise ConfigError(
                f"{path} sets {name} in its overrides or a grid; the stage itself sets it, by students, teachers, "
                "pairs, methods and seeds",
                code="set_by_study",
                key=f"{key}.overrides",
            )
    for method, grid in stage.methods.items():
        check_grid(grid, f"{path}.methods.{method}", f"{key}.methods.{method}")
    check_grid(stage.baseline, f"{path}.baseline", f"{key}.baseline")
    for varied in stage.baseline:
        if not varied.startswith("recipe."):
            raise ConfigError(
                f"{path}.baseline varies {varied}; a baseline may vary keys of its recipe",
                code="unknown_key",
                key=f"{key}.baseline",
            )


def check_derived(config: StudyConfig, title: str, earlier: Sequence[str], path: str) -> None:
    """Check that the chains and measurements of a stage begin with earlier stages. Arguments: see `check_stage`."""
    stage, key = config.stages[title], f"stages.{title}"
    named = [(f"chains.{name}.of", other) for name, chain in stage.chains.items() for other in chain.of]
    for field, other in [*named, *(("measures", other) for other in stage.measures)]:
        if other not in earlier or config.stages[other].choose:
            able = [name for name in earlier if not config.stages[name].choose]
            raise ConfigError(
                f"{path}.{field} has {other}; it must be an earlier stage that does not choose: "
                f"{', '.join(able) or 'there is none'}",
                code="unknown_stage",
                key=f"{key}.{field}",
            )
    if stage.choose and (stage.chains or stage.measures):
        raise ConfigError(
            f"{path} chooses; chains and measures belong to stages that do not", code="mismatch", key=f"{key}.choose"
        )
    if stage.measures and (stage.students or stage.teachers or stage.pairs or stage.chains):
        raise ConfigError(
            f"{path} measures, and its overrides are settings of the measurement; give its other runs a stage of their "
            "own",
            code="mismatch",
            key=f"{key}.measures",
        )


def check_grid(grid: Any, path: str, key: str) -> None:
    """Check that a grid maps keys to lists of values; a method without a grid has null."""
    is_grid = isinstance(grid, dict) and all(isinstance(values, list) and values for values in grid.values())
    if grid is not None and not is_grid:
        raise ConfigError(f"{path} is {grid!r}; it must map keys to lists of values", code="wrong_type", key=key)


def chosen_stages(config: StudyConfig, wanted: Any) -> tuple[str, ...]:
    """Return the stages to execute, in the file's order.

    Args:
        config: of the study.
        wanted: names of the command line; None for all stages that are not optional.
    """
    if wanted is None:
        return tuple(title for title, stage in config.stages.items() if not stage.optional)
    names = [str(name) for name in (wanted if isinstance(wanted, list) else [wanted])]
    for name in names or [""]:
        if name not in config.stages:
            raise ConfigError(
                f"stages=[{', '.join(names)}]: {f'{name} is no stage' if name else 'the list is empty'}; "
                f"{nearest(name, config.stages)}",
                code="unknown_stage",
                key="stages",
            )
    return tuple(title for title in config.stages if title in names)


def changes_of(config: StudyConfig, settings: Mapping[str, Any], of_runs: Sequence[str]) -> dict[str, Any]:
    """Return the settings and overrides of the command line that can change results.

    Args:
        config: of the study.
        settings: settings of the command line that differ from the file's.
        of_runs: overrides of the command line.

    Returns:
        Settings by name, and `overrides` by key, each with its last value; without those of the study's file.
    """
    in_file = {key_of(text): value_of(text) for text in config.overrides}
    overrides = {key_of(text): value_of(text) for text in of_runs if changes_results(key_of(text))}
    if overrides.get("runtime") == "default":
        del overrides["runtime"]
    changed = {key: value for key, value in overrides.items() if (key, value) not in in_file.items()}
    return {"settings": dict(sorted(settings.items())), "overrides": dict(sorted(changed.items()))}


def changes_results(key: str) -> bool:
    """Return whether a key of a run can change its results."""
    section = key.replace("/", ".").partition(".")[0]
    return key in RESULTS or not (key in NOT_RESULTS or section in SECTIONS_NOT_RESULTS)


def label_of(name: str, changes: Mapping[str, Any]) -> str:
    """Return the name of a study's folder: the study's own, with a hash of what the command line changes."""
    if not any(changes.values()):
        return name
    digest = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:8]
    short = name.encode()[:200].decode(errors="ignore")  # names of files have at most 255 bytes
    return f"{short}_{digest}"

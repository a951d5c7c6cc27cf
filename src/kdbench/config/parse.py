"""From a composed config to a checked `RunConfig`: every check that needs neither data nor device.

A config that passes has only known keys, right types, values in range, and sections that fit together.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdbench.config.derived import KINDS, TRAIN
from kdbench.config.given import check_repeated_names, check_used
from kdbench.config.parse_derived import parse_compress, parse_measure, parse_run
from kdbench.config.parse_model import parse_model
from kdbench.config.parse_tracker import parse_trackers
from kdbench.config.paths import is_path
from kdbench.config.recipe import RecipeConfig, check_recipe
from kdbench.config.schema import added, as_yaml, one_of, optional, setting, typed, whole
from kdbench.config.sections import (
    FOLDER,
    OBJECTIVES,
    CheckpointConfig,
    DataConfig,
    MethodConfig,
    ModelConfig,
    RunConfig,
    RuntimeConfig,
    TeacherConfig,
    TeacherKeys,
    TrialConfig,
)
from kdbench.config.targets import (
    check_name,
    fault_of_data,
    fault_of_method,
    import_class,
)
from kdbench.errors import ConfigError

ROLES = ("baseline", "distilled", "control")
"""Roles of a method in a comparison; every method class declares one as `role`."""


@dataclass
class Document:
    """The top of the YAML tree: closed sections are typed here, open ones (models, methods) by what they name."""

    student: dict[str, Any] = MISSING
    teacher: dict[str, Any] = MISSING
    method: dict[str, Any] = MISSING
    data: dict[str, Any] = MISSING
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    seed: int = whole(0)
    init_seed: int = whole(0)
    data_seed: int = whole(0)
    output_root: str = setting(lambda value: value.strip() != "" and is_path(value), FOLDER)
    on_busy: str = one_of("wait", "skip")
    overwrite: bool = MISSING
    report: str | None = optional(setting(lambda value: value.strip() != "" and is_path(value), FOLDER))
    kind: str = one_of(*KINDS, absent=KINDS[0])
    parent: Any = setting(absent=None)
    compress: dict[str, Any] | None = setting(absent=None)
    measure: dict[str, Any] | None = setting(absent=None)
    trust: list[str] = field(default_factory=list)
    objectives: list[str] = added(
        setting(
            lambda names: 0 < len(names) == len(set(names)) and set(names) <= set(OBJECTIVES),
            f"a list of one or more of {', '.join(OBJECTIVES)}",
            identity=False,
        ),
        OBJECTIVES[:1],
    )
    trial: dict[str, Any] | None = setting(absent=None, identity=False)
    shared_roots: list[str] = added(
        setting(lambda roots: all(root.strip() and is_path(root) for root in roots), "a list of folder paths"), ()
    )
    tracker: dict[str, Any] = field(default_factory=dict)


def parse(config: DictConfig | Mapping[str, Any], names: Mapping[str, Any] | None = None) -> RunConfig:
    """Return a checked run from a composed config.

    Args:
        config: composed by Hydra, or the content of a run directory's config.yaml.
        names: chosen option per group (Hydra's `runtime.choices`); they name student, teacher and method.

    Raises:
        ConfigError: with one line that says which key, what it was, and what it may be.
    """
    unresolved = OmegaConf.create(config)  # type: ignore[arg-type]  # any Mapping will do
    check_values_of_hydra(OmegaConf.to_container(unresolved))
    try:
        tree: Any = OmegaConf.to_container(unresolved, resolve=True)
    except OmegaConfBaseException as error:
        key = str(error.full_key)
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}", code="interpolation", key=key) from None
    for group, option in tree.items():
        if names and group in names and isinstance(option, str):
            raise option_as_key(group, option)
    for group in ("pair", "experiment"):
        if group in tree:
            raise ConfigError(
                f"{group}={names and names.get(group)} sets keys of its own section; begin the file with the line "
                "'# @package _global_', so that its keys are those of the run",
                code="invalid_option_file",
                key=group,
            )
    for group in ("student", "teacher", "method", "data"):
        if names and isinstance(tree.get(group), dict) and "name" not in tree[group]:
            if not isinstance(names.get(group), str):
                raise ConfigError(
                    f"{group} takes the name of one option; for a run of each, write -m {group}=A,B",
                    code="several_options",
                    key=group,
                )
            tree[group]["name"] = names[group]
    if isinstance(tree.get("recipe"), dict) and tree["recipe"].keys() & {"recipe", "teacher"}:
        raise ConfigError(
            f"recipe={names and names.get('recipe')} sets keys of its own section; begin the file with the line "
            "'# @package _global_', so that its keys are those of the run",
            code="invalid_option_file",
            key="recipe",
        )
    try:
        document = typed(Document, tree)
    except ConfigError as error:
        if error.code == "missing_value" and re.match(r"(teacher\.)?recipe\.(?!epochs)", error.key):
            raise ConfigError(
                f"{error.key} has no value; a recipe's file begins with all keys by 'settings/all@recipe' and "
                "'settings/all@teacher.recipe' in its defaults (docs/recipes.md)",
                code=error.code,
                key=error.key,
            ) from None
        raise
    method = parse_method(document.method)
    open_sections = {
        "student": parse_model(document.student, "student"),
        "teacher": parse_teacher(document.teacher, method),
        "method": method,
        "data": parse_data(document.data, recorded=not names),
        "parent": parse_run(document.parent, "parent"),
        "compress": parse_compress(document.compress),
        "measure": parse_measure(document.measure),
        "trial": typed(TrialConfig, document.trial, "trial") if document.trial else None,
        "trackers": parse_trackers(document.tracker),
    }
    closed = {f.name: getattr(document, f.name) for f in dataclasses.fields(Document) if f.name != "tracker"}
    run = RunConfig(**closed | open_sections)
    check_together(run)
    if names and HydraConfig.initialized():
        given = HydraConfig.get().overrides.task
        check_repeated_names(given)
        check_used(run, given)
    return run


def check_values_of_hydra(node: Any, path: str = "") -> None:
    """Check that every `${hydra:KEY}` in a config has a value: Hydra would write None in its place.

    Raises:
        ConfigError: one has none, such as the number of the run where there is no sweep.
    """
    if isinstance(node, dict):
        for name, inner in node.items():
            check_values_of_hydra(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(node, list):
        for inner in node:
            check_values_of_hydra(inner, path)
    elif isinstance(node, str) and HydraConfig.initialized():
        for key in re.findall(r"(?<!\\)\$\{hydra:([\w./]+)\}", node):
            if OmegaConf.select(HydraConfig.get(), key) is None:  # type: ignore[arg-type]  # a DictConfig
                where = "; it is the number of a run in a sweep, with -m" if key in ("job.num", "job.id") else ""
                raise ConfigError(f"{path}: ${{hydra:{key}}} has no value here{where}", code="interpolation", key=path)


def option_as_key(group: str, option: str) -> ConfigError:
    """Return the error for an option that a file writes as a key."""
    return ConfigError(
        f"{group}: {option} in a file sets a key; a file that chooses an option lists "
        f"'- override /{group}: {option}' in its defaults",
        code="invalid_option_file",
        key=group,
    )


def parse_method(node: Mapping[str, Any]) -> MethodConfig:
    """Return a method whose keys are those of its class's `Config`."""
    params = dict(node)
    name, target = params.pop("name", None), params.pop("_target_", None)
    check_name(name, "method")
    cls = import_class(target, "method", "kdbench.methods.Method", fault_of_method, code="no_method")
    if getattr(cls, "role", None) not in ROLES:
        raise ConfigError(
            f"method._target_ is {target!r}, whose role is {getattr(cls, 'role', None)!r}; the class must declare "
            f"role as one of {', '.join(ROLES)}",
            code="no_role",
            key="method._target_",
        )
    if params and not dataclasses.fields(cls.Config):
        raise ConfigError(
            f"method.{next(iter(params))} is a key of the file, and {target} declares none; give the class a dataclass "
            "Config with a field for each key, such as one that extends kdbench.methods.base.LossWeights",
            code="unknown_key",
            key=f"method.{next(iter(params))}",
        )
    return MethodConfig(name, cls, typed(cls.Config, params, "method"))


def parse_data(node: Mapping[str, Any], recorded: bool = False) -> DataConfig:
    """Return a data set whose keys are those of its class's `Config`.

    Args:
        node: section of the config.
        recorded: whether it may hold the hash of the images, as the config of a run directory does.
    """
    params = dict(node)
    name, target = (params.pop(key, None) for key in ("name", "_target_"))
    content = params.pop("content", None) if recorded else None
    name = name.replace("/", "-") if isinstance(name, str) else name  # the file's folder
    if content is not None and not (isinstance(content, str) and re.fullmatch("[0-9a-f]{64}", content)):
        raise ConfigError(
            f"data.content is {as_yaml(content)}; it must be a hash, as a run records it",
            code="wrong_type",
            key="data.content",
        )
    check_name(name, "data")
    cls = import_class(target, "data", "kdbench.data.ImageData", fault_of_data, code="no_data")
    keys = typed(cls.Config, params, "data")
    check_normalisation(keys, "data", "those of the training images")
    name = cls.title(keys, name)
    check_name(name, "data")
    return DataConfig(name, cls, keys, content)


def check_normalisation(keys: Any, path: str, absent: str) -> None:
    """Check that mean and standard deviation of a section are given together, with as many numbers.

    Args:
        keys: the section.
        path: where it stands in the config.
        absent: what counts where both are null.

    Raises:
        ConfigError: they are not.
    """
    if (keys.mean is None) != (keys.std is None) or (keys.mean and len(keys.mean) != len(keys.std)):
        raise ConfigError(
            f"{path}.mean is {as_yaml(keys.mean)} and {path}.std is {as_yaml(keys.std)}; give both with a number per "
            f"channel, or null for both: {absent}",
            code="mismatch",
            key=f"{path}.mean",
        )


def parse_teacher(node: Mapping[str, Any], method: MethodConfig) -> TeacherConfig | None:
    """Return the teacher, or None if the method uses none (then it is no part of the run's key either)."""
    own = {f.name for f in dataclasses.fields(TeacherKeys)}
    given = {key: value for key, value in node.items() if key in own}
    if isinstance(given.get("cache"), bool):  # YAML reads a bare on or off as a switch
        given["cache"] = "on" if given["cache"] else "off"
    model = {key: value for key, value in node.items() if key not in own}
    keys = typed(TeacherKeys, given, "teacher") if given else None
    architecture = parse_model(model, "teacher") if "_target_" in model else None
    if not method.target.needs_teacher:
        return None
    run = parse_run(keys.run, "teacher.run") if keys else None
    if keys is not None and run is not None:
        if keys.checkpoint is not None:
            raise ConfigError(
                f"teacher.run is {run.run!r} and teacher.checkpoint is {keys.checkpoint!r}; give one of them",
                code="mismatch",
                key="teacher.run",
            )
        architecture = architecture or ModelConfig("run", "", {}, {})  # the run's own is read when it is found
    if architecture is None or keys is None:
        raise ConfigError(
            f"method={method.name} needs a teacher and teacher=none was given; "
            "name one, for example teacher=resnet50, or use method=ce",
            code="no_teacher",
            key="teacher",
        )
    check_normalisation(keys, "teacher", "that of the data")
    if keys.checkpoint is not None and architecture.weights is not None:
        raise ConfigError(
            f"teacher.weights is {architecture.weights!r} and teacher.checkpoint is {keys.checkpoint!r}; the first are "
            "where a training starts, the second replace it: give one of them",
            code="mismatch",
            key="teacher.weights",
        )
    if keys.checkpoint_key is not None and keys.checkpoint is None:
        raise ConfigError(
            f"teacher.checkpoint_key is {keys.checkpoint_key!r} and teacher.checkpoint is null; give the file too",
            code="mismatch",
            key="teacher.checkpoint_key",
        )
    return TeacherConfig(
        architecture, keys.seed, keys.recipe, keys.checkpoint, keys.cache, keys.checkpoint_key, keys.mean, keys.std,
        run,
    )  # fmt: skip


def check_together(run: RunConfig) -> None:
    """Check the rules between keys."""
    if run.kind != TRAIN and (run.parent is None or not (run.compress or run.measure)):
        raise ConfigError(
            f"kind is {run.kind}; such runs are those of kdbench-compress and kdbench-measure, and kdbench trains",
            code="out_of_range",
            key="kind",
        )
    check_recipe(run.recipe, "recipe")
    if run.teacher:
        check_recipe(run.teacher.recipe, "teacher.recipe")
    soft = {"mixup": run.recipe.mixup, "cutmix": run.recipe.cutmix, "label_smoothing": run.recipe.label_smoothing}
    given = next((name for name, value in soft.items() if value), None)
    if given and not getattr(run.method.target, "soft_labels", False):
        raise ConfigError(
            f"recipe.{given} is {soft[given]:g}, which makes labels probabilities, and method={run.method.name} needs "
            "integer labels (its class does not declare soft_labels = True); use "
            f"recipe.{given}=0 or another method, such as ce or logit",
            code="integer_labels",
            key=f"recipe.{given}",
        )

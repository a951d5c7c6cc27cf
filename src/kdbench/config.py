"""The typed config of a run and every check of it that needs neither data nor device.

`parse` turns what Hydra composed (or a run directory's config.yaml) into a `RunConfig`; a config that gets past it
has only known keys, right types, values in range, and fields that fit together. This module alone knows all groups.
"""

import dataclasses
import inspect
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra.utils
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdbench.errors import ConfigError, first_line, nearest
from kdbench.schema import number, one_of, optional, ranged, typed, whole

INSTALLED_CONF = Path(__file__).parent / "conf"
# A wheel carries conf/ inside the package; a checkout has it at the top.
CONF_DIR = INSTALLED_CONF if INSTALLED_CONF.is_dir() else Path(__file__).parents[2] / "conf"


FOLDER = "a folder whose path this system can have"


def is_path(value: str) -> bool:
    """Whether the system can take it for a path: not too long, and `~name` is somebody's home."""
    try:
        os.stat(Path(value).expanduser())  # noqa: PTH116  # Path.exists is silent about some of it in some Pythons
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return True
    except (OSError, RuntimeError, ValueError):
        return False
    return True


@dataclass
class RecipeConfig:
    epochs: int = whole(1)
    batch_size: int = whole(2)
    lr: float = number(0, above=True)
    min_lr: float = number(0)
    momentum: float = number(0, 1)
    nesterov: bool = MISSING
    weight_decay: float = number(0)
    clip_norm: float | None = optional(number(0, above=True))
    clip_projections: bool = MISSING
    on_nonfinite: str = one_of("stop", "skip")
    nonfinite_limit: int = whole(1)


@dataclass
class DataConfig:
    name: str = MISSING
    root: str = ranged(is_path, FOLDER)
    download: bool = MISSING
    num_train: int = whole(1)
    num_val: int = whole(1)
    num_test: int = whole(1)
    augment: bool = MISSING
    mean: list[float] = ranged(lambda v: len(v) == 3 and all(map(math.isfinite, v)), "three finite numbers")
    std: list[float] = ranged(lambda v: len(v) == 3 and all(0 < x < math.inf for x in v), "three numbers above 0")


@dataclass
class RuntimeConfig:
    device: str = ranged(
        lambda value: re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) is not None, "auto, cpu, cuda or cuda:0, cuda:1, ..."
    )
    precision: str = one_of("auto", "fp32", "bf16", "fp16")
    channels_last: bool = MISSING
    threads: Any = ranged(  # where OpenMP cannot start as many as it was asked for, it ends the process without a word
        lambda value: value == "auto" or (type(value) is int and 1 <= value <= 1024),
        "auto or a whole number from 1 to 1024",
    )
    profile: str = one_of("fast", "repro")
    graphs: bool = MISSING
    compile: bool = MISSING


@dataclass
class CheckpointConfig:
    every_epochs: int | None = optional(whole(1))
    every_minutes: float | None = optional(number(0))
    grace_seconds: float = number(0, 86_400, above=True)
    keep_last: bool = MISSING


@dataclass
class ModelConfig:
    """An architecture: what to call, with what, and which of its nodes are stages."""

    name: str
    target: str
    stages: dict[str, str]
    arguments: dict[str, Any]

    @property
    def stem(self) -> str | None:
        return self.arguments.get("stem")

    def node(self) -> dict[str, Any]:
        return {"name": self.name, "_target_": self.target, **self.arguments, "stages": self.stages}


@dataclass
class MethodConfig:
    """How the student learns. `params` is an instance of the method class's own `Config`."""

    name: str
    target: type[Any]
    params: Any

    def node(self) -> dict[str, Any]:
        path = f"{self.target.__module__}.{self.target.__qualname__}"
        return {"name": self.name, "_target_": path, **dataclasses.asdict(self.params)}


@dataclass
class TeacherConfig:
    model: ModelConfig
    seed: int
    recipe: RecipeConfig
    checkpoint: str | None
    table: str

    def node(self) -> dict[str, Any]:
        return {
            **self.model.node(),
            "seed": self.seed,
            "recipe": dataclasses.asdict(self.recipe),
            "checkpoint": self.checkpoint,
            "table": self.table,
        }


@dataclass
class RunConfig:
    student: ModelConfig
    teacher: TeacherConfig | None
    method: MethodConfig
    data: DataConfig
    recipe: RecipeConfig
    runtime: RuntimeConfig
    checkpoint: CheckpointConfig
    seed: int
    init_seed: int
    data_seed: int
    output_root: str
    on_busy: str
    overwrite: bool
    report: str | None

    def node(self) -> dict[str, Any]:
        """Plain data in the shape of the YAML it came from; `parse` reads it back."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, value in plain.items():
            if hasattr(value, "node"):
                plain[name] = value.node()
            elif dataclasses.is_dataclass(value) and not isinstance(value, type):
                plain[name] = dataclasses.asdict(value)
        return plain | {"teacher": self.teacher.node() if self.teacher else {"name": "none"}}


@dataclass
class Document:
    """The YAML tree's top: closed sections typed here, open ones (models, methods) checked by what they name."""

    student: dict[str, Any] = MISSING
    teacher: dict[str, Any] = MISSING
    method: dict[str, Any] = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    seed: int = whole(0)
    init_seed: int = whole(0)
    data_seed: int = whole(0)
    output_root: str = ranged(lambda value: value.strip() != "" and is_path(value), FOLDER)
    on_busy: str = one_of("wait", "skip")
    overwrite: bool = MISSING
    report: str | None = optional(ranged(lambda value: value.strip() != "" and is_path(value), FOLDER))


@dataclass
class TeacherKeys:
    seed: int = whole(0)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    checkpoint: str | None = optional(ranged(is_path, "a file whose path this system can have"))
    table: str = one_of("auto", "on", "off")


def parse(config: DictConfig | Mapping[str, Any], names: Mapping[str, Any] | None = None) -> RunConfig:
    """A checked run from a composed config.

    Args:
        config: What Hydra composed, or the content of a run directory's config.yaml.
        names: Chosen option per group (Hydra's `runtime.choices`); they name student, teacher and method.

    Raises:
        ConfigError: with one line that says which key, what it was, and what it may be.
    """
    try:
        tree: Any = OmegaConf.to_container(OmegaConf.create(config), resolve=True)  # type: ignore[arg-type]  # any Mapping will do
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    for group in ("student", "teacher", "method"):
        if names and isinstance(tree.get(group), dict) and "name" not in tree[group]:
            if not isinstance(names.get(group), str):
                raise ConfigError(f"{group} takes one option by name; a sweep over several is -m {group}=A,B")
            tree[group]["name"] = names[group]
    document = typed(Document, tree)
    method = parse_method(document.method)
    open_sections = {
        "student": parse_model(document.student, "student"),
        "teacher": parse_teacher(document.teacher, method),
        "method": method,
    }
    run = RunConfig(**{f.name: getattr(document, f.name) for f in dataclasses.fields(Document)} | open_sections)
    check_together(run)
    return run


def parse_model(node: Mapping[str, Any], path: str) -> ModelConfig:
    arguments = dict(node)
    name, target, stages = (arguments.pop(key, None) for key in ("name", "_target_", "stages"))
    check_name(name, path)
    if not isinstance(target, str):
        raise ConfigError(f"{path}._target_ is {target!r}; it must be the import path of what builds the network")
    check_arguments(target, arguments, path)
    if not isinstance(stages, dict) or not all(isinstance(n, str) for n in stages.values()):
        raise ConfigError(f"{path}.stages is {stages!r}; it must map names of stages to nodes of the network")
    return ModelConfig(name, target, {str(k): v for k, v in stages.items()}, arguments)


def check_arguments(target: str, arguments: Mapping[str, Any], path: str) -> None:
    """That what builds the network knows the keys it is given, where its signature says them."""
    try:
        parameters = inspect.signature(hydra.utils.get_method(target)).parameters
    except Exception as error:
        raise ConfigError(f"{path}._target_ is {target!r}, which cannot be called: {first_line(error)}") from None
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    valid = {*parameters, "stages", "_target_"} - {"num_classes"}
    if path == "teacher":
        valid |= {f.name for f in dataclasses.fields(TeacherKeys)}
    for name in arguments:
        if name not in valid:
            raise ConfigError(f"{path}.{name} is no known key; {nearest(name, valid)}")


def check_name(name: Any, path: str) -> None:
    """Names become part of the run directory's name."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise ConfigError(
            f"{path}.name is {name!r}; it may hold letters, digits, dots, dashes and underscores, at most 64"
        )


def parse_method(node: Mapping[str, Any]) -> MethodConfig:
    from kdbench.methods.method import Method

    params = dict(node)
    name, target = params.pop("name", None), params.pop("_target_", None)
    check_name(name, "method")
    try:
        cls = hydra.utils.get_class(str(target))
    except Exception as error:
        raise ConfigError(f"method._target_ is {target!r}, which cannot be imported: {first_line(error)}") from None
    if not issubclass(cls, Method) or inspect.isabstract(cls):
        raise ConfigError(f"method._target_ is {target!r}; it must be a subclass of kdbench.methods.Method")
    return MethodConfig(name, cls, typed(cls.Config, params, "method"))


def parse_teacher(node: Mapping[str, Any], method: MethodConfig) -> TeacherConfig | None:
    """The teacher, or None if the method uses none (then it is no part of the run's key either)."""
    own = {f.name for f in dataclasses.fields(TeacherKeys)}
    given = {key: value for key, value in node.items() if key in own}
    if isinstance(given.get("table"), bool):  # what YAML makes of a bare on or off
        given["table"] = "on" if given["table"] else "off"
    model = {key: value for key, value in node.items() if key not in own}
    keys = typed(TeacherKeys, given, "teacher") if given else None
    architecture = parse_model(model, "teacher") if "_target_" in model else None
    if not method.target.needs_teacher:
        return None
    if architecture is None or keys is None:
        raise ConfigError(
            f"method={method.name} needs a teacher and teacher=none was given; "
            "name one, for example teacher=resnet50, or use method=ce"
        )
    return TeacherConfig(architecture, keys.seed, keys.recipe, keys.checkpoint, keys.table)


def check_together(run: RunConfig) -> None:
    """Rules between fields."""
    recipes = {"recipe": run.recipe} | ({"teacher.recipe": run.teacher.recipe} if run.teacher else {})
    for path, recipe in recipes.items():
        if run.data.num_train % recipe.batch_size == 1:
            raise ConfigError(
                f"{path}.batch_size is {recipe.batch_size}, which leaves one of data.num_train={run.data.num_train} "
                "images alone in the last batch, where batch norm is undefined; change one of the two"
            )
        if recipe.min_lr > recipe.lr:
            raise ConfigError(f"{path}.min_lr is {recipe.min_lr:g}; it may be at most {path}.lr, {recipe.lr:g}")
        if recipe.nesterov and recipe.momentum == 0:
            raise ConfigError(f"{path}.momentum is 0, which {path}.nesterov=true does not allow; use nesterov=false")


def register_models(*config_dirs: Path) -> None:
    """Offer every file of each folder's model/ as `student=NAME` and as `teacher=NAME`; later folders win."""
    store = ConfigStore.instance()
    store.store(group="teacher", name="none", node={})
    for directory in config_dirs:
        for file in sorted((directory / "model").glob("*.yaml")):
            try:
                node = OmegaConf.load(file)
            except Exception as error:  # the YAML library has many ways to complain
                raise ConfigError(f"{file} is no valid YAML: {' '.join(str(error).split())}") from None
            if not isinstance(node, DictConfig):
                raise ConfigError(f"{file} describes no model: it must hold keys and values, _target_ among them")
            for group in ("student", "teacher"):
                store.store(group=group, name=file.stem, node=node, provider=str(file))

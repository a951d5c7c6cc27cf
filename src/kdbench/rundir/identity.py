"""Identity: the keys of runs, groups and baselines, and which run a teacher is.

A key is a hash of what can change a run's numbers. Paths, the kind of device, threads, the logit cache and names of
options are not part of it. A setting at its neutral value is left out (`kdbench.config.schema`), so that a new setting
changes no existing key.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.config import DataConfig, MethodConfig, ModelConfig, RecipeConfig, RunConfig
from kdbench.config.derived import TRAIN, CompressConfig
from kdbench.config.parse import parse_method
from kdbench.config.sections import EXACT
from kdbench.errors import ConfigError
from kdbench.rundir.argument_files import files_identity, sha256_of_file, targets_in
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.files import hash_of
from kdbench.rundir.source import source_identity
from kdbench.rundir.summary import GIVEN, SCHEMA_VERSION


def run_identity(config: RunConfig, teacher_key: str | None) -> dict[str, Any]:
    """Return the part of a resolved config that can change a run's numbers.

    Args:
        config: with every `auto` resolved. `seed` is not part of it: it acts through `init_seed` and `data_seed`.
        teacher_key: key of the teacher's run.
    """
    if config.kind != TRAIN:
        return derived_identity(config)
    stages = {}
    if getattr(config.method.target, "uses_stages", False):  # `GivenWeights` is no method
        stages["student"] = stages_identity(config.student.stages)
        if config.teacher:
            stages["teacher"] = stages_identity(config.teacher.model.stages)
    network = {"parent": config.parent.run} if config.parent else {"student": model_identity(config.student)}
    return {
        "schema_version": SCHEMA_VERSION,
        **network,
        "method": method_identity(config.method),
        "teacher": teacher_key,
        "stages": stages,
        "data": data_identity(config.data),
        "recipe": recipe_identity(config.recipe),
        "init_seed": config.init_seed,
        "data_seed": config.data_seed,
        "precision": config.runtime.precision,
        **({"processes": config.runtime.processes} if config.runtime.processes > 1 else {}),
    }


def derived_identity(config: RunConfig) -> dict[str, Any]:
    """Return the identity of a run that compresses or measures the network of its parent."""
    assert config.parent is not None
    identity = {"schema_version": SCHEMA_VERSION, "kind": config.kind, "parent": config.parent.run}
    if config.compress:
        identity["compress"] = compress_identity(config.compress)
    if config.measure:
        identity["measure"] = section_identity(config.measure)
    return identity


def compress_identity(compress: CompressConfig) -> dict[str, Any]:
    """Return what a compression is, without its name."""
    return {"_target_": compress.path, **section_identity(compress.params), **source_identity(compress.path)}


def stages_identity(stages: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stages of a network, with their order where it is not that of their names: the last one may count."""
    names = list(stages)
    return dict(stages) if names == sorted(names) else {"order": names, "stages": dict(stages)}


def section_identity(section: Any) -> dict[str, Any]:
    """Return the settings of a section that can change numbers, without those at their neutral value.

    A section within it is left out when nothing of it remains.
    """
    settings = {}
    for f in dataclasses.fields(section):
        value = getattr(section, f.name)
        if not f.metadata.get("identity", True) or value == f.metadata.get("neutral", dataclasses.MISSING):
            continue
        if dataclasses.is_dataclass(value):
            value = section_identity(value)
            if not value:
                continue
        settings[f.name] = value
    return settings


def recipe_identity(recipe: RecipeConfig) -> dict[str, Any]:
    """Return the keys of a recipe that can change numbers; those of another optimiser or schedule cannot."""
    unused = recipe.unused()
    return {name: value for name, value in section_identity(recipe).items() if name not in unused}


def data_identity(data: DataConfig) -> dict[str, Any]:
    """Return what a data set is, without the name that people gave it."""
    own = data.target.own_name if data.path.startswith("kdbench.") else ""
    target = {"name": own} if own else {"_target_": data.path, **source_identity(data.path)}
    settings = section_identity(data.params)
    if not data.params.augment:
        settings = {name: value for name, value in settings.items() if name not in ("padding", "flip")}
    content = {"content": data.content} if data.content else {}
    return {**target, **settings, **content, **(files_identity(settings) if is_foreign(data.path) else {})}


def model_identity(model: ModelConfig) -> dict[str, Any]:
    """Return what an architecture and its first weights are, without the names that people gave it and its stages."""
    if not model.weights:
        return architecture_identity(model)
    return architecture_identity(model) | {"weights_hash": model.weights_hash or hash_of_weights(model)}


def hash_of_weights(model: ModelConfig) -> str:
    """Return the hash of the file of an architecture's first weights."""
    from kdbench.models.pretrained import weights_file  # here, since it imports torch

    return sha256_of_file(weights_file(model))


def with_hashed_weights(config: RunConfig) -> RunConfig:
    """Return a config with the hash of the first weights of student and teacher, which its record keeps.

    Raises:
        ConfigError: there are no such weights.
    """

    def hashed(model: ModelConfig, group: str) -> ModelConfig:
        if not model.weights:
            return model
        try:
            return dataclasses.replace(model, weights_hash=hash_of_weights(model))
        except ConfigError as error:
            raise ConfigError(f"{group}.{error}", code=error.code, key=f"{group}.weights") from None

    teacher = config.teacher
    return dataclasses.replace(
        config,
        student=hashed(config.student, "student"),
        teacher=dataclasses.replace(teacher, model=hashed(teacher.model, "teacher")) if teacher else None,
    )


def architecture_identity(model: ModelConfig) -> dict[str, Any]:
    """Return what an architecture is: what trained weights are valid for."""
    logits = {} if model.logits is None else {"logits": model.logits}
    return {
        "_target_": model.target,
        **model.arguments,
        **logits,
        **source_identity(model.target, *targets_in(model.arguments)),
        **(files_identity(model.arguments) if is_foreign(model.target) else {}),
    }


def method_identity(method: MethodConfig) -> dict[str, Any]:
    """Return what a method is, without its name."""
    settings = section_identity(method.params)
    files = files_identity(settings) if is_foreign(method.path) else {}
    return {"_target_": method.path, **settings, **source_identity(method.path), **files}


def is_foreign(target: str) -> bool:
    """Return whether a class or function is not kdbench's own; its own ones read no files."""
    return not target.startswith("kdbench.")


def group_key(identity: Mapping[str, Any], config: RunConfig) -> str:
    """Return the key that runs share which differ in their seeds alone, and in those of the runs that they name.

    Args:
        identity: of the run.
        config: its config.
    """
    shared = {name: value for name, value in identity.items() if name not in ("init_seed", "data_seed")}
    if config.parent:
        shared["parent"] = config.parent.group
    if config.teacher and config.teacher.run and config.kind == TRAIN:
        shared["teacher"] = config.teacher.run.group
    if "measure" in shared:
        shared["measure"] = {name: value for name, value in shared["measure"].items() if name != "together"}
    return hash_of(shared)


def baseline_key(identity: Mapping[str, Any]) -> str | None:
    """Return the key that runs share which differ in method and teacher alone, as a student and its baseline do.

    `clip_projections` is left out: a baseline has no projections. A run that compresses or measures has none.
    """
    if "recipe" not in identity:
        return None
    recipe = {name: value for name, value in identity["recipe"].items() if name != "clip_projections"}
    shared = {name: value for name, value in identity.items() if name not in ("method", "teacher", "stages")}
    return hash_of(shared | {"recipe": recipe})


def run_key(config: RunConfig) -> str:
    """Return the key of a resolved run."""
    return hash_of(identity_of(config))


def identity_of(config: RunConfig) -> dict[str, Any]:
    """Return the identity of a resolved run."""
    return run_identity(config, teacher_key(config) if config.teacher and config.kind == TRAIN else None)


# Teachers


@dataclass
class GivenWeights:
    """Parameters of the method `checkpoint`, which marks a teacher whose weights were given."""

    file: str
    sha256: str
    key: str | None = field(default=None, metadata={"neutral": None})
    """Place of the weights in the file, where it holds several."""


BASELINE = {"name": "ce", "_target_": "kdbench.methods.ce.CrossEntropy"}
"""The method by which teachers are trained."""


def teacher_data(config: RunConfig) -> DataConfig:
    """Return the data of a run's teacher: those of the run, with the teacher's own normalisation if it has one."""
    assert config.teacher is not None
    mean, std = config.teacher.mean, config.teacher.std
    if mean is None or std is None:
        return config.data
    return dataclasses.replace(config.data, params=dataclasses.replace(config.data.params, mean=mean, std=std))


def teacher_config(config: RunConfig) -> RunConfig:
    """Return the run that trains this run's teacher: the teacher's recipe and seed, this run's data and runtime."""
    assert config.teacher is not None
    seed = config.teacher.seed
    return dataclasses.replace(
        config,
        student=config.teacher.model,
        teacher=None,
        method=parse_method(BASELINE),
        data=teacher_data(config),
        recipe=config.teacher.recipe,
        runtime=dataclasses.replace(config.runtime, parallel=EXACT, processes=1),  # one teacher for all its students
        seed=seed,
        init_seed=seed,
        data_seed=seed,
        overwrite=False,
        kind=TRAIN,
        parent=None,
        compress=None,
        measure=None,
        trial=None,
    )


def given_config(config: RunConfig) -> RunConfig:
    """Return what stands in the store for `teacher.checkpoint`: a run of the method `checkpoint`, with the file's hash.

    Raises:
        ConfigError: there is no such file.
    """
    path = checkpoint_path(config)
    if not path.is_file():
        raise ConfigError(
            f"teacher.checkpoint is {path}, and there is no such file; give a .safetensors or .pth file",
            code="not_found",
            key="teacher.checkpoint",
        )
    try:
        params = GivenWeights(
            path.name, sha256_of_file(path), config.teacher.checkpoint_key if config.teacher else None
        )
    except OSError as error:
        raise ConfigError(
            f"teacher.checkpoint is {path}, which cannot be read: {error.strerror}",
            code="not_readable",
            key="teacher.checkpoint",
        ) from None
    return dataclasses.replace(teacher_config(config), method=MethodConfig(GIVEN, GivenWeights, params))


def checkpoint_path(config: RunConfig) -> Path:
    """Return the path of `teacher.checkpoint`."""
    assert config.teacher is not None
    assert config.teacher.checkpoint is not None
    return Path(config.teacher.checkpoint).expanduser()


def teacher_key(config: RunConfig) -> str:
    """Return the key of the run that is this run's teacher."""
    assert config.teacher is not None
    if config.teacher.run:
        return config.teacher.run.run
    if config.teacher.checkpoint is None:
        return run_key(teacher_config(config))
    run = given_config(config)
    return given_key(run, run.method.params.sha256, run.method.params.key)


def given_key(run: RunConfig, weights_file_sha256: str, key: str | None) -> str:
    """Return the key of given weights. How they were trained is unknown, and the name of the file changes nothing.

    Args:
        run: the run that would have trained them.
        weights_file_sha256: hash of the file.
        key: place of the weights in the file, or None.
    """
    whole = run_identity(run, teacher_key=None) | {"student": architecture_identity(run.student)}
    given = {"sha256": weights_file_sha256} | ({"key": key} if key else {})
    return hash_of({name: whole[name] for name in ("student", "data", "precision")} | given)


def teacher_directory(config: RunConfig) -> RunDirectory:
    """Return where this run's teacher is, or will be."""
    assert config.teacher is not None
    run = given_config(config) if config.teacher.checkpoint else teacher_config(config)
    return RunDirectory.of(run, teacher_key(config))

"""Runs that another run names: its parent, and a teacher that is a finished run."""

import dataclasses
import re
from pathlib import Path

from kdbench.config import DataConfig, ModelConfig, RunConfig, TeacherConfig
from kdbench.config.derived import MEASURE, TRAIN, ParentConfig
from kdbench.config.paths import is_folder
from kdbench.errors import ConfigError
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.load import check_unchanged, read_complete
from kdbench.rundir.recorded_config import read_config
from kdbench.rundir.summary import RunSummary

TUNED = "-tuned"
"""End of the name of a network whose training starts from the weights of another run."""
LONGEST_NAME = 64
"""Largest length of a network's name."""


@dataclasses.dataclass(frozen=True)
class RelatedRun:
    """A complete run that another one names."""

    directory: RunDirectory
    summary: RunSummary
    config: RunConfig

    @property
    def network(self) -> ModelConfig:
        """Its architecture without first weights: its own weights take their place."""
        return dataclasses.replace(self.config.student, weights=None, weights_hash=None)

    def as_parent(self) -> ParentConfig:
        """Return the run as the parent of another."""
        return ParentConfig(self.summary.run_key, self.summary.group_key or self.summary.run_key, self.config.steps)


def with_related(config: RunConfig) -> RunConfig:
    """Return a config with the networks of its parent and of its teacher's run in place.

    A run that is not complete yet keeps its place, if it was found before: a chain is planned before it is executed.

    Raises:
        ConfigError: a run was not found, is not finished, or cannot take that part.
    """
    if config.parent and config.kind == TRAIN and (parent := find_related(config, config.parent, "parent")):
        network = parent.network
        network = dataclasses.replace(network, name=tuned_name(network.name))
        config = dataclasses.replace(config, parent=parent.as_parent(), student=network)
    if config.teacher and config.teacher.run and (run := find_related(config, config.teacher.run, "teacher.run")):
        config = dataclasses.replace(config, teacher=teacher_of(run, config.teacher, config.data))
    return config


def tuned_name(name: str) -> str:
    """Return the name of a network after further training."""
    return name if name.endswith(TUNED) else name[: LONGEST_NAME - len(TUNED)] + TUNED


def teacher_of(run: RelatedRun, teacher: TeacherConfig, data: DataConfig) -> TeacherConfig:
    """Return the teacher that a finished run is, for a student on some data, whose normalisation may be another."""
    own = run.config.data.params
    differs = data.params.mean is not None and (own.mean, own.std) != (data.params.mean, data.params.std)
    return dataclasses.replace(
        teacher,
        model=run.network,
        seed=run.config.seed,
        recipe=run.config.recipe,
        run=run.as_parent(),
        mean=own.mean if differs else teacher.mean,
        std=own.std if differs else teacher.std,
    )


def is_key(text: str) -> bool:
    """Return whether a text has the form of a run key."""
    return re.fullmatch("[0-9a-f]{16}", text) is not None


def find_related(config: RunConfig, given: ParentConfig, key: str) -> RelatedRun | None:
    """Return a run that a config names; None for one that is planned and not complete.

    Args:
        config: config of the run that names it.
        given: the run.
        key: config key that names it, for errors.

    Raises:
        ConfigError: it was not found, is not finished, or predicts with a part of its method.
    """
    root = Path(config.output_root).expanduser()
    if given.is_found and not any(root.glob(f"runs/*_{given.run}/summary.json")):
        return None
    folder = locate(given.run, root, key)
    run = read_related(folder, key, config.trust)
    if folder.resolve().parent != (root / "runs").resolve():
        raise ConfigError(
            f"{key} is {folder}, which does not lie in {root / 'runs'}; give output_root={folder.resolve().parents[1]}",
            code="mismatch",
            key=key,
        )
    check_own_logits(run, key)
    return run


def locate(text: str, output_root: Path, key: str) -> Path:
    """Return the run directory that a text names: a path, or a run key under an output root.

    Raises:
        ConfigError: there is none.
    """
    if is_folder(Path(text).expanduser()):
        return Path(text).expanduser()
    found = sorted((output_root / "runs").glob(f"*_{text}")) if is_key(text) else []
    if not found:
        raise ConfigError(
            f"{key} is {text}, and there is no such run directory, nor a run of that key in {output_root / 'runs'}; "
            "give one of the folders in outputs/runs",
            code="not_found",
            key=key,
        )
    return found[0]


def read_related(folder: Path, key: str, trusted: list[str] | tuple[str, ...] = ()) -> RelatedRun:
    """Return a complete run with its network.

    Args:
        folder: run directory.
        key: config key or argument that names it, for errors.
        trusted: modules whose code its config may name, beside kdbench's own.

    Raises:
        ConfigError: it is not finished, was changed since, has no network, or predicts with a part of its method.
    """
    try:
        summary = read_complete(folder)
    except ConfigError as error:
        if error.code == "no_run":
            raise ConfigError(
                f"{key} is {folder}, which is not a finished run ({error}); complete it first by the command that "
                "started it",
                code="no_run",
                key=key,
            ) from None
        raise
    if summary.kind == MEASURE:
        raise ConfigError(
            f"{key} is {folder}, which is a measurement and holds no network; give the run that was measured, "
            f"{summary.parent_key}",
            code="no_network",
            key=key,
        )
    for name in ("config.yaml", "best.safetensors"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"{key} is {folder}, which lacks {name}: the run is kept in its small form, which has no network",
                code="no_network",
                key=key,
            )
    check_unchanged(folder / "best.safetensors", summary.weights_sha256)
    config = read_config(folder / "config.yaml", trusted)
    return RelatedRun(RunDirectory(folder, summary.run_key), summary, config)


def check_own_logits(run: RelatedRun, key: str) -> None:
    """Check that a run's network computes its predictions alone.

    Raises:
        ConfigError: its method takes part in them.
    """
    predicts = getattr(run.config.method.target, "predicts", None)
    if predicts is not None and predicts():
        raise ConfigError(
            f"{key} is {run.directory.path}, which predicts with a part of its method, {run.config.method.name}, and "
            "not with its network alone; it can be exported and measured, but not compressed, trained further or be a "
            "teacher",
            code="method_predicts",
            key=key,
        )

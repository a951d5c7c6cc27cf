"""Runs that another run names: its parent, and a teacher that is a finished run."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from kdbench.config import DataConfig, ModelConfig, RunConfig, TeacherConfig
from kdbench.config.derived import MEASURE, TRAIN, ParentConfig
from kdbench.config.paths import is_folder
from kdbench.errors import ConfigError
from kdbench.rundir.directory import RunDirectory, roots_of
from kdbench.rundir.load import check_unchanged, read_complete
from kdbench.rundir.recorded_config import read_config
from kdbench.rundir.student import check_same_code
from kdbench.rundir.summary import SUMMARY_FILE, RunSummary, read_unverified

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
        check_trainable(parent)
        network = parent.network
        network = dataclasses.replace(network, name=tuned_name(network.name))
        config = dataclasses.replace(config, parent=parent.as_parent(), student=network)
    if config.teacher and config.teacher.run and (run := find_related(config, config.teacher.run, "teacher.run")):
        config = dataclasses.replace(config, teacher=teacher_of(run, config.teacher, config.data))
    return config


def check_trainable(parent: RelatedRun) -> None:
    """Check that the network of a parent can be trained further.

    Raises:
        ConfigError: its weights were rounded.
    """
    compress = parent.config.compress
    if compress and not compress.target.trainable:
        raise ConfigError(
            f"parent is {parent.directory.path}, whose weights were rounded by {compress.name} and cannot be trained; "
            f"give the run before that step, {parent.summary.parent_key}",
            code="not_trainable",
            key="parent",
        )


def tuned_name(name: str) -> str:
    """Return the name of a network after further training."""
    return name if name.endswith(TUNED) else name[: LONGEST_NAME - len(TUNED)] + TUNED


def teacher_of(run: RelatedRun, teacher: TeacherConfig, data: DataConfig) -> TeacherConfig:
    """Return the teacher that a finished run is, for a student on some data, whose normalisation may be another.

    Raises:
        ConfigError: the run has other validation or test images, on which a teacher is verified and compared.
    """
    if data.params.num_test is not None and not has_same_images(run.config.data, data):
        own = run.config.data
        raise ConfigError(
            f"teacher.run is {run.directory.path}, of data={own.name} with data.num_val={own.params.num_val} and "
            f"data.num_test={own.params.num_test}; the student has data={data.name} with {data.params.num_val} and "
            f"{data.params.num_test}; give a run of the same images",
            code="mismatch",
            key="teacher.run",
        )
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
    roots = roots_of(config)
    if given.is_found and not any(file for root in roots for file in root.glob(f"runs/*_{given.run}/summary.json")):
        return None
    folder = locate(given.run, roots, key)
    run = read_related(folder, key, config.trust)
    if folder.resolve().parent not in [(root / "runs").resolve() for root in roots]:
        place = folder.resolve().parents[1]
        raise ConfigError(
            f"{key} is {folder}, which does not lie in {roots[0] / 'runs'}; give output_root={place}, or "
            f"shared_roots=[{place}] to read it there and write elsewhere",
            code="mismatch",
            key=key,
        )
    check_own_logits(run, key)
    return run


def found_related(config: RunConfig, given: ParentConfig, key: str) -> RelatedRun:
    """Return a complete run that a config names. Arguments and errors: see `find_related`."""
    run = find_related(config, given, key)
    if run is None:
        raise ConfigError(
            f"{key} is {given.run}, and there is no finished run of that key in {config.output_root}/runs",
            code="not_found",
            key=key,
        )
    return run


def locate(text: str, roots: Sequence[Path], key: str) -> Path:
    """Return the run directory that a text names: a path, or a run key under one of some output roots.

    Raises:
        ConfigError: there is none.
    """
    if is_folder(Path(text).expanduser()):
        return Path(text).expanduser()
    found = [folder for root in roots for folder in sorted((root / "runs").glob(f"*_{text}"))] if is_key(text) else []
    if not found:
        raise ConfigError(
            f"{key} is {text}, and there is no such run directory, nor a run of that key in {roots[0] / 'runs'}; "
            "give one of the folders in outputs/runs",
            code="not_found",
            key=key,
        )
    return found[0]


def read_related(folder: Path, key: str, trusted: Sequence[str] = ()) -> RelatedRun:
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
            f"{key} is {folder}, which is a measurement and holds no network; give the run that was measured, which "
            f"lies beside it and ends with {summary.parent_key}",
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
    check_same_code(folder, config)
    return RelatedRun(RunDirectory(folder, summary.run_key), summary, config)


def read_beside(run: RelatedRun, key: str, trusted: Sequence[str]) -> RelatedRun | None:
    """Return the run of a key that lies beside another one, or None where there is none.

    Args:
        run: the other run.
        key: run key, not trusted.
        trusted: modules whose code its config may name, beside kdbench's own.
    """
    found = sorted(run.directory.path.resolve().parent.glob(f"*_{key}")) if is_key(key) else []
    return read_related(found[0], "parent", trusted) if found else None


def network_before(run: RelatedRun, trusted: Sequence[str]) -> RelatedRun | None:
    """Return the run whose network was compressed last on the way to a run's.

    None if none was compressed, if a run on the way is gone, or if another data set was trained on since.

    Args:
        run: finished run.
        trusted: modules whose code the configs may name, beside kdbench's own.
    """
    at: RelatedRun | None = run
    while at and at.config.parent:
        is_compressed = at.config.compress is not None
        try:
            at = read_beside(at, at.config.parent.run, trusted)
        except ConfigError:
            return None
        if at and is_compressed:
            return at if has_same_images(at.config.data, run.config.data) else None
    return None


def has_same_images(first: DataConfig, second: DataConfig) -> bool:
    """Return whether two resolved data sets have the same validation and test images, as far as their configs say."""
    a, b = first.params, second.params
    same_set = first.path == second.path and (
        first.content == second.content or None in (first.content, second.content)
    )
    return same_set and (a.num_val, a.num_test) == (b.num_val, b.num_test)


def check_parent_unchanged(directory: RunDirectory, summary: RunSummary) -> None:
    """Check that the parent of a complete run was not trained again since.

    Raises:
        ConfigError: it was.
    """
    if summary.parent_key is None or not is_key(summary.parent_key):
        return
    found = sorted(directory.path.resolve().parent.glob(f"*_{summary.parent_key}/{SUMMARY_FILE}"))
    now = read_unverified(found[0].parent)[0].weights_sha256 if found else None
    if now and summary.parent_weights_sha256 and now != summary.parent_weights_sha256:
        raise ConfigError(
            f"{directory.path} was made from other weights than its parent {found[0].parent.name} has now; repeat it "
            "with overwrite=true",
            code="stale",
            key="parent",
        )


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

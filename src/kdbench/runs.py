"""The run directory: what a run is called, which files it holds, how they are written and read. Computes nothing."""

import contextlib
import csv
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from safetensors import SafetensorError

from kdbench.config import ModelConfig, RunConfig, RuntimeConfig
from kdbench.errors import ConfigError, first_line
from kdbench.schema import typed

SCHEMA_VERSION = 1
log = logging.getLogger(__name__)


def identity(config: RunConfig, teacher_key: str | None) -> dict[str, Any]:
    """The part of a resolved config that can change a run's numbers.

    Not in it: paths, the device's kind, threads, names of options, and `seed`, which acts through the two others.
    """
    data = dataclasses.asdict(config.data)
    del data["root"], data["download"]
    method = config.method.node()
    del method["name"]
    stages = {}
    if config.teacher and config.method.target.uses_stages:
        stages = {"student": config.student.stages, "teacher": config.teacher.model.stages}
    return {
        "schema_version": SCHEMA_VERSION,
        "student": model_identity(config.student),
        "method": method,
        "teacher": teacher_key,
        "stages": stages,
        "data": data,
        "recipe": dataclasses.asdict(config.recipe),
        "init_seed": config.init_seed,
        "data_seed": config.data_seed,
        "precision": config.runtime.precision,
    }


def model_identity(model: ModelConfig) -> dict[str, Any]:
    """An architecture without the names that people gave it and its stages."""
    return {"_target_": model.target, **model.arguments}


def group_key(identity: Mapping[str, Any]) -> str:
    """The same for runs that differ in their seeds alone."""
    return key_of({name: value for name, value in identity.items() if name not in ("init_seed", "data_seed")})


def baseline_key(identity: Mapping[str, Any]) -> str:
    """The same for runs that differ in method and teacher alone: a distilled student and its undistilled one.

    Whether projections are clipped is the method's affair: the undistilled student has none.
    """
    recipe = {name: value for name, value in identity["recipe"].items() if name != "clip_projections"}
    shared = {name: value for name, value in identity.items() if name not in ("method", "teacher", "stages")}
    return key_of(shared | {"recipe": recipe})


def key_of(identity: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that stand for an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`: on leaving it is flushed to disk and takes its place; on an error it is gone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.touch()
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    with written_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """One run's files. The names are the contract; see the README for what each holds."""

    path: Path
    key: str

    @classmethod
    def of(cls, config: RunConfig, key: str) -> "RunDirectory":
        """Where the run with this key is, or will be: the folder's name is for people, its last part is the key."""
        runs = Path(config.output_root).expanduser() / "runs"
        found = sorted(runs.glob(f"*_{key}"))
        source = f"_from_{config.teacher.model.name}" if config.teacher else ""
        name = f"{config.data.name}_{config.student.name}_{config.method.name}{source}_seed{config.seed}_{key}"
        return cls(found[0] if found else runs / name, key)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def logits(self) -> Path:
        return self.path / "logits.safetensors"

    @property
    def weights(self) -> Path:
        return self.path / "best.safetensors"

    @property
    def checkpoint(self) -> Path:
        return self.path / "last.ckpt"

    @property
    def log(self) -> Path:
        return self.path / "train.log"

    def is_complete(self) -> bool:
        return self.summary.is_file()

    def recorded_choices(self) -> dict[str, Any]:
        """What a run that was begun here decided of its runtime and has to keep to; empty if there is none."""
        try:
            runtime = typed(RuntimeConfig, OmegaConf.select(OmegaConf.load(self.config), "runtime"))
        except Exception:  # whatever a missing or damaged file raises: then there is nothing to keep to
            return {}
        return {name: getattr(runtime, name) for name in ("threads", "channels_last", "deterministic")}

    def recorded_table(self) -> str | None:
        """What an unfinished run of which there is a checkpoint learns from: its teacher's table (on), or not (off)."""
        if self.is_complete() or not self.checkpoint.is_file():
            return None
        try:
            table = OmegaConf.select(OmegaConf.load(self.config), "teacher.table")
        except Exception:  # as above
            return None
        return table if table in ("on", "off") else None

    def create(self) -> None:
        """Make the folder, and remove what a killed process left half written in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        for file in self.files():
            for leftover in self.path.glob(f".{file.name}.*"):
                leftover.unlink()

    def clear(self) -> None:
        """Remove what an earlier run left, the mark of completeness first."""
        for file in self.files():
            file.unlink(missing_ok=True)

    def files(self) -> tuple[Path, ...]:
        """Every file of the contract, the mark of completeness first."""
        return self.summary, self.checkpoint, self.metrics, self.logits, self.weights, self.config, self.log

    def write_config(self, config: RunConfig) -> None:
        with written_atomically(self.config) as temporary:
            temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(config.node())))

    def write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        with written_atomically(self.metrics) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_json(self.summary, summary)

    def write_with(self, path: Path, write: Callable[[Path], None]) -> None:
        """A file that torch or safetensors writes, atomically.

        Raises:
            OSError: it could not be written; the libraries have names of their own for that.
        """
        with written_atomically(path) as temporary:
            try:
                write(temporary)
            except (SafetensorError, RuntimeError) as error:
                raise OSError(f"{path.name} could not be written: {first_line(error)}") from error

    def read_summary(self) -> dict[str, Any]:
        return read_summary(self.path)

    @contextlib.contextmanager
    def locked(self, purpose: str, name: str | None = None) -> Iterator[None]:
        """Hold this run, or `name`, alone among all processes; a second one waits, and says for what."""
        locks = self.path.parent.parent / ".locks"
        try:
            locks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"output_root cannot be written to ({error}); give another folder") from None
        lock = FileLock(locks / f"{name or self.key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting: another process has %s (%s)", purpose, self.path.name)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def logging(self) -> Iterator[None]:
        """Everything kdbench logs meanwhile also goes to train.log."""
        handler = logging.FileHandler(self.log)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        package = logging.getLogger("kdbench")
        level = package.level
        package.setLevel(logging.DEBUG)
        package.addHandler(handler)
        try:
            yield
        finally:
            package.removeHandler(handler)
            package.setLevel(level)
            handler.close()


def read_summary(path: Path) -> dict[str, Any]:
    """The summary of a complete run, from its directory.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    file = path / "summary.json"
    try:
        summary = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); delete {path} to repeat the run") from None
    if not isinstance(summary, dict):
        raise ConfigError(f"{file} holds no object; delete {path} to repeat the run")
    return summary


def check_writable(output_root: Path, key: str = "output_root") -> None:
    """That files can be written under a folder which may not exist yet, named by `key`. Writes nothing.

    Raises:
        ConfigError: something on the way to it is no folder, or may not be written to.
    """
    existing = next(parent for parent in (output_root.absolute(), *output_root.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise ConfigError(f"{key} is {output_root}, but {existing} is a file; give another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{key} is {output_root}, but {existing} cannot be written to; give another folder")

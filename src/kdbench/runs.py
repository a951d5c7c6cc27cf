"""The run directory: what a run is called, which files it holds, how they are written and read. Computes nothing."""

import contextlib
import csv
import dataclasses
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from kdbench.config import ModelConfig, RunConfig
from kdbench.errors import ConfigError

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
    return {
        "schema_version": SCHEMA_VERSION,
        "student": model_identity(config.student),
        "method": method,
        "teacher": teacher_key,
        "data": data,
        "recipe": dataclasses.asdict(config.recipe),
        "init_seed": config.init_seed,
        "data_seed": config.data_seed,
        "precision": config.runtime.precision,
    }


def model_identity(model: ModelConfig) -> dict[str, Any]:
    node = model.node()
    del node["name"]
    return node


def key_of(identity: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that stand for an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`: on leaving it is flushed to disk and takes its place; on an error it is gone."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~current_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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

    def recorded_threads(self) -> int | None:
        """CPU threads of a run that was begun here; its sums were rounded in their order."""
        try:
            threads = OmegaConf.select(OmegaConf.load(self.config), "runtime.threads")
        except Exception:  # whatever a missing or damaged file raises: then there is nothing to keep to
            return None
        return threads if isinstance(threads, int) and threads >= 1 else None

    def create(self) -> None:
        """Make the folder, and remove what a killed process left half written in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in self.path.glob(".*"):
            leftover.unlink()

    def clear(self) -> None:
        """Remove what an earlier run left, the mark of completeness first."""
        for file in (
            self.summary, self.checkpoint, self.metrics, self.logits, self.weights, self.config, self.log
        ):  # fmt: skip
            file.unlink(missing_ok=True)

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
        """A file that a library writes, atomically."""
        with written_atomically(path) as temporary:
            write(temporary)

    def read_summary(self) -> dict[str, Any]:
        return read_summary(self.path)

    @contextlib.contextmanager
    def locked(self, purpose: str) -> Iterator[None]:
        """Hold this run alone among all processes; a second one waits, and says for what."""
        locks = self.path.parent.parent / ".locks"
        try:
            locks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"output_root cannot be written to ({error}); give another folder") from None
        lock = FileLock(locks / f"{self.key}.lock")
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


def check_writable(output_root: Path) -> None:
    """That runs can be written under a folder which may not exist yet. Writes nothing.

    Raises:
        ConfigError: something on the way to it is no folder, or may not be written to.
    """
    existing = next(parent for parent in (output_root.absolute(), *output_root.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise ConfigError(f"output_root is {output_root}, but {existing} is a file; give another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"output_root is {output_root}, but {existing} cannot be written to; give another folder")

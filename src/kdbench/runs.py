"""The run directory: what a run is called, which files it holds, how they are written and read. Computes nothing."""

import contextlib
import csv
import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors import SafetensorError

from kdbench import checked, locks
from kdbench.config import ModelConfig, RunConfig
from kdbench.errors import ConfigError, first_line

SCHEMA_VERSION = 1


def identity(config: RunConfig, teacher_key: str | None) -> dict[str, Any]:
    """The part of a resolved config that can change a run's numbers.

    Not in it: paths, the device's kind, threads, names of options, and `seed`, which acts through the two others.
    """
    data = dataclasses.asdict(config.data)
    del data["root"], data["download"]
    recipe = dataclasses.asdict(config.recipe)
    # How many bad steps are borne ends runs and changes none; that a run bears any is said where it does.
    del recipe["nonfinite_limit"]
    if recipe["on_nonfinite"] == "stop":
        del recipe["on_nonfinite"]
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
        "recipe": recipe,
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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # of no other process, on any host
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it; libraries write files of their own
        yield temporary
        temporary.chmod(mode)
        sync_file(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # of a disk that fails, the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise


def sync_file(file: Path) -> None:
    """Have the disk keep what was written."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


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
    def previous_checkpoint(self) -> Path:
        return self.path / "previous.ckpt"

    @property
    def bad_numbers(self) -> Path:
        """What a step saw whose loss was not finite."""
        return self.path / "nonfinite.json"

    @property
    def log(self) -> Path:
        return self.path / "train.log"

    def is_complete(self) -> bool:
        return self.summary.is_file()

    def checkpoints(self) -> tuple[Path, Path]:
        """The newest first."""
        return self.checkpoint, self.previous_checkpoint

    def checkpoint_facts(self) -> dict[str, Any]:
        """What the newest readable checkpoint of an unfinished run says of itself; empty if there is none."""
        if self.is_complete():
            return {}
        for file in self.checkpoints():
            with contextlib.suppress(OSError, checked.DamagedError):
                return checked.read_facts(file)
        return {}

    def recorded_choices(self) -> dict[str, Any]:
        """What an unfinished run decided of its runtime and has to keep to: threads, memory format, determinism."""
        return self.checkpoint_facts().get("choices", {})

    def recorded_table(self) -> str | None:
        """What an unfinished run learns from: its teacher's table (on), or not (off)."""
        return self.checkpoint_facts().get("table")

    def create(self) -> None:
        """Make the folder, and remove what a killed process left half written in it.

        Raises:
            ConfigError: it, or a file in it, is a link, so that what is written would land elsewhere.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        refuse_links(self.path, *self.files())
        for file in self.files():
            for leftover in self.path.glob(f".{file.name}.*"):
                leftover.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove what an earlier run left, the mark of completeness first."""
        for file in self.files():
            file.unlink(missing_ok=True)

    def files(self) -> tuple[Path, ...]:
        """Every file of the contract, the mark of completeness first."""
        records = self.metrics, self.logits, self.weights, self.config, self.log, self.bad_numbers
        return self.summary, *self.checkpoints(), *records

    def write_config(self, config: RunConfig) -> None:
        with written_atomically(self.config) as temporary:
            temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(config.node())))

    def write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        with written_atomically(self.metrics) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_json(self.summary, sealed(summary))

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

    def write_checkpoint(self, write: Callable[[Path], None]) -> None:
        """A new last.ckpt; what was it becomes previous.ckpt. At every moment one that is whole is there."""
        with written_atomically(self.checkpoint) as temporary:
            write(temporary)
            sync_file(temporary)
            if self.checkpoint.is_file():
                self.checkpoint.replace(self.previous_checkpoint)

    def read_summary(self) -> dict[str, Any]:
        return read_summary(self.path)

    def locked(self, purpose: str, on_busy: str, name: str | None = None) -> AbstractContextManager[locks.Held]:
        """Hold this run, or `name`, alone among all processes.

        Args:
            purpose: What is held, for the user.
            on_busy: wait for another process that has it, or skip.
            name: Of what is held, if it is not the run.
        """
        file = self.path.parent.parent / ".locks" / f"{name or self.key}.lock"
        return locks.held(file, f"{purpose} ({self.path.name})", wait=on_busy == "wait")


def refuse_links(*files: Path) -> None:
    """That what is written to these files lands there.

    Raises:
        ConfigError: one is a link.
    """
    for file in files:
        if file.is_symlink():
            raise ConfigError(f"{file} is a link to {file.readlink()}; a run's files lie in its own folder: remove it")


def sealed(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary with the hash of everything else in it, so that a later change by hand is noticed."""
    content = {key: value for key, value in summary.items() if key != "seal"}
    return content | {"seal": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def seal_fits(summary: Mapping[str, Any]) -> bool:
    """Whether a summary is as it was written. One from before there were seals is taken as it is."""
    if "seal" not in summary:
        return "config_sha256" not in summary
    return summary["seal"] == sealed(summary)["seal"]


def changed_since(path: Path, summary: Mapping[str, Any]) -> str | None:
    """Which of a complete run's records is no longer the file that its summary tells of, or None. Weights and logits
    are not looked at: they may be large, or kept in a smaller form.
    """
    for key, name in (("config_sha256", "config.yaml"), ("metrics_sha256", "metrics.csv")):
        recorded, file = summary.get(key), path / name
        if recorded and file.is_file() and sha256(file) != recorded:
            return name
    return None


def read_summary(path: Path) -> dict[str, Any]:
    """The summary of a complete run, from its directory.

    Raises:
        ConfigError: the file is missing, damaged, or changed since it was written.
    """
    summary = stored_summary(path)
    if not seal_fits(summary):
        raise ConfigError(
            f"{path / 'summary.json'} was changed since it was written; restore it, or delete {path} to repeat the run"
        )
    return summary


def stored_summary(path: Path) -> dict[str, Any]:
    """What summary.json holds, whether its seal fits or not.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    file = path / "summary.json"
    try:
        summary = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); delete {path} to repeat the run") from None
    if not isinstance(summary, dict):
        raise ConfigError(f"{file} holds no object; delete {path} to repeat the run")
    return summary


def check_writable(output_root: Path, key: str = "output_root") -> None:
    """That files can be written under a folder which may not exist yet, named by `key`. Writes nothing.

    Raises:
        ConfigError: something on the way to it is no folder, or may not be written to.
    """
    try:
        existing = next(
            parent for parent in (output_root.absolute(), *output_root.absolute().parents) if parent.exists()
        )
    except OSError as error:
        raise ConfigError(f"{key} is {output_root}, which cannot be a folder: {error.strerror}; give another") from None
    if not existing.is_dir():
        raise ConfigError(f"{key} is {output_root}, but {existing} is a file; give another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{key} is {output_root}, but {existing} cannot be written to; give another folder")

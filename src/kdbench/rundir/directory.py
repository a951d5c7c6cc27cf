"""The run directory: which files a run has, and how they are written and read. Computes nothing."""

import contextlib
import csv
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors import SafetensorError

from kdbench.config import RunConfig
from kdbench.config.derived import MEASURE
from kdbench.config.paths import is_file
from kdbench.errors import first_line
from kdbench.rundir import checksummed
from kdbench.rundir.files import atomic_path, check_no_links, sync_file, write_text
from kdbench.rundir.lock import Lock
from kdbench.rundir.summary import SUMMARY_FILE, RunSummary, read_summary, write_summary
from kdbench.rundir.unfinished import CONFIG_FILE, FAILURE_FILE

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """The files of one run. Their names are a contract; docs/run-directory.md describes the content of each."""

    path: Path
    key: str

    @classmethod
    def of(cls, config: RunConfig, key: str) -> "RunDirectory":
        """Return where the run with this key is, or will be. The folder's name is for people, its last part the key.

        A run that is complete in one of the shared roots, and not in the own one, is there.
        """
        runs = Path(config.output_root).expanduser() / "runs"
        found = sorted(runs.glob(f"*_{key}"))
        reads_shared = config.shared_roots and not config.overwrite and config.kind != MEASURE
        if reads_shared and not any(is_file(folder / SUMMARY_FILE) for folder in found):
            found = find_shared(config, key) or found
        source = f"_from_{config.teacher.model.name}" if config.teacher else ""
        kind = "_measured" if config.kind == MEASURE else ""
        name = f"{config.data.name}_{config.student.name}_{config.method.name}{source}_seed{config.seed}{kind}"
        return cls(found[0] if found else runs / f"{name[:200]}_{key}", key)

    def is_shared(self, config: RunConfig) -> bool:
        """Return whether the run lies in one of a config's shared roots, in which nothing is written."""
        return self.path.parent.resolve() != (Path(config.output_root).expanduser() / "runs").resolve()

    @property
    def config(self) -> Path:
        return self.path / CONFIG_FILE

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def summary(self) -> Path:
        return self.path / SUMMARY_FILE

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
    def nonfinite(self) -> Path:
        """The inputs and values of a step whose loss was not finite."""
        return self.path / "nonfinite.json"

    @property
    def failure(self) -> Path:
        """The error that ended the run; only of a run that failed."""
        return self.path / FAILURE_FILE

    @property
    def log(self) -> Path:
        return self.path / "train.log"

    def is_complete(self) -> bool:
        return self.summary.is_file()

    def has_failed(self) -> bool:
        """Return whether the run ended in an error, and was not continued since."""
        return self.failure.is_file() and not self.is_complete()

    def checkpoints(self) -> tuple[Path, Path]:
        """Return the checkpoint files, the newest first."""
        return self.checkpoint, self.previous_checkpoint

    def checkpoint_metadata(self) -> dict[str, Any]:
        """Return the metadata of the newest readable checkpoint of an unfinished run; empty if there is none."""
        if self.is_complete():
            return {}
        for file in self.checkpoints():
            with contextlib.suppress(OSError, checksummed.DamagedError):
                return checksummed.read_metadata(file)
        return {}

    def create(self) -> None:
        """Make the folder, and remove what a killed process left half written in it.

        Raises:
            ConfigError: the folder, or a file in it, is a link, so that what is written would land elsewhere.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        check_no_links(self.path, *self.files())
        for file in self.files():
            for leftover in self.path.glob(f".{file.name}.*"):
                leftover.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the files of an earlier run, its summary first."""
        for file in self.files():
            file.unlink(missing_ok=True)

    def files(self) -> tuple[Path, ...]:
        """Return every file of the contract, the summary first."""
        records = self.metrics, self.logits, self.weights, self.config, self.log, self.nonfinite, self.failure
        return self.summary, *self.checkpoints(), *records

    def write_config(self, config: RunConfig) -> None:
        """Write the resolved config."""
        write_text(self.config, OmegaConf.to_yaml(OmegaConf.create(config.node())))

    def write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write metrics.csv, a row per epoch."""
        with atomic_path(self.metrics) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def write_summary(self, summary: RunSummary) -> None:
        """Write summary.json, which makes the run complete."""
        write_summary(self.path, summary)

    def read_summary(self) -> RunSummary:
        """Return the summary. Errors: see `kdbench.rundir.summary.read_summary`."""
        return read_summary(self.path)

    def write_with(self, path: Path, write: Callable[[Path], object]) -> None:
        """Write a file atomically by a function of torch or safetensors.

        Raises:
            OSError: the file cannot be written; the libraries raise types of their own for that.
        """
        with atomic_path(path) as temporary:
            try:
                write(temporary)
            except (SafetensorError, RuntimeError) as error:
                raise OSError(f"{path.name} could not be written: {first_line(error)}") from error

    def save_checkpoint(self, metadata: Mapping[str, Any], content: bytes) -> None:
        """Write last.ckpt; the one before it becomes previous.ckpt. At every moment a whole one is there."""
        with atomic_path(self.checkpoint) as temporary:
            checksummed.write(temporary, metadata, content)
            sync_file(temporary)
            if self.checkpoint.is_file():
                self.checkpoint.replace(self.previous_checkpoint)

    def read_checkpoints(self) -> Iterator[tuple[Path, dict[str, Any], bytes]]:
        """Yield file, metadata and content of each readable checkpoint, the newest first.

        Raises:
            OSError: one cannot be read.
        """
        for file in self.checkpoints():
            if file.is_file():
                try:
                    metadata, content = checksummed.read(file)
                except checksummed.DamagedError as error:
                    log.info("%s is damaged or no checkpoint (%s)", file, error)
                    continue
                yield file, metadata, content

    def remove_checkpoints(self, keep_last: bool = False) -> None:
        """Remove the checkpoints of a complete run.

        Args:
            keep_last: keep last.ckpt.
        """
        for file in self.checkpoints():
            if not (keep_last and file == self.checkpoint):
                file.unlink(missing_ok=True)

    def lock(self, purpose: str = "run", name: str | None = None) -> Lock:
        """Return the lock of this run, or of something that belongs to it.

        Args:
            purpose: what is locked, for the user.
            name: name of the lock where it is not the run's own.
        """
        file = self.path.parent.parent / ".locks" / f"{name or self.key}.lock"
        return Lock(file, f"{purpose} {self.path.name}")


def find_shared(config: RunConfig, key: str) -> list[Path]:
    """Return the directories of the run with this key that are complete in the shared roots of a config."""
    return [file.parent for root in roots_of(config)[1:] for file in sorted(root.glob(f"runs/*_{key}/{SUMMARY_FILE}"))]


def roots_of(config: RunConfig) -> list[Path]:
    """Return the output roots in which the runs that a config needs may lie: its own one, and those it only reads."""
    return [Path(root).expanduser() for root in (config.output_root, *config.shared_roots)]

"""Teacher tables: what a teacher says of every view of every training image, computed once and read by every run.

A table is `table-DEVICE.npy` in the teacher's run directory, float32 [N, V, C], with `table-DEVICE.json` beside it:
the fingerprint of everything that could have changed a value, and the file's hash. Images stand in the order of the
training split, views in theirs (`kdbench.data.views`); without augmentation there is one view.
"""

import contextlib
import errno
import hashlib
import io
import json
import logging
import math
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from kdbench.config import RunConfig
from kdbench.data.batches import Batches
from kdbench.data.dataset import NUM_CLASSES
from kdbench.data.views import IDENTITY_VIEW, NUM_VIEWS, PADDING
from kdbench.errors import RunError
from kdbench.methods.method import Needs
from kdbench.runs import RunDirectory, key_of, model_identity, refuse_links, sha256, sync_folder, write_json
from kdbench.runtime import device_name
from kdbench.teachers import Teacher
from kdbench.teaching import LiveTeacher
from kdbench.train.display import TableProgress
from kdbench.train.evaluate import EVALUATION_BATCH

log = logging.getLogger(__name__)

BATCHES_PER_BLOCK = 8
"""A block is what is computed, written and flushed at once, and all that an interruption costs."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CHECKED = 64
"""Entries that are compared with the live teacher when a table is opened."""
TOLERANCE = {"fp32": 1e-3, "bf16": 0.03, "fp16": 0.005}
"""How far an entry may be from what the live teacher answers, as a share of the largest logit of those compared, per
precision. Kernels round differently; the wrong view of an image is off by several times as much.
So both name the same class wherever the teacher prefers it by more than twice this."""


def views_of(config: RunConfig) -> Tensor:
    """[V] int64: the views that training can ask for."""
    return torch.arange(NUM_VIEWS) if config.data.augment else torch.tensor([IDENTITY_VIEW])


def table_file(teacher: RunDirectory, config: RunConfig) -> Path:
    """Where the table of a teacher is, or will be."""
    return teacher.path / f"table-{kind_of(config)}.npy"


def size_of(config: RunConfig) -> int:
    """Bytes of a table's values."""
    return config.data.num_train * len(views_of(config)) * NUM_CLASSES * 4


def repaid(epochs: int, config: RunConfig) -> bool:
    """Whether a table is worth building for so many epochs of training.

    Building asks the teacher about every image once per view, training with a live teacher once per epoch, so a table
    of 162 views is repaid by more than 162 epochs, of one run or of several.
    """
    return epochs > len(views_of(config))


def can_answer(needs: Needs) -> bool:
    """Whether a table holds all that a method asks of a teacher."""
    return needs.teacher_logits and not needs.teacher_stages


@dataclass(frozen=True)
class Choice:
    """Whether a run reads a table, decided before anything is computed."""

    use: bool
    reason: str
    """For the user, after "teacher: "."""
    build: bool = False
    """A table that is missing or cannot be used is built; else the teacher is live then."""
    required: bool = False
    """The run began with a table and cannot go on without."""


def choose(config: RunConfig, needs: Needs, teacher: RunDirectory, began: str | None = None) -> Choice:
    """Between the live teacher and its table, for a resolved config with a teacher.

    Args:
        config: `teacher.table` says on, off or auto.
        needs: Of the method.
        teacher: The teacher's run directory, which need not exist yet.
        began: What an unfinished run began with, on or off, and so goes on with.

    Raises:
        RunError: the run began with a table, which is gone, and there is no room for another.
    """
    assert config.teacher is not None
    wanted, file = began or config.teacher.table, table_file(teacher, config)
    if wanted == "off":
        return Choice(False, "live (as this run began)" if began else "live (teacher.table=off)")
    if not can_answer(needs):
        return Choice(False, f"live (method={config.method.name} reads feature maps, which a table does not hold)")
    build = wanted == "on" or repaid(config.recipe.epochs, config)
    if not build and not file.is_file():
        return Choice(
            False,
            f"live (a table is repaid by more than {len(views_of(config))} epochs, here are {config.recipe.epochs}; "
            "teacher.table=on builds one for later runs)",
        )
    source = f"table {file}" + ("" if file.is_file() else ", to be built") + (" (as this run began)" if began else "")
    choice = Choice(True, source, build, required=began == "on")
    if not file.is_file() and (lack := lack_of_room(file, config)):
        return Choice(False, without(choice, lack))
    return choice


def without(choice: Choice, lack: str) -> str:
    """What the run does where there is no room for its table: the teacher is live, for the user in words.

    Raises:
        RunError: the run began with the table.
    """
    if choice.required:
        raise RunError(f"{lack}; this run began with its teacher's table and goes on with nothing else")
    return f"live ({lack})"


def lack_of_room(file: Path, config: RunConfig) -> str | None:
    """What is missing on the disk for a table, in words, or None. The file's folder need not exist yet."""
    size = size_of(config)
    existing = next(parent for parent in file.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    for own in (file, *existing.glob(f".{file.stem}.*.partial")):
        with contextlib.suppress(FileNotFoundError):  # another process may be about to rename it
            free += own.stat().st_size  # makes room for the new table, or is its beginning
    if size < free:
        return None
    return f"no room for a table: {size / 1e6:.1f} MB needed and {free / 1e6:.1f} MB free in {existing}"


def obtain(choice: Choice, config: RunConfig, teacher: Teacher, batches: Batches) -> Tensor | str:
    """The table that a run reads, built first if it has to be; or why the teacher must be live instead.

    Args:
        choice: To use one.
        config: Resolved.
        teacher: Verified.
        batches: Of the training images.

    Returns:
        [N, V, C] float32, mapped from the file; or words for the user, after "teacher: ".

    Raises:
        RunError: a table that was just built does not agree with its teacher, or the run cannot go on without one.
    """
    table = Table(config, teacher, batches)
    name = f"{teacher.directory.key}-{table.file.stem}"
    with teacher.directory.locked("this teacher's table", config.on_busy, name):
        problem = table.problem()
        if problem and not choice.build:
            return f"live ({table.file} is not used: {problem}; teacher.table=on builds it anew)"
        if problem:
            if table.file.is_file():
                log.info("%s is built anew: %s", table.file, problem)
            if lack := lack_of_room(table.file, config):
                return without(choice, lack)
            try:
                table.build()
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                for begun_file in (table.partial, table.hashes):
                    begun_file.unlink(missing_ok=True)
                return without(choice, f"no room for all of its table: {error.strerror}")
            problem = table.problem()
        if problem:
            raise RunError(f"{table.file} was built and cannot be used: {problem}; teacher.table=off does without")
        return table.read()


class Table:
    """One teacher's table on one kind of device: what it must be, whether the file is that, and how it is made."""

    def __init__(self, config: RunConfig, teacher: Teacher, batches: Batches) -> None:
        self.config = config
        self.batches = batches
        self.teacher = LiveTeacher(teacher.network, Needs(teacher_logits=True), config.runtime)
        self.views = views_of(config)
        self.shape = (len(batches.dataset.train), len(self.views), NUM_CLASSES)
        self.file = table_file(teacher.directory, config)
        self.record = self.file.with_suffix(".json")
        self.fingerprint = fingerprint(config, teacher, batches)
        # Its name says what it is the beginning of.
        self.partial = self.file.with_name(f".{self.file.stem}.{key_of(self.fingerprint)}.partial")
        self.hashes = self.partial.with_suffix(".hashes")

    def problem(self) -> str | None:
        """Why the file cannot be used, or None. What was checked once in this process is not checked again."""
        if not self.file.is_file():
            return "there is none"
        state = self.file.stat()
        case = (self.file, state.st_mtime_ns, state.st_size, key_of(self.fingerprint), repr(self.config.runtime))
        if case in _checked:
            return None
        problem = self.problem_of_record() or self.problem_of_values()
        if problem is None:
            _checked.add(case)
        return problem

    def problem_of_record(self) -> str | None:
        """Whether the file is another one than the record beside it tells of, or of something else."""
        try:
            record = json.loads(self.record.read_text())
            recorded, hashed = dict(record["fingerprint"]), record["sha256"]
        except (OSError, ValueError, TypeError, KeyError):
            return f"{self.record.name} is missing or damaged"
        for name, value in self.fingerprint.items():
            if recorded.get(name) != value:
                return f"its {name} is {short(recorded.get(name))} there and {short(value)} here"
        return None if sha256(self.file) == hashed else "it was cut short or changed since it was written"

    def problem_of_values(self) -> str | None:
        """Whether some entries, the same ones each time, are what the live teacher answers here."""
        try:
            values = self.read()
        except (OSError, ValueError):  # numpy's words for a file that is no array
            values = torch.empty(0)
        if values.shape != self.shape or values.dtype != torch.float32:
            return "it is no table of {:,} images x {} views".format(*self.shape)
        random = torch.Generator().manual_seed(0)
        rows, columns = (torch.randint(size, (CHECKED,), generator=random) for size in self.shape[:2])
        expected = self.answers(rows, columns)
        error, tolerance = compared(values[rows, columns], expected), TOLERANCE[self.config.runtime.precision]
        if error > tolerance:
            return f"it differs by {error:.1%} from what the teacher answers here (rounding is below {tolerance:.1%})"
        return None

    def answers(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The live teacher's logits [B, C] float32, on the CPU, of views of images."""
        device, parts = self.batches.dataset.train.labels.device, []
        size = EVALUATION_BATCH[kind_of(self.config)]
        for some_rows, some_columns in zip(rows.split(size), columns.split(size), strict=True):
            batch = self.batches.batch(some_rows.to(device), self.views[some_columns].to(device))
            logits = self.teacher(batch).logits
            assert logits is not None
            parts.append(logits.float())
        return torch.cat(parts).cpu()

    def read(self) -> Tensor:
        # Copy on write: torch wants to be able to write, and nothing may reach the file.
        return torch.from_numpy(np.load(self.file, mmap_mode="c"))

    def build(self) -> None:
        """Compute all entries, going on from what was interrupted.

        Raises:
            OSError: something could not be written.
        """
        refuse_links(self.file.parent, self.file, self.record, self.partial, self.hashes)
        self.remove_what_is_stale()
        images, views, _ = self.shape
        total = images * views
        block = BATCHES_PER_BLOCK * EVALUATION_BATCH[kind_of(self.config)]
        self.partial.touch()
        self.hashes.touch()
        with self.partial.open("r+b") as file, self.hashes.open("r+b") as hashes:
            done = begun(file, hashes, self.shape, block)
            with TableProgress(
                f"{self.file.parent.name}: table of {images:,} images x {views} views", total, done
            ) as shown:
                for start in range(done, total, block):
                    entries = torch.arange(start, min(start + block, total))
                    values = self.answers(entries // views, entries % views).numpy().astype("<f4").tobytes()
                    for opened, content in ((file, values), (hashes, hashlib.sha256(values).digest())):
                        opened.write(content)
                        opened.flush()
                        os.fsync(opened.fileno())
                    shown.add(len(entries))
            made = shown.figures()
        runtime = self.config.runtime
        made |= {"device": device_name(runtime.device), "threads": runtime.threads}
        # The record first: a file without one would be worthless, a record without its file is only ignored.
        write_json(self.record, {"fingerprint": self.fingerprint, "sha256": sha256(self.partial), "made": made})
        self.partial.replace(self.file)
        self.hashes.unlink()
        sync_folder(self.file.parent)

    def remove_what_is_stale(self) -> None:
        """An old table, and the beginnings of others."""
        self.record.unlink(missing_ok=True)
        self.file.unlink(missing_ok=True)
        for other in self.file.parent.glob(f".{self.file.stem}.*"):
            if other not in (self.partial, self.hashes):
                other.unlink()


def kind_of(config: RunConfig) -> str:
    """cpu or cuda."""
    return config.runtime.device.partition(":")[0]


def fingerprint(config: RunConfig, teacher: Teacher, batches: Batches) -> dict[str, Any]:
    """Everything that can change a table's values, as JSON holds it. Threads and the device's model only round."""
    assert config.teacher is not None
    return {
        "weights_sha256": teacher.directory.read_summary()["weights_sha256"],
        "architecture": model_identity(config.teacher.model),
        "data_sha256": batches.dataset.train.sha256,
        "images": len(batches.dataset.train),
        "views": len(views_of(config)),
        "padding": PADDING,
        "normalisation": {"mean": config.data.mean, "std": config.data.std},
        "precision": config.runtime.precision,
        "batch_norm": "folded",
        "batch_size": EVALUATION_BATCH[kind_of(config)],
        "device": kind_of(config),
        "torch": version("torch"),
        "torchvision": version("torchvision"),
    }


def begun(file: BinaryIO, hashes: BinaryIO, shape: tuple[int, int, int], block: int) -> int:
    """Bring an empty or interrupted table to where writing goes on: after the last block that is as it was written.

    Args:
        file: The table's beginning.
        hashes: SHA-256 of each block, 32 bytes each, in order.
        shape: Of the whole table.
        block: Entries.

    Returns:
        Entries that are there.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    file.seek(0)
    file.write(header.getvalue())
    size, done = block * shape[2] * 4, 0
    while (written := file.read(size)) and hashes.read(32) == hashlib.sha256(written).digest():
        done += 1
    for opened, length in ((file, len(header.getvalue()) + done * size), (hashes, done * 32)):
        opened.truncate(length)
        opened.seek(0, os.SEEK_END)
    return done * block


def compared(there: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest value expected. Infinite where one is not a number."""
    difference = (there - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    return float(difference) if difference.isfinite() else math.inf


def short(value: Any) -> str:
    """A hash by its beginning, anything else in full."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)


_checked: set[tuple[object, ...]] = set()


def forget_checked() -> None:
    """Check every table again, as a new process would."""
    _checked.clear()

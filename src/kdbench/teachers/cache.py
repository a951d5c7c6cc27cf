"""The logit cache: a teacher's logits of every view of every training image, computed once and read by every run.

A cache is `logits-DEVICE.npy` in the teacher's run directory, float32 [N, V, C], with `logits-DEVICE.json` beside it:
the fingerprint of everything that can change a value, and the file's hash. Images stand in the order of the training
split, views in the order of `kdbench.data.views`; without augmentation there is one view. Images that are changed in
other ways than crop and flip, or mixed, are no views: then the teacher is live.
"""

import contextlib
import errno
import io
import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from kdbench.config import RecipeConfig, RunConfig
from kdbench.data.batches import Batches, BatchPlan
from kdbench.data.dataset import spec_of
from kdbench.data.views import views_of
from kdbench.errors import RunError
from kdbench.methods.base import Requires
from kdbench.rundir.access import WRITE, denial
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.files import check_no_links, hash_of, sha256, sync_folder, write_json
from kdbench.rundir.identity import architecture_identity
from kdbench.system.device import device_name, kind_of
from kdbench.teachers.live import LiveTeacher
from kdbench.teachers.store import Teacher
from kdbench.train.evaluate import evaluation_batch
from kdbench.train.progress import CacheProgress

log = logging.getLogger(__name__)

BATCHES_PER_BLOCK = 8
"""A block is computed, written and flushed at once; an interruption loses one block at most."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def num_views(config: RunConfig) -> int:
    """Return the number of views of an image that training can use."""
    return views_of(config.data.params).number


def cache_file(teacher: RunDirectory, config: RunConfig) -> Path:
    """Return where the logit cache of a teacher is, or will be: that of a shared teacher in the own output root.

    A cache that lies beside a shared teacher is read there, unless the own root has one.
    """
    name = f"logits-{kind_of(config.runtime.device)}.npy"
    own = own_folder(teacher, config) / name
    return teacher.path / name if not own.is_file() and (teacher.path / name).is_file() else own


def own_folder(teacher: RunDirectory, config: RunConfig) -> Path:
    """Return the folder of a teacher's run in the own output root, in which its logit cache may be written."""
    return Path(config.output_root).expanduser() / "runs" / teacher.path.name


def size_of(config: RunConfig) -> int:
    """Return the size of a cache's values in bytes."""
    classes = spec_of(config.data, config.runtime.device).num_classes
    return config.data.params.num_train * num_views(config) * classes * 4


def pays_off(epochs: int, config: RunConfig) -> bool:
    """Return whether a cache costs less than the live teacher over a number of epochs, of one run or of several.

    Building a cache runs the teacher once per view of each image, training with a live teacher once per epoch: a cache
    of 162 views pays off after more than 162 epochs.
    """
    return epochs > num_views(config)


def can_answer(requires: Requires, recipe: RecipeConfig) -> bool:
    """Return whether a cache holds everything that a method requires of a teacher for the images of a recipe."""
    return requires.teacher_logits and not requires.teacher_stages and not recipe.augmentation()


@dataclass(frozen=True)
class Choice:
    """Choice between live teacher and logit cache, made before anything is computed."""

    use: bool
    reason: str
    """For the user, after "teacher: "."""
    build: bool = False
    """True if a cache that is missing or cannot be used is built; otherwise the teacher is live then."""
    required: bool = False
    """True if the run started with the cache and cannot continue without."""


def choose(config: RunConfig, requires: Requires, teacher: RunDirectory, recorded: str | None = None) -> Choice:
    """Choose between the live teacher and its logit cache.

    Args:
        config: resolved config with a teacher; `teacher.cache` is on, off or auto.
        requires: what the method requires.
        teacher: run directory of the teacher, which need not exist yet.
        recorded: on or off for an unfinished run, which continues with what it started with.

    Raises:
        RunError: the run started with a cache that is gone, and there is no space for another.
    """
    assert config.teacher is not None
    wanted, file = recorded or config.teacher.cache, cache_file(teacher, config)
    if wanted == "off":
        return Choice(False, "live (as this run started)" if recorded else "live (teacher.cache=off)")
    if changed := config.recipe.augmentation():
        return Choice(False, f"live ({changed} makes images that are no views, which the logit cache does not hold)")
    if not can_answer(requires, config.recipe):
        return Choice(
            False, f"live (method={config.method.name} reads feature maps, which the logit cache does not hold)"
        )
    build = wanted == "on" or pays_off(config.recipe.epochs, config)
    if not build and not file.is_file():
        return Choice(
            False,
            f"live (a logit cache pays off after {num_views(config)} epochs, this run has {config.recipe.epochs}; "
            "teacher.cache=on builds one for later runs)",
        )
    state = ("" if file.is_file() else ", to be built") + (" (as this run started)" if recorded else "")
    choice = Choice(True, f"logit cache {file}{state}", build, required=recorded == "on")
    if not file.is_file() and (lack := lack_of_space(file, config)):
        return Choice(False, live_instead(choice, lack))
    return choice


def live_instead(choice: Choice, lack: str) -> str:
    """Return the description of the live teacher where there is no space for its cache.

    Raises:
        RunError: the run started with the cache.
    """
    if choice.required:
        raise RunError(
            f"{lack}; this run started with its teacher's logit cache and cannot continue without",
            code="no_space",
            key="teacher.cache",
        )
    return f"live ({lack})"


def lack_of_space(file: Path, config: RunConfig) -> str | None:
    """Return what the disk lacks for a cache, in words, or None. The file's folder need not exist yet."""
    size = size_of(config)
    existing = next(parent for parent in file.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    for own in (file, *existing.glob(f".{file.stem}.*.partial")):
        with contextlib.suppress(FileNotFoundError):  # another process may be about to rename it
            free += own.stat().st_size  # makes space for the new cache, or is its beginning
    if size < free:
        return None
    return f"no space for a logit cache: {size / 1e6:.1f} MB needed and {free / 1e6:.1f} MB free in {existing}"


def obtain(choice: Choice, config: RunConfig, teacher: Teacher, batches: Batches) -> Tensor | str:
    """Return the logits of the cache, built first if that is needed, or why the teacher must be live instead.

    Args:
        choice: choice to use the cache.
        config: resolved config.
        teacher: verified teacher.
        batches: training batches.

    Returns:
        [N, V, C] float32, mapped from the file; or words for the user, after "teacher: ".

    Raises:
        RunError: there is no space for the cache, and the run cannot continue without.
    """
    cache = LogitCache(config, teacher, batches)
    if cache.file.parent != own_folder(teacher.directory, config):
        if not (problem := cache.problem()):
            return cache.read()  # nobody writes there, so there is nothing to lock
        log.info("%s is not used: %s", cache.file, problem)
        cache.move_to(own_folder(teacher.directory, config))
    directory = RunDirectory(cache.file.parent, teacher.directory.key)
    if reason := denial(directory.path, WRITE):
        return cache.read() if not cache.problem() else live_instead(choice, f"no logit cache: {reason}")
    lock = directory.lock("the logit cache of", f"{directory.key}-{cache.file.stem}")
    with lock.held(wait=config.on_busy == "wait"):
        problem = cache.problem()
        if problem and not choice.build:
            return f"live ({cache.file} is not used: {problem}; teacher.cache=on builds it again)"
        if problem:
            if cache.file.is_file():
                log.info("%s is built again: %s", cache.file, problem)
            if lack := lack_of_space(cache.file, config):
                return live_instead(choice, lack)
            try:
                cache.build()
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise
                cache.partial.unlink(missing_ok=True)
                return live_instead(choice, f"no space for all of its logit cache: {error.strerror}")
        return cache.read()


class LogitCache:
    """The logit cache of one teacher on one kind of device: its file, its verification and its construction.

    Args:
        config: resolved config of a run that reads it.
        teacher: verified teacher.
        batches: training batches.
    """

    def __init__(self, config: RunConfig, teacher: Teacher, batches: Batches) -> None:
        self.config = config
        self.batches = batches
        self.teacher = LiveTeacher(teacher.network, Requires(teacher_logits=True), config.runtime)
        self.views = batches.dataset.views
        self.shape = (len(batches.dataset.train), self.views.number, batches.dataset.spec.num_classes)
        self.batch_size = evaluation_batch(config.runtime.device, batches.dataset.spec.input_shape)
        self.file = cache_file(teacher.directory, config)
        self.fingerprint = fingerprint(config, teacher, batches)

    @property
    def record(self) -> Path:
        return self.file.with_suffix(".json")

    @property
    def partial(self) -> Path:
        """The beginning of the file. The fingerprint in its name: only the same cache continues it."""
        return self.file.with_name(f".{self.file.stem}.{hash_of(self.fingerprint)}.partial")

    def move_to(self, folder: Path) -> None:
        """Have the cache lie in another folder."""
        self.file = folder / self.file.name

    def problem(self) -> str | None:
        """Return why the file cannot be used, or None. A file is verified once per process."""
        if not self.file.is_file():
            return "there is none"
        state = self.file.stat()
        case = (self.file, state.st_mtime_ns, state.st_size, hash_of(self.fingerprint))
        if case in _verified:
            return None
        try:
            record = json.loads(self.record.read_text())
            recorded, hashed = dict(record["fingerprint"]), record["sha256"]
        except (OSError, ValueError, TypeError, KeyError):
            return f"{self.record.name} is missing or damaged"
        for name, value in self.fingerprint.items():
            if recorded.get(name) != value:
                return f"its {name} is {short(recorded.get(name))}, expected {short(value)}"
        if sha256(self.file) != hashed:
            return "the file was cut short or changed since it was written"
        _verified.add(case)
        return None

    def live_logits(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the live teacher's logits [B, C] float32, on the CPU, of views (columns) of images (rows)."""
        device, parts = self.batches.dataset.train.labels.device, []
        size = self.batch_size
        for some_rows, some_columns in zip(rows.split(size), columns.split(size), strict=True):
            batch = self.batches.batch(BatchPlan(some_rows.to(device), some_columns.to(device)))
            logits = self.teacher(batch).logits
            assert logits is not None
            parts.append(logits.float())
        return torch.cat(parts).cpu()

    def read(self) -> Tensor:
        """Return the logits, mapped from the file."""
        # Copy on write: torch requires writable memory, and nothing may reach the file.
        return torch.from_numpy(np.load(self.file, mmap_mode="c"))

    def build(self) -> None:
        """Compute all entries, continuing after an interruption.

        Raises:
            OSError: a file could not be written.
        """
        check_no_links(self.file.parent, self.file, self.record, self.partial)
        self.file.parent.mkdir(parents=True, exist_ok=True)  # of a shared teacher
        self.remove_outdated()
        if self.partial.is_file() and denial(self.partial, WRITE):  # begun by another user
            self.partial.unlink()
        images, views, _ = self.shape
        total = images * views
        block = BATCHES_PER_BLOCK * self.batch_size
        self.partial.touch()
        with self.partial.open("r+b") as file:
            done = continue_file(file, self.shape, block)
            title = f"{self.file.parent.name}: logit cache of {images:,} images x {views} views"
            with CacheProgress(title, total, done) as progress:
                for start in range(done, total, block):
                    entries = torch.arange(start, min(start + block, total))
                    values = self.live_logits(entries // views, entries % views)
                    file.write(values.numpy().astype("<f4").tobytes())
                    file.flush()
                    os.fsync(file.fileno())
                    progress.add(len(entries))
            made = progress.figures()
        runtime = self.config.runtime
        made |= {"device": device_name(runtime.device), "threads": runtime.threads}
        # The record first: a cache without record would be useless, a record without cache is ignored.
        write_json(self.record, {"fingerprint": self.fingerprint, "sha256": sha256(self.partial), "made": made})
        self.partial.replace(self.file)
        sync_folder(self.file.parent)

    def remove_outdated(self) -> None:
        """Remove an outdated cache, and the beginnings of others."""
        self.record.unlink(missing_ok=True)
        self.file.unlink(missing_ok=True)
        for other in self.file.parent.glob(f".{self.file.stem}.*"):
            if other != self.partial:
                other.unlink()


def fingerprint(config: RunConfig, teacher: Teacher, batches: Batches) -> dict[str, Any]:
    """Return everything that can change a cache's values, as JSON. Threads and the device's model only round."""
    assert config.teacher is not None
    return {
        "weights_sha256": teacher.weights_sha256,
        "architecture": architecture_identity(config.teacher.model),
        "data_sha256": batches.dataset.train.sha256,
        "images": len(batches.dataset.train),
        "views": num_views(config),
        **asdict(batches.dataset.views),
        "normalisation": {"mean": config.data.params.mean, "std": config.data.params.std},
        "precision": config.runtime.precision,
        "batch_norm": "fused",
        "batch_size": evaluation_batch(config.runtime.device, batches.dataset.spec.input_shape),
        "device": kind_of(config.runtime.device),
        "torch": version("torch"),
        "torchvision": version("torchvision"),
        **({"own normalisation": [config.teacher.mean, config.teacher.std]} if config.teacher.mean else {}),
    }


def continue_file(file: BinaryIO, shape: tuple[int, int, int], block: int) -> int:
    """Prepare an empty or interrupted cache for writing.

    Every block was flushed before the next one was begun, so all but the last are whole; the last is computed again.

    Args:
        file: the beginning of the cache.
        shape: shape of the whole cache.
        block: entries of a block.

    Returns:
        Number of entries that are kept.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    start, size = len(header.getvalue()), block * shape[2] * 4
    kept = max(0, (file.seek(0, os.SEEK_END) - start) // size - 1)
    file.seek(0)
    file.write(header.getvalue())
    file.truncate(start + kept * size)
    file.seek(0, os.SEEK_END)
    return kept * block


def short(value: Any) -> str:
    """Return a hash by its beginning, anything else in full."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)


_verified: set[tuple[object, ...]] = set()
"""Caches that this process has verified already."""


def forget_verified() -> None:
    """Verify every cache again, as a new process would."""
    _verified.clear()

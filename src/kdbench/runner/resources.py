"""Limits of the machine, disk and memory: checked before a run starts, and explained to the user when one is hit."""

import errno
import os
import re
import shutil
from pathlib import Path

import torch

from kdbench.config import RunConfig
from kdbench.errors import RunError
from kdbench.methods.base import Method
from kdbench.rundir.access import WRITE, denial, is_denied
from kdbench.rundir.directory import RunDirectory
from kdbench.system.memory import ALLOCATION, is_out_of_memory

REFUSALS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), ("no_space", "no space left on the disk")),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), ("not_writable", "no permission to write")),
    errno.ENOENT: ("not_found", "a file or folder is gone"),
}


def user_error(error: Exception, config: RunConfig, directory: RunDirectory | None) -> Exception:
    """Return an error of the disk or of the memory as one for the user; any other error as it is.

    Args:
        error: raised while the run was executed.
        config: resolved config of the run.
        directory: run directory, if it is known.
    """
    if isinstance(error, OSError):
        code, why = REFUSALS.get(error.errno or 0, ("io_error", "I/O error"))
        kept = directory is not None and any(file.is_file() for file in directory.checkpoints())
        intact = "; the last checkpoint is intact" if kept else ""
        where, key = str(directory.path if directory else config.output_root), "output_root"
        if error.filename and not Path(error.filename).is_relative_to(Path(config.output_root).expanduser()):
            where, key = str(error.filename), ""  # of the data or a checkpoint
        whose = denial(Path(os.fsdecode(error.filename)), WRITE) if error.filename and is_denied(error) else None
        refusal = RunError(
            f"{where}: {why} ({whose or error}). Fix it and rerun the same command{intact}", code=code, key=key
        )
    elif is_out_of_memory(error):
        requested = re.search(ALLOCATION, str(error))
        amount = f" ({requested[1]} more requested)" if requested else ""
        cache = " or teacher.cache=on" if config.teacher and config.teacher.cache != "on" else ""
        refusal = RunError(
            f"out of memory on {config.runtime.device}{amount}. Lower recipe.batch_size "
            f"({config.recipe.batch_size}) or data.num_train ({config.data.params.num_train}), or use "
            f"runtime.precision=bf16{cache}",
            code="out_of_memory",
            key="recipe.batch_size",
        )
    else:
        return error
    refusal.__cause__ = error
    return refusal


def check_disk_space(
    directory: RunDirectory,
    student: torch.nn.Module,
    evaluated: int,
    num_classes: int,
    copies: int,
    method: Method | None = None,
) -> None:
    """Check that the disk has space for a run: two checkpoints and one being written, weights, logits and a log.

    Args:
        directory: run directory; its files make space for those that replace them.
        student: the student.
        evaluated: number of validation and test images.
        num_classes: C of their logits.
        copies: number of tensors like the weights in a checkpoint: weights, best ones, state of the optimiser, average.
        method: the method; its `deferred` buffers are kept once in a checkpoint.

    Raises:
        RunError: there is not enough.
    """
    modules = (student, method) if method else (student,)
    weights = sum(tensor.nbytes for module in modules for tensor in module.state_dict().values())
    deferred = [buffer for name, buffer in method.named_buffers() if name in method.deferred] if method else []
    once = sum(buffer.nbytes for buffer in deferred)
    logits = evaluated * (num_classes * 4 + 8)
    checkpoint = copies * (weights - once) + once + logits
    needed = 3 * checkpoint + weights + logits + 1_000_000
    existing = next(parent for parent in directory.path.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free + sum(f.stat().st_size for f in directory.files() if f.is_file())
    if free < needed:
        raise RunError(
            f"not enough disk space for this run: about {needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free in "
            f"{existing}; free some, or give another output_root",
            code="no_space",
            key="output_root",
        )

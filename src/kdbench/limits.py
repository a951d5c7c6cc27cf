"""What a machine refuses, disk or memory: asked about before a run starts, and told to the user when it happens."""

import errno
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from kdbench.config import RunConfig
from kdbench.data.dataset import NUM_CLASSES
from kdbench.errors import RunError
from kdbench.runs import RunDirectory

ALLOCATION = r"allocate ([\d.]+ ?(?:bytes|[KMGT]iB))"
OUT_OF_MEMORY = "CUDA error: out of memory|ALLOC_FAILED"
"""What a GPU's libraries say in a plain RuntimeError."""
REFUSALS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "no room on the disk: make some"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "may not be written to: allow it"),
    errno.ENOENT: "has vanished: bring it back, or begin anew",
}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the processor or a GPU had no memory left; each library says it in its own way."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and re.search(f"{ALLOCATION}|{OUT_OF_MEMORY}", str(error)) is not None


def told(error: Exception, config: RunConfig, path: Path) -> Exception:
    """What the disk under a run's `path` or the memory has refused, with what to do; any other error as it is."""
    if isinstance(error, OSError):
        stands = "; the last checkpoint stands" if any(path.glob("*.ckpt")) else ""
        why = REFUSALS.get(error.errno or 0, "cannot be read or written: mend that")
        line = f"{path}: {why}, and give the same command again{stands} ({error})"
    elif is_out_of_memory(error):
        asked = re.search(ALLOCATION, str(error))
        amount = f"; {asked[1]} more were asked for" if asked else ""
        live = " or teacher.table=on" if config.teacher and config.teacher.table != "on" else ""
        line = (
            f"out of memory on {config.runtime.device}{amount}. Lower recipe.batch_size "
            f"({config.recipe.batch_size}) or data.num_train ({config.data.num_train}), or use "
            f"runtime.precision=bf16{live}"
        )
    else:
        return error
    refusal = RunError(line)
    refusal.__cause__ = error
    return refusal


def check_room(directory: RunDirectory, modules: Sequence[torch.nn.Module], evaluated: int) -> None:
    """That the disk has room for a run: two checkpoints and one being written, weights, logits and a log.

    Args:
        directory: What it holds makes room for what replaces it.
        modules: Student and method.
        evaluated: Images of validation and test.

    Raises:
        RunError: it has not.
    """
    weights = sum(tensor.nbytes for module in modules for tensor in module.state_dict().values())
    logits = evaluated * (NUM_CLASSES * 4 + 8)
    checkpoint = 3 * weights + logits  # the weights, their momentum and the best ones
    needed = 3 * checkpoint + weights + logits + 1_000_000
    existing = next(parent for parent in directory.path.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free + sum(f.stat().st_size for f in directory.files() if f.is_file())
    if free < needed:
        raise RunError(
            f"no room for this run: about {needed / 1e6:.0f} MB needed and {free / 1e6:.0f} MB free in {existing}; "
            "make some, or give another output_root"
        )

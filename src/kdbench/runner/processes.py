"""Checks of a run that several processes train together, as torchrun starts them."""

import dataclasses

from kdbench.config import RecipeConfig, RunConfig
from kdbench.config.derived import TRAIN
from kdbench.config.sections import EXACT, LOCAL, RuntimeConfig
from kdbench.errors import ConfigError
from kdbench.models import ModelSummary
from kdbench.system.world import world


def with_processes(runtime: RuntimeConfig, kind: str) -> RuntimeConfig:
    """Return a runtime with the number of processes where it changes numbers: in a training with `local`.

    Args:
        runtime: runtime of the run.
        kind: train, compress or measure; one process does the last two.

    Raises:
        ConfigError: the runtime is that of a run which another number of processes has started.
    """
    size = world().size
    processes = size if runtime.parallel == LOCAL and kind == TRAIN else 1
    if kind == TRAIN and runtime.processes not in (1, processes):
        raise ConfigError(
            f"runtime.processes is {runtime.processes}: {runtime.processes} processes started this run with "
            f"runtime.parallel=local, and here {'is one' if size == 1 else f'are {size}'}; start as many: torchrun "
            f"--nproc-per-node {runtime.processes} -m kdbench ...",
            code="mismatch",
            key="runtime.processes",
        )
    return dataclasses.replace(runtime, processes=processes)


def check_processes(images: int, recipe: RecipeConfig, parallel: str, prefix: str) -> None:
    """Check that several processes can divide the batches of a training among them.

    Args:
        images: number of training images.
        recipe: recipe of the training.
        parallel: `runtime.parallel` of the training.
        prefix: text before the keys of the recipe.

    Raises:
        ConfigError: they cannot.
    """
    size = world().size
    if size == 1:
        return
    if recipe.batch_size % size:
        raise ConfigError(
            f"{prefix}recipe.batch_size is {recipe.batch_size}, the number of images of a step in all processes, and "
            f"torchrun started {size} processes, which does not divide it; start a number that does, such as "
            f"{largest_divisor(recipe.batch_size, size)}, or change the batch size",
            code="mismatch",
            key=f"{prefix}recipe.batch_size",
        )
    least = 1 if parallel == EXACT else 2
    last = images % recipe.batch_size or recipe.batch_size
    if last // recipe.accumulate < least * size:
        raise ConfigError(
            f"{prefix}recipe.batch_size is {recipe.batch_size}, which leaves {last} images for the last step"
            f"{f' in {recipe.accumulate} parts' if recipe.accumulate > 1 else ''}, too few for {size} processes with "
            f"at least {least} each; change {prefix}recipe.batch_size or data.num_train",
            code="mismatch",
            key=f"{prefix}recipe.batch_size",
        )


def check_one_process(student: ModelSummary, config: RunConfig) -> None:
    """Check that nothing of a run needs to be computed in a single process.

    Args:
        student: summary of the student.
        config: resolved config.

    Raises:
        ConfigError: code is compiled, or the student draws random numbers from Python or NumPy.
    """
    if world().size == 1:
        return
    if student.host_random:
        raise ConfigError(
            f"student={config.student.name} draws random numbers from Python or NumPy, which several processes cannot "
            "share; train it in one process, without torchrun",
            code="not_parallel",
            key="student",
        )
    if config.runtime.compile:
        raise ConfigError(
            "runtime.compile=true is for one process, and torchrun started several; use runtime.compile=false",
            code="not_compilable",
            key="runtime.compile",
        )


def largest_divisor(number: int, below: int) -> int:
    """Return the largest divisor of a number that is below another."""
    return next(divisor for divisor in range(below - 1, 0, -1) if number % divisor == 0)

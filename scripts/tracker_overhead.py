"""Time of a run with trackers beside that of the same run without: pairs in turn in one process, and their ratio.

    python scripts/tracker_overhead.py [TRACKER ...]

The trackers are tensorboard and wandb unless others are named; mlflow needs a server at MLFLOW_TRACKING_URI. The first
pair, in which the libraries of the trackers are imported, is printed apart.
"""

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kdbench
from kdbench.trackers.sender import Tracking

PAIRS = 8
RUN = (
    "student=resnet8", "student.widths=[8,8,16,32]", "teacher=none", "method=ce", "data=shapes", "data.num_train=512",
    "data.num_val=100", "data.num_test=100", "recipe=smoke", "recipe.epochs=6", "runtime.device=cpu",
    "runtime.precision=fp32",
)  # fmt: skip


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """Return a function that also notes how long each of its calls takes."""

    def call(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - started)

    return call


def main(trackers: list[str]) -> None:
    """Train the pairs and print the figures."""
    folder = Path(tempfile.mkdtemp())
    calls: list[float] = []
    Tracking.end_epoch = timed(Tracking.end_epoch, calls)
    ratios, busy = [], []
    try:
        for pair in range(PAIRS + 1):
            seconds, processor = {}, {}
            for chosen in ([], trackers) if pair % 2 else (trackers, []):
                root = folder / f"{pair}{bool(chosen)}"
                config = kdbench.compose([*RUN, f"output_root='{root}'", f"tracker=[{','.join(chosen)}]"])
                calls.clear()
                started, before = time.perf_counter(), time.process_time()
                run = kdbench.run(config)
                seconds[bool(chosen)] = time.perf_counter() - started
                processor[bool(chosen)] = time.process_time() - before
                trained = run.metrics["seconds"].sum()
                print(
                    f"{'with' if chosen else 'without':8} {seconds[bool(chosen)]:6.2f} s, "
                    f"{processor[bool(chosen)]:6.2f} s of the processor, training {trained:6.2f} s, "
                    f"calls of {len(calls)} epochs {1e6 * statistics.median(calls):.0f} µs each"
                )
            if pair:
                ratios.append(seconds[True] / seconds[False])
                busy.append(processor[True] / processor[False])
            else:
                print(f"first pair: {seconds[True] / seconds[False]:.3f}")
    finally:
        shutil.rmtree(folder)
    for name, values in (("seconds", ratios), ("seconds of the processor in the process of the run", busy)):
        low, middle, high = statistics.quantiles(values, n=4)
        print(
            f"{name}, with {', '.join(trackers)} / without: median {middle:.3f} (quartiles {low:.3f} to {high:.3f}), "
            f"n={PAIRS}"
        )


if __name__ == "__main__":
    main(sys.argv[1:] or ["tensorboard", "wandb"])

"""Values that a run measured of its network, and their session: only values of one session can be compared."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.config.derived import MEASURE
from kdbench.report.deployment.lineage import Row
from kdbench.rundir.summary import KEY

ONNX, TORCH = "onnx", "torch"
ENGINES = (ONNX, TORCH)
MILLION = 1e6


@dataclass(frozen=True)
class Session:
    """Runs that were measured in turn in one process, on one device."""

    together: tuple[str, ...]
    device: str
    threads: int | None

    @property
    def place(self) -> str:
        """Device and number of threads as text."""
        many = "" if self.threads == 1 else "s"
        return self.device + (f" with {self.threads} thread{many}" if self.threads is not None else "")


def measured(run: Row, name: str) -> Any:
    """Return an entry of a run's measurement; None where it has none."""
    return run.get(f"{KEY.measurement}.{name}")


def number_of(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def session_of(run: Row) -> Session | None:
    """Return the session of a run's measurement; None for a run that measured nothing."""
    if run[KEY.kind] != MEASURE:
        return None
    together, device, threads = (measured(run, name) for name in ("together", "device", "threads"))
    keys = tuple(map(str, together)) if isinstance(together, list) and together else (str(run[KEY.run_key]),)
    return Session(keys, str(device or "an unknown device"), threads if isinstance(threads, int) else None)


def latency_of(run: Row, engine: str, batch: int, name: str = "median_ms") -> float | None:
    """Return a latency of a run's network, or another entry beside it; None where it was not measured."""
    entry = batches_of(run, engine).get(batch)
    return number_of(entry.get(name)) if entry else None


def batches_of(run: Row, engine: str) -> dict[int, Mapping[str, Any]]:
    """Return the measurements of an engine by the size of the batch."""
    latency = measured(run, "latency")
    entries = latency.get(engine) if isinstance(latency, dict) else None
    if not isinstance(entries, dict):
        return {}
    return {int(size): entry for size, entry in entries.items() if str(size).isdigit() and isinstance(entry, dict)}


def largest_batch(runs: Sequence[Row]) -> int | None:
    """Return the largest batch that every run measured in every engine that it has; None where it is 1 or unknown."""
    sizes = [set(batches_of(run, engine)) for run in runs for engine in ENGINES if batches_of(run, engine)]
    common = set.intersection(*sizes) if sizes else set()
    return max(common) if common and max(common) > 1 else None


def missing_of(runs: Sequence[Row]) -> str:
    """Return what was not measured and why, each reason once, with the number of runs where it is not all of them."""
    counts: dict[tuple[str, str], int] = {}
    for run in runs:
        missing = measured(run, "missing")
        for name, reason in (missing if isinstance(missing, dict) else {}).items():
            key = (str(name).replace("_", " "), " ".join(str(reason).split()))
            counts[key] = counts.get(key, 0) + 1
    parts = [
        f"{name}: {reason}" + (f" ({count} of {len(runs)} runs)" if count < len(runs) else "")
        for (name, reason), count in counts.items()
    ]
    return "; ".join(parts)

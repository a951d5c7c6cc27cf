"""Tables of compressed and measured networks for the console."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kdbench.rundir.summary import KEY, RunSummary


def compression_table(runs: Sequence[tuple[Path, RunSummary]]) -> str:
    """Return accuracy, change, sparsity and size of runs as text, a line each."""
    rows = []
    for path, summary in runs:
        change = None if summary.parent_test_acc is None else 100 * (summary.test_acc_best - summary.parent_test_acc)
        rows.append(
            {
                "network": summary.student,
                "seed": number(summary.seed),
                "test accuracy %": f"{100 * summary.test_acc_best:.2f}",
                "change, points": "-" if change is None else f"{change:+.2f}",
                "zeros %": "-" if summary.sparsity is None else f"{100 * summary.sparsity:.1f}",
                "parameters": number(summary.num_params),
                "MACs": number(summary.macs),
                "run": str(path),
            }
        )
    return pd.DataFrame(rows).to_string(index=False)


def measurement_table(runs: Sequence[tuple[Path, RunSummary]]) -> str:
    """Return size, latency and accuracy of measured runs as text, a line each, and what could not be measured."""
    rows, notes = [], dict[str, list[str]]()
    for _, summary in runs:
        measured = summary.measurement or {}
        change = None if summary.parent_test_acc is None else 100 * (summary.test_acc_best - summary.parent_test_acc)
        rows.append(
            {
                "network": summary.student,
                "seed": number(summary.seed),
                "test accuracy %": f"{100 * summary.test_acc_best:.2f}",
                "change, points": "-" if change is None else f"{change:+.2f}",
                "kB": f"{measured['size_bytes'] / 1e3:.1f}",
                "kB gzip": f"{measured['size_compressed_bytes'] / 1e3:.1f}",
                "nonzero": number(summary.nonzero_params),
                "MACs": number(summary.macs),
                **latencies(measured),
                "memory MB": "-"
                if measured[KEY.peak_memory_bytes] is None
                else f"{measured[KEY.peak_memory_bytes] / 1e6:.1f}",
                "mJ per image": "-"
                if measured["energy_mj_per_image"] is None
                else f"{measured['energy_mj_per_image']:.2f}",
            }
        )
        for what, why in measured["missing"].items():
            notes.setdefault(f"{what}: {why}", []).append(summary.student)
    lines = [f"not measured of {', '.join(sorted(set(of)))}: {note}" for note, of in notes.items()]
    first = next(iter(runs))[1].measurement or {}
    heading = (
        f"latency in ms: median (quartiles) over {first['rounds']} rounds, {first['threads']} thread"
        f"{'s' if first['threads'] > 1 else ''}, {first['device']}"
    )
    return "\n".join([pd.DataFrame(rows).fillna("-").to_string(index=False), heading, *lines])


def latencies(measured: Mapping[str, Any]) -> dict[str, str]:
    """Return the latencies of a measurement, by the heading of their column."""
    cells = {}
    for engine, by_batch in measured["latency"].items():
        for batch, latency in (by_batch or {}).items():
            cells[f"{engine} x{batch}"] = (
                f"{latency['median_ms']:.3g} ({latency['low_ms']:.3g}-{latency['high_ms']:.3g})"
            )
    return cells


def number(value: int | None) -> str:
    """Return a whole number, or a dash where it is not known."""
    return "-" if value is None else f"{value:,}"

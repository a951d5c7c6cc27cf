"""Tables of compressed and measured networks for the console."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kdbench.rundir.summary import KEY, RunSummary


@dataclass(frozen=True)
class Row:
    """A step of a chain."""

    path: Path
    summary: RunSummary
    before: float
    """Test accuracy of the network before the step."""
    start: float
    """Test accuracy of the network with which the chain began."""


def compression_table(rows: Sequence[Row]) -> str:
    """Return accuracy, changes, zeros and size of the networks of chains as text, a line each."""
    cells = [
        {
            "network": name_of(row.summary),
            "seed": number(row.summary.seed),
            "test accuracy %": f"{100 * row.summary.test_acc_best:.2f}",
            "change by the step, points": f"{100 * (row.summary.test_acc_best - row.before):+.2f}",
            "since the start": f"{100 * (row.summary.test_acc_best - row.start):+.2f}",
            "zeros %": "-" if row.summary.sparsity is None else f"{100 * row.summary.sparsity:.1f}",
            "parameters": number(row.summary.num_params),
            "MACs": number(row.summary.macs),
            "run": str(row.path),
        }
        for row in rows
    ]
    return pd.DataFrame(cells).to_string(index=False)


def name_of(summary: RunSummary) -> str:
    """Return the network of a run with how it was trained."""
    return f"{summary.student} {summary.method}" + (f" from {summary.teacher}" if summary.teacher else "")


def measurement_table(runs: Sequence[tuple[Path, RunSummary]]) -> str:
    """Return size, latency and accuracy of measured runs as text, a line each, and what could not be measured."""
    rows, notes = [], dict[str, list[str]]()
    for _, summary in runs:
        measured = summary.measurement or {}
        change = None if summary.parent_test_acc is None else 100 * (summary.test_acc_best - summary.parent_test_acc)
        rows.append(
            {
                "network": name_of(summary),
                "run": summary.parent_key,
                "seed": number(summary.seed),
                "test accuracy %": f"{100 * summary.test_acc_best:.2f}",
                "change since compression, points": "-" if change is None else f"{change:+.2f}",
                "kB": f"{measured['size_bytes'] / 1e3:.1f}"
                + ("" if measured["size_format"] == "onnx" else " (weights)"),
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
        "onnx xN, torch xN: latency of N images in ms, median (quartiles) over "
        f"{first['rounds']} rounds, threads: {first['threads']}, {first['device']}"
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

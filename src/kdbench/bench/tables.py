"""The results of a benchmark as text."""

import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd


def heading(case: dict[str, Any]) -> str:
    """Return the line above a case's table."""
    source = f" from {case['teacher']}" if case["teacher"] else ""
    return f"{case['student']} {case['method']}{source}, {setting(case)}"


def setting(case: dict[str, Any]) -> str:
    """Return batch size, device, precision and threads of a case."""
    runtime = case["runtime"]
    return f"batch {case['batch_size']}, on {runtime['device']}, {runtime['precision']}, threads: {runtime['threads']}"


def arms_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the medians of the arms, with the range of the rounds for the ratio."""
    return pd.DataFrame([row_of(row) for row in rows]).to_string(index=False)


def row_of(row: dict[str, Any]) -> dict[str, str]:
    """Return one arm's line of the table."""
    speed, ratio, share = row["images_per_second"], row["ratio"], row["share_of_peak"]
    cells = {
        "arm": row["arm"],
        "x reference": f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})" if ratio else "-",
        "images/s": f"{speed['median']:.0f} ({speed['lowest']:.0f} to {speed['highest']:.0f})",
        "ms/step": f"{1000 * statistics.median(row['step_seconds']):.1f}",
        "rounds x steps": f"{speed['n']} x {row['steps_per_round']}",
        "TFLOP/s": f"{row['flops_per_second'] / 1e12:.3g}",
    }
    return cells | ({"of peak": f"{share:.1%}"} if share is not None else {}) | {"what": row["what"]}


def checkpoint_line(checkpoints: dict[str, Any]) -> str:
    """Return the cost of a checkpoint, and of a run's checkpoints, in one line."""
    seconds, share = checkpoints["seconds"], checkpoints["share"]
    line = (
        f"a checkpoint of {checkpoints['bytes'] / 1e6:.1f} MB takes {1000 * seconds['median']:.0f} ms "
        f"({1000 * seconds['lowest']:.0f} to {1000 * seconds['highest']:.0f}, n = {seconds['n']})"
    )
    if share is None:
        return line
    return f"{line}: {share:.2%} of a run's time at checkpoint.every_minutes={checkpoints['every_minutes']:g}"


def lockstep_table(measured: dict[str, Any]) -> str:
    """Return both ways of training several learners, and the ratio of their speeds."""
    ratio = measured["ratio"]
    arms = [
        {"arm": name, "images/s": "{median:.0f} ({lowest:.0f} to {highest:.0f})".format(**arm["images_per_second"])}
        for name, arm in measured["arms"].items()
    ]
    return (
        f"{len(measured['learners'])} learners ({', '.join(measured['learners'])}) from {measured['teacher']}, "
        f"{setting(measured)}\n"
        f"{pd.DataFrame(arms).to_string(index=False)}\n"
        f"lockstep is {ratio['median']:.2f} times as fast ({ratio['lowest']:.2f} to {ratio['highest']:.2f}, "
        f"n = {ratio['n']}); it saves {measured['saved']:.0%} of the multiply-accumulates"
    )

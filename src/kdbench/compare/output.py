"""A comparison as text and as JSON."""

import dataclasses
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from kdbench.compare.comparison import RunComparison, StageSimilarity, TeacherView
from kdbench.compare.read import ComparedRun
from kdbench.errors import printable
from kdbench.metrics import DISTANCES, Comparison, Quality

WIDTH = 100
"""Largest number of columns of a table or note; paths may be longer."""
LABEL, NUMBER = 43, 9
Value = float | int | None

OF_DISTANCES = (
    ("activation_distance", "activation distance", "0 = identical, max 1.414"),
    ("rank_disagreement", "rank disagreement, share of ranks", "0 = identical, max 1"),
    ("prediction_disagreement", "prediction disagreement, share of images", "0 = identical, max 1"),
    ("js_divergence", "Jensen-Shannon divergence, nats", "0 = identical, max 0.693"),
)
OF_AGREEMENT = (
    ("agreement", "agreement, share of images", "1 = identical"),
    ("chance_agreement", "agreement by chance, share of images", "of independent models"),
    ("logits_cka", "linear CKA of the logits", "0 = unrelated, 1 = alike"),
)
OF_QUALITY = (
    ("accuracy", "accuracy, share of images", "higher is better"),
    ("nll", "negative log-likelihood, nats", "lower is better"),
    ("ece", "expected calibration error", "lower is better"),
    ("brier", "Brier score", "lower is better"),
)
OF_TEACHER_ALONE = ("teacher_right", "teacher_wrong")
"""Counts that do not depend on the run."""


def as_text(comparison: RunComparison) -> str:
    """Return a comparison for a terminal."""
    blocks = [heading(comparison), table_of_pair(comparison), table_of_quality(comparison)]
    if comparison.teacher:
        blocks.append(table_of_teacher(comparison.teacher))
        if comparison.teacher.is_third:
            blocks.append(table_of_transfer(comparison.teacher))
    if comparison.stages:
        blocks.append(table_of_features(comparison.stages))
    if comparison.notes:
        notes = (textwrap.wrap(printable(note), WIDTH - 2, subsequent_indent="  ") for note in comparison.notes)
        blocks.append(["Notes", *(f"  {line}" for note in notes for line in note)])
    return "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks) + "\n"


def heading(comparison: RunComparison) -> list[str]:
    """Return which runs are compared, and on what."""
    images, classes = comparison.a.predictions.logits.shape
    runs = {"A": comparison.a, "B": comparison.b}
    if comparison.teacher:
        runs["teacher"] = comparison.teacher.run
    lines = [f"{images} test images, {classes} classes"]
    for title, run in runs.items():
        lines += [f"{title + ':':<9}{printable(run.name)}", f"{'':9}{printable(str(run.path))}"]
    return lines


def table_of_pair(comparison: RunComparison) -> list[str]:
    """Return the metrics between both runs, a line each."""
    values, counts = metrics_of(comparison.pair, "a", "b"), comparison.pair.by_correctness
    kls = (("kl_a_b", "KL(A || B), nats", "0 = identical"), ("kl_b_a", "KL(B || A), nats", "0 = identical"))
    rows = [row(label, [values[name]], reads) for name, label, reads in (*OF_DISTANCES, *kls, *OF_AGREEMENT)]
    right = f"{counts.correct} of {counts.teacher_right} images"
    wrong = f"{counts.incorrect} of {counts.teacher_wrong} images"
    return [
        header("A and B", ["value"]),
        *rows,
        row("B predicts A's class where A is right", [values["correct_rate"]], f"1 = always; {right}"),
        row("B predicts A's class where A is wrong", [values["incorrect_rate"]], f"1 = always; {wrong}"),
    ]


def table_of_quality(comparison: RunComparison) -> list[str]:
    """Return accuracy and calibration of each run."""
    found = [dataclasses.asdict(comparison.pair.a), dataclasses.asdict(comparison.pair.b)]
    titles = ["A", "B", "B - A"]
    if comparison.teacher:
        found.append(dataclasses.asdict(comparison.teacher.a.a))
        titles.append("teacher")
    rows = []
    for name, label, reads in OF_QUALITY:
        a, b, *rest = (quality[name] for quality in found)
        rows.append(row(label, [a, b, b - a, *rest], reads, signed=2))
    return [header("Each run", titles), *rows]


def table_of_teacher(view: TeacherView) -> list[str]:
    """Return the metrics of each run to the teacher, side by side."""
    a, b = of_student(view.a), of_student(view.b)
    kls = (
        ("kl_teacher_run", "KL(teacher || run), nats", "0 = identical"),
        ("kl_run_teacher", "KL(run || teacher), nats", "0 = identical"),
    )
    counts = view.a.by_correctness
    by_correctness = (
        ("correct", "same class where the teacher is right", f"of {counts.teacher_right} images"),
        ("correct_rate", "  as a share", "1 = always"),
        ("incorrect", "same class where the teacher is wrong", f"of {counts.teacher_wrong} images"),
        ("incorrect_rate", "  as a share", "1 = always"),
    )
    rows = [
        row(label, [a[name], b[name], difference(a[name], b[name])], reads, signed=2)
        for name, label, reads in (*OF_DISTANCES, *kls, *OF_AGREEMENT, *by_correctness)
    ]
    return [header("Each run and the teacher", ["A", "B", "B - A"]), *rows]


def table_of_transfer(view: TeacherView) -> list[str]:
    """Return the gains of the distilled student over its control."""
    return [
        header("Transfer from the teacher: A (distilled) over B (control)", []),
        "  gain = (rate of A - rate of B) / (1 - rate of B): share of the room that B leaves",
        row("agreement gain where the teacher is right", [view.correct_gain], "0 = as B, 1 = always", signed=0),
        row("agreement gain where the teacher is wrong", [view.incorrect_gain], "0 = as B, 1 = always", signed=0),
        row("asymmetry: the first gain minus the second", [view.asymmetry], "below 0 = more of the mistakes", signed=0),
    ]


def table_of_features(stages: Sequence[StageSimilarity]) -> list[str]:
    """Return the similarity of the features at every stage."""
    rows = [
        row(
            f"linear CKA at {printable(stage.stage)}",
            [stage.linear_cka, stage.width_a, stage.width_b],
            "0 = unrelated, 1 = alike",
        )
        for stage in stages
    ]
    return [
        header("Features of A and B", ["CKA", "width A", "width B"]),
        *rows,
        "  maps are averaged over space, tokens over tokens; computed from the weights in float32",
    ]


def header(title: str, columns: Sequence[str]) -> str:
    """Return the first line of a table."""
    return f"{title:<{LABEL + 2}}" + "".join(f"{column:>{NUMBER}}" for column in columns)


def row(label: str, values: Sequence[Value], reads: str, signed: int | None = None) -> str:
    """Return a line of a table.

    Args:
        label: name of the quantity.
        values: a number per column.
        reads: direction in which it reads.
        signed: column of a difference, which has its sign.
    """
    numbers = "".join(f"{number(value, column == signed):>{NUMBER}}" for column, value in enumerate(values))
    short = label if len(label) <= LABEL else f"{label[: LABEL - 3]}..."
    return f"  {short:<{LABEL}}{numbers}   {reads}"


def number(value: Value, signed: bool = False) -> str:
    """Return a number with four decimals, or in powers of ten where these do not show it; - where there is none."""
    if value is None or math.isnan(value):
        return "-"
    sign = "+" if signed and value else ""
    if isinstance(value, int):
        return f"{value:{sign}}"
    if value and not 5e-5 <= abs(value) < 1e4:
        return f"{value:{sign}.1e}"
    return f"{value:{sign}.4f}"


def difference(a: Value, b: Value) -> Value:
    """Return b - a, or None where one is unknown."""
    return None if a is None or b is None else b - a


def metrics_of(comparison: Comparison, first: str, second: str) -> dict[str, Value]:
    """Return the metrics between two models by name; both KLs have the names of the models."""
    counts = comparison.by_correctness
    return {name: getattr(comparison, name) for name in DISTANCES} | {
        f"kl_{first}_{second}": comparison.kl_a_b,
        f"kl_{second}_{first}": comparison.kl_b_a,
        "agreement": comparison.agreement,
        "chance_agreement": comparison.chance_agreement,
        "logits_cka": comparison.logits_cka,
        f"{first}_right": counts.teacher_right,
        f"{first}_wrong": counts.teacher_wrong,
        "correct": counts.correct,
        "incorrect": counts.incorrect,
        "correct_rate": counts.correct_rate,
        "incorrect_rate": counts.incorrect_rate,
    }


def of_student(comparison: Comparison) -> dict[str, Value]:
    """Return the metrics of a run to its teacher by name."""
    return metrics_of(comparison, "teacher", "run")


def as_json(comparison: RunComparison) -> str:
    """Return a comparison as one JSON object, in which null stands for a number that is not defined."""
    view, pair = comparison.teacher, comparison.pair
    images, classes = comparison.a.predictions.logits.shape
    content = {
        "a": run_entry(comparison.a, pair.a),
        "b": run_entry(comparison.b, pair.b),
        "teacher": run_entry(view.run, view.a.a) if view else None,
        "images": images,
        "classes": classes,
        "labels_sha256": comparison.a.labels_sha256,
        "a_and_b": metrics_of(pair, "a", "b"),
        "with_teacher": teacher_entry(view) if view else None,
        "features": None if comparison.stages is None else [dataclasses.asdict(stage) for stage in comparison.stages],
        "notes": list(comparison.notes),
    }
    return json.dumps(without_nan(content), indent=2, allow_nan=False) + "\n"


def run_entry(run: ComparedRun, quality: Quality) -> dict[str, Any]:
    """Return what JSON has of one run."""
    return {
        "name": run.name,
        "path": str(run.path.resolve()),
        "run_key": run.summary.run_key,
        "teacher_key": run.summary.teacher_key,
        "rounded_logits": run.is_rounded,
        **dataclasses.asdict(quality),
    }


def teacher_entry(view: TeacherView) -> dict[str, Any]:
    """Return what JSON has of both runs and the teacher."""
    a, b = of_student(view.a), of_student(view.b)
    return {
        "a": a,
        "b": b,
        "b_minus_a": {name: difference(a[name], b[name]) for name in a if name not in OF_TEACHER_ALONE},
        "transfer_of_a_over_b": {
            "correct_gain": view.correct_gain,
            "incorrect_gain": view.incorrect_gain,
            "asymmetry": view.asymmetry,
        }
        if view.is_third
        else None,
    }


def without_nan(node: Any) -> Any:
    """Return JSON content with null in place of numbers that are not finite."""
    if isinstance(node, Mapping):
        return {key: without_nan(value) for key, value in node.items()}
    if isinstance(node, list):
        return [without_nan(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node

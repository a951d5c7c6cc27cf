"""The comparison of two runs, and of both with a teacher. Imports no torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kdbench.compare.read import ComparedRun, check_same_images
from kdbench.config.paths import is_file
from kdbench.metrics import Comparison, compare_logits, headroom_gain
from kdbench.rundir.summary import SUMMARY_FILE


@dataclass(frozen=True)
class TeacherView:
    """Two runs, each compared with the same teacher."""

    run: ComparedRun
    is_third: bool
    """True if it is neither run: gains over oneself, or towards oneself, say nothing."""
    a: Comparison
    """Metrics between the teacher, in the place of a, and run A."""
    b: Comparison
    """Metrics between the teacher, in the place of a, and run B."""

    @property
    def correct_gain(self) -> float:
        """Gain of A over B in agreement where the teacher is right, as a share of the room that B leaves."""
        return float(headroom_gain(self.a.by_correctness.correct_rate, self.b.by_correctness.correct_rate))

    @property
    def incorrect_gain(self) -> float:
        """The same where the teacher is wrong."""
        return float(headroom_gain(self.a.by_correctness.incorrect_rate, self.b.by_correctness.incorrect_rate))

    @property
    def asymmetry(self) -> float:
        """Correct gain minus incorrect gain: below 0, more of the teacher's mistakes than of its knowledge."""
        return self.correct_gain - self.incorrect_gain


@dataclass(frozen=True)
class StageSimilarity:
    """Similarity of two networks at a stage of one name."""

    stage: str
    width_a: int
    width_b: int
    linear_cka: float | None
    """None where the features of one network do not vary over images, or are not finite."""


@dataclass(frozen=True)
class RunComparison:
    """Two runs, compared on their test images."""

    a: ComparedRun
    b: ComparedRun
    pair: Comparison
    teacher: TeacherView | None
    stages: Sequence[StageSimilarity] | None
    """None without --features."""
    notes: Sequence[str]


def compare_runs(a: ComparedRun, b: ComparedRun, teacher: ComparedRun | None = None) -> RunComparison:
    """Return all metrics between two runs, and between each and a teacher.

    Args:
        a: first run; with a teacher, the distilled student.
        b: second run; with a teacher, the control.
        teacher: run whose predictions both are compared with.

    Raises:
        ConfigError: the runs have logits of other images or classes.
    """
    others = [b] if teacher is None else [b, teacher]
    for other in others:
        check_same_images(a, other)
    view = None
    if teacher:
        is_third = teacher.summary.run_key not in (a.summary.run_key, b.summary.run_key)
        view = TeacherView(
            teacher, is_third, *(compare_logits(teacher.predictions, run.predictions, a.labels) for run in (a, b))
        )
    pair = compare_logits(a.predictions, b.predictions, a.labels)
    return RunComparison(a, b, pair, view, None, notes_on(a, b, teacher))


def notes_on(a: ComparedRun, b: ComparedRun, teacher: ComparedRun | None) -> list[str]:
    """Return what a reader has to know about the runs, a line each."""
    runs = {"A": a, "B": b} | ({"--teacher": teacher} if teacher else {})
    notes = []
    for first, second in (("A", "B"), ("A", "--teacher"), ("B", "--teacher")):
        if second in runs and runs[first].summary.run_key == runs[second].summary.run_key:
            notes.append(f"{first} and {second} are the same run ({runs[first].summary.run_key})")
    for student in ("A", "B"):
        key = runs[student].summary.teacher_key
        found = [name for name, run in runs.items() if key and name != student and run.summary.run_key == key]
        notes += [f"{name} is the teacher that {student} records ({key})" for name in found]
        if teacher and key and not found:
            warning = "WARNING: " if student == "A" else ""
            notes.append(f"{warning}{student} records another teacher than the given one: {key}")
    if teacher is None and (key := a.summary.teacher_key) and key != b.summary.run_key and lies_beside(a, key):
        notes.append(f"A records a teacher whose run lies beside it ({key}); --teacher DIR adds the comparison with it")
    rounded = [name for name, run in runs.items() if run.is_rounded]
    if rounded:
        notes.append(f"logits of {' and '.join(rounded)} are kept in half precision: the numbers are of rounded logits")
    return notes


def lies_beside(run: ComparedRun, key: str) -> bool:
    """Return whether a complete run with a key lies in the folder of another. The key may be any text."""
    if not re.fullmatch("[0-9a-f]{16}", key):
        return False
    return any(is_file(folder / SUMMARY_FILE) for folder in run.path.resolve().parent.glob(f"*_{key}"))

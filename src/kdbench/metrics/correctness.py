"""Agreement with a teacher, divided by whether the teacher is right: knowledge and mistakes that a student shares."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdbench.metrics.fidelity import Model
from kdbench.metrics.probability import Ints, as_pair, check_labels


@dataclass(frozen=True)
class CorrectnessAgreement:
    """Images on which a student predicts its teacher's class, where the teacher is right and where it is wrong."""

    teacher_right: int
    """Number of images that the teacher classifies correctly."""
    teacher_wrong: int
    """Number of images that it gets wrong."""
    correct: int
    """Number of images on which both predict the true class."""
    incorrect: int
    """Number of images on which both predict the same wrong class."""

    @property
    def correct_rate(self) -> float:
        """Share of the teacher's correct images on which the student predicts its class; NaN if there are none."""
        return self.correct / self.teacher_right if self.teacher_right else math.nan

    @property
    def incorrect_rate(self) -> float:
        """Share of the teacher's mistakes that the student makes too; NaN if there are none."""
        return self.incorrect / self.teacher_wrong if self.teacher_wrong else math.nan


def agreement_by_correctness(student_logits: Model, teacher_logits: Model, labels: Ints) -> CorrectnessAgreement:
    """Return how often a student predicts its teacher's class, where the teacher is right and where it is wrong.

    Args:
        student_logits: [N, C]; of equal largest logits the class with the smaller number is predicted.
        teacher_logits: [N, C], for the same images.
        labels: true classes [N], in [0, C).

    Returns:
        Counts and conditional rates; higher means closer to the teacher.

    Raises:
        ValueError: logits are not finite floats [N, C] or of different shapes, or labels are no classes [N].

    Source: arXiv 2510.12615.
    """
    student, teacher = as_pair(student_logits, teacher_logits)
    return count_agreement(student.predicted, teacher.predicted, check_labels(labels, *teacher.logits.shape))


def count_agreement(student: Ints, teacher: Ints, labels: Ints) -> CorrectnessAgreement:
    """Return the same of predicted classes [N] and labels [N]."""
    same, right = student == teacher, teacher == labels
    teacher_right = int(right.sum())
    return CorrectnessAgreement(
        teacher_right, len(labels) - teacher_right, int((same & right).sum()), int((same & ~right).sum())
    )


def headroom_gain(rate: ArrayLike, control_rate: ArrayLike) -> NDArray[np.float64]:
    """Return the difference of two rates as a share of the room that the control leaves.

        (rate - control_rate) / (1 - control_rate)

    Correct agreement is high in every good network and can rise little; incorrect agreement can rise much. Divided by
    its room, a rise of one can be compared with a rise of the other.

    Args:
        rate: of the distilled student, in [0, 1]; a number or an array of them.
        control_rate: of its control, in [0, 1], of the same shape.

    Returns:
        Array of the same shape, of numbers of at most 1, which means that no room is left; 0 means no change; below 0,
        that the student agrees less than the control. NaN where the control leaves no room, or a rate is NaN.
    """
    rates, base = np.asarray(rate, dtype=np.float64), np.asarray(control_rate, dtype=np.float64)
    return np.divide(rates - base, 1 - base, out=np.full(base.shape, np.nan), where=base < 1)


def shared_mistakes_by_class(
    student: Ints, teacher: Ints, labels: Ints, classes: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return, for each true class, the images that a student gets wrong in the same way as its teacher.

    Args:
        student: predicted classes [N].
        teacher: predicted classes [N] for the same images.
        labels: true classes [N], in [0, C).
        classes: C.

    Returns:
        Number of the student's equal mistakes [C], and of the teacher's mistakes [C].
    """
    wrong = teacher != labels
    shared = wrong & (student == teacher)
    return np.bincount(labels[shared], minlength=classes), np.bincount(labels[wrong], minlength=classes)

"""Mistakes of the teacher that students share, by class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdbench.metrics import shared_mistakes_by_class
from kdbench.report.class_gains import class_names
from kdbench.report.columns import row
from kdbench.report.functional.transfer import PRIMARY, ControlComparison
from kdbench.report.functional_columns import MISTAKES
from kdbench.report.predictions import known_pair, predictions_in
from kdbench.report.statistics import NAN

Floats = NDArray[np.float64]


def count_mistakes(run: Path, teacher: Path) -> Floats | None:
    """Return the equal mistakes of each class [C] and then the teacher's mistakes of each class [C], as one vector.

    None where logits of the same images are not there; images with an open class are left out.
    """
    pair, own = known_pair(run, teacher), predictions_in(teacher)
    if pair is None or own is None:
        return None
    return np.concatenate(shared_mistakes_by_class(*pair, own.num_classes)).astype(np.float64)


def mistakes_table(comparisons: Sequence[ControlComparison]) -> pd.DataFrame:
    """Return the content of mistakes.csv: a row for each class of each comparison with a primary control."""
    rows = [cells for own in comparisons if own.family == PRIMARY for cells in mistakes_rows(own)]
    return pd.DataFrame(rows, columns=MISTAKES).astype({"n": "Int64", "class_index": "Int64"})


def mistakes_rows(own: ControlComparison) -> list[dict[str, Any]]:
    """Return a row for each class: shares of the teacher's mistakes that students and controls make too, per cent."""
    shared = own.group.shared
    means, base = own.values.mean(axis=0), own.control_values.mean(axis=0)
    classes = len(means) // 2
    names = class_names(shared, classes)
    rows = []
    for index in range(classes):
        ours, theirs = (percent_of(counts[index], counts[classes + index]) for counts in (means, base))
        rows.append(
            row(
                student=shared.student, teacher=shared.teacher, method=shared.method, setting=own.setting,
                control=own.control, class_name=names[index], class_index=index, n=len(own.seeds),
                teacher_mistakes=means[classes + index], shared_mistakes=ours, control_mistakes=theirs,
                mistakes_change=ours - theirs,
            )
        )  # fmt: skip
    return rows


def percent_of(part: float, whole: float) -> float:
    """Return a part in per cent of the whole; NaN without a whole."""
    return 100 * part / whole if whole else NAN

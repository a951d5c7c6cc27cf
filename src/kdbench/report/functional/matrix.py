"""Agreement of every model of a report with every other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdbench.metrics import agreement_matrix
from kdbench.report.functional.conditions import Condition
from kdbench.report.groups import TEST_IMAGES, RunGroup
from kdbench.report.predictions import Predictions, predictions_in


@dataclass(frozen=True)
class Model:
    """Model of the matrix: a run of the report, or a teacher beside it."""

    group: str
    """Name of its group; of a teacher that is not in the report, that of its network."""
    seed: int | None
    run_key: str
    folder: Path
    is_teacher: bool

    @property
    def name(self) -> str:
        return self.group if self.seed is None else f"{self.group}, seed {self.seed}"


@dataclass(frozen=True, eq=False)
class AgreementMatrix:
    """Agreement of models that have logits of the same images, in the order of the report's groups, teachers that are
    not in the report last."""

    models: Sequence[Model]
    values: NDArray[np.float64]
    """Shares of images [M, M] with the same predicted class."""

    @property
    def table(self) -> pd.DataFrame:
        """Content of agreement_matrix.csv: per cent, rows and columns by the keys of the runs."""
        keys = [model.run_key for model in self.models]
        matrix = pd.DataFrame((100 * self.values).round(2), columns=keys)
        return pd.concat(
            [pd.DataFrame({"run_key": keys, "model": [model.name for model in self.models]}), matrix], axis=1
        )


def compute_matrix(groups: Sequence[RunGroup], conditions: Sequence[Condition]) -> AgreementMatrix | None:
    """Return the matrix of the largest set of models with logits of the same images; None for fewer than two.

    Args:
        groups: groups of the report.
        conditions: conditions of the report, for teachers that are not in it.
    """
    taught = {run.teacher_key for group in groups for run in group.rows if run.teacher_key}
    found: dict[str, tuple[RunGroup, Model]] = {}
    for group in groups:
        for run in group.rows:
            found[run.run_key] = group, Model(group.name, run.seed, run.run_key, run.path, run.run_key in taught)
    for condition in conditions:
        shared = condition.group.shared
        teacher = Model(f"teacher {shared.teacher}", shared.teacher_seed, shared.teacher_key, condition.teacher, True)
        found.setdefault(teacher.run_key, (condition.group, teacher))
    kinds: dict[tuple[Any, ...], list[tuple[Model, Predictions]]] = {}
    for group, model in found.values():
        if own := predictions_in(model.folder):
            data = group.shared.dataset, group.shared.get(TEST_IMAGES), own.num_classes, own.labels.tobytes()
            kinds.setdefault(data, []).append((model, own))
    largest = max(kinds.values(), key=len, default=[])
    if len(largest) < 2:
        return None
    predicted = np.array([own.predicted for _, own in largest])
    return AgreementMatrix([model for model, _ in largest], agreement_matrix(predicted))

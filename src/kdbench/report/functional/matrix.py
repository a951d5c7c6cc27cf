"""Agreement of every model of a report with every other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdbench.metrics import agreement_matrix
from kdbench.report.groups import TEST_IMAGES, RunGroup
from kdbench.report.predictions import predictions_in


@dataclass(frozen=True, eq=False)
class AgreementMatrix:
    """Agreement of models that have logits of the same images, in the order of the report's groups."""

    groups: Sequence[RunGroup]
    """Group of each model."""
    runs: Sequence[Any]
    """Run of each model."""
    values: NDArray[np.float64]
    """Shares of images [M, M] with the same predicted class."""

    @property
    def table(self) -> pd.DataFrame:
        """Content of agreement_matrix.csv: per cent, rows and columns by the keys of the runs."""
        keys = [run.run_key for run in self.runs]
        names = [f"{group.name}, seed {run.seed}" for group, run in zip(self.groups, self.runs, strict=True)]
        matrix = pd.DataFrame((100 * self.values).round(2), columns=keys)
        return pd.concat([pd.DataFrame({"run_key": keys, "model": names}), matrix], axis=1)


def compute_matrix(groups: Sequence[RunGroup]) -> AgreementMatrix | None:
    """Return the matrix of the largest set of models with logits of the same images; None for fewer than two."""
    kinds: dict[tuple[Any, ...], list[tuple[RunGroup, Any]]] = {}
    for group in groups:
        data = group.shared.dataset, group.shared.get(TEST_IMAGES)
        for run in group.rows:
            if own := predictions_in(run.path):
                kinds.setdefault((*data, own.num_classes, own.labels.tobytes()), []).append((group, run))
    models = max(kinds.values(), key=len, default=[])
    if len(models) < 2:
        return None
    predicted = np.array([predicted_of(run) for _, run in models])
    return AgreementMatrix([group for group, _ in models], [run for _, run in models], agreement_matrix(predicted))


def predicted_of(run: Any) -> NDArray[np.integer]:
    """Return the predicted classes [N] of a run that has logits; where they leave the class open, the first."""
    own = predictions_in(run.path)
    assert own is not None
    return own.predicted

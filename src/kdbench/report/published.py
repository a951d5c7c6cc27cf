"""Interval, p and verdict of gains and interactions by the primary analysis, for everything that is published."""

from collections.abc import Sequence

import pandas as pd

from kdbench.report import statistics as st

ANALYSES = {
    "blocks": "seeds as blocks",
    "paired": "the paired t-test over seeds",
    "crossed": "teachers and seeds crossed",
    "welch": "Welch's t-test",
}
"""Analyses in words, by the value of the column `analysis`."""


def primary_view(table: pd.DataFrame, p: str = "p_welch") -> pd.DataFrame:
    """Return `low`, `high`, `p`, `p_adjusted`, `significant`, `equivalent` and `analysis` (in words) of each row.

    A table without a primary analysis gives Welch's.

    Args:
        table: gains or interactions.
        p: column of Welch's p, before the correction.
    """
    view = pd.DataFrame(index=table.index)
    names = ("primary_low", "primary_high", "p_primary", "p_adjusted")
    if not table[list(names)].notna().any(axis=None):
        names = ("ci_low", "ci_high", p, "p_holm")
    for name, column in zip(("low", "high", "p", "p_adjusted"), names, strict=True):
        view[name] = table[column].astype(float)
    decided = table.get("significant", pd.Series(pd.NA, index=table.index)).astype("boolean")
    view["significant"] = decided.fillna((view.p_adjusted < st.ALPHA).astype("boolean").where(view.p_adjusted.notna()))
    view["equivalent"] = pd.Series(pd.NA, index=table.index, dtype="boolean")
    for column in ("equivalent", "equivalent_adjusted"):
        if column in table and table[column].notna().any():
            view["equivalent"] = table[column].astype("boolean")
    view["analysis"] = table.analysis.map(lambda value: ANALYSES.get(value, ANALYSES["welch"]))
    return view


def name_analyses(analyses: Sequence[str]) -> str:
    """Return the analyses of a table in words, each once."""
    return " or ".join(dict.fromkeys(analyses)) or ANALYSES["welch"]

"""Interval, p and verdict of gains and interactions by the primary analysis, for everything that is published."""

from collections.abc import Sequence

import pandas as pd

from kdbench.report.design import WORDS, Analysis


def primary_view(table: pd.DataFrame) -> pd.DataFrame:
    """Return `low`, `high`, `p`, `p_adjusted`, `significant`, `equivalent` and `analysis` (in words) of each row.

    All but the last are missing for a row that has no test.

    Args:
        table: gains or interactions.
    """
    view = pd.DataFrame(index=table.index)
    columns = ("primary_low", "primary_high", "p_primary", "p_adjusted")
    for name, column in zip(("low", "high", "p", "p_adjusted"), columns, strict=True):
        view[name] = table[column].astype(float)
    view["significant"] = table.significant.astype("boolean")
    missing = pd.Series(pd.NA, index=table.index)
    view["equivalent"] = table.get("equivalent_adjusted", missing).astype("boolean")
    view["analysis"] = table.analysis.map(lambda value: WORDS[Analysis(value)] if isinstance(value, str) else "")
    return view


def name_analyses(analyses: Sequence[str]) -> str:
    """Return the analyses of a table in words, each once."""
    return " or ".join(dict.fromkeys(filter(None, analyses))) or "no test"

"""The page about the report knows every column."""

import re
from pathlib import Path

from kdbench.report.columns import COLUMNS

PAGE = Path(__file__).parents[2] / "docs" / "report.md"


def test_docs_explain_every_column_in_the_reports_own_words() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE.read_text(), re.MULTILINE))
    assert rows == {name: column.meaning for name, column in COLUMNS.items()}

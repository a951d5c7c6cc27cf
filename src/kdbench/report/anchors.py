"""Anchors of the page's rows, to which figures and sentences link."""

from urllib.parse import quote


def run_anchor(key: str) -> str:
    """Return the id of a run's row."""
    return f"run-{key}"


def row_anchor(table: str, number: int) -> str:
    """Return the id of a row of gains, interactions or groups.

    Args:
        table: name of the table.
        number: place of the row in the table, from 1.
    """
    return f"{table.removesuffix('s')}-{number}"


def link(anchor: str) -> str:
    """Return the address of an anchor within the page."""
    return f"#{quote(anchor)}"

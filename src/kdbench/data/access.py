"""Permission of data sets to write files: unpacked archives, downloads and caches of decoded images."""

from collections.abc import Iterator
from contextlib import contextmanager

_read_only = False


@contextmanager
def read_only() -> Iterator[None]:
    """Keep data sets from writing in the block: the config that names the files may come from anywhere."""
    global _read_only
    before, _read_only = _read_only, True
    try:
        yield
    finally:
        _read_only = before


def may_write() -> bool:
    """Return whether data sets may write files."""
    return not _read_only

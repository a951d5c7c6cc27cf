"""The tracker of one's own that docs/scaling.md shows, typed in as written."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Finished
from tests.docs.examples import SIZES, commands_of
from tests.docs.test_docs import CHECKOUT, write_files
from tests.trackers.conftest import lines_in, statuses, wait_for

PAGE = CHECKOUT / "docs" / "scaling.md"


@pytest.mark.slow
def test_tracker_of_the_page_writes_its_lines(kdbench: Callable[..., Finished]) -> None:
    write_files(PAGE, Path())
    (command,) = [command for command in commands_of(PAGE) if "json_lines" in command]
    finished = kdbench(*shlex.split(command)[1:], *(size for size in SIZES if "teacher" not in size))
    assert finished.code == 0, finished.err
    wait_for(lambda: list(Path("outputs/.trackers").glob("*/json_lines")))
    assert [line.get("epoch") for line in lines_in(Path("lines"))] == [None, 1, None]
    assert statuses(Path("lines")) == ["complete"]

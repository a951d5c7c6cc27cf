"""The tracker of one's own that docs/scaling.md shows, typed in as written."""

import json
import shlex
from pathlib import Path

import pytest

from tests.docs.examples import SIZES, commands_of
from tests.docs.test_docs import CHECKOUT, write_files
from tests.trackers.conftest import Command, wait_for

PAGE = CHECKOUT / "docs" / "scaling.md"


@pytest.mark.slow
def test_tracker_of_the_page_writes_its_lines(tmp_path: Path) -> None:
    write_files(PAGE, tmp_path)
    (command,) = [command for command in commands_of(PAGE) if "json_lines" in command]
    Command(tmp_path, *shlex.split(command)[1:], *(size for size in SIZES if "teacher" not in size)).end()
    wait_for(lambda: list((tmp_path / "outputs/.trackers").glob("*/json_lines")))
    (file,) = (tmp_path / "lines").glob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line.get("epoch") for line in lines] == [None, 1, None]
    assert lines[-1]["status"] == "complete"

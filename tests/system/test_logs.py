"""Log lines: each run's own file has its lines and no other run's."""

import logging
from pathlib import Path

import pytest

from kdbench.system.guard import Guard
from kdbench.system.logs import RunLog, log_to_console

log = logging.getLogger("kdbench.test")


def open_log(folder, name):
    run_log, guard = RunLog(folder / name), Guard(f"{name}: ")
    guard.log = folder / name
    run_log.open()
    return run_log, guard


def lines(file):
    return [line.split(" ", 2)[2] for line in file.read_text().splitlines()]


def test_a_run_log_has_the_lines_of_its_run_and_those_of_none(tmp_path, capsys):
    log_to_console()
    (first, of_first), (second, of_second) = (open_log(tmp_path, name) for name in ("a", "b"))
    log.info("both")
    with of_first:
        log.info("first")
        log.debug("detail")
    with of_second:
        log.info("second")
    first.close()
    second.close()
    log.info("later")
    assert lines(tmp_path / "a") == ["both", "first", "detail"]
    assert lines(tmp_path / "b") == ["both", "second"]
    assert capsys.readouterr().out == "both\na: first\nb: second\nlater\n"


def test_the_console_shows_lines_with_their_run_and_no_details(capsys):
    log_to_console()
    with Guard("a: "):
        log.info("first")
        log.debug("detail")
    log.info("both")
    assert capsys.readouterr().out == "a: first\nboth\n"


def test_console_set_up_twice_prints_once(capsys):
    log_to_console()
    log_to_console()
    log.info("line")
    assert capsys.readouterr().out == "line\n"


def test_a_torn_last_line_of_a_killed_process_gets_its_end(tmp_path):
    log_to_console()
    (tmp_path / "a").write_text("2026-01-01 00:00:00 epo")
    run_log, _ = open_log(tmp_path, "a")
    log.info("epoch 1")
    run_log.close()
    assert (tmp_path / "a").read_text().splitlines()[0] == "2026-01-01 00:00:00 epo"
    assert lines(tmp_path / "a")[-1] == "epoch 1"


def test_a_log_that_cannot_be_written_fails_its_run():
    log_to_console()
    run_log = RunLog(Path("/dev/full"))
    run_log.open()
    with pytest.raises(OSError, match="No space left"):
        log.info("line")
    run_log.close()

"""Requested stops: where a run can leave, how long it may take, and which exit code it has."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from kdbench.system.signals import SIGNALS, Interrupted, deferred, handled, interruption, raise_if_requested

STOPS = [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGUSR2, 75), (signal.SIGALRM, 3)]


def send(*numbers):
    for number in numbers:
        signal.raise_signal(number)


def work(*numbers):
    """Receive signals, finish a piece of work, and leave where that is possible."""
    done = []
    with handled(), deferred(grace_seconds=60):
        send(*numbers)
        done.append("work")
        try:
            raise_if_requested()
        except Interrupted as stop:
            return done, stop
    return done, None


@pytest.mark.parametrize(("requested", "code"), STOPS)
def test_a_signal_is_followed_at_once_where_nothing_can_be_lost(requested, code):
    with handled(), pytest.raises(Interrupted) as stop:
        send(requested, requested)
    assert (stop.value.exit_code, str(stop.value)) == (code, requested.name)


@pytest.mark.parametrize(("requested", "code"), STOPS)
def test_a_deferred_signal_is_followed_where_the_run_can_leave(requested, code):
    done, stop = work(requested)
    assert done
    assert stop.exit_code == code


def test_without_a_signal_nothing_is_interrupted():
    assert work() == (["work"], None)


def test_afterwards_the_previous_handlers_are_back_and_the_request_is_cleared():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with handled(), handled():
        assert {number: signal.getsignal(number) for number in SIGNALS} != before
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    raise_if_requested()


@pytest.mark.parametrize("blocks", [lambda: deferred(60), handled])
def test_the_handler_from_before_gets_the_signal_after_the_run_has_left(blocks):
    events = []

    def requeue(number, frame):
        events.append(f"requeued by {signal.Signals(number).name}")

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with contextlib.suppress(Interrupted), blocks(), deferred(60):
            send(signal.SIGUSR2)
            events.append("checkpoint")
            raise_if_requested()
            events.append("next step")
        assert events == ["checkpoint", "requeued by SIGUSR2"]
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_handler_from_before_gets_no_signal_that_the_block_has_dealt_with():
    events = []
    before = signal.signal(signal.SIGUSR2, lambda *_: events.append("requeued"))
    try:
        assert work(signal.SIGUSR2)[0] == ["work"]
        assert not events
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_repeated_signals_of_a_batch_system_count_once():
    _, stop = work(signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
    assert str(stop) == "SIGUSR1"


def test_an_error_after_a_stop_is_a_consequence_of_it_outside_of_deferred_blocks_alone():
    with handled():
        assert interruption() is None
        with contextlib.suppress(Interrupted):  # a library may swallow it
            send(signal.SIGTERM)
        assert str(interruption()) == "SIGTERM"
        with deferred(grace_seconds=60):
            assert interruption() is None


def test_an_error_after_a_deferred_stop_is_a_consequence_of_it_once_the_run_leaves():
    with handled():
        with contextlib.suppress(Interrupted), deferred(grace_seconds=60):
            send(signal.SIGTERM)
            assert interruption() is None
            raise_if_requested()
        assert str(interruption()) == "SIGTERM"


def test_an_interruption_passes_handlers_of_ordinary_exceptions():
    assert not issubclass(Interrupted, Exception)


BUSY = """
import signal, sys, time
from kdbench.system.signals import deferred, handled
with handled(), deferred(grace_seconds={grace}):
    print("working", flush=True)
    for _ in range(600): time.sleep(0.1)
"""


def worker(grace):
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(grace=grace)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "working\n"
    return process


def test_a_process_that_does_not_leave_within_its_grace_time_is_ended():
    process = worker(grace=0.5)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 75
    assert 0.4 < time.monotonic() - started < 10
    assert error.startswith("kdbench: SIGTERM: ")
    assert "checkpoint.grace_seconds=0.5" in error
    assert error.count("\n") == 1


def test_a_second_ctrl_c_ends_the_process_at_once():
    process = worker(grace=600)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert time.monotonic() - started < 10
    assert error.count("\n") == 1

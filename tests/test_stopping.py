import os
import signal
import subprocess
import sys
import time

import pytest

from kdbench import stopping
from kdbench.stopping import Interrupted, deferred, leave_if_asked, listening

ASKS = [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGUSR2, 75), (signal.SIGALRM, 3)]


def hear(*numbers):
    for number in numbers:
        signal.raise_signal(number)


def work(*numbers):
    """Hear signals, do something, and leave where one can."""
    done = []
    with listening(), deferred(grace_seconds=60):
        hear(*numbers)
        done.append("this")
        try:
            leave_if_asked()
        except Interrupted as interruption:
            return done, interruption
    return done, None


@pytest.mark.parametrize(("asked", "code"), ASKS)
def test_where_nothing_is_lost_a_signal_leaves_at_once(asked, code):
    with listening(), pytest.raises(Interrupted) as told:
        hear(asked, asked)
    assert (told.value.exit_code, str(told.value)) == (code, asked.name)


@pytest.mark.parametrize(("asked", "code"), ASKS)
def test_where_something_is_lost_a_signal_waits_for_a_place_to_leave(asked, code):
    done, interruption = work(asked)
    assert done
    assert interruption.exit_code == code


def test_a_place_to_leave_is_passed_if_nobody_asked():
    assert work() == (["this"], None)


def test_afterwards_signals_mean_what_they_meant_before_and_nothing_is_remembered():
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    with listening(), listening():
        assert signal.getsignal(signal.SIGTERM) == stopping.note
        with pytest.raises(Interrupted):
            hear(signal.SIGTERM)
    assert {number: signal.getsignal(number) for number in stopping.SIGNALS} == before
    leave_if_asked()


def test_a_batch_system_may_repeat_itself():
    _, interruption = work(signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
    assert str(interruption) == "SIGUSR1"


BUSY = """
import signal, sys, time
from kdbench.stopping import deferred, listening
with listening(), deferred(grace_seconds={grace}):
    print("working", flush=True)
    for _ in range(600): time.sleep(0.1)
"""


def worker(grace):
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(grace=grace)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "working\n"
    return process


def test_who_cannot_leave_within_its_grace_is_ended():
    process = worker(grace=0.5)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 75
    assert 0.4 < time.monotonic() - started < 10
    assert error == (
        "kdbench: SIGTERM: not done within checkpoint.grace_seconds=0.5, leaving; the last checkpoint stands\n"
    )


def test_the_second_ctrl_c_leaves_at_once():
    process = worker(grace=600)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert time.monotonic() - started < 10
    assert error == "kdbench: interrupted twice, leaving at once\n"

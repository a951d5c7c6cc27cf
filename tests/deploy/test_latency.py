"""Latencies in turn: the order, the statistics, and that a deeper network takes longer."""

import signal
import time
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.deploy import latency
from kdbench.deploy.latency import Candidate, measure_in_turn
from kdbench.system.signals import Interrupted


class Clock:
    """Takes the place of the time: every pass of a candidate adds its own seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.passes: list[str] = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def candidate(self, name: str, seconds: list[float], batch: int = 4) -> Candidate:
        """Return a candidate whose passes take some seconds in turn."""

        def execute() -> None:
            self.now += seconds[self.passes.count(name) % len(seconds)]
            self.passes.append(name)

        return Candidate(execute, batch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_round_measures_every_candidate_once_after_a_pass_that_is_not_measured(clock: Clock) -> None:
    candidates = [clock.candidate(name, [1.0]) for name in "abc"]
    measure_in_turn(candidates, rounds=40, warmup=0)
    assert clock.passes[:3] == ["a", "b", "c"]
    rounds = ["".join(clock.passes[start : start + 6]) for start in range(3, len(clock.passes), 6)]
    assert len(rounds) == 40
    assert all(one[::2] == one[1::2] and sorted(one[::2]) == ["a", "b", "c"] for one in rounds)
    orders = {one[::2] for one in rounds}
    assert len(orders) == 6  # no candidate follows the same other one in every round
    assert [len(candidate.seconds) for candidate in candidates] == [40, 40, 40]


def test_every_candidate_is_warmed_up_before_the_first_round(clock: Clock) -> None:
    candidates = [clock.candidate(name, [1.0]) for name in "ab"]
    measure_in_turn(candidates, rounds=1, warmup=4)
    assert clock.passes[:10] == ["a"] * 5 + ["b"] * 5
    assert sorted(clock.passes[10:]) == ["a", "a", "b", "b"]
    assert [len(candidate.seconds) for candidate in candidates] == [1, 1]


def test_short_passes_are_repeated_until_a_measurement_is_long_enough(clock: Clock) -> None:
    short, long = clock.candidate("short", [0.001]), clock.candidate("long", [0.5])
    measure_in_turn([short, long], rounds=2, warmup=1)
    assert short.repetitions == round(latency.SHORTEST / 0.001) == 20
    assert long.repetitions == 1
    assert clock.passes.count("short") == 2 + 2 * 21
    np.testing.assert_allclose(short.seconds, [0.001, 0.001])


def test_median_and_quartiles_are_those_of_numpy(clock: Clock) -> None:
    seconds = [0.5, 0.1, 0.3, 0.9, 0.4, 0.2, 0.35]  # every second pass is measured: all of them in two turns
    candidate = clock.candidate("a", seconds, batch=8)
    measure_in_turn([candidate], rounds=7, warmup=6)
    assert sorted(candidate.seconds) == pytest.approx(sorted(seconds))
    low, median, high = 1e3 * np.quantile(seconds, [0.25, 0.5, 0.75])
    expected = {"median_ms": median, "low_ms": low, "high_ms": high, "images_per_second": 8 / (median / 1e3)}
    assert candidate.latency() == pytest.approx(expected)


def test_a_requested_stop_ends_the_measurement(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = clock.candidate("a", [1.0])

    def stop() -> None:
        if len(candidate.seconds) == 2:
            raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(latency, "raise_if_requested", stop)
    with pytest.raises(Interrupted):
        measure_in_turn([candidate], rounds=100, warmup=0)
    assert len(candidate.seconds) == 2


@pytest.mark.alone
@pytest.mark.slow
def test_a_network_twice_as_deep_takes_longer() -> None:
    images = torch.randn(8, 16, 32, 32)

    def network(depth: int) -> nn.Module:
        return nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(depth))).eval()

    torch.set_num_threads(1)
    candidates = [Candidate(partial(module, images), 8) for module in (network(6), network(12), network(6))]
    with torch.no_grad():
        measure_in_turn(candidates, rounds=15, warmup=2)
    first, deep, again = (candidate.latency()["median_ms"] for candidate in candidates)
    assert deep > 1.5 * first
    assert deep > 1.5 * again
    assert again == pytest.approx(first, rel=0.25)

"""The processes of one run: what ends all of them, and the end of connections that never existed."""

import os

import pytest
import torch
from torch.distributed import HashStore

from kdbench.system import world
from kdbench.system.world import ProcessEndedError, World


def two(monkeypatch: pytest.MonkeyPatch) -> tuple[World, World]:
    """Return two processes with a common store, of which a failing one waits a moment for the other."""
    monkeypatch.setattr(world, "FAILURE_SECONDS", 0.05)
    store = HashStore()
    return World(0, 2, store=store), World(1, 2, store=store)


def fail_in_block(process: World, error: Exception) -> None:
    with pytest.raises(type(error)), process.collective():
        raise error


@pytest.mark.parametrize("error", [ValueError("a bug"), torch.OutOfMemoryError("none left")])
def test_an_exception_of_one_process_ends_the_others(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    first, second = two(monkeypatch)
    fail_in_block(second, error)
    assert first.reason_of_end() == second.problem == f"process 1 of 2 ended: {error}"


def test_an_exception_of_all_processes_ends_none(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = two(monkeypatch)
    place = f"kdbench/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/1"
    processes[0].store.set(f"{place}/0", "1")
    fail_in_block(processes[1], ValueError("a bug"))
    fail_in_block(processes[0], ValueError("a bug"))
    assert [process.problem for process in processes] == [None, None]


def test_the_end_of_another_process_is_not_published_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = two(monkeypatch)
    fail_in_block(first, ProcessEndedError("process 1 of 2 ended", code="process_ended"))
    assert first.problem is None


def test_processes_that_cannot_be_reached_do_not_disturb_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str) -> None:
        raise RuntimeError("no route to host")

    monkeypatch.setattr(world, "rendezvous", fail)
    monkeypatch.setenv("MASTER_ADDR", "far.example")
    monkeypatch.setenv("MASTER_PORT", "29500")
    World(0, 2).disconnect()

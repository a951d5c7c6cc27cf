"""Devices: which one a run gets, and what depends on its kind. There is no MPS device in these tests."""

import pytest
import torch

from kdbench.config import compose
from kdbench.errors import ConfigError
from kdbench.system.device import device_name, resolve_device, resolve_runtime, synchronize, widest_float
from kdbench.system.random import random_state, set_random_state
from kdbench.train import sums
from kdbench.train.evaluate import EVALUATION_BATCH
from kdbench.train.graphs import steps_for
from kdbench.train.steps import EagerSteps
from tests.conftest import composed_once


@pytest.fixture
def mps(monkeypatch):
    """Have torch report an MPS device, whose generator and queue record how they are used."""
    calls = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.ones(3, dtype=torch.uint8))
    monkeypatch.setattr(torch.mps, "set_rng_state", calls.append)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: calls.append("synchronize"))
    return calls


def test_mps_is_a_device_where_torch_has_it_and_never_chosen_by_itself(mps):
    runtime = resolve_runtime(compose(["runtime.device=mps"]).runtime)
    assert (runtime.device, runtime.precision) == ("mps", "fp32")
    assert resolve_device("auto") != "mps"
    assert "MPS" in device_name("mps")
    with pytest.raises(ConfigError) as error:
        resolve_runtime(compose(["runtime.device=mps", "runtime.precision=fp16"]).runtime)
    assert (error.value.code, error.value.key) == ("unavailable_device", "runtime.precision")


def test_mps_is_refused_where_torch_has_none():
    with pytest.raises(ConfigError) as error:
        resolve_device("mps")
    assert (error.value.code, error.value.key) == ("unavailable_device", "runtime.device")


def test_random_state_of_mps_is_kept_and_restored(mps):
    state = random_state("mps")
    assert set(state) == {"cpu", "mps"}
    set_random_state(state, "mps")
    synchronize("mps")
    assert mps == [state["mps"], "synchronize"]


def test_mps_has_no_float64_and_no_graphs(mps, monkeypatch):
    assert (widest_float("mps"), widest_float("cuda:0"), widest_float("cpu")) == (
        torch.float32, torch.float64, torch.float64,
    )  # fmt: skip
    monkeypatch.setattr(sums, "widest_float", lambda device: widest_float("mps"))
    kept = sums.EpochSums("cpu")
    kept.add_predictions(torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64))
    kept.add_terms({"total": torch.tensor(0.5)}, torch.tensor(2.0), epoch=1)
    kept.load_state_dict(kept.state_dict())
    assert torch.float64 not in {value.dtype for value in kept.state_dict().values() if isinstance(value, torch.Tensor)}
    assert kept.means(1) == {"total": 0.5, "train_acc": 1.0, "grad_norm": 2.0}
    assert "mps" in EVALUATION_BATCH
    runtime = composed_once("runtime.device=mps").runtime
    learner = type("Learner", (), {"runtime": runtime, "parallel": None})()
    assert isinstance(steps_for([learner], batches=None), EagerSteps)

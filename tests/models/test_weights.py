import pickle
import re

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.models import build, weights
from tests.conftest import composed_once


@pytest.fixture(scope="module")
def network():
    return build(composed_once("student=resnet8", "method=ce").student, 10)


@pytest.fixture(scope="module")
def state(network):
    return {name: tensor.clone() for name, tensor in network.body.state_dict().items()}


def forms(state):
    """Return a state dict in the forms in which training scripts store it."""
    return {
        "plain": state,
        "reference study": {"epoch": 3, "model_state_dict": {f"model.{n}": t for n, t in state.items()}},
        "lightning": {"state_dict": {f"model.{n}": t for n, t in state.items()}},
        "data parallel": {f"module.{n}": t for n, t in state.items()},
        "both": {"model": {f"module.model.{n}": t for n, t in state.items()}},
    }


@pytest.mark.parametrize("form", ["plain", "reference study", "lightning", "data parallel", "both"])
def test_state_dicts_are_read_in_the_forms_that_scripts_write(state, tmp_path, form):
    torch.save(forms(state)[form], tmp_path / "weights.pth")
    read = weights.read(tmp_path / "weights.pth")
    assert set(read) == set(state)
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_safetensors_are_read_as_written_with_their_metadata(state, tmp_path):
    weights.save(state, tmp_path / "w.safetensors", {"classes": 10, "nested": {"a": [1, 2]}})
    assert weights.read_metadata(tmp_path / "w.safetensors") == {"classes": 10, "nested": {"a": [1, 2]}}
    read = weights.read(tmp_path / "w.safetensors")
    assert all(torch.equal(read[name], state[name]) for name in state)


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("form", ["saved by torch", "pickle", "pickle of protocol 2"])
def test_code_in_a_pickle_is_an_error_and_is_not_run(tmp_path, form):
    marker, file = tmp_path / "ran", tmp_path / "evil.pth"
    content = {"fc.weight": Malicious(marker)}
    if form == "saved by torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content, 2 if form == "pickle of protocol 2" else None))
    error = error_of(weights.read, file)
    assert error.code == "untrusted"
    assert form == "pickle" or re.search(r"\b(io|_io|builtins)\.open\b", str(error))  # what the code would call
    assert "\n" not in str(error)
    assert "weights_only" not in str(error)  # torch's message recommends to switch it off
    assert not marker.exists()


def error_of(function, *arguments):
    """Return the error for the user that a call raises."""
    with pytest.raises(ConfigError) as error:
        function(*arguments)
    return error.value


def test_safetensors_are_recognised_under_any_file_name(state, tmp_path):
    weights.save(state, tmp_path / "w.pth", {})
    assert set(weights.read(tmp_path / "w.pth")) == set(state)


@pytest.mark.parametrize(
    "odd", [torch.zeros(10, dtype=torch.int64), torch.zeros(10, dtype=torch.bool), torch.zeros(10).to_sparse()]
)
def test_tensors_other_than_dense_floats_are_an_error(network, state, odd):
    error = error_of(weights.load_into, network, state | {"fc.bias": odd}, "x.pth")
    assert error.code == "wrong_type"
    assert "fc.bias" in str(error)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 10, 5000])
def test_a_truncated_file_is_an_error(state, tmp_path, suffix, kept):
    file = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(state, file)
    else:
        weights.save(state, file, {})
    file.write_bytes(file.read_bytes()[:kept])
    assert error_of(weights.read, file).code in ("damaged", "untrusted")  # the rest of a pickle may look like code


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {},
        {"epoch": 3},
        {"state_dict": {"a": 1}},
        {1: torch.zeros(1)},
        {"a": "b", "c": torch.zeros(1)},
    ],
)
def test_a_file_without_a_state_dict_is_an_error(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    assert error_of(weights.read, tmp_path / "w.pth").code == "damaged"


def test_a_missing_file_is_an_error(tmp_path):
    assert error_of(weights.read, tmp_path / "none.pth").code == "not_found"
    assert error_of(weights.read_metadata, tmp_path / "none.safetensors").code == "damaged"


def test_weights_of_another_architecture_are_an_error_with_an_example_of_each_side(network, state):
    other = {name.replace("layer3", "layer7"): tensor for name, tensor in state.items()}
    error = error_of(weights.load_into, network, other, "x.pth")
    assert error.code == "mismatch"
    assert re.search(r"x\.pth.*layer3\..*layer7\.", str(error))


def test_another_number_of_classes_is_an_error_with_both_shapes(network, state):
    other = state | {"fc.weight": torch.zeros(100, 64), "fc.bias": torch.zeros(100)}
    error = error_of(weights.load_into, network, other, "x.pth")
    assert error.code == "mismatch"
    assert re.search(r"fc\.weight.*\[100, 64\].*\[10, 64\]", str(error))


def test_weights_that_are_not_finite_are_an_error(network, state):
    error = error_of(weights.load_into, network, state | {"fc.bias": torch.full((10,), torch.nan)}, "x.pth")
    assert error.code == "not_finite"
    assert "fc.bias" in str(error)

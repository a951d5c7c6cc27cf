import pickle

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.models import build, weights
from tests.conftest import composed


@pytest.fixture(scope="module")
def network():
    return build(composed("student=resnet8", "method=ce").student, 10)


@pytest.fixture(scope="module")
def state(network):
    return {name: tensor.clone() for name, tensor in network.body.state_dict().items()}


def forms(state):
    """How training scripts keep a state dict."""
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


def test_safetensors_round_trip_with_metadata(state, tmp_path):
    weights.save(state, tmp_path / "w.safetensors", {"classes": 10, "nested": {"a": [1, 2]}})
    assert weights.read_metadata(tmp_path / "w.safetensors") == {"classes": 10, "nested": {"a": [1, 2]}}
    read = weights.read(tmp_path / "w.safetensors")
    assert all(torch.equal(read[name], state[name]) for name in state)


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_a_pickle_with_code_is_refused_and_its_code_not_run(tmp_path):
    marker, file = tmp_path / "ran", tmp_path / "evil.pth"
    file.write_bytes(pickle.dumps({"fc.weight": Malicious(marker)}))
    with pytest.raises(ConfigError, match=r"evil.pth is refused: only tensors are read from a pickle"):
        weights.read(file)
    torch.save({"fc.weight": Malicious(marker)}, file)
    with pytest.raises(
        ConfigError, match=r"is refused: .* it asks for (io|_io|builtins).open; save the state"
    ) as refused:
        weights.read(file)
    assert not marker.exists()
    assert "\n" not in str(refused.value)
    assert "weights_only" not in str(refused.value)


def test_safetensors_are_recognised_whatever_their_name(state, tmp_path):
    weights.save(state, tmp_path / "w.pth", {})
    assert set(weights.read(tmp_path / "w.pth")) == set(state)


@pytest.mark.parametrize("content", [{1: torch.zeros(1)}, {"a": "b", "c": torch.zeros(1)}])
def test_odd_dictionaries_are_no_state_dicts(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="holds no state dict"):
        weights.read(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "odd", [torch.zeros(10, dtype=torch.int64), torch.zeros(10, dtype=torch.bool), torch.zeros(10).to_sparse()]
)
def test_tensors_that_are_no_weights_are_refused(network, state, odd):
    with pytest.raises(ConfigError, match=r"has fc.bias as torch.* it must be a dense float tensor"):
        weights.load_into(network, state | {"fc.bias": odd}, "x.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 10, 5000])
def test_truncated_files_are_refused(state, tmp_path, suffix, kept):
    file = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(state, file)
    else:
        weights.save(state, file, {})
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ConfigError, match=r"is damaged or in an unknown format|is refused"):
        weights.read(file)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {"state_dict": {"a": 1}}])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="holds no state dict"):
        weights.read(tmp_path / "w.pth")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no file"):
        weights.read(tmp_path / "none.pth")


def test_other_architecture_names_what_is_missing(network, state):
    other = {name.replace("layer3", "layer7"): tensor for name, tensor in state.items()}
    with pytest.raises(
        ConfigError, match=r"of another architecture: \d+ tensors are missing \(layer3.*unknown \(layer7"
    ):
        weights.load_into(network, other, "x.pth")


def test_other_number_of_classes_names_both_shapes(network, state):
    other = state | {"fc.weight": torch.zeros(100, 64), "fc.bias": torch.zeros(100)}
    with pytest.raises(ConfigError, match=r"fc.weight is \[100, 64\] there and \[10, 64\] here"):
        weights.load_into(network, other, "x.pth")


def test_weights_that_are_not_finite_are_refused(network, state):
    with pytest.raises(ConfigError, match=r"not finite in fc.bias"):
        weights.load_into(network, state | {"fc.bias": torch.full((10,), torch.nan)}, "x.pth")

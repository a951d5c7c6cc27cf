import pickle
import re
import types
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kdbench.errors import ConfigError
from kdbench.models import build, weights
from tests.conftest import composed_once
from tests.networks import SPEC


@pytest.fixture(scope="module")
def network():
    return build(composed_once("student=resnet8", "method=ce").student, SPEC)


@pytest.fixture(scope="module")
def state(network):
    return {name: tensor.clone() for name, tensor in network.body.state_dict().items()}


def test_safetensors_are_read_as_written_with_their_metadata(state, tmp_path):
    weights.save(state, tmp_path / "w.safetensors", {"classes": 10, "nested": {"a": [1, 2]}})
    assert weights.read_metadata(tmp_path / "w.safetensors") == {"classes": 10, "nested": {"a": [1, 2]}}
    read = weights.read(tmp_path / "w.safetensors")
    assert all(torch.equal(read[name], state[name]) for name in state)


class Tied(nn.Module):
    """A network with names that share memory."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.register_buffer("view", self.a.weight.detach()[:2])
        self.register_buffer("expanded", torch.ones(1).expand(3, 4))
        self.register_buffer("transposed", torch.arange(6).reshape(2, 3).t())


def test_names_that_share_memory_are_stored_as_copies(tmp_path):
    state = Tied().state_dict()
    weights.save(state, tmp_path / "w.safetensors", {})
    read = load_file(tmp_path / "w.safetensors")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)
    other = Tied()
    other.expanded = torch.zeros(3, 4)  # torch copies into the memory of a buffer
    other.load_state_dict(read, strict=True)
    assert torch.equal(other.b.weight, state["a.weight"])


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"scale": 2}, "of type dict"),
        (None, "of type NoneType"),
        (torch.eye(2).to_sparse(), "a torch.sparse_coo tensor"),
        (torch.zeros(2, device="meta"), "a tensor without values"),
    ],
)
def test_entries_that_are_no_tensors_cannot_be_stored(state, tmp_path, value, found):
    error = error_of(weights.save, state | {"fc._extra_state": value}, tmp_path / "w.safetensors", {})
    assert error.code == "not_storable"
    assert f"fc._extra_state of the network's state dict is {found}" in str(error)
    assert not (tmp_path / "w.safetensors").exists()


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


def test_integers_and_truth_values_are_loaded_where_the_network_has_them():
    body = nn.Module()
    body.register_buffer("index", torch.zeros(4, dtype=torch.int64))
    body.register_buffer("mask", torch.zeros(2, dtype=torch.bool))
    network = types.SimpleNamespace(body=body)
    weights.load_into(network, {"index": torch.arange(4, dtype=torch.int32), "mask": torch.tensor([True, False])}, "x")
    assert (body.index.tolist(), body.mask.tolist()) == ([0, 1, 2, 3], [True, False])
    error = error_of(weights.load_into, network, {"index": torch.zeros(4), "mask": body.mask}, "x")
    assert error.code == "wrong_type"
    assert "index as torch.float32" in str(error)


def test_integers_beyond_the_range_of_the_network_are_an_error():
    body = nn.Module()
    body.register_buffer("index", torch.zeros(1, dtype=torch.int8))
    error = error_of(weights.load_into, types.SimpleNamespace(body=body), {"index": torch.tensor([300])}, "x")
    assert error.code == "out_of_range"


def test_plain_values_beside_the_weights_are_dropped(state, tmp_path):
    extras = {"args": types.SimpleNamespace(lr=0.1), "acc": np.float64(0.9), "rng": np.random.default_rng(0).random(3)}
    torch.save({"state_dict": state, **extras, "path": tmp_path}, tmp_path / "w.pth")
    content = weights.read_content(tmp_path / "w.pth")
    assert all(type(content[name]) is weights.Inert for name in ("args", "acc", "rng", "path"))


def make_zip(file, *names):
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "x")


FORMATS = {
    "a TorchScript archive": lambda file: make_zip(file, "m/data.pkl", "m/code/__torch__.py", "m/constants.pkl"),
    "a program of torch.export": lambda file: make_zip(file, "m/archive_format", "m/models/model.json"),
    "an archive of NumPy arrays (.npz)": lambda file: make_zip(file, "a.npy", "b.npy"),
    "a zip archive of other files": lambda file: make_zip(file, "weights.pth", "README.md"),
    "a NumPy array": lambda file: file.write_bytes(b"\x93NUMPY\x01\x00"),
    "an ONNX graph": lambda file: file.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.0.0:"),
    "an HDF5 file": lambda file: file.write_bytes(b"\x89HDF\r\n\x1a\n"),
    "compressed by gzip": lambda file: file.write_bytes(b"\x1f\x8b\x08"),
    "a pointer of Git LFS": lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
    "a web page": lambda file: file.write_bytes(b"<!DOCTYPE html><html>"),
}


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_in_another_format_is_an_error_that_names_it(tmp_path, form):
    FORMATS[form](tmp_path / "w.pth")
    error = error_of(weights.read, tmp_path / "w.pth")
    assert error.code == "wrong_format"
    assert f"w.pth is {form}, and only state dicts are read; " in str(error)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_a_file_of_torchscript_is_recognised(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "w.pth")
    assert "a TorchScript archive" in str(error_of(weights.read, tmp_path / "w.pth"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_network_in_a_pickle_is_an_error_that_names_its_class(network, tmp_path, zipped):
    torch.save({"net": nn.Linear(2, 2)}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    error = error_of(weights.read, tmp_path / "w.pth")
    assert error.code == "untrusted"
    assert "it needs torch.nn.modules.linear.Linear; save the state dict alone" in str(error)


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


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_without_its_end_is_an_error_that_says_so(state, tmp_path, suffix):
    file = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(state, file)
    else:
        weights.save(state, file, {})
    file.write_bytes(file.read_bytes()[:-100])
    error = error_of(weights.read, file)
    assert error.code == "damaged"
    assert "its end is missing; copy or download it again" in str(error)


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

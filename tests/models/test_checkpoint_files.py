"""Teacher weights in the forms in which training scripts and other libraries store them."""

import argparse
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from kdbench.errors import ConfigError
from kdbench.models import build
from kdbench.models.checkpoint_files import read_checkpoint
from kdbench.models.cifar_resnet import CifarResNet
from tests.conftest import composed_once
from tests.networks import SPEC


@pytest.fixture(scope="module")
def expected():
    """The state dict of a CIFAR ResNet with values that differ from one tensor to the next."""
    return trained(build(composed_once("student=resnet8", "method=ce").student, SPEC).body)


def trained(network):
    """Return a network's state dict with random values, as after a training."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(t.shape, generator=generator) if t.is_floating_point() else t.clone()
        for name, t in network.state_dict().items()
    }


def others(state):
    """Return other weights with the same names."""
    return {name: t + 1 if t.is_floating_point() else t for name, t in state.items()}


def prefixed(prefix, state):
    return {f"{prefix}{name}": t for name, t in state.items()}


def renamed(state, *pairs):
    """Return a state dict with parts of its names replaced."""
    result = {}
    for name, tensor in state.items():
        for old, new in pairs:
            name = re.sub(old, new, name)
        result[name] = tensor
    return result


def saved(tmp_path, content, name="w.pth"):
    if name.endswith(".safetensors"):
        save_file(content, tmp_path / name)
    else:
        torch.save(content, tmp_path / name)
    return tmp_path / name


def check(tmp_path, content, state, key=None, file="w.pth"):
    """Check that a file gives these weights, and return the remarks."""
    read, remarks = read_checkpoint(saved(tmp_path, content, file), state, key)
    assert list(read) == [name for name in state if name in read]
    assert all("num_batches_tracked" in name for name in state.keys() - read.keys())
    assert all(torch.equal(read[name], state[name]) and read[name].dtype == state[name].dtype for name in read)
    assert all("\n" not in remark for remark in remarks)
    return remarks


def refused(tmp_path, content, state, key=None, file="w.pth"):
    """Return the error that a file gives."""
    return error_of(read_checkpoint, saved(tmp_path, content, file), state, key)


def error_of(function, *arguments):
    with pytest.raises(ConfigError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return error.value


# Places and prefixes

EXTRAS = {
    "epoch": 3,
    "acc": 91.2,
    "best": torch.tensor(91.2),
    "args": argparse.Namespace(lr=0.1),
    "best_acc": np.float64(91.2),
    "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(16, 3, 3, 3)}}, "param_groups": [{"lr": 0.1}]},
    "arch": "resnet8",
    "none": None,
}
FORMS = {
    "plain": lambda w: w,
    "ordered": OrderedDict,
    "beside other entries": lambda w: w | {k: v for k, v in EXTRAS.items() if k != "best"},
    "net and module": lambda w: {"net": prefixed("module.", w), "acc": 91.2, "epoch": 3},
    "compiled": lambda w: prefixed("_orig_mod.", w),
    "compiled inside DDP": lambda w: prefixed("module._orig_mod.", w),
    "DDP inside compile": lambda w: prefixed("_orig_mod.module.", w),
    "DataParallel inside DDP inside compile": lambda w: {"state_dict": prefixed("_orig_mod.module.module.", w)},
    "a class around it": lambda w: {"model_state_dict": prefixed("module.model._orig_mod.", w), **EXTRAS},
    "deep": lambda w: {"checkpoint": {"network": {"weights": {"params": w}}, "epoch": 3}, **EXTRAS},
    "tuple": lambda w: (w, 3),
    "list": lambda w: [3, {"net": prefixed("module.", w)}],
    "any name": lambda w: {"résumé 7": prefixed("a.b.", w)},
    "nested by layer": lambda w: {
        "trunk": {n: t for n, t in w.items() if not n.startswith("fc.")},
        "fc": {"weight": w["fc.weight"], "bias": w["fc.bias"]},
    },
    "wrapped inside": lambda w: renamed(
        w, (r"^(layer1|fc)\.", r"\1.module."), (r"^layer2\.0\.", "layer2.0._orig_mod.")
    ),
    "wrapped outside and inside": lambda w: {"net": prefixed("module.", renamed(w, (r"^(layer\d)\.", r"\1.module.")))},
    "profiled": lambda w: (
        w | {f"{m}total_{k}": torch.zeros(1) for m in ("", "conv1.", "layer1.0.") for k in ("ops", "params")}
    ),
    "twice": lambda w: {"model": w, "state_dict": w},
    "equal copies": lambda w: {"model": w, "ema": prefixed("module.", {n: t.clone() for n, t in w.items()})},
    "without counters": lambda w: {n: t for n, t in w.items() if "num_batches" not in n},
    "counters as floats": lambda w: {n: t.float() for n, t in w.items()},
    "averaged": lambda w: {"n_averaged": torch.tensor(4), "epoch": 1, "swa": prefixed("module.", w)},
    "float64": lambda w: {n: t.double() for n, t in w.items()},
    "parameters": lambda w: {n: nn.Parameter(t) if t.is_floating_point() else t for n, t in w.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_wherever_they_are(expected, tmp_path, form):
    assert check(tmp_path, FORMS[form](expected), expected) == []


def test_weights_of_the_old_torch_format_are_read(expected, tmp_path):
    torch.save({"net": expected, **EXTRAS}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    read, _ = read_checkpoint(tmp_path / "w.pth", expected, None)
    assert torch.equal(read["fc.weight"], expected["fc.weight"])


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_safetensors_are_read_with_prefixes(expected, tmp_path, prefix):
    assert check(tmp_path, prefixed(prefix, expected), expected, file="w.safetensors") == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_lower_precision_are_converted(expected, tmp_path, dtype):
    half = {name: t.to(dtype) if t.is_floating_point() else t for name, t in expected.items()}
    rounded = {name: t.to(expected[name].dtype) for name, t in half.items()}
    check(tmp_path, half, rounded)
    check(tmp_path, half, rounded, file="w.safetensors")


def test_a_network_inside_a_class_is_read_from_a_file_without_the_class(expected, tmp_path):
    state = prefixed("model.", expected)
    check(tmp_path, {"net": prefixed("module.", expected)}, state)
    check(tmp_path, state, state)


def test_modules_beside_the_network_are_left_out_with_a_remark(expected, tmp_path):
    beside = {"criterion.weight": torch.zeros(10), "train_acc.correct": torch.tensor(3)}
    content = {"state_dict": prefixed("model.", expected) | beside, "pytorch-lightning_version": "2.5", **EXTRAS}
    (remark,) = check(tmp_path, content, expected)
    names = "state_dict.criterion.weight, state_dict.train_acc.correct"
    assert remark.endswith(f"weights under state_dict.model are read; left out: {names}")


def test_unknown_tensors_of_the_network_itself_are_an_error(expected, tmp_path):
    for content in (
        expected | {"aux.weight": torch.zeros(3)},
        prefixed("m.", expected | {"aux.weight": torch.zeros(3)}),
    ):
        error = refused(tmp_path, content, expected)
        assert error.code == "mismatch"
        assert "aux.weight" in str(error)


# Several sets of weights

SEVERAL = {  # content with two sets, and the key of each
    "ema beside": (lambda a, b: {"state_dict": a, "state_dict_ema": b}, "state_dict", "state_dict_ema"),
    "averaged": (
        lambda a, b: {"model": a, "model_ema": {"n_averaged": torch.tensor(9), **prefixed("module.", b)}},
        "model",
        "model_ema",
    ),
    "nested": (
        lambda a, b: {"nets": {"student": a, "teacher": prefixed("module.", b)}},
        "nets.student",
        "nets.teacher",
    ),
    "flat": (lambda a, b: prefixed("student.", a) | prefixed("teacher.", b), "student", "teacher"),
    "flat, wrapped": (
        lambda a, b: {"state_dict": prefixed("student.", a) | prefixed("teacher.model.", b)},
        "state_dict.student",
        "state_dict.teacher",
    ),
    "inside": (lambda a, b: {**a, "swa": b}, ".", "swa"),
    "inside a mapping": (lambda a, b: {"model": {**a, "ema": b}}, "model", "model.ema"),
    "list": (lambda a, b: [a, b], "0", "1"),
}


@pytest.mark.parametrize("form", SEVERAL)
def test_several_sets_of_weights_are_an_error_that_names_them_and_a_key_chooses_one(expected, tmp_path, form):
    content, key, other_key = SEVERAL[form]
    error = refused(tmp_path, content(expected, others(expected)), expected)
    assert (error.code, error.key) == ("ambiguous", "teacher.checkpoint_key")
    assert re.search(
        rf"differ: {re.escape(key)}, {re.escape(other_key)}; .*checkpoint_key={re.escape(other_key)}$", str(error)
    )
    assert check(tmp_path, content(expected, others(expected)), expected, key) == []
    assert check(tmp_path, content(others(expected), expected), expected, other_key) == []


@pytest.mark.parametrize("key", ["teacher", "state_dict.teacher", "state_dict.teacher.model", "teacher.model"])
def test_a_key_may_be_the_end_of_a_place_or_lie_inside(expected, tmp_path, key):
    content = {"state_dict": prefixed("student.", others(expected)) | prefixed("teacher.model.", expected)}
    assert check(tmp_path, content, expected, key) == []


@pytest.mark.parametrize("key", [None, "state_dict", "state_dict.model"])
def test_a_key_adds_nothing_where_one_set_fits(expected, tmp_path, key):
    assert check(tmp_path, {"state_dict": prefixed("model.", expected)}, expected, key) == []


def test_sets_of_other_shapes_are_no_alternative(expected, tmp_path):
    wide = {name: torch.zeros([2 * n for n in t.shape]) for name, t in expected.items()}
    assert check(tmp_path, {"student": wide, "teacher": expected}, expected) == []
    (remark,) = check(tmp_path, prefixed("student.", wide) | prefixed("teacher.", expected), expected)
    assert "weights under teacher are read; left out: student.conv1.weight, " in remark
    error = refused(tmp_path, {"student": wide, "teacher": expected}, expected, "student")
    assert error.code == "mismatch"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("emma", "no weights for teacher.checkpoint_key=emma; did you mean ema? valid: ema, net"),
        ("conv1", "several places for teacher.checkpoint_key=conv1; .*valid: ema.conv1, "),
        ("", "no weights for teacher.checkpoint_key="),
        ("net.fc.weight", "no weights for"),
    ],
)
def test_a_key_without_weights_is_an_error_with_the_keys_that_exist(expected, tmp_path, key, message):
    content = {"net": prefixed("module.", expected), "ema": others(expected)}
    error = refused(tmp_path, content, expected, key)
    assert (error.code, error.key) == ("not_found", "teacher.checkpoint_key")
    assert re.search(message.replace("?", r"\?"), str(error))


def test_a_wrong_key_is_an_error_with_the_outermost_names_where_nothing_fits(tmp_path):
    error = refused(tmp_path, {"net": {"a.weight": torch.zeros(2)}, "b": 1}, {"x": torch.zeros(3)}, "nett")
    assert str(error).endswith("did you mean net? valid: net")


# Other names


@pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
def test_a_head_with_another_name_is_mapped_with_a_remark(expected, tmp_path, file):
    (remark,) = check(tmp_path, renamed(expected, (r"^fc\.", "linear.")), expected, file=file)
    assert remark.endswith(": names mapped: linear -> fc")
    (remark,) = check(tmp_path, prefixed("module.", renamed(expected, (r"^fc\.", "head.1."))), expected, file=file)
    assert remark.endswith(": names mapped: head.1 -> fc")


@pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
def test_shortcuts_with_another_name_are_mapped(tmp_path, file):
    state = renamed(trained(CifarResNet(14, (4, 4, 8, 16), 10)), ("shortcut", "downsample"))  # torchvision's names
    content = prefixed("module.", renamed(state, ("downsample", "shortcut"), (r"^fc\.", "linear.")))  # kuangliu's
    (remark,) = check(tmp_path, content, state, file=file)
    assert remark.endswith(": names mapped: shortcut -> downsample, linear -> fc")


@pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
def test_the_old_names_of_densenet_are_mapped(tmp_path, file):
    network = torchvision.models.DenseNet(8, (3, 3), 16, bn_size=2, num_classes=10)  # norm1 and norm2 of equal sizes
    state = trained(network)
    content = renamed(state, (r"\.(norm|conv)(\d)\.", r".\1.\2."))
    (remark,) = check(tmp_path, content, state, file=file)
    assert "conv.1 -> conv1, " in remark


def test_names_of_another_implementation_are_mapped_in_order(tmp_path):
    state = trained(CifarResNet(14, (4, 4, 8, 16), 10))
    content = renamed(  # as weiaicunzai's repository names them
        state,
        (r"^conv1\.", "conv1.0."),
        (r"^bn1\.", "conv1.1."),
        (r"^layer(\d)\.", lambda found: f"conv{int(found[1]) + 1}_x."),
        (r"\.(conv1)\.(weight)", r".residual_function.0.\2"),
        (r"(_x\.\d)\.bn1\.", r"\1.residual_function.1."),
        (r"(_x\.\d)\.conv2\.", r"\1.residual_function.3."),
        (r"(_x\.\d)\.bn2\.", r"\1.residual_function.4."),
    )
    (remark,) = check(tmp_path, content, state)
    assert "conv1.0 -> conv1, conv1.1 -> bn1" in remark
    error = refused(tmp_path, content, state, file="w.safetensors")  # which has no order
    assert error.code == "mismatch"
    assert "doubt" in str(error)


def test_names_inside_another_name_are_kept(tmp_path):
    state = trained(attention("attn"))
    for file in ("w.pth", "w.safetensors"):
        (remark,) = check(tmp_path, renamed(state, ("attn", "attention")), state, file=file)
        assert remark.endswith("attention -> attn")
    shuffled = {name.replace("attn", "attention"): state[name] for name in sorted(state)}  # key before query
    check(tmp_path, shuffled, state)


def attention(name, parts=("query", "key", "value")):
    """Return a network with layers of equal shape beside each other."""
    block = nn.ModuleDict({name: nn.ModuleDict({part: nn.Linear(4, 4) for part in parts}), "norm": nn.LayerNorm(4)})
    return nn.ModuleDict({"block": block, "fc": nn.Linear(4, 2)})


class Branches(nn.Module):
    """Two equal layers, with names that say nothing about their order."""

    def __init__(self, first, second):
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.add_module(first, nn.Linear(4, 4))
        self.add_module(second, nn.Linear(4, 4))
        self.fc = nn.Linear(4, 2)


@pytest.mark.parametrize(
    ("names", "own", "file", "accepted"),
    [
        (("conv1", "conv2"), ("body1", "body2"), "w.pth", True),
        (("conv1", "conv2"), ("body1", "body2"), "w.safetensors", False),  # no order
        (("conv2", "conv1"), ("body1", "body2"), "w.pth", False),  # falling numbers
        (("left", "right"), ("body1", "body2"), "w.pth", False),
        (("k_proj", "q_proj"), ("query", "key"), "w.pth", False),
        (("conv2", "conv3"), ("conv1", "conv2"), "w.pth", False),  # conv2 is on both sides
        (("conv2", "conv3"), ("conv1", "conv2"), "w.safetensors", False),
        (("conv1", "second"), ("conv1", "conv2"), "w.pth", True),
        (("second", "conv1"), ("conv1", "conv2"), "w.pth", False),
        (("conv1", "second"), ("conv1", "conv2"), "w.safetensors", False),
        (("Conv_1", "Conv_2"), ("conv1", "conv2"), "w.safetensors", True),  # another spelling
    ],
)
def test_layers_of_equal_shape_are_mapped_only_without_doubt(tmp_path, names, own, file, accepted):
    state, content = trained(Branches(*own)), trained(Branches(*names))
    if accepted:
        check(tmp_path, content, state, file=file)
    else:
        error = refused(tmp_path, content, state, file=file)
        assert error.code == "mismatch"
        there, here = "|".join(names), "|".join(own)
        assert re.search(f"doubt.*({there}).* in the file.*({here}).* in the network", str(error))


def test_equal_layers_inside_renamed_levels_of_other_depth_are_an_error(tmp_path):
    state = trained(nn.ModuleDict({"a": attention("attn", ("query", "key", "value")), "b": nn.Linear(2, 3)}))
    content = trained(nn.ModuleDict({"a": attention("self_attention", ("k", "q", "v")), "b": nn.Linear(2, 3)}))
    assert "doubt" in str(refused(tmp_path, content, state))


def test_names_on_both_sides_stand_for_themselves(expected, tmp_path):
    swapped = dict(expected)
    a, b = "layer1.0.conv1.weight", "layer1.0.conv2.weight"
    content = {{a: b, b: a}.get(name, name): t for name, t in swapped.items()}
    assert list(content) != list(expected)
    read, remarks = read_checkpoint(saved(tmp_path, content), expected, None)
    assert torch.equal(read[a], expected[b])
    assert remarks == []


def test_names_of_tensors_are_not_mapped(tmp_path):
    state = trained(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)))
    content = renamed(state, (r"1\.weight", "1.gamma"), (r"1\.bias", "1.beta"))
    error = refused(tmp_path, content, state)
    assert "1.gamma, 1.beta in the file, 1.weight, 1.bias in the network" in str(error)


# Other architectures and types


def test_another_architecture_is_an_error_with_what_differs(expected, tmp_path):
    content = {"net": prefixed("module.", renamed(expected, ("layer3", "layer7"), (r"^fc\.", "linear.")))}
    del content["net"]["module.linear.bias"]
    error = refused(tmp_path, content, expected)
    assert error.code == "mismatch"
    assert re.search(r"missing tensors: \d+ \(fc.weight, \.\.\.\), unknown: 1 \(net.module.linear.weight, ", str(error))


@pytest.mark.parametrize("head", ["fc", "linear"])
def test_another_number_of_classes_is_an_error_that_says_so(expected, tmp_path, head):
    content = renamed(
        expected | {"fc.weight": torch.zeros(100, 64), "fc.bias": torch.zeros(100)}, (r"^fc\.", f"{head}.")
    )
    error = refused(tmp_path, content, expected)
    assert error.code == "mismatch"
    assert "is for 100 classes and the network for 10" in str(error)


def test_another_shape_is_an_error_with_both(expected, tmp_path):
    error = refused(tmp_path, expected | {"conv1.weight": torch.zeros(16, 3, 7, 7)}, expected)
    assert error.code == "mismatch"
    assert "conv1.weight is [16, 3, 7, 7] in the file and [16, 3, 3, 3] in the network" in str(error)


@pytest.mark.parametrize(
    "odd",
    [
        torch.zeros(10, dtype=torch.int64),
        torch.zeros(10, dtype=torch.bool),
        torch.zeros(10, dtype=torch.complex64),
        torch.zeros(10).to_sparse(),
        torch.zeros(10, device="meta"),
    ],
)
def test_tensors_of_another_kind_are_an_error(expected, tmp_path, odd):
    error = refused(tmp_path, expected | {"fc.bias": odd}, expected)
    assert error.code == "wrong_type"
    assert "fc.bias" in str(error)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e300])
def test_values_that_are_not_finite_are_an_error(expected, tmp_path, value):
    error = refused(tmp_path, expected | {"fc.bias": torch.full((10,), value, dtype=torch.float64)}, expected)
    assert error.code == "not_finite"


class Windows(nn.Module):
    """A network with buffers of integers and of truth values, as Swin has."""

    def __init__(self):
        super().__init__()
        self.register_buffer("relative_position_index", torch.arange(16).reshape(4, 4))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.fc = nn.Linear(4, 2)


@pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
def test_integer_and_bool_buffers_are_read(tmp_path, file):
    state = trained(Windows())
    check(tmp_path, state, state, file=file)
    index = state["relative_position_index"]
    check(tmp_path, state | {"relative_position_index": index.int()}, state, file=file)
    for name, odd in (("relative_position_index", index.float()), ("mask", torch.zeros(2, dtype=torch.uint8))):
        assert refused(tmp_path, state | {name: odd}, state).code == "wrong_type"


def test_a_file_that_contains_itself_is_an_error(tmp_path):
    content = {"w": torch.zeros(1)}
    content["again"] = content
    assert refused(tmp_path, content, {"x": torch.zeros(2)}).code == "damaged"
    assert refused(tmp_path, {"a." * 2000 + "w": torch.zeros(1)}, {"x": torch.zeros(2)}).code == "damaged"


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {"state_dict": {"a": 1}}, {1: torch.zeros(1)}, "text"])
def test_a_file_without_named_tensors_is_an_error(expected, tmp_path, content):
    error = refused(tmp_path, content, expected)
    assert error.code == "damaged"
    assert "no tensors with names" in str(error)


# Heads for other classes


def imagenet(state, classes=1000):
    return state | {"fc.weight": torch.zeros(classes, 64), "fc.bias": torch.zeros(classes)}


@pytest.mark.parametrize(
    "form", [lambda w: w, lambda w: prefixed("module.", w), lambda w: renamed(w, (r"^fc\.", "classifier."))]
)
def test_a_head_for_other_classes_is_left_out(expected, tmp_path, form):
    read, _ = read_checkpoint(saved(tmp_path, form(imagenet(expected))), expected, None, head_of=10)
    assert read.keys() == expected.keys() - {"fc.weight", "fc.bias"}
    assert all(torch.equal(read[name], expected[name]) for name in read)


def test_a_head_for_the_same_classes_is_kept(expected, tmp_path):
    read, remarks = read_checkpoint(saved(tmp_path, expected), expected, None, head_of=10)
    assert (read.keys(), remarks) == (expected.keys(), [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv1.weight": torch.zeros(16, 3, 7, 7)}, "conv1.weight is [16, 3, 7, 7] in the file"),
        ({"fc.weight": torch.zeros(1000, 32)}, "fc.weight is [1000, 32] in the file"),
        ({"fc.bias": torch.zeros(999)}, "fc.weight is for 1000, fc.bias is for 999"),
        ({"bn1.bias": torch.zeros(17)}, "bn1.bias is [17] in the file"),
        ({"aux.weight": torch.zeros(17)}, "unknown: 1 (aux.weight, ...)"),
    ],
)
def test_anything_else_than_the_head_that_differs_is_an_error(expected, tmp_path, change, message):
    error = error_of(read_checkpoint, saved(tmp_path, imagenet(expected) | change), expected, None, 10)
    assert error.code == "mismatch"
    assert message in str(error)
    assert str(error).endswith("only the head may differ, in its number of classes")


def test_weights_of_a_body_are_checked_as_all_weights(expected, tmp_path):
    content = imagenet(expected) | {"bn1.bias": torch.full((16,), torch.nan)}
    error = error_of(read_checkpoint, saved(tmp_path, content), expected, None, 10)
    assert error.code == "not_finite"


def test_safetensors_keep_no_order(expected, tmp_path):
    """The reason why layers of equal shape are not mapped there."""
    assert list(load_file(saved(tmp_path, expected, "w.safetensors"))) != list(expected)


@pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("numbers", [(1, 2, 3, 4), (0, 2, 4, 6), (1, 0, 2, 5)])
def test_blocks_with_other_numbers_are_never_shuffled(tmp_path, numbers, file):
    def blocks(names):
        layers = {str(n): nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) for n in names}
        return trained(nn.ModuleDict(layers))

    there = blocks(numbers)
    error = refused(tmp_path, there, blocks(range(4)), file=file)
    assert error.code == "mismatch"

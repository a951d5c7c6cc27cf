"""Networks as people bring them: what is described right, and what is refused before anything trains."""

import copy
import re

import pytest
import torch

from kdbench.config.sections import ModelConfig
from kdbench.errors import ConfigError, RunError
from kdbench.models import build, fuse_batch_norm, summarize, weights
from tests import networks
from tests.networks import SPEC

IMAGE = (3, 32, 32)
N = 4


def model(name, stages=None, logits=None, target=None, **arguments):
    stages = networks.STAGES if stages is None else stages
    return ModelConfig(name, target or f"tests.networks.{name}", stages, arguments, logits)


def describe(config, **options):
    return summarize(config, SPEC, "student", **options)


def refusal(config, **options):
    with pytest.raises(ConfigError) as error:
        describe(config, **options)
    return error.value


def images(count=N):
    return torch.randn(count, *IMAGE, generator=torch.Generator().manual_seed(1))


def outputs(config, stages=(), train=True):
    """Return a network, and its output in a mode."""
    torch.manual_seed(0)
    network = build(config, SPEC, stages).train(train)
    return network, network(images())


# Outputs of forward


def test_several_outputs_without_a_key_are_refused_with_the_candidates():
    error = refusal(model("LogitsFirst"))
    assert (error.code, error.key) == ("ambiguous_logits", "student.logits")
    assert str(error).endswith("student.logits=: 0, fc")
    error = refusal(model("TwoHeads"))
    assert str(error).endswith("in training mode; say which are the logits with student.logits=: "
                               "0, 1, [0,1] (their mean), fc, head_dist")  # fmt: skip


@pytest.mark.parametrize("key", [0, "0", "fc"])
def test_a_key_says_which_output_is_the_logits(key):
    for train in (True, False):
        network, output = outputs(model("LogitsFirst", logits=key), ("pooled",), train)
        expected = network.body.fc(output.features["pooled"])
        assert torch.equal(output.logits, expected)


@pytest.mark.parametrize("key", [1, 7, "pool", "nothing", [0, 1]])
def test_a_key_of_something_else_is_refused(key):
    error = refusal(model("LogitsFirst", logits=key))
    assert error.code in ("ambiguous_logits", "wrong_logits")


def test_an_entry_named_logits_needs_no_key_and_what_is_dropped_is_said():
    summary = describe(model("DictOfStages", {"layer1": "middle", "layer2": {"returned": "top"}}))
    assert summary.logits is None
    assert summary.shapes == {"layer1": (16, 8, 8), "layer2": (32, 4, 4)}
    assert re.search("not used of what it returns in training: middle, top", summary.remarks[0])
    _, output = outputs(model("DictOfStages", {"layer1": "middle", "again": "layer2"}), ("layer1", "again"))
    assert torch.equal(output.features["layer1"], output.features["again"])
    assert output.logits.shape == (N, 10)


def test_evaluation_is_the_networks_own_and_a_head_without_gradient_is_named():
    summary = describe(model("TwoHeads", logits=0))
    assert "its evaluation uses head_dist.weight, head_dist.bias, which no gradient reaches" in summary.remarks[0]
    network, output = outputs(model("TwoHeads", logits=0), train=False)
    assert torch.equal(output.logits, network.body.eval()(images()))
    assert not describe(model("TwoHeads", logits=[0, 1])).remarks
    network, output = outputs(model("TwoHeads", logits=[0, 1]), train=True)
    first, second = network.body(images())
    assert torch.equal(output.logits, torch.stack([first, second]).mean(0))
    assert "head_dist" not in str(describe(model("TwoHeads", logits="fc")).remarks)


def test_given_weights_need_a_key_for_evaluation_only():
    assert describe(model("TwoHeads"), trained=False).logits is None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (model("swallows_num_classes"), "logits [N, 1000]"),
        (model("swallows_num_classes", classes=5), "logits [N, 5]"),
        (model("other_name_for_classes", labels=7), "logits [N, 7]"),
        (model("OfOther", change="transposed"), "logits [10, 2] for 2 images"),
        (model("OfOther", change="whole numbers"), "torch.int64"),
    ],
)
@pytest.mark.parametrize("trained", [True, False])
def test_logits_that_are_not_float_n_by_classes_are_refused(config, words, trained):
    error = refusal(config, trained=trained)
    assert (error.code, error.key) == ("wrong_logits", "student")
    assert words in str(error)


def test_as_many_images_as_classes_do_not_hide_transposed_logits():
    with pytest.raises(ConfigError) as error:
        summarize(model("OfOther", change="transposed"), SPEC._replace(num_classes=2), "teacher")
    assert error.value.code == "wrong_logits"


def test_a_builder_without_num_classes_is_called_without():
    assert describe(model("other_name_for_classes", labels=10)).shapes["pooled"] == (32,)


@pytest.mark.parametrize("name", ["IsFeat", "DropPathRates", "Untraceable", "with_group_norm", "OddBuffers"])
def test_networks_that_cannot_be_traced_or_built_without_memory_are_described(name):
    summary = describe(model(name))
    assert not summary.refused.keys() & {"layer1", "layer2", "layer3"}
    assert summary.shapes["layer3"] == (32, 4, 4)
    network, output = outputs(model(name), ("layer1", "layer3"))
    assert output.features["layer1"].shape == (N, 8, 16, 16)
    output.features["layer3"].sum().backward()
    assert network.body.layer1[0].weight.grad.abs().sum() > 0


def test_arguments_that_are_objects_are_built_first():
    config = model("Plain", act={"_target_": "torch.nn.GELU", "approximate": "tanh"})
    assert build(config, SPEC).body.act.approximate == "tanh"
    norm = {"_target_": "torch.nn.GroupNorm", "_partial_": True, "num_groups": 4}
    blocks = build(model("Plain", norm=norm | {"_target_": "tests.networks.group_norm"}), SPEC).body
    assert isinstance(blocks.layer1[1], torch.nn.GroupNorm)
    error = refusal(model("Plain", act={"_target_": "torch.nn.Nothing"}))
    assert error.code == "not_buildable"
    assert "\n" not in str(error)


def test_a_builder_that_fails_is_one_line():
    error = refusal(model("fails_while_it_is_built"))
    assert error.code == "not_buildable"
    assert "\n" not in str(error)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_lazy_and_scripted_networks_are_described():
    assert describe(model("Lazy", {"layer1": "layer1"})).shapes["layer1"] == (8, 15, 15)
    torch.manual_seed(0)
    first = build(model("Lazy", {}), SPEC).body.fc.weight
    torch.manual_seed(0)
    assert torch.equal(build(model("Lazy", {}), SPEC).body.fc.weight, first)
    summary = describe(model("scripted"))
    assert "compiled by TorchScript" in summary.refused["layer1"]
    assert outputs(model("scripted"))[1].logits.shape == (N, 10)


# Stages are module paths first


def test_names_that_end_in_numbers_are_those_modules():
    stages = {"layer1": "conv_1", "layer2": "conv1_1"}
    network, output = outputs(model("Shared", stages), ("layer1", "layer2"))
    body = network.body
    first = body.conv_1(torch.relu(body.conv1(images())))
    assert torch.equal(output.features["layer1"], first)
    assert torch.equal(output.features["layer2"], body.conv1_1(torch.relu(first)))


def test_a_call_of_a_shared_module_is_named_by_its_number():
    summary = describe(model("Shared", {"layer1": "relu"}))
    assert summary.refused["layer1"].endswith("choose one of relu_0, relu_1, relu_2")
    network, output = outputs(model("Shared", {"layer1": "relu_1", "layer2": "conv1_1"}), ("layer1", "layer2"))
    assert torch.equal(network.body.conv1_1(output.features["layer1"]), output.features["layer2"])


def test_a_module_with_several_outputs_needs_the_one():
    assert "say which: {node: stem, output: ...} with 0 or 1" in describe(model("WithList", {"a": "stem"})).refused["a"]
    stages = {"maps": {"node": "stem", "output": 0}, "mean": {"node": "stem", "output": 1}, "last": {"input_of": "fc"}}
    summary = describe(model("WithList", stages))
    assert summary.shapes == {"maps": (8, 16, 16), "mean": (8,), "last": (8,)}
    _, output = outputs(model("WithList", stages), ("maps", "mean"))
    assert torch.equal(output.features["maps"].mean((2, 3)), output.features["mean"])


def test_a_list_of_modules_is_no_stage_and_its_last_module_is_named():
    refused = describe(model("WithList", {"layer1": "blocks"})).refused["layer1"]
    assert refused.endswith("its last part is blocks.1")
    with pytest.raises(ConfigError) as error:
        build(model("WithList", {"layer1": "blocks"}), SPEC, ("layer1",))
    assert (error.value.code, error.value.key) == ("unusable_stage", "student.stages.layer1")


def test_a_function_that_is_not_called_is_no_stage():
    refused = describe(model("Shared", {"pooled": "flatten"})).refused["pooled"]
    assert "the network calls no flatten" in refused
    assert describe(model("Shared", {"pooled": "mean"})).shapes["pooled"] == (16,)


def test_a_stage_that_looks_permuted_is_refused_unless_its_layout_is_stated():
    refused = describe(model("ChannelsLast", {"equal": "patches", "more": "more"})).refused
    assert "[N, 16, 16, 16], which looks like [N, H, W, C]" in refused["equal"]
    assert "[N, 16, 16, 24], which looks like [N, H, W, C]" in refused["more"]
    stated = model(
        "ChannelsLast", {"layer1": {"node": "more", "layout": "nhwc"}, "raw": {"node": "more", "layout": "maps"}}
    )
    summary = describe(stated)
    assert (summary.shapes["layer1"], summary.shapes["raw"], dict(summary.refused)) == ((24, 16, 16), (16, 16, 24), {})
    _, output = outputs(stated, ("layer1", "raw"))
    assert torch.equal(output.features["layer1"], output.features["raw"].permute(0, 3, 1, 2))
    assert (
        "layout tokens has 3"
        in describe(model("ChannelsLast", {"a": {"node": "more", "layout": "tokens"}})).refused["a"]
    )


# Randomness and state


def test_noise_is_drawn_anew_at_each_pass():
    for name in ("TorchNoise", "NumpyNoise", "StochasticDepth"):
        network, _ = outputs(model(name))
        assert len({float(network(images()).logits.detach().sum()) for _ in range(8)}) > 1
        assert len({float(network.eval()(images()).logits.detach().sum()) for _ in range(3)}) == 1
    assert not describe(model("TorchNoise")).host_random
    assert describe(model("NumpyNoise")).host_random
    assert describe(model("StochasticDepth")).host_random
    assert not build(model("StochasticDepth"), SPEC).capturable
    assert build(model("TorchNoise"), SPEC).capturable


def test_what_forward_changes_outside_of_the_state_dict_is_kept():
    network, _ = outputs(model("Schedule"))
    assert set(network.changing) == {"steps", "seen"}
    assert not network.capturable
    state = network.unsaved_state()
    assert (state["steps"], float(state["seen"])) == (1, N)
    other = build(model("Schedule"), SPEC).train()
    other.load_state_dict(network.state_dict())
    other.load_unsaved_state(state)
    assert torch.equal(other(images()).logits, network(images()).logits)


@pytest.mark.parametrize(
    ("config", "code", "word"),
    [
        (model("OwnGenerator"), "not_repeatable", "(generator)"),
        (model("ScheduleInEvaluation"), "not_storable", "steps"),
        (model("RandomBuffer"), "not_storable", "basis"),
        (model("RandomAttribute"), "not_storable", "basis"),
        (model("ExtraState"), "not_storable", "_extra_state"),
    ],
)
def test_state_that_would_be_lost_is_refused_before_training(config, code, word):
    error = refusal(config)
    assert (error.code, error.key) == (code, "student")
    assert word in str(error)


def test_state_in_the_state_dict_is_accepted():
    assert describe(model("RandomBuffer", persistent=True)).changing == ()


def test_randomness_in_evaluation_is_known():
    assert describe(model("RandomInEvaluation")).evaluation_random
    assert not describe(model("TorchNoise")).evaluation_random


def test_one_image_alone_is_refused_for_batch_norm_and_for_networks_that_fail():
    assert describe(model("Plain")).one_image == {"train": "batch norm is undefined"}
    assert describe(model("with_group_norm")).one_image == {}
    assert describe(model("of_one_image_fails")).one_image == dict.fromkeys(("eval", "train"), "the logits are [10]")


def test_describing_a_network_changes_no_random_state():
    import random

    import numpy as np

    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    describe(model("StochasticDepth", {"layer2": "layer2"}))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_a_stage_that_a_pass_does_not_compute_is_an_error():
    network, _ = outputs(model("Plain"), ("layer2",))
    network.body.layer2 = torch.nn.Sequential(network.body.layer2)  # the hooked module is called through another
    network.body.forward = lambda given: network.body.fc(given.mean((2, 3))[:, :1].expand(-1, 32))
    with pytest.raises(RunError) as error:
        network(images())
    assert error.value.code == "stage_missing"


# Inference


@torch.no_grad()
def test_only_plain_convolutions_and_batch_norms_are_fused():
    import timm

    assert describe(model("Plain")).fusable == (
        ("layer1.0", "layer1.1"),
        ("layer2.0", "layer2.1"),
        ("layer3.0", "layer3.1"),
    )
    config = model("t", {}, target="timm.create_model", model_name="mobilenetv3_small_050")
    network, _ = outputs(config, train=False)
    assert any(isinstance(module, timm.layers.BatchNormAct2d) for module in network.modules())  # with its activation
    fused = fuse_batch_norm(network)
    torch.testing.assert_close(fused(images()).logits, network(images()).logits)


@torch.no_grad()
def test_a_fused_network_takes_images_of_the_same_normalisation():
    network, _ = outputs(model("Plain"), ("layer1",), train=False)
    expected = network(images() * 2 - 1)
    network.adapt_normalisation(([0.5] * 3, [0.5] * 3), ([0.5] * 3, [0.25] * 3))
    shifted = network(images() - 0.5 + 0.5)
    torch.testing.assert_close(shifted.logits, network.body(images() * 2))
    torch.testing.assert_close(fuse_batch_norm(network)(images()).logits, shifted.logits)
    assert expected.logits.shape == shifted.logits.shape


# In-place operations, gradients, and other forms of outputs


def test_the_input_of_a_module_is_what_it_was_before_the_module_changed_it():
    config = model("InPlaceAfter", {"layer1": {"input_of": "relu"}, "layer2": "conv", "layer3": "relu"})
    for train in (True, False):
        network, output = outputs(config, ("layer1", "layer2", "layer3"), train)
        expected = network.body.conv(images())
        assert float(expected.detach().min()) < 0
        assert torch.equal(output.features["layer1"], expected)
        assert torch.equal(output.features["layer2"], expected)
        assert torch.equal(output.features["layer3"], torch.relu(expected))


def test_a_function_that_is_called_more_often_in_training_is_no_stage():
    refused = describe(model("NoiseFirst", {"a": "add", "b": "layer2"})).refused
    assert "called 1 and 2 times" in refused["a"]
    assert set(refused) == {"a"}


def test_a_stage_without_a_gradient_is_known():
    summary = describe(model("Detached"))
    assert set(summary.without_gradient) == {"layer1"}


def test_a_map_that_is_not_square_is_refused_without_a_stated_layout():
    assert "looks like [N, H, W, C]" in describe(model("Rectangular", {"layer1": "patches"})).refused["layer1"]
    assert not describe(model("Rectangular", {"layer1": {"node": "patches", "layout": "nhwc"}})).refused


@pytest.mark.parametrize(
    ("kind", "code"), [("double", "wrong_logits"), ("images", "mismatch"), ("backward", "not_trainable")]
)
def test_what_fails_only_in_training_is_refused_before(kind, code):
    error = refusal(model("OfAnotherKind", kind=kind))
    assert error.code in (code, "not_trainable")
    assert "\n" not in str(error)


@pytest.mark.parametrize("key", ["out", "aux", ["out"], "fc"])
def test_an_entry_of_training_may_be_the_logits_where_evaluation_returns_a_tensor(key):
    network, output = outputs(model("AuxiliaryInTraining", logits=key), train=True)
    assert output.logits.shape == (N, 10)
    network, output = outputs(model("AuxiliaryInTraining", logits=key), train=False)
    assert torch.equal(output.logits, network.body.eval()(images()))
    assert refusal(model("AuxiliaryInTraining", logits="ot")).code == "ambiguous_logits"


def test_a_key_for_one_tensor_is_refused():
    for key in (7, "foo", [0, 1]):
        assert refusal(model("Plain", logits=key)).code == "ambiguous_logits"


def test_objects_with_logits_and_builders_with_other_names_work():
    assert describe(model("OwnObject", {"layer1": "layer1", "last": {"returned": "hidden"}})).shapes["last"] == (32,)
    assert describe(model("with_other_name")).shapes["pooled"] == (32,)
    assert describe(model("CountsEpochs")).changing == ("epoch",)
    assert describe(model("Versioned")).num_params
    other = build(model("Versioned"), SPEC)
    weights.load_into(other, build(model("Versioned"), SPEC).body.state_dict(), "x")


def test_hooks_keep_nothing_outside_of_a_pass():
    network, _ = outputs(model("Plain"), ("layer1",))
    network.body(images())
    assert not network._kept
    network.body.fc = torch.nn.Linear(1, 1)
    with pytest.raises(RuntimeError):
        network(images())
    assert not network._kept
    copy.deepcopy(network)

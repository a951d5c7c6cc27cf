import functools
import re

import pytest
import torch
import torchvision
from torch.nn import functional as F

from kdbench.config.sections import ModelConfig
from kdbench.errors import ConfigError
from kdbench.models import build, summarize
from kdbench.models.wide_resnet import PreactBlock
from tests.conftest import composed_once
from tests.networks import SPEC

IMAGE = (3, 32, 32)

PARAMETERS = {
    "resnet18": 11_173_962, "resnet34": 21_282_122, "resnet50": 23_520_842, "resnet101": 42_512_970,
    "resnet8": 78_042, "resnet14": 175_258, "resnet20": 272_474, "resnet32": 466_906, "resnet44": 661_338,
    "resnet56": 855_770, "resnet110": 1_730_714, "resnet8x4": 1_210_410, "resnet32x4": 7_410_730,
}  # fmt: skip
WIDE = {"wrn40_2": 2_255_156, "wrn16_2": 703_284, "wrn40_1": 569_780}
"""Parameters of wide ResNets with 100 classes."""
GIGA_MACS = {"resnet18": 0.5554, "resnet34": 1.1594, "resnet50": 1.2978, "resnet101": 2.5100}


def model(name, *overrides):
    return composed_once(f"student={name}", "method=ce", *overrides).student


@functools.cache
def summary_of(name, *overrides):
    return summarize(model(name, *overrides), SPEC, "student")


def published(figures):
    """Return test parameters with a published figure per model. All but three are slow tests."""
    quick = ("resnet18", "resnet8", "resnet20")
    return [pytest.param(*case, marks=() if case[0] in quick else pytest.mark.wide) for case in figures.items()]


@pytest.mark.parametrize(("name", "expected"), published(PARAMETERS))
def test_parameters_are_as_many_as_published(name, expected):
    assert summary_of(name).num_params == expected


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), WIDE.items())
def test_wide_resnets_have_as_many_parameters_as_published_for_100_classes(name, expected):
    assert summarize(model(name), SPEC._replace(num_classes=100), "student").num_params == expected


def test_the_vision_transformer_has_as_many_parameters_as_deit_ti_at_the_size_of_imagenet():
    config = model("vit_tiny", "student.image_size=224", "student.patch_size=16")
    with torch.device("meta"):
        network = torchvision.models.VisionTransformer(**config.arguments, num_classes=1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == 5_717_416


@pytest.mark.slow
def test_stages_of_the_vision_transformer_are_tokens_after_every_third_layer():
    summary = summary_of("vit_tiny")
    assert summary.num_params == 5_362_762
    assert summary.shapes == {f"layer{n}": (65, 192) for n in (1, 2, 3, 4)} | {"pooled": (192,)}
    assert not summary.refused
    network = build(model("vit_tiny"), SPEC, ("layer4", "pooled")).eval()
    output = network(torch.randn(2, *IMAGE))
    assert output.logits.shape == (2, 10)
    assert torch.equal(output.features["pooled"], network.body.encoder.ln(output.features["layer4"])[:, 0])


@pytest.mark.parametrize(("name", "expected"), published(GIGA_MACS))
def test_macs_are_as_many_as_published(name, expected):
    assert summary_of(name).macs / 1e9 == pytest.approx(expected, abs=5e-5)


@pytest.mark.slow
def test_stages_have_the_shapes_of_the_architecture():
    assert summary_of("resnet18").shapes == {
        "layer1": (64, 32, 32), "layer2": (128, 16, 16), "layer3": (256, 8, 8), "layer4": (512, 4, 4), "pooled": (512,)
    }  # fmt: skip
    assert summary_of("resnet18", "student.stem=imagenet").shapes["layer4"] == (512, 1, 1)
    assert summary_of("resnet32x4").shapes["layer3"] == (256, 8, 8)


@pytest.mark.slow
def test_state_dict_names_are_torchvisions_own():
    network = build(model("resnet34", "student.stem=imagenet"), SPEC, ("layer2", "pooled"))
    reference = torchvision.models.resnet34(num_classes=10)
    assert set(network.body.state_dict()) == set(reference.state_dict())
    reference.load_state_dict(network.body.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(network.eval()(images).logits, reference.eval()(images))


def test_features_are_the_outputs_of_the_named_modules():
    network = build(model("resnet8"), SPEC, ("layer1", "layer3", "pooled")).eval()
    images = torch.randn(4, *IMAGE)
    output = network(images)
    body = network.body
    maps = torch.relu(body.bn1(body.conv1(images)))
    assert output.features["layer1"].shape == (4, 16, 32, 32)
    assert torch.equal(output.features["pooled"], output.features["layer3"].mean((2, 3)))
    assert torch.allclose(output.logits, body.fc(output.features["pooled"]))
    assert not torch.equal(maps, output.features["layer1"])


def test_the_last_maps_of_a_wide_resnet_are_what_its_classifier_averages():
    summary = summary_of("wrn16_2")
    assert summary.shapes == {
        "layer1": (32, 32, 32), "layer2": (64, 16, 16), "layer3": (128, 8, 8), "pooled": (128,)
    }  # fmt: skip
    assert not summary.refused
    assert summary.classifiers == {"layer3": "fc", "pooled": "fc"}
    network = build(model("wrn16_2"), SPEC, ("layer2", "layer3")).eval()
    output, body = network(torch.randn(4, *IMAGE)), network.body
    assert bool((output.features["layer3"] >= 0).all())
    assert bool((output.features["layer2"] < 0).any())  # pre-activation: no ReLU after the group
    last = torch.relu(body.bn(body.layer3(output.features["layer2"])))
    assert torch.equal(output.features["layer3"], last)
    assert torch.allclose(output.logits, body.fc(last.mean((2, 3))), atol=1e-6)


def test_a_block_of_a_wide_resnet_is_its_formula():
    torch.manual_seed(0)
    for channels, stride in ((8, 1), (8, 2), (12, 1)):
        block, maps = PreactBlock(8, channels, stride, dropout=0.0).eval(), torch.randn(2, 8, 6, 6)
        active = torch.relu(block.bn1(maps))
        residual = block.conv2(torch.relu(block.bn2(block.conv1(active))))
        shortcut = maps if (channels, stride) == (8, 1) else F.conv2d(active, block.shortcut.weight, stride=stride)
        assert torch.equal(block(maps), residual + shortcut)


def test_dropout_of_a_wide_resnet_acts_in_training_only_and_is_off_by_default():
    images = torch.randn(2, *IMAGE)
    for probability, is_random in ((0.0, False), (0.5, True)):
        network = build(model("wrn16_2", f"student.dropout={probability}"), SPEC)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.0
        network.train()
        assert torch.equal(network(images).logits, network(images).logits) != is_random
        network.eval()
        assert torch.equal(network(images).logits, network(images).logits)


def test_only_the_requested_stages_are_returned():
    assert set(build(model("resnet8"), SPEC, ("layer2",))(torch.randn(2, *IMAGE)).features) == {"layer2"}
    assert not build(model("resnet8"), SPEC)(torch.randn(2, *IMAGE)).features


def test_batch_norm_follows_the_mode_of_the_network():
    network = build(model("resnet8"), SPEC).train()
    before = network.body.bn1.running_mean.clone()
    network(torch.randn(8, *IMAGE))
    assert not torch.equal(before, network.body.bn1.running_mean)
    after = network.body.bn1.running_mean.clone()
    network.eval()(torch.randn(8, *IMAGE))
    assert torch.equal(after, network.body.bn1.running_mean)


def test_any_architecture_of_torchvision_can_be_built_by_its_import_path():
    config = ModelConfig(
        "mobilenet", "torchvision.models.mobilenet_v3_small", {"layer1": "features.1", "pooled": "flatten"}, {}
    )
    summary = summarize(config, SPEC, "student")
    assert summary.shapes["pooled"] == (576,)
    assert build(config, SPEC, ("layer1",))(torch.randn(2, *IMAGE)).logits.shape == (2, 10)


def test_initial_weights_follow_he_initialisation():
    torch.manual_seed(0)
    weight = build(model("resnet18"), SPEC).body.conv1.weight
    assert weight.shape == (64, 3, 3, 3)
    assert float(weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("name", "override", "code"),
    [
        ("resnet18", "student.stem=small", "unknown_option"),
        ("resnet18", "student.arch=resnet19", "unknown_option"),
        ("resnet8", "student.depth=9", "out_of_range"),
        ("resnet8", "student.widths=[16,16]", "out_of_range"),
        ("wrn16_2", "student.depth=18", "out_of_range"),
        ("wrn16_2", "student.width=0", "out_of_range"),
        ("wrn16_2", "student.dropout=1", "out_of_range"),
        ("resnet8", "+student.groups=2", "unknown_key"),
        ("resnet8", "student._target_=kdbench.models.nothing", "not_importable"),
        ("resnet8", "student.stages.layer1=layer9", "not_found"),
    ],
)
def test_a_wrong_argument_of_an_architecture_is_an_error_with_its_key(name, override, code):
    with pytest.raises(ConfigError) as error:
        summary_of(name, override)
    key = override.lstrip("+").partition("=")[0]
    assert error.value.code == code
    assert error.value.key == ("student.stages" if ".stages" in key else key)


def test_a_builder_that_fails_is_an_error_of_its_place_in_the_config():
    config = ModelConfig("any", "torchvision.models.resnet18", {}, {"no_such_argument": 1})
    with pytest.raises(ConfigError) as error:
        build(config, SPEC, key="teacher")
    assert (error.value.code, error.value.key) == ("not_buildable", "teacher")


def test_images_that_an_architecture_cannot_process_are_an_error():
    config = ModelConfig("any", "torchvision.models.alexnet", {}, {})
    with pytest.raises(ConfigError) as error:
        summarize(config, SPEC, "student")
    assert (error.value.code, error.value.key) == ("mismatch", "student")


@pytest.mark.parametrize(
    ("name", "node"),
    [
        pytest.param("vgg11_bn", "features.1", marks=pytest.mark.wide),
        ("resnet18", "layer1.0.bn1"),
        ("resnet18", "layer1.0.bn2"),
        pytest.param("resnet50", "layer2.0.bn3", marks=pytest.mark.wide),
    ],
)
def test_a_stage_before_an_in_place_operation_is_not_overwritten(name, node):
    config = ModelConfig("any", f"torchvision.models.{name}", {"layer1": node, "again": node}, {})
    torch.manual_seed(0)
    network = build(config, SPEC, ("layer1", "again"))
    outputs = []
    dict(network.body.named_modules())[node].register_forward_hook(lambda *parts: outputs.append(parts[2].clone()))
    for train in (True, False):
        features = network.train(train)(torch.randn(4, *IMAGE)).features
        assert float(outputs[-1].detach().min()) < 0  # a batch norm's output, before its ReLU
        assert torch.equal(features["layer1"], outputs[-1])
        assert torch.equal(features["again"], outputs[-1])
    assert len(outputs) == 2


def test_activations_that_follow_no_stage_stay_in_place():
    body = build(model("resnet18"), SPEC, ("layer1", "layer2", "layer3", "layer4", "pooled")).body
    assert all(module.inplace for module in body.modules() if isinstance(module, torch.nn.ReLU))


def test_an_unknown_node_is_an_error_with_the_valid_nodes():
    with pytest.raises(ConfigError) as error:
        summary_of("resnet8", "student.stages.layer1=layer9")
    assert {"'layer9'", "conv1", "layer3"} <= set(re.split(r"[ ,;]+", str(error.value)))


def test_summarizing_does_not_change_the_random_state():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    summary_of("resnet8")
    assert torch.equal(torch.rand(1), expected)

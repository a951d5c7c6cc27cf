import functools

import pytest
import torch
import torchvision

from kdbench.config import ModelConfig
from kdbench.errors import ConfigError
from kdbench.models import build, describe
from tests.conftest import composed_once

IMAGE = (3, 32, 32)

PARAMETERS = {
    "resnet18": 11_173_962, "resnet34": 21_282_122, "resnet50": 23_520_842, "resnet101": 42_512_970,
    "resnet8": 78_042, "resnet14": 175_258, "resnet20": 272_474, "resnet32": 466_906, "resnet44": 661_338,
    "resnet56": 855_770, "resnet110": 1_730_714, "resnet8x4": 1_210_410, "resnet32x4": 7_410_730,
}  # fmt: skip
GIGA_MACS = {"resnet18": 0.5554, "resnet34": 1.1594, "resnet50": 1.2978, "resnet101": 2.5100}


def model(name, *overrides):
    return composed_once(f"student={name}", "method=ce", *overrides).student


@functools.cache
def description(name, *overrides):
    return describe(model(name, *overrides), 10, IMAGE, "student")


def published(figures):
    """Parameters: a figure by model. The largest models are slow tests."""
    large = ("resnet34", "resnet101", "resnet56", "resnet110", "resnet32x4")
    return [pytest.param(*case, marks=pytest.mark.slow if case[0] in large else ()) for case in figures.items()]


@pytest.mark.parametrize(("name", "expected"), published(PARAMETERS))
def test_parameter_count_is_the_published_one(name, expected):
    assert description(name).num_params == expected


@pytest.mark.parametrize(("name", "expected"), published(GIGA_MACS))
def test_macs_are_the_published_ones(name, expected):
    assert description(name).macs / 1e9 == pytest.approx(expected, abs=5e-5)


def test_stages_have_the_shapes_of_the_architecture():
    assert description("resnet18").shapes == {
        "layer1": (64, 32, 32), "layer2": (128, 16, 16), "layer3": (256, 8, 8), "layer4": (512, 4, 4), "pooled": (512,)
    }  # fmt: skip
    assert description("resnet18", "student.stem=imagenet").shapes["layer4"] == (512, 1, 1)
    assert description("resnet32x4").shapes["layer3"] == (256, 8, 8)


def test_state_dict_names_are_torchvisions_own():
    network = build(model("resnet34", "student.stem=imagenet"), 10, ("layer2", "pooled"))
    reference = torchvision.models.resnet34(num_classes=10)
    assert set(network.body.state_dict()) == set(reference.state_dict())
    reference.load_state_dict(network.body.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(network.eval()(images).logits, reference.eval()(images))


def test_features_are_what_the_named_modules_answer():
    network = build(model("resnet8"), 10, ("layer1", "layer3", "pooled")).eval()
    images = torch.randn(4, *IMAGE)
    output = network(images)
    body = network.body
    maps = torch.relu(body.bn1(body.conv1(images)))
    assert output.features["layer1"].shape == (4, 16, 32, 32)
    assert torch.equal(output.features["pooled"], output.features["layer3"].mean((2, 3)))
    assert torch.allclose(output.logits, body.fc(output.features["pooled"]))
    assert not torch.equal(maps, output.features["layer1"])


def test_only_the_stages_asked_for_are_answered():
    assert set(build(model("resnet8"), 10, ("layer2",))(torch.randn(2, *IMAGE)).features) == {"layer2"}
    assert not build(model("resnet8"), 10)(torch.randn(2, *IMAGE)).features


def test_train_and_eval_mode_reach_batch_norm():
    network = build(model("resnet8"), 10).train()
    before = network.body.bn1.running_mean.clone()
    network(torch.randn(8, *IMAGE))
    assert not torch.equal(before, network.body.bn1.running_mean)
    after = network.body.bn1.running_mean.clone()
    network.eval()(torch.randn(8, *IMAGE))
    assert torch.equal(after, network.body.bn1.running_mean)


def test_any_architecture_of_torchvision_joins_by_its_import_path():
    config = ModelConfig(
        "mobilenet", "torchvision.models.mobilenet_v3_small", {"layer1": "features.1", "pooled": "flatten"}, {}
    )
    described = describe(config, 10, IMAGE, "student")
    assert described.shapes["pooled"] == (576,)
    assert build(config, 10, ("layer1",))(torch.randn(2, *IMAGE)).logits.shape == (2, 10)


def test_first_weights_follow_he_initialisation():
    torch.manual_seed(0)
    weight = build(model("resnet18"), 10).body.conv1.weight
    assert weight.shape == (64, 3, 3, 3)
    assert float(weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("resnet18", "student.stem=small", "stem is 'small'; valid: cifar, imagenet"),
        ("resnet18", "student.arch=resnet19", "did you mean resnet18"),
        ("resnet8", "student.depth=9", r"depth is 9; it may be 6n \+ 2"),
        ("resnet8", "student.widths=[16,16]", "four numbers"),
        ("resnet8", "+student.groups=2", "student.groups is no known key; valid: _target_, depth, stages, widths"),
        ("resnet8", "student._target_=kdbench.models.nothing", "which cannot be called: Error loading"),
    ],
)
def test_what_cannot_be_built_is_refused(name, override, message):
    with pytest.raises(ConfigError, match=message):
        description(name, override)


@pytest.mark.parametrize(
    ("name", "node"),
    [
        pytest.param("vgg11_bn", "features.1", marks=pytest.mark.slow),
        ("resnet18", "layer1.0.bn1"),
        ("resnet18", "layer1.0.bn2"),
        ("resnet50", "layer2.0.bn3"),
    ],
)
def test_stage_before_something_that_works_in_place_is_not_overwritten(name, node):
    config = ModelConfig("any", f"torchvision.models.{name}", {"layer1": node, "again": node}, {})
    torch.manual_seed(0)
    network = build(config, 10, ("layer1", "again"))
    seen = []
    dict(network.body.named_modules())[node].register_forward_hook(lambda *parts: seen.append(parts[2].clone()))
    for train in (True, False):
        features = network.train(train)(torch.randn(4, *IMAGE)).features
        assert float(seen[-1].detach().min()) < 0  # a batch norm's output, before its ReLU
        assert torch.equal(features["layer1"], seen[-1])
        assert torch.equal(features["again"], seen[-1])
    assert len(seen) == 2


def test_activations_work_in_place_where_no_stage_is_in_the_way():
    body = build(model("resnet18"), 10, ("layer1", "layer2", "layer3", "layer4", "pooled")).body
    assert all(module.inplace for module in body.modules() if isinstance(module, torch.nn.ReLU))


def test_unknown_node_is_refused_with_its_name_and_the_valid_ones():
    with pytest.raises(ConfigError, match=r"names the node 'layer9'; .*outermost ones: images, conv1, bn1"):
        description("resnet8", "student.stages.layer1=layer9")


def test_describing_leaves_the_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    description("resnet8")
    assert torch.equal(torch.rand(1), expected)
